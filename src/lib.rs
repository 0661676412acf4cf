// Of two definitions of a link the first one counts: these, not those of the README,
// which lead to files. Tests go without, so that they report lines of the README.
#![cfg_attr(not(doctest), doc = include_str!("links.md"))]
#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapters;
mod engine;
mod ground;
mod memory;
mod surface;

#[cfg(feature = "axum")]
pub use adapters::axum;
pub use adapters::block::block;
#[cfg(any(
    feature = "diesel-postgres",
    feature = "diesel-sqlite",
    feature = "diesel-deadpool",
    feature = "diesel-bb8"
))]
pub use adapters::diesel;
#[cfg(feature = "io")]
pub use adapters::io;
#[cfg(feature = "ureq")]
pub use adapters::ureq;
pub use adapters::{guard, stream, time};
pub use engine::mounts::Ambient;
pub use ground::error::{Cancelled, NotAwaited};
pub use ground::report::leaked_runs;
pub use memory::limit::limit_stack_memory;
pub use memory::measure::{StackUse, measure_stacks, stack_use};
pub use surface::await_sync::{
    AwaitExt, await_in_drop, await_or_cancelled, await_sync, in_context, is_cancelled,
    try_await_sync,
};
pub use surface::builder::{Builder, builder};
pub use surface::dump;
pub use surface::local_run::{LocalRun, run_sync_local};
pub use surface::nested::{Nested, nested};
pub use surface::nursery::Scope;
pub use surface::outside::enter_runtime;
pub use surface::run::{Run, run_sync};
pub use surface::scope::{ScopedJoinHandle, join, join_all, map_concurrent, race, scope};
pub use surface::sections::{must_suspend, no_suspend, on_thread_stack, shield};
pub use surface::watch::report_blocking;
pub use surface::with_ambient::with_ambient;
pub use surface::workers;

#[cfg(feature = "macros")]
pub use greenhack_macros::{entry, exempt, main, test};

#[doc(hidden)]
pub mod __private;

#[cfg(any(doc, doctest))]
pub mod docs;
