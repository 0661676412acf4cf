//! Coroutines that borrow from the frame of a call.
//!
//! [`run`] calls a closure that fills a [`Scope`] with children, and does not
//! return before all of them have ended. So they may borrow from the caller's
//! frames, which no future can promise: a future can be forgotten, a call can't.
//!
//! ```text
//!   the caller's stack         the task's stack          the children's stacks
//!   ──────────────────         ────────────────          ─────────────────────
//!   run()
//!     fill(&scope)
//!     wait(&mut driver) ─────▶ driver.poll()
//!                                child.poll() ─────────▶ a closure
//!                                  ...        ◀─────────   waits, or ends
//!     resumed ◀─────────────── all have ended
//!   returns, or panics
//! ```
//!
//! # Invariants
//!
//! - N1 While a child has not ended, the frame of `run` is there, and with it
//!   all that `'scope` stands for. Nothing between the first child and the end
//!   of the wait unwinds. A child that is leaked, or dropped before its end,
//!   says so. Then, or where the wait can't go on, `run` never returns: on a
//!   coroutine its stack is leaked as it is; on a thread, which has no such
//!   way, the process ends.
//! - N2 The wait is a [`Wait::Scope`], which the engine never ends. The driver
//!   looks for a cancellation of the caller itself, passes it on, and goes on
//!   until its children have ended.
//! - N3 A child is only touched while the driver is polled, or from the frame of
//!   `run`, both on the caller's thread: a [`Scope`] is not `Sync`, a
//!   [`Nested`](super::nested::Nested) can't leave the call.
//!
//! # Safety
//!
//! - The caller's run is forgotten or leaked: its stack, with this frame and
//!   all that the children borrow, stays for ever. The children belong to the
//!   frame and are never resumed.
//! - A child can't end, because it waits where it can't be unwound, or outlives
//!   the budget: neither can the caller. Both are leaked.
//! - The wait is refused, because the caller must not suspend or block here: the
//!   children are cancelled and polled in place. If they don't end, see N1.
//! - A poll panics, in a tracing subscriber or in a waker: it is caught, kept
//!   for the caller, and the wait goes on. No panic leaves the poll of a child,
//!   whose owner would drop it.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::mem;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::process;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::thread;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::runtime::Handle;
use tokio::task::LocalSet;

use super::await_sync::{refuse, stop};
use super::outside;
use super::reaper::CAN_UNWIND;
use crate::engine::context::{
    Frame, Header, Kind, Place, Unfinished, Wait, current, polling_refusal,
};
use crate::engine::coroutine::Coroutine;
use crate::engine::overflow;
use crate::ground::ambient::{Spot, ThreadToken};
use crate::ground::error::{Cancelled, Payload, discard, keep_first};
use crate::ground::nobody;
use crate::memory::measure::{self, Measured};
use crate::memory::pool;

/// Whose the children of a plain thread are. Others go by the name of the caller, which is
/// the handler's, however deep the scopes are nested.
const NAME: &str = "a plain thread";

/// How often children are polled in place where the caller can't wait.
const A_LITTLE: usize = 64;

/// How often one poll starts new children before it lets other tasks go on.
const MOST_ROUNDS: usize = 64;

/// How many panics of tracing subscribers and wakers are put up with.
const MOST_PANICS: u32 = 32;

/// A future beside the children. When it is ready, they are cancelled.
pub(crate) type Side<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Where closures are started that may borrow from the caller of
/// [`scope`](crate::scope), which waits for them.
///
/// # Examples
///
/// A function that starts closures in the scope of its caller:
///
/// ```
/// use std::cell::RefCell;
///
/// use greenhack::{Scope, await_sync, scope};
/// use tokio::task::yield_now;
///
/// /// A tree of files, of which a directory has children.
/// enum Entry {
///     File(&'static str),
///     Directory(Vec<Entry>),
/// }
///
/// fn visit<'scope>(
///     s: &'scope Scope<'scope, '_>,
///     entry: &'scope Entry,
///     names: &'scope RefCell<Vec<&'static str>>,
/// ) {
///     match entry {
///         Entry::Directory(entries) => entries.iter().for_each(|entry| visit(s, entry, names)),
///         Entry::File(name) => {
///             s.spawn(|| {
///                 await_sync(yield_now());
///                 names.borrow_mut().push(name);
///             });
///         }
///     }
/// }
///
/// let menus = Entry::Directory(vec![
///     Entry::File("lunch"),
///     Entry::Directory(vec![Entry::File("dinner"), Entry::File("supper")]),
/// ]);
/// let names = RefCell::new(Vec::new());
/// scope(|s| visit(s, &menus, &names));
/// assert_eq!(names.into_inner(), ["lunch", "dinner", "supper"]);
/// ```
pub struct Scope<'scope, 'env: 'scope> {
    pub(super) nursery: Nursery,
    // Invariant, as in `std::thread::Scope`.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

/// What the caller, the children and the driver share.
pub(crate) struct Nursery {
    /// What closures have for stacks, in bytes.
    stack_size: usize,
    /// What they are called.
    name: Cow<'static, str>,
    /// Children that the driver has not yet seen.
    incoming: RefCell<Vec<Child>>,
    /// A child that a future beside the others polls.
    lent: RefCell<Option<Child>>,
    /// What the scope itself tells the children.
    interrupt: Cell<Interrupt>,
    /// Set when the caller's run has passed its cancellation on.
    ending: Cell<bool>,
    common: Rc<Common>,
    /// The first panic that nobody else has taken.
    panic: Cell<Option<Payload>>,
}

/// What all children of a scope see.
#[derive(Default)]
struct Common {
    /// A child will never end (N1). Stays set.
    stuck: Cell<bool>,
    /// The driver was polled last where nobody is woken.
    in_place: Cell<bool>,
}

impl<'scope> Scope<'scope, '_> {
    /// Adds a child that runs `f`. It starts when the driver is polled next.
    ///
    /// # Panics
    ///
    /// If there is no stack.
    #[track_caller]
    pub(crate) fn add(&'scope self, f: impl FnOnce() + 'scope) -> Rc<Orders> {
        let child = self.child(f);
        let orders = child.orders.clone();
        self.nursery.incoming.borrow_mut().push(child);
        orders
    }

    /// Makes a child that runs `f`, to be polled with [`poll_lent`](Self::poll_lent).
    ///
    /// # Panics
    ///
    /// If there is no stack.
    #[track_caller]
    pub(crate) fn lend(&'scope self, f: impl FnOnce() + 'scope) {
        let child = self.child(f);
        self.nursery.lent.replace(Some(child));
    }

    #[track_caller]
    fn child(&'scope self, f: impl FnOnce() + 'scope) -> Child {
        let size = self.nursery.stack_size;
        let stack = match pool::take(size, overflow::watch) {
            Ok(stack) => stack,
            Err(error) => panic!("{}", self.nursery.complaint(&error)),
        };
        let (spot, thread) = (Spot::here(), ThreadToken::current());
        let name = self.nursery.name.clone();
        let header = |size| Header::new(name, Kind::Child, size, spot, thread, false);
        // SAFETY: what `f` borrows lives for `'scope`, which ends after `run`
        // has returned, or never (N1).
        let coroutine = unsafe { Coroutine::new(stack, header, OnceCell::new(), f) };
        if measure::is_on() {
            // SAFETY: it is the header of a coroutine that has not run yet.
            if let Some(measured) = unsafe { coroutine.header().measure() } {
                let _ = coroutine.owners().set(measured);
            }
        }
        Child {
            coroutine,
            orders: Rc::default(),
            is_told: false,
            panic: Cell::new(None),
            panics: 0,
            common: self.nursery.common.clone(),
        }
    }
}

impl Nursery {
    #[cold]
    fn complaint(&self, error: &io::Error) -> String {
        let whom = format!("{}`{}`", Kind::Child.prefix(), self.name);
        pool::complaint(self.stack_size, &whom, error)
    }

    /// Tells all children, and those that come, to end.
    pub(crate) fn cancel(&self) {
        self.raise(Interrupt::Cancel);
    }

    fn raise(&self, interrupt: Interrupt) {
        self.interrupt.set(self.interrupt.get().max(interrupt));
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.interrupt.get() >= Interrupt::Cancel
    }

    /// Keeps the first panic of a child, for the caller to resume.
    pub(crate) fn keep_panic(&self, payload: Payload) {
        if !payload.is::<Cancelled>() {
            keep_first(&self.panic, payload);
        }
    }

    /// Keeps the panic of a child, and tells the others to end.
    pub(crate) fn end_with(&self, payload: Payload) {
        self.keep_panic(payload);
        self.cancel();
    }

    /// Polls the child that was lent. Ready when it has ended, or has been taken
    /// over by the driver.
    pub(crate) fn poll_lent(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut lent = self.lent.borrow_mut();
        let Some(child) = &mut *lent else {
            return Poll::Ready(());
        };
        let panic = ready!(Pin::new(child).poll(cx));
        let ended = lent.take();
        drop(lent);
        self.note(panic);
        // With it goes a waker of the poll, and what that does is not ours.
        drop(ended);
        Poll::Ready(())
    }

    /// Cancels the child that was lent, and hands it to the driver.
    pub(crate) fn end_lent(&self) {
        let Some(mut child) = self.lent.take() else {
            return;
        };
        child.orders.raise(Interrupt::Cancel);
        let mut cx = Context::from_waker(nobody::waker());
        match Pin::new(&mut child).poll(&mut cx) {
            Poll::Ready(panic) => self.note(panic),
            Poll::Pending => self.incoming.borrow_mut().push(child),
        }
    }

    /// Takes note of a child that has ended, or will never.
    fn note(&self, panic: Option<Payload>) {
        if let Some(payload) = panic {
            self.end_with(payload);
        }
        if self.common.stuck.get() {
            self.cancel();
        }
    }

    fn is_done(&self) -> bool {
        self.incoming.borrow().is_empty() && self.lent.borrow().is_none()
    }
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}

/// Calls `fill`, then waits until the future that it returns, if any, and all
/// children of the scope have ended. `called` names the public function.
///
/// # Panics
///
/// In async code, before anything has run; with the panic of `fill`, or the first
/// that was kept. With [`Cancelled`], if the run was cancelled meanwhile.
#[track_caller]
pub(crate) fn run<'env, F>(called: &str, fill: F)
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> Option<Side<'scope>>,
{
    let frame = Frame::here();
    let caller = match current(&frame) {
        Place::In(header) => Caller::Run(header),
        Place::Polling => refuse(called, None, polling_refusal()),
        Place::Outside => match outside::runtime() {
            Ok(handle) => Caller::Thread(handle),
            Err(refusal) => refuse(called, None, refusal),
        },
    };
    let scope = Scope {
        nursery: Nursery {
            stack_size: match &caller {
                Caller::Run(header) => header.stack_size(),
                Caller::Thread(_) => pool::DEFAULT_SIZE,
            },
            name: match &caller {
                Caller::Run(header) => header.owned_name(),
                Caller::Thread(_) => NAME.into(),
            },
            incoming: RefCell::default(),
            lent: RefCell::default(),
            interrupt: Cell::default(),
            ending: Cell::new(false),
            common: Rc::default(),
            panic: Cell::new(None),
        },
        scope: PhantomData,
        env: PhantomData,
    };
    let nursery = &scope.nursery;
    // Nothing unwinds from here to the end of the wait (N1).
    let side = catch_unwind(AssertUnwindSafe(|| fill(&scope))).unwrap_or_else(|payload| {
        nursery.end_with(payload);
        None
    });
    let driver = Driver {
        nursery,
        children: FuturesUnordered::new(),
        side,
        caller: match &caller {
            Caller::Run(header) => Some(header),
            Caller::Thread(_) => None,
        },
        passed_on: Interrupt::None,
        has_polled: false,
    };
    let refused = caller.wait_for(driver, Location::caller());
    // All children have ended.
    if let Some(payload) = nursery.panic.take() {
        resume_unwind(payload);
    }
    if let Err(unfinished) = refused {
        stop(unfinished);
    }
    if let (Caller::Run(header), true) = (caller, nursery.ending.get()) {
        header
            .after_scope()
            .unwrap_or_else(|unfinished| stop(unfinished));
    }
}

/// Who waits.
enum Caller<'a> {
    Run(&'a Header),
    Thread(Handle),
}

impl Caller<'_> {
    /// Waits until the driver is done, and never unwinds (N1).
    ///
    /// # Errors
    ///
    /// If this place must not suspend. The children have ended all the same.
    fn wait_for(
        &self,
        mut driver: Driver<'_>,
        location: &'static Location<'static>,
    ) -> Result<(), Unfinished> {
        let mut refused = Ok(());
        let mut panics = 0;
        while !driver.is_done() {
            let waited = catch_unwind(AssertUnwindSafe(|| match self {
                Caller::Run(header) => header.wait(&mut driver, Wait::Scope, location),
                Caller::Thread(handle) => {
                    // As for runs outside of single-threaded schedulers, see
                    // `in_place`.
                    let local_set = LocalSet::new();
                    outside::block_on(handle, local_set.run_until(&mut driver));
                    Ok(())
                }
            }));
            match waited {
                Ok(Ok(())) => {}
                Ok(Err(unfinished)) => {
                    driver.poll_in_place();
                    if !driver.is_done() || thread::panicking() {
                        self.give_up();
                    }
                    refused = Err(unfinished);
                }
                Err(payload) => {
                    driver.nursery.end_with(payload);
                    panics += 1;
                    // Where it was not even polled, tokio doesn't block.
                    let refused = !mem::take(&mut driver.has_polled);
                    if refused || panics > MOST_PANICS {
                        driver.poll_in_place();
                        if !driver.is_done() {
                            self.give_up();
                        }
                    }
                }
            }
        }
        if driver.nursery.common.stuck.get() {
            self.give_up();
        }
        refused
    }

    /// Never returns to a frame that is borrowed.
    #[cold]
    fn give_up(&self) -> ! {
        match self {
            Caller::Run(header) => header.get_stuck(),
            Caller::Thread(_) => {
                // `eprintln!` unwinds where nothing can be written.
                let _ = writeln!(
                    io::stderr(),
                    "greenhack: a closure of a scope awaited in a destructor, during an unwind, \
                     where it can't be suspended; its caller can't return; aborting"
                );
                process::abort();
            }
        }
    }
}

/// What a child has been told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Interrupt {
    #[default]
    None,
    Cancel,
    Expire,
}

/// What a child is to be told.
#[derive(Default)]
pub(crate) struct Orders {
    interrupt: Cell<Interrupt>,
    waker: Cell<Option<Waker>>,
}

impl Orders {
    /// Interrupts the child, at its next poll.
    pub(crate) fn give(&self, interrupt: Interrupt) {
        if self.raise(interrupt) {
            self.wake();
        }
    }

    fn raise(&self, interrupt: Interrupt) -> bool {
        let is_news = interrupt > self.interrupt.get();
        if is_news {
            self.interrupt.set(interrupt);
        }
        is_news
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Polls the children until none is left.
struct Driver<'a> {
    nursery: &'a Nursery,
    children: FuturesUnordered<Child>,
    side: Option<Side<'a>>,
    /// The caller's header, if it is a run.
    caller: Option<&'a Header>,
    passed_on: Interrupt,
    /// It was polled, since this was last asked.
    has_polled: bool,
}

impl Driver<'_> {
    fn is_done(&self) -> bool {
        self.children.is_empty() && self.side.is_none() && self.nursery.is_done()
    }

    /// What the children are to be told.
    fn interrupt(&self) -> Interrupt {
        let of_caller = match self.caller {
            Some(header) if header.is_expired() => Interrupt::Expire,
            Some(header) if header.wants_to_end() => Interrupt::Cancel,
            _ => Interrupt::None,
        };
        of_caller.max(self.nursery.interrupt.get())
    }

    /// Sees to it that every child is polled.
    fn wake_all(&mut self) {
        for child in self.children.iter_mut() {
            child.orders.wake();
        }
        let lent = self.nursery.lent.borrow();
        let orders = lent.as_ref().map(|child| child.orders.clone());
        drop(lent);
        if let Some(orders) = orders {
            orders.wake();
        }
    }

    /// Passes news on to all children. Returns whether there are new ones.
    fn pass_on(&mut self) -> bool {
        let interrupt = self.interrupt();
        if interrupt > self.passed_on {
            if !self.nursery.is_cancelled() {
                self.nursery.ending.set(true);
            }
            self.end_side();
            for child in self.children.iter_mut() {
                child.orders.give(interrupt);
            }
            self.passed_on = interrupt;
        }
        let incoming = self.nursery.incoming.take();
        let any = !incoming.is_empty();
        for child in incoming {
            // It is polled next in any case, and needs no waking.
            child.orders.raise(interrupt);
            self.children.push(child);
        }
        any
    }

    /// Drops the future beside the children, and takes over what it had.
    fn end_side(&mut self) {
        let side = self.side.take();
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(side))) {
            self.nursery.keep_panic(payload);
        }
        // Its handle was forgotten, or has dropped the child already.
        self.nursery.end_lent();
    }

    fn poll_side(&mut self, cx: &mut Context<'_>) {
        let Some(side) = &mut self.side else {
            return;
        };
        let done = catch_unwind(AssertUnwindSafe(|| side.as_mut().poll(cx).is_ready()))
            .unwrap_or_else(|payload| {
                self.nursery.keep_panic(payload);
                true
            });
        if done {
            self.nursery.cancel();
        }
    }

    /// Cancels the children, and polls them where nothing would wake them.
    /// Those that have not ended then are out of time.
    fn poll_in_place(&mut self) {
        self.nursery.cancel();
        let mut cx = Context::from_waker(nobody::waker());
        for round in 0..=A_LITTLE {
            if round == A_LITTLE {
                self.nursery.raise(Interrupt::Expire);
            }
            let poll = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut *self).poll(&mut cx)));
            match poll {
                Ok(Poll::Ready(())) => return,
                Ok(Poll::Pending) => {}
                Err(payload) => self.nursery.keep_panic(payload),
            }
        }
    }
}

impl Future for Driver<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.has_polled = true;
        // Where nobody is woken, all children are polled, and once more in the
        // poll that follows.
        let in_place = nobody::is_meant(cx);
        if self.nursery.common.in_place.replace(in_place) || in_place {
            self.wake_all();
        }
        self.pass_on();
        self.poll_side(cx);
        let mut rounds = 0;
        loop {
            // Whoever was polled may have left news.
            rounds += usize::from(self.pass_on());
            if rounds > MOST_ROUNDS {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.children.poll_next_unpin(cx) {
                Poll::Ready(Some(panic)) => self.nursery.note(panic),
                Poll::Ready(None) if self.is_done() => return Poll::Ready(()),
                Poll::Ready(None) | Poll::Pending => {
                    let news = self.interrupt() > self.passed_on;
                    if !news && self.nursery.incoming.borrow().is_empty() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

/// One coroutine of a scope.
struct Child {
    coroutine: Coroutine<(), OnceCell<Measured>>,
    orders: Rc<Orders>,
    /// The coroutine has heard of its cancellation.
    is_told: bool,
    /// The panic of a poll, which is not the closure's.
    panic: Cell<Option<Payload>>,
    panics: u32,
    common: Rc<Common>,
}

impl Future for Child {
    /// The panic that it leaves behind, if any: its closure deals with its own.
    type Output = Option<Payload>;

    /// Ready when the child has ended, or never will. Never unwinds.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Payload>> {
        let this = self.get_mut();
        let poll = catch_unwind(AssertUnwindSafe(|| {
            this.orders.waker.set(Some(cx.waker().clone()));
            this.drive(cx)
        }));
        poll.unwrap_or_else(|payload| this.poll_panicked(payload, cx))
    }
}

impl Child {
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Payload>> {
        let coroutine = &mut self.coroutine;
        let mut in_place = Context::from_waker(nobody::waker());
        let cx = if self.common.in_place.get() {
            &mut in_place
        } else {
            cx
        };
        let interrupt = self.orders.interrupt.get();
        let mut poll = Poll::Pending;
        if CAN_UNWIND && interrupt >= Interrupt::Cancel && !self.is_told {
            poll = coroutine.cancel();
            self.is_told = true;
        }
        let is_out_of_time = CAN_UNWIND && interrupt == Interrupt::Expire;
        if poll.is_pending() && !coroutine.is_stuck() {
            poll = if is_out_of_time {
                coroutine.expire()
            } else {
                coroutine.poll_at(Spot::anywhere(), cx)
            };
        }
        match poll {
            Poll::Ready(outcome) => {
                if let Some(payload) = coroutine.left_panic(outcome) {
                    keep_first(&self.panic, payload);
                }
                Poll::Ready(self.panic.take())
            }
            Poll::Pending if is_out_of_time || coroutine.is_stuck() => self.get_stuck(),
            Poll::Pending => Poll::Pending,
        }
    }

    #[cold]
    fn poll_panicked(&mut self, payload: Payload, cx: &mut Context<'_>) -> Poll<Option<Payload>> {
        keep_first(&self.panic, payload);
        self.panics += 1;
        if self.coroutine.has_ended() {
            return Poll::Ready(self.panic.take());
        }
        if self.panics > MOST_PANICS {
            return self.get_stuck();
        }
        self.orders.raise(Interrupt::Cancel);
        catch_unwind(AssertUnwindSafe(|| cx.waker().wake_by_ref())).unwrap_or_else(discard);
        Poll::Pending
    }

    /// Gives up. Its owner drops it, and so leaks the coroutine.
    #[cold]
    fn get_stuck(&mut self) -> Poll<Option<Payload>> {
        self.common.stuck.set(true);
        Poll::Ready(self.panic.take())
    }
}

impl Drop for Child {
    /// Says so, if the coroutine is leaked with it (N1).
    fn drop(&mut self) {
        if !self.coroutine.has_ended() {
            self.common.stuck.set(true);
        }
    }
}
