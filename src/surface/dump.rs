//! Where the suspended runs are.
//!
//! A service that stands still says here what its runs wait for: each with its name, the
//! line of the wait, and with the feature `backtrace` the frames of its stack. Asked for by
//! an operator, from an administrative route or a task that waits for a signal, it is worth
//! a debugger, which does not see suspended stacks.
//!
//! To look at a run changes nothing in it. Each thread is asked to look at its own, since
//! nobody else may: [`all`] waits for the workers that are busy, but not for ever, and a
//! worker that does not answer is itself an answer. While nobody asks, it costs a run its
//! place in a list, and a wait a few instructions.
//!
//! From Python's greenhack (`print_stack`), and the thread dumps of Java's Loom.
//!
//! # Examples
//!
//! ```
//! use greenhack::{await_sync, builder, dump};
//! use tokio::sync::Notify;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! static SERVED: Notify = Notify::const_new();
//!
//! let soup = builder().name("soup").run_sync(|| await_sync(SERVED.notified()));
//! let soup = tokio::spawn(soup);
//! tokio::task::yield_now().await;
//!
//! let dump = dump::this_thread();
//! assert_eq!(dump.stacks().unwrap().len(), 1);
//! // `soup` waits at src/main.rs:6:60; 1280 of 1048576 bytes of its stack are in use
//! assert!(dump.to_string().contains("`soup` waits at "));
//!
//! SERVED.notify_one();
//! soup.await.unwrap();
//! assert!(dump::this_thread().stacks().unwrap().is_empty());
//! # });
//! ```
#![forbid(unsafe_code)]

use std::fmt;
use std::panic::Location;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{sleep, timeout_at};

#[cfg(feature = "backtrace")]
use super::frames::text;
use super::outside;
use crate::engine::account::Account;
#[cfg(not(feature = "backtrace"))]
use crate::engine::account::Trace;
use crate::engine::context::{self, Kind};
use crate::engine::residents;
use crate::ground::ambient::{ThreadToken, thread_is_alive};

pub use crate::engine::account::State;

/// Lists the stacks of this thread.
///
/// In a current-thread runtime, and on a worker, these are those of its tasks. It can be
/// called anywhere but in the handler of a signal; while the locals of the thread are
/// destroyed it lists none.
///
/// # Examples
///
/// See the [module](self).
pub fn this_thread() -> Thread {
    let accounts = match thread_is_alive() {
        true => residents::accounts(),
        false => Vec::new(),
    };
    Thread {
        name: name_of_this_thread(),
        stacks: Some(accounts.into_iter().map(Stack::new).collect()),
    }
}

/// Lists the stacks of all workers, and of the thread that polls this.
///
/// The workers are those of the [process](crate::workers), of
/// [`run_each`](crate::workers::Builder::run_each), and of `greenhack::axum`. They are asked
/// at once, and have `limit` to answer. Runs on other threads with a current-thread runtime
/// are not among them: call [`this_thread`] in a task there.
///
/// # Cancel safety
///
/// What is asked is answered, and dropped.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use greenhack::{await_sync, dump, run_sync};
/// use tokio::sync::Notify;
///
/// static SERVED: Notify = Notify::const_new();
///
/// # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
/// let (waits, begun) = tokio::sync::oneshot::channel();
/// let soup = tokio::spawn(run_sync(move || {
///     waits.send(()).unwrap();
///     await_sync(SERVED.notified());
/// }));
/// begun.await.unwrap();
///
/// let dump = dump::all(Duration::from_secs(60)).await;
/// let count = |thread: &dump::Thread| thread.stacks().map_or(0, <[_]>::len);
/// assert_eq!(dump.threads().iter().map(count).sum::<usize>(), 1);
///
/// SERVED.notify_one();
/// soup.await.unwrap();
/// # });
/// ```
pub async fn all(limit: Duration) -> Dump {
    let this = ThreadToken::current();
    let others = |door: &&Door| door.thread != this;
    let asked: Vec<_> = doors().iter().filter(others).map(Door::ask).collect();
    let mut threads = vec![this_thread()];
    // On a runtime that has a timer, and is not that of the caller.
    let answers = outside::process_runtime().spawn(async move {
        // However large the limit is, this is a moment.
        let deadline = sleep(limit).deadline();
        for mut door in asked {
            match timeout_at(deadline, &mut door.answer).await {
                Ok(Ok(thread)) => threads.push(thread),
                // The worker has just ended.
                Ok(Err(_)) => {}
                Err(_) => {
                    door.answer.abort();
                    threads.push(Thread {
                        name: door.name,
                        stacks: None,
                    });
                }
            }
        }
        threads
    });
    Dump {
        threads: answers
            .await
            .expect("the runtime of the process does not end"),
    }
}

/// Lets runs that begin from now on note when their waits begin, or no longer, which is the
/// default.
///
/// It costs each wait a look at the clock.
///
/// # Examples
///
/// ```
/// use greenhack::{await_sync, dump, run_sync};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// dump::note_times(true);
/// let waits = tokio::spawn(run_sync(|| await_sync(std::future::pending::<()>())));
/// tokio::task::yield_now().await;
/// let dump = dump::this_thread();
/// assert!(dump.stacks().unwrap()[0].waited().is_some());
/// # waits.abort();
/// # });
/// ```
pub fn note_times(on: bool) {
    context::take_times(on);
}

/// The stacks of several threads, from [`all`].
///
/// Shown with `{}` it is a report of lines.
///
/// # Examples
///
/// What a service that stands still is asked first: what waits where, how many times?
///
/// ```
/// use std::collections::BTreeMap;
/// use std::time::Duration;
///
/// use greenhack::{await_sync, builder, dump};
///
/// fn waits(dump: &dump::Dump) -> BTreeMap<String, usize> {
///     let mut waits = BTreeMap::new();
///     for stack in dump.threads().iter().filter_map(dump::Thread::stacks).flatten() {
///         if let Some(location) = stack.location() {
///             *waits.entry(format!("{} at {location}", stack.name())).or_default() += 1;
///         }
///     }
///     waits
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// for _ in 0..3 {
///     let soup = builder().name("soup").run_sync(|| await_sync(std::future::pending::<()>()));
///     tokio::spawn(soup);
/// }
/// tokio::task::yield_now().await;
///
/// let dump = dump::all(Duration::from_secs(1)).await;
/// let (place, count) = waits(&dump).pop_first().unwrap();
/// assert!(place.starts_with("soup at "), "{place}");
/// assert_eq!(count, 3);
/// # });
/// ```
#[derive(Clone, Debug)]
pub struct Dump {
    threads: Vec<Thread>,
}

impl Dump {
    /// Returns the threads: first the one that has asked.
    pub fn threads(&self) -> &[Thread] {
        &self.threads
    }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.threads.iter().try_for_each(|thread| thread.fmt(f))
    }
}

/// The stacks of a thread, from [`this_thread`] or [`all`].
///
/// Shown with `{}` it is a report of lines.
///
/// # Examples
///
/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Thread {
    name: String,
    stacks: Option<Vec<Stack>>,
}

impl Thread {
    /// Returns the name of the thread; it is empty if it has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its stacks, in the order in which they were begun: those of runs, and of
    /// closures in [scopes](crate::scope).
    ///
    /// `None` if it has not answered in time: code on it blocks it, or computes.
    pub fn stacks(&self) -> Option<&[Stack]> {
        self.stacks.as_deref()
    }
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.stacks {
            None => writeln!(f, "thread `{name}` has not answered: something blocks it"),
            Some(stacks) => {
                let s = if stacks.len() == 1 { "" } else { "s" };
                writeln!(f, "thread `{name}` has {} stack{s}", stacks.len())?;
                stacks.iter().try_for_each(|stack| stack.fmt(f))
            }
        }
    }
}

/// The stack of a run, or of a closure in a [scope](crate::scope), at one moment.
///
/// Shown with `{}` it is a report of lines.
///
/// # Examples
///
/// See [`Dump`].
#[derive(Clone, Debug)]
pub struct Stack {
    account: Account,
    backtrace: OnceLock<Option<String>>,
}

impl Stack {
    pub(super) fn new(account: Account) -> Stack {
        Stack {
            account,
            backtrace: OnceLock::new(),
        }
    }

    /// Returns the [name](crate::Builder::name) of the run. A closure of a
    /// [scope](crate::scope) goes by the name of the run that it is a part of; on a plain
    /// thread it is called `a plain thread`.
    pub fn name(&self) -> &str {
        &self.account.name
    }

    /// Whether it is not a run but a closure of a [scope](crate::scope).
    pub fn is_closure(&self) -> bool {
        self.account.kind == Kind::Child
    }

    /// Returns what it is about.
    pub fn state(&self) -> State {
        self.account.state
    }

    /// Returns the line that waits, if one does: that of the `await_sync`, or of the
    /// function of this crate that was called.
    pub fn location(&self) -> Option<&'static Location<'static>> {
        self.account.location
    }

    /// Returns how long it has been in this wait, if it [notes](note_times) that.
    pub fn waited(&self) -> Option<Duration> {
        self.account.waited
    }

    /// Returns the names of the `tracing` spans that its code holds open, outermost first.
    ///
    /// That takes the feature `tracing`, and a subscriber with a registry of
    /// `tracing_subscriber`. Spans around the run are not its own.
    pub fn spans(&self) -> &[&'static str] {
        &self.account.spans
    }

    /// Returns how many bytes of it are in use, if it waits. (Code that waits on a stack of
    /// its own, as that of crates on `stacker` may, is elsewhere.)
    pub fn used(&self) -> Option<usize> {
        self.account.stack_used
    }

    /// Returns how many bytes it has in all.
    pub fn size(&self) -> usize {
        self.account.stack_size
    }

    /// Returns the frames of its code, innermost first, as lines of text, if it waits and
    /// the feature `backtrace` is on.
    ///
    /// Names are looked up at the first call, which takes long; what is missing in a binary
    /// without debug information is missing here. A stack with less than 24 KiB to spare
    /// has none, so that it does not overflow, nor has one that waits on a stack of other
    /// code. There are 256 at most.
    ///
    /// # Examples
    ///
    #[cfg_attr(feature = "backtrace", doc = "```")]
    #[cfg_attr(not(feature = "backtrace"), doc = "```ignore")]
    /// use greenhack::{await_sync, dump, run_sync};
    ///
    /// fn cook() {
    ///     await_sync(std::future::pending::<()>());
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let waits = tokio::spawn(run_sync(cook));
    /// tokio::task::yield_now().await;
    /// let dump = dump::this_thread();
    /// let backtrace = dump.stacks().unwrap()[0].backtrace().unwrap();
    /// assert!(backtrace.lines().next().unwrap().ends_with("cook"));
    /// # waits.abort();
    /// # });
    /// ```
    pub fn backtrace(&self) -> Option<&str> {
        let backtrace = self.backtrace.get_or_init(|| text(&self.account.trace));
        backtrace.as_deref()
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state() {
            State::New => "has not begun",
            State::Running => "runs",
            State::Waiting => "waits",
            State::InScope => "waits for closures",
            State::CleaningUp => "was cancelled, and cleans up",
            State::Leaked => "was leaked",
        };
        let prefix = self.account.kind.prefix();
        write!(f, "- {prefix}`{}` {state}", self.name())?;
        if let Some(location) = self.location() {
            write!(f, " at {location}")?;
        }
        if let Some(waited) = self.waited().filter(|_| self.location().is_some()) {
            write!(f, ", for {waited:.1?}")?;
        }
        if !self.spans().is_empty() {
            write!(f, ", in {}", self.spans().join(":"))?;
        }
        match self.used() {
            Some(used) => writeln!(
                f,
                "; {used} of {} bytes of its stack are in use",
                self.size()
            )?,
            None => writeln!(f, "; its stack has {} bytes", self.size())?,
        }
        self.backtrace().map_or(Ok(()), |lines| f.write_str(lines))
    }
}

#[cfg(not(feature = "backtrace"))]
fn text(_: &Trace) -> Option<String> {
    None
}

/// Empty if it has none.
pub(super) fn name_of_this_thread() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

/// By which a worker is asked.
struct Door {
    thread: ThreadToken,
    name: String,
    handle: Handle,
}

/// A worker that was asked.
struct Asked {
    name: String,
    answer: tokio::task::JoinHandle<Thread>,
}

impl Door {
    fn ask(&self) -> Asked {
        Asked {
            name: self.name.clone(),
            answer: self.handle.spawn(async { this_thread() }),
        }
    }
}

static DOORS: Mutex<Vec<Door>> = Mutex::new(Vec::new());

fn doors() -> MutexGuard<'static, Vec<Door>> {
    DOORS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets others ask this thread, a worker, which drives the runtime, until that is dropped.
pub(super) fn open(handle: &Handle) -> impl Sized + use<> {
    struct Close(ThreadToken);
    impl Drop for Close {
        fn drop(&mut self) {
            doors().retain(|door| door.thread != self.0);
        }
    }
    let thread = ThreadToken::current();
    doors().push(Door {
        thread,
        name: name_of_this_thread(),
        handle: handle.clone(),
    });
    Close(thread)
}
