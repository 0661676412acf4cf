//! [`block`]: work that really blocks, away from the thread of the runs.
#![forbid(unsafe_code)]

use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::{await_sync, in_context, try_await_sync};

/// Suspends the calling plain function until `f` has run on a thread that may
/// block, and returns its result.
///
/// For file I/O, calls of C libraries, long computations: in a run they would
/// hold up all other runs of the thread. `f` goes to tokio's blocking threads,
/// see [`spawn_blocking`]. It is not part of the run: task-locals and spans are
/// not there, and it is not cancelled. If `f` is to wait for futures, it may:
/// there [`await_sync`] blocks.
///
/// On a thread that may block it just calls `f`.
///
/// # Cancel safety
///
/// If the run is cancelled before `f` has started, `f` is dropped. If it has
/// started, it goes on to its end, detached, and its result is dropped.
///
/// # Panics
///
/// With the panic of `f`; in async code; and if the runtime is shutting down.
///
/// # Examples
///
/// ```
/// use greenhack::block;
///
/// fn size(path: &'static str) -> std::io::Result<u64> {
///     Ok(block(move || std::fs::metadata(path))?.len())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let run = greenhack::run_sync(|| size("Cargo.toml"));
/// assert!(run.await.unwrap() > 0);
/// # });
/// // On a plain thread it is a call:
/// assert!(size("Cargo.toml").unwrap() > 0);
/// ```
#[track_caller]
pub fn block<F, T>(f: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    if !in_context() {
        assert!(
            may_block(),
            "`greenhack::block` called in async code, which must not block; write \
             `tokio::task::spawn_blocking(f).await` here"
        );
        return f();
    }
    match await_sync(Blocking(spawn_blocking(f))) {
        Ok(output) => output,
        Err(error) => match error.try_into_panic() {
            Ok(payload) => resume_unwind(payload),
            Err(_) => panic!(
                "`greenhack::block` called while the runtime is shutting down, which starts \
                 nothing any more; let the runtime run until its tasks have ended"
            ),
        },
    }
}

/// Whether a caller outside a run may block its thread.
fn may_block() -> bool {
    // A plain thread need not start a runtime to learn that it is one.
    let is_plain = Handle::try_current().is_err() && futures::executor::enter().is_ok();
    is_plain || try_await_sync(async {}).is_ok()
}

/// Work on a blocking thread. It is not started if this is dropped before.
struct Blocking<T>(JoinHandle<T>);

impl<T> Future for Blocking<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for Blocking<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
