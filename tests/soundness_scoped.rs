//! Attacks on closures that borrow from the caller of a scope: wakers and panics.
//!
//! What must hold: when a call returns or unwinds, none of its closures lives.
//! Where one can't end, the call never returns.
#![cfg(panic = "unwind")]

#[path = "soundness/help.rs"]
mod help;
#[path = "soundness/scoped.rs"]
mod scoped;
mod support;

use std::cell::RefCell;
use std::future::{Future, pending};
use std::mem;
use std::panic::{AssertUnwindSafe, panic_any, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use futures::FutureExt;
use greenhack::{
    await_in_drop, await_sync, join, join_all, leaked_runs, map_concurrent, nested, no_suspend,
    race, run_sync, run_sync_local, scope,
};
use help::succeeds_in_child;
use scoped::{
    EVENTS, Event, KINDS, Living, a_call, catch, hide_events, hostile, in_both, pause,
    spawn_in_local_set, turn,
};
use support::{Log, current_thread, on_drop, text};
use tokio::sync::oneshot;
use tokio::task::yield_now;

/// Polls `run` with `waker` until it ends, or a poll panics.
async fn poll_with<R>(
    mut run: impl Future<Output = R> + Unpin,
    waker: &Waker,
) -> thread::Result<R> {
    for _ in 0..1000 {
        let mut cx = Context::from_waker(waker);
        let poll = catch(|| Pin::new(&mut run).poll(&mut cx));
        match poll {
            Ok(Poll::Ready(output)) => return Ok(output),
            Ok(Poll::Pending) => yield_now().await,
            Err(payload) => return Err(payload),
        }
    }
    panic!("the run hangs");
}

// Wakers and subscribers.

#[test]
fn a_waker_that_panics_ends_no_call_before_its_closures() {
    succeeds_in_child(
        "a_waker_that_panics_ends_no_call_before_its_closures",
        || {
            hide_events();
            for kind in 0..KINDS {
                for event in EVENTS {
                    for times in [1, 2, 3, 100] {
                        let leaks = leaked_runs();
                        let living = Living::default();
                        let run = run_sync_local({
                            let living = living.clone();
                            move || drop(living.outlived_by(|| a_call(kind, &living)))
                        });
                        let waker = hostile(event, times);
                        let polled = catch(|| {
                            // tokio wakes, too, and so may panic as well.
                            current_thread().block_on(poll_with(run, &waker))
                        });
                        mem::forget(waker);
                        let (living, leaked) = (living.0.get(), leaked_runs() - leaks);
                        let what = format!("{kind} {event:?} {times}: {polled:?}, {living} live");
                        // One panic more than is put up with, and it is leaked.
                        assert!(
                            leaked == 0 && living == 0 || leaked == 1 && times == 100,
                            "{what}"
                        );
                    }
                }
            }
        },
    );
}

#[test]
fn a_nested_run_that_is_polled_with_a_waker_that_panics_ends_before_its_caller() {
    hide_events();
    in_both(|| {
        for event in EVENTS {
            for (polls, turns) in [(0, 0), (1, 0), (1, 1), (2, 1), (3, 1)] {
                let living = Living::default();
                let result = living.outlived_by(|| {
                    let f = || {
                        let _one = living.one();
                        let _cleanup = on_drop(pause);
                        (0..turns).for_each(|_| await_sync(turn()));
                        await_sync(pending::<()>());
                    };
                    nested(f, async |mut run| {
                        let waker = hostile(event, 1);
                        for _ in 0..polls {
                            let mut cx = Context::from_waker(&waker);
                            let poll = || Pin::new(&mut run).poll(&mut cx);
                            assert!(!matches!(catch(poll), Ok(Poll::Ready(_))));
                            yield_now().await;
                        }
                        mem::forget(waker);
                    })
                });
                let event_or_none = result.map_or_else(|p| p.is::<Event>(), |()| true);
                assert!(event_or_none, "{event:?} {polls} {turns}");
            }
        }
    });
}

#[test]
fn a_nested_run_that_is_stuck_and_whose_waker_panics_keeps_its_caller() {
    let name = "a_nested_run_that_is_stuck_and_whose_waker_panics_keeps_its_caller";
    succeeds_in_child(name, || {
        static RETURNED: AtomicBool = AtomicBool::new(false);
        hide_events();
        // One that has a panic instead of its first poll never starts.
        for (leaks, event) in (0..).zip([Event::Wake, Event::Drop]) {
            current_thread().block_on(async {
                let run = run_sync_local(move || {
                    let _returned = on_drop(|| RETURNED.store(true, SeqCst));
                    let f = || {
                        let _stuck = on_drop(|| no_suspend(|| await_sync(pending::<()>())));
                        resume_unwind(Box::new("an ordinary panic"));
                    };
                    nested(f, async |mut run| {
                        let waker = hostile(event, 1);
                        let mut cx = Context::from_waker(&waker);
                        for _ in 0..2 {
                            let poll = || Pin::new(&mut run).poll(&mut cx).is_ready();
                            let _ = catch(poll);
                        }
                        mem::forget(waker);
                    });
                });
                assert!(spawn_in_local_set(run).await.unwrap_err().is_panic());
            });
            assert_eq!((leaked_runs(), RETURNED.load(SeqCst)), (leaks + 1, false));
        }
    });
}

#[cfg(feature = "tracing")]
#[test]
fn a_subscriber_that_panics_ends_no_call_before_its_closures() {
    use tracing::span::{Attributes, Id};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    /// Panics once, when `left` callbacks have gone well.
    struct Hostile {
        left: AtomicUsize,
    }
    impl Hostile {
        fn meet(&self) {
            let left = self.left.load(SeqCst);
            if left > 0 && !thread::panicking() {
                self.left.store(left - 1, SeqCst);
                if left == 1 {
                    panic_any(Event::Wake);
                }
            }
        }
    }
    impl<S: tracing::Subscriber> Layer<S> for Hostile {
        fn on_new_span(&self, _: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
            self.meet();
        }
        fn on_enter(&self, _: &Id, _: Context<'_, S>) {
            self.meet();
        }
        fn on_exit(&self, _: &Id, _: Context<'_, S>) {
            self.meet();
        }
    }

    succeeds_in_child(
        "a_subscriber_that_panics_ends_no_call_before_its_closures",
        || {
            hide_events();
            for left in 1..40 {
                let hostile = Hostile { left: left.into() };
                let subscriber = tracing_subscriber::Registry::default().with(hostile);
                let _default = tracing::subscriber::set_default(subscriber);
                let living = Living::default();
                let run = run_sync_local({
                    let living = living.clone();
                    move || {
                        let endless = || {
                            let _one = living.one();
                            let _span = tracing::info_span!("endless").entered();
                            let _cleanup = on_drop(pause);
                            await_sync(pending::<()>());
                        };
                        let short = || {
                            let _one = living.one();
                            let _span = tracing::info_span!("short").entered();
                            pause();
                        };
                        drop(living.outlived_by(|| race([&endless as &dyn Fn(), &short])));
                    }
                });
                let _ = current_thread().block_on(poll_with(run, Waker::noop()));
                assert_eq!((living.0.get(), leaked_runs()), (0, 0), "{left}");
            }
        },
    );
}

/// Counts how often it is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn the_last_waker_is_woken_for_every_closure() {
    current_thread().block_on(async {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..3).map(|_| oneshot::channel::<()>()).unzip();
        let mut run = run_sync_local(|| {
            let [a, b, c] = <[_; 3]>::try_from(receivers).unwrap();
            // In a scope, in a nested scope, and in the cleanup of a nested run
            // that its wrapper has dropped.
            join(
                || await_sync(a).unwrap(),
                || {
                    join(|| await_sync(b).unwrap(), || ());
                    let f = || {
                        let _cleanup = on_drop(|| await_sync(c).unwrap());
                        await_sync(pending::<()>());
                    };
                    nested(f, async |run| assert!(run.now_or_never().is_none()));
                },
            );
        });
        for sender in senders {
            let (old, new) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
            for wakes in [&old, &new] {
                let waker = Waker::from(wakes.clone());
                let mut cx = Context::from_waker(&waker);
                assert!(Pin::new(&mut run).poll(&mut cx).is_pending());
            }
            let before = [&old, &new].map(|wakes| wakes.0.swap(0, SeqCst));
            sender.send(()).unwrap();
            let after = [&old, &new].map(|wakes| wakes.0.load(SeqCst));
            assert_eq!(after, [0, 1], "{before:?}");
        }
        run.await;
    });
}

#[test]
fn closures_that_start_others_without_end_let_other_tasks_go_on() {
    current_thread().block_on(async {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let run = tokio::spawn(run_sync(move || {
            scope(|s| {
                for rounds in 0.. {
                    assert!(rounds < 100_000, "no other task goes on");
                    if is_over.load(SeqCst) {
                        break;
                    }
                    s.spawn(|| ());
                    await_sync(turn());
                }
            });
        }));
        yield_now().await;
        over.store(true, SeqCst);
        run.await.unwrap();
    });
}

// Panics.

/// A value whose destructor panics.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic_any(Event::Drop);
        }
    }
}

#[test]
fn panics_of_destructors_are_the_callers() {
    hide_events();
    in_both(|| {
        let is_event = |result: thread::Result<()>| result.unwrap_err().is::<Event>();
        let living = Living::default();
        let one = |f: &dyn Fn()| {
            let _one = living.one();
            f();
        };
        // Of a result that comes too late.
        assert!(is_event(living.outlived_by(|| {
            let late = || {
                let _ = catch(|| one(&|| await_sync(pending::<()>())));
                Some(Bomb)
            };
            mem::forget(race([&late as &dyn Fn() -> Option<Bomb>, &|| None]));
        })));
        // Of the result of a nested run that nobody takes.
        assert!(is_event(living.outlived_by(|| {
            let late = || {
                let _ = catch(|| one(&|| await_sync(pending::<()>())));
                Bomb
            };
            nested(late, async |run| drop(run.now_or_never()));
        })));
        // Of the result of a closure that nobody joins.
        assert!(is_event(living.outlived_by(|| {
            scope(|s| drop(s.spawn(|| Bomb)));
        })));
        // Of what a closure has captured that never starts.
        assert!(is_event(living.outlived_by(|| {
            scope(|s| {
                let bomb = Bomb;
                s.spawn(move || mem::forget(bomb)).abort();
                one(&pause);
            });
        })));
        // Of the future around a nested run.
        assert!(is_event(living.outlived_by(|| {
            nested(
                || one(&pause),
                async |run| {
                    let _bomb = Bomb;
                    run.await
                },
            );
        })));
    });
}

#[test]
fn a_payload_that_panics_when_it_is_dropped_is_contained() {
    hide_events();
    in_both(|| {
        let result = catch(|| {
            join_all((0..3).map(|index| {
                move || {
                    let _panic = on_drop(pause);
                    let _ = catch(pause);
                    panic_any((index, Bomb));
                }
            }))
        });
        let payload = result.unwrap_err().downcast::<(i32, Bomb)>().unwrap();
        let (_index, bomb) = *payload;
        mem::forget(bomb);

        let result = catch(|| {
            nested(
                || panic_any(Bomb),
                async |run| {
                    let _: Result<(), _> = AssertUnwindSafe(run).catch_unwind().await;
                    panic_any(Bomb);
                },
            )
        });
        mem::forget(result.unwrap_err().downcast::<Bomb>().unwrap());
    });
}

#[test]
fn a_panic_of_an_iterator_is_the_callers() {
    in_both(|| {
        let burnt = || -> Option<i32> { resume_unwind(Box::new("burnt")) };
        let items = || {
            (0..3)
                .map(Some)
                .chain([None])
                .map(|item| item.or_else(burnt).unwrap())
        };
        let living = Living::default();
        let result = living.outlived_by(|| {
            map_concurrent(2, items(), |_| {
                let _one = living.one();
                let _cleanup = on_drop(pause);
                pause();
            })
        });
        assert_eq!(text(&*result.unwrap_err()), "burnt");
        let closures = items().map(|_| || drop(living.one()));
        assert_eq!(
            text(&*living.outlived_by(|| join_all(closures)).unwrap_err()),
            "burnt"
        );
    });
}

#[test]
fn captures_of_a_closure_that_never_starts_may_wait_when_they_are_dropped() {
    in_both(|| {
        let log = Log::default();
        scope(|s| {
            let guard = on_drop(|| {
                await_in_drop(yield_now()).unwrap();
                log.add("dropped");
            });
            s.spawn(move || drop(guard)).abort();
            pause();
            log.add("body");
        });
        assert_eq!(log.take().len(), 2);
    });
}

#[test]
fn a_panic_that_is_kept_by_a_forgotten_handle_is_not_raised() {
    in_both(|| {
        let sum = scope(|s| {
            mem::forget(s.spawn(|| resume_unwind(Box::new("nobody's"))));
            let first = s.spawn(|| 1);
            // A handle is joined by another closure, and in a nested scope.
            let second = s.spawn(move || first.join().unwrap() + 1);
            join(move || second.join().unwrap(), pause).0
        });
        assert_eq!(sum, 2);
    });
}

#[test]
fn a_closure_may_abort_itself_and_others_in_a_destructor() {
    in_both(|| {
        let log = Log::default();
        scope(|s| {
            let handle = Rc::new(RefCell::new(None));
            let own = s.spawn({
                let (handle, log) = (handle.clone(), &log);
                move || {
                    pause();
                    let other = s.spawn(|| {
                        let _guard = log.on_drop("other");
                        await_sync(pending::<()>());
                    });
                    let _guard = on_drop(move || {
                        pause();
                        other.abort();
                        other.abort();
                        log.add("own");
                    });
                    let own: greenhack::ScopedJoinHandle<'_, ()> = handle.take().unwrap();
                    own.abort();
                    await_sync(pending::<()>());
                }
            });
            handle.replace(Some(own));
        });
        assert_eq!(log.take(), ["own", "other"]);
    });
}
