//! What one wait costs: `await_sync(future)` against `future.await`.
//!
//! Run it with `cargo bench -p greenhack-benches --bench await_sync`; with
//! `--features tracing` for what spans cost.
#![forbid(unsafe_code)]

use std::future::{Future, ready};
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use greenhack::{await_sync, builder, run_sync, run_sync_local};
use greenhack_benches::{Case, Goal, Once, Race, Table, in_task, sixteen_async};
use tokio::runtime::{Builder, LocalRuntime, Runtime};
use tokio::sync::mpsc::{self, UnboundedReceiver, unbounded_channel};

fn main() {
    let rt = Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalRuntime::new().unwrap();
    let table = Table::from_args();
    ready_at_once(&table, &rt);
    pending_once(&table, &rt, &local);
    ping_pong(&table, &rt);
    deep(&table, &rt);
    // Last, as it sets the subscriber of the process.
    #[cfg(feature = "tracing")]
    spans(&table, &rt);
}

fn once() -> Once {
    Once::default()
}

fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

async fn timed_async(future: impl Future<Output = ()>) -> Duration {
    let start = Instant::now();
    future.await;
    start.elapsed()
}

fn ready_at_once(table: &Table, rt: &Runtime) {
    let native = async |n| {
        for i in 0..n {
            black_box(ready(black_box(i)).await);
        }
    };
    let ours = |n| {
        for i in 0..n {
            black_box(await_sync(ready(black_box(i))));
        }
    };
    table.case(
        Case::new("ready, in a task", 1_000_000)
            .side(".await", |n| in_task(rt, timed_async(native(n))))
            .side("await_sync", |n| {
                in_task(rt, run_sync(move || timed(|| ours(n))))
            })
            .goal(Goal::Over(10.0)),
    );
    table.case(
        Case::new("ready, in block_on", 1_000_000)
            .side(".await", |n| rt.block_on(timed_async(native(n))))
            .side("await_sync", |n| {
                rt.block_on(run_sync_local(move || timed(|| ours(n))))
            })
            .goal(Goal::Over(10.0)),
    );

    let filled = |n| {
        let (sender, receiver) = unbounded_channel();
        (0..n).for_each(|i| sender.send(i).unwrap());
        receiver
    };
    let native = async |mut receiver: UnboundedReceiver<u64>, n| {
        for _ in 0..n {
            black_box(receiver.recv().await);
        }
    };
    let ours = |mut receiver: UnboundedReceiver<u64>, n| {
        for _ in 0..n {
            black_box(await_sync(receiver.recv()));
        }
    };
    table.case(
        Case::new("ready mpsc recv, in a task", 100_000)
            .side(".await", |n| in_task(rt, timed_async(native(filled(n), n))))
            .side("await_sync", |n| {
                let receiver = filled(n);
                in_task(rt, run_sync(move || timed(|| ours(receiver, n))))
            })
            .goal(Goal::Over(10.0)),
    );
}

async fn waits(race: Arc<Race>, waits: u64) {
    race.ready().await;
    for _ in 0..waits {
        black_box(once().await);
    }
    race.done().await;
}

fn waits_sync(race: &Race, waits: u64) {
    await_sync(race.ready());
    for _ in 0..waits {
        black_box(await_sync(once()));
    }
    await_sync(race.done());
}

fn pending_once(table: &Table, rt: &Runtime, local: &LocalRuntime) {
    table.case(
        Case::new("pending once, in block_on", 100_000)
            .side(".await", |n| {
                rt.block_on(timed_async(async {
                    for _ in 0..n {
                        black_box(once().await);
                    }
                }))
            })
            .side("await_sync", |n| {
                rt.block_on(run_sync_local(move || {
                    timed(|| {
                        for _ in 0..n {
                            black_box(await_sync(once()));
                        }
                    })
                }))
            })
            .goal(Goal::Times(1.25)),
    );
    let cases = [
        ("pending once, 1 task", 1, 200_000, None),
        (
            "pending once, 64 tasks",
            64,
            256_000,
            Some(Goal::Times(1.25)),
        ),
        ("pending once, 1,000 tasks", 1_000, 400_000, None),
        ("pending once, 10,000 tasks", 10_000, 400_000, None),
    ];
    for (name, tasks, operations, goal) in cases {
        let spawned = |n: u64, spawn: &dyn Fn(Arc<Race>, u64)| {
            rt.block_on(async {
                let race = Race::new(tasks);
                (0..tasks).for_each(|_| spawn(race.clone(), n / tasks));
                race.run().await
            })
        };
        let case = Case::new(name, operations)
            .side(".await", |n| {
                spawned(n, &|race, n| drop(tokio::spawn(waits(race, n))))
            })
            .side("await_sync in run_sync", |n| {
                spawned(n, &|race, n| {
                    drop(tokio::spawn(run_sync(move || waits_sync(&race, n))));
                })
            });
        let case = match goal {
            Some(goal) => case.goal(goal),
            None => case,
        };
        let case = case.side("await_sync, 64 KiB of stack", |n| {
            spawned(n, &|race, n| {
                let small = builder().stack_size(64 * 1024);
                drop(tokio::spawn(small.run_sync(move || waits_sync(&race, n))));
            })
        });
        table.case(case.side("await_sync, LocalRuntime", |n| {
            local.block_on(async {
                let race = Race::new(tasks);
                for _ in 0..tasks {
                    let race = race.clone();
                    let n = n / tasks;
                    tokio::task::spawn_local(run_sync_local(move || waits_sync(&race, n)));
                }
                race.run().await
            })
        }));
    }
}

#[cfg(feature = "tracing")]
fn spans(table: &Table, rt: &Runtime) {
    use tracing::instrument::WithSubscriber;
    use tracing::{Instrument, info_span};
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;

    let native = |n| {
        timed_async(async move {
            for _ in 0..n {
                black_box(once().await);
            }
        })
    };
    let ours = |n| {
        run_sync(move || {
            timed(|| {
                for _ in 0..n {
                    black_box(await_sync(once()));
                }
            })
        })
    };
    let case = |name| Case::new(name, 100_000);
    // What is "over the first" tells what the feature costs, beside the same line
    // without it: that of "pending once, 1 task".
    table.case(
        case("no span, no subscriber")
            .side(".await", |n| in_task(rt, native(n)))
            .side("await_sync", |n| in_task(rt, ours(n))),
    );
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer())
        .init();
    table.case(
        case("no span, a global subscriber")
            .side(".await", |n| in_task(rt, native(n)))
            .side("await_sync", |n| in_task(rt, ours(n))),
    );
    let own = tracing_subscriber::registry;
    table.case(
        case("no span, a subscriber of its own")
            .side(".await", |n| in_task(rt, native(n).with_subscriber(own())))
            .side("await_sync", |n| {
                in_task(rt, ours(n).with_subscriber(own()))
            }),
    );
    table.case(
        case("spans, a global subscriber")
            .side("no span", |n| in_task(rt, ours(n)))
            .side("a span around the run", |n| {
                in_task(rt, ours(n).instrument(info_span!("around")))
            })
            .side("a span in the run", |n| {
                let waits = move || {
                    let _inside = info_span!("inside").entered();
                    for _ in 0..n {
                        black_box(await_sync(once()));
                    }
                };
                in_task(rt, run_sync(move || timed(waits)))
            }),
    );
}

/// The ends of a channel to a partner and of one back.
type Ends = (mpsc::Sender<u64>, mpsc::Receiver<u64>);

fn pair() -> (Ends, Ends) {
    let (to, from_partner) = mpsc::channel(1);
    let (to_partner, from) = mpsc::channel(1);
    ((to, from), (to_partner, from_partner))
}

async fn plays(race: Arc<Race>, (to, mut from): Ends, serves: bool, turns: u64) {
    race.ready().await;
    if serves {
        to.send(0).await.unwrap();
    }
    for _ in 0..turns {
        let ball = from.recv().await.unwrap();
        // The partner of the last turn has gone.
        let _ = to.send(ball + 1).await;
    }
    race.done().await;
}

fn plays_sync(race: &Race, (to, mut from): Ends, serves: bool, turns: u64) {
    await_sync(race.ready());
    if serves {
        await_sync(to.send(0)).unwrap();
    }
    for _ in 0..turns {
        let ball = await_sync(from.recv()).unwrap();
        let _ = await_sync(to.send(ball + 1));
    }
    await_sync(race.done());
}

fn ping_pong(table: &Table, rt: &Runtime) {
    const PAIRS: u64 = 32;
    let game = |n: u64, spawn: &dyn Fn(Arc<Race>, Ends, bool, u64)| {
        rt.block_on(async {
            let race = Race::new(2 * PAIRS);
            for _ in 0..PAIRS {
                let (one, other) = pair();
                spawn(race.clone(), one, true, n / PAIRS / 2);
                spawn(race.clone(), other, false, n / PAIRS / 2);
            }
            race.run().await
        })
    };
    table.case(
        Case::new("mpsc ping-pong, 64 tasks", 128_000)
            .side(".await", |n| {
                game(n, &|race, ends, serves, n| {
                    drop(tokio::spawn(plays(race, ends, serves, n)));
                })
            })
            .side("await_sync", |n| {
                game(n, &|race, ends, serves, n| {
                    let run = run_sync(move || plays_sync(&race, ends, serves, n));
                    drop(tokio::spawn(run));
                })
            })
            .goal(Goal::Times(1.25)),
    );
}

greenhack_benches::sixteen_plain!(mod plain, greenhack::await_sync);

fn boxed(levels: u64, waits: u64) -> Pin<Box<dyn Future<Output = u64> + Send>> {
    Box::pin(async move {
        if levels == 1 {
            let mut sum = 0;
            for _ in 0..waits {
                sum += once().await;
            }
            return sum;
        }
        boxed(levels - 1, waits).await + 1
    })
}

fn deep(table: &Table, rt: &Runtime) {
    for (name, waits) in [("16 deep, 1 wait", 1), ("16 deep, 16 waits", 16)] {
        table.case(
            Case::new(name, 64_000 / waits)
                .side("async fn", |n| {
                    in_task(
                        rt,
                        timed_async(async move {
                            for _ in 0..n {
                                black_box(sixteen_async(black_box(waits)).await);
                            }
                        }),
                    )
                })
                .side("async fn, boxed", |n| {
                    in_task(
                        rt,
                        timed_async(async move {
                            for _ in 0..n {
                                black_box(boxed(16, black_box(waits)).await);
                            }
                        }),
                    )
                })
                .side("fn, await_sync", |n| {
                    in_task(
                        rt,
                        run_sync(move || {
                            timed(|| {
                                for _ in 0..n {
                                    black_box(plain::sixteen(black_box(waits)));
                                }
                            })
                        }),
                    )
                }),
        );
    }
}
