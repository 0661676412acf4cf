//! Plain functions that do several things at once, and borrow from each other:
//! structured concurrency without async code.
//!
//! - Run it: `cargo run --example fan_out`. It ends by itself.
//! - Try it: let a supplier panic, or answer first.
//! - It prints the cheapest offer, how many were asked at a time, and which
//!   supplier was too slow.

use std::cell::Cell;
use std::time::Duration;

use greenhack::{await_sync, join, map_concurrent, race};
use tokio::time::sleep;

const SUPPLIERS: [(&str, u64); 5] = [("Ada", 4), ("Bob", 3), ("Cy", 9), ("Di", 5), ("Eve", 7)];

#[greenhack::main]
fn main() {
    let (asked, most) = (Cell::new(0), Cell::new(0));
    // At most three calls at a time, in this one task, on this one thread.
    let offers = map_concurrent(3, SUPPLIERS, |(name, price)| {
        asked.set(asked.get() + 1);
        most.set(most.get().max(asked.get()));
        let offer = (ask(price), name);
        asked.set(asked.get() - 1);
        offer
    });
    let best = offers.iter().min();
    println!("the best of {} offers: {best:?}", offers.len());
    println!("asked at a time: at most {}", most.get());
    assert_eq!((best, most.get()), (Some(&(3, "Bob")), 3));

    // Two different things, both needed.
    let (price, stock) = join(|| ask(4), || ask(40));
    println!("a price of {price}, and {stock} in stock");

    // The first answer will do. The other closure is cancelled, and has
    // cleaned up when `race` returns.
    let late = Cell::new(None);
    let first = race(["Ada", "Cy"].map(|name| {
        let late = &late;
        move || {
            let _guard = SetOnCancel(late, name);
            ask(u64::from(name == "Cy") * 1_000);
            name
        }
    }));
    println!("first: {first}, too slow: {:?}", late.get());
    assert_eq!((first, late.get()), ("Ada", Some("Cy")));
}

/// A plain function that waits.
fn ask(price: u64) -> u64 {
    await_sync(sleep(Duration::from_millis(price)));
    price
}

/// Notes who was cancelled.
struct SetOnCancel<'a>(&'a Cell<Option<&'static str>>, &'static str);

impl Drop for SetOnCancel<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set(Some(self.1));
        }
    }
}

#[test]
fn runs() {
    main();
}
