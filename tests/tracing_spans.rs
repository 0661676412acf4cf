//! Spans stay with the code that entered them (behaviour 26).
#![cfg(feature = "tracing")]

#[path = "support/events.rs"]
mod events;
#[path = "soundness/help.rs"]
mod help;
mod support;

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use events::Events;
use greenhack::guard::{Exit, Guard, Teardown};
use greenhack::{await_in_drop, await_sync, join, run_sync, run_sync_local, scope};
use help::poll_once;
use support::{Place, in_each_place, on_drop, signal};
use tokio::task::yield_now;
use tracing::instrument::{Instrument, WithSubscriber};
use tracing::{Span, info, info_span};

#[tracing::instrument]
fn instrumented() {
    info!("before");
    await_sync(yield_now());
    info!("after");
}

#[test]
fn a_span_held_across_a_wait_is_current_again_and_nobody_elses() {
    let events = Events::default();
    support::current_thread().block_on(
        async {
            let run = run_sync(|| {
                let _outer = info_span!("outer").entered();
                instrumented();
                await_sync(async { info!("in the awaited future") });
            });
            let neighbour = async {
                info!("neighbour");
                yield_now().await;
                info!("neighbour");
            };
            tokio::join!(run, neighbour);
            info!("the end");
        }
        .with_subscriber(events.dispatch()),
    );
    let expected = [
        "outer>instrumented: before",
        ": neighbour",
        ": neighbour",
        "outer>instrumented: after",
        "outer: in the awaited future",
        ": the end",
    ];
    assert_eq!(events.take(), expected);
}

#[test]
fn the_callers_span_and_subscriber_are_current_in_each_place() {
    in_each_place(|place| async move {
        let events = Events::default();
        let run = async {
            let f = || {
                let _inner = info_span!("inner").entered();
                info!("first");
                await_sync(yield_now());
                info!("second");
                await_sync(async {
                    yield_now().await;
                    info!("third");
                });
            };
            match place {
                Place::Local => run_sync_local(f).await,
                _ => run_sync(f).await,
            }
            info!("back");
        };
        // The span must be made for that subscriber.
        let request = async { run.instrument(info_span!("request")).await };
        request.with_subscriber(events.dispatch()).await;
        let expected = [
            "request>inner: first",
            "request>inner: second",
            "request>inner: third",
            "request: back",
        ];
        assert_eq!(events.take(), expected);
    });
}

#[test]
fn spans_are_balanced_when_a_run_panics_or_is_cancelled() {
    let events = Events::default();
    let _default = tracing::dispatcher::set_default(&events.dispatch());
    support::current_thread().block_on(async {
        let panics = tokio::spawn(run_sync(|| {
            let _span = info_span!("panics").entered();
            await_sync(yield_now());
            panic_any(7_u8);
        }));
        assert!(panics.await.unwrap_err().is_panic());
        info!("after the panic");

        let (started, wait) = signal();
        let (ended, end) = signal();
        let cancelled = tokio::spawn(run_sync(move || {
            let _ended = ended;
            let _span = info_span!("cancelled").entered();
            let _guard = on_drop(|| {
                info!("unwinding");
                await_sync(yield_now());
                info!("still unwinding");
            });
            started.give();
            await_sync(pending::<()>());
        }));
        wait.wait().await;
        info!("while it is suspended");
        cancelled.abort();
        end.wait().await;
        info!("after the cancellation");

        let caught = catch_unwind(AssertUnwindSafe(|| {
            futures::FutureExt::now_or_never(run_sync(|| {
                std::mem::forget(info_span!("forgotten").entered());
            }))
        }));
        assert!(caught.is_ok());
        info!("after a forgotten guard");
    });
    let expected = [
        ": after the panic",
        ": while it is suspended",
        "cancelled: unwinding",
        "cancelled: still unwinding",
        ": after the cancellation",
        ": after a forgotten guard",
    ];
    assert_eq!(events.take(), expected);
}

#[test]
fn interleaved_runs_with_nested_spans_keep_apart() {
    in_each_place(|place| async move {
        let tasks: Vec<_> = (0..100)
            .map(|id| {
                let events = Events::default();
                let f = move || {
                    let _a = info_span!("a").entered();
                    await_sync(yield_now());
                    for _ in 0..3 {
                        let _b = info_span!("b").entered();
                        await_sync(yield_now());
                        info!("{id}");
                    }
                    info!("{id}");
                };
                let task = match place {
                    Place::Local => {
                        let run = run_sync_local(f);
                        tokio::task::spawn_local(run.with_subscriber(events.dispatch()))
                    }
                    _ => tokio::spawn(run_sync(f).with_subscriber(events.dispatch())),
                };
                (id, events, task)
            })
            .collect();
        for (id, events, task) in tasks {
            task.await.unwrap();
            let b = format!("a>b: {id}");
            let expected = [b.clone(), b.clone(), b, format!("a: {id}")];
            assert_eq!(events.take(), expected);
        }
    });
}

#[cfg(panic = "unwind")]
#[test]
fn a_leak_is_an_error_event() {
    let events = Events::default();
    let _default = tracing::dispatcher::set_default(&events.dispatch());
    support::current_thread().block_on(async {
        let run = run_sync_local(
            || {
                while catch_unwind(|| await_sync(pending::<()>())).is_err() {}
            },
        );
        tokio::select! { biased; () = run => {}, () = yield_now() => {} }
    });
    let events = events.take();
    assert_eq!(events, [": ERROR a suspended run was leaked"]);
}

#[test]
fn a_destructor_that_gives_up_is_a_warning_event() {
    struct Door;
    impl Teardown for Door {
        async fn teardown(self, _: Exit<'_>) -> Result<(), Infallible> {
            unreachable!("nobody can wait for it");
        }
    }
    in_each_place(|place| async move {
        let events = Events::default();
        let give_up = async || {
            drop(on_drop(|| {
                assert_eq!(await_in_drop(async { unreachable!() }), None::<()>);
            }));
            info!("then");
            drop(Guard::new(Door));
        };
        let test = async {
            give_up().instrument(info_span!("task")).await;
            // In a future that a run awaits.
            let f = move || await_sync(give_up().instrument(info_span!("awaited")));
            match place {
                Place::Local => run_sync_local(f).await,
                _ => run_sync(f).await,
            }
        };
        test.with_subscriber(events.dispatch()).await;
        let warning = "WARN a destructor was to await where it can't, and has given up";
        let expected = ["task", "awaited"].map(|span| {
            [
                format!("{span}: {warning}"),
                format!("{span}: then"),
                format!("{span}: {warning}"),
            ]
        });
        assert_eq!(events.take(), expected.concat());
    });
}

#[test]
fn a_span_of_one_closure_is_not_its_siblings() {
    in_each_place(|place| async move {
        let events = Events::default();
        let steps = |name: &'static str, span: fn() -> Span| {
            move || {
                let _span = span().entered();
                for _ in 0..2 {
                    info!("{name}");
                    await_sync(yield_now());
                }
                await_sync(async {
                    info!("{name}");
                    yield_now().await;
                    info!("{name}");
                });
            }
        };
        let f = move || {
            join(
                steps("a", || info_span!("a")),
                steps("b", || info_span!("b")),
            );
            info!("between");
            scope(|s| {
                let _body = info_span!("body").entered();
                let spawned = s.spawn(steps("c", || info_span!("c")));
                steps("d", || info_span!("d"))();
                spawned.join().unwrap();
                info!("body");
            });
            info!("after");
        };
        let run = async {
            match place {
                Place::Local => run_sync_local(f).await,
                _ => run_sync(f).await,
            }
        };
        let request = async { run.instrument(info_span!("request")).await };
        request.with_subscriber(events.dispatch()).await;
        let mut events_of = events.take();
        let own = |name: &str, spans: &str| vec![format!("request>{spans}: {name}"); 4];
        let (first, rest) = events_of.split_at_mut(8);
        // They took turns: one of each is first, and one of each is last.
        for turn in [0..2, 6..8] {
            first[turn.clone()].sort();
            assert_eq!(first[turn], ["request>a: a", "request>b: b"]);
        }
        first.sort();
        assert_eq!(first, [own("a", "a"), own("b", "b")].concat());
        assert_eq!(rest[0], "request: between");
        rest[1..9].sort();
        assert_eq!(rest[1..9], [own("d", "body>d"), own("c", "c")].concat());
        assert_eq!(rest[9..], ["request>body: body", "request: after"]);
        // A worker leaves the span of the request after it has sent the outcome.
        if place != Place::Worker {
            assert!(events.enters() > 0);
        }
    });
}

/// Polls `run` in the span `request`, beside an event of a neighbour after each
/// poll. Returns what was recorded, and how often spans were entered.
fn beside_a_neighbour<T>(run: impl Future<Output = T>) -> (Vec<String>, usize) {
    let events = Events::default();
    let dispatch = events.dispatch();
    let test = async {
        let neighbour = async {
            for _ in 0..3 {
                info!("neighbour");
                yield_now().await;
            }
        };
        let request = async { run.instrument(info_span!("request")).await };
        tokio::join!(biased; request, neighbour);
    };
    support::current_thread().block_on(test.with_subscriber(dispatch.clone()));
    assert!(dispatch.current_span().id().is_none());
    (events.take(), events.enters())
}

#[test]
fn a_span_that_is_entered_many_times_is_left_as_often() {
    let (events, enters) = beside_a_neighbour(run_sync(|| {
        let (a, b) = (info_span!("a"), info_span!("b"));
        let first = a.enter();
        let second = a.enter();
        let third = a.enter();
        let other = b.enter();
        await_sync(yield_now());
        info!("in b");
        drop((other, third, second));
        info!("in a");
        await_sync(yield_now());
        info!("still in a");
        drop(first);
        info!("in neither");
    }));
    let expected = [
        ": neighbour",
        "request>b: in b",
        "request>a: in a",
        ": neighbour",
        "request>a: still in a",
        "request: in neither",
        ": neighbour",
    ];
    assert_eq!(events, expected);
    // The request at each of 3 polls and at its end; the others first, and when
    // the run was resumed.
    assert_eq!(enters, 4 + 2 * 4 + 1);
}

#[test]
fn a_span_that_is_open_outside_and_entered_again_is_nobody_elses() {
    let (events, enters) = beside_a_neighbour(run_sync(|| {
        let request = Span::current();
        let inner = info_span!("inner").entered();
        request.in_scope(|| {
            request.in_scope(|| await_sync(yield_now()));
            info!("in the inner");
        });
        drop(inner);
        await_sync(yield_now());
        info!("in the request");
    }));
    let expected = [
        ": neighbour",
        "request>inner: in the inner",
        ": neighbour",
        "request: in the request",
        ": neighbour",
    ];
    assert_eq!(events, expected);
    assert_eq!(enters, 4 + 2 * 3);
}

#[test]
fn an_outer_span_that_is_not_the_innermost_may_be_entered_again() {
    let root = Arc::new(Mutex::new(Span::none()));
    let run = {
        let root = root.clone();
        run_sync(move || {
            let root = root.lock().unwrap().clone();
            let _root = root.enter();
            await_sync(yield_now());
            await_sync(async { info!("in the request") });
        })
    };
    let request = async {
        *root.lock().unwrap() = Span::current();
        run.instrument(info_span!("inner")).await;
    };
    let (events, _) = beside_a_neighbour(request);
    let expected = [
        ": neighbour",
        "request>inner: in the request",
        ": neighbour",
        ": neighbour",
    ];
    assert_eq!(events, expected);
}

#[test]
fn what_the_outside_has_entered_twice_stays_its_own() {
    let mut run = run_sync_local(|| {
        for _ in 0..4 {
            await_sync(yield_now());
        }
    });
    let outside = poll_fn(move |cx| {
        let request = Span::current();
        request.in_scope(|| request.in_scope(|| Pin::new(&mut run).poll(cx)))
    });
    let (_, enters) = beside_a_neighbour(outside);
    // 5 polls, in 3 spans each, and the end. The first suspension can't know
    // whose they are and exits two, which the next poll makes up for.
    assert_eq!(enters, 5 * 3 + 1 + 2);
}

#[test]
fn guards_may_be_dropped_in_any_order_across_waits() {
    let (events, _) = beside_a_neighbour(run_sync(|| {
        let first = info_span!("first").entered();
        let second = info_span!("second").entered();
        await_sync(yield_now());
        drop(first);
        info!("in the second");
        await_sync(yield_now());
        info!("still in the second");
        drop(second);
        info!("in neither");
    }));
    let expected = [
        ": neighbour",
        "request>first>second: in the second",
        ": neighbour",
        "request>first>second: still in the second",
        "request: in neither",
        ": neighbour",
    ];
    assert_eq!(events, expected);
}

#[test]
fn a_forgotten_guard_ends_with_its_run() {
    let (events, _) = beside_a_neighbour(run_sync(|| {
        std::mem::forget(info_span!("forgotten").entered());
        await_sync(yield_now());
        info!("in the run");
        await_sync(yield_now());
    }));
    let expected = [
        ": neighbour",
        "request>forgotten: in the run",
        ": neighbour",
        ": neighbour",
    ];
    assert_eq!(events, expected);
}

#[test]
fn a_span_that_is_closed_while_its_run_is_suspended_is_not_entered_again() {
    let (give, take) = std::sync::mpsc::channel();
    let run = run_sync(move || {
        let span = info_span!("closed");
        std::mem::forget(span.enter());
        give.send(span).unwrap();
        await_sync(yield_now());
        info!("after");
        info_span!("new").in_scope(|| await_sync(yield_now()));
        info!("after");
    });
    let closes = async move { drop(take.recv().unwrap()) };
    let (events, _) = beside_a_neighbour(async { tokio::join!(biased; run, closes) });
    let expected = [
        ": neighbour",
        "request: after",
        ": neighbour",
        "request: after",
        ": neighbour",
    ];
    assert_eq!(events, expected);
}

#[test]
fn a_disabled_span_is_as_if_it_were_not_there() {
    let (events, enters) = beside_a_neighbour(run_sync(|| {
        let _none = Span::none().entered();
        let _some = info_span!("some").entered();
        let _none = Span::none().entered();
        await_sync(yield_now());
        info!("in some");
    }));
    let expected = [
        ": neighbour",
        "request>some: in some",
        ": neighbour",
        ": neighbour",
    ];
    assert_eq!(events, expected);
    assert_eq!(enters, 3 + 2);
}

#[test]
fn nested_runs_keep_their_spans_in_those_of_the_outer() {
    let (events, _) = beside_a_neighbour(run_sync(|| {
        let _outer = info_span!("outer").entered();
        let nested = run_sync_local(|| {
            let _nested = info_span!("nested").entered();
            await_sync(yield_now());
            info!("in the nested");
        });
        let watcher = async {
            info!("beside the nested");
            yield_now().await;
            info!("beside the nested");
        };
        await_sync(async { tokio::join!(biased; nested, watcher) });
        info!("in the outer");
    }));
    let expected = [
        "request>outer: beside the nested",
        ": neighbour",
        "request>outer>nested: in the nested",
        "request>outer: beside the nested",
        "request>outer: in the outer",
        ": neighbour",
        ": neighbour",
    ];
    assert_eq!(events, expected);
}

#[test]
fn a_run_that_is_polled_in_another_span_takes_only_its_own_along() {
    let events = Events::default();
    let dispatch = events.dispatch();
    let test = async {
        let mut run = Box::pin(run_sync_local(|| {
            let _inner = info_span!("inner").entered();
            await_sync(yield_now());
            info!("at the second poll");
        }));
        let first = poll_once(&mut run).instrument(info_span!("first")).await;
        assert!(first.is_pending());
        run.instrument(info_span!("second")).await;
    };
    support::current_thread().block_on(test.with_subscriber(dispatch));
    // Its parent is what it was made in.
    assert_eq!(events.take(), ["first>inner: at the second poll"]);
    // The two at their ends, too.
    assert_eq!(events.enters(), 6);
}
