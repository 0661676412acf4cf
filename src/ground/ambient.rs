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
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use tokio::runtime::{self, Handle, RuntimeFlavor, worker_index};
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
    task: Option<task::Id>,
    /// The worker that polls, or one of the three constants below.
    worker: usize,
    runtime: Option<runtime::Id>,
}

/// No scheduler is entered.
const NO_WORKER: usize = usize::MAX;

/// No scheduler is entered, and it was looked whether this is in a poll: it is.
const POLLED: usize = usize::MAX - 1;

/// No scheduler is entered, and it was looked whether this is in a poll: it is not.
const NOT_POLLED: usize = usize::MAX - 2;

#[inline(always)]
fn worker() -> usize {
    worker_index().unwrap_or(NO_WORKER)
}

/// Why a coroutine can't stay suspended where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Its stack holds a scope of tokio's.
    Scope,
    /// It has entered another runtime.
    Runtime,
    /// It is in a `block_on` of the `futures` crate.
    Executor,
    /// It is in a subscriber of tracing.
    Subscriber,
}

impl Spot {
    pub(crate) fn here() -> Spot {
        Spot::in_runtime(entered_runtime())
    }

    /// The spot of one who may be in a poll or in a drop: tokio need not be
    /// entered in a drop, and would allow a `block_on`, so that this is looked at
    /// as well.
    pub(crate) fn anywhere() -> Spot {
        let mut spot = Spot::here();
        if spot.worker == NO_WORKER {
            spot.worker = idle_worker();
        }
        spot
    }

    /// The spot, where it is known which runtime is entered.
    #[inline]
    pub(crate) fn in_runtime(runtime: Option<runtime::Id>) -> Spot {
        Spot {
            task: task::try_id(),
            worker: worker(),
            runtime,
        }
    }

    /// What has changed since the spot was taken, if anything.
    #[inline(always)]
    pub(crate) fn moved(self) -> Option<Moved> {
        let is_same = self.task == task::try_id()
            && self.worker == worker()
            && self.runtime == entered_runtime();
        if is_same && cfg!(not(debug_assertions)) {
            return None;
        }
        self.look_closer()
    }

    #[cold]
    fn look_closer(self) -> Option<Moved> {
        let worker = match self.worker {
            POLLED | NOT_POLLED if worker_index().is_none() => idle_worker(),
            _ => worker(),
        };
        if self.task != task::try_id() || self.worker != worker {
            Some(Moved::Scope)
        } else if self.runtime != entered_runtime() {
            Some(Moved::Runtime)
        } else if cfg!(debug_assertions) && in_executor_of_futures() {
            Some(Moved::Executor)
        } else {
            None
        }
    }

    /// Whether this is the poll of a task that no worker runs: a `LocalSet`'s.
    #[inline]
    pub(crate) fn is_in_local_set(self) -> bool {
        self.task.is_some() && self.worker == NO_WORKER
    }

    /// Whether the caller is in a poll of the same task. (In a destructor of the
    /// task while its runtime shuts down, no scheduler is entered.)
    #[inline]
    pub(crate) fn is_same_task(self) -> bool {
        self.task.is_some() && self.task == task::try_id() && self.worker == worker()
    }
}

fn idle_worker() -> usize {
    if is_polled() { POLLED } else { NOT_POLLED }
}

#[inline(always)]
fn entered_runtime() -> Option<runtime::Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}

fn in_executor_of_futures() -> bool {
    futures::executor::enter().is_err()
}

/// Whether tokio polls a future on this thread right now.
///
/// Every poll by tokio is limited by a budget; code that is not polled is
/// unlimited. This spends the budget to see whether it ends, and gives it back.
/// Under `tokio::task::unconstrained` the answer is "no".
pub(crate) fn is_polled() -> bool {
    /// More than tokio has ever given (128).
    const MORE_THAN_ANY_BUDGET: usize = 256;

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
    if thread_is_ending() {
        return Blocking::No(Refusal::ThreadEnding);
    }
    match Handle::try_current() {
        Ok(handle) => {
            if worker_index().is_some() || is_polled() {
                Blocking::No(Refusal::AsyncCode)
            } else if in_executor_of_futures() {
                Blocking::No(Refusal::OtherExecutor)
            } else {
                Blocking::On(handle)
            }
        }
        Err(error) if error.is_thread_local_destroyed() => Blocking::No(Refusal::ThreadEnding),
        Err(_) if in_executor_of_futures() => Blocking::No(Refusal::OtherExecutor),
        Err(_) => Blocking::Nothing,
    }
}

/// Whether the scheduler that drives this thread here keeps its tasks on it.
///
/// True for current-thread runtimes and `LocalRuntime`s, whose one worker has
/// the index 0. (A current-thread runtime can be driven by another thread
/// later; the coroutine guards itself against that.)
pub(crate) fn is_single_threaded(handle: &Handle, spot: Spot) -> bool {
    spot.worker == 0 && matches!(handle.runtime_flavor(), RuntimeFlavor::CurrentThread)
}

/// The identity of a thread, never used again after it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadToken(NonZero<u64>);

thread_local! {
    /// 0 until it is asked for.
    static TOKEN: Cell<u64> = const { Cell::new(0) };
}

impl ThreadToken {
    #[inline]
    pub(crate) fn current() -> ThreadToken {
        match NonZero::new(TOKEN.get()) {
            Some(number) => ThreadToken(number),
            None => ThreadToken::first(),
        }
    }

    #[cold]
    fn first() -> ThreadToken {
        static THREADS: AtomicU64 = AtomicU64::new(0);
        let number = NonZero::<u64>::MIN.saturating_add(THREADS.fetch_add(1, Ordering::Relaxed));
        TOKEN.set(number.get());
        ThreadToken(number)
    }

    #[inline(always)]
    pub(crate) fn is_this_thread(self) -> bool {
        self.0.get() == TOKEN.get()
    }
}

/// Whether the locals of this thread are still there.
///
/// A coroutine may hold references into thread locals, so it is not resumed
/// while they are destroyed. The first call on a thread makes the mark, and
/// must happen before the first coroutine is suspended on it.
#[inline]
pub(crate) fn thread_is_alive() -> bool {
    thread_local! {
        static ALIVE: Mark = const { Mark };
    }
    ALIVE.try_with(|_| ()).is_ok()
}

/// Makes the mark by which [`may_block`] sees that this thread is ending.
/// Called after each `block_on`.
pub(crate) fn thread_has_blocked() {
    HAS_BLOCKED.set(true);
    let _ = BLOCKED.try_with(|_| ());
}

/// Whether tokio can't block this thread any more.
///
/// Its means to park are a thread local, made at the first `block_on`, so
/// before the mark and destroyed after it.
fn thread_is_ending() -> bool {
    HAS_BLOCKED.get() && BLOCKED.try_with(|_| ()).is_err()
}

/// A thread local that has to be destroyed, so that it is seen.
struct Mark;

impl Drop for Mark {
    fn drop(&mut self) {}
}

thread_local! {
    static HAS_BLOCKED: Cell<bool> = const { Cell::new(false) };
    static BLOCKED: Mark = const { Mark };
}
