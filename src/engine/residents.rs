//! The coroutines that live on this thread.
//!
//! They are counted, so that a worker can wait for those that will end, and
//! knows of those that won't: suspended stacks may lend references to the
//! thread's locals, and so a thread with such stacks must not end.
#![forbid(unsafe_code)]

use std::cell::Cell;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static LEAKED: Cell<usize> = const { Cell::new(0) };
}

/// A coroutine was made on this thread.
#[inline]
pub(crate) fn arrived() {
    LIVE.set(LIVE.get() + 1);
}

/// A coroutine has ended.
#[inline]
pub(crate) fn left() {
    LIVE.set(LIVE.get() - 1);
}

/// A coroutine of this thread was leaked: it lives for ever.
pub(crate) fn leaked() {
    LEAKED.set(LEAKED.get() + 1);
}

/// How many coroutines are suspended here, leaked and forgotten ones too.
pub(crate) fn suspended() -> usize {
    LIVE.get()
}

/// Whether some will still end, if they are polled.
pub(crate) fn some_will_end() -> bool {
    LIVE.get() > LEAKED.get()
}
