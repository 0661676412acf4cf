//! Small adapters by which sync libraries wait without a thread, to be copied.
//!
//! One module is one recipe, and its test in `tests/` shows it with the real
//! library. The page that goes with them is `docs/cookbook/recipes.md`.
#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    missing_debug_implementations,
    reason = "an example, of which the parts are copied"
)]

pub mod busy_handler;
pub mod lettre;
pub mod minijinja;
pub mod redis;
pub mod rhai;
pub mod serialize;
pub mod transaction;
