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
//! - I6 The stack of a leaked coroutine is never used again. A worker's thread
//!   does not end while it has one.
//! - I7 What parent and coroutine share, and what the owner keeps, is a block in
//!   the attic of the stack. It is made with the coroutine, and dropped after the
//!   coroutine has ended, before the stack is given back; it is leaked with the
//!   stack. Both sides reach it by pointers to its fields, never by a reference
//!   to the whole.
//! - I8 A suspended coroutine can be resumed to give an account of itself, by anyone on
//!   its thread and at any time: it goes on in [`Header::wait`], touches nothing but what
//!   it is asked for, and suspends again. It runs no code of others, and does not unwind.
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

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, offset_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::task::{Context, Poll};

use super::account::Account;
use super::context::{Header, Kind, Visit, throw_cancelled};
use super::pending::End;
use super::residents::{self, Resident};
use crate::ground::ambient::{Spot, ThreadToken};
use crate::ground::error::{Cancelled, Payload, discard, keep_first};
use crate::ground::nobody;
use crate::ground::report;
use crate::ground::switch::{ATTIC, Stack, Switch, Yielder};
use crate::memory::pool;

/// The file of this code, by which its frames are known.
#[cfg(feature = "backtrace")]
pub(crate) const FILE: &str = file!();

/// What became of the closure.
pub(crate) type Outcome<T> = Result<T, Payload>;

/// A closure on a stack of its own, with what its owner wants to keep beside.
///
/// It is a pointer, because it is moved a lot.
pub(crate) struct Coroutine<T, X> {
    block: NonNull<Block<T, X>>,
    _owns: PhantomData<Block<T, X>>,
}

/// What a coroutine has in the attic of its stack (I7).
///
/// It is there and not on the heap, so that to suspend and to resume touches one
/// page, and to start allocates nothing. What a resume looks at comes first, in two
/// lines of the cache, of which the first is shared with the link to the parent.
#[repr(C)]
struct Block<T, X> {
    switch: ManuallyDrop<Switch<Outcome<T>>>,
    header: Header,
    owners: X,
    /// The panic of an awaited future that was dropped by a cancellation.
    drop_panic: Cell<Option<Payload>>,
    /// Its place in the list of the thread.
    resident: Resident,
}

impl<T, X> Coroutine<T, X> {
    /// Puts `f` on `stack`. `header` makes what both sides share, of the size of
    /// the stack.
    ///
    /// # Safety
    ///
    /// What `f` and `T` borrow must live until the coroutine has ended, and for
    /// ever if it is leaked or forgotten.
    #[inline]
    pub(crate) unsafe fn new<F>(
        stack: Stack,
        header: impl FnOnce(usize) -> Header,
        owners: X,
        f: F,
    ) -> Coroutine<T, X>
    where
        F: FnOnce() -> T,
    {
        const {
            assert!(size_of::<Block<T, X>>() <= ATTIC, "it does not fit");
            assert!(align_of::<Block<T, X>>() <= 16, "stacks begin anywhere");
        }
        let header = header(stack.size());
        let kind = header.kind();
        let block: *mut Block<T, X> = stack.attic().cast();
        // SAFETY: the attic has room for a block, by the assertions above.
        let shared: *const Header = unsafe { &raw const (*block).header };
        let root = move |yielder: &Yielder| {
            // SAFETY: the header outlives the coroutine (I7).
            root(unsafe { &*shared }, yielder, f)
        };
        // SAFETY: `root` catches every panic (I1); the caller keeps the borrows.
        let switch = unsafe { Switch::new(stack, root) };
        let content = Block {
            header,
            switch: ManuallyDrop::new(switch),
            owners,
            drop_panic: Cell::new(None),
            resident: Resident::new(ask::<T, X>),
        };
        // SAFETY: the attic is that of the coroutine's own stack, so nobody else
        // has it (I7).
        unsafe { block.write(content) };
        // SAFETY: as for the header.
        let resident = unsafe { &raw const (*block).resident };
        // SAFETY: the block is there until the coroutine has ended, at which it leaves
        // the list, and for ever if it is leaked (I7).
        unsafe { residents::arrive(resident, kind) };
        Coroutine {
            // SAFETY: an attic is not at null.
            block: unsafe { NonNull::new_unchecked(block) },
            _owns: PhantomData,
        }
    }

    /// What parent and coroutine share. The coroutine sees it too, so that it is
    /// never borrowed mutably.
    #[inline(always)]
    pub(crate) fn header(&self) -> &Header {
        // SAFETY: the block is there as long as this owns it (I7).
        unsafe { &(*self.block.as_ptr()).header }
    }

    #[inline(always)]
    fn switch(&self) -> &Switch<Outcome<T>> {
        // SAFETY: as above. It is borrowed mutably by `resume` alone.
        unsafe { &(*self.block.as_ptr()).switch }
    }

    #[inline(always)]
    fn drop_panic(&self) -> &Cell<Option<Payload>> {
        // SAFETY: as above.
        unsafe { &(*self.block.as_ptr()).drop_panic }
    }

    /// What the owner keeps.
    #[inline(always)]
    pub(crate) fn owners(&self) -> &X {
        // SAFETY: as above.
        unsafe { &(*self.block.as_ptr()).owners }
    }

    /// What the coroutine tells of itself.
    pub(crate) fn account(&self) -> Account {
        // SAFETY: as above.
        let resident = unsafe { &raw const (*self.block.as_ptr()).resident };
        // SAFETY: it is of this type, and owned by this, which is on its thread (I2).
        let mut account = unsafe { ask::<T, X>(resident) };
        account.name_spans();
        account
    }

    /// Whether this is the thread that the coroutine was made on (I2).
    #[inline(always)]
    pub(crate) fn is_this_thread(&self) -> bool {
        self.header().is_this_thread()
    }

    /// Runs the coroutine until it ends or waits for a future that is pending, in a
    /// poll of tokio's at `spot`.
    ///
    /// # Panics
    ///
    /// If the coroutine has ended.
    #[inline(always)]
    pub(crate) fn poll_at(&mut self, spot: Spot, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        self.header().set_spot(spot);
        self.poll(cx)
    }

    /// The same, where the spot is that of the header.
    ///
    /// # Panics
    ///
    /// If the coroutine has ended.
    #[inline(always)]
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        self.expect_suspended();
        let header = self.header();
        let mut visit = Visit::new(header);
        visit.begin();
        let mut resumed = false;
        loop {
            // SAFETY: the coroutine is suspended, or has not run; the borrow
            // ends before the resume below.
            if let Some(mut pending) = unsafe { header.pending() } {
                if pending.as_mut().poll(cx).is_pending() {
                    // If it has not run, nothing has changed since last time.
                    let end = if resumed {
                        must_not_stay(&visit, header)
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
                header.settle();
            } else if header.is_stuck() {
                return Poll::Pending;
            }
            // SAFETY: the borrows of its future have ended.
            if let Some(outcome) = unsafe { self.resume(&visit) } {
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
        self.header().set_cancelled();
        self.interrupt()
    }

    /// Ends the time for cleanup: waits that can fail do so from now on.
    ///
    /// `Pending` means that the coroutine cannot end.
    #[cold]
    pub(crate) fn expire(&mut self) -> Poll<Outcome<T>> {
        self.header().set_expired();
        self.interrupt()
    }

    fn interrupt(&mut self) -> Poll<Outcome<T>> {
        let header = self.header();
        let for_scope = header.waits_for_scope();
        let deaf = !for_scope && !header.can_be_interrupted();
        if header.is_stuck() || deaf {
            return Poll::Pending;
        }
        self.expect_suspended();
        header.set_spot(Spot::anywhere());
        let mut visit = Visit::new(header);
        visit.begin();
        // The future goes first, here; then the coroutine hears of it (I3).
        // SAFETY: the coroutine is suspended; the borrow ends before the resume.
        if let Some(mut pending) = unsafe { header.pending() } {
            if for_scope {
                // The scope passes it on, and is done when its children are.
                let mut cx = Context::from_waker(nobody::waker());
                if pending.as_mut().poll(&mut cx).is_pending() {
                    return Poll::Pending;
                }
            } else if let Err(payload) = pending.end(End::Cancelled) {
                keep_first(self.drop_panic(), payload);
            }
            header.settle();
        }
        loop {
            // SAFETY: as above, the borrows have ended.
            if let Some(outcome) = unsafe { self.resume(&visit) } {
                return Poll::Ready(outcome);
            }
            // A destructor waits. It stays for a poll to go on with, unless it
            // is where it must not stay (I5).
            // SAFETY: as above.
            let Some(mut pending) = (unsafe { header.pending() }) else {
                return Poll::Pending;
            };
            let Some(end) = must_not_stay(&visit, header) else {
                return Poll::Pending;
            };
            // What is ready at once need not stay.
            let mut cx = Context::from_waker(nobody::waker());
            if pending.as_mut().poll(&mut cx).is_pending() {
                pending.end(end).unwrap_or_else(discard);
            }
            header.settle();
        }
    }

    /// Switches to the coroutine and back.
    ///
    /// # Panics
    ///
    /// If the coroutine has ended.
    ///
    /// # Safety
    ///
    /// The future that it waits for must not be borrowed.
    #[inline(always)]
    unsafe fn resume(&self, visit: &Visit<'_>) -> Option<Outcome<T>> {
        // SAFETY: the block is there as long as this owns it (I7).
        let switch = unsafe { &raw mut (*self.block.as_ptr()).switch };
        // SAFETY: only this function borrows it mutably, and it is not called in
        // itself: a nested poll of the same coroutine has no `&mut` to it.
        let switch = unsafe { &mut *switch };
        let header = self.header();
        // Whatever unwinds on our stack is none of the coroutine's business, and
        // the other way round.
        let ours = header.swap_unwinds_in();
        // It stays in registers where nobody would drop it. What follows does not unwind.
        let outcome = ManuallyDrop::new(visit.resumed(|| switch.resume()));
        header.swap_unwinds_out(ours);
        let outcome = ManuallyDrop::into_inner(outcome);
        if outcome.is_some() {
            header.set_ended();
            // SAFETY: as above.
            unsafe { &(*self.block.as_ptr()).resident }.leave(header.kind());
        }
        outcome
    }

    /// Sees to it that a switch can't fail, which would unwind with the coroutine
    /// current on its parent's stack (C1).
    #[inline(always)]
    fn expect_suspended(&self) {
        if !self.switch().can_resume() {
            not_suspended();
        }
    }

    /// Whether the closure has ended. While it runs it has not, so that nobody
    /// frees the stack that it runs on.
    pub(crate) fn has_ended(&self) -> bool {
        self.header().has_ended()
    }

    /// Whether the closure runs at this moment, and its owner is dropped below it:
    /// by `exit`, which ends a thread's locals with whatever borrows from them.
    pub(crate) fn is_running(&self) -> bool {
        // Not asked of the switch, which `resume` has borrowed then.
        self.header().is_running()
    }

    /// Whether the coroutine can neither wait nor unwind any more.
    #[inline]
    pub(crate) fn is_stuck(&self) -> bool {
        self.header().is_stuck()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.header().is_cancelled()
    }

    /// The panic that a cancelled coroutine leaves behind, if any.
    pub(crate) fn left_panic(&self, outcome: Outcome<T>) -> Option<Payload> {
        let of_closure = outcome.err().filter(|payload| !payload.is::<Cancelled>());
        if let Some(payload) = of_closure {
            keep_first(self.drop_panic(), payload);
        }
        self.drop_panic().take()
    }

    /// Leaks the coroutine. That it is dropped as it is would do the same, but
    /// for the reason.
    #[cold]
    pub(crate) fn leak(self, why: &str) {
        if !self.has_ended() {
            // The report may unwind, and the drop would report it again.
            ManuallyDrop::new(self).report_leak(why);
        }
    }

    #[cold]
    fn report_leak(&self, why: &str) {
        if self.is_this_thread() {
            self.header().note_leak();
        }
        if self.header().kind() == Kind::Child {
            // What counts is the run whose frames it borrows from.
            return;
        }
        if self.is_this_thread() {
            residents::leaked();
        }
        report::leaked(self.header().name(), why);
    }
}

impl<T, X> Drop for Coroutine<T, X> {
    /// Gives the stack back, or leaks it with all that is on it (I6).
    #[inline]
    fn drop(&mut self) {
        if !self.has_ended() {
            return self.report_leak("it was dropped while suspended");
        }
        let _free = Free {
            block: self.block,
            thread: self.header().thread(),
        };
        // SAFETY: this owns the block, and drops it once. The coroutine has ended, so
        // that nobody else has a reference to it (I7). The switch is left behind, a
        // `ManuallyDrop`.
        unsafe { self.block.drop_in_place() };
    }
}

/// Asks the coroutine that has this place in the list for an account (I8).
///
/// # Safety
///
/// The pointer must be made of one to the `Block<T, X>` of a coroutine that was made on
/// this thread, and has not ended.
unsafe fn ask<T, X>(resident: *const Resident) -> Account {
    // SAFETY: the block begins that much before one of its fields.
    let block = unsafe { resident.byte_sub(offset_of!(Block<T, X>, resident)) };
    let block: *mut Block<T, X> = block.cast_mut().cast();
    // SAFETY: the block is there as long as the coroutine has not ended (I7).
    let header = unsafe { &(*block).header };
    let mut account = Account::new(header);
    if header.is_waiting() {
        header.ask(&mut account, || {
            // SAFETY: as above.
            let switch = unsafe { &raw mut (*block).switch };
            // SAFETY: the coroutine is suspended, so that no `resume` has borrowed it.
            let switch = unsafe { &mut *switch };
            let outcome = switch.resume();
            assert!(outcome.is_none(), "a coroutine has ended that was asked");
        });
    }
    account
}

/// Gives the stack of a coroutine back that has ended, when what else is in its attic
/// has been dropped, or has panicked in that.
struct Free<T, X> {
    block: NonNull<Block<T, X>>,
    thread: ThreadToken,
}

impl<T, X> Drop for Free<T, X> {
    #[inline]
    fn drop(&mut self) {
        let block = self.block.as_ptr();
        // SAFETY: the stack is there, and the attic with it, until it is given back.
        // Nobody else has a reference to the switch any more.
        let switch = unsafe { &mut (*block).switch };
        // SAFETY: it is taken once, here.
        let stack = unsafe { ManuallyDrop::take(switch) }.into_stack();
        if self.thread.is_this_thread() {
            pool::give(stack);
        } else {
            pool::end(stack);
        }
    }
}

#[cold]
#[inline(never)]
fn not_suspended() -> ! {
    panic!("a coroutine was resumed that runs, or has ended");
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

/// Why a coroutine that has just run must not stay suspended, if so.
#[inline]
fn must_not_stay(visit: &Visit<'_>, header: &Header) -> Option<End> {
    if let Some(moved) = header.spot().moved() {
        return Some(End::Refused(moved));
    }
    if header.forbids_suspension() {
        return Some(End::Forbidden);
    }
    // Last, as the visit remembers what it has found.
    if let Some(moved) = visit.moved() {
        return Some(End::Refused(moved));
    }
    header.note_suspension();
    None
}
