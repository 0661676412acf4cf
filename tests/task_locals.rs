//! `tokio::task_local!` values are right in every direction (behaviour 25).

mod support;

use std::cell::Cell;

use greenhack::{await_sync, builder, run_sync, run_sync_local};
use support::{Place, in_each_place};
use tokio::task::yield_now;

tokio::task_local! {
    static OUTER: u32;
    static CELL: Cell<u32>;
    static NESTED: u32;
}

const RUNS: u32 = 500;

async fn check_from_async(id: u32) {
    assert_eq!(OUTER.get(), id);
    yield_now().await;
    assert_eq!(OUTER.get(), id);
}

/// Reads the value before and after suspensions, in plain code, in an awaited
/// future, and in the plain code of a nested run with a value of its own.
fn check(id: u32) -> u32 {
    assert_eq!(OUTER.get(), id);
    await_sync(yield_now());
    assert_eq!(OUTER.get(), id);
    await_sync(check_from_async(id));
    let nested = await_sync(NESTED.scope(
        id + 1,
        run_sync_local(move || {
            assert_eq!((OUTER.get(), NESTED.get()), (id, id + 1));
            await_sync(yield_now());
            assert_eq!((OUTER.get(), NESTED.get()), (id, id + 1));
            NESTED.get()
        }),
    ));
    assert!(NESTED.try_with(|_| ()).is_err());
    await_sync(yield_now());
    assert_eq!(OUTER.get(), id);
    nested
}

#[test]
fn five_hundred_runs_see_each_its_own_value() {
    in_each_place(|place| async move {
        let tasks: Vec<_> = (0..RUNS)
            .map(|id| match place {
                Place::InPlace => tokio::spawn(OUTER.scope(id, run_sync(move || check(id)))),
                Place::Local => {
                    tokio::task::spawn_local(OUTER.scope(id, run_sync_local(move || check(id))))
                }
                Place::Worker => {
                    let run = builder().carry(&OUTER).run_sync(move || check(id));
                    tokio::spawn(OUTER.scope(id, run))
                }
            })
            .collect();
        for (id, task) in (0..RUNS).zip(tasks) {
            assert_eq!(task.await.unwrap(), id + 1);
        }
        assert!(OUTER.try_with(|_| ()).is_err());
    });
}

#[test]
fn in_place_a_value_changed_in_the_run_is_changed_for_the_task() {
    support::current_thread().block_on(CELL.scope(Cell::new(1), async {
        run_sync(|| {
            await_sync(yield_now());
            CELL.with(|cell| cell.set(2));
            await_sync(async { CELL.with(|cell| cell.set(cell.get() + 1)) });
        })
        .await;
        assert_eq!(CELL.with(Cell::get), 3);
    }));
}

#[test]
fn over_the_hop_only_named_keys_are_carried() {
    support::Fixture::new(Place::Worker).block_on(OUTER.scope(
        1,
        NESTED.scope(2, async {
            let read = || (OUTER.try_get().ok(), NESTED.try_get().ok());
            assert_eq!(run_sync(read).await, (None, None));
            assert_eq!(
                builder().carry(&OUTER).run_sync(read).await,
                (Some(1), None)
            );
            let both = builder().carry(&OUTER).carry(&NESTED).run_sync(read);
            assert_eq!(both.await, (Some(1), Some(2)));
        }),
    ));
}

#[test]
fn a_key_without_a_value_is_not_carried() {
    support::Fixture::new(Place::Worker).block_on(async {
        let run = builder()
            .carry(&OUTER)
            .run_sync(|| OUTER.try_get().is_err());
        assert!(run.await);
    });
}
