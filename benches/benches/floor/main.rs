//! How near greenhack is to what cannot be had for less: async code, a bare coroutine
//! that is polled on its own stack, one whose futures are polled on its parent's, that
//! with looks at what tokio says of the thread, and greenhack.
//!
//! Run it with `cargo bench -p greenhack-benches --bench floor`. See `bare.rs` for what
//! the bare ones leave out.
#![allow(clippy::disallowed_types, reason = "it is the switch that is measured")]

mod bare;

use std::future::ready;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bare::{Bare, wait_at_parent, wait_here};
use greenhack::{await_sync, builder};
use greenhack_benches::{Case, Once, Race, Table, batches, in_task, sixteen_async, sixteen_plain};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// As large as those of the bare coroutines.
const STACK: usize = 64 * 1024;

/// Plain code on a bare coroutine. Where its futures are polled is up to how it waits.
macro_rules! bare {
    ($code:expr) => {
        Bare::<_, _, false>::new(move || $code)
    };
}

/// The same, with looks at tokio.
macro_rules! looks {
    ($code:expr) => {
        Bare::<_, _, true>::new(move || $code)
    };
}

macro_rules! greenhack {
    ($code:expr) => {
        builder().stack_size(STACK).run_sync(move || $code)
    };
}

fn main() {
    let rt = Builder::new_current_thread().enable_all().build().unwrap();
    let table = Table::from_args();
    ready_at_once(&table, &rt);
    pending_once(&table, &rt);
    start_to_end(&table, &rt);
    deep(&table, &rt);
}

fn ready_at_once(table: &Table, rt: &Runtime) {
    macro_rules! timed {
        ($n:ident, $wait:ident) => {{
            let start = Instant::now();
            for i in 0..$n {
                black_box($wait(ready(black_box(i))));
            }
            start.elapsed()
        }};
    }
    table.case(
        Case::new("ready, in a task", 1_000_000)
            .side(".await", |n| {
                in_task(rt, async move {
                    let start = Instant::now();
                    for i in 0..n {
                        black_box(ready(black_box(i)).await);
                    }
                    start.elapsed()
                })
            })
            .side("bare, own stack", |n| {
                in_task(rt, bare!(timed!(n, wait_here)))
            })
            .side("bare, parent's stack", |n| {
                in_task(rt, bare!(timed!(n, wait_at_parent)))
            })
            .side("greenhack", |n| {
                in_task(rt, greenhack!(timed!(n, await_sync)))
            }),
    );
}

fn pending_once(table: &Table, rt: &Runtime) {
    macro_rules! waits {
        ($race:ident, $n:ident, $wait:ident) => {{
            $wait($race.ready());
            for _ in 0..$n {
                black_box($wait(Once::default()));
            }
            $wait($race.done());
        }};
    }
    for (name, tasks, operations) in [
        ("pending once, 64 tasks", 64, 256_000),
        ("pending once, 10,000 tasks", 10_000, 400_000),
    ] {
        let spawned = |n: u64, spawn: &dyn Fn(Arc<Race>, u64) -> JoinHandle<()>| {
            rt.block_on(async {
                let race = Race::new(tasks);
                (0..tasks).for_each(|_| drop(spawn(race.clone(), n / tasks)));
                race.run().await
            })
        };
        table.case(
            Case::new(name, operations)
                .side(".await", |n| {
                    spawned(n, &|race, n| {
                        tokio::spawn(async move {
                            race.ready().await;
                            for _ in 0..n {
                                black_box(Once::default().await);
                            }
                            race.done().await;
                        })
                    })
                })
                .side("bare, own stack", |n| {
                    spawned(n, &|race, n| {
                        tokio::spawn(bare!(waits!(race, n, wait_here)))
                    })
                })
                .side("bare, parent's stack", |n| {
                    spawned(n, &|race, n| {
                        tokio::spawn(bare!(waits!(race, n, wait_at_parent)))
                    })
                })
                .side("the same, and looks", |n| {
                    spawned(n, &|race, n| {
                        tokio::spawn(looks!(waits!(race, n, wait_at_parent)))
                    })
                })
                .side("greenhack", |n| {
                    spawned(n, &|race, n| {
                        tokio::spawn(greenhack!(waits!(race, n, await_sync)))
                    })
                }),
        );
    }
}

fn start_to_end(table: &Table, rt: &Runtime) {
    for batch in [1, 256] {
        let run = |n, spawn: &dyn Fn() -> JoinHandle<u64>| rt.block_on(batches(n, batch, spawn));
        table.case(
            Case::new(format!("run, no wait, {batch} at a time"), 51_200)
                .side(".await", |n| {
                    run(n, &|| tokio::spawn(async { black_box(1) }))
                })
                .side("bare", |n| run(n, &|| tokio::spawn(bare!(black_box(1)))))
                .side("the same, and looks", |n| {
                    run(n, &|| tokio::spawn(looks!(black_box(1))))
                })
                .side("greenhack", |n| {
                    run(n, &|| tokio::spawn(greenhack!(black_box(1))))
                }),
        );
        table.case(
            Case::new(format!("run, 1 wait, {batch} at a time"), 51_200)
                .side(".await", |n| run(n, &|| tokio::spawn(Once::default())))
                .side("bare, own stack", |n| {
                    run(n, &|| tokio::spawn(bare!(wait_here(Once::default()))))
                })
                .side("bare, parent's stack", |n| {
                    run(n, &|| tokio::spawn(bare!(wait_at_parent(Once::default()))))
                })
                .side("the same, and looks", |n| {
                    run(n, &|| tokio::spawn(looks!(wait_at_parent(Once::default()))))
                })
                .side("greenhack", |n| {
                    run(n, &|| tokio::spawn(greenhack!(await_sync(Once::default()))))
                }),
        );
    }
}

sixteen_plain!(mod own_stack, crate::bare::wait_here);
sixteen_plain!(mod parents_stack, crate::bare::wait_at_parent);
sixteen_plain!(mod ours, greenhack::await_sync);

fn deep(table: &Table, rt: &Runtime) {
    macro_rules! timed {
        ($n:ident, $waits:ident, $sixteen:path $(, $await:tt)?) => {{
            let start = Instant::now();
            for _ in 0..$n {
                black_box($sixteen(black_box($waits))$(.$await)?);
            }
            start.elapsed()
        }};
    }
    for (name, waits) in [("16 deep, 1 wait", 1), ("16 deep, 16 waits", 16)] {
        table.case(
            Case::new(name, 64_000 / waits)
                .side("async fn", |n| {
                    in_task(rt, async move { timed!(n, waits, sixteen_async, await) })
                })
                .side("bare, own stack", |n| {
                    in_task(rt, bare!(timed!(n, waits, own_stack::sixteen)))
                })
                .side("bare, parent's stack", |n| {
                    in_task(rt, bare!(timed!(n, waits, parents_stack::sixteen)))
                })
                .side("the same, and looks", |n| {
                    in_task(rt, looks!(timed!(n, waits, parents_stack::sixteen)))
                })
                .side("greenhack", |n| {
                    in_task(rt, greenhack!(timed!(n, waits, ours::sixteen)))
                }),
        );
    }
}
