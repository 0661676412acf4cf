//! greenhack and its peers, side by side.
//!
//! Each side runs in a process of its own, which measures what it is told to, when it
//! is told to: the sides still take turns, as in the other benches, but what one does
//! to its process (threads, mappings, a crash) is no business of the others.
//!
//! ```text
//!   benches/peers.rs          the table, the plots; says "case so and so, 64,000 times"
//!     ├─ sides native            ─┐
//!     ├─ sides greenhack          │ each answers with nanoseconds, or ends
//!     ├─ sides stackful           │
//!     └─ sides_corosensei_02 ..  ─┘ does not link with the corosensei of greenhack
//! ```
//!
//! A [`Side`] is a way to run plain code as a task, and to wait for a future in it. A
//! [`Work`] is what it runs: plain code for all but the two sides that are async.
#![forbid(unsafe_code)]

mod cases;
mod child;
mod parent;
mod plot;
mod side;

pub use cases::{CASES, Case};
pub use child::answer;
pub use parent::Process;
pub use plot::plot;
pub use side::{Side, Work};
