//! What one run costs: a plain function that waits once, from start to end,
//! and what it costs to drop it half-way.
//!
//! Run it with `cargo bench -p greenhack-benches --bench run`.
#![forbid(unsafe_code)]

use std::future::{Future, pending, poll_fn};
use std::hint::black_box;
use std::panic::{catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use greenhack::{await_sync, run_sync, run_sync_local};
use greenhack_benches::{Case, Goal, Table, batches};
use tokio::runtime::{Builder, LocalRuntime, Runtime};
use tokio::task::spawn_local;

fn main() {
    let rt = Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalRuntime::new().unwrap();
    let table = Table::from_args();
    start_to_end(&table, &local);
    cancel(&table, &rt);
}

/// Pending at its first poll, ready at its second.
fn once() -> impl Future<Output = u64> + Send {
    let mut woken = false;
    poll_fn(move |cx| {
        if woken {
            return Poll::Ready(1);
        }
        woken = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

fn once_sync() -> u64 {
    await_sync(once())
}

/// Awaits what `start` gives, `count` times, one after the other.
async fn each<F: Future>(count: u64, start: impl Fn() -> F) -> Duration {
    let begin = Instant::now();
    for _ in 0..count {
        black_box(start().await);
    }
    begin.elapsed()
}

fn in_task(local: &LocalRuntime, future: impl Future<Output = Duration> + 'static) -> Duration {
    local.block_on(async { spawn_local(future).await.unwrap() })
}

fn start_to_end(table: &Table, local: &LocalRuntime) {
    table.case(
        Case::new("one run in the same task", 64_000)
            .side("async block", |n| in_task(local, each(n, once)))
            .side("run_sync_local", |n| {
                in_task(local, each(n, || run_sync_local(once_sync)))
            })
            .goal(Goal::Over(100.0))
            .side("run_sync", |n| {
                in_task(local, each(n, || run_sync(once_sync)))
            })
            .goal(Goal::Over(100.0)),
    );
    table.case(
        Case::new("one run in a task, one by one", 64_000)
            .side("spawned async task", |n| {
                local.block_on(each(n, || spawn_local(once())))
            })
            .side("spawned run_sync_local", |n| {
                local.block_on(each(n, || spawn_local(run_sync_local(once_sync))))
            })
            .goal(Goal::Over(100.0))
            .side("spawned run_sync", |n| {
                local.block_on(each(n, || tokio::spawn(run_sync(once_sync))))
            })
            .goal(Goal::Over(100.0)),
    );
    table.case(
        Case::new("one run in a task, 64 at a time", 64_000)
            .side("spawned async task", |n| {
                local.block_on(batches(n, 64, || spawn_local(once())))
            })
            .side("spawned run_sync_local", |n| {
                local.block_on(batches(n, 64, || spawn_local(run_sync_local(once_sync))))
            })
            .goal(Goal::Over(100.0))
            .side("spawned run_sync", |n| {
                local.block_on(batches(n, 64, || tokio::spawn(run_sync(once_sync))))
            })
            .goal(Goal::Over(100.0)),
    );
}

/// Measures how long it takes to drop futures that are suspended.
fn drops<F: Future>(rt: &Runtime, count: u64, start: impl Fn() -> F) -> Duration {
    rt.block_on(async {
        let mut futures: Vec<Pin<Box<F>>> = (0..count).map(|_| Box::pin(start())).collect();
        poll_fn(|cx| {
            for future in &mut futures {
                assert!(future.as_mut().poll(cx).is_pending());
            }
            Poll::Ready(())
        })
        .await;
        let begin = Instant::now();
        drop(futures);
        begin.elapsed()
    })
}

/// Frames with something to drop, and a wait without end below them.
fn waits_below(frames: u32) {
    let _dropped = black_box(Box::new(frames));
    if frames == 1 {
        await_sync(pending::<()>());
    } else {
        waits_below(frames - 1);
    }
}

/// Frames with something to drop, and a throw below them: what cannot be had for less.
fn throws_below(frames: u32) {
    let _dropped = black_box(Box::new(frames));
    if frames == 1 {
        resume_unwind(Box::new(()));
    } else {
        throws_below(frames - 1);
    }
}

/// The same in async code.
fn waits_below_async(frames: u32) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move {
        let _dropped = black_box(Box::new(frames));
        if frames == 1 {
            pending::<()>().await;
        } else {
            waits_below_async(frames - 1).await;
        }
    })
}

fn cancel(table: &Table, rt: &Runtime) {
    for (name, frames) in [("cancel, 1 frame", 1), ("cancel, 16 frames", 16)] {
        table.case(
            Case::new(name, 256)
                .side("drop of async code", |n| {
                    drops(rt, n, || waits_below_async(frames))
                })
                .side("drop of run_sync_local", |n| {
                    drops(rt, n, || run_sync_local(move || waits_below(frames)))
                })
                .side("a throw from as deep, caught", |n| {
                    let begin = Instant::now();
                    for _ in 0..n {
                        let thrown = catch_unwind(|| throws_below(frames));
                        assert!(black_box(thrown).is_err());
                    }
                    begin.elapsed()
                }),
        );
    }
}
