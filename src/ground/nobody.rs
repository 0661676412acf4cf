//! The waker of polls that nothing follows up.
//!
//! Where no task can be woken, futures are polled with [`waker`] instead. Who
//! polls others in turn, and only those that were woken, asks [`is_meant`] and
//! polls all.
#![forbid(unsafe_code)]

use std::task::{Context, Waker};

/// A waker is known by its address, and `Waker::noop()` may have several.
static NOBODY: &Waker = Waker::noop();

/// Wakes nobody.
pub(crate) fn waker() -> &'static Waker {
    NOBODY
}

/// Whether nobody is woken after this poll.
pub(crate) fn is_meant(cx: &Context<'_>) -> bool {
    cx.waker().will_wake(NOBODY)
}
