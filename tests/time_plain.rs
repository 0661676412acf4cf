//! Time and fairness in plain functions.
#![cfg(panic = "unwind")]

mod support;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::panic::panic_any;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use greenhack::time::{
    consume_budget, interval, interval_at, sleep, sleep_until, timeout, yield_now,
};
use greenhack::{
    await_in_drop, await_sync, builder, leaked_runs, must_suspend, no_suspend, on_thread_stack,
    run_sync, run_sync_local,
};
use support::{Log, in_each_place, on_drop, panic_of, paused, signal};
use tokio::runtime::Builder;
use tokio::time::{Instant, MissedTickBehavior};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn sleeping_goes_by_the_clock_of_the_runtime() {
    paused().block_on(async {
        let run = run_sync(|| {
            let start = Instant::now();
            sleep(3 * DAY);
            assert_eq!(start.elapsed(), 3 * DAY);
            sleep_until(start + 7 * DAY);
            assert_eq!(start.elapsed(), 7 * DAY);
            // In the past.
            sleep_until(start);
            assert_eq!(start.elapsed(), 7 * DAY);
        });
        run.await;
    });
}

#[test]
fn runs_sleep_side_by_side() {
    paused().block_on(async {
        let start = Instant::now();
        let runs: Vec<_> = (0..100)
            .map(|_| tokio::spawn(run_sync(|| sleep(DAY))))
            .collect();
        for run in runs {
            run.await.unwrap();
        }
        assert_eq!(start.elapsed(), DAY);
    });
}

#[test]
fn they_work_in_each_place() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let start = Instant::now();
            let ms = Duration::from_millis(1);
            sleep(ms);
            sleep_until(start + 2 * ms);
            assert!(interval(ms).take(2).all(|tick| tick >= start + 2 * ms));
        });
        run.await.unwrap();
    });
}

#[test]
fn a_sleep_is_cancelled() {
    paused().block_on(async {
        let log = Log::default();
        let logged = log.clone();
        let run = run_sync(move || {
            let _guard = logged.on_drop("unwound");
            sleep(DAY);
            logged.add("unreachable");
        });
        let start = Instant::now();
        let ended = tokio::time::timeout(Duration::from_secs(1), run).await;
        assert!(ended.is_err());
        assert_eq!(start.elapsed().as_secs(), 1);
        assert_eq!(log.take(), ["unwound"]);
    });
}

#[test]
fn a_destructor_may_sleep_within_the_budget() {
    let leaked = leaked_runs();
    paused().block_on(async {
        let (ended, end) = signal();
        let run = run_sync(move || {
            let _ended = ended;
            let _guard = on_drop(|| sleep(Duration::from_secs(5)));
            sleep(DAY);
        });
        let start = Instant::now();
        let _ = tokio::time::timeout(Duration::from_secs(1), run).await;
        end.wait().await;
        assert_eq!(start.elapsed().as_secs(), 6);
    });
    assert_eq!(leaked_runs(), leaked);
}

#[test]
fn an_interval_ticks_at_once_and_then_each_period() {
    paused().block_on(run_sync_local(|| {
        let start = Instant::now();
        let mut ticks = interval(DAY);
        assert_eq!(ticks.period(), DAY);
        assert_eq!(ticks.tick(), start);
        assert_eq!(ticks.tick(), start + DAY);
        sleep(DAY / 2);
        assert_eq!(ticks.tick(), start + 2 * DAY);
        sleep(DAY / 2);
        ticks.reset();
        assert_eq!(ticks.tick(), start + 7 * DAY / 2);

        let start = Instant::now();
        let mut ticks = interval_at(start + DAY, 2 * DAY);
        assert_eq!(ticks.tick(), start + DAY);
        assert_eq!(ticks.tick(), start + 3 * DAY);
        assert_eq!(start.elapsed(), 3 * DAY);
    }));
}

#[test]
fn an_interval_is_an_iterator_without_an_end() {
    paused().block_on(run_sync_local(|| {
        let start = Instant::now();
        let ticks = interval(DAY);
        assert_eq!(ticks.size_hint(), (usize::MAX, None));
        let ticks: Vec<_> = ticks.take(3).map(|tick| tick - start).collect();
        assert_eq!(ticks, [Duration::ZERO, DAY, 2 * DAY]);
        assert_eq!(start.elapsed(), 2 * DAY);
    }));
}

#[test]
fn missed_ticks_behave_as_set() {
    paused().block_on(run_sync_local(|| {
        let start = Instant::now();
        let mut ticks = interval(DAY);
        assert_eq!(ticks.missed_tick_behavior(), MissedTickBehavior::Burst);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks.tick();
        sleep(5 * DAY / 2);
        assert_eq!(ticks.tick(), start + DAY);
        assert_eq!(ticks.tick(), start + 3 * DAY);
    }));
}

#[test]
fn a_cancelled_tick_is_not_lost() {
    paused().block_on(async {
        let start = Instant::now();
        let ticks = Rc::new(RefCell::new(None));
        let kept = ticks.clone();
        let run = run_sync_local(move || {
            let mut borrowed = kept.borrow_mut();
            let ticks = borrowed.insert(interval(DAY));
            ticks.tick();
            ticks.tick();
        });
        assert!(tokio::time::timeout(DAY / 2, run).await.is_err());
        let next = run_sync_local(move || ticks.borrow_mut().as_mut().unwrap().tick());
        assert_eq!(next.await, start + DAY);
    });
}

#[test]
fn on_a_plain_thread_they_block() {
    let start = Instant::now();
    let ms = Duration::from_millis(1);
    sleep(ms);
    sleep_until(start + 2 * ms);
    let mut ticks = interval(ms);
    let first = ticks.tick();
    assert!(ticks.tick() >= first + ms);
    let at = Instant::now() + ms;
    assert_eq!(interval_at(at, ms).tick(), at);
    assert!(start.elapsed() >= 3 * ms);
    yield_now();
    consume_budget();
    // Also with a runtime entered, and in its blocking threads.
    let runtime = support::current_thread();
    let blocking = runtime.spawn_blocking(move || sleep(ms));
    runtime.block_on(blocking).unwrap();
    // An interval of one thread ticks on another, in a run too.
    let moved = thread::spawn(move || ticks.tick()).join().unwrap();
    assert!(moved > first);
    runtime.block_on(run_sync_local(move || {
        let mut ticks = interval(ms);
        ticks.tick();
    }));
}

#[test]
fn in_async_code_they_panic_at_the_callers_line() {
    #[allow(
        clippy::redundant_closure,
        reason = "a path would be called from elsewhere"
    )]
    in_each_place(|_| async {
        let check = |name: &str, f: &dyn Fn(), expected: u32| {
            let (message, line, file) = panic_of(f);
            assert_eq!((line, file.as_str()), (expected, file!()));
            let called = format!("`greenhack::time::{name}` called in async code");
            assert!(message.starts_with(&called), "{message}");
            assert!(message.contains("write `tokio::"), "{message}");
        };
        let tick = "BlockingInterval::tick";
        check("sleep", &|| sleep(DAY), line!());
        check("sleep_until", &|| sleep_until(Instant::now()), line!());
        check(tick, &|| _ = interval(DAY).tick(), line!());
        check(tick, &|| assert!(interval(DAY).next().is_none()), line!());
        check("yield_now", &|| yield_now(), line!());
        check("consume_budget", &|| consume_budget(), line!());
    });
}

#[test]
fn in_a_future_that_is_awaited_they_panic() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let (message, line, _) = panic_of(|| await_sync(async { sleep(DAY) }));
            assert_eq!(line, line!() - 1);
            let remedy = "write `tokio::time::sleep(duration).await` here";
            assert!(message.contains(remedy), "{message}");
        });
        run.await.unwrap();
    });
}

#[test]
fn what_tokio_refuses_panics_at_the_callers_line() {
    support::current_thread().block_on(run_sync_local(|| {
        let (_, line, file) = panic_of(|| drop(interval(Duration::ZERO)));
        assert_eq!((line, file.as_str()), (line!() - 1, file!()));
    }));
    // A runtime without a timer.
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(run_sync_local(|| {
        let (message, line, file) = panic_of(|| sleep(DAY));
        assert_eq!((line, file.as_str()), (line!() - 1, file!()));
        assert!(message.contains("timers are disabled"), "{message}");
        let (_, line, file) = panic_of(|| sleep_until(Instant::now()));
        assert_eq!((line, file.as_str()), (line!() - 1, file!()));
    }));
}

#[test]
fn yield_now_suspends_each_time() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            for _ in 0..10 {
                must_suspend(yield_now);
            }
            let (message, ..) = panic_of(|| no_suspend(yield_now));
            assert!(message.contains("no_suspend"), "{message}");
        });
        run.await.unwrap();
    });
}

#[test]
fn runs_that_yield_take_turns() {
    support::current_thread().block_on(async {
        let log = Log::default();
        let run = |name: &'static str| {
            let log = log.clone();
            tokio::spawn(run_sync(move || {
                for _ in 0..3 {
                    log.add(name);
                    yield_now();
                }
            }))
        };
        for run in [run("a"), run("b")] {
            run.await.unwrap();
        }
        // Whose turn is first in a round is tokio's business.
        for round in log.take().chunks_mut(2) {
            round.sort();
            assert_eq!(round, ["a", "b"]);
        }
    });
}

#[test]
fn consume_budget_suspends_when_the_task_has_had_its_share() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            must_suspend(yield_now);
            // The budget is new after a suspension.
            no_suspend(|| (0..100).for_each(|_| consume_budget()));
            must_suspend(|| (0..100).for_each(|_| consume_budget()));
        });
        run.await.unwrap();
    });
    // Without a budget it never suspends.
    support::current_thread().block_on(tokio::task::unconstrained(run_sync_local(|| {
        no_suspend(|| (0..1000).for_each(|_| consume_budget()));
    })));
}

#[test]
fn a_computation_that_consumes_its_budget_is_cancelled() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _guard = log.on_drop("unwound");
                started.give();
                loop {
                    consume_budget();
                }
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["unwound"]);
    });
}

#[test]
fn a_time_limit_cancels_plain_code_that_borrows() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let steps = RefCell::new(Vec::new());
            let late = timeout(Duration::from_millis(1), || {
                let _guard = on_drop(|| {
                    // The cleanup may take its time.
                    sleep(Duration::from_millis(5));
                    steps.borrow_mut().push("cleaned up");
                });
                await_sync(pending::<()>());
            });
            assert!(late.is_err());
            assert_eq!(steps.take(), ["cleaned up"]);
            assert_eq!(timeout(Duration::MAX, || 7), Ok(7));
            timeout(Duration::ZERO, || ()).is_ok()
        });
        assert!(run.await.unwrap(), "what is ready at once is in time");
    });
}

#[test]
fn time_limits_nest() {
    support::current_thread().block_on(run_sync(|| {
        let inner_is_late = timeout(Duration::from_secs(60), || {
            timeout(Duration::ZERO, || {
                loop {
                    yield_now()
                }
            })
            .is_err()
        });
        assert_eq!(inner_is_late, Ok(true));
        let outer_is_late = timeout(Duration::from_millis(1), || {
            timeout(Duration::from_secs(60), || {
                await_sync(pending::<()>());
            })
        });
        assert!(outer_is_late.is_err());
    }));
}

#[test]
fn a_time_limit_waits_for_the_cleanup_of_its_closure() {
    let leaked = leaked_runs();
    let second = Duration::from_secs(1);
    paused().block_on(run_sync(move || {
        let cleaned_up = Cell::new(false);
        let start = Instant::now();
        let late = timeout(second, || {
            // Longer than any budget.
            let _guard = on_drop(|| {
                sleep(DAY);
                cleaned_up.set(true);
            });
            await_sync(pending::<()>());
        });
        assert!(late.is_err());
        assert!(cleaned_up.get());
        assert_eq!(start.elapsed(), second + DAY);
        // The caller is not cancelled by that.
        must_suspend(yield_now);

        // The remedy: the cleanup has a limit of its own.
        let start = Instant::now();
        let late = timeout(second, || {
            let _guard = on_drop(|| {
                let limited = async { tokio::time::timeout(3 * second, pending::<()>()).await };
                assert!(await_in_drop(limited).unwrap().is_err());
            });
            await_sync(pending::<()>());
        });
        assert!(late.is_err());
        assert_eq!(start.elapsed(), 4 * second);
    }));
    assert_eq!(leaked_runs(), leaked);
}

#[test]
fn the_budget_of_its_run_limits_the_cleanup_of_a_closure_that_was_late() {
    let leaked = leaked_runs();
    let second = Duration::from_secs(1);
    paused().block_on(async {
        let log = Log::default();
        let (ended, end) = signal();
        let run = builder().cleanup_budget(3 * second).run_sync({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _outer = log.on_drop("outer");
                let late = timeout(second, || {
                    let _guard = on_drop(|| {
                        assert_eq!(await_in_drop(pending::<()>()), None);
                        log.add("given up");
                    });
                    await_sync(pending::<()>());
                });
                // The time was over before the run was cancelled.
                log.add(if late.is_err() { "late" } else { "in time" });
                yield_now();
                log.add("unreachable");
            }
        });
        let start = Instant::now();
        assert!(tokio::time::timeout(10 * second, run).await.is_err());
        assert!(log.take().is_empty());
        end.wait().await;
        assert_eq!(start.elapsed(), 13 * second);
        assert_eq!(log.take(), ["given up", "late", "outer"]);
    });
    assert_eq!(leaked_runs(), leaked);
}

#[test]
fn a_panic_under_a_time_limit_passes_with_its_payload() {
    in_each_place(|place| async move {
        let log = Log::default();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _outer = log.on_drop("outer");
                let _ = timeout(DAY, || {
                    let _inner = log.on_drop("inner");
                    yield_now();
                    panic_any(7_u8);
                });
                log.add("unreachable");
            }
        });
        let payload = run.await.unwrap_err().into_panic();
        assert_eq!(payload.downcast_ref(), Some(&7_u8));
        assert_eq!(log.take(), ["inner", "outer"]);
    });
}

#[test]
fn a_cancellation_reaches_what_is_under_a_time_limit() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _outer = log.on_drop("outer");
                let _ = timeout(DAY, || {
                    let _inner = on_drop(|| {
                        yield_now();
                        log.add("inner");
                    });
                    started.give();
                    await_sync(pending::<()>());
                });
                log.add("unreachable");
            }
        });
        wait.wait().await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        end.wait().await;
        assert_eq!(log.take(), ["inner", "outer"]);
    });
}

#[test]
fn a_time_limit_in_async_code_panics_at_the_callers_line_with_its_name() {
    let check = || {
        let ran = Cell::new(false);
        let (message, line, file) = panic_of(|| assert!(timeout(DAY, || ran.set(true)).is_ok()));
        assert_eq!((line, file.as_str()), (line!() - 1, file!()));
        let called = "`greenhack::time::timeout` called in async code";
        assert!(message.starts_with(called), "{message}");
        let remedy = "write `tokio::time::timeout(duration, future).await` here";
        assert!(message.contains(remedy), "{message}");
        assert!(!ran.get());
    };
    in_each_place(|place| async move {
        check();
        let run = place.spawn(move || await_sync(async { check() }));
        run.await.unwrap();
        // Elsewhere it is not for want of an `.await`.
        let run = place.spawn(move || {
            on_thread_stack(|| {
                let (message, line, _) = panic_of(|| drop(timeout(DAY, || ())));
                assert_eq!(line, line!() - 1);
                assert!(message.contains("on_thread_stack"), "{message}");
            });
        });
        run.await.unwrap();
    });
}

#[test]
fn a_time_limit_without_a_timer_panics_at_the_callers_line() {
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(run_sync_local(|| {
        let ran = Cell::new(false);
        let (message, line, file) = panic_of(|| assert!(timeout(DAY, || ran.set(true)).is_ok()));
        assert_eq!((line, file.as_str()), (line!() - 1, file!()));
        assert!(message.contains("timers are disabled"), "{message}");
        assert!(!ran.get());
        // The run goes on.
        must_suspend(yield_now);
    }));
}
