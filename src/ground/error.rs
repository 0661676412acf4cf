//! The errors of the crate, and the words of its panics.
#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a panic carries.
pub(crate) type Payload = Box<dyn Any + Send + 'static>;

/// Drops a payload that nobody will see, whatever its destructor does.
#[cold]
pub(crate) fn discard(payload: Payload) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // A destructor that panics with such a value again would go on for
        // ever.
        std::mem::forget(second);
    }
}

/// Keeps `payload`, unless there is one already: the first panic is the one that
/// counts.
#[cold]
pub(crate) fn keep_first(kept: &Cell<Option<Payload>>, payload: Payload) {
    match kept.take() {
        None => kept.set(Some(payload)),
        Some(first) => {
            kept.set(Some(first));
            discard(payload);
        }
    }
}

/// Why [`try_await_sync`](crate::try_await_sync) could not wait here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The caller is async code that tokio polls on this thread.
    AsyncCode,
    /// The caller is async code that `await_sync` itself polls.
    Polling,
    /// The caller is plain code that has gone to its thread's stack.
    OnThreadStack,
    /// The caller is async code of the executor of the `futures` crate.
    OtherExecutor,
    /// The thread's locals are gone.
    ThreadEnding,
}

impl Refusal {
    /// The fact and the line to write, after the name of what was called. What async
    /// code awaits instead, if there is such a thing, is `awaited`.
    pub(crate) fn message(self, awaited: Option<&str>) -> String {
        let run = match awaited {
            Some(awaited) => format!("write `{awaited}` here, or run"),
            None => "run".to_owned(),
        };
        match self {
            Refusal::AsyncCode => format!(
                "called in async code, which must not block; {run} the plain code that calls it \
                 with `greenhack::run_sync(|| ..).await`"
            ),
            Refusal::Polling => format!(
                "called in a future that is itself polled by `await_sync`, or in an `Ambient`; \
                 {run} the plain code that calls it with `greenhack::run_sync_local(|| ..).await`"
            ),
            Refusal::OnThreadStack => {
                "called inside `greenhack::on_thread_stack`, whose stack can't be suspended; \
                 await the future before or after it"
                    .to_owned()
            }
            Refusal::OtherExecutor => format!(
                "called in async code of `futures::executor`, which must not block; {run} the \
                 plain code that calls it with `greenhack::run_sync(|| ..).await`"
            ),
            Refusal::ThreadEnding => "called while the thread is ending; wait before the \
                 thread's locals are dropped"
                .to_owned(),
        }
    }
}

/// The error of [`try_await_sync`](crate::try_await_sync): this place cannot
/// wait. It holds the future, which was never polled.
///
/// # Examples
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// // Async code must not wait by blocking.
/// let refused = greenhack::try_await_sync(std::future::ready(7)).unwrap_err();
/// assert!(refused.is_async_code());
/// assert_eq!(refused.into_inner().await, 7);
/// # });
/// ```
pub struct NotAwaited<F> {
    future: F,
    refusal: Refusal,
}

impl<F> NotAwaited<F> {
    pub(crate) fn new(future: F, refusal: Refusal) -> Self {
        NotAwaited { future, refusal }
    }

    /// Gives the future back, as it was passed in.
    pub fn into_inner(self) -> F {
        self.future
    }

    /// Whether the caller is async code: a task, the future of a `block_on`,
    /// or a future that `await_sync` polls. Write `.await` there.
    pub fn is_async_code(&self) -> bool {
        !self.is_thread_ending() && !self.is_on_thread_stack()
    }

    /// Whether the caller is inside [`on_thread_stack`](crate::on_thread_stack).
    ///
    /// # Examples
    ///
    /// A library that would rather do without than fail:
    ///
    /// ```
    /// use greenhack::{on_thread_stack, try_await_sync};
    ///
    /// fn exchange_rate() -> Option<u32> {
    ///     match try_await_sync(async { 7 }) {
    ///         Ok(rate) => Some(rate),
    ///         Err(refused) if refused.is_on_thread_stack() => None,
    ///         Err(refused) => panic!("{refused}"),
    ///     }
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let run = greenhack::run_sync(|| (exchange_rate(), on_thread_stack(exchange_rate)));
    /// assert_eq!(run.await, (Some(7), None));
    /// # });
    /// ```
    pub fn is_on_thread_stack(&self) -> bool {
        matches!(self.refusal, Refusal::OnThreadStack)
    }

    /// Whether the caller runs in the destructor of a thread local, when its
    /// thread can no longer wait.
    pub fn is_thread_ending(&self) -> bool {
        matches!(self.refusal, Refusal::ThreadEnding)
    }
}

impl<F> fmt::Debug for NotAwaited<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotAwaited")
            .field("refusal", &self.refusal)
            .finish_non_exhaustive()
    }
}

impl<F> fmt::Display for NotAwaited<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`await_sync` {}", self.refusal.message(Some(".await")))
    }
}

impl<F> Error for NotAwaited<F> {}

/// The run was cancelled: the task that awaited it is gone.
///
/// It is the payload of the unwinding by which [`await_sync`](crate::await_sync)
/// leaves a cancelled run, so code that catches panics can tell the two apart;
/// and the error of [`await_or_cancelled`](crate::await_or_cancelled).
///
/// # Examples
///
/// ```
/// use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
///
/// /// Turns a panic of `f` into an error, and lets a cancellation pass.
/// fn contain<T>(f: impl FnOnce() -> T) -> Result<T, String> {
///     catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
///         if payload.is::<greenhack::Cancelled>() {
///             resume_unwind(payload);
///         }
///         "the plugin panicked".to_owned()
///     })
/// }
///
/// assert_eq!(contain(|| 1), Ok(1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled(());

impl Cancelled {
    pub(crate) const fn new() -> Self {
        Cancelled(())
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the run was cancelled")
    }
}

impl Error for Cancelled {}
