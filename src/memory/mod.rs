//! Row 1: the memory that coroutines run on.

#[cfg(all(target_os = "linux", not(greenhack_threads), not(greenhack_valgrind)))]
mod gauge;
#[cfg(not(all(target_os = "linux", not(greenhack_threads), not(greenhack_valgrind))))]
#[path = "no_gauge.rs"]
mod gauge;
pub(crate) mod limit;
pub(crate) mod measure;
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
