//! Row 0: what the rest stands on.

pub(crate) mod ambient;
pub(crate) mod error;
pub(crate) mod nobody;
pub(crate) mod report;
pub(crate) mod switch;
pub(crate) mod sync;
#[cfg(target_os = "linux")]
#[cfg_attr(
    any(greenhack_threads, greenhack_valgrind),
    allow(dead_code, reason = "there is no slab then")
)]
pub(crate) mod sys;
#[cfg(not(target_os = "linux"))]
#[path = "no_sys.rs"]
pub(crate) mod sys;
pub(crate) mod unwind;
