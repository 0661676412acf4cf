//! What the way to a worker costs: `run_sync` on a multi-thread runtime, where
//! plain code can't stay, against `spawn_blocking` with `Handle::block_on`.
//!
//! Run it with `cargo bench -p greenhack-benches --bench hop`.
#![forbid(unsafe_code)]

use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::task::Poll;
use std::time::{Duration, Instant};

use greenhack::{await_sync, run_sync};
use greenhack_benches::{Case, Goal, Table};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

fn main() {
    let rt = Builder::new_multi_thread().enable_all().build().unwrap();
    let table = Table::from_args();
    let handlers = [
        ("no wait", Handler::Waits(0), 20_000),
        ("1 wait", Handler::Waits(1), 20_000),
        ("3 waits", Handler::Waits(3), 20_000),
        ("1 ms", Handler::Sleeps, 5_000),
    ];
    for (name, handler, requests) in handlers {
        // Many clients, as in a service under load; then a single one.
        case(
            &table,
            &rt,
            &format!("hop busy, {name}"),
            handler,
            256,
            requests,
        );
        case(
            &table,
            &rt,
            &format!("hop one by one, {name}"),
            handler,
            1,
            requests / 10,
        );
    }
}

/// What a request has to do.
#[derive(Clone, Copy)]
enum Handler {
    /// Waits so often for something that is pending once.
    Waits(u32),
    /// Waits for a millisecond.
    Sleeps,
}

impl Handler {
    async fn serve(self) -> u64 {
        match self {
            Handler::Waits(waits) => {
                for _ in 0..waits {
                    black_box(once().await);
                }
            }
            Handler::Sleeps => sleep(Duration::from_millis(1)).await,
        }
        1
    }

    fn serve_sync(self) -> u64 {
        match self {
            Handler::Waits(waits) => {
                for _ in 0..waits {
                    black_box(await_sync(once()));
                }
            }
            // A timer belongs to the runtime that it is made in.
            Handler::Sleeps => await_sync(async { sleep(Duration::from_millis(1)).await }),
        }
        1
    }
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

async fn blocking(handler: Handler) -> u64 {
    let handle = Handle::current();
    spawn_blocking(move || handle.block_on(handler.serve()))
        .await
        .unwrap()
}

async fn spawned(handler: Handler) -> u64 {
    tokio::spawn(handler.serve()).await.unwrap()
}

/// Lets `clients` make `requests` in all, each one after the other.
fn load<F>(
    rt: &Runtime,
    clients: u64,
    requests: u64,
    request: fn(Handler) -> F,
    h: Handler,
) -> Duration
where
    F: Future<Output = u64> + Send + 'static,
{
    rt.block_on(async {
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            // The first ones take what is left over.
            let share = requests / clients + u64::from(client < requests % clients);
            tasks.spawn(async move {
                for _ in 0..share {
                    black_box(request(h).await);
                }
            });
        }
        tasks.join_all().await;
        begin.elapsed()
    })
}

fn case(table: &Table, rt: &Runtime, name: &str, handler: Handler, clients: u64, requests: u64) {
    table.case(
        Case::new(name, requests)
            .side("spawn_blocking", |n| {
                load(rt, clients, n, blocking, handler)
            })
            .side("run_sync", |n| {
                load(
                    rt,
                    clients,
                    n,
                    |handler| run_sync(move || handler.serve_sync()),
                    handler,
                )
            })
            .goal(Goal::Times(0.3))
            .side("spawned async task", |n| {
                load(rt, clients, n, spawned, handler)
            }),
    );
}
