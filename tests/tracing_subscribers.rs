//! Several subscribers on one thread: set around tasks, and in plain code that
//! waits.
#![cfg(feature = "tracing")]

#[path = "support/events.rs"]
mod events;
#[path = "soundness/help.rs"]
mod help;
mod support;

use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{self, ThreadId};
use std::time::Duration;

use events::Events;
use futures::FutureExt;
use greenhack::{await_in_drop, await_sync, run_sync, run_sync_local};
use help::{poll_once, settle, succeeds_in_child};
use support::{Place, current_thread, in_each_place, on_drop};
use tokio::task::yield_now;
use tracing::dispatcher::{get_default, set_default, with_default};
use tracing::instrument::{Instrument, WithSubscriber};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::NoSubscriber;
use tracing::{Dispatch, Event, Metadata, Subscriber, info, info_span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Whether nothing records here.
fn nobody_listens() -> bool {
    get_default(|dispatch| dispatch.is::<NoSubscriber>())
}

#[test]
fn a_subscriber_set_in_plain_code_is_set_aside_while_it_waits() {
    let (outer, inner) = (Events::default(), Events::default());
    let dispatch = inner.dispatch();
    let run = run_sync(move || {
        let _outer = info_span!("outer").entered();
        with_default(&dispatch, || {
            let _inner = info_span!("inner").entered();
            info!("set");
            await_sync(yield_now());
            info!("set again");
            await_sync(async { info!("in the awaited future") });
        });
        info!("not set any more");
        await_sync(yield_now());
        info!("not set again");
    });
    let neighbour = async {
        for _ in 0..3 {
            info!("neighbour");
            yield_now().await;
        }
    };
    current_thread()
        .block_on(async { tokio::join!(biased; run, neighbour) }.with_subscriber(outer.dispatch()));
    let expected = [
        "inner: set",
        "inner: set again",
        "inner: in the awaited future",
    ];
    assert_eq!(inner.take(), expected);
    let expected = [
        ": neighbour",
        "outer: not set any more",
        ": neighbour",
        "outer: not set again",
        ": neighbour",
    ];
    assert_eq!(outer.take(), expected);
    assert_eq!((outer.enters(), inner.enters()), (3, 2));
}

#[test]
fn runs_with_subscribers_of_their_own_interleave_in_each_place() {
    in_each_place(|place| async move {
        let outer = Events::default();
        let dispatch = outer.dispatch();
        let tasks: Vec<_> = (0..20)
            .map(|id| {
                let (one, other) = (Events::default(), Events::default());
                let (first, second) = (one.dispatch(), other.dispatch());
                let run = move || {
                    with_default(&first, || {
                        let _a = info_span!("a").entered();
                        (0..=id % 5).for_each(|_| await_sync(yield_now()));
                        with_default(&second, || {
                            let _b = info_span!("b").entered();
                            await_sync(yield_now());
                            info!("{id}");
                        });
                        await_sync(yield_now());
                        info!("{id}");
                    });
                    await_sync(yield_now());
                    info!("done");
                };
                let task = match place {
                    Place::Local => {
                        let run = run_sync_local(run).with_subscriber(dispatch.clone());
                        tokio::task::spawn_local(run)
                    }
                    _ => tokio::spawn(run_sync(run).with_subscriber(dispatch.clone())),
                };
                (id, one, other, task)
            })
            .collect();
        for (id, one, other, task) in tasks {
            task.await.unwrap();
            assert_eq!(one.take(), [format!("a: {id}")]);
            assert_eq!(other.take(), [format!("b: {id}")]);
            assert_eq!(
                (one.enters(), other.enters()),
                (4 + id % 5, 2),
                "in the {id}th run"
            );
        }
        assert_eq!(outer.take(), [": done"; 20]);
        assert!(nobody_listens());
    });
}

#[test]
fn a_subscriber_is_not_left_behind_by_a_cancellation_or_a_panic() {
    let events = Events::default();
    let dispatch = events.dispatch();
    current_thread().block_on(async {
        let mut run = run_sync_local({
            let dispatch = dispatch.clone();
            move || {
                with_default(&dispatch, || {
                    let _span = info_span!("cancelled").entered();
                    let _guard = on_drop(|| info!("unwinding"));
                    await_sync(pending::<()>())
                });
            }
        });
        assert!(poll_once(&mut run).await.is_pending());
        assert!(nobody_listens());
        drop(run);
        assert!(nobody_listens());
        let run = run_sync_local(move || {
            with_default(&dispatch, || {
                let _span = info_span!("panics").entered();
                await_sync(yield_now());
                info!("before the panic");
                std::panic::panic_any(7);
            });
        });
        let panics = futures::FutureExt::catch_unwind(AssertUnwindSafe(run)).await;
        assert!(panics.is_err());
        assert!(nobody_listens());
    });
    let expected = ["cancelled: unwinding", "panics: before the panic"];
    assert_eq!(events.take(), expected);
    // Each is entered, and again when its run is resumed.
    assert_eq!(events.enters(), 4);
}

#[test]
fn a_forgotten_guard_of_a_subscriber_ends_with_its_run() {
    let events = Events::default();
    let dispatch = events.dispatch();
    current_thread().block_on(async {
        let run = run_sync_local(move || {
            std::mem::forget(set_default(&dispatch));
            await_sync(yield_now());
            info!("in the run");
        });
        run.await;
        assert!(nobody_listens());
    });
    assert_eq!(events.take(), [": in the run"]);
}

#[test]
fn cleanup_that_waits_leaves_no_span_in_the_subscriber_of_its_task() {
    let events = Events::default();
    let dispatch = events.dispatch();
    current_thread().block_on(async {
        let run = run_sync(|| {
            let _span = info_span!("cleanup").entered();
            let _guard = on_drop(|| {
                await_in_drop(yield_now());
                await_in_drop(yield_now());
            });
            await_sync(pending::<()>());
        });
        let task = tokio::spawn(run.with_subscriber(dispatch.clone()));
        settle().await;
        task.abort();
        for _ in 0..10 {
            yield_now().await;
            assert!(dispatch.current_span().id().is_none());
        }
    });
    assert!(events.enters() >= 4);
}

#[test]
fn a_nested_run_has_the_subscriber_that_is_set_around_it() {
    let (outer, inner) = (Events::default(), Events::default());
    let dispatch = inner.dispatch();
    let run = run_sync(move || {
        let _outer = info_span!("outer").entered();
        let nested = run_sync_local(|| {
            let _nested = info_span!("nested").entered();
            await_sync(yield_now());
            info!("nested");
        });
        await_sync(async {
            let nested = async { nested.instrument(info_span!("around")).await };
            nested.with_subscriber(dispatch).await;
        });
        info!("outer");
    });
    current_thread().block_on(run.with_subscriber(outer.dispatch()));
    assert_eq!(inner.take(), ["around>nested: nested"]);
    assert_eq!(outer.take(), ["outer: outer"]);
    assert_eq!((outer.enters(), inner.enters()), (2, 5));
}

/// Has no registry, and tells nothing.
struct Plain(Arc<AtomicUsize>);

impl Subscriber for Plain {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, SeqCst);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn a_subscriber_that_tells_nothing_is_set_aside_too() {
    let events = Arc::default();
    let count = || AtomicUsize::swap(&events, 0, SeqCst);
    let dispatch = Dispatch::new(Plain(Arc::clone(&events)));
    current_thread().block_on(async {
        let mut run = run_sync_local(move || {
            with_default(&dispatch, || {
                let _span = info_span!("inner").entered();
                await_sync(yield_now());
                info!("inner");
                await_sync(yield_now());
            });
            info!("outer");
        });
        for expected in [0, 1] {
            assert!(poll_once(&mut run).await.is_pending());
            info!("outside");
            assert_eq!(count(), expected);
        }
        run.await;
        info!("outside");
        assert_eq!(count(), 0);
    });
    assert_eq!(Arc::strong_count(&events), 1);
}

#[test]
fn a_run_keeps_no_subscriber_alive() {
    current_thread().block_on(async {
        let events = Arc::default();
        let dispatch = Dispatch::new(Plain(Arc::clone(&events)));
        let run = run_sync_local(|| {
            let _span = info_span!("span").entered();
            await_sync(yield_now());
        });
        run.with_subscriber(dispatch).await;
        assert_eq!(Arc::strong_count(&events), 1);

        let events = Events::default();
        let weak = events.dispatch().downgrade();
        assert!(weak.upgrade().is_none());
        let dispatch = events.dispatch();
        let weak = dispatch.downgrade();
        let mut run = run_sync_local(move || {
            with_default(&dispatch, || {
                let _span = info_span!("span").entered();
                await_sync(yield_now());
            });
            drop(dispatch);
            await_sync(pending::<()>());
        });
        assert!(poll_once(&mut run).await.is_pending());
        assert!(weak.upgrade().is_some());
        assert!(poll_once(&mut run).await.is_pending());
        assert!(weak.upgrade().is_none());
    });
}

#[test]
fn a_global_subscriber_is_that_of_every_run_and_worker() {
    succeeds_in_child(
        "a_global_subscriber_is_that_of_every_run_and_worker",
        || {
            let (global, inner) = (Events::default(), Events::default());
            let run = |dispatch: Option<Dispatch>| {
                move || {
                    let _span = info_span!("inner").entered();
                    await_sync(yield_now());
                    if let Some(dispatch) = dispatch {
                        with_default(&dispatch, || {
                            await_sync(yield_now());
                            info!("elsewhere");
                        });
                    }
                    info!("in the run");
                }
            };
            in_each_place(|place| async move { place.spawn(run(None)).await.unwrap() });
            // A run that waits does not pretend that somebody listens.
            assert!(!tracing::dispatcher::has_been_set());
            tracing::dispatcher::set_global_default(global.dispatch()).unwrap();
            let dispatch = inner.dispatch();
            in_each_place(|place| {
                let dispatch = dispatch.clone();
                async move {
                    let request = async {
                        place.spawn(run(None)).await.unwrap();
                        let f = run(Some(dispatch.clone()));
                        match place {
                            Place::Local => run_sync_local(f).await,
                            _ => run_sync(f).await,
                        }
                        info!("back");
                    };
                    request.instrument(info_span!("request")).await;
                }
            });
            let expected = [
                "inner: in the run",
                "request>inner: in the run",
                "request: back",
            ];
            assert_eq!(global.take(), expected.repeat(3));
            assert_eq!(inner.take(), [": elsewhere"; 3]);
            // A worker exits the span of the caller after it has sent the outcome.
            await_sync(greenhack::workers::shutdown(Duration::from_secs(10)));
            assert!(global.enters() > 0);
        },
    );
}

#[test]
fn a_panic_of_a_run_does_not_hide_its_subscriber() {
    let events = Events::default();
    let dispatch = events.dispatch();
    current_thread().block_on(run_sync_local(move || {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            with_default(&dispatch, || {
                await_sync(async {
                    yield_now().await;
                    info!("in the future");
                    std::panic::panic_any(7);
                })
            })
        }));
        assert!(caught.is_err());
        await_sync(yield_now());
        assert!(nobody_listens());
    }));
    assert_eq!(events.take(), [": in the future"]);
}

/// A layer that panics when a span is entered, or exited, but not on its own thread.
struct PanicsElsewhere {
    home: ThreadId,
    at_enter: bool,
}

impl PanicsElsewhere {
    fn look(&self, what: &'static str) {
        if thread::current().id() != self.home {
            panic_any(what);
        }
    }
}

impl<S: Subscriber> Layer<S> for PanicsElsewhere {
    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        if self.at_enter {
            self.look("at the enter");
        }
    }

    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        if !self.at_enter {
            self.look("at the exit");
        }
    }
}

#[test]
fn a_panic_of_the_callers_subscriber_on_a_worker_reaches_the_caller() {
    let fixture = support::Fixture::new(Place::Worker);
    for at_enter in [true, false] {
        let home = thread::current().id();
        let layer = PanicsElsewhere { home, at_enter };
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
        let (ended, has_ended) = std::sync::mpsc::channel();
        let run = with_default(&dispatch, || {
            let run = run_sync(move || {
                let _guard = on_drop(move || ended.send(()).unwrap());
                await_sync(pending::<()>());
            });
            run.instrument(info_span!("request"))
        });
        let run = AssertUnwindSafe(run.with_subscriber(dispatch));
        let payload = fixture.block_on(run.catch_unwind()).unwrap_err();
        let expected = if at_enter {
            "at the enter"
        } else {
            "at the exit"
        };
        assert_eq!(support::text(&*payload), expected);
        // It has not started, or is cancelled.
        assert_eq!(has_ended.recv().is_ok(), !at_enter);
    }
    assert_eq!(fixture.block_on(run_sync(|| 1)), 1);
}
