//! What the workers tell about themselves, which belong to a process: one test.
#![cfg(panic = "unwind")]

mod support;

use std::sync::{Arc, Barrier};

use greenhack::workers::{Builder, metrics};
use greenhack::{await_sync, run_sync};
use support::{Fixture, Place, on_drop, signal};

#[test]
fn the_workers_tell_what_waits_and_what_lives() {
    let none = metrics();
    assert_eq!((none.queued(), none.live(), none.started()), (0, 0, 0));
    assert!(none.live_per_worker().is_empty());
    Builder::new().threads(2).start().unwrap();
    assert_eq!(metrics().live_per_worker(), [0, 0]);

    Fixture::new(Place::Worker).block_on(async {
        // Two runs that block both workers.
        let barrier = Arc::new(Barrier::new(3));
        let blocks: Vec<_> = (0..2)
            .map(|_| {
                let barrier = barrier.clone();
                tokio::spawn(run_sync(move || {
                    barrier.wait();
                    barrier.wait();
                }))
            })
            .collect();
        barrier.wait();
        let busy = metrics();
        assert_eq!((busy.queued(), busy.live(), busy.started()), (0, 2, 2));
        assert_eq!(busy.live_per_worker(), [1, 1]);

        // What comes now waits, and what is cancelled then never starts.
        let (started, wait) = signal();
        let (end, ended) = signal();
        let (cleaning, cleans) = signal();
        let (clean, cleaned) = signal();
        let mut waits = Box::pin(run_sync(move || {
            let _guard = on_drop(|| {
                cleaning.give();
                await_sync(cleaned.wait());
            });
            started.give();
            await_sync(ended.wait());
        }));
        let mut cancelled = Box::pin(run_sync(|| unreachable!("it was cancelled")));
        assert!(futures::poll!(&mut waits).is_pending());
        assert_eq!(metrics().queued(), 1);
        assert!(futures::poll!(&mut cancelled).is_pending());
        drop(cancelled);
        let full = metrics();
        assert_eq!((full.queued(), full.live(), full.started()), (2, 2, 2));
        barrier.wait();
        for block in blocks {
            block.await.unwrap();
        }
        wait.wait().await;

        // A run that cleans up is still there.
        drop(waits);
        cleans.wait().await;
        assert_eq!(metrics().live(), 1);
        clean.give();
        drop(end);
        // When the workers have ended, so has it.
        greenhack::workers::shutdown(std::time::Duration::from_secs(60)).await;
        let last = metrics();
        assert_eq!((last.queued(), last.live(), last.started()), (0, 0, 3));
    });
}
