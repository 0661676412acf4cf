//! Row 2: coroutines, and the futures that they wait for.

pub(crate) mod account;
pub(crate) mod context;
pub(crate) mod coroutine;
pub(crate) mod mounts;
#[cfg(all(target_os = "linux", not(greenhack_threads)))]
pub(crate) mod overflow;
#[cfg(not(all(target_os = "linux", not(greenhack_threads))))]
#[path = "no_overflow.rs"]
pub(crate) mod overflow;
pub(crate) mod pending;
pub(crate) mod residents;
pub(crate) mod spans;
