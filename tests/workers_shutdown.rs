//! The end of the workers, which belong to a process: one test.
#![cfg(panic = "unwind")]

mod support;

use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use greenhack::{await_sync, leaked_runs, run_sync, workers};
use support::{Fixture, Log, Place, on_drop, signal};
use tokio::task::yield_now;

#[test]
fn a_shutdown_cancels_all_runs_and_ends_the_threads() {
    let log = Log::default();
    workers::Builder::new().threads(2).start().unwrap();
    Fixture::new(Place::Worker).block_on(async {
        let mut runs = Vec::new();
        for _ in 0..3 {
            let (log, (started, wait)) = (log.clone(), signal());
            runs.push(tokio::spawn(run_sync(move || {
                let thread = thread::current().id();
                let _guard = on_drop(|| {
                    await_sync(async {
                        yield_now().await;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    });
                    assert_eq!(thread::current().id(), thread);
                    log.add("unwound");
                });
                started.give();
                await_sync(pending::<()>());
            })));
            wait.wait().await;
        }
        // One that is cancelled already, and has begun to clean up.
        let (started, wait) = signal();
        let (cleaning, cleans) = signal();
        let cancelled = tokio::spawn(run_sync({
            let log = log.clone();
            move || {
                let _guard = on_drop(|| {
                    cleaning.give();
                    await_sync(async { tokio::time::sleep(Duration::from_millis(20)).await });
                    log.add("cleaned up");
                });
                started.give();
                await_sync(pending::<()>());
            }
        }));
        wait.wait().await;
        cancelled.abort();
        cleans.wait().await;
        // One that can't end.
        let (started, wait) = signal();
        runs.push(tokio::spawn(run_sync(move || {
            let _guard = on_drop(|| await_sync(pending()));
            started.give();
            await_sync(pending::<()>());
        })));
        wait.wait().await;
        // One that no task awaits.
        let mut polled = run_sync(|| await_sync(pending::<()>()));
        for _ in 0..2 {
            assert!(futures::poll!(&mut polled).is_pending());
        }
        assert_eq!(leaked_runs(), 0);

        workers::shutdown(Duration::from_millis(200)).await;
        let mut ended = log.take();
        ended.sort();
        assert_eq!(ended, ["cleaned up", "unwound", "unwound", "unwound"]);
        assert_eq!(leaked_runs(), 1);
        for run in runs {
            let payload = run.await.unwrap_err().into_panic();
            assert!(payload.is::<greenhack::Cancelled>());
        }
        let payload = AssertUnwindSafe(&mut polled).catch_unwind().await;
        assert!(payload.unwrap_err().is::<greenhack::Cancelled>());
        let again = AssertUnwindSafe(&mut polled).catch_unwind().await;
        let message = support::text(&*again.unwrap_err());
        assert_eq!(message, "a run was polled after its end");

        let late = tokio::spawn(run_sync(|| ())).await.unwrap_err();
        let message = support::text(&*late.into_panic());
        assert!(
            message.contains("after `greenhack::workers::shutdown`"),
            "{message}"
        );
        // In place nothing has changed.
        workers::shutdown(Duration::ZERO).await;
        let in_place = thread::spawn(|| support::current_thread().block_on(run_sync(|| 7)));
        assert_eq!(in_place.join().unwrap(), 7);
    });
}
