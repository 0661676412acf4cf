//! Items of a generator on another thread that must not leave it.

use std::rc::Rc;

use greenhack::stream::generate;

fn main() {
    let _stream = generate(|yielder| yielder.yield_(Rc::new(1)));
}
