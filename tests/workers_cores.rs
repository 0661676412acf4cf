//! Workers that are kept on one core each: `workers::Builder::core_affinity`.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use greenhack::workers::Builder;
use greenhack::{await_sync, run_sync, run_sync_local};
use support::{Fixture, Place};
use tokio::task::{spawn_local, yield_now};

/// The cores that this thread may use, as the system tells.
fn cores() -> Vec<usize> {
    cores_of(Path::new("/proc/thread-self"))
}

fn cores_of(thread: &Path) -> Vec<usize> {
    let status = fs::read_to_string(thread.join("status")).unwrap();
    let mut lists = status
        .lines()
        .filter_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let list = lists.next().unwrap().trim().to_owned();
    let ranges = list.split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().unwrap()..=last.parse().unwrap()
    });
    ranges.flatten().collect()
}

#[test]
fn each_worker_stays_on_one_of_the_cores_that_there_are() {
    let all = cores();
    let workers = Builder::new()
        .threads(all.len() + 1)
        .core_affinity(true)
        .run_each(async |_| cores())
        .unwrap();
    let cycle = all.iter().cycle().map(|core| vec![*core]);
    let expected: Vec<_> = cycle.take(all.len() + 1).collect();
    assert_eq!(await_sync(workers), expected);
    // The thread that has started them goes where it went before.
    assert_eq!(cores(), all);
}

#[test]
fn workers_keep_to_the_cores_of_who_starts_them() {
    let all = cores();
    let last = all.len() - 1;
    // Started by threads that may use one core only.
    let workers = Builder::new()
        .threads(all.len())
        .core_affinity(true)
        .run_each(async |worker| {
            let inner = Builder::new().threads(2).core_affinity(true);
            (
                worker.index(),
                inner.run_each(async |_| cores()).unwrap().await,
            )
        })
        .unwrap();
    let mut inner = await_sync(workers);
    assert_eq!(inner.remove(last), (last, vec![vec![all[last]]; 2]));
}

#[test]
fn the_thread_that_cools_stacks_is_not_kept_on_the_core_of_who_starts_it() {
    let all = cores();
    let workers = Builder::new()
        .threads(1)
        .core_affinity(true)
        .run_each(async move |_| {
            // So many that they are not all kept at hand.
            let waits = || spawn_local(run_sync_local(|| await_sync(yield_now())));
            let runs: Vec<_> = (0..1000).map(|_| waits()).collect();
            for run in runs {
                run.await.unwrap();
            }
            // It stays for a second at least. What it does first is to leave the core.
            let begin = Instant::now();
            while fs::read_dir("/proc/self/task").unwrap().all(|entry| {
                let entry = entry.unwrap().path();
                let name = fs::read_to_string(entry.join("comm")).unwrap_or_default();
                name.trim() != "greenhack-cool" || cores_of(&entry) != all
            }) {
                assert!(begin.elapsed() < Duration::from_secs(30), "it has not left");
                thread::yield_now();
            }
            cores().len()
        })
        .unwrap();
    assert_eq!(await_sync(workers), [1]);
}

#[test]
fn without_it_workers_go_where_they_like() {
    let workers = Builder::new()
        .threads(1)
        .run_each(async |_| cores())
        .unwrap();
    assert_eq!(await_sync(workers), [cores()]);
}

#[test]
fn the_workers_of_the_process_can_be_kept_too() {
    let first = cores()[0];
    Builder::new()
        .threads(1)
        .core_affinity(true)
        .start()
        .unwrap();
    let seen = Fixture::new(Place::Worker).block_on(async { tokio::spawn(run_sync(cores)).await });
    assert_eq!(seen.unwrap(), [first]);
}
