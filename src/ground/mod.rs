//! Row 0: what the rest stands on.

pub(crate) mod ambient;
pub(crate) mod error;
pub(crate) mod report;
pub(crate) mod switch;
pub(crate) mod sync;
pub(crate) mod unwind;
