//! Time and fairness, for plain functions.
//!
//! The names are those of [`tokio::time`]. In a run these functions suspend; on
//! a plain thread they block it. They use the timer of the runtime that is
//! current, on a plain thread that of the [process](crate::enter_runtime), and
//! so go by tokio's paused time in tests.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use greenhack::time;
//! use tokio::time::Instant;
//!
//! /// A plain function, with plain loops.
//! fn poll_three_times() -> Duration {
//!     let start = Instant::now();
//!     let mut ticks = time::interval(Duration::from_secs(60));
//!     for _ in 0..3 {
//!         ticks.tick();
//!     }
//!     start.elapsed()
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! // The first tick is at once.
//! assert_eq!(greenhack::run_sync(poll_three_times).await.as_secs(), 120);
//! # });
//! ```
#![forbid(unsafe_code)]

use std::iter::FusedIterator;
use std::time::Duration;

use tokio::runtime::{EnterGuard, Handle};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::{NotAwaited, await_sync, enter_runtime, in_context, nested, try_await_sync};

/// Suspends until `f` has ended, or `duration` is over, and returns the result
/// of `f`.
///
/// When the time is over, `f` is cancelled: its wait unwinds, and this returns
/// when its destructors have run. `f` may borrow from the caller. It runs as
/// [`nested`] plain code. A computation that doesn't wait can't be stopped. For
/// one future use [`tokio::time::timeout`] with [`await_sync`].
///
/// A destructor that waits may take longer than `duration`. No
/// [`cleanup_budget`](crate::Builder::cleanup_budget) ends it, as that of a run
/// that is dropped is ended: `f` borrows, so this call can't leave it behind. Give
/// such a wait a limit of its own, as in the second example.
///
/// # Errors
///
/// If the time was over before `f` had ended. What it returns all the same, from
/// a [`shield`](crate::shield) say, is dropped.
///
/// # Cancel safety
///
/// If the run is cancelled, so is `f`; the caller unwinds when it has ended, with
/// its destructors, within the run's cleanup budget. If the time was over before
/// that, this returns the error, and the caller unwinds at its next wait.
///
/// # Panics
///
/// With the panic of `f`; in async code, and where the stack must not be
/// suspended, as [`await_sync`]; if the current runtime has no timer; if there is
/// no memory for a stack.
///
/// With `panic = "abort"` nothing can be cancelled, and this waits for the end of
/// `f`.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use greenhack::{await_sync, time::timeout};
///
/// let limit = Duration::from_millis(1);
/// let mut steps = vec!["started"];
/// let late = timeout(limit, || {
///     await_sync(std::future::pending::<()>());
///     steps.push("unreachable");
/// });
/// assert!(late.is_err());
/// assert_eq!(timeout(limit, || steps.len()), Ok(1));
/// ```
///
/// A cleanup that has a limit, too:
///
/// ```
/// use std::future::pending;
/// use std::time::Duration;
/// use greenhack::{await_in_drop, await_sync, time::timeout};
///
/// const LIMIT: Duration = Duration::from_millis(1);
///
/// struct Session<'a>(&'a mut Vec<&'static str>);
///
/// impl Drop for Session<'_> {
///     fn drop(&mut self) {
///         // The peer doesn't say goodbye.
///         let goodbye = pending::<()>();
///         let said = await_in_drop(async { tokio::time::timeout(LIMIT, goodbye).await });
///         self.0.push(if let Some(Ok(())) = said { "closed" } else { "cut off" });
///     }
/// }
///
/// let mut log = Vec::new();
/// let late = timeout(LIMIT, || {
///     let _session = Session(&mut log);
///     await_sync(pending::<()>());
/// });
/// assert!(late.is_err());
/// assert_eq!(log, ["cut off"]);
/// ```
#[track_caller]
pub fn timeout<F, R>(duration: Duration, f: F) -> Result<R, Elapsed>
where
    F: FnOnce() -> R,
{
    if can_wait("timeout", "tokio::time::timeout(duration, future)") {
        // Where there is no timer tokio panics. Below, that would be at a line of
        // this file; here it is at the caller's.
        let _entered = with_a_timer();
        drop(tokio::time::sleep(duration));
    }
    nested(f, async move |run| {
        tokio::time::timeout(duration, run).await
    })
}

/// Suspends the calling plain function for `duration`.
///
/// For a wait that another event may end, await a `tokio::select!` of it and
/// [`tokio::time::sleep`].
///
/// # Cancel safety
///
/// If the run is cancelled, the timer is dropped.
///
/// # Panics
///
/// As [`await_sync`], and if the current runtime has no timer
/// (`enable_time` was not called).
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let start = Instant::now();
/// greenhack::time::sleep(Duration::from_millis(2));
/// assert!(start.elapsed() >= Duration::from_millis(2));
/// ```
#[track_caller]
pub fn sleep(duration: Duration) {
    can_wait("sleep", "tokio::time::sleep(duration)");
    let _entered = with_a_timer();
    await_sync(tokio::time::sleep(duration));
}

/// Suspends the calling plain function until `deadline`.
///
/// For a time from now, use [`sleep`].
///
/// # Cancel safety
///
/// If the run is cancelled, the timer is dropped.
///
/// # Panics
///
/// As [`sleep`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio::time::Instant;
///
/// let deadline = Instant::now() + Duration::from_millis(2);
/// greenhack::time::sleep_until(deadline);
/// assert!(Instant::now() >= deadline);
/// ```
#[track_caller]
pub fn sleep_until(deadline: Instant) {
    can_wait("sleep_until", "tokio::time::sleep_until(deadline)");
    let _entered = with_a_timer();
    await_sync(tokio::time::sleep_until(deadline));
}

/// Returns a clock that ticks at once, and then each `period`.
///
/// For a first tick at another time, use [`interval_at`].
///
/// # Panics
///
/// If `period` is zero, and if the current runtime has no timer.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let mut ticks = greenhack::time::interval(Duration::from_millis(1));
/// let first = ticks.tick();
/// assert!(ticks.tick() >= first + Duration::from_millis(1));
/// ```
#[track_caller]
pub fn interval(period: Duration) -> BlockingInterval {
    let _entered = with_a_timer();
    BlockingInterval {
        interval: tokio::time::interval(period),
    }
}

/// Returns a clock that ticks at `start`, and then each `period`.
///
/// # Panics
///
/// As [`interval`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio::time::Instant;
///
/// let start = Instant::now() + Duration::from_millis(1);
/// let mut ticks = greenhack::time::interval_at(start, Duration::from_millis(1));
/// assert_eq!(ticks.tick(), start);
/// ```
#[track_caller]
pub fn interval_at(start: Instant, period: Duration) -> BlockingInterval {
    let _entered = with_a_timer();
    BlockingInterval {
        interval: tokio::time::interval_at(start, period),
    }
}

/// A clock that plain code waits for, made by [`interval`].
///
/// It is an iterator without an end: `for now in interval(second).take(3)`.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let ticks = greenhack::time::interval(Duration::from_millis(1));
/// assert_eq!(ticks.take(3).count(), 3);
/// ```
///
/// Its methods are those of [`tokio::time::Interval`]:
///
/// ```
/// use std::time::Duration;
///
/// use greenhack::time;
/// use tokio::time::{Instant, MissedTickBehavior};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// # greenhack::run_sync(|| {
/// let minute = Duration::from_secs(60);
/// let mut ticks = time::interval(minute);
/// assert_eq!(ticks.period(), minute);
/// assert_eq!(ticks.missed_tick_behavior(), MissedTickBehavior::Burst);
/// ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
///
/// let start = ticks.tick();
/// time::sleep(minute * 5 / 2);
/// // This one is late; those that were missed after it are skipped.
/// assert_eq!(ticks.tick(), start + minute);
/// assert_eq!(ticks.tick(), start + minute * 3);
///
/// time::sleep(minute / 2);
/// ticks.reset();
/// assert_eq!(ticks.tick(), start + minute * 9 / 2);
/// # })
/// # .await;
/// # });
/// ```
#[derive(Debug)]
pub struct BlockingInterval {
    interval: Interval,
}

impl BlockingInterval {
    /// Suspends the calling plain function until the next tick, and returns the
    /// time that it was due.
    ///
    /// # Cancel safety
    ///
    /// If the run is cancelled, no tick is lost.
    ///
    /// # Panics
    ///
    /// As [`await_sync`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use greenhack::time;
    ///
    /// /// Asks until there is an answer, and says after how many minutes it came.
    /// fn poll(mut ask: impl FnMut() -> Option<u64>) -> (u64, u64) {
    ///     let mut ticks = time::interval(Duration::from_secs(60));
    ///     let start = ticks.tick();
    ///     loop {
    ///         let now = ticks.tick();
    ///         if let Some(answer) = ask() {
    ///             return (answer, (now - start).as_secs() / 60);
    ///         }
    ///     }
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
    /// let mut answers = [None, None, Some(42)].into_iter();
    /// let run = greenhack::run_sync(move || poll(|| answers.next().flatten()));
    /// assert_eq!(run.await, (42, 3));
    /// # });
    /// ```
    #[track_caller]
    pub fn tick(&mut self) -> Instant {
        can_wait(
            "BlockingInterval::tick",
            "tokio::time::Interval::tick(&mut ticks)",
        );
        await_sync(self.interval.tick())
    }

    /// Starts again: the next tick is one period from now.
    pub fn reset(&mut self) {
        self.interval.reset();
    }

    /// Returns the period.
    pub fn period(&self) -> Duration {
        self.interval.period()
    }

    /// Returns what happens to ticks that are late.
    pub fn missed_tick_behavior(&self) -> MissedTickBehavior {
        self.interval.missed_tick_behavior()
    }

    /// Sets what happens to ticks that are late. The default is
    /// [`MissedTickBehavior::Burst`].
    pub fn set_missed_tick_behavior(&mut self, behavior: MissedTickBehavior) {
        self.interval.set_missed_tick_behavior(behavior);
    }
}

impl Iterator for BlockingInterval {
    type Item = Instant;

    /// Suspends as [`tick`](Self::tick).
    #[track_caller]
    fn next(&mut self) -> Option<Instant> {
        Some(self.tick())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::MAX, None)
    }
}

impl FusedIterator for BlockingInterval {}

/// Suspends the calling plain function once, so that other tasks of the thread
/// get their turn.
///
/// It always suspends in a run, also if nobody else is ready. For a loop with
/// many short rounds, use [`consume_budget`]. On a plain thread it returns at
/// once.
///
/// # Cancel safety
///
/// This is where a run that computes can be cancelled.
///
/// # Panics
///
/// As [`await_sync`].
///
/// # Examples
///
/// ```
/// use greenhack::{must_suspend, time};
///
/// fn sum(numbers: std::ops::Range<u64>) -> u64 {
///     let mut sum = 0;
///     for number in numbers {
///         if number % 1000 == 0 {
///             time::yield_now();
///         }
///         sum += number;
///     }
///     sum
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let run = greenhack::run_sync(|| must_suspend(|| sum(0..10_000)));
/// assert_eq!(run.await, 49_995_000);
/// # });
/// ```
#[track_caller]
pub fn yield_now() {
    can_wait("yield_now", "tokio::task::yield_now()");
    await_sync(tokio::task::yield_now());
}

/// Suspends the calling plain function if its task has had its share.
///
/// tokio gives a task a budget each time that it is polled, 128 units at
/// present. Its sockets, channels and timers take one unit for each thing that
/// they have ready, and are pending when none is left. This takes one unit too,
/// and suspends when there was none. So it can be called in every round of a
/// loop, where [`yield_now`] would be too often. On a plain thread, and under
/// [`unconstrained`](tokio::task::unconstrained), it returns at once.
///
/// # Cancel safety
///
/// As [`yield_now`], where it suspends.
///
/// # Panics
///
/// As [`await_sync`].
///
/// # Examples
///
/// ```
/// use greenhack::{must_suspend, no_suspend, time};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// greenhack::run_sync(|| {
///     no_suspend(|| (0..10).for_each(|_| time::consume_budget()));
///     must_suspend(|| (0..1000).for_each(|_| time::consume_budget()));
/// })
/// .await;
/// # });
/// # assert!(!greenhack::in_context());
/// ```
#[track_caller]
pub fn consume_budget() {
    can_wait("consume_budget", "tokio::task::coop::consume_budget()");
    await_sync(tokio::task::coop::consume_budget());
}

/// Whether the caller of `called` can wait. In async code it panics, and names what
/// to await there: to write `.await` behind the call would not do.
#[track_caller]
fn can_wait(called: &str, awaited: &str) -> bool {
    if in_context() {
        return true;
    }
    let refused = try_await_sync(async {}).err();
    assert!(
        !refused.as_ref().is_some_and(NotAwaited::is_async_code),
        "`greenhack::time::{called}` called in async code, which must not block; write \
         `{awaited}.await` here, or run the plain code that calls it with \
         `greenhack::run_sync(|| ..).await`"
    );
    refused.is_none()
}

/// Enters the runtime of the process, if the thread has none: a timer asks for
/// one when it is made.
fn with_a_timer() -> Option<EnterGuard<'static>> {
    Handle::try_current().is_err().then(enter_runtime)
}
