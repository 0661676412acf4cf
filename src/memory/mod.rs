//! Row 1: the memory that coroutines run on.

pub(crate) mod pool;
#[cfg(all(target_os = "linux", not(greenhack_threads), not(greenhack_valgrind)))]
mod slab;
#[cfg(not(all(target_os = "linux", not(greenhack_threads), not(greenhack_valgrind))))]
#[path = "no_slab.rs"]
mod slab;
