//! Attacks on closures that borrow from the caller of a scope: places and ends.
//!
//! What must hold: when a call returns or unwinds, none of its closures lives.
//! Where one can't end, the call never returns.
#![cfg(panic = "unwind")]

#[path = "soundness/help.rs"]
mod help;
#[path = "soundness/scoped.rs"]
mod scoped;
mod support;

use std::cell::Cell;
use std::future::{Future, pending};
use std::mem;
use std::panic::{self, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use greenhack::{
    Cancelled, await_in_drop, await_or_cancelled, await_sync, builder, in_context, join,
    leaked_runs, map_concurrent, nested, no_suspend, race, run_sync, run_sync_local, scope, shield,
    workers,
};
use help::{AnyRun, again, in_child, multi_thread, poll_once, settle, succeeds_in_child};
use scoped::{KINDS, Living, a_call, catch, pause, spawn_in_local_set};
use support::{Log, Signal, current_thread, on_drop, panic_of, paused, signal, text};
use tokio::runtime::Handle;
use tokio::task::{
    LocalSet, block_in_place, spawn_blocking, spawn_local, unconstrained, yield_now,
};
use tokio::time::sleep;

// Places.

#[test]
fn async_code_that_looks_like_a_plain_thread_is_refused_and_not_aborted() {
    let name = "async_code_that_looks_like_a_plain_thread_is_refused_and_not_aborted";
    succeeds_in_child(name, || {
        multi_thread().block_on(unconstrained(async {
            let dropped = Cell::new(0);
            let count = || on_drop(|| dropped.set(dropped.get() + 1));
            let (a, b) = (count(), count());
            let (message, ..) = panic_of(|| _ = join(move || drop(a), move || drop(b)));
            assert!(message.starts_with("Cannot start a runtime"), "{message}");
            assert_eq!(dropped.get(), 2);
            let a = count();
            panic_of(|| nested(move || drop(a), async |run| run.await));
            assert_eq!(dropped.get(), 3);
        }));
    });
}

#[test]
fn cleanup_that_waits_ends_where_the_caller_must_not_suspend() {
    current_thread().block_on(run_sync_local(|| {
        let cleanups: [&dyn Fn(); 3] = [&pause, &|| _ = await_in_drop(pending::<()>()), &|| {
            _ = join(pause, pause)
        }];
        for cleanup in cleanups {
            let living = Living::default();
            let endless = || {
                let _one = living.one();
                let _cleanup = on_drop(cleanup);
                await_sync(pending::<()>());
            };
            let calls: [&dyn Fn(); 2] = [&|| _ = join(endless, || ()), &|| {
                nested(endless, async |run| run.await)
            }];
            for call in calls {
                let refused = living.outlived_by(|| no_suspend(call)).unwrap_err();
                assert!(text(&*refused).contains("no_suspend"));
            }
        }
        pause();
    }));
}

/// Tries to leave a closure suspended below a scope of tokio's.
fn misplace() {
    let other = current_thread();
    let handle = other.handle().clone();
    let tasks = thread::spawn(|| {
        let tasks = current_thread();
        tasks.spawn(async {
            let _guard = on_drop(|| _ = await_in_drop(yield_now()));
            pending::<()>().await;
        });
        tasks.block_on(yield_now());
        tasks
    });
    let tasks = tasks.join().unwrap();
    let attempts: [&dyn Fn(); 4] = [
        &|| {
            let _entered = handle.enter();
            pause();
        },
        &|| block_in_place(pause),
        &|| mem::ManuallyDrop::new(current_thread()).block_on(async { pause() }),
        &|| futures::executor::block_on(async { pause() }),
    ];
    let attempt = |f: &dyn Fn()| drop(catch(f));
    join(
        || attempts.iter().for_each(|f| attempt(*f)),
        || attempts.iter().rev().for_each(|f| attempt(*f)),
    );
    nested(
        || attempts.iter().for_each(|f| attempt(*f)),
        async |run| run.await,
    );
    join(move || tasks.shutdown_background(), pause);
    assert_eq!(join(|| 1, || 2), (1, 2));
    other.shutdown_background();
}

#[test]
fn no_closure_stays_suspended_below_a_scope_of_tokio() {
    let name = "no_closure_stays_suspended_below_a_scope_of_tokio";
    succeeds_in_child(name, || {
        let books = |place: &str| {
            eprintln!("{place}");
            current_thread().block_on(yield_now());
            assert!(Handle::try_current().is_err());
        };
        misplace();
        books("a plain thread");
        current_thread().block_on(run_sync_local(misplace));
        books("a current-thread runtime");
        multi_thread().block_on(run_sync_local(misplace));
        books("the future of `block_on`");
        multi_thread().block_on(run_sync(misplace));
        books("a worker");
        let set = LocalSet::new();
        set.block_on(&current_thread(), run_sync_local(misplace));
        set.block_on(&multi_thread(), async {
            spawn_local(run_sync_local(misplace)).await
        })
        .unwrap();
        books("a local set");
        let runtime = multi_thread();
        runtime.block_on(async {
            spawn_blocking(misplace).await.unwrap();
            let task = tokio::spawn(async { block_in_place(misplace) });
            task.await.unwrap();
            block_in_place(misplace);
        });
        books("a blocking thread");
        let _entered = runtime.enter();
        misplace();
    });
}

#[test]
fn a_thread_that_ends_is_refused() {
    struct JoinsInDrop;
    impl Drop for JoinsInDrop {
        fn drop(&mut self) {
            let dropped = Cell::new(false);
            let guard = on_drop(|| dropped.set(true));
            // With a thread local of tokio's, or without.
            let _ = catch(|| join(move || drop(guard), || ()));
            assert!(dropped.get());
        }
    }
    thread_local! {
        static LOCAL: JoinsInDrop = const { JoinsInDrop };
    }
    succeeds_in_child("a_thread_that_ends_is_refused", || {
        for with in 0..4 {
            let thread = thread::spawn(move || {
                LOCAL.with(|_| ());
                match with {
                    0 => {}
                    1 => current_thread().block_on(yield_now()),
                    2 => LocalSet::new().block_on(&current_thread(), yield_now()),
                    _ => _ = join(pause, pause),
                }
            });
            thread.join().unwrap();
        }
    });
}

// Cancellation.

/// Closures that wait, and whose cleanup waits, in calls of every kind.
fn busy(living: &Living) {
    fn leaf(living: &Living, times: usize, cleanup: usize) {
        let _one = living.one();
        let _cleanup = on_drop(|| match cleanup {
            0 => {}
            1 => {
                _ = await_in_drop(async {
                    yield_now().await;
                    yield_now().await;
                })
            }
            2 => pause(),
            3 => {
                _ = join(
                    || {
                        let _one = living.one();
                        pause();
                    },
                    || (),
                )
            }
            _ => nested(
                || {
                    let _one = living.one();
                    pause();
                },
                async |run| run.await,
            ),
        });
        (0..times).for_each(|_| pause());
    }
    // Also when it unwinds.
    let outlived = |f: &dyn Fn()| {
        let before = living.0.get();
        let _check = on_drop(|| assert_eq!(living.0.get(), before));
        f();
    };
    for cleanup in 0..5 {
        let leaf = |times| leaf(living, times, cleanup);
        outlived(&|| _ = join(|| leaf(1), || join(|| leaf(2), || shield(|| leaf(2)))));
        outlived(&|| race([1, 3].map(|times| move || leaf(times))));
        for times in [2, 5] {
            outlived(&|| {
                nested(
                    || leaf(times),
                    async |run| {
                        tokio::select! {
                            () = run => {}
                            () = async { for _ in 0..3 { yield_now().await } } => yield_now().await,
                        }
                    },
                );
            });
        }
        outlived(&|| shield(|| drop(map_concurrent(2, 0..3, |_| leaf(1)))));
        outlived(&|| {
            scope(|s| {
                let one = s.spawn(|| leaf(1));
                s.spawn(|| {
                    s.spawn(|| leaf(2));
                    leaf(1);
                });
                let other = s.spawn(|| leaf(9));
                let _ = one.join();
                other.abort();
            });
        });
    }
}

/// How a run ends early.
#[derive(Clone, Copy, Debug)]
enum Early {
    Dropped,
    DroppedInBlockOn,
    DroppedAfterBlockOn,
    DroppedInUnwind,
    DroppedElsewhere,
    WithRuntime,
    WithLocalSet,
    Forgotten,
}

/// Ends a run after so many `polls`. Returns whether it had ended before.
fn end_early(early: Early, budget: Duration, polls: usize, living: &Living) -> bool {
    let start = || {
        let living = living.clone();
        builder()
            .cleanup_budget(budget)
            .run_sync_local(move || busy(&living))
    };
    /// Polls the run, and gives it back if it has not ended.
    async fn polled<F: Future<Output = ()> + Unpin>(mut run: F, polls: usize) -> Option<F> {
        for _ in 0..polls {
            if poll_once(&mut run).await.is_ready() {
                return None;
            }
            yield_now().await;
        }
        Some(run)
    }
    let runtime = match early {
        Early::DroppedInBlockOn | Early::DroppedAfterBlockOn => multi_thread(),
        _ => current_thread(),
    };
    let ended = match early {
        Early::Dropped => runtime.block_on(polled(start(), polls)).is_none(),
        Early::DroppedInBlockOn => {
            runtime.block_on(async { polled(start(), polls).await.is_none() })
        }
        Early::DroppedAfterBlockOn => runtime.block_on(polled(start(), polls)).is_none(),
        Early::DroppedInUnwind => {
            let ended = Cell::new(false);
            let unwound = catch(|| {
                runtime.block_on(async {
                    let run = polled(start(), polls).await;
                    ended.set(run.is_none());
                    resume_unwind(Box::new(()));
                })
            });
            assert!(unwound.is_err());
            ended.get()
        }
        Early::DroppedElsewhere => {
            // Only a `Run` can go to another thread, and what it has started
            // with must be `Send`.
            let run = builder().cleanup_budget(budget).run_sync(|| {
                let living = Living::default();
                let _check = on_drop(|| assert_eq!(living.0.get(), 0));
                busy(&living);
            });
            let run = runtime.block_on(polled(run, polls));
            let ended = run.is_none();
            thread::spawn(move || drop(run)).join().unwrap();
            ended
        }
        Early::WithRuntime | Early::WithLocalSet => {
            let set = LocalSet::new();
            let task = set.spawn_local(start());
            set.block_on(&runtime, async {
                for _ in 0..polls {
                    yield_now().await;
                }
            });
            if let Early::WithRuntime = early {
                runtime.shutdown_background();
                drop(set);
                return task.is_finished();
            }
            task.is_finished()
        }
        Early::Forgotten => match runtime.block_on(polled(start(), polls)) {
            Some(run) => {
                mem::forget(run);
                let count = living.0.get();
                runtime.block_on(settle());
                assert_eq!(living.0.get(), count, "a forgotten run goes on");
                living.0.set(0);
                false
            }
            None => true,
        },
    };
    runtime.block_on(async {
        for _ in 0..8 {
            settle().await;
        }
    });
    ended
}

#[test]
fn a_run_that_ends_early_ends_with_all_its_closures() {
    succeeds_in_child("a_run_that_ends_early_ends_with_all_its_closures", || {
        for early in [
            Early::Dropped,
            Early::DroppedInBlockOn,
            Early::DroppedAfterBlockOn,
            Early::DroppedInUnwind,
            Early::DroppedElsewhere,
            Early::WithRuntime,
            Early::WithLocalSet,
            Early::Forgotten,
        ] {
            for polls in 0.. {
                let budget = Duration::from_secs(3600 * (polls as u64 % 2));
                let (leaks, living) = (leaked_runs(), Living::default());
                let ended = end_early(early, budget, polls, &living);
                let (leaked, living) = (leaked_runs() - leaks, living.0.get());
                // Without a budget, whose cleanup waits is leaked.
                let is_leaked = leaked == 1 && budget.is_zero();
                let what = format!("{early:?} {polls} {budget:?}: {living} live, {leaked} leaked");
                assert!(is_leaked || (living, leaked) == (0, 0), "{what}");
                if ended {
                    break;
                }
            }
        }
    });
}

/// Cancels a run in `f`, without a budget for its cleanup. Returns what it has logged,
/// and how many runs are leaked.
fn end_without_budget(f: fn(&Log)) -> (Vec<String>, u64) {
    let log = Log::default();
    paused().block_on(async {
        let (caller, before) = (log.clone(), leaked_runs());
        let builder = builder().cleanup_budget(Duration::ZERO);
        let mut run: AnyRun = Box::pin(builder.run_sync_local(move || {
            let _caller = caller.on_drop("caller");
            f(&caller);
            caller.add("after the scope");
        }));
        assert!(poll_once(&mut run).await.is_pending());
        drop(run);
        sleep(Duration::from_secs(1)).await;
        (log.take(), leaked_runs() - before)
    })
}

/// Waits in two closures, which get an error.
fn join_with_errors(log: &Log) {
    let wait = || await_or_cancelled(pending::<()>()).is_err();
    assert_eq!(join(wait, wait), (true, true));
    log.add("joined");
}

#[test]
fn a_scope_in_a_shield_returns_when_the_budget_ends() {
    succeeds_in_child("a_scope_in_a_shield_returns_when_the_budget_ends", || {
        let ended = end_without_budget(|log| shield(|| join_with_errors(log)));
        assert_eq!(ended, (vec!["joined".to_owned(), "caller".to_owned()], 0));
    });
}

#[test]
fn a_scope_in_a_destructor_returns_when_the_budget_ends() {
    succeeds_in_child(
        "a_scope_in_a_destructor_returns_when_the_budget_ends",
        || {
            let ended = end_without_budget(|log| {
                let _guard = on_drop(|| join_with_errors(log));
                await_sync(pending::<()>());
            });
            assert_eq!(ended, (vec!["joined".to_owned(), "caller".to_owned()], 0));
        },
    );
}

#[test]
fn a_scope_without_an_output_leaks_where_nothing_can_be_thrown() {
    let name = "a_scope_without_an_output_leaks_where_nothing_can_be_thrown";
    succeeds_in_child(name, || {
        fn wait() {
            await_sync(pending::<()>());
        }
        fn join_for_ever() {
            join(wait, wait);
        }
        fn nest_for_ever() {
            nested(wait, async |run| run.await);
        }
        let in_shield = [
            end_without_budget(|_| shield(join_for_ever)),
            end_without_budget(|_| shield(nest_for_ever)),
        ];
        let in_drop = [
            end_without_budget(|_| {
                let _guard = on_drop(join_for_ever);
                await_sync(pending::<()>());
            }),
            end_without_budget(|_| {
                let _guard = on_drop(nest_for_ever);
                await_sync(pending::<()>());
            }),
        ];
        for ended in in_shield.into_iter().chain(in_drop) {
            assert_eq!(ended, (Vec::new(), 1));
        }
    });
}

#[test]
fn workers_that_shut_down_end_runs_with_all_their_closures() {
    let name = "workers_that_shut_down_end_runs_with_all_their_closures";
    succeeds_in_child(name, || {
        static ENDED: AtomicUsize = AtomicUsize::new(0);
        fn serve(started: Signal, cleanup: fn()) {
            let _caller = on_drop(|| _ = ENDED.fetch_add(1, SeqCst));
            let living = Living::default();
            let endless = || {
                let _one = living.one();
                let _cleanup = on_drop(cleanup);
                started.give();
                await_sync(pending::<()>());
            };
            let _ = living.outlived_by(|| {
                nested(|| _ = join(endless, pause), async |run| run.await);
            });
        }
        multi_thread().block_on(async {
            let cleanups: [fn(); 3] = [
                pause,
                || _ = await_in_drop(pending::<()>()),
                // It can neither end nor fail.
                || await_sync(pending()),
            ];
            let mut runs = Vec::new();
            for cleanup in cleanups {
                let (started, wait) = signal();
                runs.push(tokio::spawn(run_sync(move || serve(started, cleanup))));
                wait.wait().await;
            }
            workers::shutdown(Duration::from_millis(10)).await;
            for run in runs {
                assert!(run.await.is_err());
            }
            assert_eq!((ENDED.load(SeqCst), leaked_runs()), (2, 1));
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_thread_whose_closure_is_stuck_ends_the_process_whatever_becomes_of_the_message() {
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;

    const ABORTED: Option<i32> = Some(6);
    let name = "a_thread_whose_closure_is_stuck_ends_the_process_whatever_becomes_of_the_message";
    let output = in_child(name, || {
        let stuck = || {
            let _stuck = on_drop(|| no_suspend(|| await_sync(pending::<()>())));
            resume_unwind(Box::new("an ordinary panic"));
        };
        let _ = catch(|| join(stuck, || ()));
    });
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        message.contains("its caller can't return; aborting"),
        "{message}"
    );
    assert_eq!(output.status.signal(), ABORTED);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let silent = again(name).stderr(full).output().unwrap();
    assert_eq!(silent.status.signal(), ABORTED);
}

#[test]
fn what_a_stuck_closure_borrows_stays_for_ever() {
    succeeds_in_child("what_a_stuck_closure_borrows_stays_for_ever", || {
        static READS: AtomicUsize = AtomicUsize::new(0);
        /// Lends `data` to a thread that reads it for ever.
        fn lend_for_ever(data: &[u8], f: impl FnOnce()) {
            thread::scope(|s| {
                s.spawn(|| {
                    while data.iter().all(|byte| *byte == 7) {
                        READS.fetch_add(1, SeqCst);
                        thread::yield_now();
                    }
                    panic!("the data is gone");
                });
                f();
            });
        }
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            hook(info);
            if text(info.payload()) == "the data is gone" {
                std::process::abort();
            }
        }));
        current_thread().block_on(async {
            // Forgotten.
            let mut run = run_sync_local(|| {
                let data = vec![7; 10_000];
                join(|| lend_for_ever(&data, || await_sync(pending())), || ());
            });
            assert!(poll_once(&mut run).await.is_pending());
            mem::forget(run);
            // Leaked, since the closure can neither wait nor unwind.
            let run = run_sync_local(|| {
                let data = vec![7; 10_000];
                let stuck = || {
                    lend_for_ever(&data, || {
                        let _stuck = on_drop(|| no_suspend(|| await_sync(pending::<()>())));
                        resume_unwind(Box::new("an ordinary panic"));
                    });
                };
                nested(|| _ = join(stuck, || ()), async |run| run.await);
            });
            assert!(spawn_in_local_set(run).await.unwrap_err().is_panic());
            assert_eq!(leaked_runs(), 1);
            // Other runs would use their stacks.
            for _ in 0..100 {
                run_sync_local(|| _ = join(|| drop(vec![0_u8; 10_000]), pause)).await;
            }
        });
        let reads = READS.load(SeqCst);
        while READS.load(SeqCst) < reads + 100 {
            thread::yield_now();
        }
    });
}

#[test]
fn a_cancelled_run_is_never_taken_for_one_that_has_ended() {
    current_thread().block_on(async {
        for kind in 0..KINDS {
            let log = Log::default();
            let mut run = run_sync_local({
                let log = log.clone();
                move || {
                    let living = Living::default();
                    let caught = catch(|| a_call(kind, &living));
                    assert!(in_context());
                    let cancelled = caught.is_err_and(|payload| payload.is::<Cancelled>());
                    log.add(format!("{cancelled}"));
                }
            });
            assert!(poll_once(&mut run).await.is_pending());
            let run: AnyRun = Box::pin(run);
            drop(run);
            settle().await;
            assert_eq!(log.take(), ["true"], "{kind}");
        }
    });
}
