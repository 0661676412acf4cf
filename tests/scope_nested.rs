//! Plain code inside of a future inside of plain code (behaviours 4 and 25).
#![cfg(panic = "unwind")]

mod support;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use greenhack::{Cancelled, await_sync, in_context, join, join_all, leaked_runs, nested};
use support::{Log, everywhere, in_each_place, on_drop, panic_of, signal, text};
use tokio::task::yield_now;
use tokio::time::{self, timeout};

tokio::task_local! {
    static DEPTH: u32;
    static GUEST: RefCell<String>;
}

fn pause() {
    await_sync(yield_now());
}

#[test]
fn a_future_surrounds_plain_code_that_borrows() {
    everywhere(|| {
        let dish = String::from("soup");
        let mut served = 0;
        let order = nested(
            || {
                pause();
                served += 1;
                GUEST.with(|guest| guest.borrow_mut().push('!'));
                pause();
                assert!(in_context());
                GUEST.with(|guest| format!("{dish} for {}", guest.borrow()))
            },
            async |run| GUEST.scope(RefCell::new("Ada".into()), run).await,
        );
        assert_eq!((order.as_str(), served), ("soup for Ada!", 1));
        assert!(GUEST.try_with(|_| ()).is_err());
        pause();
    });
}

#[test]
fn the_wrapper_may_return_something_else_and_wait_before_and_after() {
    everywhere(|| {
        let log = Log::default();
        let length = nested(
            || {
                pause();
                log.add("run");
                "four"
            },
            async |run| {
                yield_now().await;
                log.add("before");
                let output = run.await;
                yield_now().await;
                log.add("after");
                output.len()
            },
        );
        assert_eq!(length, 4);
        assert_eq!(log.take(), ["before", "run", "after"]);
    });
}

#[test]
fn it_alternates_to_any_depth() {
    fn dive(depth: u32) -> u32 {
        pause();
        if depth == 20 {
            return DEPTH.get();
        }
        let below = nested(
            || dive(depth + 1),
            async |run| DEPTH.scope(depth, run).await,
        );
        if depth > 0 {
            assert_eq!(DEPTH.get(), depth - 1, "the outer value is back");
        }
        below
    }
    everywhere(|| assert_eq!(dive(0), 19));
}

#[test]
fn task_locals_of_joined_closures_do_not_mix() {
    everywhere(|| {
        let outputs = join_all((0..50).map(|number| {
            move || {
                nested(
                    move || {
                        for _ in 0..3 {
                            pause();
                            assert_eq!(DEPTH.get(), number);
                            await_sync(async {
                                yield_now().await;
                                assert_eq!(DEPTH.get(), number);
                            });
                        }
                        DEPTH.get()
                    },
                    async |run| DEPTH.scope(number, run).await,
                )
            }
        }));
        assert_eq!(outputs, (0..50).collect::<Vec<_>>());
    });
}

#[test]
fn a_timeout_cancels_the_plain_code_and_waits_for_its_cleanup() {
    support::current_thread().block_on(async {
        time::pause();
        let log = Log::default();
        let run = greenhack::run_sync({
            let log = log.clone();
            move || {
                let borrowed = Cell::new(0);
                let limit = Duration::from_secs(1);
                let late = nested(
                    || {
                        let _guard = on_drop(|| {
                            await_sync(time::sleep(Duration::from_secs(5)));
                            borrowed.set(1);
                            log.add("cleaned up");
                        });
                        await_sync(pending::<()>());
                    },
                    async |run| timeout(limit, run).await,
                );
                assert!(late.is_err());
                assert_eq!(borrowed.get(), 1);
                let in_time = nested(|| 7, async |run| timeout(limit, run).await);
                assert_eq!(in_time, Ok(7));
            }
        });
        run.await;
        assert_eq!(log.take(), ["cleaned up"]);
    });
}

#[test]
fn a_run_that_is_dropped_unpolled_never_starts() {
    everywhere(|| {
        let captured = Log::default();
        let guard = captured.on_drop("captured");
        let output = nested(
            move || {
                let _guard = guard;
                unreachable!()
            },
            async |run: greenhack::Nested<'_, ()>| {
                drop(run);
                captured.add("dropped");
                3
            },
        );
        assert_eq!(output, 3);
        assert_eq!(captured.take(), ["captured", "dropped"]);
    });
}

#[test]
fn a_run_that_is_forgotten_is_cancelled_all_the_same() {
    everywhere(|| {
        let leaks = leaked_runs();
        let log = Log::default();
        let (started, wait) = signal();
        nested(
            || {
                let _guard = on_drop(|| {
                    pause();
                    log.add("cleaned up");
                });
                started.give();
                await_sync(pending::<()>());
            },
            async |run| {
                let mut run = Box::pin(run);
                tokio::select! {
                    biased;
                    () = &mut run => unreachable!(),
                    () = wait.wait() => {}
                }
                std::mem::forget(run);
            },
        );
        assert_eq!(log.take(), ["cleaned up"]);
        assert_eq!(leaked_runs(), leaks);
    });
}

#[test]
fn a_panic_of_the_plain_code_drops_the_wrapper_and_resumes() {
    everywhere(|| {
        let log = Log::default();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            nested(
                || {
                    pause();
                    resume_unwind(Box::new("burnt"));
                },
                async |run| {
                    let _guard = log.on_drop("wrapper");
                    let () = run.await;
                    log.add("unreachable");
                },
            )
        }));
        assert_eq!(text(&*caught.unwrap_err()), "burnt");
        assert_eq!(log.take(), ["wrapper"]);
    });
}

#[test]
fn a_panic_of_the_wrapper_cancels_the_plain_code_and_resumes() {
    everywhere(|| {
        let log = Log::default();
        let (started, wait) = signal();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            nested(
                || {
                    let _guard = log.on_drop("plain code");
                    started.give();
                    await_sync(pending::<()>());
                },
                async |run| {
                    tokio::join!(run, async {
                        wait.wait().await;
                        resume_unwind(Box::new("wrapper"));
                    });
                },
            )
        }));
        assert_eq!(text(&*caught.unwrap_err()), "wrapper");
        assert_eq!(log.take(), ["plain code"]);
        pause();
    });
}

#[test]
fn a_cancelled_run_unwinds_from_the_inside() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let task = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _caller = log.on_drop("caller");
                nested(
                    || {
                        let _guard = on_drop(|| {
                            log.add(format!("plain code at {}", DEPTH.get()));
                            pause();
                            log.add("has ended");
                        });
                        started.give();
                        await_sync(pending::<()>());
                    },
                    async |run| {
                        let _guard = log.on_drop("wrapper");
                        DEPTH.scope(1, run).await;
                    },
                );
            }
        });
        wait.wait().await;
        task.abort();
        end.wait().await;
        assert_eq!(
            log.take(),
            ["plain code at 1", "wrapper", "has ended", "caller"]
        );
    });
}

#[test]
fn async_code_is_refused_at_the_line_of_the_call() {
    support::current_thread().block_on(async {
        let (message, line, file) = panic_of(|| {
            nested(|| (), async |run| run.await);
        });
        assert!(
            message.starts_with("`nested` called in async code"),
            "{message}"
        );
        assert_eq!((line, file.as_str()), (line!() - 6, file!()));
    });
}

#[test]
fn a_cancellation_that_comes_from_inside_is_passed_on() {
    support::current_thread().block_on(async {
        let run = tokio::spawn(greenhack::run_sync(|| {
            let caught = catch_unwind(|| {
                join(
                    || resume_unwind(catch_unwind(cancelled).unwrap_err()),
                    || (),
                )
            });
            assert!(caught.unwrap_err().is::<Cancelled>());
            7
        }));
        assert_eq!(run.await.unwrap(), 7);
    });

    /// Ends as what awaits a cancelled run does.
    fn cancelled() {
        greenhack::scope(|s| {
            let endless = s.spawn(|| await_sync(pending::<()>()));
            endless.abort();
            resume_unwind(endless.join().unwrap_err());
        });
    }
}
