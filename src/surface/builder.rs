//! The settings of a run.
#![forbid(unsafe_code)]

use std::any::type_name;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use tokio::task::LocalKey;

use super::local_run::LocalRun;
use super::run::{Key, Run};
use crate::memory::pool;

/// How long the cleanup of a cancelled run may await, unless it says otherwise.
pub(crate) const DEFAULT_BUDGET: Duration = Duration::from_secs(10);

/// Returns a [`Builder`], to start a run with other than the default settings.
///
/// # Examples
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let sum = greenhack::builder()
///     .name("sum")
///     .stack_size(256 * 1024)
///     .run_sync(|| 1 + 1)
///     .await;
/// assert_eq!(sum, 2);
/// # });
/// ```
pub fn builder() -> Builder {
    Builder::default()
}

/// The settings of a run, made by [`builder`].
///
/// What a run has on its thread needs no setting: the code itself gives it a
/// thread-local context, with [`with_ambient`](crate::with_ambient).
///
/// # Examples
///
/// The settings of all runs that print, in one place:
///
/// ```
/// use std::time::Duration;
///
/// fn printing(name: &'static str) -> greenhack::Builder {
///     greenhack::builder()
///         .name(name)
///         .stack_size(4 << 20)
///         .cleanup_budget(Duration::from_secs(60))
/// }
///
/// # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
/// let menu = printing("menu").run_sync(|| "soup, rice".to_owned());
/// let bill = printing("bill").run_sync(|| [4, 3].iter().sum::<u32>());
/// assert_eq!((menu.await.len(), bill.await), (10, 7));
/// # });
/// ```
#[derive(Default)]
#[must_use = "a builder does nothing until `run_sync` or `run_sync_local` is called"]
pub struct Builder {
    name: Option<Cow<'static, str>>,
    stack_size: Option<usize>,
    settings: Option<Box<Settings>>,
}

impl Builder {
    fn settings(&mut self) -> &mut Settings {
        self.settings.get_or_insert_default()
    }

    /// Sets the name that events and messages call the run by.
    ///
    /// The default is the type name of its closure, which tells the function
    /// that it is written in.
    ///
    /// # Examples
    ///
    /// ```
    /// let builder = greenhack::builder().name("orders");
    /// assert!(format!("{builder:?}").contains("orders"));
    /// ```
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the size of the run's stack, in bytes. The default is 1 MiB.
    ///
    /// Memory is committed page by page when it is first used, so an ample size
    /// costs address space, and tables of the processor: 2 KiB for a suspended run
    /// with 1 MiB, 0.2 KiB with 64 KiB. The sizes are 64 KiB, 256 KiB and 1 MiB, to
    /// which others are rounded up, and whatever is larger. A run that overruns
    /// its stack hits a guard, which ends the process, as on a thread's stack.
    ///
    /// # Platform-specific behavior
    ///
    /// On Linux stacks are cut from few large mappings, with guards that need no
    /// mapping of their own since 6.13; before, guards are limited to a quarter of
    /// `vm.max_map_count`. Elsewhere each stack is a mapping. Where there are no
    /// more, the run panics and says so.
    ///
    /// On Linux an overflow is explained on standard error, with the run's name and the
    /// size of its stack. For that greenhack has a handler of `SIGSEGV` from the first
    /// run on, which hands all faults on to the handler that was there before.
    ///
    /// # Examples
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// // 4 MiB on the stack, which the default does not hold.
    /// fn hungry() -> u8 {
    ///     let bytes = std::hint::black_box([1_u8; 4 << 20]);
    ///     bytes[bytes.len() / 2]
    /// }
    /// let run = greenhack::builder().stack_size(16 << 20).run_sync_local(hungry);
    /// assert_eq!(run.await, 1);
    /// # });
    /// ```
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Sets how long destructors and [shielded](crate::shield) code of the run
    /// may go on awaiting once it is cancelled. The default is 10 seconds.
    ///
    /// When it is over, [`await_or_cancelled`](crate::await_or_cancelled) and
    /// [`await_in_drop`](crate::await_in_drop) fail, so that what remains can
    /// end. A plain [`await_sync`](crate::await_sync) in a destructor that runs
    /// because of an unwind can't fail in Rust; such a run is leaked.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::future::pending;
    /// use std::time::Duration;
    ///
    /// use greenhack::{await_in_drop, await_sync, builder};
    /// use tokio::sync::oneshot;
    /// use tokio::time::{Instant, timeout};
    ///
    /// /// Says goodbye to a peer that may have gone.
    /// struct Session(Option<oneshot::Sender<bool>>);
    ///
    /// impl Drop for Session {
    ///     fn drop(&mut self) {
    ///         let said = await_in_drop(pending::<()>()).is_some();
    ///         self.0.take().unwrap().send(said).unwrap();
    ///     }
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
    /// let start = Instant::now();
    /// let (tell, told) = oneshot::channel();
    /// let run = builder()
    ///     .cleanup_budget(Duration::from_secs(2))
    ///     .run_sync(|| {
    ///         let _session = Session(Some(tell));
    ///         await_sync(pending::<()>());
    ///     });
    /// assert!(timeout(Duration::from_secs(1), run).await.is_err());
    /// // It has given up when its budget was over.
    /// assert_eq!(told.await, Ok(false));
    /// assert_eq!(start.elapsed().as_secs(), 3);
    /// # });
    /// ```
    pub fn cleanup_budget(mut self, budget: Duration) -> Self {
        self.settings().cleanup_budget = budget;
        self
    }

    /// Sets whether a run on a worker sees the caller's runtime as the current
    /// one. The default is `false`: the worker's own.
    ///
    /// Where [`run_sync`](Self::run_sync) hands the run to a worker, sockets,
    /// timers and tasks that the run makes belong to the worker's runtime: they
    /// are driven by the thread that waits for them. With `true` the caller's
    /// runtime is entered around each poll, so that what the run spawns goes
    /// there and outlives the workers.
    ///
    /// That runtime must be there until the run has ended, with its cleanup: who awaits
    /// its timers when it is gone panics, and a panic of a destructor in an unwind ends
    /// the process. So shut the workers down before it, or await in destructors with
    /// [`await_in_drop`](crate::await_in_drop).
    ///
    /// # Examples
    ///
    /// ```
    /// # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
    /// use tokio::runtime::Handle;
    ///
    /// let run = greenhack::builder()
    ///     .caller_runtime(true)
    ///     .run_sync(|| Handle::current().id());
    /// assert_eq!(run.await, Handle::current().id());
    /// # });
    /// ```
    pub fn caller_runtime(mut self, enter: bool) -> Self {
        self.settings().caller_runtime = enter;
        self
    }

    /// Carries the value of a [`tokio::task_local!`] key to the worker.
    ///
    /// The value is cloned when the run starts; where the key has no value, it
    /// has none in the run either. Where the run stays in the caller's task,
    /// it sees all its task-locals anyway.
    ///
    /// # Examples
    ///
    /// ```
    /// tokio::task_local! {
    ///     static REQUEST: u64;
    /// }
    ///
    /// # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
    /// let run = greenhack::builder().carry(&REQUEST).run_sync(|| REQUEST.get());
    /// assert_eq!(REQUEST.scope(7, run).await, 7);
    /// # });
    /// ```
    pub fn carry<T>(mut self, key: &'static LocalKey<T>) -> Self
    where
        T: Clone + Send + 'static,
    {
        self.settings().carried.push(Box::new(key));
        self
    }

    /// Runs `f` as [`run_sync`](crate::run_sync) does, with these settings.
    ///
    /// # Examples
    ///
    /// See [`Builder`].
    pub fn run_sync<F, T>(self, f: F) -> Run<F, T>
    where
        F: FnOnce() -> T + Send + 'static,
        // The compiler quotes the line of the bound, at an entry too.
        T: Send + 'static, // or write `run_sync_local`, `#[greenhack::entry(local)]`
    {
        Run::new(self.config::<F>(), f)
    }

    /// Runs `f` as [`run_sync_local`](crate::run_sync_local) does, with these
    /// settings.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    ///
    /// use greenhack::builder;
    /// use tokio::task::{spawn_local, yield_now};
    ///
    /// # tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
    /// let menu = Rc::new(["soup", "rice"]);
    /// let orders: Vec<_> = (0..100)
    ///     .map(|n| {
    ///         let menu = menu.clone();
    ///         // There are many, and they need little.
    ///         let run = builder().stack_size(64 * 1024).run_sync_local(move || {
    ///             greenhack::await_sync(yield_now());
    ///             menu[n % 2]
    ///         });
    ///         spawn_local(run)
    ///     })
    ///     .collect();
    /// let mut soups = 0;
    /// for order in orders {
    ///     soups += usize::from(order.await.unwrap() == "soup");
    /// }
    /// assert_eq!(soups, 50);
    /// # });
    /// ```
    pub fn run_sync_local<F, T>(self, f: F) -> LocalRun<F, T>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        LocalRun::new(self.config::<F>(), f)
    }

    fn config<F>(self) -> Config {
        Config {
            name: self.name.unwrap_or(Cow::Borrowed(type_name::<F>())),
            stack_size: self.stack_size.unwrap_or(pool::DEFAULT_SIZE),
            settings: self.settings,
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .field("stack_size", &self.stack_size)
            .field("settings", &self.settings)
            .finish()
    }
}

/// What one run is told. It is small, because it is moved a lot.
pub(crate) struct Config {
    pub(crate) name: Cow<'static, str>,
    pub(crate) stack_size: usize,
    /// `None` is the default.
    pub(crate) settings: Option<Box<Settings>>,
}

/// What most runs need not be told.
pub(crate) struct Settings {
    pub(crate) cleanup_budget: Duration,
    pub(crate) caller_runtime: bool,
    pub(crate) carried: Vec<Box<dyn Key>>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            cleanup_budget: DEFAULT_BUDGET,
            caller_runtime: false,
            carried: Vec::new(),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("cleanup_budget", &self.cleanup_budget)
            .field("caller_runtime", &self.caller_runtime)
            .finish_non_exhaustive()
    }
}
