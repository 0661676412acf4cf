//! Work that really blocks, away from the thread of the runs.
#![cfg(panic = "unwind")]

mod support;

use std::panic::{catch_unwind, panic_any};
use std::sync::mpsc;
use std::thread;

use greenhack::{await_sync, block, builder, in_context, run_sync, run_sync_local};
use support::{Fixture, Log, Place, in_each_place, on_drop, panic_of, signal};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::yield_now;

#[test]
fn it_runs_on_another_thread_and_its_result_comes_back() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let here = thread::current().id();
            let there = block(|| thread::current().id());
            assert_eq!(thread::current().id(), here);
            assert_ne!(there, here);
            assert!(!block(in_context));
            assert!(in_context());
            block(|| vec![1, 2, 3])
        });
        assert_eq!(run.await.unwrap(), [1, 2, 3]);
    });
}

#[test]
fn the_thread_of_the_run_serves_others_meanwhile() {
    support::current_thread().block_on(async {
        let (sender, receiver) = mpsc::channel();
        let blocked = tokio::spawn(run_sync(move || block(move || receiver.recv().unwrap())));
        let other = tokio::spawn(run_sync(move || {
            await_sync(yield_now());
            sender.send(7).unwrap();
        }));
        other.await.unwrap();
        assert_eq!(blocked.await.unwrap(), 7);
    });
}

#[test]
fn a_panic_resumes_at_the_call_with_its_payload() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let caught = catch_unwind(|| block(|| panic_any(7_u8)));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
            assert!(!thread::panicking());
            block(|| 1)
        });
        assert_eq!(run.await.unwrap(), 1);
    });
}

#[test]
fn what_has_started_goes_on_when_the_run_is_cancelled() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (unwound, end) = signal();
        let (done, all_done) = signal();
        let (allow, allowed) = mpsc::channel::<()>();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _unwound = unwound;
                block(move || {
                    let _done = done;
                    let result = log.on_drop("result dropped");
                    started.give();
                    allowed.recv().unwrap();
                    log.add("done");
                    result
                });
            }
        });
        wait.wait().await;
        run.abort();
        // The run does not wait for it.
        end.wait().await;
        assert!(log.take().is_empty());
        allow.send(()).unwrap();
        all_done.wait().await;
        // The result is dropped after the closure has ended.
        let mut events = log.take();
        while events.len() < 2 {
            tokio::task::yield_now().await;
            events.extend(log.take());
        }
        assert_eq!(events, ["done", "result dropped"]);
    });
}

#[test]
fn what_has_not_started_never_does() {
    let runtime = Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let log = Log::default();
    runtime.block_on(async {
        let (allow, allowed) = mpsc::channel::<()>();
        let first = tokio::task::spawn_blocking(move || allowed.recv().unwrap());
        let mut run = Box::pin(run_sync_local({
            let guard = log.on_drop("closure dropped");
            let log = log.clone();
            move || {
                block(move || {
                    let _guard = guard;
                    log.add("unreachable");
                });
            }
        }));
        assert!(futures::poll!(&mut run).is_pending());
        drop(run);
        allow.send(()).unwrap();
        first.await.unwrap();
    });
    drop(runtime);
    assert_eq!(log.take(), ["closure dropped"]);
}

#[test]
fn a_destructor_may_block_while_its_run_is_cancelled() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _guard = on_drop(|| {
                    let answer = block(|| 42);
                    log.add(format!("blocked: {answer}"));
                });
                started.give();
                await_sync(std::future::pending::<()>());
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["blocked: 42"]);
    });
}

#[test]
fn where_the_thread_may_block_it_is_a_call() {
    let is_a_call = || {
        let here = thread::current().id();
        assert_eq!(block(|| thread::current().id()), here);
        let caught = catch_unwind(|| block(|| panic_any(7_u8)));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
    };
    is_a_call();
    let runtime = support::current_thread();
    runtime.block_on(runtime.spawn_blocking(is_a_call)).unwrap();
    let _entered = runtime.enter();
    is_a_call();
}

#[test]
fn it_nests_and_may_wait() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            block(|| {
                // A thread that may block: both block it.
                let one = await_sync(async {
                    tokio::task::yield_now().await;
                    1
                });
                one + block(|| 1)
            })
        });
        assert_eq!(run.await.unwrap(), 2);
    });
}

#[test]
fn in_async_code_it_panics_at_the_callers_line_and_calls_nothing() {
    in_each_place(|place| async move {
        let check = || {
            let (message, line, file) = panic_of(|| block(|| unreachable!()));
            assert_eq!((line, file.as_str()), (line!() - 1, file!()));
            assert!(message.contains("spawn_blocking"), "{message}");
        };
        check();
        let run = place.spawn(move || await_sync(async { check() }));
        run.await.unwrap();
    });
    futures::executor::block_on(async {
        let (message, ..) = panic_of(|| block(|| unreachable!()));
        assert!(message.contains("spawn_blocking"), "{message}");
    });
}

#[test]
fn a_runtime_that_has_shut_down_says_so_at_the_callers_line() {
    let runtime = Fixture::new(Place::Worker);
    let (go_on, allowed) = oneshot::channel::<()>();
    let run = builder().caller_runtime(true).run_sync(move || {
        await_sync(allowed).unwrap();
        let (message, line, file) = panic_of(|| block(|| unreachable!()));
        assert_eq!((line, file.as_str()), (line!() - 1, file!()));
        assert!(message.contains("shutting down"), "{message}");
    });
    let mut run = Box::pin(run);
    runtime.block_on(async {
        assert!(futures::poll!(&mut run).is_pending());
    });
    drop(runtime);
    go_on.send(()).unwrap();
    futures::executor::block_on(run);
}
