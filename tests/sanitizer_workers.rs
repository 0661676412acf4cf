//! Runs on the workers, from many threads at once.
//!
//! ThreadSanitizer runs this file with a thread in the place of each stack, so
//! nothing on a run's side asks for tokio's context.

use std::future::pending;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use greenhack::{await_sync, run_sync, shield};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;

/// How many runs a test starts.
const RUNS: usize = if cfg!(miri) { 6 } else { 200 };

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build()
        .unwrap()
}

/// Counts the drops of its clones.
#[derive(Clone)]
struct CountDrops(Arc<AtomicUsize>);

impl Drop for CountDrops {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn runs_give_their_outputs_to_their_callers() {
    runtime().block_on(async {
        let mut runs = JoinSet::new();
        for index in 0..RUNS {
            runs.spawn(run_sync(move || {
                await_sync(yield_now());
                vec![index, await_sync(async move { index * 2 })]
            }));
        }
        let mut outputs = runs.join_all().await;
        outputs.sort_unstable();
        let expected: Vec<_> = (0..RUNS).map(|index| vec![index, index * 2]).collect();
        assert_eq!(outputs, expected);
    });
}

#[test]
fn panics_cross_to_their_callers() {
    runtime().block_on(async {
        let mut runs = JoinSet::new();
        for index in 0..RUNS {
            runs.spawn(run_sync(move || {
                await_sync(yield_now());
                resume_unwind(Box::new(index));
            }));
        }
        let mut sum = 0;
        while let Some(ended) = runs.join_next().await {
            let payload: Result<(), _> = ended;
            sum += *payload
                .unwrap_err()
                .into_panic()
                .downcast::<usize>()
                .unwrap();
        }
        assert_eq!(sum, RUNS * (RUNS - 1) / 2);
    });
}

#[test]
fn an_aborted_run_drops_what_it_holds_once() {
    let drops = Arc::new(AtomicUsize::new(0));
    let (sender, mut receiver) = mpsc::unbounded_channel::<()>();
    runtime().block_on(async {
        let mut runs = JoinSet::new();
        for index in 0..RUNS {
            let (guard, sender) = (CountDrops(drops.clone()), sender.clone());
            runs.spawn(run_sync(move || {
                let (_sender, _guard) = (sender, guard);
                if index % 2 == 0 {
                    await_sync(yield_now());
                }
                await_sync(pending::<()>());
            }));
            // Some are aborted in the queue, some while they start, and some
            // while they wait.
            if index % 3 == 0 {
                yield_now().await;
                runs.abort_all();
            }
        }
        runs.shutdown().await;
        drop(sender);
        // It closes when the last run has unwound.
        let closed = timeout(Duration::from_secs(60), receiver.recv()).await;
        assert_eq!(closed, Ok(None));
    });
    assert_eq!(drops.load(Ordering::Relaxed), RUNS);
}

#[test]
fn destructors_await_when_their_caller_has_gone() {
    struct AwaitOnDrop(mpsc::UnboundedSender<()>);
    impl Drop for AwaitOnDrop {
        fn drop(&mut self) {
            await_sync(yield_now());
            let _ = self.0.send(());
        }
    }
    let (sender, mut receiver) = mpsc::unbounded_channel();
    runtime().block_on(async {
        let mut runs = JoinSet::new();
        let (started, mut starts) = mpsc::unbounded_channel();
        for _ in 0..RUNS {
            let (guard, started) = (AwaitOnDrop(sender.clone()), started.clone());
            runs.spawn(run_sync(move || {
                let _guard = guard;
                let _ = catch_unwind(|| started.send(()));
                shield(|| await_sync(yield_now()));
                await_sync(pending::<()>());
            }));
        }
        for _ in 0..RUNS {
            starts.recv().await.unwrap();
        }
        runs.shutdown().await;
        for _ in 0..RUNS {
            let ended = timeout(Duration::from_secs(60), receiver.recv()).await;
            assert_eq!(ended, Ok(Some(())));
        }
    });
}
