//! `limit_stack_memory`: each test in a process of its own, which has the limit.

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::future::pending;
use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use greenhack::{await_sync, builder, join, limit_stack_memory, run_sync, workers};
use help::{multi_thread, poll_once, settle, succeeds_in_child};
use support::text;
use tokio::runtime::LocalRuntime;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle, spawn_local};

const SIZE: usize = 64 * 1024;

/// A run with a stack of `size` bytes, which waits until it is told to end.
fn waits(size: usize) -> (JoinHandle<()>, oneshot::Sender<()>) {
    let (end, ended) = oneshot::channel();
    let run = builder().stack_size(size).name("guest");
    let run = run.run_sync_local(|| {
        let _ = await_sync(ended);
    });
    (spawn_local(run), end)
}

fn message(error: JoinError) -> String {
    text(&*error.into_panic())
}

#[test]
fn a_run_beyond_the_limit_panics_and_the_others_go_on() {
    succeeds_in_child("a_run_beyond_the_limit_panics_and_the_others_go_on", || {
        limit_stack_memory(3 * SIZE);
        LocalRuntime::new().unwrap().block_on(async {
            let mut waiting: Vec<_> = (0..3).map(|_| waits(SIZE)).collect();
            settle().await;
            let (late, _end) = waits(SIZE);
            assert_eq!(
                message(late.await.unwrap_err()),
                "no stack of 65536 bytes for `guest`: the stacks of this process take 196608 of \
                 the 196608 bytes that `greenhack::limit_stack_memory` allows; set a \
                 smaller `stack_size`"
            );
            // A stack that comes back is used again, and is not counted twice.
            for _ in 0..10 {
                let (run, end) = waiting.pop().unwrap();
                drop(end);
                run.await.unwrap();
                waiting.push(waits(SIZE));
                settle().await;
            }
            assert!(waiting.iter().all(|(run, _)| !run.is_finished()));
            // A later limit replaces it.
            limit_stack_memory(4 * SIZE);
            waiting.push(waits(SIZE));
            settle().await;
            for (run, end) in waiting {
                drop(end);
                run.await.unwrap();
            }
        });
        assert_eq!(greenhack::leaked_runs(), 0);
    });
}

#[test]
fn a_stack_larger_than_any_class_counts_as_what_it_is() {
    succeeds_in_child("a_stack_larger_than_any_class_counts_as_what_it_is", || {
        const LARGE: usize = 5 << 20;
        limit_stack_memory(2 * LARGE + SIZE);
        let on_a_thread = || {
            LocalRuntime::new().unwrap().block_on(async {
                let [one, other, small] = [waits(LARGE), waits(LARGE), waits(SIZE)];
                settle().await;
                assert!(waits(SIZE).0.await.is_err());
                for (run, end) in [one, other, small] {
                    drop(end);
                    run.await.unwrap();
                }
            });
        };
        // They are counted until their thread ends.
        for _ in 0..5 {
            thread::spawn(on_a_thread).join().unwrap();
        }
    });
}

#[test]
fn a_run_that_is_forgotten_counts_for_ever_and_what_was_free_beside_it_does_not() {
    const NAME: &str =
        "a_run_that_is_forgotten_counts_for_ever_and_what_was_free_beside_it_does_not";
    succeeds_in_child(NAME, || {
        const MOST: usize = 4;
        limit_stack_memory(MOST * SIZE);
        for forgotten in 0..MOST {
            let on_a_thread = move || {
                LocalRuntime::new().unwrap().block_on(async move {
                    let waiting: Vec<_> = (forgotten..MOST).map(|_| waits(SIZE)).collect();
                    settle().await;
                    assert!(waits(SIZE).0.await.is_err());
                    for (run, end) in waiting {
                        drop(end);
                        run.await.unwrap();
                    }
                    let run = builder().stack_size(SIZE);
                    let mut run = Box::pin(run.run_sync_local(|| await_sync(pending::<()>())));
                    assert!(poll_once(&mut run).await.is_pending());
                    forget(run);
                });
            };
            thread::spawn(on_a_thread).join().unwrap();
        }
    });
}

#[test]
fn a_large_stack_that_is_free_makes_room_for_one_of_another_size() {
    const NAME: &str = "a_large_stack_that_is_free_makes_room_for_one_of_another_size";
    succeeds_in_child(NAME, || {
        const LARGE: usize = 5 << 20;
        limit_stack_memory(2 * LARGE);
        LocalRuntime::new().unwrap().block_on(async {
            let run = |size| spawn_local(builder().stack_size(size).run_sync_local(|| ()));
            for size in [LARGE, LARGE - 1, LARGE - 2, 2 * LARGE, SIZE] {
                run(size).await.unwrap();
            }
            // That one which is in use does not.
            let (large, end) = waits(2 * LARGE - SIZE);
            settle().await;
            assert!(run(2 * SIZE).await.is_err());
            run(SIZE).await.unwrap();
            drop(end);
            large.await.unwrap();
        });
    });
}

#[cfg(feature = "tracing")]
#[test]
fn a_large_stack_that_is_dropped_on_another_thread_counts_no_longer() {
    use tracing::span::Id;
    use tracing::{Subscriber, info_span};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    struct PanicsAtExit;

    impl<S: Subscriber> Layer<S> for PanicsAtExit {
        fn on_exit(&self, _: &Id, _: Context<'_, S>) {
            panic!("a layer");
        }
    }

    const NAME: &str = "a_large_stack_that_is_dropped_on_another_thread_counts_no_longer";
    succeeds_in_child(NAME, || {
        const LARGE: usize = 5 << 20;
        limit_stack_memory(LARGE);
        let subscriber = tracing_subscriber::registry().with(PanicsAtExit);
        let _default = tracing::subscriber::set_default(subscriber);
        for _ in 0..3 {
            let run = builder().stack_size(LARGE);
            let mut run = Box::pin(run.run_sync(|| forget(info_span!("left").entered())));
            // The span is exited when the run has ended, so that it keeps its stack.
            let poll = || LocalRuntime::new().unwrap().block_on(poll_once(&mut run));
            let payload = catch_unwind(AssertUnwindSafe(poll)).unwrap_err();
            assert_eq!(text(&*payload), "a layer");
            thread::spawn(|| drop(run)).join().unwrap();
        }
    });
}

#[test]
fn a_closure_of_a_scope_beyond_the_limit_panics_in_its_caller() {
    succeeds_in_child(
        "a_closure_of_a_scope_beyond_the_limit_panics_in_its_caller",
        || {
            limit_stack_memory(2 * SIZE);
            LocalRuntime::new().unwrap().block_on(async {
                let run = builder().stack_size(SIZE).run_sync_local(|| {
                    let joined = catch_unwind(AssertUnwindSafe(|| {
                        join(|| await_sync(pending::<()>()), || ());
                    }));
                    let text = text(&*joined.unwrap_err());
                    assert!(text.contains("`greenhack::limit_stack_memory`"), "{text}");
                });
                run.await;
            });
            assert_eq!(greenhack::leaked_runs(), 0);
        },
    );
}

#[test]
fn a_run_on_a_worker_says_so_to_its_caller() {
    succeeds_in_child("a_run_on_a_worker_says_so_to_its_caller", || {
        limit_stack_memory(SIZE);
        multi_thread().block_on(async {
            let error = tokio::spawn(run_sync(|| 1)).await.unwrap_err();
            assert!(message(error).contains("`greenhack::limit_stack_memory`"));
            limit_stack_memory(usize::MAX);
            assert_eq!(tokio::spawn(run_sync(|| 2)).await.unwrap(), 2);
        });
    });
}

#[test]
fn workers_that_have_ended_count_no_longer() {
    succeeds_in_child("workers_that_have_ended_count_no_longer", || {
        limit_stack_memory(SIZE);
        let work = |_| async { builder().stack_size(SIZE).run_sync(|| ()).await };
        for _ in 0..200 {
            let workers = workers::Builder::new().threads(1).run_each(work);
            await_sync(workers.unwrap());
        }
    });
}
