//! Row 0: what the rest stands on.

pub(crate) mod ambient;
pub(crate) mod error;
pub(crate) mod nobody;
pub(crate) mod report;
pub(crate) mod switch;
pub(crate) mod sync;
#[cfg(all(target_os = "linux", not(greenhack_threads), not(greenhack_valgrind)))]
pub(crate) mod sys;
pub(crate) mod unwind;
