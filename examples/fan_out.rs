//! Plain closures that run at once and borrow from their caller: structured
//! concurrency without async code.
//!
//! - Run it: `cargo run --example fan_out`. It ends by itself.
//! - Try it: let a supplier panic; `join` has the panic, and a race resumes it.
//! - It prints how many were asked at a time, and the best offer.

use std::cell::Cell;
use std::time::Duration;

use greenhack::{race, scope, time::sleep};

#[greenhack::main]
fn main() {
    let suppliers = [("Ada", 4), ("Bob", 3), ("Cy", 9)];
    let (asked, most, ticks) = (Cell::new(0), Cell::new(0), Cell::new(0));
    // Like `std::thread::scope`, but in this one task, on this one thread: the
    // closures borrow from this frame, and share it without a lock.
    let best = scope(|s| {
        let clock = s.spawn(|| {
            loop {
                ticks.set(ticks.get() + 1);
                ask(1);
            }
        });
        let calls = suppliers.each_ref().map(|(name, price)| {
            let (asked, most) = (&asked, &most);
            s.spawn(move || {
                asked.set(asked.get() + 1);
                most.set(most.get().max(asked.get()));
                let offer = (ask(*price), *name);
                asked.set(asked.get() - 1);
                offer
            })
        });
        let offers = calls.map(|call| call.join().unwrap());
        // The scope waits for all that it has started, and the clock has no end.
        clock.abort();
        offers.into_iter().min()
    });
    println!("{} were asked at a time; the best: {best:?}", most.get());
    assert_eq!((best, most.get()), (Some((3, "Bob")), 3));
    assert!(ticks.get() > 0);

    // The first answer will do. The other closure is cancelled at its wait.
    let first = race([("Ada", 1), ("Cy", 60_000)].map(|(name, price)| move || (ask(price), name)));
    assert_eq!(first, (1, "Ada"));
}

/// A plain function that waits.
fn ask(price: u64) -> u64 {
    sleep(Duration::from_millis(price));
    price
}

#[test]
fn runs() {
    main();
}
