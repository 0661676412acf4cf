//! What the workers report when they can't end as they should, each in a process of
//! its own.
#![cfg(all(feature = "tracing", panic = "unwind"))]

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::fmt::Debug;
use std::future::pending;
use std::panic::catch_unwind;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use greenhack::workers::{self, shutdown};
use greenhack::{await_sync, builder, run_sync};
use help::{multi_thread, succeeds_in_child};
use support::signal;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// How long a test waits for what must happen.
const LONG: Duration = Duration::from_secs(60);

/// Sends the events of the crate, each as a line, from whatever thread.
struct Reports(Sender<String>);

impl Reports {
    /// From now on, in this process.
    fn listen() -> Receiver<String> {
        let (sender, reports) = channel();
        let subscriber = tracing_subscriber::registry().with(Reports(sender));
        tracing::subscriber::set_global_default(subscriber).unwrap();
        reports
    }
}

impl<S: Subscriber> Layer<S> for Reports {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                self.0 += &format!(" {field}={value:?}");
            }
        }
        let metadata = event.metadata();
        if metadata.target() == "greenhack" {
            let mut line = Line(metadata.level().to_string());
            event.record(&mut line);
            let _ = self.0.send(line.0);
        }
    }
}

#[test]
fn a_worker_with_leaked_runs_stays_and_says_so() {
    succeeds_in_child("a_worker_with_leaked_runs_stays_and_says_so", || {
        let reports = Reports::listen();
        workers::Builder::new().threads(1).start().unwrap();
        multi_thread().block_on(async {
            let (started, wait) = signal();
            tokio::spawn(builder().name("swallows").run_sync(move || {
                started.give();
                while catch_unwind(|| await_sync(pending::<()>())).is_err() {}
            }));
            wait.wait().await;
            shutdown(LONG).await;
        });
        // The worker tells those who wait for it before it says the second.
        assert_eq!(
            reports.recv_timeout(LONG).unwrap(),
            "ERROR message=a suspended run was leaked run=\"swallows\" \
             why=\"it swallowed its cancellation, or awaits where it cannot be unwound\""
        );
        assert_eq!(
            reports.recv_timeout(LONG).unwrap(),
            "WARN message=a worker has leaked runs, and stays for what they may have lent \
             remedy=\"see the events of the leaks\""
        );
        assert!(reports.try_recv().is_err());
    });
}

#[test]
fn a_worker_that_is_blocked_is_given_up_with_a_warning() {
    let name = "a_worker_that_is_blocked_is_given_up_with_a_warning";
    succeeds_in_child(name, || {
        let reports = Reports::listen();
        multi_thread().block_on(async {
            let (started, wait) = signal();
            tokio::spawn(run_sync(move || {
                started.give();
                loop {
                    thread::park();
                }
            }));
            wait.wait().await;
            assert!(reports.try_recv().is_err());
            shutdown(Duration::from_millis(1)).await;
        });
        assert_eq!(
            reports.try_recv().unwrap(),
            "WARN message=a worker has not ended, because a run blocks it \
             remedy=\"let blocking work run in `tokio::task::spawn_blocking`\""
        );
        assert!(reports.try_recv().is_err());
    });
}

#[test]
fn workers_that_end_as_they_should_report_nothing() {
    succeeds_in_child("workers_that_end_as_they_should_report_nothing", || {
        let reports = Reports::listen();
        multi_thread().block_on(async {
            let (started, wait) = signal();
            tokio::spawn(run_sync(move || {
                started.give();
                await_sync(pending::<()>());
            }));
            wait.wait().await;
            shutdown(LONG).await;
        });
        assert!(reports.try_recv().is_err());
    });
}
