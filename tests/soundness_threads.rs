//! Attacks with threads and their locals.
//!
//! A stack may borrow from a thread local, so nothing on it may run, and no
//! other thread may still use what it lent, once that local is destroyed. The
//! tests record when the local dies; none touches it afterwards.
#![cfg(panic = "unwind")]

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::cell::RefCell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use greenhack::{await_in_drop, await_sync, leaked_runs, run_sync, run_sync_local};
use help::{AnyRun, Resource, multi_thread, poll_once, settle, succeeds_in_child};
use support::{current_thread, on_drop, signal, text};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local, yield_now};

/// Long enough for a thread to end that is going to.
const A_WHILE: Duration = Duration::from_millis(300);

/// Tells when it is destroyed.
#[derive(Default)]
struct Data(Mutex<Option<Sender<()>>>);

impl Drop for Data {
    fn drop(&mut self) {
        if let Some(dead) = self.0.lock().unwrap().take() {
            let _ = dead.send(());
        }
    }
}

thread_local! {
    static DATA: Data = Data::default();
}

#[test]
fn a_thread_local_outlives_the_loan_of_a_leaked_run_on_a_worker() {
    let name = "a_thread_local_outlives_the_loan_of_a_leaked_run_on_a_worker";
    succeeds_in_child(name, || {
        let (dead, died) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        multi_thread().block_on(async {
            let (started, wait) = signal();
            tokio::spawn(run_sync(move || {
                DATA.with(|data| {
                    *data.0.lock().unwrap() = Some(dead);
                    thread::scope(|scope| {
                        scope.spawn(move || {
                            let _ = ended.recv();
                            let _ = data;
                        });
                        started.give();
                        // Swallows the cancellation until it is leaked.
                        loop {
                            let _ = catch_unwind(|| await_sync(pending::<()>()));
                        }
                    });
                });
            }));
            wait.wait().await;
            greenhack::workers::shutdown(Duration::from_millis(1)).await;
        });
        assert_eq!(leaked_runs(), 1);
        assert_eq!(died.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout));
        std::mem::forget(end);
    });
}

#[test]
fn a_run_in_an_older_thread_local_is_leaked_when_the_thread_ends() {
    succeeds_in_child(
        "a_run_in_an_older_thread_local_is_leaked_when_the_thread_ends",
        || {
            static UNWOUND: AtomicBool = AtomicBool::new(false);
            thread_local! {
                static SLOT: RefCell<Option<AnyRun>> = const { RefCell::new(None) };
            }
            thread::spawn(|| {
                SLOT.with(|_| ());
                current_thread().block_on(async {
                    let mut run: AnyRun = Box::pin(run_sync_local(|| {
                        DATA.with(|_data| {
                            let _guard = on_drop(|| UNWOUND.store(true, SeqCst));
                            await_sync(pending::<()>());
                        });
                    }));
                    assert!(poll_once(&mut run).await.is_pending());
                    SLOT.set(Some(run));
                });
            })
            .join()
            .unwrap();
            assert!(!UNWOUND.load(SeqCst));
            assert_eq!(leaked_runs(), 1);
        },
    );
}

#[test]
fn a_run_is_not_resumed_while_the_thread_ends() {
    static DEAD_AT_RESUME: AtomicBool = AtomicBool::new(false);
    struct Drives(RefCell<Option<(Runtime, AnyRun)>>);
    impl Drop for Drives {
        fn drop(&mut self) {
            let (runtime, run) = self.0.take().unwrap();
            let _ = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run)));
        }
    }
    thread_local! {
        static SLOT: Drives = const { Drives(RefCell::new(None)) };
    }
    let (dead, died) = mpsc::channel();
    thread::spawn(move || {
        let runtime = current_thread();
        // tokio's own locals are older, so that they live longer.
        runtime.block_on(yield_now());
        SLOT.with(|_| ());
        let mut run: AnyRun = Box::pin(run_sync_local(move || {
            DATA.with(|data| {
                *data.0.lock().unwrap() = Some(dead);
                await_sync(yield_now());
                DEAD_AT_RESUME.store(died.try_recv().is_ok(), SeqCst);
                let _ = data;
            });
        }));
        runtime.block_on(async { assert!(poll_once(&mut run).await.is_pending()) });
        SLOT.with(|slot| slot.0.replace(Some((runtime, run))));
    })
    .join()
    .unwrap();
    assert!(
        !DEAD_AT_RESUME.load(SeqCst),
        "code went on, on a stack that borrows from the dead"
    );
}

#[test]
fn a_run_does_not_start_while_the_thread_ends() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    static REFUSED: AtomicBool = AtomicBool::new(false);
    struct Starts(RefCell<Option<Runtime>>);
    impl Drop for Starts {
        fn drop(&mut self) {
            let runtime = self.0.take().unwrap();
            let run = run_sync_local(|| STARTED.store(true, SeqCst));
            let polled = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run)));
            let is_refused =
                polled.is_err_and(|payload| text(&*payload).contains("thread is ending"));
            REFUSED.store(is_refused, SeqCst);
        }
    }
    thread_local! {
        static SLOT: Starts = const { Starts(RefCell::new(None)) };
    }
    thread::spawn(|| {
        let runtime = current_thread();
        // tokio's own locals are older, so that they live longer.
        runtime.block_on(yield_now());
        SLOT.with(|_| ());
        runtime.block_on(run_sync_local(|| ()));
        SLOT.with(|slot| slot.0.replace(Some(runtime)));
    })
    .join()
    .unwrap();
    assert!(REFUSED.load(SeqCst));
    assert!(!STARTED.load(SeqCst));
}

/// Starts a thread whose runtime drives a task to the last, from a thread local. The
/// task lends from a younger local and waits, in `DATA.with(|_| f(gate))`. Returns
/// whether it went on when the gate was opened.
fn goes_on_while_the_thread_ends(f: fn(&Notify), is_cancelled: bool) -> bool {
    struct Drives(RefCell<Option<Runtime>>);
    impl Drop for Drives {
        fn drop(&mut self) {
            self.0.take().unwrap().block_on(settle());
        }
    }
    thread_local! {
        static SLOT: Drives = const { Drives(RefCell::new(None)) };
    }
    let (went_on, has_gone_on) = mpsc::channel();
    thread::spawn(move || {
        let runtime = current_thread();
        // tokio's own locals are older, so that they live longer.
        runtime.block_on(yield_now());
        SLOT.with(|_| ());
        let gate = Arc::new(Notify::new());
        let opened = gate.clone();
        let task = runtime.spawn(run_sync(move || {
            DATA.with(|_data| {
                let _guard = on_drop(|| went_on.send(()).unwrap());
                f(&opened);
            });
        }));
        runtime.block_on(settle());
        if is_cancelled {
            task.abort();
            runtime.block_on(settle());
        }
        gate.notify_one();
        SLOT.with(|slot| slot.0.replace(Some(runtime)));
    })
    .join()
    .unwrap();
    has_gone_on.try_recv().is_ok()
}

#[test]
fn a_task_is_not_resumed_while_the_thread_ends() {
    succeeds_in_child("a_task_is_not_resumed_while_the_thread_ends", || {
        let wait = |gate: &Notify| await_sync(gate.notified());
        assert!(!goes_on_while_the_thread_ends(wait, false));
        assert_eq!(leaked_runs(), 1);
    });
}

#[test]
fn cleanup_is_not_resumed_while_the_thread_ends() {
    succeeds_in_child("cleanup_is_not_resumed_while_the_thread_ends", || {
        let wait_in_drop = |gate: &Notify| {
            let _guard = on_drop(|| {
                await_in_drop(gate.notified());
            });
            await_sync(pending::<()>());
        };
        assert!(!goes_on_while_the_thread_ends(wait_in_drop, true));
        assert_eq!(leaked_runs(), 1);
    });
}

#[test]
fn a_thread_local_that_awaits_when_it_is_dropped_does_not_abort() {
    succeeds_in_child(
        "a_thread_local_that_awaits_when_it_is_dropped_does_not_abort",
        || {
            thread_local! {
                static AWAITS: Resource = const { Resource };
            }
            thread::spawn(|| {
                let _ = Handle::try_current();
                AWAITS.with(|_| ());
                await_sync(async {});
            })
            .join()
            .unwrap();
        },
    );
}

#[test]
fn a_started_run_is_refused_on_another_thread_and_goes_on_at_home() {
    let runtime = current_thread();
    let mut run = run_sync(|| {
        let home = thread::current().id();
        await_sync(yield_now());
        assert_eq!(thread::current().id(), home);
        7
    });
    runtime.block_on(async { assert!(poll_once(&mut run).await.is_pending()) });
    let mut run = thread::spawn(move || {
        let refused = catch_unwind(AssertUnwindSafe(|| current_thread().block_on(&mut run)));
        let message = text(&*refused.unwrap_err());
        assert!(message.contains("another thread"), "{message}");
        run
    })
    .join()
    .unwrap();
    assert_eq!(runtime.block_on(Pin::new(&mut run)), 7);
}

#[test]
fn a_run_goes_on_in_another_runtime_of_its_thread() {
    let mut run: AnyRun = Box::pin(run_sync_local(|| {
        (0..3).for_each(|_| await_sync(yield_now()));
    }));
    let first = current_thread();
    first.block_on(async { assert!(poll_once(&mut run).await.is_pending()) });
    current_thread().block_on(async { assert!(poll_once(&mut run).await.is_pending()) });
    let local_set = LocalSet::new();
    let ended = local_set.block_on(&current_thread(), async { spawn_local(run).await });
    assert!(ended.is_ok());
}

#[test]
fn a_run_that_is_dropped_on_another_thread_unwinds_at_home() {
    let runtime = current_thread();
    let (unwound, thread_of_drop) = mpsc::channel();
    let mut run = run_sync(move || {
        let _guard = on_drop(|| unwound.send(thread::current().id()).unwrap());
        await_sync(pending::<()>());
    });
    runtime.block_on(async { assert!(poll_once(&mut run).await.is_pending()) });
    thread::spawn(move || drop(run)).join().unwrap();
    assert!(
        thread_of_drop.try_recv().is_err(),
        "nobody drives its runtime"
    );
    runtime.block_on(settle());
    assert_eq!(thread_of_drop.try_recv().unwrap(), thread::current().id());
}

#[test]
fn a_run_whose_runtime_is_gone_is_leaked_on_another_thread() {
    succeeds_in_child(
        "a_run_whose_runtime_is_gone_is_leaked_on_another_thread",
        || {
            static UNWOUND: AtomicBool = AtomicBool::new(false);
            let runtime = current_thread();
            let mut run = run_sync(|| {
                let _guard = on_drop(|| UNWOUND.store(true, SeqCst));
                await_sync(pending::<()>());
            });
            runtime.block_on(async { assert!(poll_once(&mut run).await.is_pending()) });
            drop(runtime);
            thread::spawn(move || drop(run)).join().unwrap();
            assert!(!UNWOUND.load(SeqCst));
            assert_eq!(leaked_runs(), 1);
        },
    );
}
