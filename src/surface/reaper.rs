//! The end of runs that nobody awaits any more.
//!
//! A run that is dropped while it is suspended is cancelled on the spot: its
//! stack unwinds before `drop` returns. If a destructor on it awaits, or the
//! run is [shielded](crate::shield), a [`Reaper`] goes on with it as a task of
//! the same thread, within the run's budget.
//!
//! ```text
//!   dropped ──▶ on its thread? ──no──▶ a reaper there, which cancels
//!                    │yes
//!                 cancel ──▶ ended: done
//!                    │ suspended again
//!                 a reaper on this thread ──▶ ended: done
//!                    │ budget over, or the reaper is dropped
//!                 polled a little ──▶ expire ──▶ ended: done
//!                                       │
//!                                     leaked
//! ```
//!
//! With `panic = "abort"` nothing can unwind. The reaper then runs the
//! coroutine to its end as if nothing had happened, without a budget.
//!
//! # Invariants
//!
//! - R1 A reaper that is dropped never makes another: a runtime that is closing
//!   drops the tasks that it is given at once.
//! - R2 A reaper touches its coroutine only on the coroutine's thread, and not
//!   while the thread's locals are destroyed.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Sleep, sleep};

use super::in_place::{Home, Scheduler};
use super::{outside, workers};
use crate::engine::coroutine::{Coroutine, Outcome};
use crate::ground::ambient::{Spot, thread_is_alive};
use crate::ground::error::discard;
use crate::ground::nobody;

/// Whether a suspended stack can be unwound.
pub(crate) const CAN_UNWIND: bool = cfg!(panic = "unwind");

/// How often a coroutine is polled where nothing would wake it.
const A_LITTLE: usize = 64;

/// Ends `coroutine`, whose owner is being dropped.
#[cold]
pub(crate) fn abandon<T: 'static>(mut coroutine: Coroutine<T, Home>) {
    if coroutine.has_ended() {
        // Its last poll has panicked all the same, in a tracing subscriber.
        return;
    }
    let _changed = workers::Changed;
    let home = coroutine.owners();
    if !coroutine.is_this_thread() {
        return if home.scheduler == Scheduler::SingleThreaded {
            let handle = home.handle.clone();
            drop(handle.spawn(Reaper::new(coroutine)));
        } else {
            coroutine.leak("it was dropped on another thread, and its own has no scheduler");
        };
    }
    if !thread_is_alive() || coroutine.is_running() {
        return coroutine.leak("its thread is ending");
    }
    home.leave();
    // Destructors may want to spawn.
    let handle = home.handle.clone();
    let _entered = Handle::try_current().is_err().then(|| handle.enter());
    if CAN_UNWIND {
        if let Poll::Ready(outcome) = coroutine.cancel() {
            return finish(coroutine, outcome);
        }
        if coroutine.is_stuck() {
            return coroutine.leak(STUCK);
        }
    }
    spawn(Reaper::new(coroutine));
}

/// Gives `reaper` to this thread's scheduler.
fn spawn<T: 'static>(reaper: Reaper<T>) {
    let Some(home) = reaper.coroutine.as_ref().map(Coroutine::owners) else {
        return;
    };
    // A worker's runtime drives its thread, whatever runtime is entered there.
    let handle = match home.scheduler {
        Scheduler::SingleThreaded => Some(home.handle.clone()),
        Scheduler::LocalSet | Scheduler::BlockOn => workers::handle(),
    };
    if let Some(handle) = handle {
        drop(handle.spawn(reaper));
        return;
    }
    let in_local_set = home.scheduler == Scheduler::LocalSet;
    // Elsewhere only a `LocalSet` could drive it, and `spawn_local` panics if
    // there is none. The reaper is kept out of that unwind.
    let reaper = Rc::new(RefCell::new(reaper));
    if CAN_UNWIND && in_local_set {
        let task = poll_fn({
            let reaper = reaper.clone();
            move |cx| Pin::new(&mut *reaper.borrow_mut()).poll(cx)
        });
        let spawned = catch_unwind(AssertUnwindSafe(|| tokio::task::spawn_local(task)));
        spawned.map(drop).unwrap_or_else(discard);
    }
}

pub(crate) const STUCK: &str =
    "it swallowed its cancellation, or awaits where it cannot be unwound";

/// Lets a panic of the cleanup out, as the drop of any value would.
fn finish<T>(coroutine: Coroutine<T, Home>, outcome: Outcome<T>) {
    if let Some(payload) = coroutine.left_panic(outcome) {
        if thread::panicking() {
            discard(payload);
        } else {
            resume_unwind(payload);
        }
    }
}

/// Drives a cancelled coroutine to its end.
pub(crate) struct Reaper<T: 'static> {
    coroutine: Option<Coroutine<T, Home>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

// SAFETY: a reaper touches its coroutine only on the coroutine's thread (R2);
// all else that it holds is `Send`.
unsafe impl<T> Send for Reaper<T> {}

impl<T: 'static> Reaper<T> {
    pub(crate) fn new(coroutine: Coroutine<T, Home>) -> Reaper<T> {
        Reaper {
            coroutine: Some(coroutine),
            deadline: None,
        }
    }

    /// Starts the clock, at the first poll.
    fn poll_deadline(&mut self, budget: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let deadline = &mut self.deadline;
            let deadline = deadline.get_or_insert_with(|| Box::pin(sleep(budget)));
            deadline.as_mut().poll(cx)
        }));
        polled.unwrap_or_else(|payload| {
            // A runtime without a timer panics when it is asked for one, and a
            // caller's that has ended when it is polled.
            discard(payload);
            let _entered = outside::process_runtime().enter();
            self.deadline
                .insert(Box::pin(sleep(budget)))
                .as_mut()
                .poll(cx)
        })
    }
}

impl<T: 'static> Future for Reaper<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let Some(coroutine) = &mut this.coroutine else {
            return Poll::Ready(());
        };
        if !coroutine.is_this_thread() || !thread_is_alive() {
            // Another thread drives the runtime now, or one that ends. Wait for the
            // right one, or for the end of the runtime.
            return Poll::Pending;
        }
        let budget = coroutine.owners().budget();
        let mut poll = Poll::Pending;
        if CAN_UNWIND && !coroutine.is_cancelled() {
            poll = coroutine.cancel();
        }
        if poll.is_pending() && !coroutine.is_stuck() {
            poll = coroutine.poll_at(Spot::here(), cx);
        }
        if poll.is_pending() && !coroutine.is_stuck() {
            if !CAN_UNWIND || this.poll_deadline(budget, cx).is_pending() {
                return Poll::Pending;
            }
            let coroutine = this.coroutine.as_mut().expect("it is there");
            poll = coroutine.expire();
        }
        let coroutine = this.coroutine.take().expect("it is there");
        match poll {
            Poll::Ready(outcome) => finish(coroutine, outcome),
            Poll::Pending if coroutine.is_stuck() => coroutine.leak(STUCK),
            Poll::Pending => coroutine.leak("its cleanup took longer than its budget"),
        }
        Poll::Ready(())
    }
}

impl<T: 'static> Drop for Reaper<T> {
    fn drop(&mut self) {
        let _changed = workers::Changed;
        let suspended = self
            .coroutine
            .take()
            .filter(|coroutine| !coroutine.has_ended());
        let Some(mut coroutine) = suspended else {
            return;
        };
        if !coroutine.is_this_thread() || !thread_is_alive() || coroutine.is_running() {
            return coroutine.leak("its runtime has ended on another thread");
        }
        let handle = coroutine.owners().handle.clone();
        let _entered = Handle::try_current().is_err().then(|| handle.enter());
        let mut poll = Poll::Pending;
        if CAN_UNWIND && !coroutine.is_cancelled() {
            poll = coroutine.cancel();
        }
        let mut cx = Context::from_waker(nobody::waker());
        for _ in 0..A_LITTLE {
            if poll.is_ready() || coroutine.is_stuck() {
                break;
            }
            poll = coroutine.poll_at(Spot::anywhere(), &mut cx);
        }
        if CAN_UNWIND && poll.is_pending() {
            poll = coroutine.expire();
        }
        match poll {
            Poll::Ready(outcome) => finish(coroutine, outcome),
            Poll::Pending => coroutine.leak("its runtime has ended before its cleanup"),
        }
    }
}
