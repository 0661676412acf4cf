//! Row 3: the verbs, and those who drive coroutines.

pub(crate) mod await_sync;
pub(crate) mod builder;
pub mod dump;
#[cfg(feature = "backtrace")]
pub(crate) mod frames;
pub(crate) mod in_place;
pub(crate) mod local_run;
pub(crate) mod metrics;
pub(crate) mod nested;
pub(crate) mod nursery;
pub(crate) mod outside;
pub(crate) mod pinned;
pub(crate) mod queue;
pub(crate) mod reaper;
pub(crate) mod run;
pub(crate) mod scope;
pub(crate) mod sections;
pub(crate) mod tuples;
pub(crate) mod watch;
pub(crate) mod with_ambient;
pub mod workers;
