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
//!
//! A service that wants no hop brings its async code to workers of its own,
//! see [`Builder::run_each`].
//!
//! # Examples
//!
//! From the beginning of a `main` to its end:
//!
//! ```
//! use std::io;
//! use std::time::Duration;
//!
//! use greenhack::{await_sync, run_sync, workers};
//!
//! fn serve() -> String {
//!     await_sync(tokio::task::yield_now());
//!     std::thread::current().name().unwrap_or_default().to_owned()
//! }
//!
//! fn main() -> io::Result<()> {
//!     workers::Builder::new().threads(2).thread_name("run").start()?;
//!
//!     let runtime = tokio::runtime::Runtime::new()?;
//!     let thread = runtime.block_on(async { run_sync(serve).await });
//!     assert!(thread.starts_with("run-"));
//!     assert_eq!(workers::metrics().started(), 1);
//!
//!     // With the runtime the requests end, then what is left of their runs.
//!     drop(runtime);
//!     await_sync(workers::shutdown(Duration::from_secs(10)));
//!     assert_eq!(workers::metrics().live(), 0);
//!     Ok(())
//! }
//! ```
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use futures::future::select;
use tokio::runtime::{Builder as RuntimeBuilder, Handle, LocalOptions, LocalRuntime};
use tokio::sync::{Notify, watch};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::metrics::Tally;
use super::queue::{Pulled, Queue};
use super::{dump, outside};
use crate::engine::residents;
use crate::ground::ambient::ThreadToken;
use crate::ground::error::discard;
use crate::ground::{report, sys};
use crate::memory::pool;

pub use super::metrics::Metrics;
pub use super::pinned::{Worker, Workers};

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
    core_affinity: bool,
}

/// More than any machine has a use for.
const MOST_THREADS: usize = u16::MAX as usize;

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
            core_affinity: false,
        }
    }

    /// Sets the number of threads.
    ///
    /// # Panics
    ///
    /// If it is 0, or more than 65,535.
    #[track_caller]
    pub fn threads(mut self, count: usize) -> Self {
        assert!(
            count > 0,
            "there must be at least one worker; write `.threads(1)`"
        );
        assert!(
            count <= MOST_THREADS,
            "there can't be {count} workers; set as many as the machine has cores, which is the \
             default"
        );
        self.threads = Some(count);
        self
    }

    /// Sets what the threads are called; each name gets a `-` and a number.
    ///
    /// # Panics
    ///
    /// If it has a zero byte, which no thread of the system can be called.
    #[track_caller]
    pub fn thread_name(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        assert!(
            !name.contains('\0'),
            "the name of a thread can't have a zero byte; leave it out of {name:?}"
        );
        self.thread_name = name;
        self
    }

    /// Sets whether each worker is kept on one core; otherwise it is not.
    ///
    /// The cores are those that the calling thread may use, as its container or
    /// `taskset` allows, one after the other; if there are more workers than
    /// cores, it begins anew. That keeps caches warm where the process has the
    /// cores for itself. Where it shares them, a worker waits for its core while
    /// others are idle: measure before you keep it. Threads that a worker starts,
    /// such as tokio's for `spawn_blocking`, share its core.
    ///
    /// # Platform-specific behavior
    ///
    /// Elsewhere than on Linux it does nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let workers = greenhack::workers::Builder::new()
    ///     .threads(2)
    ///     .core_affinity(true)
    ///     .run_each(|_worker| async {
    ///         // As many as this thread may use.
    ///         std::thread::available_parallelism().map(usize::from)
    ///     })?;
    /// for cores in greenhack::await_sync(workers) {
    ///     # #[cfg(target_os = "linux")]
    ///     assert_eq!(cores?, 1);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn core_affinity(mut self, on: bool) -> Self {
        self.core_affinity = on;
        self
    }

    pub(super) fn count(&self) -> usize {
        match self.threads {
            Some(threads) => threads,
            None => thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Starts the workers of this process.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if they have been started, by this or by a run that
    /// needed them: call it before. Otherwise the system's, if it gives no
    /// thread or no runtime.
    ///
    /// That is final, so that no run gets workers that are not as they were set:
    /// `start` fails from then on, with `Other`, and a run that needs workers panics.
    /// Runs in place need none.
    ///
    /// # Examples
    ///
    /// At the beginning of `main`:
    ///
    /// ```
    /// use std::io;
    ///
    /// use greenhack::{run_sync, workers};
    ///
    /// fn main() -> io::Result<()> {
    ///     workers::Builder::new().threads(2).start()?;
    ///     // Too late for others:
    ///     let again = workers::Builder::new().threads(4).start();
    ///     assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    ///
    ///     tokio::runtime::Runtime::new()?.block_on(async {
    ///         assert_eq!(run_sync(|| "served").await, "served");
    ///     });
    ///     assert_eq!(workers::metrics().live_per_worker().len(), 2);
    ///     Ok(())
    /// }
    /// ```
    pub fn start(self) -> io::Result<()> {
        let mut result = None;
        let pool = POOL.get_or_init(|| match Pool::start(&self) {
            Ok(pool) => {
                result = Some(Ok(()));
                pool
            }
            Err(error) => {
                result = Some(Err(error));
                Pool::not_started()
            }
        });
        result.unwrap_or_else(|| Err(pool.is_there_already()))
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
    pool.close(limit);
    pool.shared.staff.end_within(limit).await;
}

/// Tells how many runs there are on the workers of this process.
///
/// For a log or a gauge, and to refuse work when too much of it waits: a run
/// that has been made can't be refused any more. Runs in place are not among
/// them; they are part of their tasks.
///
/// It starts no workers. Without them, all numbers are 0.
///
/// # Examples
///
/// ```
/// use greenhack::{await_sync, run_sync, workers};
/// use tokio::sync::oneshot;
///
/// # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
/// assert_eq!(workers::metrics().started(), 0);
/// let (begun, wait) = oneshot::channel();
/// let (end, ended) = oneshot::channel::<()>();
/// let run = tokio::spawn(run_sync(move || {
///     begun.send(()).unwrap();
///     await_sync(ended).unwrap();
/// }));
/// wait.await.unwrap();
/// let metrics = workers::metrics();
/// assert_eq!((metrics.queued(), metrics.live(), metrics.started()), (0, 1, 1));
/// end.send(()).unwrap();
/// run.await.unwrap();
/// # });
/// ```
pub fn metrics() -> Metrics {
    let Some(pool) = POOL.get() else {
        return Metrics::default();
    };
    let tallies = pool.shared.tallies();
    Metrics {
        queued: pool.shared.queue.len(),
        live: tallies.iter().map(|tally| tally.live()).collect(),
        started: tallies.iter().map(|tally| tally.started()).sum(),
    }
}

/// A run that has not started.
pub(crate) trait Job: Send + Sync {
    /// Starts it on this worker, unless it was cancelled.
    fn start(self: Arc<Self>);
}

/// Why the workers take no jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// They have been shut down.
    ShutDown,
    /// [`Builder::start`] has failed.
    NotStarted,
}

/// Gives a job to the workers. It must be [announced](announce).
pub(crate) fn push(job: Arc<dyn Job>) -> Result<(), Refusal> {
    let pool = POOL.get_or_init(|| match Pool::start(&Builder::new()) {
        Ok(pool) => pool,
        Err(error) => panic!("the system gives no threads for the workers: {error}"),
    });
    pool.shared.queue.push(job).map_err(|_| pool.refusal)
}

/// Wakes workers for the jobs that were pushed.
pub(crate) fn announce() {
    if let Some(pool) = POOL.get() {
        pool.shared.queue.announce();
    }
}

static POOL: OnceLock<Pool> = OnceLock::new();

struct Pool {
    shared: Arc<Shared>,
    /// What it means that the queue is closed.
    refusal: Refusal,
}

struct Shared {
    queue: Queue<Arc<dyn Job>>,
    staff: Staff,
    /// In the order of the workers, which start one after the other.
    tallies: Mutex<Vec<Arc<Tally>>>,
}

impl Shared {
    fn tallies(&self) -> MutexGuard<'_, Vec<Arc<Tally>>> {
        // Nothing in here panics while it holds the lock.
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    fn new(threads: usize) -> Pool {
        Pool {
            shared: Arc::new(Shared {
                queue: Queue::new(threads),
                staff: Staff::new(Duration::ZERO),
                tallies: Mutex::default(),
            }),
            refusal: Refusal::ShutDown,
        }
    }

    /// The error of a second start.
    fn is_there_already(&self) -> io::Error {
        match self.refusal {
            Refusal::ShutDown => io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the workers have been started already; call `start` before the first run",
            ),
            Refusal::NotStarted => io::Error::other(
                "the workers could not be started, and are not started again; \
                 end the process when `start` fails",
            ),
        }
    }

    /// A pool that accepts nothing, because there are no workers.
    fn not_started() -> Pool {
        let pool = Pool {
            refusal: Refusal::NotStarted,
            ..Pool::new(0)
        };
        pool.shared.queue.close();
        pool
    }

    fn start(builder: &Builder) -> io::Result<Pool> {
        let threads = builder.count();
        let pool = Pool::new(threads);
        let result = hire(builder, threads, |index| {
            let shared = pool.shared.clone();
            move |started: Started| work(&shared, index, started)
        });
        if result.is_err() {
            pool.shared.queue.close();
        }
        result.map(|()| pool)
    }

    fn close(&self, limit: Duration) {
        self.shared.staff.set_limit(limit);
        self.shared.queue.close();
    }
}

/// The life of a worker of the pool.
fn work(shared: &Arc<Shared>, index: usize, started: Started) {
    let _end = shared.staff.arrive();
    let (parking, unparking) = (shared.clone(), shared.clone());
    let park = move || parking.queue.park(index);
    let unpark = move || unparking.queue.unpark(index);
    let runtime = match runtime(park, unpark) {
        Ok(runtime) => runtime,
        Err(error) => return started.tell(Err(error)),
    };
    shared.tallies().push(Tally::of_this_thread());
    started.tell(Ok(()));
    drive(&shared.staff, runtime, async {
        let mut has_started = false;
        loop {
            let queue = &shared.queue;
            let pull = poll_fn(|cx| {
                // At the second poll, what was started has run.
                let has_started = mem::take(&mut has_started);
                queue.poll_pull(index, STARTS_PER_TICK, has_started, cx)
            });
            match pull.await {
                Pulled::Jobs(jobs) => jobs.into_iter().for_each(|job| job.start()),
                Pulled::Later => {
                    yield_now().await;
                    continue;
                }
                Pulled::Closed => break,
            }
            has_started = true;
        }
    });
}

/// What workers share with those who wait for their end.
pub(super) struct Staff {
    limit: watch::Sender<Duration>,
    /// How many workers there are.
    running: watch::Sender<usize>,
}

impl Staff {
    pub(super) fn new(limit: Duration) -> Staff {
        Staff {
            limit: watch::Sender::new(limit),
            running: watch::Sender::new(0),
        }
    }

    /// Notes that the thread of a worker lives, until that is dropped.
    pub(super) fn arrive(&self) -> impl Sized + use<'_> {
        self.running.send_modify(|running| *running += 1);
        AtEnd(self)
    }

    /// Sets how long what is left on a worker that closes may take to end, from then on
    /// where that has begun.
    pub(super) fn set_limit(&self, limit: Duration) {
        self.limit.send_replace(limit);
    }

    /// Waits until the time is over that what is left may take to end.
    async fn limit_is_over(&self) {
        let mut limit = self.limit.subscribe();
        loop {
            let current = *limit.borrow_and_update();
            if timeout(current, limit.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Waits until no worker is left.
    pub(super) fn end(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        let mut running = self.running.subscribe();
        async move {
            // If the sender is gone, so are the workers.
            let _ = running.wait_for(|running| *running == 0).await;
        }
    }

    /// Waits until no worker is left, or one has not ended in time.
    pub(super) async fn end_within(&self, limit: Duration) {
        // On a runtime that has a timer, and is not that of the caller. A timer belongs
        // to the runtime in which it is made.
        let ended = self.end();
        let ended = async move { timeout(limit.saturating_add(GRACE), ended).await };
        let ended = outside::process_runtime().spawn(ended);
        if !matches!(ended.await, Ok(Ok(()))) {
            report::warn(
                "a worker has not ended, because a run blocks it",
                "let blocking work run in `tokio::task::spawn_blocking`",
            );
        }
    }
}

/// How long after the limit a worker may need to end.
const GRACE: Duration = Duration::from_secs(1);

/// By which a worker tells how it has begun.
pub(super) struct Started(mpsc::Sender<io::Result<()>>);

impl Started {
    pub(super) fn tell(self, result: io::Result<()>) {
        // Nobody listens if the one who starts the workers has panicked.
        let _ = self.0.send(result);
    }
}

/// Starts threads, each with a life of its own, and waits until each tells that
/// it has begun. Ends with the first that can't.
pub(super) fn hire<F>(
    builder: &Builder,
    threads: usize,
    life: impl Fn(usize) -> F,
) -> io::Result<()>
where
    F: FnOnce(Started) + Send + 'static,
{
    let cores = match builder.core_affinity {
        true => sys::allowed_cores()?,
        false => Vec::new(),
    };
    let mut cores = cores.into_iter().cycle();
    (0..threads).try_for_each(|index| {
        let (sender, started) = mpsc::channel();
        let life = life(index);
        let core = cores.next();
        thread::Builder::new()
            .name(format!("{}-{index}", builder.thread_name))
            .spawn(move || match core.map_or(Ok(()), sys::stay_on) {
                Ok(()) => life(Started(sender)),
                Err(error) => Started(sender).tell(Err(error)),
            })?;
        started
            .recv()
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    })
}

/// Makes this thread a worker until `life` ends and its runs have.
pub(super) fn drive(staff: &Staff, runtime: LocalRuntime, life: impl Future<Output = ()>) {
    IS_WORKER.set(true);
    HANDLE.set(Some(runtime.handle().clone()));
    let door = dump::open(runtime.handle());
    runtime.block_on(async {
        life.await;
        close();
        // What is left then is leaked when the runtime drops it.
        select(pin!(all_have_ended()), pin!(staff.limit_is_over())).await;
    });
    drop(door);
    runtime.shutdown_background();
    HANDLE.set(None);
}

/// The end of a worker, however it comes about.
struct AtEnd<'a>(&'a Staff);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        // Whoever waits for it may start others, with stacks of their own.
        pool::end_all();
        self.0.running.send_modify(|running| *running -= 1);
        if residents::suspended() == 0 {
            return;
        }
        // A subscriber of tracing may panic in here.
        let reported = catch_unwind(|| {
            report::warn(
                "a worker has leaked runs, and stays for what they may have lent",
                "see the events of the leaks",
            );
        });
        reported.unwrap_or_else(discard);
        loop {
            thread::park();
        }
    }
}

/// The runtime of a worker, which calls these when its thread parks and after.
pub(super) fn runtime(
    park: impl Fn() + Send + Sync + 'static,
    unpark: impl Fn() + Send + Sync + 'static,
) -> io::Result<LocalRuntime> {
    RuntimeBuilder::new_current_thread()
        .enable_all()
        .on_thread_park(park)
        .on_thread_unpark(unpark)
        .build_local(LocalOptions::default())
}

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
    static HANDLE: RefCell<Option<Handle>> = const { RefCell::new(None) };
    static RESIDENTS: RefCell<Residents> = const {
        RefCell::new(Residents {
            wakers: Vec::new(),
            free: Vec::new(),
        })
    };
    static CLOSING: Cell<bool> = const { Cell::new(false) };
    static CHANGED: Rc<Notify> = Rc::default();
}

/// The runtime of the worker that this thread is, if it is one.
pub(crate) fn handle() -> Option<Handle> {
    HANDLE.try_with(|handle| handle.borrow().clone()).ok()?
}

/// Whether the runs of this worker are to end.
#[inline]
pub(crate) fn is_closing() -> bool {
    CLOSING.get()
}

/// Tells every run of this worker, and all that come, to end.
fn close() {
    CLOSING.set(true);
    // Whatever the wakers do, they do it outside of the borrow, and each must be
    // woken.
    for waker in RESIDENTS.with_borrow_mut(Residents::take_wakers) {
        catch_unwind(AssertUnwindSafe(|| waker.wake())).unwrap_or_else(discard);
    }
}

/// Waits until every run on this worker has ended that will.
async fn all_have_ended() {
    let changed = CHANGED.with(Rc::clone);
    while residents::some_will_end() {
        changed.notified().await;
    }
}

/// The runs that are suspended on a worker.
struct Residents {
    /// The waker of each, at its index. `None` where it has been taken, and at the
    /// indices that are free.
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Residents {
    #[inline]
    fn add(&mut self, waker: Waker) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.wakers[index] = Some(waker);
                index
            }
            None => {
                self.wakers.push(Some(waker));
                self.wakers.len() - 1
            }
        }
    }

    fn remove(&mut self, index: usize) -> Option<Waker> {
        self.free.push(index);
        self.wakers[index].take()
    }

    fn take_wakers(&mut self) -> Vec<Waker> {
        self.wakers.iter_mut().filter_map(Option::take).collect()
    }
}

/// A run that is suspended on this worker. It is woken when the worker closes.
pub(crate) struct Resident {
    index: usize,
    thread: ThreadToken,
}

impl Resident {
    /// Keeps the entry of a run up to date that waits with `waker`, if this is
    /// a worker.
    #[inline(always)]
    pub(crate) fn update(entry: &Cell<Option<Resident>>, waker: &Waker) {
        if IS_WORKER.get() {
            Resident::update_here(entry, waker);
        }
    }

    fn update_here(entry: &Cell<Option<Resident>>, waker: &Waker) {
        match entry.take() {
            Some(resident) if resident.is_woken_by(waker) => entry.set(Some(resident)),
            last => {
                entry.set(Some(Resident::enter(waker)));
                drop(last);
            }
        }
    }

    fn is_woken_by(&self, waker: &Waker) -> bool {
        RESIDENTS.with_borrow(|residents| {
            let known = residents.wakers[self.index].as_ref();
            known.is_some_and(|known| known.will_wake(waker))
        })
    }

    fn enter(waker: &Waker) -> Resident {
        // Whatever the clone of a waker does, it does it before the borrow.
        let waker = waker.clone();
        let add = |residents: &RefCell<Residents>| residents.borrow_mut().add(waker);
        // Unlike `with`, it is inlined.
        let index = RESIDENTS.try_with(add);
        Resident {
            index: index.expect("no run is polled while its thread is ending"),
            thread: ThreadToken::current(),
        }
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        if !self.thread.is_this_thread() {
            // A run that has ended may be dropped anywhere. Its waker stays.
            return;
        }
        let remove = |residents: &RefCell<Residents>| residents.borrow_mut().remove(self.index);
        let removed = RESIDENTS.try_with(remove);
        // It may be the last reference to its task.
        drop(removed);
        drop(Changed);
    }
}

/// Lets a worker that closes look again, when it is dropped.
pub(crate) struct Changed;

impl Drop for Changed {
    fn drop(&mut self) {
        if is_closing() {
            let _ = CHANGED.try_with(|changed| changed.notify_one());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_listed(resident: &Resident) -> bool {
        RESIDENTS.with_borrow(|residents| residents.wakers[resident.index].is_some())
    }

    #[test]
    fn a_resident_that_is_dropped_elsewhere_leaves_the_others_alone() {
        let entry = || Resident::enter(Waker::noop());
        let ours = entry();
        thread::spawn(move || {
            let theirs = entry();
            assert_eq!(theirs.index, ours.index);
            drop(ours);
            assert!(is_listed(&theirs));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_place_of_a_resident_that_has_left_is_taken_again() {
        let entry = || Resident::enter(Waker::noop());
        let (first, second) = (entry(), entry());
        let (left, stays) = (first.index, second.index);
        drop(first);
        assert_eq!(entry().index, left);
        assert_ne!(stays, left);
        let wakers = RESIDENTS.with_borrow_mut(Residents::take_wakers);
        assert_eq!(wakers.len(), 1);
        // It is still there, though its waker is not.
        assert!(!is_listed(&second));
        assert_ne!(entry().index, stays);
    }
}
