//! What a suspended run holds: the growth of the process per run, and the time that it
//! takes to make one, to resume it, and to end it, and all that again, now that there are
//! stacks that have been used. Beside them is what the system takes for a page of memory
//! that nobody has touched yet: each run needs one.
//!
//! Run it with `cargo bench -p greenhack-benches --bench memory`. Linux only. With
//! `-- --million` it goes on to a million runs, for which it takes 5 GiB.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::env;
use std::hint::black_box;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use greenhack::{await_sync, builder};
use greenhack_benches::Held;
use memmap2::{Advice, MmapOptions};
use tokio::runtime::LocalRuntime;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_local, yield_now};

const KIB: usize = 1024;

/// What is measured, each time in a process of its own.
const CASES: [&str; 5] = [
    "a page",
    "async task",
    "run, 64 KiB of stack",
    "run, 1 MiB of stack",
    "run, 8 KiB used of 64 KiB",
];

fn main() {
    let asked = env::args().find_map(|arg| arg.strip_prefix("--case=")?.parse().ok());
    let count = env::args().find_map(|arg| arg.strip_prefix("--count=")?.parse().ok());
    if let (Some(case), Some(count)) = (asked, count) {
        return measure(case, count);
    }
    println!(
        "| suspended at once | count | µs to make | KiB resident | KiB of page tables | mappings \
         | µs to resume and end | µs to make again | µs to resume and end again |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|");
    let most = match env::args().any(|arg| arg == "--million") {
        true => 1_000_000,
        false => 100_000,
    };
    for count in [10_000, 100_000, 1_000_000] {
        for case in (0..CASES.len()).filter(|_| count <= most) {
            let status = Command::new(env::current_exe().unwrap())
                .args([format!("--case={case}"), format!("--count={count}")])
                .status();
            assert!(status.unwrap().success());
        }
    }
}

fn measure(case: usize, count: usize) {
    let run = |size: usize| {
        move |gate: Gate| {
            spawn_local(builder().stack_size(size).run_sync_local(move || {
                await_sync(gate.pass());
            }))
        }
    };
    match CASES[case] {
        "a page" => touch_pages(count),
        name @ "async task" => suspend_twice(name, count, |gate| {
            spawn_local(async move { gate.pass().await })
        }),
        name @ "run, 64 KiB of stack" => suspend_twice(name, count, run(64 * KIB)),
        name @ "run, 1 MiB of stack" => suspend_twice(name, count, run(KIB * KIB)),
        name => suspend_twice(name, count, |gate| {
            spawn_local(builder().stack_size(64 * KIB).run_sync_local(move || {
                let used = black_box([1_u8; 8 * KIB]);
                await_sync(gate.pass());
                black_box(&used);
            }))
        }),
    }
}

/// Touches as many pages as far apart as the stacks of 64 KiB are with their guards.
fn touch_pages(count: usize) {
    let slot = 80 * KIB;
    let mut options = MmapOptions::new();
    options.len(count * slot).no_reserve_swap();
    let mut mapping = options.map_anon().unwrap();
    // A system without huge pages refuses, and is right.
    let _ = mapping.advise(Advice::NoHugePage);
    let begin = Instant::now();
    for number in 0..count {
        mapping[number * slot] = 1;
    }
    let each = begin.elapsed().as_secs_f64() * 1e6 / count as f64;
    println!("| a page | {count} | {each:.2} | | | | | | |");
}

/// The first time there is no stack that is free, the second time there are those of the
/// first.
fn suspend_twice(name: &str, count: usize, spawn: impl Fn(Gate) -> JoinHandle<()>) {
    let local = LocalRuntime::new().unwrap();
    let before = Held::now();
    let first = local.block_on(suspend(count, &spawn));
    let again = local.block_on(suspend(count, &spawn));
    let each = |kib: usize| kib as f64 / count as f64;
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
    println!(
        "| {name} | {count} | {:.2} | {:.2} | {:.2} | {} | {:.2} | {:.2} | {:.2} |",
        micros(first.made),
        each(first.held.resident.saturating_sub(before.resident)),
        each(first.held.tables.saturating_sub(before.tables)),
        first.held.mappings.saturating_sub(before.mappings),
        micros(first.ended),
        micros(again.made),
        micros(again.ended),
    );
}

struct Suspended {
    /// How long it took to make them.
    made: Duration,
    /// What the process then held.
    held: Held,
    /// How long it took to resume and to end them.
    ended: Duration,
}

async fn suspend(count: usize, spawn: &impl Fn(Gate) -> JoinHandle<()>) -> Suspended {
    let gate = Rc::new(Semaphore::new(0));
    let waiting = Rc::new(Cell::new(0));
    let begin = Instant::now();
    let tasks: Vec<_> = (0..count)
        .map(|_| spawn(Gate(gate.clone(), waiting.clone())))
        .collect();
    // Each is polled once.
    while waiting.get() < count {
        yield_now().await;
    }
    let made = begin.elapsed();
    let held = Held::now();
    let begin = Instant::now();
    gate.add_permits(count);
    for task in tasks {
        task.await.unwrap();
    }
    Suspended {
        made,
        held,
        ended: begin.elapsed(),
    }
}

/// Where all wait.
struct Gate(Rc<Semaphore>, Rc<Cell<usize>>);

impl Gate {
    async fn pass(&self) {
        self.1.set(self.1.get() + 1);
        self.0.acquire().await.unwrap().forget();
    }
}
