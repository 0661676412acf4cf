//! A value that is carried to a worker must be `Send`.

use std::rc::Rc;

tokio::task_local! {
    static SHARED: Rc<u8>;
}

fn main() {
    let _builder = greenhack::builder().carry(&SHARED);
}
