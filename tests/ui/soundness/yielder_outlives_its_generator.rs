//! A yielder that is kept when its generator has ended.

use std::cell::Cell;

use greenhack::stream::{Yielder, generate_local};

fn main() {
    let kept: Cell<Option<&Yielder<u8>>> = Cell::new(None);
    let _stream = generate_local(move |yielder| kept.set(Some(yielder)));
}
