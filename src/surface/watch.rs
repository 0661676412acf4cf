//! Reports of runs that keep their thread from all others.
//!
//! Each thread tells which of its runs is polled, and since when. A thread of its own looks
//! at that from time to time, and names who takes too long. When such a run is suspended at
//! last, it tells where, and the same thread writes it down: names of frames take long to
//! look up.
//!
//! ```text
//!   a thread with runs                         the watch
//!   ──────────────────                         ─────────
//!   begin: SEAT = soup, since 12.1 s
//!     the run computes                         12.3 s: "`soup` keeps .."
//!   end: SEAT = what was there before
//!     it took too long: an account ──────────▶ "`soup` has kept .."
//! ```
//!
//! From gevent's monitor and Seastar's stall detector.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt::Write;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::dump::{Stack, name_of_this_thread};
use crate::engine::account::Account;
use crate::engine::context;
use crate::ground::error::discard;
use crate::ground::report;

/// In milliseconds; 0 for none.
static LIMIT: AtomicU64 = AtomicU64::new(0);

/// How many accounts wait to be written at most.
const MOST_ACCOUNTS: usize = 64;

/// Reports runs that begin from now on, and then keep their thread from all others for
/// longer than `limit`. With `None`, which is the default, none is reported.
///
/// A run that computes, blocks the thread, or waits for a lock that only another run of
/// the thread would release, holds up all others there. While it does, a report names it;
/// when it comes to its next wait a second one tells which, with the frames of its stack if
/// the feature `backtrace` is on. What counts is one poll of its task, with the futures that
/// it awaits. Reports are warnings, with the feature `tracing` events of the target
/// `greenhack`, without it or a subscriber lines on standard error. They come from a thread of their own, so
/// that a subscriber must be that of the process. If more come than it can write, some are
/// left out. The destructors of a run that was cancelled are not watched.
///
/// It costs each poll of a run two looks at the clock, a lock that nobody else wants, and the
/// copy of its name if that is a `String`. The limit is in whole milliseconds, and at least
/// one.
///
/// # Panics
///
/// If the system gives no thread.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// greenhack::report_blocking(Some(Duration::from_millis(100)));
/// ```
pub fn report_blocking(limit: Option<Duration>) {
    let in_millis = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
    // Without a thread there is no limit.
    let watch = limit.map(|_| watch());
    LIMIT.store(limit.map_or(0, in_millis), Ordering::Relaxed);
    if let Some(watch) = watch {
        context::observe();
        // It may sleep, if there was no limit before. If it is behind, it looks soon.
        let _ = watch.try_send(News::Limit);
    }
}

fn limit() -> Option<Duration> {
    match LIMIT.load(Ordering::Relaxed) {
        0 => None,
        millis => Some(Duration::from_millis(millis)),
    }
}

/// Whether polls are to be [watched](begin).
#[inline]
pub(crate) fn is_on() -> bool {
    LIMIT.load(Ordering::Relaxed) != 0
}

/// Notes that a run is polled on this thread, until that has [ended](Watched::end), or is
/// dropped.
#[cold]
pub(crate) fn begin(name: Cow<'static, str>) -> Watched {
    let since = Instant::now();
    let busy = Busy {
        name,
        since,
        is_reported: false,
    };
    let outer = SEAT.try_with(|seat| seat.busy().replace(busy)).ok();
    Watched { since, outer }
}

/// A poll that is watched.
pub(crate) struct Watched {
    since: Instant,
    /// What was polled on the thread before. `None` if nobody looks.
    outer: Option<Option<Busy>>,
}

impl Watched {
    /// Ends it, and returns how long it took if that was too long.
    #[cold]
    pub(crate) fn end(self) -> Option<Duration> {
        let took = self.since.elapsed();
        (took > limit()?).then_some(took)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(outer) = self.outer.take() {
            let ended = SEAT.try_with(|seat| mem::replace(&mut *seat.busy(), outer));
            drop(ended);
        }
    }
}

/// Reports a poll that took too long, and in which the run has come to a wait, or its end.
#[cold]
pub(crate) fn report(name: Cow<'static, str>, took: Duration, account: Option<Account>) {
    let late = Late {
        name,
        thread: name_of_this_thread(),
        took,
        account,
    };
    // If the watch is behind, this one is left out.
    let _ = watch().try_send(News::Late(Box::new(late)));
}

/// What is polled on a thread at this moment.
struct Busy {
    name: Cow<'static, str>,
    since: Instant,
    is_reported: bool,
}

/// Where a thread tells it.
struct Seat {
    thread: String,
    busy: Mutex<Option<Busy>>,
}

impl Seat {
    fn busy(&self) -> MutexGuard<'_, Option<Busy>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

static SEATS: Mutex<Vec<Weak<Seat>>> = Mutex::new(Vec::new());

fn seats() -> MutexGuard<'static, Vec<Weak<Seat>>> {
    SEATS.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static SEAT: Arc<Seat> = take_seat();
}

fn take_seat() -> Arc<Seat> {
    let seat = Arc::new(Seat {
        thread: name_of_this_thread(),
        busy: Mutex::new(None),
    });
    seats().push(Arc::downgrade(&seat));
    seat
}

/// What the watch is told.
enum News {
    /// There is a limit.
    Limit,
    Late(Box<Late>),
}

/// A poll that took too long.
struct Late {
    name: Cow<'static, str>,
    thread: String,
    took: Duration,
    /// Where it waits, unless it has ended.
    account: Option<Account>,
}

fn watch() -> &'static SyncSender<News> {
    static WATCH: OnceLock<SyncSender<News>> = OnceLock::new();
    WATCH.get_or_init(|| {
        let (sender, news) = sync_channel(MOST_ACCOUNTS);
        thread::Builder::new()
            .name("greenhack-watch".to_owned())
            .spawn(move || keep_watch(&news))
            .expect("the system gives no thread for the watch");
        sender
    })
}

fn keep_watch(news: &Receiver<News>) {
    let mut last_look = Instant::now();
    loop {
        let heard = match limit() {
            // It also looks where there is always something to hear.
            Some(limit) => match (limit / 2).checked_sub(last_look.elapsed()) {
                Some(left) => news.recv_timeout(left),
                None => Err(RecvTimeoutError::Timeout),
            },
            None => news.recv().map_err(RecvTimeoutError::from),
        };
        match heard {
            Ok(News::Late(late)) => unharmed(|| late.report()),
            Ok(News::Limit) => {}
            Err(RecvTimeoutError::Timeout) => {
                look_around();
                last_look = Instant::now();
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn look_around() {
    let Some(limit) = limit() else {
        return;
    };
    let mut late = Vec::new();
    seats().retain(|seat| {
        let Some(seat) = seat.upgrade() else {
            return false;
        };
        if let Some(busy) = &mut *seat.busy() {
            let took = busy.since.elapsed();
            if took > limit && !busy.is_reported {
                busy.is_reported = true;
                late.push((busy.name.clone(), seat.thread.clone(), took));
            }
        }
        true
    });
    for (name, thread, took) in late {
        let what = format!(
            "`{name}` keeps the thread `{thread}` from all other runs, for {took:.1?} so far"
        );
        unharmed(|| report::warn(&what, REMEDY));
    }
}

/// Calls what calls code of others, such as subscribers. Their panics must not end the
/// watch, nor keep it from other reports.
fn unharmed(report: impl FnOnce()) {
    catch_unwind(AssertUnwindSafe(report)).unwrap_or_else(discard);
}

const REMEDY: &str = "block in `greenhack::block`, let long computations call \
     `greenhack::time::consume_budget`, and hold no lock of std across a wait";

impl Late {
    fn report(self) {
        let Late {
            name,
            thread,
            took,
            account,
        } = self;
        let mut what =
            format!("`{name}` has kept the thread `{thread}` from all other runs, for {took:.1?}");
        let _ = match account {
            Some(account) => write!(what, ", until it waited:\n{}", Stack::new(account)),
            None => write!(what, ", until it ended"),
        };
        report::warn(what.trim_end(), REMEDY);
    }
}
