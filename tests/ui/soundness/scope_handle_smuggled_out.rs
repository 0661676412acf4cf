//! A handle outside of its scope would speak of closures that are gone.

use std::cell::RefCell;

fn main() {
    let kept = RefCell::new(None);
    greenhack::scope(|s| {
        let handle = s.spawn(|| 1);
        kept.replace(Some(handle));
    });
    greenhack::scope(|s| s.spawn(|| 1));
}
