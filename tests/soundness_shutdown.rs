//! Attacks with the shutdown of the workers, each in a process of its own.
#![cfg(panic = "unwind")]

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use greenhack::workers::{self, shutdown};
use greenhack::{Cancelled, await_in_drop, await_sync, leaked_runs, run_sync, run_sync_local};
use help::{multi_thread, poll_once, settle, succeeds_in_child};
use support::{current_thread, on_drop, signal};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

#[test]
fn a_run_that_was_spawned_on_a_worker_ends_before_the_worker() {
    succeeds_in_child(
        "a_run_that_was_spawned_on_a_worker_ends_before_the_worker",
        || {
            static ENDED: AtomicBool = AtomicBool::new(false);
            multi_thread().block_on(async {
                run_sync(|| {
                    let (started, wait) = signal();
                    tokio::spawn(run_sync(move || {
                        let _guard = on_drop(|| {
                            await_sync(sleep(Duration::from_millis(1)));
                            ENDED.store(true, SeqCst);
                        });
                        started.give();
                        await_sync(pending::<()>());
                    }));
                    await_sync(wait.wait());
                })
                .await;
                shutdown(Duration::from_secs(60)).await;
            });
            assert_eq!(leaked_runs(), 0);
            assert!(ENDED.load(SeqCst));
        },
    );
}

#[test]
fn a_shutdown_ends_although_a_run_blocks_its_worker() {
    succeeds_in_child("a_shutdown_ends_although_a_run_blocks_its_worker", || {
        multi_thread().block_on(async {
            let (started, wait) = signal();
            tokio::spawn(run_sync(move || {
                started.give();
                loop {
                    thread::park();
                }
            }));
            wait.wait().await;
            let shutdown = shutdown(Duration::from_millis(1));
            assert!(timeout(Duration::from_secs(5), shutdown).await.is_ok());
        });
    });
}

#[test]
fn a_second_shutdown_waits_as_well() {
    succeeds_in_child("a_second_shutdown_waits_as_well", || {
        static ENDED: AtomicBool = AtomicBool::new(false);
        multi_thread().block_on(async {
            let (started, wait) = signal();
            tokio::spawn(run_sync(move || {
                let _guard = on_drop(|| {
                    await_sync(sleep(Duration::from_millis(50)));
                    ENDED.store(true, SeqCst);
                });
                started.give();
                await_sync(pending::<()>());
            }));
            wait.wait().await;
            let mut first = Box::pin(shutdown(Duration::from_secs(60)));
            assert!(poll_once(&mut first).await.is_pending());
            drop(first);
            shutdown(Duration::from_secs(60)).await;
            assert!(ENDED.load(SeqCst));
        });
    });
}

#[test]
fn a_run_can_shut_its_own_worker_down() {
    succeeds_in_child("a_run_can_shut_its_own_worker_down", || {
        multi_thread().block_on(async {
            let run = tokio::spawn(run_sync(|| await_sync(shutdown(Duration::from_secs(60)))));
            assert!(run.await.unwrap_err().into_panic().is::<Cancelled>());
        });
        assert_eq!(leaked_runs(), 0);
    });
}

#[test]
fn runs_that_are_dropped_in_the_queue_drop_their_closures_at_once() {
    let name = "runs_that_are_dropped_in_the_queue_drop_their_closures_at_once";
    succeeds_in_child(name, || {
        static DROPS: AtomicUsize = AtomicUsize::new(0);
        workers::Builder::new().threads(1).start().unwrap();
        let (go, gone) = mpsc::channel::<()>();
        multi_thread().block_on(async {
            let (started, wait) = signal();
            let busy = tokio::spawn(run_sync(move || {
                started.give();
                let _ = gone.recv();
            }));
            wait.wait().await;
            for _ in 0..1000 {
                let guard = on_drop(|| {
                    DROPS.fetch_add(1, SeqCst);
                    // Back into the queue, from a destructor of what was in it.
                    drop(run_sync(|| ()));
                });
                let mut run = run_sync(move || drop(guard));
                assert!(poll_once(&mut run).await.is_pending());
            }
            assert_eq!(DROPS.load(SeqCst), 1000);
            drop(go);
            busy.await.unwrap();
            assert_eq!(run_sync(|| 1).await, 1);
            assert_eq!(DROPS.load(SeqCst), 1000);
        });
    });
}

#[test]
fn a_run_is_not_polled_in_a_destructor_of_its_task_while_the_runtime_shuts_down() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::task::{Context, Waker};

    struct PollsInDrop(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>);

    impl Drop for PollsInDrop {
        fn drop(&mut self) {
            let mut cx = Context::from_waker(Waker::noop());
            let polled = catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(&mut cx)));
            let message = support::text(&*polled.unwrap_err());
            assert!(message.contains("outside a tokio task"), "{message}");
        }
    }

    let runtime = current_thread();
    let task = runtime.spawn(async {
        let mut run: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(run_sync(|| await_sync(pending::<()>())));
        let _ = futures::poll!(&mut run);
        let _polls = PollsInDrop(run);
        pending::<()>().await;
    });
    runtime.block_on(tokio::task::yield_now());
    drop(runtime);
    assert!(task.is_finished());
    let ended = current_thread().block_on(task);
    assert!(
        ended.unwrap_err().is_cancelled(),
        "the destructor has panicked"
    );
}

#[test]
fn the_destructors_of_a_run_that_is_dropped_outside_of_its_runtime_can_spawn() {
    let runtime = current_thread();
    let (sender, spawned) = mpsc::channel();
    let mut run = Box::pin(run_sync_local(move || {
        let _spawns = on_drop(move || sender.send(tokio::spawn(async { 7 })).unwrap());
        await_sync(pending::<()>());
    }));
    assert!(runtime.block_on(poll_once(&mut run)).is_pending());
    drop(run);
    let task = spawned.recv().unwrap();
    assert_eq!(runtime.block_on(task).unwrap(), 7);
}

#[test]
fn destructors_can_spawn_when_a_local_set_ends_before_their_cleanup() {
    let (runtime, local) = (multi_thread(), LocalSet::new());
    let (sender, spawned) = mpsc::channel();
    local.block_on(&runtime, async {
        let run = spawn_local(run_sync_local(move || {
            let _spawns = on_drop(move || sender.send(tokio::spawn(async { 7 })).unwrap());
            let _waits = on_drop(|| _ = await_in_drop(pending::<()>()));
            await_sync(pending::<()>());
        }));
        settle().await;
        run.abort();
        settle().await;
    });
    assert!(spawned.try_recv().is_err(), "the cleanup has ended before");
    drop(local);
    let task = spawned.recv().unwrap();
    assert_eq!(runtime.block_on(task).unwrap(), 7);
}
