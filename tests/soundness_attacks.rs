//! Attacks with callbacks, panics and ends in odd places, which must do no
//! harm.
#![cfg(panic = "unwind")]

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::cell::RefCell;
use std::future::pending;
use std::panic::{self, AssertUnwindSafe, UnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use greenhack::{
    await_in_drop, await_sync, in_context, leaked_runs, no_suspend, run_sync, run_sync_local,
    shield, workers,
};
use help::{AnyRun, multi_thread, poll_once, settle, succeeds_in_child};
use support::{Log, Signal, current_thread, on_drop, signal, text};
use tokio::task::{JoinHandle, yield_now};

/// Panics when it is dropped, with another of its kind, and counts it.
struct Bomb(&'static AtomicUsize);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
        if !thread::panicking() {
            resume_unwind(Box::new(Bomb(self.0)));
        }
    }
}

/// Polls the run once and drops it. Returns whether each has panicked, and how
/// many bombs were dropped, but for those that came out as payloads.
fn explode(run: impl FnOnce(Bomb) -> AnyRun, drops: &'static AtomicUsize) -> (bool, bool, usize) {
    current_thread().block_on(async {
        let mut run = run(Bomb(drops));
        let polled = AssertUnwindSafe(async { poll_once(&mut run).await.is_pending() });
        let polled = futures::FutureExt::catch_unwind(polled).await;
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(run)));
        assert!(!in_context());
        let outcome = (polled.is_err(), dropped.is_err(), drops.load(SeqCst));
        std::mem::forget((polled, dropped));
        outcome
    })
}

macro_rules! explosions {
    ($($name:ident: $run:expr => $outcome:expr;)*) => {$(
        #[test]
        fn $name() {
            static DROPS: AtomicUsize = AtomicUsize::new(0);
            let run: fn(Bomb) -> AnyRun = |bomb| Box::pin($run(bomb));
            assert_eq!(explode(run, &DROPS), $outcome);
            assert_eq!(leaked_runs(), 0);
        }
    )*};
}

explosions! {
    a_panicking_drop_of_an_unstarted_closure_passes_once: |bomb: Bomb| {
        // Polled, it ends at once and drops its capture.
        run_sync_local(move || drop(bomb))
    } => (true, false, 1);
    a_panicking_drop_on_the_stack_passes_out_of_poll: |bomb: Bomb| {
        run_sync_local(move || { let _bomb = bomb; await_sync(async {}) })
    } => (true, false, 1);
    a_panicking_drop_of_a_ready_future_passes_out_of_poll: |bomb: Bomb| {
        run_sync_local(move || await_sync(async move { let _bomb = bomb; }))
    } => (true, false, 1);
    a_panicking_drop_of_a_cancelled_future_passes_out_of_drop: |bomb: Bomb| {
        run_sync_local(move || await_sync(async move { let _bomb = bomb; pending::<()>().await }))
    } => (false, true, 1);
    a_panicking_payload_of_the_future_passes_unexploded: |bomb: Bomb| {
        run_sync_local(move || await_sync(async move { resume_unwind(Box::new(bomb)) }))
    } => (true, false, 0);
    a_panicking_payload_of_the_closure_passes_unexploded: |bomb: Bomb| {
        run_sync_local(move || resume_unwind(Box::new(bomb)))
    } => (true, false, 0);
    a_panicking_payload_of_cleanup_passes_out_of_drop: |bomb: Bomb| {
        run_sync_local(move || {
            let _ = catch_unwind(|| await_sync(pending::<()>()));
            resume_unwind(Box::new(bomb))
        })
    } => (false, true, 0);
}

/// Runs `f` and returns the payload of the panic that it has caught itself. What
/// comes out of the run is forgotten, lest it explode in the hands of the test.
fn run_whole(f: impl FnOnce() + UnwindSafe + 'static) -> thread::Result<()> {
    let run = run_sync_local(move || catch_unwind(f));
    let passed = catch_unwind(AssertUnwindSafe(|| current_thread().block_on(run)));
    passed.unwrap_or_else(|payload| {
        std::mem::forget(payload);
        panic!("a second panic has left the run");
    })
}

#[test]
fn a_panicking_payload_of_a_refused_future_is_contained() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    let refused = run_whole(|| {
        no_suspend(|| {
            await_sync(async {
                let _bomb = Bomb(&DROPS);
                pending::<()>().await;
            })
        })
    });
    let message = text(&*refused.unwrap_err());
    assert!(message.contains("no_suspend"), "{message}");
}

#[test]
fn a_panicking_payload_of_a_second_panic_is_contained() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    struct Twice;
    impl Future for Twice {
        type Output = ();
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            resume_unwind(Box::new("poll"));
        }
    }
    impl Drop for Twice {
        fn drop(&mut self) {
            resume_unwind(Box::new(Bomb(&DROPS)));
        }
    }
    let first = run_whole(|| await_sync(Twice));
    assert_eq!(first.unwrap_err().downcast_ref(), Some(&"poll"));
}

/// Two panics of a run that is cancelled: of the future that it waits for, when that
/// is dropped, and of the closure with `payload`.
fn panics_twice<P: Send + 'static>(payload: P) -> AnyRun {
    Box::pin(run_sync_local(move || {
        let first = on_drop(|| resume_unwind(Box::new("first")));
        let future = async move {
            let _first = first;
            pending::<()>().await;
        };
        let _ = catch_unwind(AssertUnwindSafe(|| await_sync(future)));
        resume_unwind(Box::new(payload));
    }))
}

#[test]
fn the_first_panic_of_a_cancelled_run_counts_whatever_the_second_is() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    current_thread().block_on(async {
        let mut run = panics_twice(Bomb(&DROPS));
        assert!(poll_once(&mut run).await.is_pending());
        let dropped =
            catch_unwind(AssertUnwindSafe(|| drop(run))).map_err(std::mem::ManuallyDrop::new);
        assert_eq!(dropped.unwrap_err().downcast_ref(), Some(&"first"));
    });
}

#[test]
fn two_panics_of_a_run_that_an_unwind_drops_do_not_abort() {
    succeeds_in_child(
        "two_panics_of_a_run_that_an_unwind_drops_do_not_abort",
        || {
            current_thread().block_on(async {
                let mut run = panics_twice(on_drop(|| resume_unwind(Box::new("payload"))));
                assert!(poll_once(&mut run).await.is_pending());
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    let _run = run;
                    resume_unwind(Box::new("outer"));
                }));
                assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"outer"));
            });
        },
    );
}

#[test]
fn a_panicking_payload_that_nobody_awaits_does_not_end_a_worker() {
    succeeds_in_child(
        "a_panicking_payload_that_nobody_awaits_does_not_end_a_worker",
        || {
            static DROPS: AtomicUsize = AtomicUsize::new(0);
            /// What a run leaves behind that has been cancelled.
            fn leave(panics: bool) -> Bomb {
                let bomb = Bomb(&DROPS);
                let _ = catch_unwind(|| await_sync(pending::<()>()));
                if panics {
                    resume_unwind(Box::new(bomb));
                }
                bomb
            }
            workers::Builder::new().threads(1).start().unwrap();
            multi_thread().block_on(async {
                for panics in [true, false] {
                    let (started, wait) = signal();
                    let run = tokio::spawn(run_sync(move || {
                        started.give();
                        leave(panics)
                    }));
                    wait.wait().await;
                    run.abort();
                    assert!(run.await.is_err_and(|error| error.is_cancelled()));
                    // The worker is told, and may do something else first.
                    while DROPS.load(SeqCst) == 0 {
                        run_sync(|| ()).await;
                    }
                    // It does not run this before it has done with that.
                    run_sync(|| DROPS.store(0, SeqCst)).await;
                }
            });
        },
    );
}

#[test]
fn a_panicking_payload_of_the_last_cleanup_does_not_end_a_worker_with_a_panic() {
    thread_local! {
        static LAST: RefCell<Option<Signal>> = const { RefCell::new(None) };
    }
    let name = "a_panicking_payload_of_the_last_cleanup_does_not_end_a_worker_with_a_panic";
    succeeds_in_child(name, || {
        static DROPS: AtomicUsize = AtomicUsize::new(0);
        workers::Builder::new().threads(1).start().unwrap();
        multi_thread().block_on(async {
            let (started, wait) = signal();
            let (last, thread_has_ended) = signal();
            tokio::spawn(run_sync(move || {
                LAST.set(Some(last));
                started.give();
                let _ = catch_unwind(|| await_sync(pending::<()>()));
                await_in_drop(pending::<()>());
                resume_unwind(Box::new(Bomb(&DROPS)));
            }));
            wait.wait().await;
            workers::shutdown(Duration::ZERO).await;
            // If it has a bomb for a result, std aborts before its locals go.
            thread_has_ended.wait().await;
        });
        assert_eq!(leaked_runs(), 0);
    });
}

#[test]
fn the_result_of_a_run_that_ends_in_its_cancellation_is_dropped_outside() {
    struct Awaits(Log);
    impl Drop for Awaits {
        fn drop(&mut self) {
            self.0.add(format!("in a run: {}", in_context()));
            await_in_drop(yield_now());
        }
    }
    let log = Log::default();
    current_thread().block_on(async {
        let result = Awaits(log.clone());
        let mut run = run_sync_local(move || {
            let _ = catch_unwind(|| await_sync(pending::<()>()));
            result
        });
        assert!(poll_once(&mut run).await.is_pending());
        drop(run);
    });
    assert_eq!(log.take(), ["in a run: false"]);
}

#[test]
fn a_closure_that_never_started_is_dropped_and_not_run() {
    let log = Log::default();
    current_thread().block_on(async {
        let (guard, inner) = (log.on_drop("dropped"), log.clone());
        drop(run_sync_local(move || {
            inner.add("run");
            drop(guard);
        }));
        let (guard, inner) = (log.on_drop("dropped"), log.clone());
        drop(run_sync(move || {
            inner.add("run");
            drop(guard);
        }));
    });
    assert_eq!(log.take(), ["dropped", "dropped"]);
}

#[test]
fn a_run_without_a_stack_fails_and_drops_its_closure() {
    let log = Log::default();
    current_thread().block_on(async {
        let guard = log.on_drop("dropped");
        let run = greenhack::builder()
            .stack_size(usize::MAX)
            .run_sync(move || drop(guard));
        let message = text(&*tokio::spawn(run).await.unwrap_err().into_panic());
        assert!(message.contains("stack_size"), "{message}");
        let small = greenhack::builder().stack_size(0).run_sync(|| 1);
        assert_eq!(small.await, 1);
    });
    assert_eq!(log.take(), ["dropped"]);
}

#[test]
fn a_run_that_has_ended_panics_when_it_is_polled_again() {
    let runtime = current_thread();
    let mut local = run_sync_local(|| 1);
    assert_eq!(runtime.block_on(&mut local), 1);
    let mut other = run_sync(|| -> u8 { resume_unwind(Box::new("first")) });
    assert!(catch_unwind(AssertUnwindSafe(|| runtime.block_on(&mut other))).is_err());
    for again in [
        catch_unwind(AssertUnwindSafe(|| _ = runtime.block_on(&mut local))),
        catch_unwind(AssertUnwindSafe(|| _ = runtime.block_on(&mut other))),
    ] {
        let message = text(&*again.unwrap_err());
        assert!(message.contains("polled after its end"), "{message}");
    }
}

#[test]
fn a_run_that_is_swapped_while_it_is_suspended_goes_on() {
    current_thread().block_on(async {
        let one = |value: u32| {
            run_sync_local(move || {
                let on_stack = value;
                let borrowed = &on_stack;
                await_sync(async {
                    yield_now().await;
                    *borrowed
                })
            })
        };
        let (mut a, mut b) = (one(1), one(2));
        assert!(poll_once(&mut a).await.is_pending());
        assert!(poll_once(&mut b).await.is_pending());
        std::mem::swap(&mut a, &mut b);
        let a = Box::new(a);
        assert_eq!((a.await, b.await), (2, 1));
    });
}

#[test]
fn a_forgotten_run_harms_nobody() {
    let log = Log::default();
    current_thread().block_on(async {
        for _ in 0..4 {
            let guard = log.on_drop("never");
            let mut run = run_sync_local(move || {
                let _guard = guard;
                await_sync(pending::<()>());
            });
            assert!(poll_once(&mut run).await.is_pending());
            std::mem::forget(run);
            assert_eq!(run_sync_local(|| await_sync(async { 1 })).await, 1);
        }
    });
    assert!(log.take().is_empty());
}

#[test]
fn a_run_that_aborts_itself_and_holds_its_only_handle_ends() {
    let ended = Arc::new(AtomicUsize::new(0));
    current_thread().block_on(async {
        let slot: Arc<Mutex<Option<JoinHandle<()>>>> = Arc::default();
        let (go, wait) = signal();
        let (own, count) = (slot.clone(), ended.clone());
        let handle = tokio::spawn(run_sync(move || {
            let _guard = on_drop(|| {
                count.fetch_add(1, SeqCst);
            });
            await_sync(wait.wait());
            let myself = own.lock().unwrap().take().unwrap();
            myself.abort();
            let _ = await_sync(myself);
            unreachable!("nobody outlives himself");
        }));
        *slot.lock().unwrap() = Some(handle);
        drop(slot);
        go.give();
        settle().await;
    });
    assert_eq!(ended.load(SeqCst), 1);
    assert_eq!(Arc::strong_count(&ended), 1, "nothing is left of it");
}

#[test]
fn a_destructor_can_drop_another_run_which_drops_another() {
    fn chain(log: Log, length: u32) -> AnyRun {
        Box::pin(run_sync_local(move || {
            let next = (length > 0).then(|| chain(log.clone(), length - 1));
            let _guard = on_drop(|| log.add(length.to_string()));
            let mut next = next;
            if let Some(next) = &mut next {
                await_sync(async { assert!(poll_once(next).await.is_pending()) });
            }
            await_sync(pending::<()>());
        }))
    }
    let log = Log::default();
    current_thread().block_on(async {
        let mut run = chain(log.clone(), 3);
        assert!(poll_once(&mut run).await.is_pending());
        drop(run);
    });
    assert_eq!(log.take(), ["0", "1", "2", "3"]);
}

#[test]
fn deep_nests_of_runs_end_and_are_cancelled() {
    fn nest(depth: u32, ended: Arc<AtomicUsize>) -> u32 {
        let _guard = on_drop(|| {
            ended.fetch_add(1, SeqCst);
        });
        if depth == 0 {
            await_sync(yield_now());
            return 0;
        }
        let ended = ended.clone();
        let run = greenhack::builder()
            .stack_size(64 * 1024)
            .run_sync_local(move || nest(depth - 1, ended));
        let run: Pin<Box<dyn Future<Output = u32>>> = Box::pin(run);
        1 + await_sync(run)
    }
    const DEPTH: u32 = 200;
    let ended = Arc::new(AtomicUsize::new(0));
    current_thread().block_on(async {
        let run = |ended| run_sync_local(move || nest(DEPTH, ended));
        assert_eq!(run(ended.clone()).await, DEPTH);
        assert_eq!(ended.swap(0, SeqCst), DEPTH as usize + 1);
        let mut run = run(ended.clone());
        assert!(poll_once(&mut run).await.is_pending());
        drop(run);
    });
    assert_eq!(ended.load(SeqCst), DEPTH as usize + 1);
}

#[test]
fn a_run_can_make_and_drop_thousands() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    let rounds = if cfg!(miri) { 10 } else { 3000 };
    current_thread().block_on(run_sync_local(move || {
        for _ in 0..rounds {
            let mut run = run_sync_local(|| {
                let _guard = on_drop(|| {
                    DROPS.fetch_add(1, SeqCst);
                });
                await_sync(pending::<()>());
            });
            await_sync(async { assert!(poll_once(&mut run).await.is_pending()) });
        }
    }));
    assert_eq!(DROPS.load(SeqCst), rounds);
}

#[test]
fn runs_in_a_futures_unordered_are_polled_and_cancelled_alone() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    current_thread().block_on(async {
        let mut runs: FuturesUnordered<_> = (0..10)
            .map(|yields| {
                run_sync_local(move || {
                    let _guard = on_drop(|| {
                        DROPS.fetch_add(1, SeqCst);
                    });
                    (0..yields).for_each(|_| await_sync(yield_now()));
                    yields
                })
            })
            .collect();
        for expected in 0..5 {
            assert_eq!(runs.next().await, Some(expected));
        }
        assert_eq!(DROPS.load(SeqCst), 5);
        drop(runs);
        assert_eq!(DROPS.load(SeqCst), 10);
    });
}

#[test]
fn a_waker_may_drop_the_run_that_it_is_told_of_and_panic() {
    type SendRun = Pin<Box<dyn Future<Output = u8> + Send>>;
    struct Drops(Mutex<Option<SendRun>>, Mutex<Option<Sender<()>>>);
    impl Wake for Drops {
        fn wake(self: Arc<Self>) {
            let Some(run) = self.0.lock().unwrap().take() else {
                // It is the first poll, which yields.
                return;
            };
            drop(run);
            drop(self.1.lock().unwrap().take());
            resume_unwind(Box::new("a waker"));
        }
    }
    let (woken, told) = mpsc::channel();
    let drops = Arc::new(Drops(Mutex::default(), Mutex::new(Some(woken))));
    let (go, gone) = mpsc::channel::<()>();
    let mut run: SendRun = Box::pin(run_sync(move || {
        let _ = gone.recv();
        1
    }));
    let waker = Waker::from(drops.clone());
    for _ in 0..2 {
        let mut cx = Context::from_waker(&waker);
        assert!(run.as_mut().poll(&mut cx).is_pending());
    }
    *drops.0.lock().unwrap() = Some(run);
    drop(go);
    assert!(told.recv().is_err(), "it was dropped by the wake");
    // The workers live.
    assert_eq!(futures::executor::block_on(run_sync(|| 5)), 5);
}

#[test]
fn a_waker_that_panics_does_so_in_the_first_poll_and_not_in_the_drop() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            resume_unwind(Box::new("a waker"));
        }
    }
    let waker = Waker::from(Arc::new(Panics));
    // Often enough to meet workers asleep and awake. One that is awake may have the
    // outcome before there is anything to wake for.
    let mut met = 0;
    for number in 0..1000 {
        let mut run = Box::pin(run_sync(move || number));
        let poll = || run.as_mut().poll(&mut Context::from_waker(&waker));
        match catch_unwind(AssertUnwindSafe(poll)) {
            Err(payload) => assert_eq!(payload.downcast_ref(), Some(&"a waker")),
            Ok(outcome) => {
                assert_eq!(outcome, Poll::Ready(number));
                continue;
            }
        }
        met += 1;
        if number % 2 == 0 {
            drop(run);
        } else {
            // With another waker it goes on.
            assert_eq!(futures::executor::block_on(run), number);
        }
    }
    assert!(met > 0);
}

#[test]
fn a_panic_hook_may_await() {
    succeeds_in_child("a_panic_hook_may_await", || {
        static AWAITED: AtomicUsize = AtomicUsize::new(0);
        panic::set_hook(Box::new(|info| {
            if in_context() {
                await_sync(yield_now());
                AWAITED.fetch_add(1, SeqCst);
            } else {
                eprintln!("{info}");
            }
        }));
        current_thread().block_on(async {
            let panics = || {
                assert!(catch_unwind(|| panic!("caught")).is_err());
                thread::panicking()
            };
            let mut run = run_sync_local(panics);
            assert!(poll_once(&mut run).await.is_pending());
            assert!(!thread::panicking());
            assert!(!run.await);
            // Cancelled in the hook, which is not interrupted.
            let mut run = run_sync_local(panics);
            assert!(poll_once(&mut run).await.is_pending());
            drop(run);
            settle().await;
        });
        assert_eq!(AWAITED.load(SeqCst), 2);
        assert_eq!(leaked_runs(), 0);
    });
}

#[test]
fn code_that_swallows_every_cancellation_is_leaked_without_spinning() {
    succeeds_in_child(
        "code_that_swallows_every_cancellation_is_leaked_without_spinning",
        || {
            static THROWS: AtomicUsize = AtomicUsize::new(0);
            current_thread().block_on(async {
                let mut run = run_sync_local(|| {
                    loop {
                        let _ = catch_unwind(|| await_sync(pending::<()>()));
                        THROWS.fetch_add(1, SeqCst);
                    }
                });
                assert!(poll_once(&mut run).await.is_pending());
                drop(run);
            });
            assert_eq!((THROWS.load(SeqCst), leaked_runs()), (32, 1));
        },
    );
}

#[test]
fn a_shield_that_never_ends_is_leaked_when_its_budget_is_over() {
    succeeds_in_child(
        "a_shield_that_never_ends_is_leaked_when_its_budget_is_over",
        || {
            current_thread().block_on(async {
                let builder = greenhack::builder().cleanup_budget(Duration::ZERO);
                let mut run = builder.run_sync_local(|| shield(|| await_sync(pending::<()>())));
                assert!(poll_once(&mut run).await.is_pending());
                drop(run);
                assert_eq!(leaked_runs(), 0);
                tokio::time::sleep(Duration::from_millis(5)).await;
            });
            assert_eq!(leaked_runs(), 1);
        },
    );
}

#[test]
fn a_panic_of_a_carried_clone_is_the_callers_and_drops_the_closure() {
    struct NoClone;
    impl Clone for NoClone {
        fn clone(&self) -> Self {
            resume_unwind(Box::new("clone"));
        }
    }
    tokio::task_local! {
        static KEY: NoClone;
    }
    let log = Log::default();
    help::multi_thread().block_on(async {
        let guard = log.on_drop("dropped");
        let run = greenhack::builder()
            .carry(&KEY)
            .run_sync(move || drop(guard));
        let task = tokio::spawn(KEY.scope(NoClone, run));
        let payload = task.await.unwrap_err().into_panic();
        assert_eq!(payload.downcast_ref(), Some(&"clone"));
    });
    assert_eq!(log.take(), ["dropped"]);
}
