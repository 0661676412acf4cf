//! Panics across the two stacks (behaviours 8-12). Whose business they are not is
//! in `one_worker.rs`.
#![cfg(panic = "unwind")]

mod support;

use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use greenhack::{await_in_drop, await_sync, builder, run_sync};
use support::{Log, everywhere, in_each_place, on_drop, panic_of, see_panics, signal, text};
use tokio::task::yield_now;

#[test]
fn a_panic_of_the_awaited_future_resumes_at_the_wait() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            for suspend in [false, true] {
                let caught = catch_unwind(|| {
                    await_sync(async move {
                        if suspend {
                            yield_now().await;
                        }
                        panic_any(7_u8)
                    })
                });
                assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
                assert!(!thread::panicking());
            }
            // Life goes on.
            await_sync(async {
                yield_now().await;
                1
            })
        });
        assert_eq!(run.await.unwrap(), 1);
    });
}

#[test]
fn a_panic_in_the_drop_of_the_awaited_future_resumes_at_the_wait() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let caught = catch_unwind(|| {
                await_sync(async {
                    let _guard = on_drop(|| panic_any(7_u8));
                    yield_now().await;
                })
            });
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
            await_sync(yield_now());
        });
        run.await.unwrap();
    });
}

#[test]
fn a_panic_of_the_plain_code_reaches_who_awaits_the_run() {
    in_each_place(|place| async move {
        for suspend in [false, true] {
            let run = place.spawn(move || {
                if suspend {
                    await_sync(yield_now());
                }
                panic_any(7_u8)
            });
            let error = run.await.unwrap_err();
            assert!(error.is_panic());
            assert_eq!(error.into_panic().downcast_ref(), Some(&7_u8));
        }
    });
}

#[test]
fn the_panic_hook_runs_once() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    const WORDS: &str = "the hook runs once";
    see_panics(|info| {
        if info.payload().downcast_ref() == Some(&WORDS) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        true
    });
    in_each_place(|place| async move {
        // Through an awaited future, the plain code, and the run.
        let run = place.spawn(|| await_sync(async { panic_any(WORDS) }));
        assert!(run.await.unwrap_err().is_panic());
        assert_eq!(PANICS.swap(0, Ordering::Relaxed), 1);
    });
}

#[test]
fn a_panic_before_the_first_suspension_is_caught_in_the_caller_of_poll() {
    support::current_thread().block_on(async {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            futures::FutureExt::now_or_never(run_sync(|| panic_any(7_u8)))
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
    });
}

#[test]
fn a_stack_that_does_not_exist_is_a_panic_of_who_awaits_the_run() {
    in_each_place(|place| async move {
        let run = place.spawn_with(builder().name("huge").stack_size(usize::MAX), || ());
        let payload = run.await.unwrap_err().into_panic();
        let message = support::text(&*payload);
        assert!(message.contains("no stack of"), "{message}");
        assert!(message.contains("`huge`"), "{message}");
        assert!(message.contains("stack_size"), "{message}");
    });
}

#[test]
fn a_run_dropped_by_a_parent_that_unwinds_does_not_see_that_panic() {
    support::current_thread().block_on(async {
        let log = Log::default();
        let (started, wait) = signal();
        let mut run = Box::pin(greenhack::run_sync_local({
            let log = log.clone();
            move || {
                let _guard = on_drop(|| {
                    // It is cancelled, so it unwinds; the parent's panic is
                    // another. Catching its own shows which is counted.
                    log.add(format!("panicking: {}", thread::panicking()));
                });
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    started.give();
                    await_sync(std::future::pending::<()>());
                }));
                log.add(format!("after the catch: {}", thread::panicking()));
                std::panic::resume_unwind(caught.unwrap_err());
            }
        }));
        tokio::select! {
            biased;
            () = &mut run => unreachable!(),
            () = wait.wait() => {}
        }
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _run = run;
            panic_any(7_u8);
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
        assert_eq!(log.take(), ["after the catch: false", "panicking: true"]);
        assert!(!thread::panicking());
    });
}

#[test]
fn a_wait_in_the_destructor_of_a_real_panic_works() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let _guard = on_drop(|| await_sync(yield_now()));
            panic_any(7_u8);
        });
        let error = run.await.unwrap_err();
        assert_eq!(error.into_panic().downcast_ref(), Some(&7_u8));
    });
}

/// What an async context manager is for plain code: `exit` is awaited with the
/// outcome of `body`.
fn with_async_exit<T, E: std::fmt::Display>(
    log: &Log,
    body: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    await_sync(yield_now());
    let outcome = body();
    await_sync(async {
        yield_now().await;
        match &outcome {
            Ok(_) => log.add("exit: ok"),
            Err(error) => log.add(format!("exit: {error}")),
        }
    });
    outcome
}

#[test]
fn an_error_that_passes_an_async_exit_is_seen_there_and_can_be_handled() {
    in_each_place(|place| async move {
        let log = Log::default();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let handled = with_async_exit(&log, || -> Result<(), String> {
                    await_sync(yield_now());
                    Err("no such dish".to_owned())
                });
                log.add(format!("handled: {}", handled.unwrap_err()));
                with_async_exit(&log, || Ok::<_, String>(7)).unwrap()
            }
        });
        assert_eq!(run.await.unwrap(), 7);
        let expected = ["exit: no such dish", "handled: no such dish", "exit: ok"];
        assert_eq!(log.take(), expected);
    });
}

#[test]
fn the_message_of_a_panic_names_the_callers_line() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let (_, line, file) = panic_of(|| await_sync(async { panic!("here") }));
            assert_eq!(line, line!() - 1);
            assert!(file.ends_with("panics.rs"));
        });
        run.await.unwrap();
    });
}

#[test]
fn a_panic_of_what_a_destructor_awaits_in_an_unwind_does_not_abort() {
    /// Awaits in its drop, twice.
    fn bomb(log: &Log) -> impl Drop {
        let log = log.clone();
        on_drop(move || {
            let burnt = await_in_drop(async {
                yield_now().await;
                panic_any("in the drop");
            });
            let next = await_in_drop(async { 1 });
            log.add(format!("{:?} {next:?}", burnt.is_some()));
        })
    }

    let log = Log::default();
    let panics = {
        let log = log.clone();
        move || {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let _bomb = bomb(&log);
                panic_any("first");
            }));
            assert_eq!(text(&*caught.unwrap_err()), "first");
        }
    };
    everywhere(panics);
    assert_eq!(log.take(), ["false Some(1)"; 4]);

    in_each_place(|place| {
        let log = log.clone();
        async move {
            let ((started, wait), (ended, ends)) = (signal(), signal());
            let of_run = log.clone();
            let run = place.spawn(move || {
                let _ended = on_drop(|| ended.give());
                let _bomb = bomb(&of_run);
                started.give();
                await_sync(pending::<()>());
            });
            wait.wait().await;
            run.abort();
            ends.wait().await;
            assert_eq!(log.take(), ["false Some(1)"]);
        }
    });
    // Without an unwind it is a panic as any other.
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(bomb(&log))));
    assert_eq!(text(&*dropped.unwrap_err()), "in the drop");
}
