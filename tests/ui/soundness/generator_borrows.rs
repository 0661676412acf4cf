//! A generator that borrows: its stream could be forgotten, and the stack with
//! it goes on to hold the borrow.

use greenhack::stream::generate_local;

fn main() {
    let local = String::new();
    let stream = generate_local(|yielder| yielder.yield_(local.len()));
    std::mem::forget(stream);
}
