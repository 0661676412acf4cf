//! [`run_sync`]: a run that any runtime can spawn.
//!
//! At its first poll the run decides where its stack will live, for good:
//!
//! ```text
//!   polled by a scheduler that keeps its tasks on one thread
//!       (current_thread, LocalRuntime, a worker)  ──▶ in place
//!   polled by anything else                       ──▶ on a worker
//!
//!   the caller's task                       a worker's task
//!   ─────────────────                       ───────────────
//!   push the job ─────────── queue
//!   yield, announce ──────── wake ────────▶ take `f` from the job, start
//!   wait for the outcome                    poll the coroutine, or see that
//!                                           the caller has gone: cancel
//!   take it ◀─────────────── oneshot ────── send the outcome
//! ```
//!
//! # Invariants
//!
//! - H1 `f` is taken out of the job once, under its lock: by the worker that
//!   starts it, or by the caller that is dropped before. So it either runs or
//!   is dropped unstarted, and never both.
//! - H2 The caller's end of the oneshot closes when, and only when, the caller
//!   is dropped; the worker's task sees it at its next poll, to which the
//!   closing wakes it.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};

use futures::future::{FutureExt, LocalBoxFuture};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{LocalKey, spawn_local};
#[cfg(feature = "tracing")]
use tracing::dispatcher::set_default;

use super::builder::{Config, builder};
use super::in_place::{InPlace, Site};
use super::metrics::Live;
use super::reaper::Reaper;
use super::workers::{self, Job, Refusal};
use crate::engine::coroutine::Outcome;
#[cfg(feature = "tracing")]
use crate::engine::spans::scoped_default;
use crate::ground::ambient::{Spot, is_single_threaded};
use crate::ground::error::{Cancelled, Payload, discard};
use crate::ground::sync::{Mutex, MutexGuard};

/// Runs plain code as part of the current task, on a coroutine.
///
/// In `f`, and in all that it calls, [`await_sync`](crate::await_sync) waits
/// for futures: it suspends the coroutine, and the task is pending meanwhile.
///
/// The future is `Send`, to be awaited or spawned on any runtime. Where the
/// scheduler keeps its tasks on one thread, `f` runs in place. On a
/// multi-thread runtime, whose tasks move between threads, `f` is started by
/// one of the [workers](crate::workers) of this process, since a stack can't
/// move; only `f` and its result cross, so what lives on its stack meanwhile
/// need not be `Send`. For an `f` that isn't `Send` use
/// [`run_sync_local`](crate::run_sync_local).
///
/// Like any future it has to be polled when it wakes its task: at the first poll it
/// lets the other tasks that are ready have their turn, and then wakes a worker. From
/// then on `f` runs whether it is polled or not.
///
/// A panic of `f` resumes in the task that awaits it. With the feature
/// `tracing` the caller's span and subscriber are current on the worker too.
/// Task-locals are carried if they are [named](crate::Builder::carry).
///
/// # Cancel safety
///
/// If the future is dropped before `f` has started, `f` is dropped. If it is
/// dropped while `f` waits, the awaited future is dropped and the stack
/// unwinds, innermost frame first, on its own thread: in place before `drop`
/// returns, on a worker soon after; `drop` never blocks. Destructors may
/// themselves wait, see [`cleanup_budget`](crate::Builder::cleanup_budget).
///
/// With `panic = "abort"` nothing can unwind: a dropped run is detached and
/// runs to its end.
///
/// # Panics
///
/// The future panics with the panic of `f`; if it is polled after its end; if
/// it has started in place and is then polled on another thread; if the
/// workers have been shut down, or [could not be started](crate::workers::Builder::start);
/// and if there is no memory for a stack.
///
/// In place its drop may panic, as that of [`run_sync_local`](crate::run_sync_local).
///
/// # Examples
///
/// ```
/// use greenhack::await_sync;
/// use tokio::time::{Duration, sleep};
///
/// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
/// let run = greenhack::run_sync(|| {
///     await_sync(sleep(Duration::from_millis(1)));
///     "served"
/// });
/// assert_eq!(tokio::spawn(run).await.unwrap(), "served");
/// # });
/// ```
pub fn run_sync<F, T>(f: F) -> Run<F, T>
where
    F: FnOnce() -> T + Send + 'static, // or write `run_sync_local`
    // The compiler quotes the line of the bound.
    T: Send + 'static, // or write `run_sync_local`
{
    builder().run_sync(f)
}

/// The future of [`run_sync`].
///
/// # Examples
///
/// Wait for it in parts, and drop it to cancel it:
///
/// ```
/// use std::time::Duration;
///
/// use greenhack::{run_sync, time};
/// use tokio::time::timeout;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// let minute = Duration::from_secs(60);
/// let mut soup = run_sync(move || time::sleep(minute * 5 / 2));
/// let mut apologies = 0;
/// while timeout(minute, &mut soup).await.is_err() {
///     apologies += 1;
/// }
/// assert_eq!(apologies, 2);
/// # });
/// ```
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct Run<F, T: 'static> {
    state: State<F, T>,
}

// With a tag of its own, which is quickly looked at.
#[repr(u8)]
enum State<F, T: 'static> {
    New(Config, F),
    InPlace(InPlace<T>),
    Away(Away<F, T>),
    Ended,
}

impl<F, T> Run<F, T> {
    pub(crate) fn new(config: Config, f: F) -> Self {
        Run {
            state: State::New(config, f),
        }
    }
}

// Nothing is pinned: `f` moves to its own stack before it runs.
impl<F, T> Unpin for Run<F, T> {}

impl<F, T> Future for Run<F, T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    type Output = T;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let is_new = matches!(self.state, State::New(..));
        if is_new {
            self.start();
        }
        let outcome = match &mut self.state {
            State::InPlace(run) => ready!(run.poll(is_new, cx)),
            State::Away(away) => ready!(away.poll(cx)),
            State::New(..) | State::Ended => panic!("a run was polled after its end"),
        };
        self.state = State::Ended;
        Poll::Ready(outcome.unwrap_or_else(|payload| resume_unwind(payload)))
    }
}

impl<F, T> Run<F, T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    /// Starts the run where it will stay.
    #[inline(never)]
    fn start(&mut self) {
        let handle = Handle::try_current().ok();
        let spot = Spot::in_runtime(handle.as_ref().map(Handle::id));
        let State::New(config, _) = &self.state else {
            return;
        };
        let site = match &handle {
            Some(handle) if is_single_threaded(handle, spot) => {
                Some(Site::here(handle, spot, config))
            }
            _ => None,
        };
        if let State::New(config, f) = mem::replace(&mut self.state, State::Ended) {
            self.state = match (handle, site) {
                (Some(handle), Some(site)) => State::InPlace(InPlace::new(site, handle, config, f)),
                (handle, _) => State::Away(Away::start(handle, config, f)),
            };
        }
    }
}

impl<F, T> fmt::Debug for Run<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").finish_non_exhaustive()
    }
}

/// The caller's side of a run on a worker.
struct Away<F, T: 'static> {
    job: Arc<Unstarted<F, T>>,
    outcome: oneshot::Receiver<Outcome<T>>,
    turn: Turn,
}

/// How far the caller has come with handing the job over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It has pushed the job.
    Pushed,
    /// It has let others have their turn, who may push as well.
    Yielded,
    /// The workers have been told.
    Announced,
}

impl<F, T> Away<F, T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    fn start(handle: Option<Handle>, mut config: Config, f: F) -> Self {
        let (sender, outcome) = oneshot::channel();
        let (caller_runtime, carried) = match &mut config.settings {
            Some(settings) => (settings.caller_runtime, mem::take(&mut settings.carried)),
            None => Default::default(),
        };
        let start = Start {
            surroundings: Surroundings::of_caller(handle.filter(|_| caller_runtime)),
            carried: carried.iter().filter_map(|key| key.capture()).collect(),
            config,
            f,
            sender,
        };
        let job = Arc::new(Unstarted {
            start: Mutex::new(Some(start)),
            panic: Mutex::new(None),
        });
        if let Err(refusal) = workers::push(job.clone()) {
            let name = job
                .take()
                .map_or(Cow::Borrowed("a run"), |start| start.config.name);
            match refusal {
                Refusal::ShutDown => panic!(
                    "`{name}` was started after `greenhack::workers::shutdown`; \
                     shut the workers down when the services that use them have ended"
                ),
                Refusal::NotStarted => panic!(
                    "`{name}` needs the workers, which could not be started; \
                     end the process when `greenhack::workers::Builder::start` fails"
                ),
            }
        }
        Away {
            job,
            outcome,
            turn: Turn::Pushed,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        match Pin::new(&mut self.outcome).poll(cx) {
            Poll::Ready(Ok(outcome)) => Poll::Ready(outcome),
            Poll::Ready(Err(_)) => match lock(&self.job.panic).take() {
                Some(payload) => Poll::Ready(Err(payload)),
                // The workers have been shut down.
                None => Poll::Ready(Err(Box::new(Cancelled::new()))),
            },
            Poll::Pending => {
                self.hand_over(cx);
                Poll::Pending
            }
        }
    }

    /// Tells the workers of the job, at the second poll.
    ///
    /// The first wake-up of a worker often takes the core from who wakes it. So the
    /// tasks that are ready with this one push their jobs before.
    fn hand_over(&mut self, cx: &Context<'_>) {
        match self.turn {
            Turn::Pushed => {
                self.turn = Turn::Yielded;
                cx.waker().wake_by_ref();
            }
            Turn::Yielded => {
                self.turn = Turn::Announced;
                workers::announce();
            }
            Turn::Announced => {}
        }
    }
}

impl<F, T> Drop for Away<F, T> {
    fn drop(&mut self) {
        // The sender is part of what has not started, and would wake the caller.
        self.outcome.close();
        // That is dropped here and now, outside of the lock.
        let unstarted = self.job.take();
        let is_in_the_queue = unstarted.is_some();
        drop(unstarted);
        if is_in_the_queue && self.turn != Turn::Announced {
            // What is left of the job is for a worker to take off.
            workers::announce();
        }
    }
}

/// A run on its way to a worker.
struct Unstarted<F, T> {
    start: Mutex<Option<Start<F, T>>>,
    /// The panic of what is around the run there.
    panic: Mutex<Option<Payload>>,
}

struct Start<F, T> {
    config: Config,
    f: F,
    sender: oneshot::Sender<Outcome<T>>,
    surroundings: Surroundings,
    carried: Vec<Box<dyn Value>>,
}

impl<F, T> Unstarted<F, T> {
    fn take(&self) -> Option<Start<F, T>> {
        lock(&self.start).take()
    }
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F, T> Job for Unstarted<F, T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    fn start(self: Arc<Self>) {
        let Some(start) = self.take() else {
            return;
        };
        let task = Task {
            run: Some(TaskRun {
                state: TaskState::New(Some((start.config, start.f, Handle::current()))),
                sender: Some(start.sender),
                live: Some(Live::begin()),
            }),
            surroundings: start.surroundings,
        };
        if start.carried.is_empty() {
            spawn_local(task);
        } else {
            let task: LocalBoxFuture<'static, ()> = Box::pin(task);
            let carried = start.carried.into_iter();
            let mut task = carried.fold(task, |task, value| value.scope(task));
            spawn_local(async move {
                // A scope panics if its value is lent when a poll ends. The caller hears of
                // it before the task is dropped, and the sender with it.
                if let Err(payload) = AssertUnwindSafe(&mut task).catch_unwind().await {
                    *lock(&self.panic) = Some(payload);
                }
            });
        }
    }
}

/// The worker's side of a run, with what is current around it.
///
/// Nobody awaits it, so that its panics end here. Those of what is around the run are the
/// caller's to see, and end the run; if he has gone, they are dropped. tokio would drop the
/// payload, and a destructor that panics in there ends the worker.
struct Task<F, T: 'static> {
    run: Option<TaskRun<F, T>>,
    surroundings: Surroundings,
}

impl<F, T> Unpin for Task<F, T> {}

impl<F, T> Future for Task<F, T>
where
    F: FnOnce() -> T + 'static,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let _entered = this.surroundings.enter();
            match &mut this.run {
                Some(run) => run.poll(cx),
                None => Poll::Ready(()),
            }
        }));
        polled.unwrap_or_else(|payload| {
            match &mut this.run {
                Some(run) => run.fail(payload),
                None => discard(payload),
            }
            Poll::Ready(())
        })
    }
}

impl<F, T> Drop for Task<F, T> {
    fn drop(&mut self) {
        let run = self.run.take();
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            let _entered = self.surroundings.enter();
            drop(run);
        }));
        dropped.unwrap_or_else(discard);
    }
}

struct TaskRun<F, T: 'static> {
    state: TaskState<F, T>,
    /// Taken when the caller has gone, or has got its outcome.
    sender: Option<oneshot::Sender<Outcome<T>>>,
    /// Taken at the end, before the caller hears of it.
    live: Option<Live>,
}

enum TaskState<F, T: 'static> {
    New(Option<(Config, F, Handle)>),
    Running(InPlace<T>),
    Reaping(Reaper<T>),
    Ended,
}

impl<F, T> TaskRun<F, T>
where
    F: FnOnce() -> T + 'static,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let must_end = match &mut self.sender {
            Some(sender) => workers::is_closing() || sender.poll_closed(cx).is_ready(),
            None => false,
        };
        if must_end {
            self.sender = None;
            self.state = match mem::replace(&mut self.state, TaskState::Ended) {
                TaskState::Running(run) => match run.into_coroutine() {
                    Some(coroutine) => TaskState::Reaping(Reaper::new(coroutine)),
                    None => TaskState::Ended,
                },
                // Not started: `f` is dropped.
                _ => TaskState::Ended,
            };
        }
        let mut is_new = false;
        if let TaskState::New(start) = &mut self.state {
            is_new = true;
            let (config, f, handle) = start.take().expect("a task starts once");
            // A panic here, for want of memory, is the caller's to see.
            let run = catch_unwind(AssertUnwindSafe(|| {
                let site = Site::here(&handle, Spot::here(), &config);
                InPlace::new(site, handle, config, f)
            }));
            match run {
                Ok(run) => self.state = TaskState::Running(run),
                Err(payload) => return self.end(Err(payload)),
            }
        }
        match &mut self.state {
            TaskState::Running(run) => {
                // A panic of what is mounted is the caller's to see, too.
                let polled = catch_unwind(AssertUnwindSafe(|| run.poll(is_new, cx)));
                let outcome = ready!(polled.unwrap_or_else(|payload| Poll::Ready(Err(payload))));
                self.end(outcome)
            }
            TaskState::Reaping(reaper) => Pin::new(reaper).poll(cx),
            TaskState::New(_) | TaskState::Ended => Poll::Ready(()),
        }
    }

    fn end(&mut self, outcome: Outcome<T>) -> Poll<()> {
        self.state = TaskState::Ended;
        self.live = None;
        if let Some(sender) = self.sender.take() {
            // If the caller has just gone, the outcome is dropped here.
            drop(sender.send(outcome));
        }
        Poll::Ready(())
    }
}

impl<F, T> TaskRun<F, T> {
    /// Tells the caller of a panic beside the run, which is about to be dropped.
    #[cold]
    fn fail(&mut self, payload: Payload) {
        self.live = None;
        let unheard = match self.sender.take() {
            Some(sender) => sender.send(Err(payload)),
            None => Err(Err(payload)),
        };
        if let Err(Err(payload)) = unheard {
            discard(payload);
        }
    }
}

/// What is current around the caller, and shall be around the run.
struct Surroundings {
    runtime: Option<Handle>,
    /// What is not the default everywhere.
    #[cfg(feature = "tracing")]
    dispatch: Option<tracing::Dispatch>,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl Surroundings {
    fn of_caller(runtime: Option<Handle>) -> Self {
        Surroundings {
            runtime,
            #[cfg(feature = "tracing")]
            dispatch: scoped_default(),
            #[cfg(feature = "tracing")]
            span: tracing::Span::current(),
        }
    }

    #[cfg(feature = "tracing")]
    fn enter(&self) -> impl Sized + use<'_> {
        // Dropped in this order: the span needs its dispatcher.
        let dispatch = self.dispatch.as_ref().map(set_default);
        let span = self.span.enter();
        (span, dispatch, self.runtime.as_ref().map(Handle::enter))
    }

    #[cfg(not(feature = "tracing"))]
    fn enter(&self) -> impl Sized + use<'_> {
        self.runtime.as_ref().map(Handle::enter)
    }
}

/// A task-local key, of whatever type.
pub(crate) trait Key: Send + Sync {
    /// Clones the value that it has in the caller's task.
    fn capture(&self) -> Option<Box<dyn Value>>;
}

/// The value of a task-local key.
pub(crate) trait Value: Send {
    /// Sets the value for `task`.
    fn scope(self: Box<Self>, task: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()>;
}

impl<T: Clone + Send + 'static> Key for &'static LocalKey<T> {
    fn capture(&self) -> Option<Box<dyn Value>> {
        let value = self.try_with(Clone::clone).ok()?;
        Some(Box::new((*self, value)))
    }
}

impl<T: Send + 'static> Value for (&'static LocalKey<T>, T) {
    fn scope(self: Box<Self>, task: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()> {
        let (key, value) = *self;
        Box::pin(key.scope(value, task))
    }
}
