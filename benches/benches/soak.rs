//! Churn: many runs that wait, nest, panic and are cancelled, by the dice. What they hold
//! comes back: nothing is leaked, every value is dropped, and the process holds at its end
//! what it held when it was warm.
//!
//! `cargo bench -p greenhack-benches --features soak --bench soak -- 300` takes 300
//! seconds, without a number 60. `GREENHACK_SOAK_SEED` repeats the dice of another soak;
//! on workers the threads do not take turns in the same way again.
#![forbid(unsafe_code)]

#[path = "../../tests/soak/churn.rs"]
mod churn;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use churn::{Length, soak};

fn main() {
    let seconds = std::env::args().find_map(|argument| argument.parse().ok());
    soak(Length::Time(Duration::from_secs(seconds.unwrap_or(60))));
}
