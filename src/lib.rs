#![cfg_attr(docsrs, feature(doc_cfg))]
//! Plain functions that wait for tokio futures.

mod engine;
mod ground;
mod memory;
mod surface;

pub use ground::error::{Cancelled, NotAwaited};
pub use ground::report::leaked_runs;
pub use surface::await_sync::{
    AwaitExt, await_in_drop, await_or_cancelled, await_sync, in_context, try_await_sync,
};
pub use surface::builder::{Builder, builder};
pub use surface::local_run::{LocalRun, run_sync_local};
pub use surface::outside::enter_runtime;
pub use surface::run::{Run, run_sync};
pub use surface::sections::{must_suspend, no_suspend, shield};
pub use surface::workers;

#[cfg(feature = "macros")]
pub use greenhack_macros::{entry, main, test};

#[doc(hidden)]
pub mod __private;
