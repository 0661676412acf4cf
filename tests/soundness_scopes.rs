//! Attacks with scopes of tokio's, and of others, on a coroutine's stack.
#![cfg(panic = "unwind")]

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::cell::RefCell;
use std::future::{pending, poll_fn};
use std::panic::{self, AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use greenhack::{await_sync, leaked_runs, no_suspend, run_sync_local, shield};
use help::{AnyRun, Resource, multi_thread, poll_once, settle, succeeds_in_child};
use support::{current_thread, on_drop, text};
use tokio::runtime::Handle;
use tokio::task::{LocalSet, block_in_place, yield_now};

#[test]
fn cancelled_code_does_not_suspend_in_the_shutdown_of_an_inner_runtime() {
    let name = "cancelled_code_does_not_suspend_in_the_shutdown_of_an_inner_runtime";
    succeeds_in_child(name, || {
        let inner = current_thread();
        inner.spawn(async {
            let _resource = Resource;
            pending::<()>().await;
        });
        inner.block_on(yield_now());
        let runtime = current_thread();
        runtime.block_on(async {
            let before = Handle::current().id();
            let mut run = run_sync_local(move || {
                let _inner = inner;
                await_sync(pending::<()>());
            });
            assert!(poll_once(&mut run).await.is_pending());
            drop(run);
            // Were it suspended in there, tokio would go on to use what is on
            // its stack, and find dangling pointers once it is resumed.
            assert_eq!(Handle::current().id(), before);
        });
    });
}

#[test]
fn cancelled_code_does_not_suspend_in_no_suspend() {
    static REFUSED: AtomicBool = AtomicBool::new(false);
    current_thread().block_on(async {
        let mut run = run_sync_local(|| {
            let _ = catch_unwind(|| await_sync(pending::<()>()));
            shield(|| {
                let waited = catch_unwind(|| no_suspend(|| await_sync(yield_now())));
                REFUSED.store(waited.is_err(), SeqCst);
            });
        });
        assert!(poll_once(&mut run).await.is_pending());
        drop(run);
        // Without the help of a reaper, for it is never suspended again.
        assert!(REFUSED.load(SeqCst));
    });
}

/// A waker that awaits when it is woken on a coroutine's stack.
struct AwaitsInWake;

impl Wake for AwaitsInWake {
    fn wake(self: Arc<Self>) {
        if greenhack::in_context() {
            await_sync(yield_now());
        }
    }
}

#[test]
fn a_waker_does_not_suspend_in_the_shutdown_of_an_inner_runtime() {
    let name = "a_waker_does_not_suspend_in_the_shutdown_of_an_inner_runtime";
    succeeds_in_child(name, || {
        let runtime = current_thread();
        let mut run: AnyRun = Box::pin(run_sync_local(|| {
            let inner = current_thread();
            let mut task = inner.spawn(pending::<()>());
            let waker = Waker::from(Arc::new(AwaitsInWake));
            let poll = Future::poll(Pin::new(&mut task), &mut Context::from_waker(&waker));
            assert!(poll.is_pending());
            // Wakes who joins the task, with the inner scheduler current, but
            // not the task: the worker and the task are the same as before.
            inner.shutdown_background();
        }));
        runtime.block_on(async {
            let before = Handle::current().id();
            assert!(poll_once(&mut run).await.is_ready());
            assert_eq!(Handle::current().id(), before);
        });
    });
}

#[test]
fn a_run_that_is_suspended_in_block_in_place_does_not_break_block_on() {
    let name = "a_run_that_is_suspended_in_block_in_place_does_not_break_block_on";
    succeeds_in_child(name, || {
        // With the guard of tokio's undone below it, `block_on` panics when it
        // ends, and aborts if it ends by a panic.
        let caught = catch_unwind(AssertUnwindSafe(|| {
            multi_thread().block_on(async {
                let mut run = run_sync_local(|| block_in_place(|| await_sync(pending::<()>())));
                let polled = AssertUnwindSafe(poll_fn(|cx| {
                    Poll::Ready(catch_unwind(AssertUnwindSafe(|| {
                        Future::poll(Pin::new(&mut run), cx)
                    })))
                }))
                .await;
                std::mem::forget(run);
                drop(polled);
                panic!("an ordinary panic");
            })
        }));
        assert!(caught.is_err());
    });
}

#[test]
fn a_run_does_not_suspend_in_a_block_on_on_its_own_stack() {
    succeeds_in_child(
        "a_run_does_not_suspend_in_a_block_on_on_its_own_stack",
        || {
            let mut run: AnyRun = Box::pin(run_sync_local(|| {
                block_in_place(|| {
                    Handle::current().block_on(async { await_sync(pending::<()>()) });
                });
            }));
            let runtime = multi_thread();
            let _ = catch_unwind(AssertUnwindSafe(|| runtime.block_on(poll_once(&mut run))));
            // Its guard is unwound where tokio is no longer entered: an abort.
            drop(run);
        },
    );
}

#[test]
fn a_run_that_is_suspended_in_futures_block_on_leaves_the_executor_to_others() {
    current_thread().block_on(async {
        let run = run_sync_local(|| {
            // Refused in debug builds.
            catch_unwind(|| futures::executor::block_on(async { await_sync(yield_now()) }))
        });
        let refused = run.await;
        assert_eq!(refused.is_err(), cfg!(debug_assertions));
        futures::executor::block_on(async {});
    });
}

#[test]
fn await_in_drop_gives_up_where_it_may_not_suspend() {
    current_thread().block_on(run_sync_local(|| no_suspend(|| drop(Resource))));
}

#[test]
fn a_drop_on_the_thread_of_block_on_does_not_call_the_panic_hook() {
    succeeds_in_child(
        "a_drop_on_the_thread_of_block_on_does_not_call_the_panic_hook",
        || {
            panic::set_hook(Box::new(|_| std::process::exit(1)));
            multi_thread().block_on(async {
                let mut run = run_sync_local(|| {
                    let _resource = Resource;
                    await_sync(pending::<()>());
                });
                assert!(poll_once(&mut run).await.is_pending());
            });
        },
    );
}

#[test]
fn a_future_that_cleanup_awaits_is_not_polled_in_an_unwind() {
    static PANICKING: AtomicUsize = AtomicUsize::new(0);
    multi_thread().block_on(async {
        let mut run = run_sync_local(|| {
            let _guard = on_drop(|| {
                let mut polls = 0;
                await_sync(poll_fn(|cx| {
                    PANICKING.fetch_add(usize::from(thread::panicking()), SeqCst);
                    cx.waker().wake_by_ref();
                    polls += 1;
                    if polls < 3 {
                        Poll::Pending
                    } else {
                        Poll::Ready(())
                    }
                }));
            });
            await_sync(pending::<()>());
        });
        assert!(poll_once(&mut run).await.is_pending());
    });
    assert_eq!(PANICKING.load(SeqCst), 0);
}

#[test]
fn a_panic_of_cleanup_passes_out_of_the_drop() {
    multi_thread().block_on(async {
        let mut run = run_sync_local(|| {
            let _ = catch_unwind(|| await_sync(pending::<()>()));
            let _ = catch_unwind(|| shield(|| await_sync(yield_now())));
            resume_unwind(Box::new("cleanup"));
        });
        assert!(poll_once(&mut run).await.is_pending());
        let caught = catch_unwind(AssertUnwindSafe(|| drop(run)));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"cleanup"));
    });
}

#[test]
fn a_run_that_waits_in_many_nested_unwinds_is_not_unwound() {
    succeeds_in_child(
        "a_run_that_waits_in_many_nested_unwinds_is_not_unwound",
        || {
            fn wait_in_unwinds(depth: u32) {
                if depth == 0 {
                    return await_sync(pending());
                }
                let _ = catch_unwind(|| {
                    let _guard = on_drop(|| wait_in_unwinds(depth - 1));
                    resume_unwind(Box::new(()));
                });
            }
            current_thread().block_on(async {
                let builder = greenhack::builder().cleanup_budget(Duration::ZERO);
                let mut run = builder.run_sync_local(|| wait_in_unwinds(20));
                assert!(poll_once(&mut run).await.is_pending());
                assert!(!thread::panicking());
                drop(run);
            });
            assert_eq!(leaked_runs(), 1);
        },
    );
}

// What holds.

/// Spawns `count` runs on `set` whose cleanup awaits.
fn spawn_awaiting(set: &LocalSet, ended: &Rc<RefCell<usize>>, count: usize) {
    for _ in 0..count {
        let ended = ended.clone();
        set.spawn_local(run_sync_local(move || {
            let _guard = on_drop(|| {
                for _ in 0..3 {
                    await_sync(yield_now());
                }
                *ended.borrow_mut() += 1;
            });
            await_sync(pending::<()>());
        }));
    }
}

#[test]
fn runs_of_a_dropped_local_set_end_on_its_runtime() {
    let ended = Rc::new(RefCell::new(0));
    let runtime = current_thread();
    let set = LocalSet::new();
    spawn_awaiting(&set, &ended, 3);
    runtime.block_on(set.run_until(yield_now()));
    drop(set);
    assert_eq!(*ended.borrow(), 0);
    runtime.block_on(settle());
    assert_eq!(*ended.borrow(), 3);
}

#[test]
fn a_local_set_with_runs_can_be_dropped_on_a_coroutine() {
    let ended = Rc::new(RefCell::new(0));
    let runtime = current_thread();
    let set = LocalSet::new();
    spawn_awaiting(&set, &ended, 3);
    runtime.block_on(set.run_until(yield_now()));
    runtime.block_on(async {
        run_sync_local(move || drop(set)).await;
        settle().await;
    });
    assert_eq!(*ended.borrow(), 3);
}

#[test]
fn a_runtime_with_runs_can_be_shut_down_on_a_coroutine() {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    let inner = current_thread();
    for _ in 0..3 {
        inner.spawn(greenhack::run_sync(|| {
            let _guard = on_drop(|| {
                for _ in 0..3 {
                    await_sync(yield_now());
                }
                ENDED.fetch_add(1, SeqCst);
            });
            await_sync(pending::<()>());
        }));
    }
    inner.block_on(yield_now());
    current_thread().block_on(async {
        let id = Handle::current().id();
        run_sync_local(move || inner.shutdown_background()).await;
        assert_eq!(Handle::current().id(), id);
    });
    assert_eq!(ENDED.load(SeqCst), 3);
}

/// Why a poll of `run` with a waker of nobody's is refused.
fn refusal(run: &mut AnyRun) -> String {
    let mut cx = Context::from_waker(Waker::noop());
    let polled = catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(&mut cx)));
    text(&*polled.expect_err("it is polled outside of tokio"))
}

#[test]
fn a_run_of_a_block_on_is_not_polled_outside_of_it_nor_in_a_local_set() {
    let runtime = multi_thread();
    let mut run: AnyRun = Box::pin(run_sync_local(|| await_sync(pending::<()>())));
    assert!(runtime.block_on(poll_once(&mut run)).is_pending());
    let refused = refusal(&mut run);
    assert!(refused.contains("outside a tokio task"), "{refused}");

    let set = LocalSet::new();
    let task = set.spawn_local(async move { poll_once(&mut run).await });
    let ended = set.block_on(&runtime, task);
    let refused = text(&*ended.unwrap_err().into_panic());
    assert!(refused.contains("outside a tokio task"), "{refused}");
}

#[test]
fn a_run_of_a_local_set_is_not_polled_in_a_destructor_of_its_task() {
    struct PollsInDrop(AnyRun);

    impl Drop for PollsInDrop {
        fn drop(&mut self) {
            let refused = refusal(&mut self.0);
            assert!(refused.contains("outside a tokio task"), "{refused}");
        }
    }

    let (runtime, set) = (multi_thread(), LocalSet::new());
    let task = set.spawn_local(async {
        let mut run: AnyRun = Box::pin(run_sync_local(|| await_sync(pending::<()>())));
        assert!(poll_once(&mut run).await.is_pending());
        let _polls = PollsInDrop(run);
        pending::<()>().await;
    });
    set.block_on(&runtime, yield_now());
    drop(set);
    let ended = runtime.block_on(task).unwrap_err();
    assert!(ended.is_cancelled(), "the destructor has panicked");
}
