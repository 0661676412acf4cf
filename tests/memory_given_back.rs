//! What runs have used of their stacks goes back to the system, also on a thread that never
//! idles. Alone in its process, which it measures.
#![cfg(all(target_os = "linux", not(greenhack_sanitizer)))]

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use greenhack::{await_sync, run_sync_local};
use tokio::runtime::LocalRuntime;
use tokio::task::{spawn_local, yield_now};

/// What this process has in memory, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse().unwrap()
}

/// Uses 4 KiB of the stack for each frame.
#[inline(never)]
fn deep(frames: usize) -> u8 {
    let frame = black_box([1_u8; 4096]);
    match frames {
        0 => frame[0],
        _ => frame[frames] + deep(frames - 1),
    }
}

async fn deep_runs(count: usize) {
    let run = || {
        run_sync_local(|| {
            black_box(deep(100));
            await_sync(yield_now());
        })
    };
    let tasks: Vec<_> = (0..count).map(|_| spawn_local(run())).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

async fn shallow_runs(count: usize) {
    for _ in 0..count {
        run_sync_local(|| ()).await;
    }
}

/// Whether this comes true before patience ends, with shallow runs meanwhile.
async fn comes_true(condition: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while !condition() {
        if begin.elapsed() > Duration::from_secs(60) {
            return false;
        }
        shallow_runs(1000).await;
    }
    true
}

#[test]
fn what_deep_runs_have_used_is_given_back() {
    // Fewer than a thread keeps at hand, and more.
    for count in [30, 400] {
        LocalRuntime::new().unwrap().block_on(async {
            shallow_runs(1).await;
            let before = resident();
            deep_runs(count).await;
            let used = resident() - before;
            assert!(used > 300 * count as u64, "{used} KiB");
            let most = before + used / 8;
            assert!(comes_true(|| resident() < most).await, "{} KiB", resident());
        });
    }
}
