//! Spans stay with the code that entered them (behaviour 26).
#![cfg(feature = "tracing")]

mod support;

use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::{Arc, Mutex};

use greenhack::{await_sync, run_sync};
use support::{Place, in_each_place, on_drop, signal};
use tokio::task::yield_now;
use tracing::instrument::{Instrument, WithSubscriber};
use tracing::{Dispatch, info, info_span};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Records each event with the names of the spans around it.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<String>>>);

impl Events {
    fn dispatch(&self) -> Dispatch {
        Dispatch::new(Registry::default().with(Recorder(self.clone())))
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

struct Recorder(Events);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        let spans: Vec<_> = context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
            .map(|span| span.name())
            .collect();
        self.0
            .0
            .lock()
            .unwrap()
            .push(format!("{}: {}", spans.join(">"), message.0));
    }
}

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
                Place::Local => greenhack::run_sync_local(f).await,
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
                        let run = greenhack::run_sync_local(f);
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
        let run = greenhack::run_sync_local(|| {
            while catch_unwind(|| await_sync(pending::<()>())).is_err() {}
        });
        tokio::select! { biased; () = run => {}, () = yield_now() => {} }
    });
    let events = events.take();
    assert_eq!(events.len(), 1);
    assert!(events[0].contains("leaked"), "{events:?}");
}
