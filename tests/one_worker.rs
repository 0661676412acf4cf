//! What runs on the same thread see of each other, in place and over the hop: the
//! workers of this process are one (behaviours 8-12 and 28).
#![cfg(panic = "unwind")]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Once};
use std::thread;

use greenhack::{await_sync, workers};
use support::{Log, Place, on_drop, signal};
use tokio::sync::oneshot;
use tokio::task::yield_now;

/// Runs `test` on a runtime of each place, each of which has one thread for runs.
fn in_each_place<F: Future<Output = ()>>(test: impl Fn(Place) -> F) {
    static START: Once = Once::new();
    START.call_once(|| workers::Builder::new().threads(1).start().unwrap());
    support::in_each_place(test);
}

/// A run that looks at `panicking()` whenever it has its turn.
#[derive(Clone, Default)]
struct Watcher {
    looks: Arc<AtomicUsize>,
    is_done: Arc<AtomicBool>,
}

impl Watcher {
    fn watch(&self) {
        while !self.is_done.load(Relaxed) {
            assert!(!thread::panicking());
            self.looks.fetch_add(1, Relaxed);
            await_sync(yield_now());
        }
    }

    /// Suspends the caller while the watcher has its turn.
    fn let_look(&self) {
        let before = self.looks.load(Relaxed);
        for _ in 0..5 {
            await_sync(yield_now());
        }
        assert!(self.looks.load(Relaxed) > before, "it shares our thread");
    }
}

/// Runs `f` beside a watcher.
async fn beside_a_watcher(place: Place, f: impl FnOnce(&Watcher) + Send + 'static) {
    let watcher = Watcher::default();
    let (started, has_started) = signal();
    let watching = place.spawn({
        let watcher = watcher.clone();
        move || {
            started.give();
            watcher.watch();
            thread::current().id()
        }
    });
    has_started.wait().await;
    let watched = place.spawn({
        let watcher = watcher.clone();
        move || {
            f(&watcher);
            thread::current().id()
        }
    });
    let watched = watched.await;
    watcher.is_done.store(true, Relaxed);
    let thread = watching.await.expect("nobody panics while it looks");
    assert_eq!(watched.unwrap(), thread);
}

#[test]
fn a_panic_caught_across_suspensions_is_nobody_elses() {
    in_each_place(|place| {
        beside_a_watcher(place, |watcher| {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                watcher.let_look();
                panic_any(7_u8)
            }));
            watcher.let_look();
            assert!(!thread::panicking());
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
        })
    });
}

#[test]
fn a_destructor_that_awaits_in_an_unwind_is_nobody_elses_panic() {
    in_each_place(|place| {
        beside_a_watcher(place, |watcher| {
            let log = Log::default();
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let _guard = on_drop(|| {
                    assert!(thread::panicking());
                    watcher.let_look();
                    assert!(thread::panicking());
                    log.add("the destructor ends");
                });
                panic_any(7_u8);
            }));
            assert!(!thread::panicking());
            assert_eq!(log.take(), ["the destructor ends"]);
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
        })
    });
}

#[test]
fn nested_unwinds_are_kept_apart_too() {
    in_each_place(|place| {
        beside_a_watcher(place, |watcher| {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let _guard = on_drop(|| {
                    let inner = catch_unwind(AssertUnwindSafe(|| {
                        let _guard = on_drop(|| {
                            watcher.let_look();
                            assert!(thread::panicking());
                        });
                        panic_any(8_u8);
                    }));
                    assert_eq!(inner.unwrap_err().downcast_ref(), Some(&8_u8));
                    // The outer unwind goes on.
                    assert!(thread::panicking());
                    watcher.let_look();
                    assert!(thread::panicking());
                });
                panic_any(7_u8);
            }));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
            assert!(!thread::panicking());
        })
    });
}

/// Panics, waits in a destructor until it may go on, and catches the panic.
fn unwind_until(go_on: oneshot::Receiver<()>, waits: support::Signal) {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _guard = on_drop(|| {
            waits.give();
            // A panic here would end the process.
            let _ = await_sync(go_on);
            assert!(thread::panicking());
        });
        panic_any(7_u8);
    }));
    assert!(!thread::panicking());
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
}

#[test]
fn locks_are_poisoned_by_their_own_coroutine_only() {
    in_each_place(|place| async move {
        let (go_on, allowed) = oneshot::channel();
        let (waits, has_suspended) = signal();
        let slow = place.spawn(move || {
            unwind_until(allowed, waits);
            thread::current().id()
        });
        has_suspended.wait().await;

        // It is suspended in the middle of an unwind. A sibling's lock is not
        // poisoned by that,
        let innocent = Arc::new(Mutex::new(0));
        let sibling = place.spawn({
            let innocent = innocent.clone();
            move || {
                *innocent.lock().unwrap() += 1;
                thread::current().id()
            }
        });
        let thread = sibling.await.unwrap();
        assert!(!innocent.is_poisoned());

        // a sibling that does panic poisons its lock,
        let guilty = Arc::new(Mutex::new(0));
        let sibling = place.spawn({
            let guilty = guilty.clone();
            move || {
                let _guard = guilty.lock().unwrap();
                panic_any(8_u8);
            }
        });
        assert!(sibling.await.unwrap_err().is_panic());
        assert!(guilty.is_poisoned());

        // and a panic hook can be set.
        let sibling = place.spawn(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(hook);
        });
        sibling.await.unwrap();

        go_on.send(()).unwrap();
        assert_eq!(slow.await.unwrap(), thread);
    });
}

#[test]
fn many_coroutines_suspended_in_unwinds_at_once_keep_apart() {
    in_each_place(|place| async move {
        let mut runs = Vec::new();
        for _ in 0..50 {
            let (go_on, allowed) = oneshot::channel();
            let (waits, has_suspended) = signal();
            let run = place.spawn(move || unwind_until(allowed, waits));
            has_suspended.wait().await;
            runs.push((go_on, run));
        }
        // The first goes on first: in another order than they would nest.
        for (go_on, run) in runs {
            go_on.send(()).unwrap();
            run.await.unwrap();
        }
    });
}

#[test]
fn a_run_that_awaits_ready_channels_for_ever_does_not_starve_its_neighbours() {
    /// More than its neighbour needs.
    const ROUNDS: u32 = 1_000_000;

    in_each_place(|place| async move {
        let stop = Arc::new(AtomicBool::new(false));
        let (started, has_started) = signal();
        let greedy = place.spawn({
            let stop = stop.clone();
            move || {
                let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
                // There must be somebody to starve.
                await_sync(has_started.wait());
                for _ in 0..ROUNDS {
                    if stop.load(Relaxed) {
                        return thread::current().id();
                    }
                    sender.send(()).unwrap();
                    await_sync(receiver.recv()).unwrap();
                }
                panic!("nobody else has had a turn");
            }
        });
        let neighbour = place.spawn(move || {
            started.give();
            for _ in 0..10 {
                await_sync(yield_now());
            }
            stop.store(true, Relaxed);
            thread::current().id()
        });
        assert_eq!(greedy.await.unwrap(), neighbour.await.unwrap());
    });
}
