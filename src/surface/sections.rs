//! Sections of plain code in which waiting has another meaning.
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::task::Poll;

use super::await_sync::{await_sync, in_context, stop};
use crate::engine::context::{Frame, Place, current, on_parents_stack};

/// Runs `f` without interruption: a cancellation arrives at its end.
///
/// For a section that must not be left half-way, such as a commit and the
/// bookkeeping after it, and for callbacks of C libraries, through which
/// nothing can unwind. `f` may wait. If the run is cancelled meanwhile, `f`
/// goes on within the [`cleanup_budget`](crate::Builder::cleanup_budget), its
/// result is dropped, and the unwinding begins at the end of the outermost
/// shield. A panic of `f` passes.
///
/// Outside a run it just calls `f`.
///
/// # Cancel safety
///
/// If the task is dropped in `f`, `f` runs to its end; the code after `shield`
/// is not reached. A plain wait in `f` that is still pending when the budget is
/// over can neither return nor unwind: the run is leaked. Where that may be, wait
/// with [`await_or_cancelled`](crate::await_or_cancelled), which then returns.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use std::rc::Rc;
/// use std::time::Duration;
///
/// use greenhack::{run_sync_local, shield, time};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// let account = Rc::new(Cell::new([5, 0]));
/// let transfer = {
///     let account = account.clone();
///     run_sync_local(move || {
///         shield(|| {
///             account.set([0, 0]);
///             time::sleep(Duration::from_secs(2));
///             account.set([0, 5]);
///         });
///         unreachable!("the cancellation arrives at the end of the shield");
///     })
/// };
/// // Cancelled half-way, it goes on to the end of the shield.
/// assert!(tokio::time::timeout(Duration::from_secs(1), transfer).await.is_err());
/// assert_eq!(account.get(), [0, 0]);
/// tokio::time::sleep(Duration::from_secs(2)).await;
/// assert_eq!(account.get(), [0, 5]);
/// # });
/// ```
pub fn shield<R>(f: impl FnOnce() -> R) -> R {
    let frame = Frame::here();
    match current(&frame) {
        Place::In(header) => header
            .shield(f)
            .unwrap_or_else(|unfinished| stop(unfinished)),
        _ => f(),
    }
}

/// Calls `f` on the stack of the thread, instead of the run's.
///
/// For code that needs much stack for a moment (a compiler of regular
/// expressions, a recursive parser), and for code that measures its stack, as
/// crates on `stacker` do: on the stack of a coroutine they find none left. `f`
/// may borrow from the caller. It can't wait, because that stack can't be
/// suspended; the thread is busy until `f` returns. For code that blocks use
/// [`block`](crate::block).
///
/// Outside a run it just calls `f`.
///
/// # Cancel safety
///
/// If the run is cancelled, `f` is not called. A call that has begun is not
/// interrupted.
///
/// # Panics
///
/// With the panic of `f`. If `f` calls [`await_sync`](crate::await_sync), at that
/// line.
///
/// # Examples
///
/// ```
/// use greenhack::on_thread_stack;
///
/// /// Needs more than the whole stack of the run below.
/// fn hungry() -> usize {
///     let table = std::hint::black_box([1_u8; 256 * 1024]);
///     table.len()
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let run = greenhack::builder()
///     .stack_size(64 * 1024)
///     .run_sync(|| on_thread_stack(hungry));
/// assert_eq!(run.await, 256 * 1024);
/// # });
/// ```
#[track_caller]
pub fn on_thread_stack<R>(f: impl FnOnce() -> R) -> R {
    if !in_context() {
        return f();
    }
    // A future is polled on the stack of the parent.
    let mut f = Some(f);
    await_sync(poll_fn(|_| {
        let f = f.take().expect("it is ready at its first poll");
        Poll::Ready(on_parents_stack(f))
    }))
}

/// Runs `f`, in which no wait may suspend.
///
/// An assertion, for code whose effects must not be seen half done by other
/// tasks of the thread: a wait in `f` that is not ready at once panics. Outside
/// a run it just calls `f`: blocking a thread lets no other task in.
///
/// # Panics
///
/// At the wait in `f` that is not ready at once; its future is dropped.
///
/// # Examples
///
/// ```
/// use greenhack::{await_sync, no_suspend};
/// use tokio::task::yield_now;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let ready = greenhack::run_sync(|| no_suspend(|| await_sync(async { 1 })));
/// assert_eq!(ready.await, 1);
/// let waits = greenhack::run_sync(|| no_suspend(|| await_sync(yield_now())));
/// assert!(tokio::spawn(waits).await.unwrap_err().is_panic());
/// # });
/// ```
pub fn no_suspend<R>(f: impl FnOnce() -> R) -> R {
    let frame = Frame::here();
    match current(&frame) {
        Place::In(header) => header.no_suspend(f),
        _ => f(),
    }
}

/// Runs `f`, in which some wait must suspend.
///
/// An assertion, for loops that must let other tasks of the thread go on, and
/// for code that is believed to be on async I/O but might be blocking. Outside
/// a run it just calls `f`.
///
/// # Panics
///
/// If `f` returns without having been suspended, at the line of this call.
///
/// # Examples
///
/// ```
/// use greenhack::{await_sync, must_suspend};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// greenhack::run_sync(|| must_suspend(|| await_sync(tokio::task::yield_now()))).await;
/// let idle = tokio::spawn(greenhack::run_sync(|| must_suspend(|| ())));
/// assert!(idle.await.unwrap_err().is_panic());
/// # });
/// ```
#[track_caller]
pub fn must_suspend<R>(f: impl FnOnce() -> R) -> R {
    let frame = Frame::here();
    match current(&frame) {
        Place::In(header) => {
            let (output, suspended) = header.suspends(f);
            assert!(
                suspended,
                "code in `greenhack::must_suspend` never waited for a future that was pending; \
                 it blocks the thread, or has nothing to wait for"
            );
            output
        }
        _ => f(),
    }
}
