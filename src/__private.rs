//! What the macros write into the user's crate. Not part of the interface.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "not part of the interface")]

pub use crate::surface::await_sync::await_called;
pub use crate::surface::tuples::{boxed, join};
pub use tokio;

// The compiler quotes the line of the bound.
#[inline(always)]
pub fn assert_send<T>(_: &T)
where
    T: ?Sized + Send, // or write `#[greenhack::entry(local)]`
{
}

// A method runs on a clone of `&self`.
#[inline(always)]
pub fn clone_self<T>(this: &T) -> T
where
    T: Clone, // or write `self: &Arc<Self>`, of which the `Arc` is cloned
{
    this.clone()
}

#[inline(always)]
pub fn assert_static<T: ?Sized + 'static>(_: &T) {}

#[cfg(feature = "rt-multi-thread")]
pub fn multi_thread_builder() -> tokio::runtime::Builder {
    tokio::runtime::Builder::new_multi_thread()
}
