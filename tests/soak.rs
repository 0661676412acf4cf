//! A short soak. The long one is a program:
//! `cargo bench -p greenhack-benches --features soak --bench soak`.
#![cfg(all(target_os = "linux", panic = "unwind"))]

#[path = "soak/churn.rs"]
mod churn;
mod support;

use churn::{Length, soak};

#[test]
fn what_runs_hold_comes_back() {
    soak(Length::Epochs(12));
}
