//! [`run_sync_local`]: a run that stays in the task that awaits it.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::mem;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;

use super::builder::{Config, builder};
use super::in_place::{InPlace, Site};
use crate::ground::ambient::Spot;

/// Runs plain code in the current task, on a coroutine of this thread.
///
/// In `f`, and in all that it calls, [`await_sync`](crate::await_sync) waits
/// for futures: it suspends the coroutine, and the task is pending meanwhile.
/// Neither `f` nor its result needs to be `Send`; the future is not `Send`
/// either, so it goes where `!Send` futures go: in `block_on`, `spawn_local`, a
/// `LocalRuntime`, a test. For a future that a multi-thread runtime can spawn,
/// use [`run_sync`](crate::run_sync).
///
/// In the future of a multi-thread runtime's `block_on`, such as an async `main`,
/// the run is polled in a [`LocalSet`](tokio::task::LocalSet) of its own: what it
/// spawns with `spawn_local` ends with it.
///
/// `f` must be `'static`, because a future can be forgotten
/// ([`std::mem::forget`]) and then borrows would dangle.
///
/// # Cancel safety
///
/// If the future is dropped before it is first polled, `f` is dropped and
/// nothing has run. If it is dropped while `f` waits, the awaited future is
/// dropped, then the stack unwinds, innermost frame first, before `drop`
/// returns. Destructors may themselves wait: the rest of the unwinding is then
/// a task of this thread, see [`cleanup_budget`](crate::Builder::cleanup_budget).
///
/// With `panic = "abort"` nothing can unwind: a dropped run is detached and
/// runs to its end.
///
/// # Panics
///
/// The future panics with the panic of `f`; if it is polled after its end, or
/// anywhere but in a tokio task or in the future of a `block_on`; and if there
/// is no memory for a stack.
///
/// Its drop panics, unless the thread unwinds already, if the destructor of the
/// awaited future does, or code that has caught the cancellation.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use greenhack::await_sync;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let shared = Rc::new(20);
/// let run = greenhack::run_sync_local(move || {
///     // Any number of plain functions deeper:
///     let one = await_sync(async { 1 });
///     *shared + one
/// });
/// assert_eq!(run.await, 21);
/// # });
/// ```
pub fn run_sync_local<F, T>(f: F) -> LocalRun<F, T>
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    builder().run_sync_local(f)
}

/// The future of [`run_sync_local`].
///
/// # Examples
///
/// As a task of a `LocalRuntime`, which is cancelled:
///
/// ```
/// use std::cell::Cell;
/// use std::future::pending;
/// use std::rc::Rc;
///
/// use greenhack::{await_sync, run_sync_local};
/// use tokio::task::{spawn_local, yield_now};
///
/// struct Table(Rc<Cell<u32>>);
///
/// impl Drop for Table {
///     fn drop(&mut self) {
///         self.0.set(self.0.get() - 1);
///     }
/// }
///
/// # tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
/// let taken = Rc::new(Cell::new(1));
/// let table = Table(taken.clone());
/// let guest = spawn_local(run_sync_local(move || {
///     let _table = table;
///     await_sync(pending::<()>());
/// }));
/// yield_now().await;
/// assert_eq!(taken.get(), 1);
/// guest.abort();
/// assert!(guest.await.unwrap_err().is_cancelled());
/// assert_eq!(taken.get(), 0);
/// # });
/// ```
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct LocalRun<F, T: 'static> {
    state: State<F, T>,
    /// It belongs to the task that polls it first.
    _not_send: PhantomData<*const ()>,
}

// With a tag of its own, which is quickly looked at.
#[repr(u8)]
enum State<F, T: 'static> {
    New(Config, F),
    Running(InPlace<T>),
    Ended,
}

impl<F, T> LocalRun<F, T> {
    pub(crate) fn new(config: Config, f: F) -> Self {
        LocalRun {
            state: State::New(config, f),
            _not_send: PhantomData,
        }
    }
}

// Nothing is pinned: `f` moves to its own stack before it runs.
impl<F, T> Unpin for LocalRun<F, T> {}

impl<F, T> Future for LocalRun<F, T>
where
    F: FnOnce() -> T + 'static,
{
    type Output = T;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let is_new = matches!(self.state, State::New(..));
        if is_new {
            self.start();
        }
        let State::Running(run) = &mut self.state else {
            panic!("a run was polled after its end");
        };
        let outcome = ready!(run.poll(is_new, cx));
        self.state = State::Ended;
        Poll::Ready(outcome.unwrap_or_else(|payload| resume_unwind(payload)))
    }
}

impl<F, T> LocalRun<F, T>
where
    F: FnOnce() -> T + 'static,
{
    /// Starts the run in the task that polls it.
    #[inline(never)]
    fn start(&mut self) {
        let handle = match Handle::try_current() {
            Ok(handle) => handle,
            Err(error) => panic!(
                "a run was polled outside a tokio runtime: {error}; \
                 `.await` it in a tokio task, or in the future of `block_on`"
            ),
        };
        let State::New(config, _) = &self.state else {
            return;
        };
        let spot = Spot::in_runtime(Some(handle.id()));
        let site = Site::here(&handle, spot, config);
        if let State::New(config, f) = mem::replace(&mut self.state, State::Ended) {
            self.state = State::Running(InPlace::new(site, handle, config, f));
        }
    }
}

impl<F, T> fmt::Debug for LocalRun<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRun").finish_non_exhaustive()
    }
}
