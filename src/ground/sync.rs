//! The synchronisation types of the cross-thread code, which loom replaces.
#![forbid(unsafe_code)]

#[cfg(greenhack_loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(greenhack_loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
