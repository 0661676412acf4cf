//! What the attacks on scopes share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::mem;
use std::panic::{self, AssertUnwindSafe, panic_any, resume_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Poll, RawWaker, RawWakerVTable, Waker};
use std::thread;

use futures::future::select;
use greenhack::{await_sync, join, map_concurrent, nested, race, run_sync_local, scope};
use tokio::task::{JoinError, LocalSet, spawn_local, yield_now};

use crate::support::{OnDrop, current_thread, on_drop, see_panics};

pub(crate) fn pause() {
    await_sync(yield_now());
}

pub(crate) fn catch<R>(f: impl FnOnce() -> R) -> thread::Result<R> {
    panic::catch_unwind(AssertUnwindSafe(f))
}

/// Is pending once, and wakes at once.
pub(crate) fn turn() -> impl Future<Output = ()> {
    let mut was_polled = false;
    poll_fn(move |cx| {
        cx.waker().wake_by_ref();
        if mem::replace(&mut was_polled, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
}

/// Calls `f` in a run, and on a plain thread.
pub(crate) fn in_both(f: impl Fn() + Clone + Send + 'static) {
    current_thread().block_on(run_sync_local(f.clone()));
    if let Err(payload) = thread::spawn(f).join() {
        resume_unwind(payload);
    }
}

/// Counts the closures of a call that live.
#[derive(Clone, Default)]
pub(crate) struct Living(pub(crate) Rc<Cell<usize>>);

impl Living {
    /// One lives, until the guard is dropped.
    pub(crate) fn one(&self) -> OnDrop<impl FnOnce() + use<>> {
        let count = self.0.clone();
        count.set(count.get() + 1);
        on_drop(move || count.set(count.get() - 1))
    }

    /// Calls `f`, and fails the test if it ends before the closures that it has
    /// counted.
    pub(crate) fn outlived_by<R>(&self, f: impl FnOnce() -> R) -> thread::Result<R> {
        let result = catch(f);
        assert_eq!(self.0.get(), 0, "the call has ended before its closures");
        result
    }
}

/// The kinds of [`a_call`].
pub(crate) const KINDS: usize = 6;

/// Makes a call with closures that end, and others that are cancelled.
pub(crate) fn a_call(kind: usize, living: &Living) {
    let endless = || {
        let _one = living.one();
        let _cleanup = on_drop(pause);
        await_sync(pending::<()>());
    };
    let short = || {
        let _one = living.one();
        pause();
        pause();
    };
    match kind {
        0 => _ = join(short, pause),
        1 => race([&endless as &dyn Fn(), &short]),
        2 => nested(short, async |run| run.await),
        3 => nested(endless, async |run| {
            select(run, pin!(yield_now())).await;
            yield_now().await;
        }),
        4 => scope(|s| {
            s.spawn(endless).abort();
            let _ = s.spawn(short).join();
        }),
        _ => drop(map_concurrent(2, [1, 2, 3], |_| short())),
    }
}

pub(crate) async fn spawn_in_local_set<R: 'static>(
    run: impl Future<Output = R> + 'static,
) -> Result<R, JoinError> {
    LocalSet::new()
        .run_until(async { spawn_local(run).await })
        .await
}

/// What happens to a waker, and may panic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event {
    Clone,
    Wake,
    Drop,
}

pub(crate) const EVENTS: [Event; 3] = [Event::Clone, Event::Wake, Event::Drop];

/// Makes a waker that panics so many `times` at an `event`, but in no unwind.
pub(crate) fn hostile(event: Event, times: usize) -> Waker {
    struct Hostile {
        event: Event,
        times: AtomicUsize,
    }
    fn meet(data: *const (), event: Event) {
        // SAFETY: it is the data of the waker made below, which is leaked.
        let hostile: &Hostile = unsafe { &*data.cast() };
        let left = hostile.times.load(SeqCst);
        if event == hostile.event && left > 0 && !thread::panicking() {
            hostile.times.store(left - 1, SeqCst);
            panic_any(event);
        }
    }
    static TABLE: RawWakerVTable = RawWakerVTable::new(
        |data| {
            meet(data, Event::Clone);
            RawWaker::new(data, &TABLE)
        },
        |data| meet(data, Event::Wake),
        |data| meet(data, Event::Wake),
        |data| meet(data, Event::Drop),
    );
    let times = AtomicUsize::new(times);
    let data: &Hostile = Box::leak(Box::new(Hostile { event, times }));
    // SAFETY: the data is `Sync` and lives for ever.
    unsafe { Waker::new((&raw const *data).cast(), &TABLE) }
}

/// Keeps what the attacks throw out of the output.
pub(crate) fn hide_events() {
    see_panics(|info| !info.payload().is::<Event>());
}
