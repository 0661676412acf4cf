//! Row 4: what the verbs make of the async world, by the public API alone.

pub(crate) mod block;
pub mod guard;
#[cfg(feature = "io")]
pub mod io;
pub mod stream;
pub mod time;
#[cfg(feature = "ureq")]
pub mod ureq;
