//! Structured concurrency for plain code: closures that run at once, and may
//! borrow from their caller.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::thread;

use tokio::sync::Mutex;

use super::await_sync::await_sync;
use super::nursery::{self, Interrupt, Nursery, Orders, Scope};
use crate::engine::context::leave_without_output;
use crate::ground::error::{Cancelled, discard};

/// Suspends until two closures have ended that run at once, and returns both
/// results.
///
/// Each runs on a coroutine of this thread: while one waits, the other goes on.
/// They may borrow from the caller and need not be `Send`. They have stacks of
/// the size that the caller's run has. Outside a run this blocks the thread
/// until both have ended, where [`await_sync`] does. For more
/// closures use the macro [`join!`](crate::join!), [`join_all`] or [`scope`].
///
/// # Cancel safety
///
/// If the run is cancelled, so are both closures; the caller unwinds when both
/// have ended, with their destructors, within the run's
/// [`cleanup_budget`](crate::Builder::cleanup_budget). A closure that the panic of
/// the other cancels has no such budget: the call can't leave it behind. Where a
/// destructor waits for what may never come, give that wait a limit, as in
/// [`time::timeout`](crate::time::timeout).
///
/// # Panics
///
/// With the first panic of a closure: the other is cancelled, and has ended
/// before the panic resumes. (With `panic = "abort"` nothing can be cancelled.)
/// In async code, and where the stack must not be suspended, as [`await_sync`].
/// If there is no memory for a stack.
///
/// # Examples
///
/// ```
/// use greenhack::{await_sync, join};
/// use tokio::task::yield_now;
///
/// let dishes = vec!["soup", "stew"];
/// let (soup, stew) = join(
///     || {
///         await_sync(yield_now());
///         dishes[0].len()
///     },
///     || dishes[1].len(),
/// );
/// assert_eq!((soup, stew), (4, 4));
/// ```
#[track_caller]
pub fn join<'env, A, B, RA, RB>(a: A, b: B) -> (RA, RB)
where
    A: FnOnce() -> RA + 'env,
    B: FnOnce() -> RB + 'env,
    RA: 'env,
    RB: 'env,
{
    let (output_a, output_b) = (Output::new(), Output::new());
    let (fill_a, fill_b) = (output_a.clone(), output_b.clone());
    nursery::run("join", |scope| {
        scope.add(move || required(&scope.nursery, a, &fill_a));
        scope.add(move || required(&scope.nursery, b, &fill_b));
        None
    });
    (ended(&output_a), ended(&output_b))
}

/// Suspends until closures have ended that run at once, and returns their
/// results in order.
///
/// As [`join()`], for closures of one type. All of them start; to have only so many
/// at a time use [`map_concurrent`].
///
/// # Cancel safety
///
/// As [`join()`].
///
/// # Panics
///
/// As [`join()`].
///
/// # Examples
///
/// ```
/// use greenhack::{await_sync, join_all};
/// use tokio::task::yield_now;
///
/// let orders = ["soup", "salad"];
/// let lengths = join_all(orders.iter().map(|order| {
///     || {
///         await_sync(yield_now());
///         order.len()
///     }
/// }));
/// assert_eq!(lengths, [4, 5]);
/// ```
#[track_caller]
pub fn join_all<'env, I, F, R>(closures: I) -> Vec<R>
where
    I: IntoIterator<Item = F>,
    F: FnOnce() -> R + 'env,
    R: 'env,
{
    let closures: Vec<F> = closures.into_iter().collect();
    let outputs: Vec<Output<R>> = closures.iter().map(|_| Output::new()).collect();
    let to_fill = outputs.clone();
    nursery::run("join_all", |scope| {
        for (f, output) in closures.into_iter().zip(to_fill) {
            scope.add(move || required(&scope.nursery, f, &output));
        }
        None
    });
    outputs.iter().map(ended).collect()
}

/// Suspends until `f` has been called with each of `items`, with at most `limit`
/// calls at a time, and returns the results in order.
///
/// As [`join_all`], with `limit` stacks at most. The next of `items` is taken when a
/// call has ended, so they may be many; stacks are taken as there are items for them, so
/// the limit may be any.
///
/// # Cancel safety
///
/// As [`join()`].
///
/// # Panics
///
/// If `limit` is zero; otherwise as [`join()`]: a panic of `f` or of the iterator
/// cancels the other calls.
///
/// # Examples
///
/// ```
/// use greenhack::{await_sync, map_concurrent};
/// use tokio::task::yield_now;
///
/// let lengths = map_concurrent(2, ["soup", "salad", "stew"], |order| {
///     await_sync(yield_now());
///     order.len()
/// });
/// assert_eq!(lengths, [4, 5, 4]);
/// ```
#[track_caller]
pub fn map_concurrent<I, F, R>(limit: usize, items: I, f: F) -> Vec<R>
where
    I: IntoIterator,
    F: Fn(I::Item) -> R,
{
    assert!(
        limit > 0,
        "`map_concurrent` called with a limit of 0; write at least 1"
    );
    let items = items.into_iter().fuse();
    // No more stacks than items, as far as their number is known.
    let most = items.size_hint().1.unwrap_or(limit);
    let work = Work {
        limit: limit.min(most).max(1),
        items: Mutex::new(items),
        f,
        outputs: RefCell::default(),
        idle: Cell::new(0),
        ends: RefCell::default(),
    };
    nursery::run("map_concurrent", |scope| {
        work.hire(scope);
        None
    });
    work.ends.into_inner().iter().for_each(ended);
    let outputs = work.outputs.into_inner().into_iter();
    outputs
        .map(|output| output.expect("each call has ended"))
        .collect()
}

/// What [`map_concurrent`] has to do, and the closures that do it.
struct Work<I, F, R> {
    /// How many closures there may be.
    limit: usize,
    // An iterator may wait, too: for the next item of a stream, say.
    items: Mutex<I>,
    f: F,
    /// What the calls have returned, or will.
    outputs: RefCell<Vec<Option<R>>>,
    /// How many closures have no item, and wait for one.
    idle: Cell<usize>,
    /// Where each closure leaves word when it has ended.
    ends: RefCell<Vec<Output<()>>>,
}

impl<I, F, R> Work<I, F, R>
where
    I: Iterator,
    F: Fn(I::Item) -> R,
{
    /// Adds a closure.
    #[track_caller]
    fn hire<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let end = Output::new();
        self.ends.borrow_mut().push(end.clone());
        self.idle.set(self.idle.get() + 1);
        scope.add(move || required(&scope.nursery, || self.work(scope), &end));
    }

    /// Takes item after item, and sees to it that another can take the next.
    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        loop {
            let mut items = await_sync(self.items.lock());
            let Some(item) = items.next() else { break };
            let index = self.outputs.borrow().len();
            self.outputs.borrow_mut().push(None);
            drop(items);
            self.idle.set(self.idle.get() - 1);
            if self.idle.get() == 0 && self.ends.borrow().len() < self.limit {
                self.hire(scope);
            }
            let output = (self.f)(item);
            self.outputs.borrow_mut()[index] = Some(output);
            self.idle.set(self.idle.get() + 1);
        }
    }
}

/// Suspends until the first of some closures has ended that run at once, and
/// returns its result.
///
/// The others are cancelled, and have ended before this returns, with their
/// destructors; what they return all the same is dropped. The closures may
/// borrow from the caller, and are of one type; for others there is the macro
/// [`race!`](crate::race!). For a time limit use [`time::timeout`](crate::time::timeout).
///
/// So the winner is no quicker than the cleanup of the others. No budget ends
/// that; a wait in a destructor that may take for ever needs a limit of its own,
/// as in [`time::timeout`](crate::time::timeout).
///
/// # Cancel safety
///
/// As [`join()`].
///
/// # Panics
///
/// If there are no closures; with the first panic of a closure; otherwise as
/// [`join()`].
///
/// # Examples
///
/// ```
/// use std::future::pending;
/// use greenhack::{await_sync, race};
///
/// let mirrors = ["slow", "fast"];
/// let answer = race(mirrors.map(|mirror| {
///     move || match mirror {
///         "slow" => await_sync(pending()),
///         _ => format!("from {mirror}"),
///     }
/// }));
/// assert_eq!(answer, "from fast");
/// ```
#[track_caller]
pub fn race<'env, I, F, R>(closures: I) -> R
where
    I: IntoIterator<Item = F>,
    F: FnOnce() -> R + 'env,
    R: 'env,
{
    let closures: Vec<F> = closures.into_iter().collect();
    assert!(
        !closures.is_empty(),
        "`race` called without closures, of which none can be the first; pass one or more"
    );
    let first = Output::new();
    let fill = first.clone();
    nursery::run("race", |scope| {
        for f in closures {
            let first = fill.clone();
            scope.add(move || racing(&scope.nursery, f, &first));
        }
        None
    });
    ended(&first)
}

/// Calls `f` with a [`Scope`] in which it can start closures, suspends until all
/// have ended, and returns the result of `f`.
///
/// As [`std::thread::scope`], with coroutines of this thread: `f` and what it
/// spawns may borrow from the caller, and need not be `Send`. No future can offer
/// that, for it can be forgotten; this call returns when all have ended. Outside
/// a run it blocks the thread until then, where [`await_sync`] does.
///
/// # Cancel safety
///
/// If the run is cancelled, so are `f` and all closures; the caller unwinds when
/// all have ended, with their destructors, within the run's
/// [`cleanup_budget`](crate::Builder::cleanup_budget). One that a panic or
/// [`abort`](ScopedJoinHandle::abort) cancels has no budget, see [`join()`].
///
/// # Panics
///
/// With the panic of `f`, or of a closure whose handle is dropped unjoined: all
/// others are cancelled, and have ended before the panic resumes. In async code,
/// and where the stack must not be suspended, as [`await_sync`]. If there is no
/// memory for a stack.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use greenhack::{await_sync, scope};
/// use tokio::task::yield_now;
///
/// let cooked = Cell::new(0);
/// let order = scope(|s| {
///     let soup = s.spawn(|| {
///         await_sync(yield_now());
///         cooked.set(cooked.get() + 1);
///         "soup"
///     });
///     s.spawn(|| cooked.set(cooked.get() + 1));
///     soup.join().unwrap()
/// });
/// assert_eq!((order, cooked.get()), ("soup", 2));
/// ```
#[track_caller]
pub fn scope<'env, F, R>(f: F) -> R
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R + 'env,
    R: 'env,
{
    let output = Output::new();
    let fill = output.clone();
    nursery::run("scope", |scope| {
        scope.add(move || required(&scope.nursery, || f(scope), &fill));
        None
    });
    ended(&output)
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// Starts a closure, which may borrow from the caller of [`scope`].
    ///
    /// It starts when this coroutine waits, or ends, and the others of the scope
    /// that can go on have had their turn. Its stack is of the size that the
    /// caller's run has.
    ///
    /// # Panics
    ///
    /// If there is no memory for a stack.
    ///
    /// # Examples
    ///
    /// ```
    /// let dishes = vec!["soup", "salad"];
    /// let lengths: Vec<usize> = greenhack::scope(|s| {
    ///     let handles: Vec<_> = dishes.iter().map(|dish| s.spawn(|| dish.len())).collect();
    ///     handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    /// });
    /// assert_eq!(lengths, [4, 5]);
    /// ```
    #[track_caller]
    pub fn spawn<F, R>(&'scope self, f: F) -> ScopedJoinHandle<'scope, R>
    where
        F: FnOnce() -> R + 'scope,
        R: 'scope,
    {
        let packet = Rc::new(Packet {
            outcome: RefCell::new(None),
            waker: Cell::new(None),
            nursery: &self.nursery,
        });
        let unstarted = Unstarted(Some(packet.clone()));
        let orders = self.add(move || {
            let outcome = catch_unwind(AssertUnwindSafe(f));
            unstarted.into_packet().fill(outcome);
        });
        ScopedJoinHandle { packet, orders }
    }
}

/// The handle of a closure that was started with [`Scope::spawn`].
///
/// If it is dropped, the closure goes on, and the scope waits for it.
///
/// # Examples
///
/// See [`scope`].
pub struct ScopedJoinHandle<'scope, R> {
    packet: Rc<Packet<'scope, R>>,
    orders: Rc<Orders>,
}

impl<R> ScopedJoinHandle<'_, R> {
    /// Suspends until the closure has ended, and returns its result.
    ///
    /// # Errors
    ///
    /// With the payload of its panic, which then is not raised by the scope; and
    /// with [`Cancelled`](crate::Cancelled) as payload, if it was cancelled.
    ///
    /// # Panics
    ///
    /// As [`await_sync`].
    ///
    /// # Examples
    ///
    /// ```
    /// use greenhack::{Cancelled, await_sync, scope};
    ///
    /// let payload = scope(|s| {
    ///     let endless = s.spawn(|| await_sync(std::future::pending::<()>()));
    ///     endless.abort();
    ///     endless.join().unwrap_err()
    /// });
    /// assert!(payload.is::<Cancelled>());
    /// ```
    #[track_caller]
    pub fn join(self) -> thread::Result<R> {
        let packet = &self.packet;
        await_sync(poll_fn(|cx| {
            if let Some(outcome) = packet.outcome.take() {
                return Poll::Ready(outcome);
            }
            packet.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        }))
    }

    /// Cancels the closure, at its next wait. The scope waits for its end, and for
    /// as long as its destructors wait: no
    /// [`cleanup_budget`](crate::Builder::cleanup_budget) limits them.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenhack::{scope, time};
    /// use std::time::Duration;
    ///
    /// // A clock for as long as the work takes.
    /// let mut ticks = 0;
    /// scope(|s| {
    ///     let clock = s.spawn(|| {
    ///         loop {
    ///             ticks += 1;
    ///             time::sleep(Duration::from_secs(60));
    ///         }
    ///     });
    ///     time::sleep(Duration::from_millis(1));
    ///     clock.abort();
    /// });
    /// assert_eq!(ticks, 1);
    /// ```
    pub fn abort(&self) {
        self.orders.give(Interrupt::Cancel);
    }

    /// Returns whether the closure has ended.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenhack::{await_sync, scope};
    /// use tokio::sync::oneshot;
    ///
    /// scope(|s| {
    ///     let (sender, receiver) = oneshot::channel();
    ///     let cook = s.spawn(|| await_sync(receiver).unwrap());
    ///     assert!(!cook.is_finished());
    ///     sender.send("soup").unwrap();
    ///     while !cook.is_finished() {
    ///         await_sync(tokio::task::yield_now());
    ///     }
    ///     assert_eq!(cook.join().unwrap(), "soup");
    /// });
    /// ```
    pub fn is_finished(&self) -> bool {
        self.packet.outcome.borrow().is_some()
    }
}

impl<R> fmt::Debug for ScopedJoinHandle<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedJoinHandle").finish_non_exhaustive()
    }
}

/// What a closure leaves to its handle.
struct Packet<'scope, R> {
    outcome: RefCell<Option<thread::Result<R>>>,
    waker: Cell<Option<Waker>>,
    /// Who hears of a panic that nobody joins.
    nursery: &'scope Nursery,
}

impl<R> Packet<'_, R> {
    fn fill(&self, outcome: thread::Result<R>) {
        self.outcome.replace(Some(outcome));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The packet of a closure that may never start.
struct Unstarted<'scope, R>(Option<Rc<Packet<'scope, R>>>);

impl<'scope, R> Unstarted<'scope, R> {
    fn into_packet(mut self) -> Rc<Packet<'scope, R>> {
        self.0.take().expect("it is taken once")
    }
}

impl<R> Drop for Unstarted<'_, R> {
    fn drop(&mut self) {
        if let Some(packet) = self.0.take() {
            packet.fill(Err(Box::new(Cancelled::new())));
        }
    }
}

impl<R> Drop for Packet<'_, R> {
    fn drop(&mut self) {
        match self.outcome.take() {
            Some(Err(payload)) if payload.is::<Cancelled>() => discard(payload),
            Some(Err(payload)) => self.nursery.end_with(payload),
            Some(Ok(_)) | None => {}
        }
    }
}

/// What a child leaves to the caller.
pub(super) struct Output<R>(Rc<Cell<Option<R>>>);

impl<R> Output<R> {
    pub(super) fn new() -> Self {
        Output(Rc::new(Cell::new(None)))
    }
}

impl<R> Clone for Output<R> {
    fn clone(&self) -> Self {
        Output(self.0.clone())
    }
}

/// Calls `f`, whose panic ends the other children.
pub(super) fn required<R>(nursery: &Nursery, f: impl FnOnce() -> R, output: &Output<R>) {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(value) => output.0.set(Some(value)),
        Err(payload) => nursery.end_with(payload),
    }
}

/// Calls `f`, whose end ends the other children.
fn racing<R>(nursery: &Nursery, f: impl FnOnce() -> R, first: &Output<R>) {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(value) if !nursery.is_cancelled() => first.0.set(Some(value)),
        Ok(_) => {}
        Err(payload) => nursery.keep_panic(payload),
    }
    nursery.cancel();
}

/// The output of a child, when the call of `run` has returned.
pub(super) fn ended<R>(output: &Output<R>) -> R {
    // Without a panic, a child has no output only if what it awaited was
    // cancelled.
    output.0.take().unwrap_or_else(|| leave_without_output())
}
