//! What tokio knows of this thread at this moment.
//!
//! tokio has no function that answers "may this thread block?" or "is this
//! stack still the one that my task is polled on?". Both follow from what it
//! does tell:
//!
//! - [`worker_index`] is `Some` only while the thread is entered by a scheduler
//!   that it drives: in a task, or in the `block_on` of a current-thread
//!   runtime. It is `None` in `spawn_blocking`, `block_in_place`, under a mere
//!   `Handle::enter`, and on foreign threads.
//! - [`task::try_id`] is set while a task is polled, or dropped.
//! - the coop budget limits polls only: [`is_polled`] tries to use it up.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use tokio::runtime::{Handle, RuntimeFlavor, worker_index};
use tokio::task::{self, coop};

use super::error::Refusal;

/// Where on a thread tokio polls.
///
/// It is taken when a coroutine is resumed and compared when it suspends. If
/// they differ, the coroutine's own stack holds an inner tokio scope (it drops
/// a runtime and waits in the destructor of a task, say), whose pointers must
/// not stay behind on the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    worker: Option<usize>,
    task: Option<task::Id>,
    #[cfg(debug_assertions)]
    runtime: Option<tokio::runtime::Id>,
}

impl Spot {
    #[inline]
    pub(crate) fn here() -> Spot {
        Spot {
            worker: worker_index(),
            task: task::try_id(),
            #[cfg(debug_assertions)]
            runtime: entered_runtime(),
        }
    }

    /// Whether the caller is still where the spot was taken.
    #[inline]
    pub(crate) fn is_still_here(self) -> bool {
        self.worker == worker_index() && self.task == task::try_id()
    }

    /// Whether another runtime is entered than where the spot was taken. Debug
    /// builds only: elsewhere it costs more than the rest of a suspension.
    #[inline]
    pub(crate) fn has_entered_another_runtime(self) -> bool {
        #[cfg(debug_assertions)]
        return self.runtime != entered_runtime();
        #[cfg(not(debug_assertions))]
        false
    }

    /// Whether a scheduler drives this thread here.
    #[inline]
    pub(crate) fn is_scheduled(self) -> bool {
        self.worker.is_some()
    }

    /// Whether both are in the poll of the same task.
    #[inline]
    pub(crate) fn is_task_of(self, other: Spot) -> bool {
        self.task.is_some() && self.task == other.task
    }
}

#[cfg(debug_assertions)]
fn entered_runtime() -> Option<tokio::runtime::Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}

/// Whether tokio polls a future on this thread right now.
///
/// Every poll by tokio is limited by a budget; code that is not polled is
/// unlimited. This spends the budget to see whether it ends, and gives it back.
/// Under `tokio::task::unconstrained` the answer is "no".
pub(crate) fn is_polled() -> bool {
    /// More than tokio has ever given (128).
    const MORE_THAN_ANY_BUDGET: usize = 1024;

    if !coop::has_budget_remaining() {
        return true;
    }
    let mut cx = Context::from_waker(Waker::noop());
    // Restores the whole budget when it is dropped, after the loop.
    let _restore = coop::poll_proceed(&mut cx);
    for _ in 0..MORE_THAN_ANY_BUDGET {
        if !coop::has_budget_remaining() {
            return true;
        }
        match coop::poll_proceed(&mut cx) {
            Poll::Ready(spent) => spent.made_progress(),
            Poll::Pending => return true,
        }
    }
    false
}

/// Whether code outside a run may block this thread, and on what.
pub(crate) enum Blocking {
    /// On the runtime that is entered here.
    On(Handle),
    /// On a runtime of our own.
    Nothing,
    No(Refusal),
}

/// Finds out where code outside a run stands.
pub(crate) fn may_block() -> Blocking {
    match Handle::try_current() {
        Ok(handle) => {
            if worker_index().is_some() || is_polled() {
                Blocking::No(Refusal::AsyncCode)
            } else if futures::executor::enter().is_err() {
                Blocking::No(Refusal::OtherExecutor)
            } else {
                Blocking::On(handle)
            }
        }
        Err(error) if error.is_thread_local_destroyed() => Blocking::No(Refusal::ThreadEnding),
        Err(_) if futures::executor::enter().is_err() => Blocking::No(Refusal::OtherExecutor),
        Err(_) => Blocking::Nothing,
    }
}

/// Whether the scheduler that drives this thread here keeps its tasks on it.
///
/// True for current-thread runtimes and `LocalRuntime`s. (A current-thread
/// runtime can be driven by another thread later; the coroutine guards itself
/// against that.)
pub(crate) fn is_single_threaded(handle: &Handle, spot: Spot) -> bool {
    spot.is_scheduled() && matches!(handle.runtime_flavor(), RuntimeFlavor::CurrentThread)
}

/// The identity of a thread, never used again after it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadToken(u64);

impl ThreadToken {
    #[inline]
    pub(crate) fn current() -> ThreadToken {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        thread_local! {
            static TOKEN: Cell<u64> = const { Cell::new(0) };
        }
        TOKEN.with(|token| {
            if token.get() == 0 {
                token.set(NEXT.fetch_add(1, Ordering::Relaxed));
            }
            ThreadToken(token.get())
        })
    }
}

/// Whether the locals of this thread are still there.
///
/// A coroutine may hold references into thread locals, so it is not unwound
/// while they are destroyed. The first call on a thread makes the mark, and
/// must happen before the first coroutine is suspended on it.
pub(crate) fn thread_is_alive() -> bool {
    struct Mark;
    impl Drop for Mark {
        fn drop(&mut self) {}
    }
    thread_local! {
        static ALIVE: Mark = const { Mark };
    }
    ALIVE.try_with(|_| ()).is_ok()
}
