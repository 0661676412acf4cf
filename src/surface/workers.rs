//! The threads on which runs of a multi-thread runtime live.
//!
//! A stack can't move between threads, but the tasks of a multi-thread runtime
//! do. So [`run_sync`](crate::run_sync) and [`#[entry]`](macro@crate::entry)
//! hand the plain code there to a worker: a thread that drives a tokio
//! `LocalRuntime` of its own. Runs wait in one queue until a worker is free to
//! start them; from then on they stay where they are.
//!
//! The workers start when the first run needs them, one for each core. A
//! service that wants others calls [`Builder::start`] first.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use pin_project::{pin_project, pinned_drop};
use tokio::runtime::{Builder as RuntimeBuilder, LocalOptions, LocalRuntime};
use tokio::sync::mpsc;
use tokio::task::{Id, spawn_local, yield_now};
use tokio::time::timeout;

use super::queue::{Pulled, Queue};
use super::reaper;

/// How many runs a worker starts before it looks after those it has.
const STARTS_PER_TICK: usize = 4;

/// The settings of the workers.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// greenhack::workers::Builder::new()
///     .threads(2)
///     .thread_name("web")
///     .start()?;
///
/// # tokio::runtime::Builder::new_multi_thread().build()?.block_on(async {
/// let thread = greenhack::run_sync(|| {
///     std::thread::current().name().map(str::to_owned)
/// });
/// assert!(thread.await.unwrap().starts_with("web-"));
/// # });
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "the settings do nothing until `start` is called"]
pub struct Builder {
    threads: Option<usize>,
    thread_name: String,
}

impl Default for Builder {
    fn default() -> Self {
        Builder::new()
    }
}

impl Builder {
    /// Returns the default settings: a thread for each core.
    pub fn new() -> Self {
        Builder {
            threads: None,
            thread_name: "greenhack".to_owned(),
        }
    }

    /// Sets the number of threads.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[track_caller]
    pub fn threads(mut self, count: usize) -> Self {
        assert!(
            count > 0,
            "there must be at least one worker; write `.threads(1)`"
        );
        self.threads = Some(count);
        self
    }

    /// Sets what the threads are called; each name gets a `-` and a number.
    pub fn thread_name(mut self, name: impl Into<String>) -> Self {
        self.thread_name = name.into();
        self
    }

    /// Starts the workers of this process.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if they have been started, by this or by a run that
    /// needed them: call it before. Otherwise the system's, if it gives no
    /// thread or no runtime.
    pub fn start(self) -> io::Result<()> {
        let mut result = Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the workers have been started already; call `start` before the first run",
        ));
        POOL.get_or_init(|| match Pool::start(&self) {
            Ok(pool) => {
                result = Ok(());
                pool
            }
            Err(error) => {
                result = Err(error);
                Pool::closed()
            }
        });
        result
    }
}

/// Cancels all runs on the workers, and ends their threads.
///
/// Runs that are suspended are cancelled. Their destructors may await until
/// `limit` is over; what has not ended then is leaked and reported. The workers
/// don't start again: a run that needs them afterwards panics.
///
/// Call it when what uses the workers has ended, so last in `main`. A process
/// that just ends does not wait for runs that are still unwinding. A task that
/// awaits a run at this moment panics with [`Cancelled`](crate::Cancelled) as
/// payload, without a message.
///
/// Does nothing if the workers were never started.
///
/// # Cancel safety
///
/// The workers end even if the future is dropped; it only waits.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
/// assert_eq!(greenhack::run_sync(|| 1).await, 1);
/// greenhack::workers::shutdown(Duration::from_secs(10)).await;
/// let late = tokio::spawn(greenhack::run_sync(|| 1));
/// assert!(late.await.unwrap_err().is_panic());
/// # });
/// ```
pub async fn shutdown(limit: Duration) {
    let Some(pool) = POOL.get() else {
        return;
    };
    let ended = pool.close(limit);
    if let Some(mut ended) = ended {
        // Every worker holds a sender until it ends.
        while ended.recv().await.is_some() {}
    }
}

/// A run that has not started.
pub(crate) trait Job: Send + Sync {
    /// Starts it on this worker, unless it was cancelled.
    fn start(&self, residents: &Residents);
}

/// Gives a job to the workers, or back if they have been shut down.
pub(crate) fn push(job: Arc<dyn Job>) -> Result<(), Arc<dyn Job>> {
    let pool = POOL.get_or_init(|| match Pool::start(&Builder::new()) {
        Ok(pool) => pool,
        Err(error) => panic!("the system gives no threads for the workers: {error}"),
    });
    pool.shared.queue.push(job)
}

static POOL: OnceLock<Pool> = OnceLock::new();

struct Pool {
    shared: Arc<Shared>,
    ended: Mutex<Option<mpsc::Receiver<()>>>,
}

struct Shared {
    queue: Queue<Arc<dyn Job>>,
    limit: Mutex<Duration>,
}

impl Pool {
    fn new(threads: usize, ended: Option<mpsc::Receiver<()>>) -> Pool {
        Pool {
            shared: Arc::new(Shared {
                queue: Queue::new(threads),
                limit: Mutex::new(Duration::ZERO),
            }),
            ended: Mutex::new(ended),
        }
    }

    /// A pool that accepts nothing.
    fn closed() -> Pool {
        let pool = Pool::new(0, None);
        pool.shared.queue.close();
        pool
    }

    fn start(builder: &Builder) -> io::Result<Pool> {
        let threads = match builder.threads {
            Some(threads) => threads,
            None => thread::available_parallelism().map_or(1, usize::from),
        };
        let (sender, ended) = mpsc::channel(1);
        let pool = Pool::new(threads, Some(ended));
        for index in 0..threads {
            let shared = pool.shared.clone();
            let sender = sender.clone();
            let spawned = thread::Builder::new()
                .name(format!("{}-{index}", builder.thread_name))
                .spawn(move || {
                    work(&shared, index);
                    drop(sender);
                });
            if let Err(error) = spawned {
                pool.shared.queue.close();
                return Err(error);
            }
        }
        Ok(pool)
    }

    fn close(&self, limit: Duration) -> Option<mpsc::Receiver<()>> {
        let lock = self.ended.lock();
        let ended = lock.unwrap_or_else(PoisonError::into_inner).take();
        if ended.is_some() {
            *self.shared.limit() = limit;
            self.shared.queue.close();
        }
        ended
    }
}

impl Shared {
    fn limit(&self) -> impl std::ops::DerefMut<Target = Duration> + use<'_> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The life of a worker.
fn work(shared: &Arc<Shared>, index: usize) {
    let runtime = runtime(shared, index);
    runtime.block_on(async {
        let residents = Residents::default();
        loop {
            let pull = poll_fn(|cx| shared.queue.poll_pull(index, STARTS_PER_TICK, cx));
            let Pulled::Jobs(jobs, more) = pull.await else {
                break;
            };
            for job in jobs {
                job.start(&residents);
            }
            if more {
                yield_now().await;
            }
        }
        residents.close();
        let limit = *shared.limit();
        // What is left then is leaked when the runtime drops it.
        let _ = timeout(limit, reaper::all_done()).await;
    });
    runtime.shutdown_background();
}

fn runtime(shared: &Arc<Shared>, index: usize) -> LocalRuntime {
    let (parking, unparking) = (shared.clone(), shared.clone());
    RuntimeBuilder::new_current_thread()
        .enable_all()
        .on_thread_park(move || parking.queue.park(index))
        .on_thread_unpark(move || unparking.queue.unpark(index))
        .build_local(LocalOptions::default())
        .expect("the system gives no poll or timer for a worker")
}

thread_local! {
    static CLOSING: Cell<bool> = const { Cell::new(false) };
}

/// Whether the runs of this worker are to end.
pub(crate) fn is_closing() -> bool {
    CLOSING.get()
}

/// The tasks of the runs that live on a worker.
#[derive(Default)]
pub(crate) struct Residents {
    tasks: Rc<RefCell<HashMap<Id, Waker>>>,
}

impl Residents {
    /// Spawns the task of a run.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        spawn_local(Resident {
            task,
            tasks: self.tasks.clone(),
            id: None,
            _alive: reaper::Alive::here(),
        });
    }

    /// Tells every task, and all that come, to cancel its run.
    fn close(&self) {
        CLOSING.set(true);
        self.tasks.borrow().values().for_each(Waker::wake_by_ref);
    }
}

/// A task that is on the list from its first poll to its end.
#[pin_project(PinnedDrop)]
struct Resident<F> {
    #[pin]
    task: F,
    tasks: Rc<RefCell<HashMap<Id, Waker>>>,
    id: Option<Id>,
    _alive: reaper::Alive,
}

impl<F: Future<Output = ()>> Future for Resident<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let poll = this.task.poll(cx);
        if poll.is_pending() && this.id.is_none() {
            let id = tokio::task::id();
            *this.id = Some(id);
            this.tasks.borrow_mut().insert(id, cx.waker().clone());
        }
        poll
    }
}

#[pinned_drop]
impl<F> PinnedDrop for Resident<F> {
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        if let Some(id) = this.id {
            let waker = this.tasks.borrow_mut().remove(id);
            drop(waker);
        }
    }
}
