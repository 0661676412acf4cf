//! What the crate says unasked: events, and the count of leaked runs.
//!
//! With the feature `tracing` they are tracing events with the target
//! `greenhack`. Without it, or if the program has no subscriber, they are lines on
//! standard error.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::error::discard;

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// Returns how many suspended runs this process had to leak.
///
/// A run is leaked, with its stack and all that lives on it, only where it can
/// neither be resumed nor unwound: it was dropped where its destructors must
/// await and nothing can drive them, it outlived its cleanup budget, or its
/// thread ended. Each leak is also reported: with the feature `tracing` as an error
/// event of the target `greenhack`, without it, or without a subscriber, as a line on
/// standard error. A service
/// that sees this number rise has a bug that the reports name.
///
/// # Examples
///
/// ```
/// assert_eq!(greenhack::leaked_runs(), 0);
/// ```
pub fn leaked_runs() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// Counts and reports a leaked run.
#[cold]
pub(crate) fn leaked(name: &str, why: &str) {
    LEAKED.fetch_add(1, Ordering::Relaxed);
    without_abort(|| {
        #[cfg(feature = "tracing")]
        if tracing::dispatcher::has_been_set() {
            tracing::error!(target: "greenhack", run = name, why, "a suspended run was leaked");
            return;
        }
        eprintln!("greenhack: a suspended run was leaked: {name}: {why}");
    });
}

/// Reports something that went a worse way than it should.
#[cold]
pub(crate) fn warn(what: &str, remedy: &str) {
    without_abort(|| {
        #[cfg(feature = "tracing")]
        if tracing::dispatcher::has_been_set() {
            tracing::warn!(target: "greenhack", remedy, "{what}");
            return;
        }
        eprintln!("greenhack: {what}; {remedy}");
    });
}

/// Calls `report`, whose panic ends here during an unwind. Subscribers of tracing are
/// code of others, and standard error may be closed.
fn without_abort(report: impl FnOnce()) {
    if thread::panicking() {
        catch_unwind(AssertUnwindSafe(report)).unwrap_or_else(discard);
    } else {
        report();
    }
}
