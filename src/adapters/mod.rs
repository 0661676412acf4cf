//! Row 4: what the verbs make of the async world, by the public API alone.

#[cfg(feature = "axum")]
pub mod axum;
pub(crate) mod block;
#[cfg(any(
    feature = "diesel-postgres",
    feature = "diesel-sqlite",
    feature = "diesel-deadpool",
    feature = "diesel-bb8"
))]
pub mod diesel;
pub mod guard;
#[cfg(feature = "io")]
pub mod io;
pub mod stream;
pub mod time;
#[cfg(feature = "ureq")]
pub mod ureq;
