//! Which coroutine runs on this thread, and what it shares with its parent.
//!
//! "Current" is the coroutine whose stack the thread runs on. While a parent
//! polls a future for a coroutine, nothing is current: a wait there could only
//! suspend the wrong stack.
//!
//! ```text
//!   parent's stack                     coroutine's stack
//!   ──────────────                     ─────────────────
//!   poll()            POLLING
//!     resume ─────── header ─────────▶ plain code
//!                                        await_sync(future)
//!                                          slot = Waiting(future)
//!                    POLLING ◀───────────  pending = &slot, suspend
//!     slot.poll(cx)
//!       Pending: return, and come back with the next poll
//!       Ready: the slot holds the output
//!     resume ─────── header ─────────▶     takes the output
//! ```
//!
//! # Invariants
//!
//! - C1 `CURRENT` points to the header of the coroutine on whose stack the
//!   thread runs, or is `POLLING` on the stack of its parent, or null. Whoever
//!   changes it puts the former value back, on unwinding too.
//! - C2 A header outlives its coroutine: the owner of the coroutine owns the
//!   header, and leaks it if it leaks the coroutine.
//! - C3 `pending` is set only while the coroutine is suspended in
//!   [`Header::wait`], whose frame holds the slot. The parent clears it before
//!   it resumes, so that nobody looks at the slot while the coroutine runs.
//! - C4 A coroutine that is resumed with `pending` still set is asked for an
//!   [account](super::account): it gives that and suspends again, without a look at
//!   the slot, which a poll may have borrowed.

use std::borrow::Cow;
use std::cell::Cell;
use std::future::Future;
use std::panic::{Location, resume_unwind};
use std::pin::Pin;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use super::account::{Account, State};
use super::mounts::{Base, Entry, FirstPanic, Mounts};
use super::pending::{End, Pollable, Slot};
use super::spans::Unnamed;
use crate::ground::ambient::{Moved, Spot, ThreadToken};
use crate::ground::error::{Cancelled, Payload, Refusal, discard};
use crate::ground::switch::Yielder;
use crate::ground::unwind::{self, Hidden};
use crate::memory::measure::{self, Measured};

/// The file of this code, by which its frames are known.
#[cfg(feature = "backtrace")]
pub(crate) const FILE: &str = file!();

/// How often a cancellation is thrown at code that swallows it.
const MOST_THROWS: u32 = 32;

/// How often waits of destructors fail, when the budget for cleanup is over.
const MOST_REFUSALS: u32 = 65_536;

/// How a waiting call wants to hear of a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It unwinds.
    Unwind,
    /// It gets an error.
    Error,
    /// It is itself cleanup: it goes on until the budget ends, and then gets
    /// an error.
    Cleanup,
    /// Nobody ends it: other stacks borrow from this one. Its future looks for
    /// a cancellation itself.
    Scope,
}

/// Whose coroutine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A run, which a future owns.
    Run,
    /// A child of a scope, which a frame owns.
    Child,
}

impl Kind {
    /// What comes before the name where one is meant.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Kind::Run => "",
            Kind::Child => "a closure of ",
        }
    }
}

/// Why [`Header::wait`] has no output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfinished {
    Cancelled,
    Refused(Moved),
    Forbidden,
}

/// What a coroutine shares with its parent.
///
/// Both sides see it through shared references and raw pointers only, so it is
/// made of cells. What each suspension looks at comes first, and is no more than fits in
/// a line of the cache: with many runs that are resumed in turn, lines are what counts.
#[repr(C)]
pub(crate) struct Header {
    yielder: Cell<*const Yielder>,
    pending: Cell<Option<*mut dyn Pollable>>,
    /// Where it was polled last.
    spot: Cell<Spot>,
    thread: ThreadToken,
    wait: Cell<Wait>,
    /// It is cancelled, or observed: the fast path has one thing to look at.
    attention: Cell<bool>,
    /// The coroutine can neither wait nor unwind and must be leaked. Only
    /// after `cancelled`; stays set.
    stuck: Cell<bool>,
    /// The suspended stack is in the middle of an unwind.
    unwinding: Cell<bool>,
    /// See [`is_direct`](Header::is_direct).
    is_direct: bool,
    /// There are entries in `mounts`.
    is_mounting: Cell<bool>,
    /// `no_suspends` is not 0.
    no_suspend: Cell<bool>,
    /// It was suspended with its task pending.
    has_suspended: Cell<bool>,

    // What is below is not looked at. Its order leaves few gaps: what is around one the
    // compiler makes elsewhere, and copies.
    throws: Cell<u32>,
    shields: Cell<u32>,
    no_suspends: Cell<u32>,
    /// The unwinds that were taken from the thread's count with the suspended
    /// stack.
    hidden: Cell<Hidden>,
    stack_size: usize,
    name: Cow<'static, str>,
    /// Where it writes the account that it is asked for.
    account: Cell<*mut Account>,
    mounts: Mounts,
    /// The run is cancelled. Stays set.
    cancelled: Cell<bool>,
    /// The budget for cleanup is over. Only after `cancelled`; stays set.
    expired: Cell<bool>,
    /// The closure has ended. Stays set.
    ended: Cell<bool>,
    /// It is suspended for ever. Stays set.
    leaked: Cell<bool>,
    kind: Kind,
    /// When its last wait began, if it notes that.
    since: Cell<Option<Instant>>,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(std::mem::offset_of!(Header, throws) <= 64);

impl Header {
    /// `spot` is where it is polled first, on this `thread`; `is_direct`, whether by a
    /// scheduler that keeps to it.
    #[inline]
    pub(crate) fn new(
        name: Cow<'static, str>,
        kind: Kind,
        stack_size: usize,
        spot: Spot,
        thread: ThreadToken,
        is_direct: bool,
    ) -> Header {
        let is_observed = OBSERVED.load(Ordering::Relaxed);
        Header {
            yielder: Cell::new(ptr::null()),
            pending: Cell::new(None),
            spot: Cell::new(spot),
            thread,
            wait: Cell::new(Wait::Unwind),
            attention: Cell::new(is_observed),
            stuck: Cell::new(false),
            unwinding: Cell::new(false),
            is_direct: is_direct && !is_observed,
            is_mounting: Cell::new(false),
            no_suspend: Cell::new(false),
            has_suspended: Cell::new(false),
            ended: Cell::new(false),
            leaked: Cell::new(false),
            cancelled: Cell::new(false),
            expired: Cell::new(false),
            kind,
            throws: Cell::new(0),
            shields: Cell::new(0),
            no_suspends: Cell::new(0),
            hidden: Cell::new(Hidden::NONE),
            stack_size,
            name,
            since: Cell::new(None),
            account: Cell::new(ptr::null_mut()),
            mounts: Mounts::new(),
        }
    }

    // The coroutine's side.

    /// Called first on the coroutine's stack.
    pub(crate) fn entered(&self, yielder: &Yielder) {
        self.yielder.set(yielder);
        self.reenter();
    }

    /// Suspends until the parent has polled `future` to its end.
    ///
    /// Must be called on the stack of the coroutine that this header belongs
    /// to, which is what [`current`] gives.
    #[inline(always)]
    pub(crate) fn wait<F: Future>(
        &self,
        future: F,
        wait: Wait,
        location: &'static Location<'static>,
    ) -> Result<F::Output, Unfinished> {
        if self.attention.get() && !self.may_wait(wait) {
            return Err(Unfinished::Cancelled);
        }
        let mut slot = Slot::Waiting(future);
        let pointer: *mut (dyn Pollable + '_) = &raw mut slot;
        // SAFETY: only the lifetime changes. The pointer is used while this
        // frame is suspended, or not at all (C3).
        let pointer: *mut (dyn Pollable + 'static) = unsafe { std::mem::transmute(pointer) };
        self.pending.set(Some(pointer));
        self.wait.set(wait);
        self.suspend();
        while self.pending.get().is_some() {
            self.give_account(location);
            self.suspend();
        }
        match slot {
            Slot::Ready(output) => Ok(output),
            unfinished => self.unfinished(unfinished, wait),
        }
    }

    /// What became of a wait that has no output.
    #[cold]
    #[inline(never)]
    fn unfinished<F: Future>(&self, slot: Slot<F>, wait: Wait) -> Result<F::Output, Unfinished> {
        match slot {
            Slot::Ready(output) => Ok(output),
            // To resume it would abort here. The hook has shown it.
            Slot::Panicked(payload) if wait == Wait::Cleanup && thread::panicking() => {
                discard(payload);
                Err(Unfinished::Cancelled)
            }
            Slot::Panicked(payload) => resume_unwind(payload),
            Slot::Ended(End::Cancelled) => {
                self.throws.set(self.throws.get() + 1);
                Err(Unfinished::Cancelled)
            }
            // A panic would abort here; only this stack is lost.
            Slot::Ended(_) if wait == Wait::Unwind && thread::panicking() => self.get_stuck(),
            Slot::Ended(End::Refused(moved)) => Err(Unfinished::Refused(moved)),
            Slot::Ended(End::Forbidden) => Err(Unfinished::Forbidden),
            Slot::Waiting(_) => unreachable!("resumed before the future was ready"),
        }
    }

    /// Tells of the wait of the frame that calls this, for [`ask`](Self::ask). It must not
    /// unwind, since the slot is in that frame; nor can it, as its ABI has no unwinding.
    #[cold]
    #[inline(never)]
    extern "C" fn give_account(&self, location: &'static Location<'static>) {
        let account = self.account.replace(ptr::null_mut());
        // SAFETY: `ask` has set it to an account that it has borrowed, and waits.
        if let Some(account) = unsafe { account.as_mut() } {
            account.take(location);
        }
    }

    #[inline(always)]
    fn suspend(&self) {
        if cfg!(greenhack_threads) {
            self.unwinding.set(thread::panicking());
        }
        // SAFETY: `entered` has set it to the yielder of this coroutine, which
        // lives at the base of the stack that we run on.
        let yielder = unsafe { &*self.yielder.get() };
        yielder.suspend();
        self.reenter();
    }

    /// The stand-in runs the coroutine on a thread with a `CURRENT` of its own.
    #[inline(always)]
    fn reenter(&self) {
        if cfg!(greenhack_threads) {
            CURRENT.set(self);
        }
    }

    /// Whether a wait may begin in a run that needs attention.
    #[cold]
    fn may_wait(&self, wait: Wait) -> bool {
        if TAKES_TIMES.load(Ordering::Relaxed) {
            self.since.set(Some(Instant::now()));
        }
        if wait == Wait::Scope || !self.cancelled.get() {
            return true;
        }
        let can_throw = self.can_throw();
        if self.expired.get() {
            if wait == Wait::Unwind && !can_throw {
                self.get_stuck();
            }
        } else if wait == Wait::Cleanup || !can_throw {
            return true;
        }
        self.throws.set(self.throws.get() + 1);
        // An unwind ends by itself, unless a destructor loops.
        let most = if thread::panicking() {
            MOST_REFUSALS
        } else {
            MOST_THROWS
        };
        if self.throws.get() > most {
            if self.kind == Kind::Child && !self.expired.get() {
                // The scope can wait for it, and has a use for nothing less.
                return true;
            }
            self.get_stuck();
        }
        false
    }

    /// Gives up: the parent sees it and leaks this coroutine.
    pub(crate) fn get_stuck(&self) -> ! {
        self.stuck.set(true);
        self.suspend();
        unreachable!("a coroutine that is stuck is never resumed");
    }

    /// Runs `f` with cancellation held back; then delivers it.
    pub(crate) fn shield<R>(&self, f: impl FnOnce() -> R) -> Result<R, Unfinished> {
        let output = self.counted(&self.shields, f);
        let deliver = self.cancelled.get() && self.can_throw();
        if deliver && !self.may_wait(Wait::Unwind) {
            return Err(Unfinished::Cancelled);
        }
        Ok(output)
    }

    /// Delivers the cancellation that has ended those whom a scope waited for. Where
    /// it can't be thrown, the caller goes on: it waits for nothing any more.
    pub(crate) fn after_scope(&self) -> Result<(), Unfinished> {
        if self.cancelled.get() && self.can_throw() && !self.may_wait(Wait::Unwind) {
            return Err(Unfinished::Cancelled);
        }
        Ok(())
    }

    /// Whether a cancellation may be thrown here: not in an unwind, nor in a shield.
    fn can_throw(&self) -> bool {
        self.shields.get() == 0 && !thread::panicking()
    }

    /// Runs `f`, in which a wait that is not ready at once is an error.
    pub(crate) fn no_suspend<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Restore<'a>(&'a Header);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.no_suspend.set(self.0.no_suspends.get() > 0);
            }
        }
        self.no_suspend.set(true);
        let _restore = Restore(self);
        self.counted(&self.no_suspends, f)
    }

    fn counted<R>(&self, counter: &Cell<u32>, f: impl FnOnce() -> R) -> R {
        struct Count<'a>(&'a Cell<u32>);
        impl Drop for Count<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        counter.set(counter.get() + 1);
        let _count = Count(counter);
        f()
    }

    /// Adds what is to be mounted while the coroutine runs, and is mounted now.
    pub(crate) fn push_mount(&self, entry: Entry) {
        self.mounts.push(entry);
        self.is_mounting.set(true);
    }

    /// Removes what was added last.
    pub(crate) fn pop_mount(&self) -> Option<Entry> {
        let entry = self.mounts.pop();
        self.is_mounting.set(!self.mounts.is_empty());
        entry
    }

    /// Runs `f`, and returns whether the coroutine was suspended in it with its
    /// task pending.
    pub(crate) fn suspends<R>(&self, f: impl FnOnce() -> R) -> (R, bool) {
        struct Restore<'a>(&'a Cell<bool>, bool);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.set(self.1 || self.0.get());
            }
        }
        let before = self.has_suspended.replace(false);
        let _restore = Restore(&self.has_suspended, before);
        let output = f();
        (output, self.has_suspended.get())
    }

    // The parent's side.

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn owned_name(&self) -> Cow<'static, str> {
        self.name.clone()
    }

    /// The spans that the suspended coroutine holds open.
    pub(crate) fn spans(&self) -> Unnamed {
        self.mounts.spans.exited()
    }

    pub(crate) fn state(&self) -> State {
        if self.yielder.get().is_null() {
            State::New
        } else if self.stuck.get() || self.leaked.get() {
            State::Leaked
        } else if self.pending.get().is_none() {
            State::Running
        } else if self.cancelled.get() {
            State::CleaningUp
        } else if self.wait.get() == Wait::Scope {
            State::InScope
        } else {
            State::Waiting
        }
    }

    /// It was leaked, on its own thread.
    pub(crate) fn note_leak(&self) {
        self.leaked.set(true);
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The size of its stack, in bytes.
    pub(crate) fn stack_size(&self) -> usize {
        self.stack_size
    }

    /// Measures its stack by its name, if that has its turn.
    ///
    /// # Safety
    ///
    /// The coroutine must not have run yet.
    #[cold]
    pub(crate) unsafe fn measure(&self) -> Option<Measured> {
        // SAFETY: the header is in the attic of the stack, and nothing has run there,
        // by the caller.
        unsafe { measure::begin(ptr::from_ref(self).addr(), self.stack_size, &self.name) }
    }

    /// The slot of the future that the suspended coroutine waits for.
    ///
    /// # Safety
    ///
    /// - The coroutine must be suspended, and not be resumed while the slot is
    ///   borrowed.
    /// - The slot must not be borrowed twice.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the slot is not part of the header")]
    pub(crate) unsafe fn pending(&self) -> Option<Pin<&mut dyn Pollable>> {
        self.pending.get().map(|slot| {
            // SAFETY: the slot is in the frame of `wait`, which is suspended
            // and does not look at it (C3); the caller has the only reference.
            let slot = unsafe { &mut *slot };
            // SAFETY: the slot stays in that frame until the future in it has
            // been dropped; a leaked frame is never freed.
            unsafe { Pin::new_unchecked(slot) }
        })
    }

    #[inline(always)]
    pub(crate) fn settle(&self) {
        self.pending.set(None);
    }

    /// Takes the parent's unwinds from the thread, and brings the coroutine's,
    /// before it is resumed.
    #[inline(always)]
    pub(crate) fn swap_unwinds_in(&self) -> Hidden {
        if thread::panicking() || self.unwinding.get() {
            self.swap_in()
        } else {
            Hidden::NONE
        }
    }

    #[cold]
    fn swap_in(&self) -> Hidden {
        let parents = unwind::hide();
        if !cfg!(greenhack_threads) {
            self.unwinding.set(false);
        }
        unwind::show(self.hidden.replace(Hidden::NONE));
        parents
    }

    /// Does the reverse, when the coroutine has suspended.
    #[inline(always)]
    pub(crate) fn swap_unwinds_out(&self, parents: Hidden) {
        if thread::panicking() || parents != Hidden::NONE {
            self.swap_out(parents);
        }
    }

    #[cold]
    fn swap_out(&self, parents: Hidden) {
        // The thread of the stand-in knows, and has left word.
        if !cfg!(greenhack_threads) {
            self.unwinding.set(thread::panicking());
            self.hidden.set(unwind::hide());
        }
        unwind::show(parents);
    }

    #[inline(always)]
    pub(crate) fn note_suspension(&self) {
        self.has_suspended.set(true);
    }

    /// Since when it waits, if it does and that was noted.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since.get().filter(|_| self.is_waiting())
    }

    /// Whether it is suspended in a wait, and so can be asked for an account.
    pub(crate) fn is_waiting(&self) -> bool {
        self.pending.get().is_some()
    }

    /// Lets the coroutine, which waits, write to `account`. `resume` resumes it.
    pub(crate) fn ask(&self, account: &mut Account, resume: impl FnOnce()) {
        struct Restore(*const Header);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        account.trace.prepare();
        self.account.set(account);
        // The counts of unwinds stay as they are: nothing that runs there looks at them.
        let outer = Restore(CURRENT.replace(self));
        resume();
        drop(outer);
        account.trace.finish();
    }

    #[inline(always)]
    pub(crate) fn forbids_suspension(&self) -> bool {
        self.no_suspend.get()
    }

    /// The thread that the coroutine was made on.
    #[inline(always)]
    pub(crate) fn thread(&self) -> ThreadToken {
        self.thread
    }

    /// Whether this is the thread that the coroutine was made on.
    #[inline(always)]
    pub(crate) fn is_this_thread(&self) -> bool {
        self.thread.is_this_thread()
    }

    #[inline(always)]
    pub(crate) fn spot(&self) -> Spot {
        self.spot.get()
    }

    pub(crate) fn set_spot(&self, spot: Spot) {
        self.spot.set(spot);
    }

    /// Whether its scheduler keeps to this thread, and polls it directly: neither
    /// a `LocalSet` nor a scope is in between, and nobody observes it.
    #[inline(always)]
    pub(crate) fn is_direct(&self) -> bool {
        self.is_direct
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Whether the closure has begun, and is neither suspended nor at its end.
    pub(crate) fn is_running(&self) -> bool {
        let is_suspended = self.pending.get().is_some() || self.stuck.get();
        !self.yielder.get().is_null() && !is_suspended && !self.ended.get()
    }

    pub(crate) fn set_ended(&self) {
        self.ended.set(true);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.get()
    }

    pub(crate) fn set_cancelled(&self) {
        self.cancelled.set(true);
        self.attention.set(true);
    }

    pub(crate) fn set_expired(&self) {
        self.expired.set(true);
    }

    /// Whether the wait that the coroutine is suspended in can be ended by a
    /// cancellation now.
    pub(crate) fn can_be_interrupted(&self) -> bool {
        match self.wait.get() {
            Wait::Unwind => self.can_be_unwound(),
            Wait::Error => self.expired.get() || self.can_be_unwound(),
            Wait::Cleanup => self.expired.get(),
            Wait::Scope => false,
        }
    }

    /// Whether the suspended coroutine waits for others that borrow from it.
    pub(crate) fn waits_for_scope(&self) -> bool {
        self.wait.get() == Wait::Scope
    }

    /// Whether those that the suspended coroutine waits for are to be cancelled.
    pub(crate) fn wants_to_end(&self) -> bool {
        self.cancelled.get() && (self.expired.get() || self.can_be_unwound())
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.expired.get()
    }

    fn can_be_unwound(&self) -> bool {
        self.shields.get() == 0 && !self.unwinding.get()
    }
}

/// Whether there is more to do for new coroutines than what is cheap.
static OBSERVED: AtomicBool = AtomicBool::new(false);

/// Whether coroutines note when their waits begin.
static TAKES_TIMES: AtomicBool = AtomicBool::new(false);

/// Lets coroutines that are made from now on be polled [otherwise](Header::is_direct).
pub(crate) fn observe() {
    OBSERVED.store(true, Ordering::Relaxed);
}

/// Lets coroutines that are made from now on note when their waits begin, or no longer.
pub(crate) fn take_times(on: bool) {
    TAKES_TIMES.store(on, Ordering::Relaxed);
    observe();
}

/// Leaves a wait that was cancelled. Each frame that is left takes the system's unwinder
/// some 2,500 instructions, so this has none of its own.
#[inline(always)]
pub(crate) fn throw_cancelled() -> ! {
    resume_unwind(Box::new(Cancelled::new()))
}

/// Leaves a call of a scope whose output the cancellation has taken.
#[cold]
pub(crate) fn leave_without_output() -> ! {
    let frame = Frame::here();
    match current(&frame) {
        // A panic would abort here, or break the shield; only this stack is lost.
        Place::In(header) if header.is_expired() && !header.can_throw() => header.get_stuck(),
        _ => throw_cancelled(),
    }
}

/// Where the caller stands.
pub(crate) enum Place<'a> {
    /// On a coroutine's stack.
    In(&'a Header),
    /// On the stack of a parent that polls or drops a future of a coroutine.
    Polling,
    /// Neither.
    Outside,
}

thread_local! {
    static CURRENT: Cell<*const Header> = const { Cell::new(ptr::null()) };
    static ON_PARENTS_STACK: Cell<bool> = const { Cell::new(false) };
}

/// Its address stands for [`Place::Polling`].
static POLLING_MARK: u64 = 0;

#[inline(always)]
fn polling() -> *const Header {
    (&raw const POLLING_MARK).cast()
}

/// Whether the caller is on a coroutine's stack, or on that of its parent.
#[inline]
pub(crate) fn is_nested() -> bool {
    !CURRENT.get().is_null()
}

/// Runs `f`, which is plain code of a run, on the stack of its parent.
pub(crate) fn on_parents_stack<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ON_PARENTS_STACK.set(self.0);
        }
    }
    let _restore = Restore(ON_PARENTS_STACK.replace(true));
    f()
}

/// Why nobody can wait at [`Place::Polling`].
#[cold]
pub(crate) fn polling_refusal() -> Refusal {
    if ON_PARENTS_STACK.get() {
        Refusal::OnThreadStack
    } else {
        Refusal::Polling
    }
}

/// Something in the caller's frame, whose lifetime is at most that of the frame.
pub(crate) struct Frame(());

impl Frame {
    #[inline(always)]
    pub(crate) fn here() -> Frame {
        Frame(())
    }
}

/// Returns the place where the caller stands.
///
/// The place is that of the stack which `frame` is on, and can't outlive it.
#[inline(always)]
pub(crate) fn current(_frame: &Frame) -> Place<'_> {
    let header = CURRENT.get();
    if header.is_null() {
        Place::Outside
    } else if header == polling() {
        Place::Polling
    } else {
        // SAFETY: it is the header of the coroutine on whose stack we run
        // (C1), which it outlives (C2), and so this frame.
        Place::In(unsafe { &*header })
    }
}

/// Runs `f`, in which nothing is current: a wait is refused.
pub(crate) fn with_none<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(*const Header);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _outer = Restore(CURRENT.replace(polling()));
    f()
}

/// Makes `header` current until [`resumed`](Visit::resumed) is over.
///
/// A visit is the time that a parent spends with its coroutine: in a poll, or
/// in a cancellation. Nothing is current in it but while the coroutine runs.
pub(crate) struct Visit<'a> {
    outer: *const Header,
    header: &'a Header,
    base: Base,
}

impl<'a> Visit<'a> {
    /// Comes to the coroutine. [`begin`](Visit::begin) follows; it is apart so that
    /// the visit, which is dropped if that unwinds, stays where it is made.
    #[inline(always)]
    pub(crate) fn new(header: &'a Header) -> Visit<'a> {
        Visit {
            outer: CURRENT.replace(polling()),
            header,
            base: Base::new(),
        }
    }

    /// Mounts what goes with the coroutine. A panic in there passes.
    #[inline]
    pub(crate) fn begin(&mut self) {
        let mut panics = FirstPanic::default();
        if self.header.is_mounting.get() {
            self.header.mounts.mount(&mut panics);
        }
        self.header.mounts.spans.mount(&mut self.base, &mut panics);
        if let Some(payload) = panics.into_payload() {
            self.pass_on(payload);
        }
    }

    /// Runs `f` with the header current: a switch to the coroutine and back.
    #[inline(always)]
    pub(crate) fn resumed<R>(&self, f: impl FnOnce() -> R) -> R {
        CURRENT.set(self.header);
        // A switch does not unwind, so no guard is needed.
        let result = f();
        CURRENT.set(polling());
        result
    }

    /// Whether the coroutine has just suspended where it must not stay.
    #[inline]
    pub(crate) fn moved(&self) -> Option<Moved> {
        let mut panics = FirstPanic::default();
        let spans = &self.header.mounts.spans;
        let is_dispatching = spans.is_dispatching(&self.base, &mut panics);
        // It will be found again at the end.
        panics.into_payload().into_iter().for_each(discard);
        is_dispatching.then_some(Moved::Subscriber)
    }

    /// Lets a panic out that has happened in a mount, if somebody awaits the run.
    /// A run that is cancelled has destructors to run, whatever is mounted.
    #[cold]
    fn pass_on(&self, payload: Payload) {
        if self.header.is_cancelled() || thread::panicking() {
            discard(payload);
        } else {
            resume_unwind(payload);
        }
    }
}

impl Drop for Visit<'_> {
    #[inline]
    fn drop(&mut self) {
        let mut panics = FirstPanic::default();
        self.header.mounts.spans.unmount(&self.base, &mut panics);
        if self.header.is_mounting.get() {
            self.header.mounts.unmount(&mut panics);
        }
        CURRENT.set(self.outer);
        if let Some(payload) = panics.into_payload() {
            self.pass_on(payload);
        }
    }
}
