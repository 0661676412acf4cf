//! The end of runs that nobody awaits any more (behaviours 13-18 and 22).
#![cfg(panic = "unwind")]

mod support;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use greenhack::{
    Cancelled, await_in_drop, await_or_cancelled, await_sync, builder, in_context, no_suspend,
    run_sync, run_sync_local, shield,
};
use support::{Fixture, Leaks, Log, Place, count_leaks, in_each_place, on_drop, paused, signal};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

#[test]
fn an_aborted_task_unwinds_innermost_first_and_once_on_its_thread() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let thread = thread::current().id();
                let _outer = on_drop(|| {
                    assert_eq!(thread::current().id(), thread);
                    log.add("outer");
                });
                let inner = || {
                    let _inner = log.on_drop("inner");
                    await_sync(async {
                        let _future = log.on_drop("future");
                        started.give();
                        pending::<()>().await;
                    });
                };
                inner();
                log.add("unreachable");
            }
        });
        wait.wait().await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        end.wait().await;
        assert_eq!(log.take(), ["future", "inner", "outer"]);
    });
}

#[test]
fn in_place_the_unwinding_is_over_when_drop_returns() {
    support::current_thread().block_on(async {
        let log = Log::default();
        for local in [false, true] {
            let f = {
                let log = log.clone();
                move || {
                    let _guard = log.on_drop("unwound");
                    await_sync(pending::<()>());
                }
            };
            if local {
                tokio::select! { biased; () = run_sync_local(f) => {}, () = yield_now() => {} }
            } else {
                tokio::select! { biased; () = run_sync(f) => {}, () = yield_now() => {} }
            }
            assert_eq!(log.take(), ["unwound"]);
        }
    });
}

#[test]
fn dropping_an_unstarted_run_drops_its_closure_only() {
    in_each_place(|_| async {
        let log = Log::default();
        let f = || {
            let guard = log.on_drop("closure");
            let log = log.clone();
            move || {
                let _guard = guard;
                log.add("ran");
            }
        };
        drop(run_sync(f()));
        assert_eq!(log.take(), ["closure"]);
        drop(run_sync_local(f()));
        assert_eq!(log.take(), ["closure"]);
    });
}

#[test]
fn a_future_dropped_on_another_thread_unwinds_on_its_own_and_does_not_block() {
    let fixture = Fixture::new(Place::Worker);
    let log = Log::default();
    let (ended, end) = signal();
    // Blocks the worker's unwinding until the drop has returned.
    let (allow, allowed) = std::sync::mpsc::channel::<()>();
    let (started, wait) = signal();
    let mut run = Box::pin(run_sync({
        let log = log.clone();
        move || {
            let _ended = ended;
            let thread = thread::current().id();
            let _guard = on_drop(move || {
                allowed.recv().unwrap();
                assert_eq!(thread::current().id(), thread);
                log.add("unwound");
            });
            started.give();
            await_sync(pending::<()>());
        }
    }));
    fixture.block_on(async {
        tokio::select! { biased; () = &mut run => unreachable!(), () = wait.wait() => {} }
    });
    thread::spawn(move || drop(run)).join().unwrap();
    assert!(log.take().is_empty());
    allow.send(()).unwrap();
    fixture.block_on(end.wait());
    assert_eq!(log.take(), ["unwound"]);
}

#[test]
fn a_run_started_in_place_and_dropped_on_another_thread_unwinds_on_its_own() {
    let runtime = support::current_thread();
    let log = Log::default();
    let mut run = Box::pin(run_sync({
        let log = log.clone();
        move || {
            let thread = thread::current().id();
            let _guard = on_drop(|| {
                assert_eq!(thread::current().id(), thread);
                log.add("unwound");
            });
            await_sync(pending::<()>());
        }
    }));
    runtime.block_on(async {
        tokio::select! { biased; () = &mut run => unreachable!(), () = yield_now() => {} }
    });
    thread::spawn(move || drop(run)).join().unwrap();
    assert!(log.take().is_empty());
    runtime.block_on(yield_now());
    assert_eq!(log.take(), ["unwound"]);
}

#[test]
fn a_task_aborted_while_another_thread_drives_its_runtime_waits_for_its_own() {
    let runtime = Arc::new(support::current_thread());
    let log = Log::default();
    let run = run_sync({
        let log = log.clone();
        move || {
            let _guard = log.on_drop("unwound");
            await_sync(pending::<()>());
        }
    });
    let task = runtime.spawn(run);
    runtime.block_on(yield_now());
    let error = thread::spawn({
        let runtime = runtime.clone();
        move || {
            // Wakes the task, here.
            runtime.block_on(async move {
                task.abort();
                task.await.unwrap_err()
            })
        }
    })
    .join()
    .unwrap();
    assert!(error.is_cancelled());
    // It waits for its own thread.
    assert!(log.take().is_empty());
    drop(Arc::into_inner(runtime).expect("the other thread has ended"));
    assert_eq!(log.take(), ["unwound"]);
}

#[test]
fn a_run_started_in_place_and_polled_on_another_thread_panics_there() {
    let runtime = support::current_thread();
    let mut polled = Box::pin(run_sync(|| await_sync(yield_now())));
    runtime.block_on(async {
        assert!(futures::poll!(&mut polled).is_pending());
    });
    let elsewhere = thread::spawn(move || {
        let other = support::current_thread();
        catch_unwind(AssertUnwindSafe(|| other.block_on(&mut polled)))
    });
    let payload = elsewhere.join().unwrap().unwrap_err();
    let message = support::text(&*payload);
    assert!(message.contains("polled on another thread"), "{message}");
}

#[test]
fn destructors_that_await_are_driven_to_their_end_in_order() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let slowly = |what: &'static str| {
                    let log = &log;
                    on_drop(move || {
                        log.add(format!("{what} begins"));
                        await_sync(sleep(Duration::from_millis(2)));
                        assert!(thread::panicking());
                        log.add(format!("{what} ends"));
                    })
                };
                let _first = slowly("first");
                let _second = slowly("second");
                started.give();
                await_sync(pending::<()>());
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        let expected = ["second begins", "second ends", "first begins", "first ends"];
        assert_eq!(log.take(), expected);
    });
}

#[test]
fn in_a_local_set_on_a_multi_thread_runtime_cleanup_goes_on_as_a_task_of_it() {
    let log = Log::default();
    let in_the_set = async {
        let (end, ended) = signal();
        let task = tokio::task::spawn_local(run_sync_local({
            let log = log.clone();
            move || {
                let _guard = on_drop(move || log.add(format!("{:?}", await_in_drop(ended.wait()))));
                await_sync(pending::<()>());
            }
        }));
        yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(log.take().is_empty());
        end.give();
        yield_now().await;
        yield_now().await;
    };
    let local_set = tokio::task::LocalSet::new();
    Fixture::new(Place::Worker).block_on(local_set.run_until(in_the_set));
    assert_eq!(log.take(), ["Some(())"]);
}

#[test]
fn cancellation_in_the_destructor_of_a_real_panic_keeps_that_panic() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let (go_on, allowed) = oneshot::channel::<()>();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    let _guard = on_drop(|| {
                        started.give();
                        await_sync(async { allowed.await.unwrap() });
                        log.add("the destructor ended");
                    });
                    panic_any(7_u8);
                }));
                assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
                log.add("caught the panic");
                // Now it is delivered.
                await_sync(yield_now());
                log.add("unreachable");
            }
        });
        wait.wait().await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        go_on.send(()).unwrap();
        end.wait().await;
        assert_eq!(log.take(), ["the destructor ended", "caught the panic"]);
    });
}

#[test]
fn when_the_budget_ends_fallible_waits_fail_and_the_rest_still_runs() {
    let leaks = count_leaks();
    let runtime = paused();
    runtime.block_on(async {
        let log = Log::default();
        let (ended, end) = signal();
        let run = tokio::spawn(builder().cleanup_budget(Duration::from_secs(3)).run_sync({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _last = log.on_drop("the last destructor");
                let _third = on_drop(|| {
                    log.add(format!("third: {:?}", await_or_cancelled(pending::<()>())));
                });
                let _second = on_drop(|| {
                    log.add(format!("second: {:?}", await_in_drop(pending::<()>())));
                });
                let _first = on_drop(|| {
                    await_sync(sleep(Duration::from_secs(1)));
                    log.add("first: in time");
                });
                await_sync(pending::<()>());
            }
        }));
        yield_now().await;
        let start = tokio::time::Instant::now();
        run.abort();
        end.wait().await;
        let expected = [
            "first: in time",
            "second: None",
            "third: Err(Cancelled(()))",
            "the last destructor",
        ];
        assert_eq!(log.take(), expected);
        assert_eq!(start.elapsed().as_secs(), 3);
    });
    assert_eq!(leaks.count(), 0);
}

#[test]
fn when_the_budget_ends_in_a_wait_that_cannot_fail_the_run_is_leaked() {
    let leaks = count_leaks();
    let runtime = paused();
    runtime.block_on(async {
        let log = Log::default();
        let run = tokio::spawn(builder().name("stuck").run_sync({
            let log = log.clone();
            move || {
                let _outer = log.on_drop("unreachable");
                let _guard = on_drop(|| await_sync(pending::<()>()));
                await_sync(pending::<()>());
            }
        }));
        yield_now().await;
        run.abort();
        sleep(Duration::from_secs(60)).await;
        assert!(log.take().is_empty());
    });
    assert_eq!(leaks.count(), 1);
}

/// How long a test waits for what must happen.
const LIMIT: Duration = Duration::from_secs(60);

/// Suspends until so many runs were leaked.
async fn leaked(leaks: &Leaks, expected: u64) {
    let all = async {
        while leaks.count() < expected {
            yield_now().await;
        }
    };
    timeout(LIMIT, all).await.expect("a leak");
    assert_eq!(leaks.count(), expected);
}

#[test]
fn when_the_budget_ends_on_a_worker_it_is_the_same() {
    let leaks = count_leaks();
    Fixture::new(Place::Worker).block_on(async {
        let short = || builder().cleanup_budget(Duration::from_millis(1));
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = Place::Worker.spawn_with(short(), {
            let log = log.clone();
            move || {
                let _ended = ended;
                let _last = log.on_drop("the last destructor");
                let _second = on_drop(|| {
                    log.add(format!("second: {:?}", await_or_cancelled(pending::<()>())));
                });
                let _first = on_drop(|| {
                    log.add(format!("first: {:?}", await_in_drop(pending::<()>())));
                });
                started.give();
                await_sync(pending::<()>());
            }
        });
        wait.wait().await;
        run.abort();
        timeout(LIMIT, end.wait()).await.expect("it ends");
        let expected = [
            "first: None",
            "second: Err(Cancelled(()))",
            "the last destructor",
        ];
        assert_eq!(log.take(), expected);
        assert_eq!(leaks.count(), 0);

        let (started, wait) = signal();
        let run = Place::Worker.spawn_with(short(), {
            let log = log.clone();
            move || {
                let _outer = log.on_drop("unreachable");
                let _guard = on_drop(|| await_sync(pending::<()>()));
                started.give();
                await_sync(pending::<()>());
            }
        });
        wait.wait().await;
        run.abort();
        leaked(&leaks, 1).await;
        assert!(log.take().is_empty());
    });
}

#[test]
fn a_destructor_that_can_neither_wait_nor_unwind_leaks_its_run_and_says_so() {
    let leaks = count_leaks();
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let _guard = on_drop(|| no_suspend(|| await_sync(yield_now())));
            panic_any(7_u8);
        });
        let payload = run.await.unwrap_err().into_panic();
        assert_eq!(
            support::text(&*payload),
            "a run was leaked: it awaited in a destructor, during an unwind, where it can't be \
             suspended; use `greenhack::await_in_drop` in destructors"
        );
        assert_eq!(place.spawn(|| 7).await.unwrap(), 7);
    });
    assert_eq!(leaks.count(), 3);
}

// AddressSanitizer keeps locals elsewhere than on the stack.
#[test]
#[cfg(not(greenhack_sanitizer))]
fn the_stack_of_a_leaked_run_is_never_used_again() {
    const SIZE: usize = 64 * 1024;

    /// Runs `f` with an address on its stack.
    fn run(f: impl FnOnce(usize) + 'static) -> impl Future<Output = ()> {
        builder().stack_size(SIZE).run_sync_local(move || {
            let local = 0_u8;
            f(std::ptr::from_ref(std::hint::black_box(&local)).addr());
        })
    }

    /// Runs to its end, and returns an address on its stack.
    async fn ended() -> usize {
        let address = Rc::new(Cell::new(0));
        let told = address.clone();
        run(move |local| told.set(local)).await;
        address.get()
    }

    let leaks = count_leaks();
    // Between two stacks there is a guard.
    let is_same = |one: usize, other: usize| one.abs_diff(other) < SIZE;
    support::current_thread().block_on(async {
        // One that has ended is the next to be used.
        let free = ended().await;
        assert!(is_same(ended().await, free));

        let leaked = Rc::new(Cell::new(0));
        let told = leaked.clone();
        let swallows = run(move |local| {
            told.set(local);
            while catch_unwind(|| await_sync(pending::<()>())).is_err() {}
        });
        tokio::select! { biased; () = swallows => {}, () = yield_now() => {} }
        assert_eq!(leaks.count(), 1);
        assert!(is_same(leaked.get(), free));

        // Neither by one run after the other, nor by many at once.
        for _ in 0..100 {
            assert!(!is_same(ended().await, leaked.get()));
        }
        let addresses = Rc::new(RefCell::new(Vec::new()));
        let runs = (0..100).map(|_| {
            let addresses = addresses.clone();
            run(move |local| {
                addresses.borrow_mut().push(local);
                await_sync(yield_now());
            })
        });
        futures::future::join_all(runs).await;
        let addresses = addresses.take();
        assert_eq!(addresses.len(), 100);
        assert!(addresses.iter().all(|&local| !is_same(local, leaked.get())));
    });
}

#[test]
fn a_swallowed_cancellation_is_met_again_at_the_next_wait() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                started.give();
                for _ in 0..3 {
                    let caught = catch_unwind(|| await_sync(pending::<()>()));
                    assert!(caught.unwrap_err().is::<Cancelled>());
                    log.add("swallowed");
                }
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["swallowed"; 3]);
    });
}

#[test]
fn an_endless_swallower_is_leaked_and_does_not_spin() {
    let leaks = count_leaks();
    support::current_thread().block_on(async {
        let throws = Rc::new(Cell::new(0));
        let run = run_sync_local({
            let throws = throws.clone();
            move || loop {
                if catch_unwind(|| await_sync(pending::<()>())).is_err() {
                    throws.set(throws.get() + 1);
                }
            }
        });
        tokio::select! { biased; () = run => {}, () = yield_now() => {} }
        assert_eq!(throws.get(), 32);

        let errors = Rc::new(Cell::new(0));
        let run = run_sync_local({
            let errors = errors.clone();
            move || loop {
                if await_or_cancelled(pending::<()>()).is_err() {
                    errors.set(errors.get() + 1);
                }
            }
        });
        tokio::select! { biased; () = run => {}, () = yield_now() => {} }
        assert_eq!(errors.get(), 32);
    });
    assert_eq!(leaks.count(), 2);
}

#[test]
fn on_a_worker_an_endless_swallower_is_leaked_too() {
    let leaks = count_leaks();
    Fixture::new(Place::Worker).block_on(async {
        let throws = Arc::new(AtomicUsize::new(0));
        let (started, wait) = signal();
        let run = Place::Worker.spawn({
            let throws = throws.clone();
            move || {
                started.give();
                loop {
                    if catch_unwind(|| await_sync(pending::<()>())).is_err() {
                        throws.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        wait.wait().await;
        run.abort();
        leaked(&leaks, 1).await;
        assert_eq!(throws.load(Ordering::Relaxed), 32);

        let errors = Arc::new(AtomicUsize::new(0));
        let (started, wait) = signal();
        let run = Place::Worker.spawn({
            let errors = errors.clone();
            move || {
                started.give();
                loop {
                    if await_or_cancelled(pending::<()>()).is_err() {
                        errors.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        wait.wait().await;
        run.abort();
        leaked(&leaks, 2).await;
        assert_eq!(errors.load(Ordering::Relaxed), 32);
        assert_eq!(Place::Worker.spawn(|| 7).await.unwrap(), 7);
    });
}

#[test]
fn code_that_catches_the_cancellation_and_panics_ends_with_its_panic() {
    support::current_thread().block_on(async {
        let mut run = Box::pin(run_sync_local(|| {
            let caught = catch_unwind(|| await_sync(pending::<()>()));
            assert!(caught.is_err());
            panic_any(7_u8);
        }));
        assert!(futures::poll!(&mut run).is_pending());
        let caught = catch_unwind(AssertUnwindSafe(|| drop(run)));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
    });
}

#[test]
fn a_panic_in_the_drop_of_the_awaited_future_leaves_the_drop_of_the_run() {
    support::current_thread().block_on(async {
        let log = Log::default();
        let mut run = Box::pin(run_sync_local({
            let log = log.clone();
            move || {
                let _guard = log.on_drop("unwound");
                await_sync(async {
                    let _guard = on_drop(|| panic_any(7_u8));
                    pending::<()>().await;
                });
            }
        }));
        assert!(futures::poll!(&mut run).is_pending());
        let caught = catch_unwind(AssertUnwindSafe(|| drop(run)));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
        assert_eq!(log.take(), ["unwound"]);
    });
}

#[test]
fn await_or_cancelled_gets_an_error() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                started.give();
                let first = await_or_cancelled(pending::<()>());
                let second = await_or_cancelled(async { 1 });
                assert!(!thread::panicking());
                log.add(format!("{first:?} {second:?}"));
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["Err(Cancelled(())) Err(Cancelled(()))"]);
    });
}

#[test]
fn a_shield_holds_cancellation_back_to_its_outermost_end() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let (go_on, allowed) = oneshot::channel::<()>();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                shield(|| {
                    shield(|| {
                        started.give();
                        await_sync(async { allowed.await.unwrap() });
                        log.add("the wait ended");
                    });
                    await_sync(yield_now());
                    log.add("the outer shield ends");
                });
                log.add("unreachable");
            }
        });
        wait.wait().await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        go_on.send(()).unwrap();
        end.wait().await;
        assert_eq!(log.take(), ["the wait ended", "the outer shield ends"]);
    });
}

#[test]
fn a_shield_without_a_cancellation_gives_its_result() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let caught = catch_unwind(|| shield(|| panic_any(7_u8)));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
            shield(|| {
                await_sync(yield_now());
                7
            })
        });
        assert_eq!(run.await.unwrap(), 7);
    });
}

#[test]
fn a_run_that_ends_in_spite_of_its_cancellation_drops_its_result() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                started.give();
                let _ = await_or_cancelled(pending::<()>());
                (log.on_drop("the result"), ended)
            }
        });
        wait.wait().await;
        run.abort();
        drop(run.await);
        end.wait().await;
        assert_eq!(log.take(), ["the result"]);
    });
}

#[test]
fn locks_held_across_the_cut_are_poisoned() {
    in_each_place(|place| async move {
        let lock = Arc::new(std::sync::Mutex::new(0));
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let lock = lock.clone();
            move || {
                let _ended = ended;
                let _guard = lock.lock().unwrap();
                started.give();
                await_sync(pending::<()>());
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert!(lock.is_poisoned());
    });
}

#[test]
fn nested_runs_are_cancelled_with_the_outer_one() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _outer = log.on_drop("outer");
                let inner = log.clone();
                await_sync(async move {
                    run_sync_local(move || {
                        let _inner = inner.on_drop("inner");
                        started.give();
                        await_sync(pending::<()>());
                    })
                    .await;
                });
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["inner", "outer"]);
    });
}

#[test]
fn a_closing_runtime_unwinds_what_is_suspended_on_it() {
    let leaks = count_leaks();
    for place in [Place::InPlace, Place::Local] {
        let fixture = Fixture::new(place);
        let log = Log::default();
        fixture.block_on(async {
            for _ in 0..3 {
                let log = log.clone();
                place.spawn(move || {
                    let _guard = on_drop(|| {
                        // A handle is entered, so destructors can spawn.
                        drop(tokio::spawn(async {}));
                        // What is ready at once can still be awaited.
                        await_sync(async {});
                        log.add("unwound");
                    });
                    await_sync(pending::<()>());
                });
            }
            yield_now().await;
        });
        drop(fixture);
        assert_eq!(log.take(), ["unwound"; 3]);
    }
    assert_eq!(leaks.count(), 0);
}

#[test]
fn a_destructor_that_waits_for_ever_in_a_closing_runtime_is_leaked_and_counted() {
    let leaks = count_leaks();
    let fixture = Fixture::new(Place::InPlace);
    fixture.block_on(async {
        Place::InPlace.spawn(|| {
            let _guard = on_drop(|| await_sync(pending::<()>()));
            await_sync(pending::<()>());
        });
        yield_now().await;
    });
    drop(fixture);
    assert_eq!(leaks.count(), 1);
}

#[test]
fn a_closing_multi_thread_runtime_cancels_its_runs_on_the_workers() {
    let log = Log::default();
    let mut ends = Vec::new();
    let fixture = Fixture::new(Place::Worker);
    fixture.block_on(async {
        for _ in 0..3 {
            let (started, wait) = signal();
            let (ended, end) = signal();
            ends.push(end);
            let log = log.clone();
            Place::Worker.spawn(move || {
                let _ended = ended;
                let _guard = log.on_drop("unwound");
                started.give();
                await_sync(pending::<()>());
            });
            wait.wait().await;
        }
    });
    drop(fixture);
    for end in ends {
        await_sync(end.wait());
    }
    assert_eq!(log.take(), ["unwound"; 3]);
}

#[test]
fn a_thread_that_ends_with_a_suspended_run_leaks_it() {
    thread_local! {
        static BORROWED: RefCell<u32> = const { RefCell::new(0) };
        static KEPT: RefCell<Option<Box<dyn std::any::Any>>> = const { RefCell::new(None) };
    }
    let leaks = count_leaks();
    let log = Log::default();
    thread::spawn({
        let log = log.clone();
        move || {
            // Dropped after the crate's own thread-locals.
            KEPT.with(|_| ());
            let runtime = support::current_thread();
            let mut run = Box::pin(run_sync_local(move || {
                let _guard = log.on_drop("unreachable");
                BORROWED.with(|borrowed| {
                    let _borrow = borrowed.borrow_mut();
                    await_sync(pending::<()>());
                });
            }));
            runtime.block_on(async {
                let _ = futures::poll!(&mut run);
            });
            KEPT.with(|kept| *kept.borrow_mut() = Some(Box::new(run)));
        }
    })
    .join()
    .unwrap();
    assert!(log.take().is_empty());
    assert_eq!(leaks.count(), 1);
}

#[test]
fn a_forgotten_run_does_no_harm() {
    in_each_place(|place| async move {
        let mut run = Box::pin(run_sync(|| await_sync(pending::<()>())));
        assert!(futures::poll!(&mut run).is_pending());
        std::mem::forget(run);
        assert_eq!(place.spawn(|| 7).await.unwrap(), 7);
    });
}

// Behaviour 22: a resource whose destructor must await.

struct Resource(Log);

impl Drop for Resource {
    fn drop(&mut self) {
        let log = &self.0;
        let closed = await_in_drop(async {
            yield_now().await;
            log.add("closed in order");
        });
        if closed.is_none() {
            log.add("given up");
        }
    }
}

#[test]
fn a_resource_that_awaits_in_drop_does_so_where_it_can() {
    let log = Log::default();
    drop(Resource(log.clone()));
    assert_eq!(log.take(), ["closed in order"]);
    in_each_place(|place| async move {
        let log = Log::default();
        let run = place.spawn({
            let log = log.clone();
            move || drop(Resource(log))
        });
        run.await.unwrap();
        assert_eq!(log.take(), ["closed in order"]);

        // In a cancelled run, and in one that swallows it.
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _unwound = Resource(log.clone());
                started.give();
                let caught = catch_unwind(|| await_sync(pending::<()>()));
                drop(Resource(log.clone()));
                resume_unwind(caught.unwrap_err());
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["closed in order"; 2]);
    });
}

#[test]
fn a_resource_that_awaits_in_drop_gives_up_in_async_code() {
    in_each_place(|place| async move {
        let log = Log::default();
        drop(Resource(log.clone()));
        assert_eq!(log.take(), ["given up"]);
        let run = place.spawn({
            let log = log.clone();
            move || await_sync(async { drop(Resource(log)) })
        });
        run.await.unwrap();
        assert_eq!(log.take(), ["given up"]);
    });
}

#[test]
fn the_outcome_of_a_cancelled_run_is_not_awaited_by_its_task() {
    static UNWOUND: AtomicUsize = AtomicUsize::new(0);
    support::current_thread().block_on(async {
        let timed_out = tokio::time::timeout(
            Duration::from_millis(1),
            run_sync_local(|| {
                let _guard = on_drop(|| {
                    assert!(in_context());
                    UNWOUND.fetch_add(1, Ordering::Relaxed);
                });
                await_sync(pending::<()>());
            }),
        );
        assert!(timed_out.await.is_err());
        assert_eq!(UNWOUND.load(Ordering::Relaxed), 1);
    });
}
