//! Everything that belongs to a run, at once (behaviours 25 and 26).
#![cfg(feature = "tracing")]

#[path = "support/events.rs"]
mod events;
mod support;

use std::cell::Cell;

use events::Written;
use greenhack::{Ambient, await_sync, builder, join, nested, with_ambient};
use support::in_each_place;
use tokio::sync::Barrier;
use tokio::task::yield_now;
use tracing::instrument::{Instrument, WithSubscriber};
use tracing::{Dispatch, info, info_span, instrument};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;

const RUNS: u32 = 500;

tokio::task_local! {
    static REQUEST: u32;
    static STEP: u32;
}

thread_local! {
    static USER: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// A thread-local of the run's own.
struct User(u32);

impl Ambient for User {
    fn mount(&mut self) {
        self.0 = USER.replace(self.0);
    }

    fn unmount(&mut self) {
        self.0 = USER.replace(self.0);
    }
}

#[track_caller]
fn check(id: u32, step: Option<u32>) {
    let found = (REQUEST.get(), USER.get(), STEP.try_get().ok());
    assert_eq!(found, (id, id, step));
    info!("{id}");
}

async fn check_async(id: u32, step: Option<u32>) {
    check(id, step);
    yield_now().await;
    check(id, step);
}

#[instrument]
fn serve(id: u32) {
    check(id, None);
    for step in 0..3 {
        join(|| await_sync(check_async(id, None)), || check(id, None));
        nested(
            || {
                check(id, Some(step));
                with_ambient(User(id), || work(id, step));
                check(id, Some(step));
            },
            async |run| {
                let run = run.instrument(info_span!("nested", id));
                STEP.scope(step, run).await;
            },
        );
        check(id, None);
    }
}

#[instrument(fields(step = step))]
fn work(id: u32, step: u32) {
    let again = tracing::Span::current();
    for _ in 0..id % 4 {
        await_sync(yield_now());
        again.in_scope(|| {
            await_sync(check_async(id, Some(step)));
            check(id, Some(step));
        });
    }
}

#[test]
fn five_hundred_runs_have_each_its_own_of_everything() {
    in_each_place(|place| async move {
        let written = Written::default();
        let layer = fmt::layer()
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .with_writer(written.clone());
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
        let all_are_there = std::sync::Arc::new(Barrier::new(RUNS as usize));
        let tasks: Vec<_> = (0..RUNS)
            .map(|id| {
                let all_are_there = all_are_there.clone();
                let f = move || {
                    with_ambient(User(id), || {
                        await_sync(all_are_there.wait());
                        serve(id);
                    });
                };
                let builder = builder().carry(&REQUEST);
                match place {
                    support::Place::Local => {
                        let run = builder.run_sync_local(f);
                        let run = async move { run.instrument(info_span!("request", id)).await };
                        let run = run.with_subscriber(dispatch.clone());
                        tokio::task::spawn_local(REQUEST.scope(id, run))
                    }
                    _ => {
                        let run = builder.run_sync(f);
                        let run = async move { run.instrument(info_span!("request", id)).await };
                        let run = run.with_subscriber(dispatch.clone());
                        tokio::spawn(REQUEST.scope(id, run))
                    }
                }
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        // Of each run: its events, each in spans of its own.
        let mut events = vec![0; RUNS as usize];
        for line in written.take() {
            let (spans, id) = line.rsplit_once(' ').unwrap();
            let expected = format!(" INFO request{{id={id}}}:serve{{id={id}}}");
            assert!(spans.starts_with(&expected), "{line}");
            let ids = spans.split("{id=").skip(1);
            assert!(
                ids.clone()
                    .all(|rest| rest.split(['}', ' ']).next() == Some(id)),
                "{line}"
            );
            assert!((2..=4).contains(&ids.count()), "{line}");
            events[id.parse::<usize>().unwrap()] += 1;
        }
        for (id, events) in events.into_iter().enumerate() {
            assert_eq!(events, 1 + 3 * (6 + id % 4 * 3), "of the {id}th run");
        }
        assert!(dispatch.current_span().id().is_none());
        assert!(REQUEST.try_get().is_err());
        assert_eq!(USER.get(), u32::MAX);
    });
}
