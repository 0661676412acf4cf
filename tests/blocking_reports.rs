//! What is reported of runs that keep their thread from others.
//!
//! All reports go to the subscriber of the process, which hands each test those of its
//! run. A run blocks until it was reported, so that no time is measured.
#![cfg(feature = "tracing")]

#[path = "support/events.rs"]
mod events;

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use greenhack::{Builder, await_sync, builder, report_blocking};
use tokio::runtime;
use tokio::task::{LocalSet, yield_now};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;

/// Who wants the reports of which run.
static LISTENERS: Mutex<Vec<(&str, Sender<String>)>> = Mutex::new(Vec::new());

/// By which the watch asks for another report, and is told that there is one.
static FLOOD: Mutex<Option<(Sender<()>, Receiver<()>)>> = Mutex::new(None);

struct Reports;

impl<S: Subscriber> Layer<S> for Reports {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let message = events::message(event);
        if message.starts_with("`breaks its report` ") {
            resume_unwind(Box::new(()));
        }
        if message.starts_with("`flood` has kept ") {
            // The next is there before this has been written.
            let flood = FLOOD.lock().unwrap();
            if let Some((begin, end)) = &*flood {
                let _ = begin.send(()).map(|()| end.recv());
            }
        }
        for (name, listener) in &*LISTENERS.lock().unwrap() {
            if message.starts_with(&format!("`{name}` ")) {
                // A test may have heard enough.
                let _ = listener.send(message.clone());
            }
        }
    }
}

/// The settings of a run, and the reports of it.
fn watched(name: &'static str) -> (Builder, Receiver<String>) {
    static BEGIN: LazyLock<()> = LazyLock::new(|| {
        tracing::subscriber::set_global_default(registry().with(Reports)).unwrap();
        report_blocking(Some(Duration::from_millis(1)));
    });
    *BEGIN;
    let (sender, reports) = channel();
    LISTENERS.lock().unwrap().push((name, sender));
    (builder().name(name), reports)
}

/// Waits for a report that contains `what`. On a slow machine there may be others.
fn report(reports: &Receiver<String>, what: &str) -> String {
    let mut reports = reports.iter();
    reports.find(|report| report.contains(what)).unwrap()
}

fn block_on<F: Future>(future: F) -> F::Output {
    runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn this_threads_name() -> String {
    thread::current().name().unwrap().to_owned()
}

#[test]
fn a_run_that_blocks_its_thread_is_named_and_then_where_it_waits() {
    let (builder, reports) = watched("soup");
    let (report, line, reports) = block_on(builder.run_sync_local(move || {
        let report = report(&reports, " keeps ");
        let line = line!() + 1;
        await_sync(yield_now());
        (report, line, reports)
    }));
    let thread = this_threads_name();
    let begin = format!("`soup` keeps the thread `{thread}` from all other runs, for ");
    assert!(report.starts_with(&begin), "{report}");
    let report = self::report(&reports, " has kept ");
    let begin = format!("`soup` has kept the thread `{thread}` from all other runs, for ");
    assert!(report.starts_with(&begin), "{report}");
    let wait = format!("until it waited:\n- `soup` waits at {}:{line}:", file!());
    assert!(report.contains(&wait), "{report}");
}

#[test]
fn a_run_is_named_once_however_long_it_blocks() {
    let (builder, reports) = watched("long");
    block_on(builder.run_sync_local(move || {
        report(&reports, " keeps ");
        // When the other is named, the watch has looked at this one again, and before.
        let (other, others) = watched("meanwhile");
        let named = move || report(&others, " keeps ");
        let other = thread::spawn(|| block_on(other.run_sync_local(named)));
        other.join().unwrap();
        assert_eq!(reports.try_iter().count(), 0);
    }));
}

#[test]
fn a_run_that_blocks_and_ends_is_reported_as_well() {
    let (builder, reports) = watched("nut");
    let reports = block_on(builder.run_sync_local(move || {
        reports.recv().unwrap();
        reports
    }));
    let report = report(&reports, " has kept ");
    assert!(report.ends_with(", until it ended"), "{report}");
}

#[test]
fn a_future_that_blocks_counts_as_its_run() {
    let (builder, reports) = watched("future");
    let report = block_on(builder.run_sync_local(move || {
        await_sync(async {
            yield_now().await;
            report(&reports, " keeps ")
        })
    }));
    assert!(report.starts_with("`future` keeps the thread "), "{report}");
}

#[test]
fn a_nested_run_is_named_and_after_it_the_outer_one() {
    let (outer, outers) = watched("outer");
    let (inner, inners) = watched("inner");
    block_on(outer.run_sync_local(move || {
        await_sync(async {
            let named = inner.run_sync_local(move || inners.recv().unwrap()).await;
            assert!(named.starts_with("`inner` keeps the thread "), "{named}");
        });
        let named = outers.recv().unwrap();
        assert!(named.starts_with("`outer` keeps the thread "), "{named}");
    }));
}

#[test]
fn a_run_on_a_worker_is_named_with_its_thread() {
    let (builder, reports) = watched("on a worker");
    let multi_thread = runtime::Builder::new_multi_thread().build().unwrap();
    let (report, thread) = multi_thread
        .block_on(builder.run_sync(move || (reports.recv().unwrap(), this_threads_name())));
    let begin = format!("`on a worker` keeps the thread `{thread}` from ");
    assert!(report.starts_with(&begin), "{report}");
}

#[test]
fn a_run_that_a_scheduler_does_not_poll_directly_is_reported_too() {
    let multi_thread = runtime::Builder::new_multi_thread().build().unwrap();
    let run = |name| {
        let (builder, reports) = watched(name);
        builder.run_sync_local(move || {
            let report = report(&reports, " keeps ");
            await_sync(yield_now());
            (report, reports)
        })
    };
    let (report, reports) = multi_thread.block_on(run("in `block_on`"));
    assert!(report.starts_with("`in `block_on`` keeps "), "{report}");
    assert!(self::report(&reports, " has kept ").contains(" waits at "));

    let set = LocalSet::new();
    let run = set.spawn_local(run("in a local set"));
    let (report, reports) = multi_thread.block_on(set.run_until(run)).unwrap();
    assert!(report.starts_with("`in a local set` keeps "), "{report}");
    assert!(self::report(&reports, " has kept ").contains(" waits at "));
}

#[test]
fn a_run_that_panics_leaves_nothing_behind() {
    let (builder, reports) = watched("panics");
    let panicked = block_on(async {
        let run = builder.run_sync(move || {
            reports.recv().unwrap();
            resume_unwind(Box::new(reports));
        });
        tokio::spawn(run).await
    });
    let payload = panicked.unwrap_err().into_panic();
    let reports = payload.downcast::<Receiver<String>>().unwrap();
    assert!(report(&reports, " has kept ").ends_with(", until it ended"));
    // The thread is busy with nothing now: what comes next is of the next run.
    let (builder, reports) = watched("next");
    let report = block_on(builder.run_sync_local(move || reports.recv().unwrap()));
    assert!(report.starts_with("`next` keeps the thread "), "{report}");
}

#[test]
fn a_subscriber_that_panics_ends_no_reports() {
    let (builder, _) = watched("breaks its report");
    block_on(builder.run_sync_local(too_long));
    let (builder, reports) = watched("after it");
    let report = block_on(builder.run_sync_local(move || {
        // Otherwise it would be for ever.
        reports.recv_timeout(Duration::from_secs(20))
    }));
    assert!(report.unwrap().starts_with("`after it` keeps "));
}

/// Keeps its thread longer than the limit.
fn too_long() {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(3) {}
}

#[test]
fn a_run_that_blocks_is_named_while_others_are_reported() {
    let (held_up, reports) = watched("held up");
    let flood = || block_on(builder().name("flood").run_sync_local(too_long));
    let (ask, asked) = channel();
    let (answer, answered) = channel();
    *FLOOD.lock().unwrap() = Some((ask, answered));
    flood();
    asked.recv().unwrap();
    let (begin, begun) = channel();
    let held_up = thread::spawn(move || {
        block_on(held_up.run_sync_local(move || {
            begin.send(()).unwrap();
            reports.recv().unwrap();
        }));
    });
    begun.recv().unwrap();
    // There is always one to be written.
    let mut rounds = 0;
    while !held_up.is_finished() && rounds < 200 {
        flood();
        answer.send(()).unwrap();
        asked.recv().unwrap();
        rounds += 1;
    }
    drop((answer, asked));
    held_up.join().unwrap();
    assert!(rounds < 200);
}

#[test]
fn a_run_in_its_callers_runtime_is_polled_as_before() {
    let (builder, _) = watched("in its caller's runtime");
    let multi_thread = runtime::Builder::new_multi_thread().build().unwrap();
    let run = builder.caller_runtime(true).run_sync(|| {
        await_sync(yield_now());
        7
    });
    assert_eq!(multi_thread.block_on(run), 7);
}

#[cfg(feature = "backtrace")]
#[test]
#[cfg_attr(greenhack_sanitizer, ignore = "locals are elsewhere than on the stack")]
fn the_frames_of_the_wait_that_follows_are_reported() {
    #[inline(never)]
    fn the_waiting_function() {
        await_sync(yield_now());
    }
    let (builder, reports) = watched("frames");
    let reports = block_on(builder.run_sync_local(move || {
        reports.recv().unwrap();
        the_waiting_function();
        reports
    }));
    let report = report(&reports, " has kept ");
    assert!(report.contains("the_waiting_function\n"), "{report}");
}
