//! A coroutine, and the protocol between it and the parent that polls it.
//!
//! A [`Coroutine`] runs a closure that returns `T`. Its owner polls it like a
//! future; the closure, and whatever it calls, waits through
//! [`Header::wait`](super::context::Header::wait).
//!
//! # The protocol
//!
//! 1. [`Coroutine::new`] puts the closure on a stack. Nothing runs yet.
//! 2. [`Coroutine::poll`] resumes it until it ends, or until a future that it
//!    waits for is pending. The future is polled on the caller's stack.
//! 3. [`Coroutine::cancel`] drops that future, on the caller's stack, and
//!    resumes the coroutine with the news: its wait unwinds. If a destructor
//!    waits in turn, the coroutine is suspended again, and the owner goes on
//!    with 2.
//! 4. [`Coroutine::expire`] ends that patience: waits that can fail do so.
//! 5. A coroutine that is dropped while it is suspended is leaked.
//!
//! # Invariants
//!
//! - I1 No unwind leaves the closure given to the switch: [`root`] catches
//!   all. The stack switch sees unwinds on neither side.
//! - I2 A coroutine is created, resumed, and its stack freed, on one thread.
//!   The type is neither `Send` nor `Sync`; the owners that are `Send` compare
//!   a thread token before they touch it.
//! - I3 A future is polled and dropped on the parent's stack, with nothing
//!   current, and before the coroutine hears of a cancellation.
//! - I4 A coroutine that is suspended in the middle of an unwind, or shielded,
//!   is not unwound: [`Header::can_be_interrupted`] is asked first.
//! - I5 Between two resumes the thread's tokio state is the same: when the
//!   coroutine is to stay suspended, the [`Spot`] must be that of the poll.
//! - I6 The stack of a leaked coroutine is never used again, and its header
//!   never freed. A worker's thread does not end while it has one.
//!
//! # Safety
//!
//! - Dropped early: the owner cancels; what cannot end is leaked (I6).
//! - Forgotten: the stack stays as it is for ever and is never resumed. What
//!   the closure borrows lives as long, as the caller of `new` promises.
//! - Polled again after its end: the owners do not; `poll` panics.
//! - A panic in a poll or a drop of the awaited future is caught by the slot,
//!   a panic of the closure by `root`.
//! - On the wrong thread: see I2.

use std::borrow::Cow;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::{Context, Poll};

use super::context::{Header, Kind, Visit, throw_cancelled};
use super::pending::End;
use super::residents;
use crate::ground::ambient::{Spot, ThreadToken};
use crate::ground::error::{Cancelled, Payload, discard, keep_first};
use crate::ground::nobody;
use crate::ground::report;
use crate::ground::switch::{Stack, Switch, Yielder};
use crate::ground::unwind;
use crate::memory::pool;

/// What became of the closure.
pub(crate) type Outcome<T> = Result<T, Payload>;

/// A closure on a stack of its own, with what its owner wants to keep beside.
///
/// It is a few words, because it is moved a lot.
pub(crate) struct Coroutine<T, X> {
    /// `None` when it has ended.
    switch: Option<Switch<Outcome<T>>>,
    block: Rc<Block<X>>,
}

/// What a coroutine has on the heap.
struct Block<X> {
    header: Header,
    /// The panic of an awaited future that was dropped by a cancellation.
    drop_panic: Cell<Option<Payload>>,
    thread: ThreadToken,
    owners: X,
}

impl<T, X> Coroutine<T, X> {
    /// Puts `f` on `stack`.
    ///
    /// # Safety
    ///
    /// What `f` and `T` borrow must live until the coroutine has ended, and for
    /// ever if it is leaked or forgotten.
    #[inline]
    pub(crate) unsafe fn new<F>(
        stack: Stack,
        name: Cow<'static, str>,
        kind: Kind,
        owners: X,
        f: F,
    ) -> Coroutine<T, X>
    where
        F: FnOnce() -> T,
    {
        let block = Rc::new(Block {
            header: Header::new(name, kind, stack.size()),
            drop_panic: Cell::new(None),
            thread: ThreadToken::current(),
            owners,
        });
        let pointer: *const Header = &raw const block.header;
        let root = move |yielder: &Yielder| {
            // SAFETY: the header outlives the coroutine (C2).
            root(unsafe { &*pointer }, yielder, f)
        };
        // SAFETY: `root` catches every panic (I1); the caller keeps the borrows.
        let switch = unsafe { Switch::new(stack, root) };
        if kind == Kind::Run {
            residents::arrived();
        }
        Coroutine {
            switch: Some(switch),
            block,
        }
    }

    /// What the owner keeps.
    #[inline]
    pub(crate) fn owners(&self) -> &X {
        &self.block.owners
    }

    /// Whether this is the thread that the coroutine was made on (I2).
    #[inline]
    pub(crate) fn is_this_thread(&self) -> bool {
        self.block.thread == ThreadToken::current()
    }

    /// Runs the coroutine until it ends or waits for a future that is pending.
    ///
    /// `spot` is where tokio polls this. It is an argument because the owners
    /// need it too.
    ///
    /// # Panics
    ///
    /// If the coroutine has ended.
    #[inline]
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, spot: Spot) -> Poll<Outcome<T>> {
        let switch = self.switch.as_mut().expect("polled after its end");
        let visit = Visit::begin(&self.block.header);
        let mut resumed = false;
        loop {
            // SAFETY: the coroutine is suspended, or has not run; the borrow
            // ends before the resume below.
            if let Some(mut pending) = unsafe { self.block.header.pending() } {
                if pending.as_mut().poll(cx).is_pending() {
                    // If it has not run, nothing has changed since last time.
                    let end = if resumed {
                        must_not_stay(&visit, &self.block.header, spot)
                    } else {
                        None
                    };
                    let Some(end) = end else {
                        return Poll::Pending;
                    };
                    // A panic of the drop has shown itself; the refusal is
                    // what the waiting call hears of.
                    pending.end(end).unwrap_or_else(discard);
                }
                self.block.header.settle();
            } else if self.block.header.is_stuck() {
                return Poll::Pending;
            }
            if let Some(outcome) = resume(&visit, &self.block.header, switch) {
                free(&mut self.switch, &self.block.header);
                return Poll::Ready(outcome);
            }
            resumed = true;
        }
    }

    /// Cancels the coroutine, and runs it until it ends or waits again.
    ///
    /// `Pending` means that [`poll`](Self::poll) should go on, unless
    /// [`is_stuck`](Self::is_stuck).
    #[cold]
    pub(crate) fn cancel(&mut self) -> Poll<Outcome<T>> {
        self.block.header.set_cancelled();
        self.interrupt()
    }

    /// Ends the time for cleanup: waits that can fail do so from now on.
    ///
    /// `Pending` means that the coroutine cannot end.
    #[cold]
    pub(crate) fn expire(&mut self) -> Poll<Outcome<T>> {
        self.block.header.set_expired();
        self.interrupt()
    }

    fn interrupt(&mut self) -> Poll<Outcome<T>> {
        let for_scope = self.block.header.waits_for_scope();
        let deaf = !for_scope && !self.block.header.can_be_interrupted();
        if self.block.header.is_stuck() || deaf {
            return Poll::Pending;
        }
        let spot = Spot::outside_of_polls();
        let switch = self.switch.as_mut().expect("cancelled after its end");
        let visit = Visit::begin(&self.block.header);
        // The future goes first, here; then the coroutine hears of it (I3).
        // SAFETY: the coroutine is suspended; the borrow ends before the resume.
        if let Some(mut pending) = unsafe { self.block.header.pending() } {
            if for_scope {
                // The scope passes it on, and is done when its children are.
                let mut cx = Context::from_waker(nobody::waker());
                if pending.as_mut().poll(&mut cx).is_pending() {
                    return Poll::Pending;
                }
            } else if let Err(payload) = pending.end(End::Cancelled) {
                keep_first(&self.block.drop_panic, payload);
            }
            self.block.header.settle();
        }
        loop {
            if let Some(outcome) = resume(&visit, &self.block.header, switch) {
                free(&mut self.switch, &self.block.header);
                return Poll::Ready(outcome);
            }
            // A destructor waits. It stays for a poll to go on with, unless it
            // is where it must not stay (I5).
            // SAFETY: as above.
            let Some(mut pending) = (unsafe { self.block.header.pending() }) else {
                return Poll::Pending;
            };
            let Some(end) = must_not_stay(&visit, &self.block.header, spot) else {
                return Poll::Pending;
            };
            // What is ready at once need not stay.
            let mut cx = Context::from_waker(nobody::waker());
            if pending.as_mut().poll(&mut cx).is_pending() {
                pending.end(end).unwrap_or_else(discard);
            }
            self.block.header.settle();
        }
    }

    /// Whether the closure has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.switch.is_none()
    }

    /// Whether the coroutine can neither wait nor unwind any more.
    pub(crate) fn is_stuck(&self) -> bool {
        self.block.header.is_stuck()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.block.header.is_cancelled()
    }

    /// The panic that a cancelled coroutine leaves behind, if any.
    pub(crate) fn left_panic(&self, outcome: Outcome<T>) -> Option<Payload> {
        let of_closure = outcome.err().filter(|payload| !payload.is::<Cancelled>());
        self.block.drop_panic.take().or(of_closure)
    }

    /// Leaks the coroutine. That it is dropped as it is would do the same, but
    /// for the reason.
    #[cold]
    pub(crate) fn leak(mut self, why: &str) {
        self.leak_in_place(why);
    }

    fn leak_in_place(&mut self, why: &str) {
        if let Some(switch) = self.switch.take() {
            // Dropping a suspended switch leaks its stack.
            drop(switch);
            std::mem::forget(Rc::clone(&self.block));
            if self.block.header.kind() == Kind::Child {
                // What counts is the run whose frames it borrows from.
                return;
            }
            if self.is_this_thread() {
                residents::leaked();
            }
            report::leaked(self.block.header.name(), why);
        }
    }
}

impl<T, X> Drop for Coroutine<T, X> {
    #[inline]
    fn drop(&mut self) {
        if self.switch.is_some() {
            self.leak_in_place("it was dropped while suspended");
        }
    }
}

/// Gives the stack of a coroutine back that has ended.
#[inline]
fn free<T>(switch: &mut Option<Switch<Outcome<T>>>, header: &Header) {
    if let Some(switch) = switch.take() {
        if header.kind() == Kind::Run {
            residents::left();
        }
        pool::give(switch.into_stack());
    }
}

/// The first frame on the coroutine's stack.
fn root<T>(header: &Header, yielder: &Yielder, f: impl FnOnce() -> T) -> Outcome<T> {
    header.entered(yielder);
    catch_unwind(AssertUnwindSafe(|| {
        if header.is_cancelled() {
            // The poll that was to start it has panicked.
            drop(f);
            throw_cancelled();
        }
        f()
    }))
}

/// Switches to the coroutine and back.
#[inline(always)]
fn resume<T>(
    visit: &Visit<'_>,
    header: &Header,
    switch: &mut Switch<Outcome<T>>,
) -> Option<Outcome<T>> {
    // Whatever unwinds on our stack is none of the coroutine's business, and
    // the other way round.
    let ours = unwind::hide();
    header.show_unwinds();
    let outcome = visit.resumed(|| switch.resume());
    header.hide_unwinds();
    unwind::show(ours);
    outcome
}

/// Why a coroutine that has just run must not stay suspended, if so.
#[inline]
fn must_not_stay(visit: &Visit<'_>, header: &Header, spot: Spot) -> Option<End> {
    if let Some(moved) = spot.moved() {
        return Some(End::Refused(moved));
    }
    if header.forbids_suspension() {
        return Some(End::Forbidden);
    }
    // Last, as the visit remembers what it has found.
    if let Some(moved) = visit.moved() {
        return Some(End::Refused(moved));
    }
    header.count_suspension();
    None
}
