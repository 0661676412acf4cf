//! Limits of blocking reports that come and go, in a process of its own.
#![cfg(feature = "tracing")]

#[path = "support/events.rs"]
mod events;

use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use futures::poll;
use greenhack::{LocalRun, await_sync, builder, report_blocking};
use tokio::runtime::LocalRuntime;
use tokio::task::yield_now;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;

struct Reports(Sender<String>);

impl<S: Subscriber> Layer<S> for Reports {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.send(events::message(event)).unwrap();
    }
}

fn too_long() {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(5) {}
}

/// Waits once, and takes too long before and after.
fn run(name: &'static str) -> LocalRun<impl FnOnce(), ()> {
    builder().name(name).run_sync_local(|| {
        too_long();
        await_sync(yield_now());
        too_long();
    })
}

#[test]
fn a_limit_holds_for_what_begins_after_it_until_the_next() {
    let (sender, reports) = channel();
    tracing::subscriber::set_global_default(registry().with(Reports(sender))).unwrap();
    LocalRuntime::new().unwrap().block_on(async {
        run("before any limit").await;
        let mut begun_before = run("begun before");
        assert!(poll!(&mut begun_before).is_pending());
        report_blocking(Some(Duration::ZERO));
        begun_before.await;
        run("any").await;

        // In the poll of one that is watched.
        let ends_it = builder().name("ends it").run_sync_local(|| {
            report_blocking(None);
            too_long();
        });
        ends_it.await;
        run("no more").await;

        report_blocking(Some(Duration::MAX));
        run("endless").await;

        report_blocking(Some(Duration::from_millis(1)));
        run("last").await;
    });
    // They come in their order.
    let mut reports = reports
        .iter()
        .filter(|report| report.contains(" has kept "));
    for expected in ["any", "any", "last", "last"] {
        let report = reports.next().unwrap();
        assert!(report.starts_with(&format!("`{expected}` ")), "{report}");
    }
}
