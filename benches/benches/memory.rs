//! What a suspended run holds: the growth of the process per run.
//!
//! Run it with `cargo bench -p greenhack-benches --bench memory`. Linux only.
#![forbid(unsafe_code)]

use std::future::pending;
use std::hint::black_box;

use greenhack::{await_sync, run_sync_local};
use tokio::runtime::LocalRuntime;
use tokio::task::{JoinHandle, spawn_local};

/// How many are suspended at the same time.
const COUNT: usize = 10_000;

fn main() {
    println!("| 10,000 suspended                   | KiB of memory, each |");
    println!("|---|--:|");
    measure("async task", || spawn_local(pending::<()>()));
    measure("run_sync_local", || {
        spawn_local(run_sync_local(|| await_sync(pending::<()>())))
    });
    measure("run_sync_local, 8 KiB used of stack", || {
        spawn_local(run_sync_local(|| {
            let used = black_box([1_u8; 8 * 1024]);
            await_sync(pending::<()>());
            black_box(used);
        }))
    });
}

fn measure(name: &str, spawn: impl Fn() -> JoinHandle<()>) {
    let local = LocalRuntime::new().unwrap();
    local.block_on(async {
        let before = resident();
        let tasks: Vec<_> = (0..COUNT).map(|_| spawn()).collect();
        // Each is polled once.
        tokio::task::yield_now().await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let each = (resident() - before) as f64 / COUNT as f64;
        println!("| {name:<34} | {each:>19.1} |");
        for task in tasks {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
    });
}

/// The memory that the process has, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}
