//! A closure that goes to a worker must be `Send`.

use std::rc::Rc;

fn main() {
    let shared = Rc::new(1);
    let _run = greenhack::run_sync(move || *shared);
}
