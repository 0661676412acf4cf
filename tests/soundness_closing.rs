//! Attacks with runs that end while their worker, or their scheduler, does;
//! each in a process of its own.
#![cfg(panic = "unwind")]

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::cell::RefCell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use greenhack::workers::{self, shutdown};
use greenhack::{await_in_drop, await_sync, builder, leaked_runs, run_sync, run_sync_local};
use help::{AnyRun, multi_thread, poll_once, succeeds_in_child};
use support::{current_thread, on_drop, signal};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{LocalSet, block_in_place, spawn_local, yield_now};
use tokio::time::sleep;

const LONG: Duration = Duration::from_secs(60);

/// Runs on a worker, waits there for ever, and cleans up with `cleanup`.
async fn suspended(cleanup: impl FnOnce() + Send + 'static) {
    let (started, wait) = signal();
    tokio::spawn(run_sync(move || {
        let _guard = on_drop(cleanup);
        started.give();
        await_sync(pending::<()>());
    }));
    wait.wait().await;
}

#[test]
fn cleanup_on_a_closing_worker_can_await_a_run() {
    static OUTPUT: AtomicBool = AtomicBool::new(false);
    succeeds_in_child("cleanup_on_a_closing_worker_can_await_a_run", || {
        multi_thread().block_on(async {
            suspended(|| {
                let output = await_in_drop(run_sync_local(|| {
                    await_sync(yield_now());
                    true
                }));
                OUTPUT.store(output == Some(true), SeqCst);
            })
            .await;
            shutdown(LONG).await;
        });
        assert!(OUTPUT.load(SeqCst));
        assert_eq!(leaked_runs(), 0);
    });
}

#[test]
fn a_run_that_starts_on_a_closing_worker_is_dropped() {
    static DROPPED: AtomicBool = AtomicBool::new(false);
    succeeds_in_child("a_run_that_starts_on_a_closing_worker_is_dropped", || {
        multi_thread().block_on(async {
            suspended(|| {
                let guard = on_drop(|| DROPPED.store(true, SeqCst));
                let late = tokio::spawn(run_sync(move || drop(guard)));
                assert!(await_in_drop(late).is_some_and(|ended| ended.is_err()));
            })
            .await;
            shutdown(LONG).await;
        });
        assert!(DROPPED.load(SeqCst));
        assert_eq!(leaked_runs(), 0);
    });
}

#[test]
fn cleanup_goes_on_when_the_runtime_of_the_caller_has_ended() {
    let name = "cleanup_goes_on_when_the_runtime_of_the_caller_has_ended";
    succeeds_in_child(name, || {
        workers::Builder::new().threads(1).start().unwrap();
        let (end, wait) = signal();
        let (ended, has_ended) = mpsc::channel();
        let callers = multi_thread();
        callers.block_on(async {
            let (started, has_started) = signal();
            let builder = builder().caller_runtime(true);
            tokio::spawn(builder.run_sync(move || {
                let _guard = on_drop(|| ended.send(await_in_drop(wait.wait())).unwrap());
                started.give();
                await_sync(pending::<()>());
            }));
            has_started.wait().await;
        });
        drop(callers);
        // The worker comes to it, and looks at the clock of the cleanup.
        multi_thread().block_on(run_sync(|| await_sync(yield_now())));
        end.give();
        assert_eq!(has_ended.recv().unwrap(), Some(()));
    });
}

#[test]
fn cleanup_of_an_inner_run_goes_on_where_the_runtime_of_the_caller_is_entered() {
    let run = builder().caller_runtime(true).run_sync(|| {
        let (end, wait) = signal();
        let (ended, has_ended) = oneshot::channel();
        await_sync(async {
            let mut run = run_sync_local(|| {
                let _guard = on_drop(|| ended.send(await_in_drop(wait.wait())).unwrap());
                await_sync(pending::<()>());
            });
            assert!(poll_once(&mut run).await.is_pending());
        });
        end.give();
        await_sync(has_ended)
    });
    assert_eq!(multi_thread().block_on(run), Ok(Some(())));
}

#[test]
fn a_destructor_does_not_suspend_in_a_block_on_outside_of_polls() {
    succeeds_in_child(
        "a_destructor_does_not_suspend_in_a_block_on_outside_of_polls",
        || {
            let runtime = current_thread();
            let handle = runtime.handle().clone();
            let mut run: AnyRun = Box::pin(run_sync_local(move || {
                let _guard = on_drop(move || {
                    handle.block_on(async {
                        await_in_drop(sleep(Duration::from_millis(1)));
                    });
                });
                await_sync(pending::<()>());
            }));
            runtime.block_on(async { assert!(poll_once(&mut run).await.is_pending()) });
            drop(run);
            runtime.block_on(yield_now());
        },
    );
}

#[test]
fn a_run_that_was_started_in_a_local_set_stays_in_one() {
    succeeds_in_child("a_run_that_was_started_in_a_local_set_stays_in_one", || {
        multi_thread().block_on(async {
            let kept: Rc<RefCell<Option<AnyRun>>> = Rc::default();
            let slot = kept.clone();
            let local_set = LocalSet::new();
            let started = local_set.run_until(async move {
                let task = spawn_local(async move {
                    let mut run: AnyRun = Box::pin(run_sync_local(|| {
                        await_sync(yield_now());
                        block_in_place(|| {
                            Handle::current().block_on(async { await_sync(yield_now()) });
                        });
                    }));
                    assert!(poll_once(&mut run).await.is_pending());
                    slot.replace(Some(run));
                });
                task.await.unwrap();
            });
            started.await;
            drop(local_set);
            let mut run = kept.take().unwrap();
            let polled = catch_unwind(AssertUnwindSafe(|| {
                run.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            }));
            let message = support::text(&*polled.unwrap_err());
            assert!(message.contains("outside a tokio task"), "{message}");
        });
    });
}

#[test]
fn a_leak_of_another_threads_run_does_not_shorten_a_shutdown() {
    succeeds_in_child(
        "a_leak_of_another_threads_run_does_not_shorten_a_shutdown",
        || {
            workers::Builder::new().threads(1).start().unwrap();
            multi_thread().block_on(async {
                let orphan = thread::spawn(|| {
                    let mut run = run_sync(|| await_sync(pending::<()>()));
                    current_thread().block_on(async {
                        assert!(poll_once(&mut run).await.is_pending());
                    });
                    run
                });
                let orphan = orphan.join().unwrap();
                tokio::spawn(run_sync(move || drop(orphan))).await.unwrap();
                assert_eq!(leaked_runs(), 1);
                suspended(|| await_sync(async { sleep(Duration::from_millis(20)).await })).await;
                shutdown(LONG).await;
                assert_eq!(leaked_runs(), 1);
            });
        },
    );
}

#[test]
fn a_shutdown_does_not_wait_for_what_it_leaks() {
    succeeds_in_child("a_shutdown_does_not_wait_for_what_it_leaks", || {
        workers::Builder::new().threads(1).start().unwrap();
        multi_thread().block_on(async {
            let (started, wait) = signal();
            tokio::spawn(run_sync(move || {
                tokio::spawn(run_sync(move || {
                    started.give();
                    while catch_unwind(|| await_sync(pending::<()>())).is_err() {}
                }));
            }));
            wait.wait().await;
            let start = Instant::now();
            shutdown(LONG).await;
            assert!(start.elapsed() < LONG);
            assert_eq!(leaked_runs(), 1);
        });
    });
}

#[test]
fn a_run_that_has_changed_its_waker_hears_of_a_shutdown() {
    let name = "a_run_that_has_changed_its_waker_hears_of_a_shutdown";
    succeeds_in_child(name, || {
        workers::Builder::new().threads(1).start().unwrap();
        multi_thread().block_on(async {
            let (suspended, wait) = signal();
            let spawn = run_sync(|| {
                tokio::spawn(async {
                    let mut run = Box::pin(run_sync(|| await_sync(pending::<()>())));
                    let first = run.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    assert!(first.is_pending());
                    // From now on it is this task that waits.
                    assert!(poll_once(&mut run).await.is_pending());
                    suspended.give();
                    run.await;
                });
            });
            spawn.await;
            wait.wait().await;
            let start = Instant::now();
            shutdown(LONG).await;
            assert!(start.elapsed() < LONG);
            assert_eq!(leaked_runs(), 0);
        });
    });
}

struct PanicsInWake;

impl Wake for PanicsInWake {
    fn wake(self: Arc<Self>) {
        panic_any("wake");
    }
}

#[test]
fn a_waker_that_panics_does_not_end_a_worker_out_of_turn() {
    succeeds_in_child(
        "a_waker_that_panics_does_not_end_a_worker_out_of_turn",
        || {
            workers::Builder::new().threads(1).start().unwrap();
            multi_thread().block_on(async {
                let (forgotten, wait) = signal();
                let run = run_sync(|| {
                    tokio::spawn(async move {
                        let mut run: Pin<Box<dyn Future<Output = ()> + Send>> =
                            Box::pin(run_sync(|| await_sync(pending())));
                        let waker = Waker::from(Arc::new(PanicsInWake));
                        let mut cx = Context::from_waker(&waker);
                        assert!(run.as_mut().poll(&mut cx).is_pending());
                        std::mem::forget(run);
                        forgotten.give();
                    });
                });
                run.await;
                wait.wait().await;
                let start = Instant::now();
                shutdown(Duration::from_millis(50)).await;
                // Less than the limit and the time of grace: it did end.
                assert!(start.elapsed() < Duration::from_secs(1));
            });
        },
    );
}
