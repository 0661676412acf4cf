//! Scopes whose exit awaits (behaviours 12, 16 and 22).
#![cfg(panic = "unwind")]

mod support;

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::thread;
use std::time::Duration;

use greenhack::guard::{Exit, Guard, Teardown, with};
use greenhack::time::timeout;
use greenhack::{
    Cancelled, await_sync, builder, is_cancelled, join, leaked_runs, no_suspend, race,
};
use support::{Fixture, Log, Place, in_each_place, on_drop, panic_of, paused, signal};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::sleep;

/// Logs how its scope ends, after a few waits.
#[derive(Debug)]
struct Resource {
    log: Log2,
    name: &'static str,
}

/// A log that can be shown.
#[derive(Clone)]
struct Log2(Log);

impl Debug for Log2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a log")
    }
}

fn resource(log: &Log, name: &'static str) -> Resource {
    Resource {
        log: Log2(log.clone()),
        name,
    }
}

impl Resource {
    fn add(&self, what: impl Debug) {
        self.log.0.add(format!("{}: {what:?}", self.name));
    }
}

impl<E: Debug> Teardown<E> for Resource {
    async fn teardown(self, exit: Exit<'_, E>) -> Result<(), E> {
        self.add("begins");
        for _ in 0..3 {
            yield_now().await;
        }
        self.add(exit);
        Ok(())
    }
}

/// What an async setup makes.
fn set_up(log: &Log, name: &'static str) -> Resource {
    await_sync(async {
        yield_now().await;
        log.add(format!("{name}: set up"));
        resource(log, name)
    })
}

#[test]
fn the_teardown_sees_that_the_body_has_returned() {
    in_each_place(|place| async move {
        let log = Log::default();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let output = with(set_up(&log, "r"), |resource| {
                    await_sync(yield_now());
                    resource.add("body");
                    Ok::<_, String>(7)
                });
                log.add("after");
                output
            }
        });
        assert_eq!(run.await.unwrap(), Ok(7));
        let expected = [
            "r: set up",
            "r: \"body\"",
            "r: \"begins\"",
            "r: Returned",
            "after",
        ];
        assert_eq!(log.take(), expected);
    });
}

#[test]
fn the_teardown_sees_the_very_error_and_the_caller_can_handle_it() {
    in_each_place(|place| async move {
        let log = Log::default();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let failed: Result<(), String> = with(set_up(&log, "r"), |_| {
                    await_sync(yield_now());
                    Err("no such dish")?;
                    Ok(())
                });
                log.add(format!("handled: {}", failed.unwrap_err()));
            }
        });
        run.await.unwrap();
        let expected = [
            "r: set up",
            "r: \"begins\"",
            "r: Failed(\"no such dish\")",
            "handled: no such dish",
        ];
        assert_eq!(log.take(), expected);
    });
}

#[test]
fn the_teardown_sees_a_panic_which_goes_on_with_its_payload() {
    in_each_place(|place| async move {
        let log = Log::default();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _outer = log.on_drop("outer");
                with(set_up(&log, "r"), |_| -> Result<(), String> {
                    let _inner = log.on_drop("inner");
                    panic_any(7_u8)
                })
            }
        });
        let error = run.await.unwrap_err();
        assert_eq!(error.into_panic().downcast_ref(), Some(&7_u8));
        let expected = [
            "r: set up",
            "inner",
            "r: \"begins\"",
            "r: Panicked",
            "outer",
        ];
        assert_eq!(log.take(), expected);
    });
}

#[test]
fn the_teardown_sees_a_cancellation_and_runs_to_its_end() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _outer = log.on_drop("outer");
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    with(set_up(&log, "first"), |_| {
                        with(set_up(&log, "second"), |_| -> Result<(), String> {
                            started.give();
                            await_sync(pending::<()>());
                            unreachable!()
                        })
                    })
                }));
                // The payload is what it was.
                let payload = caught.unwrap_err();
                assert!(payload.is::<Cancelled>());
                log.add("caught");
                std::panic::resume_unwind(payload);
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        let expected = [
            "first: set up",
            "second: set up",
            "second: \"begins\"",
            "second: Cancelled",
            "first: \"begins\"",
            "first: Cancelled",
            "caught",
            "outer",
        ];
        assert_eq!(log.take(), expected);
    });
}

#[test]
fn a_scope_in_a_closure_that_is_cancelled_is_torn_down_before_the_call_returns() {
    for form in ["timeout", "race", "a panic of a sibling"] {
        in_each_place(|place| async move {
            let log = Log::default();
            let run = place.spawn({
                let log = log.clone();
                move || {
                    let (with_it, guarded) = (set_up(&log, "with"), guarded(&log, "guard"));
                    let (started, wait) = oneshot::channel();
                    let scopes = || {
                        let _guard = guarded;
                        let _: Result<(), String> = with(with_it, |_| {
                            started.send(()).unwrap();
                            await_sync(pending::<()>());
                            unreachable!();
                        });
                        unreachable!();
                    };
                    match form {
                        "timeout" => assert!(timeout(Duration::from_millis(1), scopes).is_err()),
                        "race" => {
                            let winner = || await_sync(wait).unwrap();
                            let closures: [Box<dyn FnOnce()>; 2] =
                                [Box::new(scopes), Box::new(winner)];
                            race(closures);
                        }
                        _ => {
                            let caught = catch_unwind(AssertUnwindSafe(|| {
                                join(scopes, || {
                                    await_sync(wait).unwrap();
                                    panic_any(7_u8);
                                })
                            }));
                            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
                        }
                    }
                    log.add("after");
                    // The run itself is not cancelled.
                    assert!(!is_cancelled());
                    await_sync(yield_now());
                }
            });
            run.await.unwrap();
            let expected = [
                "with: set up",
                "with: \"begins\"",
                "with: Cancelled",
                "guard: \"begins\"",
                "guard: Cancelled",
                "after",
            ];
            assert_eq!(log.take(), expected, "{form}");
        });
    }
}

#[test]
fn a_cancelled_setup_has_no_teardown() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let setup = async {
                    let _half_done = log.on_drop("the setup is dropped");
                    started.give();
                    pending::<()>().await;
                    resource(&log, "r")
                };
                with(await_sync(setup), |_| -> Result<(), String> {
                    log.add("body");
                    Ok(())
                })
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["the setup is dropped"]);
    });
}

/// Tells that its teardown has begun, and waits for leave to end it.
struct Slow {
    log: Log,
    begun: support::Signal,
    leave: oneshot::Receiver<()>,
}

impl Teardown<String> for Slow {
    async fn teardown(self, exit: Exit<'_, String>) -> Result<(), String> {
        self.begun.give();
        self.leave.await.unwrap();
        self.log.add(format!("{exit:?}"));
        Ok(())
    }
}

#[test]
fn a_teardown_that_is_cancelled_goes_on_to_its_end() {
    for form in ["with", "end", "drop"] {
        in_each_place(|place| async move {
            let log = Log::default();
            let (begun, wait) = signal();
            let (ended, end) = signal();
            let (leave, allowed) = oneshot::channel();
            let run = place.spawn({
                let log = log.clone();
                move || {
                    let _ended = ended;
                    let slow = Slow {
                        log: log.clone(),
                        begun,
                        leave: allowed,
                    };
                    match form {
                        "with" => with(slow, |_| Ok(())).unwrap(),
                        "end" => Guard::end(Guard::new(slow)).unwrap(),
                        _ => drop(Guard::new(slow)),
                    }
                    log.add("after");
                    await_sync(yield_now());
                    log.add("unreachable");
                }
            });
            wait.wait().await;
            run.abort();
            assert!(run.await.unwrap_err().is_cancelled());
            leave.send(()).unwrap();
            end.wait().await;
            let exit = if form == "drop" {
                "Dropped"
            } else {
                "Returned"
            };
            assert_eq!(log.take(), [exit, "after"]);
        });
    }
}

/// Never ends its teardown.
struct Endless(Log);

impl Teardown for Endless {
    async fn teardown(self, _: Exit<'_>) -> Result<(), Infallible> {
        let _guard = self.0.on_drop("teardown dropped");
        pending().await
    }
}

#[test]
fn when_the_budget_ends_a_teardown_is_dropped_and_the_rest_still_runs() {
    let leaked = leaked_runs();
    for cancelled_in in ["body", "teardown", "drop", "shield"] {
        let runtime = paused();
        runtime.block_on(async {
            let log = Log::default();
            let (ended, end) = signal();
            let run = builder().cleanup_budget(Duration::from_secs(3)).run_sync({
                let log = log.clone();
                move || {
                    let _ended = ended;
                    let _outer = log.on_drop("outer");
                    let endless = Endless(log.clone());
                    match cancelled_in {
                        "body" => {
                            let _guard = Guard::new(endless);
                            await_sync(pending::<()>());
                        }
                        "teardown" => {
                            let _: Result<(), Infallible> = with(endless, |_| Ok(()));
                            log.add("unreachable");
                        }
                        "drop" => {
                            drop(Guard::new(endless));
                            await_sync(yield_now());
                            log.add("unreachable");
                        }
                        _ => greenhack::shield(|| {
                            drop(Guard::new(endless));
                            log.add("the shield ends");
                        }),
                    }
                }
            });
            let run = tokio::spawn(run);
            yield_now().await;
            let start = tokio::time::Instant::now();
            run.abort();
            end.wait().await;
            assert_eq!(start.elapsed().as_secs(), 3);
            let mut expected = vec!["teardown dropped", "outer"];
            if cancelled_in == "shield" {
                expected.insert(1, "the shield ends");
            }
            assert_eq!(log.take(), expected);
        });
    }
    assert_eq!(leaked_runs(), leaked);
}

#[test]
fn when_the_budget_has_ended_a_teardown_does_not_begin() {
    let leaked = leaked_runs();
    let runtime = paused();
    runtime.block_on(async {
        let log = Log::default();
        let (ended, end) = signal();
        let run = tokio::spawn(greenhack::run_sync({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _last = log.on_drop("last");
                let _second = guarded(&log, "second");
                let _first = Guard::new(Endless(log.clone()));
                await_sync(pending::<()>());
            }
        }));
        yield_now().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["teardown dropped", "last"]);
    });
    assert_eq!(leaked_runs(), leaked);
}

#[test]
fn a_guard_in_a_thread_local_of_a_thread_that_ends_gives_up() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<Guard<Resource, String>>> =
            const { std::cell::RefCell::new(None) };
    }
    let log = Log::default();
    thread::spawn({
        let log = log.clone();
        move || {
            // The guard is destroyed last.
            KEPT.set(Some(guarded(&log, "kept")));
            drop(guarded(&log, "dropped"));
        }
    })
    .join()
    .unwrap();
    let mut events = log.take();
    events.retain(|event| !event.ends_with("\"begins\""));
    assert_eq!(events, ["dropped: Dropped"]);
}

#[test]
fn a_teardown_takes_its_time_within_the_budget() {
    struct Patient(Log);
    impl Teardown for Patient {
        async fn teardown(self, exit: Exit<'_>) -> Result<(), Infallible> {
            for _ in 0..4 {
                sleep(Duration::from_secs(2)).await;
            }
            self.0.add(format!("{exit:?}"));
            Ok(())
        }
    }
    let runtime = paused();
    runtime.block_on(async {
        let log = Log::default();
        let logged = log.clone();
        let run = greenhack::run_sync(move || {
            let patient = Patient(logged.clone());
            with(patient, |_| {
                await_sync(pending::<()>());
                Ok::<_, Infallible>(())
            })
        });
        assert!(
            tokio::time::timeout(Duration::from_secs(1), run)
                .await
                .is_err()
        );
        assert!(log.take().is_empty());
        sleep(Duration::from_secs(9)).await;
        assert_eq!(log.take(), ["Cancelled"]);
    });
}

/// Fails in its teardown, or panics.
struct Failing(bool);

impl Teardown<&'static str> for Failing {
    async fn teardown(self, _: Exit<'_, &'static str>) -> Result<(), &'static str> {
        yield_now().await;
        if self.0 {
            panic_any("of the teardown");
        }
        Err("of the teardown")
    }
}

#[test]
fn an_error_of_the_teardown_is_an_error_of_a_scope_that_has_succeeded() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            assert_eq!(with(Failing(false), |_| Ok(1)), Err("of the teardown"));
            let both: Result<(), _> = with(Failing(false), |_| Err("of the body"));
            assert_eq!(both, Err("of the body"));
            let guard = Guard::new(Failing(false));
            assert_eq!(Guard::end(guard), Err("of the teardown"));
            // Nobody sees it.
            drop(Guard::new(Failing(false)));
        });
        run.await.unwrap();
    });
}

#[test]
fn a_panic_of_the_teardown_never_hides_another_and_never_aborts() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let of = |f: &dyn Fn() -> Result<(), &'static str>| {
                let payload = catch_unwind(AssertUnwindSafe(f)).unwrap_err();
                assert!(!thread::panicking());
                *payload.downcast_ref::<&str>().unwrap()
            };
            let teardown = "of the teardown";
            assert_eq!(of(&|| with(Failing(true), |_| Ok(()))), teardown);
            assert_eq!(of(&|| with(Failing(true), |_| Err("e"))), teardown);
            assert_eq!(of(&|| Guard::end(Guard::new(Failing(true)))), teardown);
            let dropped = || {
                drop(Guard::new(Failing(true)));
                Ok(())
            };
            assert_eq!(of(&dropped), teardown);

            let body = || -> Result<(), &str> { panic_any("of the body") };
            assert_eq!(of(&|| with(Failing(true), |_| body())), "of the body");
            let guarded = || {
                let _guard = Guard::new(Failing(true));
                body()
            };
            assert_eq!(of(&guarded), "of the body");
        });
        run.await.unwrap();

        // Nor in a cancelled run.
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _outer = log.on_drop("outer");
                let _guard = Guard::new(Failing(true));
                with(Failing(true), |_| {
                    started.give();
                    await_sync(pending::<()>());
                    Ok(())
                })
            }
        });
        wait.wait().await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        end.wait().await;
        assert_eq!(log.take(), ["outer"]);
    });
}

#[test]
fn a_second_panic_whose_payload_panics_when_dropped_does_not_abort() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(Bomb)
        }
    }
    struct Explosive;
    impl Teardown for Explosive {
        async fn teardown(self, _: Exit<'_>) -> Result<(), Infallible> {
            panic_any(Bomb)
        }
    }
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let _guard = Guard::new(Explosive);
            panic_any(7_u8);
        });
        let error = run.await.unwrap_err();
        assert_eq!(error.into_panic().downcast_ref(), Some(&7_u8));
    });
}

fn guarded(log: &Log, name: &'static str) -> Guard<Resource, String> {
    Guard::new(resource(log, name))
}

#[test]
fn a_guard_is_torn_down_on_every_way_out_of_its_scope() {
    in_each_place(|place| async move {
        let log = Log::default();
        let run = place.spawn({
            let log = log.clone();
            move || {
                {
                    let guard = guarded(&log, "scope");
                    guard.add("derefs");
                }
                let early = |stop: bool| {
                    let _guard = guarded(&log, "return");
                    if stop {
                        return;
                    }
                    log.add("unreachable");
                };
                early(true);
                let question = || -> Result<(), String> {
                    let _guard = guarded(&log, "?");
                    Err("no")?;
                    Ok(())
                };
                assert!(question().is_err());
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    let _guard = guarded(&log, "panic");
                    panic_any(7_u8);
                }));
                assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
                assert_eq!(Guard::end(guarded(&log, "end")), Ok(()));
                let resource = Guard::into_inner(guarded(&log, "into_inner"));
                assert_eq!(resource.name, "into_inner");
                let mut moved = Some(guarded(&log, "moved"));
                if let Some(guard) = &mut moved {
                    guard.name = "elsewhere";
                }
                drop(moved);
            }
        });
        run.await.unwrap();
        let mut events = log.take();
        events.retain(|event| !event.ends_with("\"begins\""));
        let expected = [
            "scope: \"derefs\"",
            "scope: Dropped",
            "return: Dropped",
            "?: Dropped",
            "panic: Panicked",
            "end: Returned",
            "elsewhere: Dropped",
        ];
        assert_eq!(events, expected);
    });
}

#[test]
fn guards_of_a_cancelled_run_are_torn_down_in_order_and_see_it() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _first = guarded(&log, "first");
                let _between = log.on_drop("between");
                let _second = guarded(&log, "second");
                let _in_a_destructor = on_drop(|| {
                    assert!(is_cancelled());
                    // Its own scope ends in order, within the unwind.
                    drop(guarded(&log, "inner"));
                    let _: Result<(), String> = with(set_up(&log, "with"), |_| Ok(()));
                });
                started.give();
                await_sync(pending::<()>());
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        let mut events = log.take();
        events.retain(|event| !event.ends_with("\"begins\""));
        let expected = [
            "inner: Dropped",
            "with: set up",
            "with: Returned",
            "second: Cancelled",
            "between",
            "first: Cancelled",
        ];
        assert_eq!(events, expected);
    });
}

#[test]
fn a_panic_in_a_destructor_of_a_cancelled_run_is_told_from_the_cancellation_by_with() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _guard = on_drop(|| {
                    let caught = catch_unwind(AssertUnwindSafe(|| {
                        with(set_up(&log, "r"), |_| -> Result<(), String> {
                            panic_any(7_u8)
                        })
                    }));
                    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
                });
                started.give();
                await_sync(pending::<()>());
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["r: set up", "r: \"begins\"", "r: Panicked"]);
    });
}

#[test]
fn a_panic_under_a_guard_made_in_an_unwind_looks_like_a_drop() {
    in_each_place(|place| async move {
        let log = Log::default();
        let panics_in_a_destructor = {
            let log = log.clone();
            move || {
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    let _guard = guarded(&log, "made there");
                    panic_any(7_u8);
                }));
                assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
            }
        };
        // The unwind of a panic.
        let run = place.spawn({
            let destructor = panics_in_a_destructor.clone();
            move || {
                let _guard = on_drop(destructor);
                panic_any(8_u8);
            }
        });
        let payload = run.await.unwrap_err().into_panic();
        assert_eq!(payload.downcast_ref(), Some(&8_u8));
        let expected = ["made there: \"begins\"", "made there: Dropped"];
        assert_eq!(log.take(), expected);
        // That of a cancellation.
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn(move || {
            let _ended = ended;
            let _guard = on_drop(panics_in_a_destructor);
            started.give();
            await_sync(pending::<()>());
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), expected);
    });
}

#[test]
fn a_panic_after_a_swallowed_cancellation_looks_like_the_cancellation_to_a_guard() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                started.give();
                assert!(catch_unwind(|| await_sync(pending::<()>())).is_err());
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    let _guard = guarded(&log, "guard");
                    let _: Result<(), String> = with(resource(&log, "with"), |_| panic_any(7_u8));
                }));
                assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        let mut events = log.take();
        events.retain(|event| !event.ends_with("\"begins\""));
        assert_eq!(events, ["with: Panicked", "guard: Cancelled"]);
    });
}

#[test]
fn a_body_that_swallows_its_cancellation_has_returned() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let output = with(set_up(&log, "r"), |_| {
                    started.give();
                    let caught = catch_unwind(|| await_sync(pending::<()>()));
                    assert!(caught.unwrap_err().is::<Cancelled>());
                    Ok::<_, String>(1)
                });
                log.add(format!("{output:?}"));
                await_sync(yield_now());
                log.add("unreachable");
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        let expected = ["r: set up", "r: \"begins\"", "r: Returned", "Ok(1)"];
        assert_eq!(log.take(), expected);
    });
}

#[test]
fn on_a_plain_thread_the_teardown_blocks() {
    let log = Log::default();
    drop(guarded(&log, "guard"));
    with(set_up(&log, "with"), |_| Ok::<_, String>(())).unwrap();
    let caught = thread::spawn({
        let log = log.clone();
        move || {
            let _guard = guarded(&log, "panic");
            panic_any(7_u8);
        }
    })
    .join();
    assert!(caught.is_err());
    let mut events = log.take();
    events.retain(|event| !event.ends_with("\"begins\""));
    let expected = [
        "guard: Dropped",
        "with: set up",
        "with: Returned",
        "panic: Panicked",
    ];
    assert_eq!(events, expected);
}

#[test]
fn in_async_code_with_panics_before_its_body_is_called() {
    in_each_place(|place| async move {
        let log = Log::default();
        let check = |log: &Log| {
            let resource = resource(log, "r");
            let body = |_: &mut _| {
                log.add("body");
                Ok::<_, String>(())
            };
            let (message, line, file) = panic_of(|| drop(with(resource, body)));
            assert_eq!((line, file.as_str()), (line!() - 1, file!()));
            let called = "`greenhack::guard::with` called in async code, which must not block; ";
            assert!(message.starts_with(called), "{message}");
            assert!(log.take().is_empty());
        };
        check(&log);
        let run = place.spawn(move || await_sync(async { check(&log) }));
        run.await.unwrap();
    });
}

#[test]
fn a_guard_dropped_in_async_code_does_without_its_teardown() {
    in_each_place(|place| async move {
        let log = Log::default();
        drop(guarded(&log, "task"));
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _guard = guarded(&log, "panic");
            panic_any(7_u8);
        }));
        assert!(caught.is_err());
        let made = place.spawn({
            let log = log.clone();
            move || guarded(&log, "made in a run")
        });
        drop(made.await.unwrap());
        assert!(log.take().is_empty());
    });
}

#[test]
fn end_in_async_code_panics_at_the_callers_line() {
    in_each_place(|_| async {
        let log = Log::default();
        let guard = guarded(&log, "r");
        let (message, line, file) = panic_of(|| drop(Guard::end(guard)));
        assert_eq!((line, file.as_str()), (line!() - 1, file!()));
        assert!(message.contains("async code"), "{message}");
        assert!(log.take().is_empty());
    });
}

#[test]
fn a_teardown_that_may_not_suspend_panics_at_the_callers_line() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let log = Log::default();
            let guard = guarded(&log, "end");
            let (message, line, file) = panic_of(|| no_suspend(|| drop(Guard::end(guard))));
            assert_eq!((line, file.as_str()), (line!() - 1, file!()));
            assert!(message.contains("could not suspend"), "{message}");
            let (_, line, _) = panic_of(|| {
                no_suspend(|| drop(with(resource(&log, "with"), |_| Ok::<_, String>(()))));
            });
            assert_eq!(line, line!() - 2);
        });
        run.await.unwrap();
    });
}

#[test]
fn a_closing_runtime_tears_down_what_is_ready_at_once() {
    struct Ready(Log);
    impl Teardown for Ready {
        async fn teardown(self, exit: Exit<'_>) -> Result<(), Infallible> {
            self.0.add(format!("{exit:?}"));
            Ok(())
        }
    }
    let leaked = leaked_runs();
    for place in [Place::InPlace, Place::Local] {
        let fixture = Fixture::new(place);
        let log = Log::default();
        fixture.block_on(async {
            let log = log.clone();
            place.spawn(move || {
                let _guard = Guard::new(Ready(log));
                await_sync(pending::<()>());
            });
            yield_now().await;
        });
        drop(fixture);
        assert_eq!(log.take(), ["Cancelled"]);
    }
    assert_eq!(leaked_runs(), leaked);
}

#[test]
fn many_scopes_are_cancelled_at_once() {
    in_each_place(|place| async move {
        let log = Log::default();
        let mut ends = Vec::new();
        let mut runs = Vec::new();
        for _ in 0..100 {
            let (started, wait) = signal();
            let (ended, end) = signal();
            let log = log.clone();
            runs.push(place.spawn(move || {
                let _ended = ended;
                with(set_up(&log, "r"), |_| -> Result<(), String> {
                    started.give();
                    await_sync(pending::<()>());
                    Ok(())
                })
            }));
            ends.push(end);
            wait.wait().await;
        }
        runs.iter().for_each(tokio::task::JoinHandle::abort);
        for end in ends {
            end.wait().await;
        }
        let events = log.take();
        let count = |what: &str| events.iter().filter(|event| event.ends_with(what)).count();
        assert_eq!((count("set up"), count("Cancelled")), (100, 100));
        assert_eq!(events.len(), 300);
    });
}

#[test]
fn is_cancelled_is_callable_anywhere_and_a_runs_own() {
    assert!(!is_cancelled());
    in_each_place(|place| async move {
        assert!(!is_cancelled());
        let (started, wait) = signal();
        let (ended, end) = signal();
        let log = Log::default();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                assert!(!is_cancelled());
                let _guard = on_drop(|| {
                    let nested = greenhack::run_sync_local(|| (is_cancelled(), 1));
                    let polled = async { is_cancelled() };
                    let seen = (is_cancelled(), await_sync(nested), await_sync(polled));
                    log.add(format!("{seen:?}"));
                });
                started.give();
                await_sync(pending::<()>());
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["(true, (false, 1), false)"]);
    });
}
