//! [`nested`]: plain code inside of a future inside of plain code.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::nursery::{self, Nursery};
use crate::engine::context::{leave_without_output, throw_cancelled};

/// Suspends the calling plain function until `wrap` is ready, which awaits `f`
/// as a future.
///
/// A future that surrounds another, such as `KEY.scope(value, future)`,
/// [`timeout`](tokio::time::timeout) or `future.instrument(span)`, is made to
/// surround plain code: `wrap` gets a run of `f` as a future, and returns what
/// that makes. `f` waits with [`await_sync`](crate::await_sync) as ever, and need
/// not be `Send`. Other than the closure of
/// [`run_sync_local`](crate::run_sync_local), it may borrow from the caller,
/// because this call does not return before `f` has ended, whatever `wrap` does
/// with the future. Calls can be nested to any depth, limited by the stack on
/// which tokio polls.
///
/// If `wrap` ends before `f` has ended, as `timeout` does, or drops the future,
/// `f` is cancelled, and has ended before this returns. A future that is
/// forgotten makes no difference.
///
/// The value of a task-local must not be borrowed while `f` waits, in
/// `KEY.with(|value| ..)`: tokio panics then. Clone it.
///
/// `f` runs on a stack of the size that the caller's run has. Outside a run
/// this blocks the thread, where [`await_sync`](crate::await_sync) does.
///
/// # Cancel safety
///
/// If the run is cancelled, the future of `wrap` is dropped, `f` is cancelled,
/// and the caller unwinds when `f` has ended, with its destructors.
///
/// # Panics
///
/// With a panic of `f` or of `wrap`, and if `wrap` polls the future after its
/// end. In async code, and where the stack must not be suspended, as
/// [`await_sync`](crate::await_sync). If there is no memory for a stack.
///
/// # Examples
///
/// ```
/// use greenhack::{await_sync, nested};
///
/// tokio::task_local! {
///     static GUEST: String;
/// }
///
/// let dish = String::from("soup");
/// let order = nested(
///     || {
///         await_sync(tokio::task::yield_now());
///         GUEST.with(|guest| format!("{dish} for {guest}"))
///     },
///     async |run| GUEST.scope("Ada".to_owned(), run).await,
/// );
/// assert_eq!(order, "soup for Ada");
/// ```
#[track_caller]
pub fn nested<'env, F, R, W, O>(f: F, wrap: W) -> O
where
    F: FnOnce() -> R + 'env,
    R: 'env,
    W: for<'scope> AsyncFnOnce(Nested<'scope, R>) -> O + 'env,
    O: 'env,
{
    let wrapped = Rc::new(Cell::new(None));
    let result = wrapped.clone();
    nursery::run("nested", |scope| {
        let output = Rc::new(Cell::new(None));
        scope.lend({
            let output = output.clone();
            move || match catch_unwind(AssertUnwindSafe(f)) {
                Ok(value) => output.set(Some(value)),
                Err(payload) => scope.nursery.keep_panic(payload),
            }
        });
        let run = Nested {
            nursery: &scope.nursery,
            output,
            has_ended: false,
        };
        Some(Box::pin(async move { wrapped.set(Some(wrap(run).await)) }))
    });
    // Without a panic, `wrap` has ended, or was dropped by a cancellation.
    result.take().unwrap_or_else(|| leave_without_output())
}

/// The run of a closure given to [`nested`], as a future.
///
/// # Examples
///
/// A function that sets the context of whatever plain code is given to it:
///
/// ```
/// use greenhack::{Nested, await_sync, nested};
/// use tokio::task::yield_now;
///
/// tokio::task_local! {
///     static TENANT: u32;
/// }
///
/// async fn as_tenant<R>(tenant: u32, run: Nested<'_, R>) -> R {
///     TENANT.scope(tenant, run).await
/// }
///
/// let orders = ["soup", "rice"];
/// let report = || {
///     await_sync(yield_now());
///     format!("tenant {} has {} orders", TENANT.get(), orders.len())
/// };
/// let report = nested(report, async |run| as_tenant(7, run).await);
/// assert_eq!(report, "tenant 7 has 2 orders");
/// ```
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct Nested<'scope, R> {
    nursery: &'scope Nursery,
    output: Rc<Cell<Option<R>>>,
    has_ended: bool,
}

impl<R> Future for Nested<'_, R> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        assert!(!self.has_ended, "a nested run was polled after its end");
        ready!(self.nursery.poll_lent(cx));
        self.has_ended = true;
        match self.output.take() {
            Some(output) => Poll::Ready(output),
            // It has panicked or was cancelled. The call of `nested` says so,
            // when it has dropped the future that awaits this.
            None => throw_cancelled(),
        }
    }
}

impl<R> Drop for Nested<'_, R> {
    fn drop(&mut self) {
        self.nursery.end_lent();
    }
}

impl<R> fmt::Debug for Nested<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nested").finish_non_exhaustive()
    }
}
