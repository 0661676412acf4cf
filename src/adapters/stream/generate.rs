//! [`generate`]: a plain function that is a stream.
//!
//! The function is a run that the stream polls, in place or on a worker. What it
//! yields comes through a queue, see [`yielder`](super::yielder).
#![forbid(unsafe_code)]

use std::any::type_name;
use std::convert::identity;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use futures::Stream;
use futures::stream::FusedStream;
use tokio::task::coop;

use super::yielder::{Shared, Yielder};
use crate::builder;

/// Returns a stream of what the plain function `f` yields, which any runtime can
/// poll.
///
/// `f` is a run, see [`run_sync`](crate::run_sync): it starts when the first item
/// is asked for, in place or on a worker. It may wait at will. It runs as far
/// as items are asked for: [`Yielder::yield_`] returns when its item has been
/// taken and the next is asked for, and not before. The stream ends when `f`
/// returns.
///
/// For an `f` that isn't `Send` use [`generate_local`], for one that may fail
/// [`try_generate`].
///
/// # Cancel safety
///
/// If the stream is dropped before its end, `f` is cancelled where it waits, as
/// any run; that is in `yield_`, unless an item is being waited for. In place
/// its destructors have run when the drop returns, unless they wait. What a
/// destructor yields then is dropped. With `panic = "abort"` nothing can unwind:
/// `f` then stays in the `yield_` where it is, or its next, for good.
///
/// # Panics
///
/// The stream panics with the panic of `f`, and has ended then; and where
/// [`run_sync`](crate::run_sync) panics.
///
/// # Examples
///
/// ```
/// use futures::StreamExt;
/// use greenhack::stream::generate;
/// use greenhack::time::yield_now;
///
/// # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
/// let squares = generate(|yielder| {
///     for number in 1_u64.. {
///         yield_now();
///         yielder.yield_(number * number);
///     }
/// });
/// assert_eq!(squares.take(3).collect::<Vec<_>>().await, [1, 4, 9]);
/// # });
/// ```
pub fn generate<T, F>(f: F) -> impl FusedStream<Item = T> + Send + Unpin
where
    F: FnOnce(&Yielder<T>) + Send + 'static,
    T: Send + 'static,
{
    send(f, identity, |()| None)
}

/// Returns a stream of what the plain function `f` yields, which stays in its
/// task.
///
/// Like [`generate`], but `f` and its items need not be `Send`, and it always runs
/// in place, as [`run_sync_local`](crate::run_sync_local) does.
///
/// # Cancel safety
///
/// As [`generate`].
///
/// # Panics
///
/// As [`generate`].
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
///
/// use futures::StreamExt;
/// use greenhack::stream::generate_local;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let name = Rc::new("soup");
/// let letters = generate_local(move |yielder| {
///     name.chars().for_each(|letter| yielder.yield_(letter));
/// });
/// assert_eq!(letters.collect::<String>().await, "soup");
/// # });
/// ```
pub fn generate_local<T, F>(f: F) -> impl FusedStream<Item = T> + Unpin
where
    F: FnOnce(&Yielder<T>) + 'static,
    T: 'static,
{
    local(f, identity, |()| None)
}

/// Returns a stream of what the plain function `f` yields, ended by its error if
/// it fails.
///
/// Like [`generate`], but `f` returns a `Result`: what it yields are the `Ok`
/// items, and the error that it returns, by `?` say, is the last one.
///
/// # Cancel safety
///
/// As [`generate`].
///
/// # Panics
///
/// As [`generate`].
///
/// # Examples
///
/// ```
/// use std::num::ParseIntError;
///
/// use futures::TryStreamExt;
/// use greenhack::stream::try_generate;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let mut numbers = try_generate(|yielder| {
///     for word in "1 2 three".split(' ') {
///         yielder.yield_(word.parse::<u32>()?);
///     }
///     Ok::<_, ParseIntError>(())
/// });
/// assert_eq!(numbers.try_next().await, Ok(Some(1)));
/// assert_eq!(numbers.try_next().await, Ok(Some(2)));
/// assert!(numbers.try_next().await.is_err());
/// assert_eq!(numbers.try_next().await, Ok(None));
/// # });
/// ```
pub fn try_generate<T, E, F>(f: F) -> impl FusedStream<Item = Result<T, E>> + Send + Unpin
where
    F: FnOnce(&Yielder<T>) -> Result<(), E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    send(f, Ok, |end| end.err().map(Err))
}

/// Returns a stream of what the plain function `f` yields, ended by its error if
/// it fails, which stays in its task.
///
/// It is to [`generate_local`] what [`try_generate`] is to [`generate`].
///
/// # Cancel safety
///
/// As [`generate`].
///
/// # Panics
///
/// As [`generate`].
///
/// # Examples
///
/// ```
/// use futures::TryStreamExt;
/// use greenhack::stream::try_generate_local;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let digits = try_generate_local(|yielder| {
///     "12x".chars().try_for_each(|c| {
///         yielder.yield_(c.to_digit(10).ok_or(c)?);
///         Ok(())
///     })
/// });
/// assert_eq!(digits.try_collect::<Vec<u32>>().await, Err('x'));
/// # });
/// ```
pub fn try_generate_local<T, E, F>(f: F) -> impl FusedStream<Item = Result<T, E>> + Unpin
where
    F: FnOnce(&Yielder<T>) -> Result<(), E> + 'static,
    T: 'static,
    E: 'static,
{
    local(f, Ok, |end| end.err().map(Err))
}

fn send<T, R, I, F>(
    f: F,
    item: fn(T) -> I,
    last: fn(R) -> Option<I>,
) -> Generated<impl Future<Output = R> + Send + Unpin, T, I>
where
    F: FnOnce(&Yielder<T>) -> R + Send + 'static,
    T: Send + 'static,
    R: Send + 'static,
{
    let shared = Arc::new(Shared::default());
    let theirs = shared.clone();
    let run = builder()
        .name(type_name::<F>())
        .run_sync(move || f(&Yielder::new(theirs)));
    Generated::new(shared, run, item, last)
}

fn local<T, R, I, F>(
    f: F,
    item: fn(T) -> I,
    last: fn(R) -> Option<I>,
) -> Generated<impl Future<Output = R> + Unpin, T, I>
where
    F: FnOnce(&Yielder<T>) -> R + 'static,
    T: 'static,
    R: 'static,
{
    let shared = Arc::new(Shared::default());
    let theirs = shared.clone();
    let run = builder()
        .name(type_name::<F>())
        .run_sync_local(move || f(&Yielder::new(theirs)));
    Generated::new(shared, run, item, last)
}

/// The stream. `item` and `last` make its items of what the generator yields and
/// returns.
struct Generated<R: Future, T, I> {
    shared: Arc<Shared<T>>,
    /// `None` when it has ended.
    run: Option<R>,
    item: fn(T) -> I,
    last: fn(R::Output) -> Option<I>,
}

impl<R: Future, T, I> Generated<R, T, I> {
    fn new(
        shared: Arc<Shared<T>>,
        run: R,
        item: fn(T) -> I,
        last: fn(R::Output) -> Option<I>,
    ) -> Self {
        Generated {
            shared,
            run: Some(run),
            item,
            last,
        }
    }
}

// Nothing but the run is pinned.
impl<R: Future + Unpin, T, I> Unpin for Generated<R, T, I> {}

impl<R: Future + Unpin, T, I> Stream for Generated<R, T, I> {
    type Item = I;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<I>> {
        let this = self.get_mut();
        let Some(run) = &mut this.run else {
            return Poll::Ready(None);
        };
        // A generator that never waits must let others have their turn.
        drop(ready!(coop::poll_proceed(cx)));
        // In place, its `yield_` is polled by the poll of the run.
        let elsewhere = |waker: &Waker| !waker.will_wake(cx.waker());
        if let Some(released) = this.shared.ask().filter(elsewhere) {
            released.wake();
        }
        match catch_unwind(AssertUnwindSafe(|| Pin::new(run).poll(cx))) {
            Ok(Poll::Pending) => {}
            Ok(Poll::Ready(output)) => {
                this.run = None;
                return Poll::Ready((this.last)(output));
            }
            Err(payload) => {
                this.run = None;
                resume_unwind(payload);
            }
        }
        let item = ready!(this.shared.poll_take(cx));
        if let Poll::Ready(budget) = coop::poll_proceed(cx) {
            budget.made_progress();
        }
        Poll::Ready(Some((this.item)(item)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, self.run.is_none().then_some(0))
    }
}

impl<R: Future + Unpin, T, I> FusedStream for Generated<R, T, I> {
    fn is_terminated(&self) -> bool {
        self.run.is_none()
    }
}

impl<R: Future, T, I> Drop for Generated<R, T, I> {
    fn drop(&mut self) {
        if self.run.is_none() {
            return;
        }
        self.shared.close();
        self.run = None;
        // Those that can't be cancelled now.
        self.shared.wake_all();
    }
}
