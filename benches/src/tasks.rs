//! What is measured in tasks.

use std::hint::black_box;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Spawns a future that measures, and returns what it has measured.
pub fn in_task<F>(rt: &Runtime, future: F) -> Duration
where
    F: Future<Output = Duration> + Send + 'static,
{
    rt.block_on(async { tokio::spawn(future).await.unwrap() })
}

/// Spawns `count` tasks, so many of them at a time, and awaits them.
pub async fn batches(count: u64, batch: u64, spawn: impl Fn() -> JoinHandle<u64>) -> Duration {
    let mut tasks = Vec::with_capacity(batch as usize);
    let begin = Instant::now();
    for _ in 0..count / batch {
        tasks.extend((0..batch).map(|_| spawn()));
        for task in tasks.drain(..) {
            black_box(task.await.unwrap());
        }
    }
    begin.elapsed()
}
