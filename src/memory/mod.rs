//! Row 1: the memory that coroutines run on.

pub(crate) mod limit;
#[cfg(all(
    test,
    target_os = "linux",
    not(greenhack_threads),
    not(greenhack_valgrind)
))]
mod old_kernel_tests;
pub(crate) mod pool;
mod shelf;
#[cfg(all(target_os = "linux", not(greenhack_threads), not(greenhack_valgrind)))]
mod slab;
#[cfg(not(all(target_os = "linux", not(greenhack_threads), not(greenhack_valgrind))))]
#[path = "no_slab.rs"]
mod slab;
