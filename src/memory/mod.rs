//! Row 1: the memory that coroutines run on.

pub(crate) mod pool;
