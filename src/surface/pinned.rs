//! Workers as a runtime of one's own: each runs a future from the beginning.
//!
//! ```text
//!   run_each ──▶ a thread for each ──▶ its closure makes a future, which need
//!      │                               not be Send: run_each returns
//!      ▼                                   │
//!   Workers ── awaited ◀── outputs ──── it ends ──┐
//!      │                                          ├──▶ what is left on the
//!      └── dropped, or shut down ─────▶ dropped ──┘    thread is cancelled
//! ```
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use super::workers::{Builder, Staff, Started, drive, hire, runtime};
use crate::ground::error::{discard, keep_first};

/// How long what is left on a worker may take to end, if nobody says it.
const LIMIT: Duration = Duration::from_secs(10);

impl Builder {
    /// Starts workers of one's own, and runs a future on each.
    ///
    /// Each worker is a thread that drives a tokio `LocalRuntime`. `make` is
    /// called on each of these threads; the future that it returns is what the
    /// worker does, and need not be `Send`. Runs in it, and in all that it
    /// spawns, are in place: there is no hop. The function returns when `make`
    /// has returned on all of them.
    ///
    /// These workers have nothing to do with those that [`start`](Self::start)
    /// starts: nothing comes to them but what their futures do. For serving with
    /// axum there is `greenhack::axum::serve` (feature `axum`), which is made of
    /// this.
    ///
    /// # Errors
    ///
    /// The system's, if it gives no thread or no runtime. Workers that have
    /// been started already end then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    /// use std::thread;
    ///
    /// use greenhack::{run_sync, workers};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let workers = workers::Builder::new().threads(2).run_each(|worker| async move {
    ///     let index = Rc::new(worker.index());
    ///     let here = thread::current().id();
    ///     assert_eq!(run_sync(|| thread::current().id()).await, here);
    ///     *index
    /// })?;
    /// assert_eq!(greenhack::await_sync(workers), [0, 1]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn run_each<F, Fut>(self, make: F) -> io::Result<Workers<Fut::Output>>
    where
        F: FnOnce(Worker) -> Fut + Clone + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        let threads = self.count();
        let shared = Arc::new(Shared {
            staff: Staff::new(LIMIT),
            closed: watch::Sender::new(false),
            outcomes: Mutex::new((0..threads).map(|_| None).collect()),
        });
        // Ends those that have started, if one can't.
        let mut workers = Workers {
            shared,
            ended: Box::pin(std::future::ready(())),
        };
        hire(&self, threads, |index| {
            let (shared, make) = (workers.shared.clone(), make.clone());
            move |started: Started| work(&shared, index, make, started)
        })?;
        workers.ended = Box::pin(workers.shared.staff.end());
        Ok(workers)
    }
}

/// What a worker is told of itself.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let workers = greenhack::workers::Builder::new()
///     .threads(3)
///     .run_each(|worker| async move { worker.index() })?;
/// assert_eq!(greenhack::await_sync(workers), [0, 1, 2]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Worker {
    index: usize,
}

impl Worker {
    /// Returns its number; the first is 0.
    pub fn index(&self) -> usize {
        self.index
    }
}

/// Workers of one's own, from [`Builder::run_each`].
///
/// It is a future, of what the workers' futures return, in their order. It is
/// ready when all have returned, all runs that they left have ended, and so
/// have the threads. Tasks and runs that a worker's future leaves behind end
/// with it: tasks are dropped, runs are cancelled and have ten seconds for
/// their cleanup.
///
/// # Cancel safety
///
/// When it is dropped the workers end: their futures are dropped, their runs
/// are cancelled. It does not wait for that; [`shutdown`](Workers::shutdown)
/// does.
///
/// # Panics
///
/// With the panic of a worker's future, or of the closure that made it. The
/// other workers have then been ended as by a drop, and waited for. And if it
/// is polled after its end.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use greenhack::workers;
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// let mut workers = workers::Builder::new().threads(2).run_each(|_| async {
///     std::future::pending::<()>().await;
/// })?;
/// let ended = tokio::time::timeout(Duration::from_millis(1), &mut workers);
/// assert!(ended.await.is_err());
/// workers.shutdown(Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[must_use = "the workers end when this is dropped"]
pub struct Workers<T> {
    shared: Arc<Shared<T>>,
    ended: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

struct Shared<T> {
    staff: Staff,
    /// Whether the futures are to be dropped.
    closed: watch::Sender<bool>,
    outcomes: Mutex<Vec<Option<thread::Result<T>>>>,
}

impl<T> Shared<T> {
    fn outcomes(&self) -> MutexGuard<'_, Vec<Option<thread::Result<T>>>> {
        // Nothing in here panics while it holds the lock.
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the workers' futures have returned, or a panic of one of them.
    fn take_outputs(&self) -> thread::Result<Vec<T>> {
        // Their places stay, for a worker that was given up and goes on later.
        let outcomes: Vec<_> = self.outcomes().iter_mut().map(Option::take).collect();
        let (mut outputs, panicked) = (Vec::with_capacity(outcomes.len()), Cell::new(None));
        // One that was ended because of a panic of another has none.
        for outcome in outcomes.into_iter().flatten() {
            match outcome {
                Ok(output) => outputs.push(output),
                Err(payload) => keep_first(&panicked, payload),
            }
        }
        panicked.take().map_or(Ok(outputs), Err)
    }

    fn close(&self) {
        self.closed.send_replace(true);
    }
}

impl<T> Workers<T> {
    /// Drops the workers' futures, cancels all their runs, and waits until
    /// their threads have ended.
    ///
    /// Destructors may await until `limit` is over; what has not ended then is
    /// leaked and reported. To let the futures come to an end by themselves,
    /// tell them so by means of your own, and await the workers instead: for a
    /// time, with `tokio::time::timeout(limit, &mut workers)`, and then call this.
    ///
    /// # Cancel safety
    ///
    /// The workers end even if the future is dropped; it only waits.
    ///
    /// # Panics
    ///
    /// With the panic of a worker's future, if one has panicked.
    ///
    /// # Examples
    ///
    /// See [`Workers`].
    pub async fn shutdown(self, limit: Duration) {
        self.shared.staff.set_limit(limit);
        self.shared.close();
        self.shared.staff.end_within(limit).await;
        if let Err(payload) = self.shared.take_outputs() {
            resume_unwind(payload);
        }
    }
}

impl<T> Future for Workers<T> {
    type Output = Vec<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<T>> {
        ready!(self.ended.as_mut().poll(cx));
        // To be polled again is for `async` code to refuse: it panics.
        match self.shared.take_outputs() {
            Ok(outputs) => Poll::Ready(outputs),
            Err(payload) => resume_unwind(payload),
        }
    }
}

impl<T> Drop for Workers<T> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<T> fmt::Debug for Workers<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

/// The life of a worker.
fn work<F, Fut>(shared: &Arc<Shared<Fut::Output>>, index: usize, make: F, started: Started)
where
    F: FnOnce(Worker) -> Fut,
    Fut: Future,
{
    let _end = shared.staff.arrive();
    let runtime = match runtime(|| (), || ()) {
        Ok(runtime) => runtime,
        Err(error) => return started.tell(Err(error)),
    };
    drive(&shared.staff, runtime, async {
        let made = catch_unwind(AssertUnwindSafe(|| make(Worker { index })));
        started.tell(Ok(()));
        let outcome = match made {
            Ok(future) => run(future, shared.closed.subscribe()).await,
            Err(payload) => Some(Err(payload)),
        };
        if matches!(outcome, Some(Err(_))) {
            shared.close();
        }
        shared.outcomes()[index] = outcome;
    });
}

/// Drives a worker's future to its end, or until it is to be dropped.
async fn run<Fut: Future>(
    future: Fut,
    mut closed: watch::Receiver<bool>,
) -> Option<thread::Result<Fut::Output>> {
    let mut future = Box::pin(future);
    let mut closed = Box::pin(async move {
        // If the sender is gone, so is whoever would await an output.
        let _ = closed.wait_for(|closed| *closed).await;
    });
    let outcome = poll_fn(|cx| {
        if closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Some(Ok(output))),
            Err(payload) => Poll::Ready(Some(Err(payload))),
        }
    })
    .await;
    // Here, on this thread, while its runtime can still drive what cleans up.
    match (outcome, catch_unwind(AssertUnwindSafe(|| drop(future)))) {
        (outcome, Ok(())) => outcome,
        (Some(Err(first)), Err(second)) => {
            discard(second);
            Some(Err(first))
        }
        (_, Err(payload)) => Some(Err(payload)),
    }
}
