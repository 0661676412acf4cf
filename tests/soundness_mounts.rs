//! Attacks by code that is called when a run is mounted and unmounted: ambient
//! contexts, and subscribers of tracing.
#![cfg(panic = "unwind")]

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::thread;

use futures::FutureExt;
use greenhack::{
    Ambient, await_in_drop, await_sync, in_context, leaked_runs, run_sync, run_sync_local,
    try_await_sync, with_ambient,
};
use help::{AnyRun, multi_thread, poll_once, settle, succeeds_in_child};
use support::{Log, current_thread, on_drop, panic_of, text};
use tokio::task::yield_now;

/// Calls a closure with the number of each call: even ones are mounts.
struct Calls<F: FnMut(usize)> {
    call: F,
    count: usize,
    mounted: Rc<Cell<bool>>,
}

impl<F: FnMut(usize)> Calls<F> {
    fn new(call: F) -> Self {
        Calls {
            call,
            count: 0,
            mounted: Rc::default(),
        }
    }
}

impl<F: FnMut(usize)> Ambient for Calls<F> {
    fn mount(&mut self) {
        assert!(!self.mounted.replace(true), "mounted twice");
        self.count += 1;
        let call = AssertUnwindSafe(|| (self.call)(self.count - 1));
        if let Err(payload) = catch_unwind(call) {
            self.mounted.set(false);
            resume_unwind(payload);
        }
    }

    fn unmount(&mut self) {
        assert!(self.mounted.replace(false), "unmounted twice");
        self.count += 1;
        (self.call)(self.count - 1);
    }
}

/// Polls a run once, and returns the payload of the panic.
async fn poll_panics(run: &mut AnyRun) -> Box<dyn std::any::Any + Send> {
    let polled = AssertUnwindSafe(async { poll_once(run).await.is_pending() });
    polled.catch_unwind().await.unwrap_err()
}

/// Panics at the call `at`.
fn panics(at: usize) -> impl Ambient {
    Calls::new(move |count| {
        if count == at {
            resume_unwind(Box::new(at));
        }
    })
}

fn balance(log: &Log, name: &'static str) -> impl Ambient + use<> {
    let log = log.clone();
    Calls::new(move |count| log.add(format!("{}{name}", if count % 2 == 0 { '+' } else { '-' })))
}

#[test]
fn a_panic_in_the_first_mount_is_the_callers_and_nothing_is_mounted() {
    let log = Log::default();
    let inner = log.clone();
    current_thread().block_on(run_sync_local(move || {
        with_ambient(balance(&inner, "a"), || {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                with_ambient(panics(0), || unreachable!("it is not mounted"));
            }));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&0_usize));
            await_sync(yield_now());
        });
        assert!(in_context());
    }));
    assert_eq!(log.take(), ["+a", "-a", "+a", "-a"]);
}

#[test]
fn a_panic_in_the_last_unmount_is_the_callers() {
    current_thread().block_on(run_sync_local(|| {
        let caught = catch_unwind(|| with_ambient(panics(1), || 5));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&1_usize));
        // Unless it would hide another panic, or abort.
        let caught = catch_unwind(|| with_ambient(panics(1), || resume_unwind(Box::new("first"))));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"first"));
        assert!(in_context());
    }));
}

#[test]
fn a_panic_at_a_poll_passes_and_the_run_can_go_on() {
    for at in 1..=4 {
        let log = Log::default();
        let inner = log.clone();
        current_thread().block_on(async {
            let mut run: AnyRun = Box::pin(run_sync_local(move || {
                with_ambient(balance(&inner, "a"), || {
                    with_ambient(panics(at), || {
                        with_ambient(balance(&inner, "b"), || {
                            await_sync(yield_now());
                            await_sync(yield_now());
                        });
                    });
                });
            }));
            // A mount that panics lets one poll fail, before the run is resumed.
            for _ in 0..at / 2 {
                assert!(poll_once(&mut run).await.is_pending());
            }
            let payload = poll_panics(&mut run).await;
            assert_eq!(payload.downcast_ref(), Some(&at));
            assert!(!in_context());
            let events = log.take();
            assert_eq!(events[events.len() - 2..], ["-b", "-a"], "{events:?}");
            run.await;
        });
        let events = log.take();
        assert_eq!(events[..2], ["+a", "+b"]);
        assert_eq!(events[events.len() - 2..], ["-b", "-a"]);
    }
}

#[test]
fn panics_do_not_keep_a_cancelled_run_from_its_cleanup() {
    for at in 2..8 {
        let log = Log::default();
        let inner = log.clone();
        current_thread().block_on(async {
            let mut run = run_sync_local(move || {
                with_ambient(balance(&inner, "a"), || {
                    with_ambient(panics(at), || {
                        let _waits = on_drop(|| {
                            await_in_drop(yield_now());
                            await_in_drop(yield_now());
                            inner.add("waited");
                        });
                        await_sync(pending::<()>());
                    });
                });
                inner.add("unreachable");
            });
            assert!(poll_once(&mut run).await.is_pending());
            drop(run);
            settle().await;
        });
        let events = log.take();
        let waited = events.iter().position(|event| event == "waited");
        assert!(waited.is_some(), "{events:?}");
        assert_eq!(events.last().unwrap(), "-a");
        assert!(!events.contains(&"unreachable".to_owned()));
    }
    assert_eq!(leaked_runs(), 0);
}

#[test]
fn panics_in_the_unwinding_of_a_task_do_not_abort() {
    succeeds_in_child("panics_in_the_unwinding_of_a_task_do_not_abort", || {
        for at in 2..6 {
            let ended = Rc::new(Cell::new(false));
            let guard = ended.clone();
            let caught = catch_unwind(AssertUnwindSafe(|| {
                current_thread().block_on(async {
                    let mut run = run_sync_local(move || {
                        let _guard = on_drop(|| guard.set(true));
                        with_ambient(panics(at), || await_sync(pending::<()>()));
                    });
                    assert!(poll_once(&mut run).await.is_pending());
                    resume_unwind(Box::new("the task"));
                });
            }));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"the task"));
            assert!(ended.get());
            assert!(!thread::panicking());
        }
        assert_eq!(leaked_runs(), 0);
    });
}

#[test]
fn a_payload_that_panics_is_contained() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            DROPS.fetch_add(1, SeqCst);
            if !thread::panicking() {
                resume_unwind(Box::new(Bomb));
            }
        }
    }
    current_thread().block_on(async {
        let bombs = || {
            Calls::new(|count| {
                if count > 1 {
                    resume_unwind(Box::new(Bomb))
                }
            })
        };
        let mut run: AnyRun = Box::pin(run_sync_local(move || {
            with_ambient(bombs(), || {
                with_ambient(bombs(), || await_sync(pending::<()>()));
            });
        }));
        assert!(poll_once(&mut run).await.is_pending());
        // The first comes out, the second is dropped.
        std::mem::forget(poll_panics(&mut run).await);
        assert_eq!(DROPS.swap(0, SeqCst), 1);
        drop(run);
    });
    assert_eq!(leaked_runs(), 0);
}

#[test]
fn waiting_in_a_mount_is_refused_at_its_line() {
    fn waits() -> impl Ambient {
        Calls::new(|_| {
            assert!(!in_context());
            let refused = try_await_sync(yield_now()).unwrap_err();
            assert!(refused.is_async_code());
            let mut line = 0;
            let (message, at, file) = panic_of(|| {
                line = line!() + 1;
                await_sync(yield_now());
            });
            assert_eq!((at, file.as_str()), (line, file!()));
            assert!(message.contains("`Ambient`"), "{message}");
        })
    }
    current_thread().block_on(async {
        let mut run = run_sync_local(|| {
            with_ambient(waits(), || {
                await_sync(yield_now());
                assert!(in_context());
                await_sync(pending::<()>());
            });
        });
        assert!(poll_once(&mut run).await.is_pending());
        assert!(poll_once(&mut run).await.is_pending());
        drop(run);
    });
    // Where a wait would block.
    with_ambient(waits(), || assert_eq!(await_sync(async { 1 }), 1));
    multi_thread().block_on(run_sync(|| {
        with_ambient(waits(), || await_sync(yield_now()))
    }));
    assert_eq!(leaked_runs(), 0);
}

fn suspended(log: &Log, name: &'static str) -> AnyRun {
    let log = log.clone();
    let run = run_sync_local(move || {
        with_ambient(balance(&log, name), || {
            let _guard = on_drop(|| await_in_drop(async { log.add(name) }).unwrap());
            await_sync(yield_now());
            await_sync(pending::<()>());
        });
    });
    Box::pin(run)
}

fn poll(run: &mut AnyRun) -> Poll<()> {
    run.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_mount_may_start_poll_and_drop_other_runs() {
    let log = Log::default();
    let others: Rc<RefCell<Vec<AnyRun>>> = Rc::default();
    current_thread().block_on(async {
        let (inner, list) = (log.clone(), others.clone());
        let mut run = run_sync_local(move || {
            let attacks = Calls::new(move |count| {
                let mut others = list.borrow_mut();
                match count % 3 {
                    0 => others.push(suspended(&inner, "other")),
                    1 => assert!(others.iter_mut().all(|other| poll(other).is_pending())),
                    _ => {
                        let all = std::mem::take(&mut *others);
                        drop(others);
                        drop(all);
                    }
                }
                assert!(!in_context());
            });
            with_ambient(attacks, || {
                (0..6).for_each(|_| await_sync(yield_now()));
                assert!(in_context());
            });
        });
        for _ in 0..6 {
            assert!(poll_once(&mut run).await.is_pending());
        }
        run.await;
    });
    drop(others.take());
    let events = log.take();
    let count = |what: &str| events.iter().filter(|event| *event == what).count();
    assert_eq!(count("+other"), count("-other"));
    assert!(count("other") >= 3, "{events:?}");
    assert_eq!(leaked_runs(), 0);
}

#[test]
fn a_mount_can_not_get_at_its_own_run() {
    let slot: Rc<RefCell<Option<AnyRun>>> = Rc::default();
    let own = slot.clone();
    let run = run_sync_local(move || {
        let attacks = Calls::new(move |_| {
            // It is borrowed by the poll, or in the hands of who drops it.
            if let Ok(slot) = own.try_borrow_mut() {
                assert!(slot.is_none());
            }
        });
        with_ambient(attacks, || await_sync(pending::<()>()));
    });
    *slot.borrow_mut() = Some(Box::pin(run));
    current_thread().block_on(async {
        let polled = std::future::poll_fn(|cx| {
            let mut slot = slot.borrow_mut();
            Poll::Ready(slot.as_mut().unwrap().as_mut().poll(cx))
        });
        assert!(polled.await.is_pending());
        let run = slot.take();
        drop(run);
    });
}

#[test]
fn a_mount_may_abort_its_own_task() {
    let log = Log::default();
    current_thread().block_on(async {
        let (inner, guard) = (log.clone(), log.on_drop("unwound"));
        let local = tokio::task::LocalSet::new();
        let slot: Rc<RefCell<Option<tokio::task::JoinHandle<()>>>> = Rc::default();
        let own = slot.clone();
        let run = run_sync_local(move || {
            let _guard = guard;
            let aborts = Calls::new(move |count| {
                if count == 2 {
                    own.borrow().as_ref().unwrap().abort();
                }
            });
            with_ambient(aborts, || {
                await_sync(yield_now());
                inner.add("resumed");
                await_sync(yield_now());
                inner.add("unreachable");
            });
        });
        *slot.borrow_mut() = Some(local.spawn_local(run));
        local.run_until(settle()).await;
        let task = slot.take().unwrap();
        assert!(local.run_until(task).await.unwrap_err().is_cancelled());
    });
    assert_eq!(log.take(), ["resumed", "unwound"]);
}

#[test]
fn contexts_in_a_mount_are_those_of_a_call() {
    let log = Log::default();
    let inner = log.clone();
    current_thread().block_on(run_sync_local(move || {
        let outer = inner.clone();
        let nests = Calls::new(move |_| {
            with_ambient(balance(&inner, "in"), || {
                with_ambient(balance(&inner, "deep"), || ());
            });
        });
        with_ambient(balance(&outer, "out"), || {
            with_ambient(nests, || await_sync(yield_now()));
        });
    }));
    let events = log.take();
    assert_eq!(events.len(), 4 + 4 * 4);
    assert_eq!(events[1..5], ["+in", "+deep", "-deep", "-in"]);
}

#[test]
fn over_the_hop_a_panic_of_a_mount_is_the_callers() {
    let log = Log::default();
    let guard = log.on_drop("unwound");
    multi_thread().block_on(async {
        let run = run_sync(move || {
            let _guard = guard;
            with_ambient(panics(2), || await_sync(yield_now()));
        });
        let payload = tokio::spawn(run).await.unwrap_err().into_panic();
        assert_eq!(payload.downcast_ref(), Some(&2_usize));
    });
    assert_eq!(log.take(), ["unwound"]);
    assert_eq!(leaked_runs(), 0);
}

#[test]
fn a_context_may_be_dropped_with_a_panic() {
    struct DropPanics;
    impl Ambient for DropPanics {
        fn mount(&mut self) {}
        fn unmount(&mut self) {}
    }
    impl Drop for DropPanics {
        fn drop(&mut self) {
            resume_unwind(Box::new("drop"));
        }
    }
    let log = Log::default();
    let inner = log.clone();
    current_thread().block_on(run_sync_local(move || {
        with_ambient(balance(&inner, "a"), || {
            let caught = catch_unwind(|| with_ambient(DropPanics, || await_sync(yield_now())));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"drop"));
            await_sync(yield_now());
        });
    }));
    assert_eq!(log.take().len(), 6);
}

#[cfg(feature = "tracing")]
mod subscribers {
    use super::*;

    use tracing::instrument::WithSubscriber;
    use tracing::span::Id;
    use tracing::{Dispatch, Event, Subscriber, info, info_span};
    use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};
    use tracing_subscriber::registry::LookupSpan;

    /// Calls a closure at every enter, exit and event.
    struct Attacks<F>(F);

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Callback {
        Enter,
        Exit,
        Event,
    }

    impl<S, F> Layer<S> for Attacks<F>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        F: Fn(Callback) + 'static,
    {
        fn on_enter(&self, _: &Id, _: LayerContext<'_, S>) {
            (self.0)(Callback::Enter);
        }

        fn on_exit(&self, _: &Id, _: LayerContext<'_, S>) {
            (self.0)(Callback::Exit);
        }

        fn on_event(&self, _: &Event<'_>, _: LayerContext<'_, S>) {
            (self.0)(Callback::Event);
        }
    }

    fn dispatch(attack: impl Fn(Callback) + Send + Sync + 'static) -> Dispatch {
        Dispatch::new(tracing_subscriber::registry().with(Attacks(attack)))
    }

    fn assert_balanced(dispatch: &Dispatch) {
        assert!(dispatch.current_span().id().is_none());
    }

    #[test]
    fn a_subscriber_that_panics_leaves_no_span_behind() {
        // At which enter or exit, of a run with two spans: it is polled, polled
        // again, and dropped while it waits in a destructor.
        for at in 2..12 {
            let count = AtomicUsize::new(0);
            let dispatch = dispatch(move |_| {
                if count.fetch_add(1, SeqCst) == at {
                    resume_unwind(Box::new(at));
                }
            });
            let log = Log::default();
            let guard = log.on_drop("unwound");
            let test = async {
                let mut run: AnyRun = Box::pin(run_sync_local(move || {
                    let _guard = guard;
                    let _outer = info_span!("outer").entered();
                    let _inner = info_span!("inner").entered();
                    let _waits = on_drop(|| await_in_drop(yield_now()).unwrap());
                    await_sync(yield_now());
                    await_sync(pending::<()>());
                }));
                let mut passed = 0;
                for _ in 0..2 {
                    let polled = AssertUnwindSafe(async { poll_once(&mut run).await });
                    match polled.catch_unwind().await {
                        Ok(poll) => assert!(poll.is_pending()),
                        Err(payload) => {
                            assert_eq!(payload.downcast_ref(), Some(&at));
                            passed += 1;
                        }
                    }
                    assert!(!in_context());
                }
                // Those of the cleanup are nobody's.
                assert_eq!(passed, usize::from(at < 8), "at {at}");
                let dropped = catch_unwind(AssertUnwindSafe(|| drop(run)));
                assert!(dropped.is_ok());
                settle().await;
            };
            current_thread().block_on(test.with_subscriber(dispatch.clone()));
            assert_eq!(log.take(), ["unwound"], "at {at}");
            assert_balanced(&dispatch);
        }
        assert_eq!(leaked_runs(), 0);
    }

    #[test]
    fn a_subscriber_that_panics_in_an_unwind_does_not_abort() {
        succeeds_in_child(
            "subscribers::a_subscriber_that_panics_in_an_unwind_does_not_abort",
            || {
                for at in 2..6 {
                    let count = AtomicUsize::new(0);
                    let dispatch = dispatch(move |_| {
                        if count.fetch_add(1, SeqCst) == at {
                            resume_unwind(Box::new(at));
                        }
                    });
                    let run = || {
                        let span = info_span!("span");
                        // Its guard would call the subscriber in the unwind of
                        // the run, where a panic aborts, as on any thread.
                        std::mem::forget(span.enter());
                        await_sync(pending::<()>());
                    };
                    let test = async {
                        let mut run: AnyRun = Box::pin(run_sync_local(run));
                        let _ = AssertUnwindSafe(poll_once(&mut run)).catch_unwind().await;
                        resume_unwind(Box::new("the task"));
                    };
                    let caught = catch_unwind(AssertUnwindSafe(|| {
                        current_thread().block_on(test.with_subscriber(dispatch));
                    }));
                    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"the task"));
                }
                assert_eq!(leaked_runs(), 0);
            },
        );
    }

    #[test]
    fn a_subscriber_can_not_wait_when_a_run_is_mounted() {
        let refused = std::sync::Arc::new(AtomicUsize::new(0));
        let count = refused.clone();
        let dispatch = dispatch(move |_| {
            if !in_context() {
                let caught = catch_unwind(|| await_sync(yield_now()));
                let message = text(&*caught.unwrap_err());
                assert!(message.contains("itself polled"), "{message}");
                count.fetch_add(1, SeqCst);
            }
        });
        let run = run_sync_local(|| {
            let _span = info_span!("span").entered();
            await_sync(yield_now());
            await_sync(yield_now());
        });
        current_thread().block_on(run.with_subscriber(dispatch.clone()));
        assert_eq!(refused.load(SeqCst), 4);
        assert_balanced(&dispatch);
    }

    #[test]
    fn a_wait_in_the_event_of_a_subscriber_is_refused_and_harms_nobody() {
        let dispatch = dispatch(|callback| {
            if in_context() && callback == Callback::Event {
                await_sync(async {});
                await_sync(yield_now());
            }
        });
        let test = async {
            let run = run_sync_local(|| {
                let _outer = info_span!("outer").entered();
                let _inner = info_span!("inner").entered();
                for _ in 0..2 {
                    let caught = catch_unwind(|| info!("event"));
                    let message = text(&*caught.unwrap_err());
                    assert!(message.contains("in a subscriber"), "{message}");
                    await_sync(yield_now());
                }
            });
            let neighbour = async {
                for _ in 0..10 {
                    info_span!("neighbour").in_scope(|| info!("event"));
                    yield_now().await;
                }
            };
            tokio::join!(biased; run, neighbour.with_subscriber(dispatch.clone()));
        };
        current_thread().block_on(test.with_subscriber(dispatch.clone()));
        assert_balanced(&dispatch);
    }

    #[test]
    fn a_wait_in_a_subscriber_that_enters_suspends_the_run() {
        let dispatch = dispatch(|callback| {
            if in_context() && callback != Callback::Event {
                await_sync(yield_now());
            }
        });
        for polls in 1..6 {
            let test = async {
                let mut run = run_sync_local(|| {
                    let outer = info_span!("outer").entered();
                    let inner = info_span!("inner").entered();
                    drop((inner, outer));
                    await_sync(pending::<()>());
                });
                for _ in 0..polls {
                    assert!(poll_once(&mut run).await.is_pending());
                    info_span!("neighbour").in_scope(|| info!("event"));
                }
                drop(run);
                settle().await;
            };
            current_thread().block_on(test.with_subscriber(dispatch.clone()));
            assert_balanced(&dispatch);
        }
        assert_eq!(leaked_runs(), 0);
    }

    #[test]
    fn a_subscriber_may_poll_and_drop_other_runs() {
        thread_local! {
            static OTHERS: RefCell<Vec<AnyRun>> = const { RefCell::new(Vec::new()) };
            static INSIDE: Cell<bool> = const { Cell::new(false) };
        }
        static DROPS: AtomicUsize = AtomicUsize::new(0);
        fn other() -> AnyRun {
            Box::pin(run_sync_local(|| {
                let _guard = on_drop(|| {
                    DROPS.fetch_add(1, SeqCst);
                });
                let _span = info_span!("other").entered();
                await_sync(yield_now());
                await_sync(pending::<()>());
            }))
        }
        let dispatch = dispatch(|callback| {
            if INSIDE.replace(true) {
                return;
            }
            match callback {
                Callback::Enter if !in_context() => {
                    let mut run = other();
                    assert!(poll(&mut run).is_pending());
                    OTHERS.with_borrow_mut(|others| others.push(run));
                }
                Callback::Exit => {
                    let mut others = OTHERS.take();
                    assert!(others.iter_mut().all(|run| poll(run).is_pending()));
                }
                _ => {}
            }
            INSIDE.set(false);
        });
        let run = run_sync_local(|| {
            let _span = info_span!("span").entered();
            for _ in 0..4 {
                await_sync(yield_now());
                info!("event");
            }
        });
        current_thread().block_on(run.with_subscriber(dispatch.clone()));
        assert_eq!(DROPS.load(SeqCst), 4);
        assert_balanced(&dispatch);
        assert_eq!(leaked_runs(), 0);
    }

    #[test]
    fn a_run_may_be_dropped_by_the_drop_of_its_own_subscriber() {
        struct Owns(std::sync::Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>);
        impl<S: Subscriber> Layer<S> for Owns {}
        let owner: &'static std::sync::Mutex<Option<Dispatch>> = Box::leak(Box::default());
        let log = Log::default();
        let guard = log.on_drop("unwound");
        current_thread().block_on(async {
            let mut run: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(run_sync(move || {
                let _guard = guard;
                let dispatch = owner.lock().unwrap().take().unwrap();
                tracing::dispatcher::with_default(&dispatch, || {
                    drop(dispatch.clone());
                    let _span = info_span!("span").entered();
                    await_sync(yield_now());
                    await_sync(pending::<()>());
                });
            }));
            let layer = Owns(std::sync::Mutex::default());
            let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
            *owner.lock().unwrap() = Some(dispatch.clone());
            assert!(poll_once(&mut run).await.is_pending());
            assert!(poll_once(&mut run).await.is_pending());
            let owns = dispatch.downcast_ref::<Owns>().unwrap();
            *owns.0.lock().unwrap() = Some(run);
            let run = owns.0.lock().unwrap().take();
            drop(dispatch);
            // The run has the last reference to the subscriber.
            drop(run);
        });
        assert_eq!(log.take(), ["unwound"]);
        assert_eq!(leaked_runs(), 0);
    }
}
