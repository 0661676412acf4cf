//! The verbs that wait.
//!
//! They are inlined, always, down to the switch. A return that leads out of a
//! frame which was entered before the switch is predicted wrongly, and each of
//! those costs more than all the rest of a wait.
#![forbid(unsafe_code)]

use std::future::IntoFuture;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::thread;

use tokio::runtime::Handle;

use super::outside;
use crate::engine::context::{
    Frame, Place, Unfinished, Wait, current, polling_refusal, throw_cancelled,
};
use crate::ground::ambient::Moved;
use crate::ground::error::{Cancelled, NotAwaited, Refusal, discard};
use crate::ground::report;

/// The file of this code, by which its frames are known.
#[cfg(feature = "backtrace")]
pub(crate) const FILE: &str = file!();

/// Suspends the calling plain function until `future` is ready, and returns its
/// output.
///
/// In a run ([`run_sync`](crate::run_sync), [`run_sync_local`](crate::run_sync_local),
/// [`#[entry]`](macro@crate::entry)) the whole call stack is suspended and the thread serves other
/// tasks. A future that is ready at once does not yield to them. The future may
/// borrow from the caller and need not be `Send`. It is polled on the stack of
/// the task, not on the run's.
///
/// Outside a run it blocks the thread, where that is allowed:
///
/// | called | `await_sync` | [`try_await_sync`] |
/// |---|---|---|
/// | in a run | suspends | `Ok` |
/// | on a thread that may block: with a runtime entered, in `spawn_blocking` or `block_in_place` | blocks, on that runtime¹ | `Ok` |
/// | on a plain thread, without a runtime | blocks, on a runtime of the process, see [`enter_runtime`](crate::enter_runtime) | `Ok` |
/// | in async code: a task, the future of a `block_on`, a future that `await_sync` polls | panics | `Err`, with the future |
///
/// ¹ A current-thread runtime must be driven meanwhile, by another thread in its
/// `block_on`: otherwise a timer or a socket of it never wakes anybody, and this
/// call does not return. See
/// [pitfalls](crate::docs::pitfalls#a-runtime-that-nobody-drives).
///
/// So a library can call it, and be used by plain programs and in tokio
/// services alike.
///
/// # Cancel safety
///
/// If the run is cancelled, `future` is dropped, then this call unwinds with
/// [`Cancelled`] as its payload. Code that catches it meets it again at its
/// next wait. A wait that is already part of an unwind, in a destructor, is
/// not interrupted, but limited by the
/// [`cleanup_budget`](crate::Builder::cleanup_budget). To hold cancellation
/// back, use [`shield`](crate::shield); to get an error instead, use
/// [`await_or_cancelled`].
///
/// # Panics
///
/// - In async code, see the table. The message says what to write.
/// - With the panic of `future`, which can be caught here.
/// - In a run, if the caller's stack holds what can't stay open: an `EnterGuard`
///   of another runtime; the destructor of a task that runs because a runtime
///   is dropped here; the code of a `tracing` subscriber; in debug builds also
///   `futures::executor::block_on`.
/// - In [`no_suspend`](crate::no_suspend), if the future is not ready at once.
///
/// # Examples
///
/// ```
/// use greenhack::await_sync;
///
/// fn answer() -> u32 {
///     await_sync(async { 42 })
/// }
///
/// // On a plain thread:
/// assert_eq!(answer(), 42);
///
/// // In a task:
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// assert_eq!(greenhack::run_sync(answer).await, 42);
/// # });
/// ```
#[inline(always)]
#[track_caller]
pub fn await_sync<F: IntoFuture>(future: F) -> F::Output {
    await_called("await_sync", ".await", future)
}

/// Waits like [`await_sync`], in the name of the function `called`, instead of which
/// async code writes `awaited`: what `#[exempt]` calls.
#[inline(always)]
#[track_caller]
pub fn await_called<F: IntoFuture>(called: &str, awaited: &str, future: F) -> F::Output {
    let frame = Frame::here();
    match current(&frame) {
        Place::In(header) => {
            match header.wait(future.into_future(), Wait::Unwind, Location::caller()) {
                Ok(output) => output,
                Err(unfinished) => stop(unfinished),
            }
        }
        Place::Polling => refuse(called, Some(awaited), polling_refusal()),
        Place::Outside => match outside::runtime() {
            Ok(handle) => outside::block_on(&handle, future.into_future()),
            Err(refusal) => refuse(called, Some(awaited), refusal),
        },
    }
}

/// Waits like [`await_sync`], or gives `future` back where waiting is not
/// possible.
///
/// # Errors
///
/// In async code, and while the thread's locals are destroyed. `future` has
/// been neither turned into a future nor polled.
///
/// # Cancel safety
///
/// As [`await_sync`].
///
/// # Panics
///
/// As [`await_sync`], but not in async code.
///
/// # Examples
///
/// ```
/// use greenhack::try_await_sync;
///
/// assert_eq!(try_await_sync(async { 1 }).unwrap(), 1);
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let error = try_await_sync(async { 1 }).unwrap_err();
/// assert!(error.is_async_code());
/// assert_eq!(error.into_inner().await, 1);
/// # });
/// ```
#[inline(always)]
#[track_caller]
pub fn try_await_sync<F: IntoFuture>(future: F) -> Result<F::Output, NotAwaited<F>> {
    let frame = Frame::here();
    match current(&frame) {
        Place::In(header) => {
            match header.wait(future.into_future(), Wait::Unwind, Location::caller()) {
                Ok(output) => Ok(output),
                Err(unfinished) => stop(unfinished),
            }
        }
        Place::Polling => Err(NotAwaited::new(future, polling_refusal())),
        Place::Outside => match outside::runtime() {
            Ok(handle) => Ok(outside::block_on(&handle, future.into_future())),
            Err(refusal) => Err(NotAwaited::new(future, refusal)),
        },
    }
}

/// Waits like [`await_sync`], but a cancellation is an error instead of an
/// unwind.
///
/// For code that must not unwind, such as callbacks of C libraries, or that
/// has an error channel of its own, such as [`std::io::Read`]. The cancellation
/// stays: every further wait of the run ends with it. A run that goes on for
/// more than 32 waits is leaked, so that a loop can't spin for ever.
///
/// Outside a run it is [`await_sync`]: there, nothing is cancelled.
///
/// # Errors
///
/// If the run is cancelled, unless it is [shielded](crate::shield) or unwinds
/// here, and in any case when its cleanup budget is over. `future` has been
/// dropped.
///
/// # Panics
///
/// As [`await_sync`].
///
/// # Examples
///
/// ```
/// use std::io;
///
/// fn read(future: impl Future<Output = io::Result<usize>>) -> io::Result<usize> {
///     greenhack::await_or_cancelled(future).unwrap_or_else(|cancelled| Err(io::Error::other(cancelled)))
/// }
///
/// assert_eq!(read(async { Ok(3) }).unwrap(), 3);
/// ```
#[inline(always)]
#[track_caller]
pub fn await_or_cancelled<F: IntoFuture>(future: F) -> Result<F::Output, Cancelled> {
    let frame = Frame::here();
    match current(&frame) {
        Place::In(header) => {
            match header.wait(future.into_future(), Wait::Error, Location::caller()) {
                Ok(output) => Ok(output),
                Err(Unfinished::Cancelled) => Err(Cancelled::new()),
                Err(unfinished) => stop(unfinished),
            }
        }
        _ => Ok(await_called("await_or_cancelled", ".await", future)),
    }
}

/// Waits in a destructor, if at all possible, and never unwinds for want of it.
///
/// A `Drop` that must await has to cope with where it is run. In a run this
/// suspends, also when the run is cancelled: the future is driven on until the
/// [`cleanup_budget`](crate::Builder::cleanup_budget) is over. On a thread that
/// may block it blocks. In async code it can't wait: it drops the future unpolled
/// and reports a warning, and the resource has to do without (a connection is
/// closed instead of returned).
///
/// Returns `None` if `future` was dropped before it was ready, or has panicked while
/// the stack unwinds.
///
/// # Panics
///
/// With the panic of `future`, but not while the stack unwinds: that would end the
/// process.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use std::rc::Rc;
///
/// struct Transaction(Rc<Cell<&'static str>>);
///
/// impl Drop for Transaction {
///     fn drop(&mut self) {
///         let state = &self.0;
///         greenhack::await_in_drop(async { state.set("rolled back") });
///     }
/// }
///
/// let state = Rc::new(Cell::new("open"));
/// drop(Transaction(state.clone()));
/// assert_eq!(state.get(), "rolled back");
/// ```
#[inline(always)]
#[track_caller]
pub fn await_in_drop<F: IntoFuture>(future: F) -> Option<F::Output> {
    let frame = Frame::here();
    let refused = match current(&frame) {
        Place::In(header) => {
            return match header.wait(future.into_future(), Wait::Cleanup, Location::caller()) {
                Ok(output) => Some(output),
                Err(Unfinished::Cancelled) => None,
                Err(_) => {
                    give_up();
                    None
                }
            };
        }
        Place::Polling => future,
        Place::Outside => match outside::runtime() {
            Ok(handle) if thread::panicking() => return block_in_unwind(&handle, future),
            Ok(handle) => return Some(outside::block_on(&handle, future.into_future())),
            Err(_) => future,
        },
    };
    drop(refused);
    give_up();
    None
}

/// Blocks, where a panic of `future` would end the process.
#[cold]
fn block_in_unwind<F: IntoFuture>(handle: &Handle, future: F) -> Option<F::Output> {
    let waits = || outside::block_on(handle, future.into_future());
    catch_unwind(AssertUnwindSafe(waits)).map_err(discard).ok()
}

#[cold]
fn give_up() {
    report::warn(
        "a destructor was to await where it can't, and has given up",
        "drop the value in code run by `greenhack::run_sync(|| ..)`",
    );
}

/// Returns whether the caller is in a run, where [`await_sync`] suspends.
///
/// It is `false` in a future that [`await_sync`] polls, on plain threads, and
/// in async code. It can be called anywhere.
///
/// # Examples
///
/// ```
/// assert!(!greenhack::in_context());
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// assert!(greenhack::run_sync(greenhack::in_context).await);
/// # });
/// ```
pub fn in_context() -> bool {
    let frame = Frame::here();
    matches!(current(&frame), Place::In(_))
}

/// Returns whether the caller is in a run that is cancelled, and has met it.
///
/// For a destructor that must know why the stack unwinds, together with
/// [`std::thread::panicking`]. A run hears of its cancellation while it waits, so
/// this does not become `true` in a computation. From then on it stays so; a
/// nested run has a cancellation of its own. It can be called anywhere, and is
/// `false` outside a run.
///
/// # Examples
///
/// ```
/// use greenhack::is_cancelled;
///
/// struct Upload(&'static str);
///
/// impl Drop for Upload {
///     fn drop(&mut self) {
///         let hung_up = std::thread::panicking() && is_cancelled();
///         assert_eq!(hung_up, self.0 == "slow");
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// use std::time::Duration;
///
/// let upload = |name, time| {
///     let run = greenhack::run_sync(move || {
///         let _upload = Upload(name);
///         greenhack::time::sleep(time);
///     });
///     tokio::time::timeout(Duration::from_secs(10), run)
/// };
/// assert!(upload("quick", Duration::from_secs(1)).await.is_ok());
/// assert!(upload("slow", Duration::from_secs(60)).await.is_err());
/// # });
/// ```
pub fn is_cancelled() -> bool {
    let frame = Frame::here();
    matches!(current(&frame), Place::In(header) if header.is_cancelled())
}

/// The verb as a method: `future.await_sync()`.
///
/// # Examples
///
/// ```
/// use greenhack::AwaitExt;
///
/// assert_eq!(async { 7 }.await_sync(), 7);
/// ```
pub trait AwaitExt: IntoFuture {
    /// Suspends the calling plain function until this is ready, see
    /// [`await_sync`].
    ///
    /// # Panics
    ///
    /// As [`await_sync`].
    #[track_caller]
    fn await_sync(self) -> Self::Output;
}

impl<F: IntoFuture> AwaitExt for F {
    #[inline(always)]
    fn await_sync(self) -> Self::Output {
        await_sync(self)
    }
}

/// Says why async code can't wait, and what to write: `awaited`, or a run.
#[cold]
#[track_caller]
pub(crate) fn refuse(called: &str, awaited: Option<&str>, refusal: Refusal) -> ! {
    panic!("`{called}` {}", refusal.message(awaited))
}

/// Leaves a wait in a run that has no output.
#[inline(always)]
#[track_caller]
pub(crate) fn stop(unfinished: Unfinished) -> ! {
    match unfinished {
        Unfinished::Cancelled => throw_cancelled(),
        Unfinished::Refused(moved) => refuse_to_stay(moved),
        Unfinished::Forbidden => refuse_to_suspend(),
    }
}

#[cold]
#[track_caller]
fn refuse_to_stay(moved: Moved) -> ! {
    match moved {
        Moved::Scope => panic!(
            "`await_sync` called inside a tokio runtime that this stack drives or drops, and \
             which can't stay open meanwhile; let its tasks end before you drop it"
        ),
        Moved::Runtime => panic!(
            "`await_sync` called while another runtime is entered; drop the guard of \
             `Handle::enter()` before, or write `await_sync(async {{ .. }})` inside of it \
             for what needs that runtime"
        ),
        Moved::Executor => panic!(
            "`await_sync` called inside `futures::executor::block_on`; write `await_sync(future)` \
             instead of `block_on(future)`"
        ),
        Moved::Subscriber => panic!(
            "`await_sync` called in a subscriber of `tracing`, which the thread can't share \
             meanwhile; hand the event to a task, with `try_send` of a channel"
        ),
    }
}

#[cold]
#[track_caller]
fn refuse_to_suspend() -> ! {
    panic!(
        "`await_sync` had to suspend inside `greenhack::no_suspend`; await the future before \
         or after it"
    )
}
