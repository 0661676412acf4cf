//! `tokio::task_local!` values are right in every direction (behaviour 25).

mod support;

use std::cell::Cell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, panic_any};
use std::sync::Arc;
use std::thread::{self, ThreadId};

use futures::{FutureExt, StreamExt, stream};
use greenhack::stream::{blocking_iter, generate, generate_local};
use greenhack::{await_sync, builder, run_sync, run_sync_local};
use support::{Fixture, Log, Place, in_each_place, on_drop, signal, text};
use tokio::task::yield_now;

tokio::task_local! {
    static OUTER: u32;
    static CELL: Cell<u32>;
    static NESTED: u32;
    static TRACKED: Tracked;
    static LENT: u32;
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
fn a_value_that_is_lent_in_a_wait_panics_where_the_run_is_awaited() {
    let fixture = Fixture::new(Place::Worker);
    fixture.block_on(LENT.scope(1, async {
        let (mark, is_dropped) = signal();
        let run = builder().carry(&LENT).run_sync(move || {
            let _mark = mark;
            LENT.with(|_| await_sync(yield_now()));
        });
        let payload = AssertUnwindSafe(run).catch_unwind().await.unwrap_err();
        let message = text(&*payload);
        assert!(message.contains("borrowed"), "{message}");
        is_dropped.wait().await;
        assert_eq!(run_sync(|| 7).await, 7);
    }));
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

#[test]
fn what_a_run_awaits_has_values_of_its_own() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let scoped = NESTED.scope(1, async {
                yield_now().await;
                NESTED.get()
            });
            assert_eq!(await_sync(scoped), 1);
            assert!(NESTED.try_get().is_err());
            // A stream, of which plain code takes an item at a time.
            let read = |_| async {
                yield_now().await;
                NESTED.get()
            };
            let items = stream::iter(0..3).then(read);
            let mut iter = blocking_iter(items);
            for value in 0..3 {
                let item = run_sync_local(move || (iter.next(), iter));
                let (item, rest) = await_sync(NESTED.scope(value, item));
                assert_eq!(item, Some(value));
                iter = rest;
            }
        });
        run.await.unwrap();
    });
}

#[test]
fn a_generator_in_place_has_the_values_of_who_asks() {
    support::current_thread().block_on(async {
        let mut values = generate_local(|yielder| {
            loop {
                await_sync(yield_now());
                yielder.yield_(OUTER.try_get().ok());
            }
        });
        assert_eq!(values.next().await, Some(None));
        assert_eq!(OUTER.scope(1, values.next()).await, Some(Some(1)));
        assert_eq!(OUTER.scope(2, values.next()).await, Some(Some(2)));
        assert_eq!(values.next().await, Some(None));
    });
    Fixture::new(Place::Worker).block_on(OUTER.scope(1, async {
        let mut values = generate(|yielder| yielder.yield_(OUTER.try_get().ok()));
        assert_eq!(values.next().await, Some(None));
    }));
}

/// The wrong form. `sync_scope` sets the value for the thread, so that it is
/// right as long as nothing waits in it; nobody can tell from outside that it is
/// open, because a key can't be asked for without its name.
#[test]
fn a_sync_scope_around_a_wait_is_seen_by_others_and_mixes_runs_up() {
    support::current_thread().block_on(async {
        let right = run_sync(|| {
            let value = NESTED.sync_scope(1, || NESTED.get());
            await_sync(yield_now());
            (value, NESTED.try_get().ok())
        });
        assert_eq!(right.await, (1, None));

        let wrong = |value| {
            run_sync(move || {
                NESTED.sync_scope(value, || {
                    await_sync(yield_now());
                    NESTED.try_get().ok()
                })
            })
        };
        let mut first = Box::pin(wrong(1));
        let mut second = Box::pin(wrong(2));
        assert!(futures::poll!(&mut first).is_pending());
        // A task that has set nothing.
        assert_eq!(NESTED.try_get().ok(), Some(1));
        assert!(futures::poll!(&mut second).is_pending());
        // Each sees what the other has left.
        assert_eq!(first.await, Some(2));
        assert_eq!(second.await, None);
        // And what remains is of a scope that has ended.
        assert_eq!(NESTED.try_get().ok(), Some(1));
    });
}

#[test]
fn a_nested_run_is_the_right_form_and_keeps_runs_apart() {
    support::current_thread().block_on(async {
        let right = |value| {
            run_sync(move || {
                await_sync(NESTED.scope(
                    value,
                    run_sync_local(|| {
                        await_sync(yield_now());
                        NESTED.try_get().ok()
                    }),
                ))
            })
        };
        let mut first = Box::pin(right(1));
        let mut second = Box::pin(right(2));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(NESTED.try_get().is_err());
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!((first.await, second.await), (Some(1), Some(2)));
        assert!(NESTED.try_get().is_err());
    });
}

#[test]
fn a_panic_or_a_cancellation_restores_the_outer_value() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let outer = run_sync_local(|| {
                let inner = run_sync_local(|| {
                    await_sync(yield_now());
                    panic_any(7_u8)
                });
                let inner = AssertUnwindSafe(NESTED.scope(2, inner)).catch_unwind();
                assert!(await_sync(inner).is_err());
                assert_eq!(NESTED.get(), 1);

                let inner = NESTED.scope(3, run_sync_local(|| await_sync(pending::<()>())));
                await_sync(async {
                    tokio::select! { biased; () = inner => {}, () = yield_now() => {} }
                    assert_eq!(NESTED.get(), 1);
                });
                assert_eq!(NESTED.get(), 1);
            });
            await_sync(NESTED.scope(1, outer));
            assert!(NESTED.try_get().is_err());
        });
        run.await.unwrap();
    });
}

#[test]
fn destructors_of_a_cancelled_run_see_the_value_until_they_wait() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let f = {
            let log = log.clone();
            move || {
                let _ended = ended;
                let _guard = on_drop(|| {
                    log.add(format!("{:?}", OUTER.try_get().ok()));
                    await_sync(yield_now());
                    log.add(format!("{:?}", OUTER.try_get().ok()));
                });
                started.give();
                await_sync(pending::<()>());
            }
        };
        let run = match place {
            Place::Local => tokio::task::spawn_local(OUTER.scope(7, run_sync_local(f))),
            Place::InPlace => tokio::spawn(OUTER.scope(7, run_sync(f))),
            Place::Worker => tokio::spawn(OUTER.scope(7, builder().carry(&OUTER).run_sync(f))),
        };
        wait.wait().await;
        run.abort();
        end.wait().await;
        // On a worker the run is a task with a value of its own.
        let after = match place {
            Place::Worker => "Some(7)",
            Place::InPlace | Place::Local => "None",
        };
        assert_eq!(log.take(), ["Some(7)", after]);
    });
}

/// A value that counts its clones, and may misbehave.
struct Tracked {
    alive: Arc<()>,
    on_clone: fn(),
    on_drop: fn(),
}

impl Clone for Tracked {
    fn clone(&self) -> Self {
        (self.on_clone)();
        Tracked {
            alive: self.alive.clone(),
            ..*self
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        (self.on_drop)();
    }
}

fn tracked(on_clone: fn(), on_drop: fn()) -> Tracked {
    Tracked {
        alive: Arc::new(()),
        on_clone,
        on_drop,
    }
}

/// How many values there are, where there is one.
fn alive() -> usize {
    TRACKED.with(|tracked| Arc::strong_count(&tracked.alive))
}

#[test]
fn a_value_is_carried_when_the_run_starts_and_ends_with_it() {
    Fixture::new(Place::Worker).block_on(TRACKED.scope(tracked(|| (), || ()), async {
        let alone = Arc::downgrade(&TRACKED.with(|tracked| tracked.alive.clone()));
        assert_eq!(alive(), 1);
        let run = builder().carry(&TRACKED).carry(&TRACKED).run_sync(|| {
            await_sync(yield_now());
            alive()
        });
        // Nothing is cloned before.
        assert_eq!(alive(), 1);
        // The caller's, and one for each time that it was named.
        assert_eq!(run.await, 3);
        // A run that never starts.
        drop(builder().carry(&TRACKED).run_sync(|| ()));
        // The worker drops its own a little later than it answers.
        while alone.strong_count() > 1 {
            yield_now().await;
        }
    }));
}

#[test]
fn the_value_is_that_of_the_first_poll() {
    Fixture::new(Place::Worker).block_on(async {
        let run = OUTER.sync_scope(1, || builder().carry(&OUTER).run_sync(|| OUTER.get()));
        assert_eq!(OUTER.scope(2, run).await, 2);
        let run = builder().carry(&CELL).run_sync(|| {
            CELL.with(|cell| cell.set(cell.get() + 1));
            await_sync(yield_now());
            CELL.with(Cell::get)
        });
        // It is a copy: what is changed on the worker stays there.
        let both = CELL.scope(Cell::new(1), async { (run.await, CELL.with(Cell::get)) });
        assert_eq!(both.await, (2, 1));
    });
}

#[test]
fn a_clone_that_panics_is_the_callers_panic_and_nothing_starts() {
    Fixture::new(Place::Worker).block_on(TRACKED.scope(
        tracked(|| panic_any(7_u8), || ()),
        async {
            let run = builder().carry(&TRACKED).run_sync(|| unreachable!());
            let caught: Result<(), _> = AssertUnwindSafe(run).catch_unwind().await;
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
            assert_eq!(run_sync(|| 1).await, 1);
        },
    ));
}

#[test]
fn a_carried_value_whose_drop_panics_harms_nobody() {
    fn panic_on_a_worker() {
        if thread::current()
            .name()
            .is_some_and(|name| name.starts_with("greenhack-"))
        {
            panic_any(7_u8);
        }
    }
    let fixture = Fixture::new(Place::Worker);
    fixture.block_on(TRACKED.scope(tracked(|| (), panic_on_a_worker), async {
        for _ in 0..10 {
            let run = builder().carry(&TRACKED).run_sync(|| {
                await_sync(yield_now());
                7
            });
            assert_eq!(run.await, 7);
        }
        assert_eq!(run_sync(|| 1).await, 1);
    }));
}

#[test]
fn a_carried_value_is_there_in_nested_runs_and_not_in_new_tasks() {
    Fixture::new(Place::Worker).block_on(OUTER.scope(7, async {
        let run = builder().carry(&OUTER).run_sync(|| {
            let here: ThreadId = thread::current().id();
            let nested = run_sync(move || (OUTER.get(), thread::current().id() == here));
            assert_eq!(await_sync(nested), (7, true));
            let spawned = tokio::spawn(async { OUTER.try_get().ok() });
            assert_eq!(await_sync(spawned).unwrap(), None);
            let blocked = greenhack::block(|| OUTER.try_get().ok());
            assert_eq!(blocked, None);
            await_sync(async { OUTER.get() })
        });
        assert_eq!(run.await, 7);
    }));
}

/// Another wrong form. tokio takes the value away when the poll ends, and panics
/// where it is borrowed; it believes that it can't be.
#[test]
fn a_value_that_is_borrowed_across_a_wait_is_a_panic_of_the_task() {
    support::current_thread().block_on(async {
        let task = tokio::spawn(CELL.scope(
            Cell::new(1),
            run_sync(|| CELL.with(|_| await_sync(yield_now()))),
        ));
        let payload = task.await.unwrap_err().into_panic();
        assert!(support::text(&*payload).contains("already borrowed"));
        // The value stays behind, for all on the thread.
        assert_eq!(CELL.with(Cell::get), 1);

        // The right form takes a copy.
        let task = tokio::spawn(OUTER.scope(
            1,
            run_sync(|| {
                let value = OUTER.get();
                await_sync(yield_now());
                value
            }),
        ));
        assert_eq!(task.await.unwrap(), 1);
    });
}
