//! A race of tasks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};

/// Lets tasks begin together, and notes when the last of them has done.
#[derive(Debug)]
pub struct Race {
    tasks: u64,
    arrived: AtomicU64,
    all_arrived: Notify,
    gate: Semaphore,
    done: AtomicU64,
    finish: Mutex<Option<Instant>>,
    finished: Notify,
    exit: Semaphore,
}

/// More than there are tasks.
const MANY: usize = 1 << 20;

impl Race {
    /// Makes a race of so many tasks.
    pub fn new(tasks: u64) -> Arc<Race> {
        Arc::new(Race {
            tasks,
            arrived: AtomicU64::new(0),
            all_arrived: Notify::new(),
            gate: Semaphore::new(0),
            done: AtomicU64::new(0),
            finish: Mutex::new(None),
            finished: Notify::new(),
            exit: Semaphore::new(0),
        })
    }

    /// Waits until all have arrived here.
    pub async fn ready(&self) {
        if self.arrived.fetch_add(1, Ordering::Relaxed) + 1 == self.tasks {
            self.all_arrived.notify_one();
        }
        drop(self.gate.acquire().await);
    }

    /// Ends the part of one task, and waits until all have come so far: what the end
    /// of a task costs is not part of the race.
    pub async fn done(&self) {
        if self.done.fetch_add(1, Ordering::Relaxed) + 1 == self.tasks {
            *self.finish.lock().unwrap() = Some(Instant::now());
            self.finished.notify_one();
            self.exit.add_permits(MANY);
        }
        drop(self.exit.acquire().await);
    }

    /// Waits until all are [`ready`](Self::ready).
    pub async fn all_ready(&self) {
        // Not a loop that yields, which some schedulers prefer to tasks that are new.
        self.all_arrived.notified().await;
    }

    /// Lets all begin.
    pub fn open(&self) {
        self.gate.add_permits(MANY);
    }

    /// Measures from the opening of the gate to the last `done`.
    pub async fn run(&self) -> Duration {
        self.all_ready().await;
        let start = Instant::now();
        self.open();
        self.finished.notified().await;
        self.finish.lock().unwrap().unwrap() - start
    }
}
