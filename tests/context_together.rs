//! Everything that belongs to a run, at once (behaviours 25 and 26).
#![cfg(feature = "tracing")]

#[path = "support/events.rs"]
mod events;
mod support;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use events::Written;
use greenhack::guard::{self, Exit, Teardown};
use greenhack::{Ambient, await_sync, builder, join, nested, scope, with_ambient};
use support::{in_each_place, on_drop};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Barrier, Semaphore};
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

/// Checks the context at its end.
struct Session(u32);

impl Teardown for Session {
    async fn teardown(self, exit: Exit<'_>) -> Result<(), Infallible> {
        assert!(matches!(exit, Exit::Returned));
        check_async(self.0, None).await;
        Ok(())
    }
}

/// Where the runs stay that are aborted.
struct Stay {
    parked: Semaphore,
    /// What a cleanup has seen: whose it is, how it began, the user at each step.
    seen: UnboundedSender<(u32, bool, [u32; 3])>,
}

impl Stay {
    fn is_for(id: u32) -> bool {
        id % 7 == 0
    }
}

/// Ends by a cancellation.
struct Aborted<'a>(u32, &'a Stay);

impl Teardown for Aborted<'_> {
    /// The task is gone, and with it what was set around the run: its values of
    /// task-locals, its subscriber. What is set in the run stays.
    async fn teardown(self, exit: Exit<'_>) -> Result<(), Infallible> {
        let Aborted(id, stay) = self;
        let mut users = [0; 3];
        for user in &mut users {
            *user = USER.get();
            yield_now().await;
        }
        // A panic would not be seen here.
        let is_cancelled = matches!(exit, Exit::Cancelled);
        stay.seen.send((id, is_cancelled, users)).unwrap();
        Ok(())
    }
}

#[instrument(skip(stay))]
fn serve(id: u32, stay: &Stay) {
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
        scope(|s| {
            let spawned = s.spawn(|| await_sync(check_async(id, None)));
            check(id, None);
            spawned.join().unwrap();
        });
        let session = guard::with(Session(id), |_| {
            await_sync(check_async(id, None));
            Ok(())
        });
        session.unwrap();
    }
    if Stay::is_for(id) {
        let aborted = guard::with(Aborted(id, stay), |_| {
            stay.parked.add_permits(1);
            await_sync(pending::<Result<(), Infallible>>())
        });
        unreachable!("{aborted:?}");
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
        let all_are_there = Arc::new(Barrier::new(RUNS as usize));
        let (seen, mut cleanups) = unbounded_channel();
        let stay = Arc::new(Stay {
            parked: Semaphore::new(0),
            seen,
        });
        let tasks: Vec<_> = (0..RUNS)
            .map(|id| {
                let (all_are_there, stay) = (all_are_there.clone(), stay.clone());
                let f = move || {
                    // In place of `serve`, if that fails before: the abort sees it.
                    let parked = || stay.parked.add_permits(1);
                    let _parked = Stay::is_for(id).then(|| on_drop(parked));
                    with_ambient(User(id), || {
                        await_sync(all_are_there.wait());
                        serve(id, &stay);
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
        // Every seventh is aborted when it has done what the others do.
        let aborted = (0..RUNS).filter(|&id| Stay::is_for(id)).count() as u32;
        let parked = stay.parked.acquire_many(aborted).await.unwrap();
        for (id, task) in (0..RUNS).zip(tasks) {
            if Stay::is_for(id) {
                task.abort();
                assert!(task.await.unwrap_err().is_cancelled());
            } else {
                task.await.unwrap();
            }
        }
        drop(parked);
        drop(stay);
        for _ in 0..aborted {
            let (id, is_cancelled, users) = cleanups.recv().await.unwrap();
            assert!(Stay::is_for(id) && is_cancelled);
            assert_eq!(users, [id; 3]);
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
        for (id, events) in (0..RUNS).zip(events) {
            let expected = 1 + 3 * (6 + id % 4 * 3 + 3 + 4);
            assert_eq!(events, expected, "of the {id}th run");
        }
        assert!(dispatch.current_span().id().is_none());
        assert!(REQUEST.try_get().is_err());
        assert_eq!(USER.get(), u32::MAX);
    });
}
