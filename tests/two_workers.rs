//! Ten thousand handlers at once on two worker threads, which a process of its own
//! has to itself.

mod support;

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use greenhack::{await_sync, workers};
use support::{Fixture, Place};
use tokio::sync::{Semaphore, watch};

const HANDLERS: usize = 10_000;

/// A handler, which waits some plain functions deep for the gate to open.
#[greenhack::entry]
fn handle(index: usize, waiting: Arc<Semaphore>, gate: watch::Receiver<bool>) -> (usize, ThreadId) {
    let local = Rc::new(index);
    let thread = thread::current().id();
    wait(&waiting, gate);
    assert_eq!(thread::current().id(), thread);
    (*local, thread)
}

fn wait(waiting: &Semaphore, mut gate: watch::Receiver<bool>) {
    await_sync(async {
        // It is polled outside of the run: the stack is suspended when it waits.
        assert!(!*gate.borrow());
        waiting.add_permits(1);
        gate.wait_for(|is_open| *is_open).await.unwrap();
    });
}

#[test]
fn ten_thousand_handlers_wait_at_once_on_two_workers_and_all_finish() {
    workers::Builder::new().threads(2).start().unwrap();
    Fixture::new(Place::Worker).block_on(async {
        let waiting = Arc::new(Semaphore::new(0));
        let gate = watch::Sender::new(false);
        let handlers: Vec<_> = (0..HANDLERS)
            .map(|index| handle(index, waiting.clone(), gate.subscribe()))
            .map(tokio::spawn)
            .collect();

        // There is a permit for each that waits, and none goes on.
        let all = u32::try_from(HANDLERS).unwrap();
        waiting.acquire_many(all).await.unwrap().forget();
        assert_eq!(waiting.available_permits(), 0);
        let metrics = workers::metrics();
        assert_eq!((metrics.queued(), metrics.live()), (0, HANDLERS));
        assert_eq!(metrics.live_per_worker().len(), 2);

        gate.send(true).unwrap();
        let mut threads = HashSet::new();
        for (index, handler) in handlers.into_iter().enumerate() {
            let (returned, thread) = handler.await.unwrap();
            assert_eq!(returned, index);
            threads.insert(thread);
        }
        assert!(threads.len() <= 2, "{threads:?}");
        let metrics = workers::metrics();
        assert_eq!((metrics.queued(), metrics.live()), (0, 0));
        assert_eq!(metrics.started(), u64::try_from(HANDLERS).unwrap());
    });
    assert_eq!(greenhack::leaked_runs(), 0);
}
