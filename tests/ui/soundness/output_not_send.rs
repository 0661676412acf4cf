//! A result that comes from a worker must be `Send`.

use std::rc::Rc;

fn main() {
    let _run = greenhack::run_sync(|| Rc::new(1));
}
