//! Where a wait is possible, and what happens where it is not (behaviours 1-7).

mod support;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::Poll;
use std::thread;

use greenhack::{
    AwaitExt, await_or_cancelled, await_sync, in_context, must_suspend, no_suspend, run_sync,
    run_sync_local, try_await_sync,
};
use support::{Log, in_each_place, on_drop, panic_of, text};
use tokio::runtime::Builder;
use tokio::task::{block_in_place, spawn_blocking, yield_now};

// In a run.

#[test]
fn in_a_run_await_sync_suspends() {
    in_each_place(|place| async move {
        let output = place.spawn(|| {
            assert!(in_context());
            await_sync(yield_now());
            async { 1 }.await_sync() + try_await_sync(async { 2 }).unwrap()
        });
        assert_eq!(output.await.unwrap(), 3);
    });
}

#[test]
fn a_borrowed_future_that_is_not_send_can_be_awaited() {
    support::current_thread().block_on(run_sync_local(|| {
        let count = Rc::new(Cell::new(0));
        let text = String::from("borrowed");
        let length = await_sync(async {
            let count = count.clone();
            yield_now().await;
            count.set(count.get() + 1);
            text.len()
        });
        assert_eq!((length, count.get()), (8, 1));
    }));
}

#[test]
fn an_into_future_can_be_awaited() {
    struct Request(u32);
    impl IntoFuture for Request {
        type Output = u32;
        type IntoFuture = std::future::Ready<u32>;
        fn into_future(self) -> Self::IntoFuture {
            ready(self.0)
        }
    }
    assert_eq!(await_sync(Request(1)), 1);
    support::current_thread().block_on(run_sync_local(|| {
        assert_eq!(await_sync(Request(2)), 2);
        assert_eq!(await_or_cancelled(Request(3)), Ok(3));
    }));
}

// In async code.

#[test]
fn in_a_task_await_sync_panics_at_the_callers_line() {
    in_each_place(|_| async {
        let (message, line, file) = panic_of(|| await_sync(async {}));
        assert_eq!(line, line!() - 1);
        assert!(file.ends_with("context_places.rs"));
        assert!(message.contains("called in async code"), "{message}");
        assert!(message.contains("write `.await` here"), "{message}");
        assert!(
            message.contains("`greenhack::run_sync(|| ..).await`"),
            "{message}"
        );

        // The same in the method, in the verb with an error, and in a task that is
        // spawned.
        let (_, line, _) = panic_of(|| async {}.await_sync());
        assert_eq!(line, line!() - 1);
        let (message, line, _) = panic_of(|| assert!(await_or_cancelled(async {}).is_ok()));
        assert_eq!(line, line!() - 1);
        assert!(
            message.starts_with("`await_or_cancelled` called in async code"),
            "{message}"
        );
        let task = tokio::spawn(async { await_sync(async {}) });
        let payload = task.await.unwrap_err().into_panic();
        assert!(text(&*payload).contains("async code"));
    });
}

#[test]
fn in_a_task_try_await_sync_gives_the_future_back_unpolled() {
    in_each_place(|_| async {
        let polls = Cell::new(0);
        let future = poll_fn(|_| {
            polls.set(polls.get() + 1);
            Poll::Ready(7)
        });
        let refused = try_await_sync(future).unwrap_err();
        assert!(refused.is_async_code());
        assert!(refused.to_string().contains("async code"));
        assert_eq!(polls.get(), 0);
        assert_eq!(refused.into_inner().await, 7);
        assert_eq!(polls.get(), 1);
    });
}

#[test]
fn in_a_future_of_the_futures_executor_await_sync_panics() {
    futures::executor::block_on(async {
        assert!(try_await_sync(async {}).unwrap_err().is_async_code());
        let (message, ..) = panic_of(|| await_sync(async {}));
        assert!(message.contains("futures::executor"), "{message}");
    });
}

#[test]
fn in_a_future_that_await_sync_polls_await_sync_panics() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            await_sync(async {
                assert!(!in_context());
                assert!(try_await_sync(async {}).unwrap_err().is_async_code());
                let (message, line, _) = panic_of(|| await_sync(async {}));
                assert_eq!(line, line!() - 1);
                assert!(
                    message.contains("itself polled by `await_sync`"),
                    "{message}"
                );
                assert!(message.contains("run_sync_local"), "{message}");
                // Still so after a suspension.
                yield_now().await;
                assert!(!in_context());
            });
            assert!(in_context());
        });
        run.await.unwrap();
    });
}

#[test]
fn in_a_future_that_a_blocked_thread_polls_await_sync_panics() {
    await_sync(async {
        assert!(!in_context());
        assert!(try_await_sync(async {}).unwrap_err().is_async_code());
    });
}

// On threads that may block.

#[test]
fn on_a_plain_thread_await_sync_blocks() {
    assert!(!in_context());
    assert_eq!(await_sync(async { 1 }), 1);
    assert_eq!(try_await_sync(async { 2 }).unwrap(), 2);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let other = thread::spawn(move || await_sync(receiver).unwrap());
    sender.send(3).unwrap();
    assert_eq!(other.join().unwrap(), 3);
}

#[test]
fn on_a_plain_thread_timers_and_sockets_work() {
    let (server, client) = await_sync(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::join!(async { listener.accept().await.unwrap().1 }, async {
            tokio::net::TcpStream::connect(address).await.unwrap()
        })
    });
    assert_eq!(server, client.local_addr().unwrap());
    await_sync(async { tokio::time::sleep(std::time::Duration::from_millis(1)).await });
}

#[test]
fn with_the_process_runtime_entered_a_timer_can_be_constructed() {
    thread::spawn(|| {
        let guard = greenhack::enter_runtime();
        let sleep = tokio::time::sleep(std::time::Duration::from_millis(1));
        await_sync(sleep);
        drop(guard);
        assert!(tokio::runtime::Handle::try_current().is_err());
    })
    .join()
    .unwrap();
}

#[test]
fn with_a_handle_entered_await_sync_blocks_on_that_runtime() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    let id = await_sync(async { tokio::runtime::Handle::current().id() });
    assert_eq!(id, runtime.handle().id());
}

#[test]
fn in_spawn_blocking_await_sync_blocks() {
    in_each_place(|_| async {
        let blocking = spawn_blocking(|| {
            assert!(!in_context());
            await_sync(yield_now());
            try_await_sync(async { 1 }).unwrap()
        });
        assert_eq!(blocking.await.unwrap(), 1);
    });
}

#[test]
fn in_block_in_place_await_sync_blocks() {
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let task = tokio::spawn(async {
            block_in_place(|| {
                assert!(!in_context());
                await_sync(yield_now());
                try_await_sync(async { 1 }).unwrap()
            })
        });
        assert_eq!(task.await.unwrap(), 1);
    });
}

#[test]
fn a_panic_on_a_blocked_thread_passes() {
    let caught = catch_unwind(|| await_sync(async { std::panic::panic_any(7_u8) }));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
}

// Scopes of tokio's on the coroutine's own stack.

#[test]
fn block_on_inside_a_run_is_refused_by_tokio() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let inner = support::current_thread();
            let caught = catch_unwind(AssertUnwindSafe(|| {
                inner.block_on(async { await_sync(yield_now()) })
            }));
            assert!(text(&*caught.unwrap_err()).contains("runtime from within a runtime"));
            inner.shutdown_background();
            await_sync(yield_now());
        });
        run.await.unwrap();
    });
}

#[test]
fn block_in_place_inside_a_run_is_refused_by_tokio() {
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run_sync_local(|| {
        let (message, ..) = panic_of(|| block_in_place(|| await_sync(yield_now())));
        assert!(message.contains("can call blocking only"), "{message}");
        await_sync(yield_now());
    }));
}

#[test]
fn a_wait_in_the_destructor_of_a_task_of_a_dropped_runtime_is_refused() {
    in_each_place(|place| async move {
        let log = Log::default();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let inner = support::current_thread();
                let awaits = on_drop(move || {
                    // tokio would report it to nobody.
                    let (message, line, _) = panic_of(|| await_sync(yield_now()));
                    assert_eq!(line, line!() - 1);
                    log.add(message);
                });
                inner.spawn(async {
                    let _awaits = awaits;
                    pending::<()>().await;
                });
                inner.shutdown_background();
                await_sync(yield_now());
                assert!(in_context());
            }
        });
        run.await.unwrap();
        assert_eq!(
            log.take(),
            [
                "`await_sync` called inside a tokio runtime that this stack drives or drops, and \
                 which can't stay open meanwhile; let its tasks end before you drop it"
            ]
        );
    });
}

#[test]
fn a_wait_while_another_runtime_is_entered_is_refused() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let other = support::current_thread();
            let (message, line, _) = panic_of(|| {
                let _guard = other.enter();
                await_sync(yield_now());
            });
            assert_eq!(line, line!() - 2);
            assert!(message.contains("another runtime is entered"), "{message}");
            other.shutdown_background();
            await_sync(yield_now());
        });
        run.await.unwrap();
    });
}

#[test]
#[cfg(debug_assertions)]
fn a_wait_inside_the_executor_of_futures_is_refused() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let (message, line, _) = panic_of(|| {
                futures::executor::block_on(async { await_sync(yield_now()) });
            });
            assert_eq!(line, line!() - 2);
            assert_eq!(
                message,
                "`await_sync` called inside `futures::executor::block_on`; write \
                 `await_sync(future)` instead of `block_on(future)`"
            );
            await_sync(yield_now());
        });
        run.await.unwrap();
    });
}

// Nested runs.

/// Alternates between plain and async code.
fn alternate(levels: u32) -> u32 {
    assert!(in_context());
    if levels == 0 {
        await_sync(yield_now());
        return 0;
    }
    let below = await_sync(async move {
        assert!(!in_context());
        let below = run_sync_local(move || alternate(levels - 1)).await;
        assert!(!in_context());
        below
    });
    assert!(in_context());
    below + 1
}

#[test]
fn runs_nest_in_awaited_futures_to_any_depth() {
    in_each_place(|place| async move {
        assert_eq!(place.spawn(|| alternate(10)).await.unwrap(), 10);
        assert!(!in_context());
    });
}

#[test]
fn the_outer_context_is_back_after_an_error_a_panic_or_a_cancellation_inside() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let error: Result<(), &str> =
                await_sync(async { run_sync_local(|| Err("an error")).await });
            assert_eq!(error, Err("an error"));
            assert!(in_context());

            let caught = catch_unwind(|| {
                await_sync(async { run_sync_local(|| std::panic::panic_any(7_u8)).await })
            });
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
            assert!(in_context());

            await_sync(async {
                tokio::select! {
                    biased;
                    () = run_sync_local(|| await_sync(pending())) => unreachable!(),
                    () = ready(()) => {}
                }
            });
            assert!(in_context());
            await_sync(yield_now());
            assert!(in_context());
        });
        run.await.unwrap();
    });
}

#[test]
fn a_run_dropped_on_the_stack_of_another_restores_the_context() {
    support::current_thread().block_on(run_sync_local(|| {
        let mut inner = Box::pin(run_sync_local(|| await_sync(pending::<()>())));
        await_sync(poll_fn(|cx| {
            assert!(inner.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        }));
        drop(inner);
        assert!(in_context());
        await_sync(yield_now());
    }));
}

// Readiness.

#[test]
fn a_ready_future_does_not_yield_to_tokio() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            no_suspend(|| {
                assert_eq!(await_sync(ready(1)), 1);
                assert_eq!(await_sync(async { 2 }), 2);
            });
        });
        run.await.unwrap();
    });
}

#[test]
fn a_run_that_never_awaits_works() {
    in_each_place(|place| async move {
        assert_eq!(place.spawn(|| 7).await.unwrap(), 7);
    });
}

#[test]
fn no_suspend_panics_at_the_wait_that_suspends() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let (message, line, _) = panic_of(|| no_suspend(|| await_sync(yield_now())));
            assert_eq!(line, line!() - 1);
            assert!(message.contains("greenhack::no_suspend"), "{message}");
            await_sync(yield_now());
        });
        run.await.unwrap();
    });
}

#[test]
fn must_suspend_panics_if_nothing_was_pending() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            must_suspend(|| await_sync(yield_now()));
            let (message, line, _) = panic_of(|| must_suspend(|| await_sync(ready(()))));
            assert_eq!(line, line!() - 1);
            assert!(message.contains("greenhack::must_suspend"), "{message}");
        });
        run.await.unwrap();
    });
}

#[test]
fn outside_a_run_the_assertions_just_call() {
    assert_eq!(no_suspend(|| await_sync(async { 1 })), 1);
    assert_eq!(must_suspend(|| 2), 2);
    assert_eq!(greenhack::shield(|| 3), 3);
}

#[test]
fn in_context_can_be_called_while_thread_locals_are_dropped() {
    struct Asks;
    impl Drop for Asks {
        fn drop(&mut self) {
            assert!(!in_context());
            let refused = try_await_sync(async {});
            assert!(refused.is_ok() || refused.unwrap_err().is_thread_ending());
        }
    }
    thread_local! {
        static ASKS: Asks = const { Asks };
    }
    thread::spawn(|| {
        ASKS.with(|_| ());
        support::current_thread().block_on(run_sync(|| await_sync(yield_now())));
    })
    .join()
    .unwrap();
}

/// Calls `f` on a thread that is ending, when tokio's locals are still there and
/// those are gone that were made `last`, and returns what its panic says.
fn on_an_ending_thread(
    f: impl FnOnce() + Send + 'static,
    last: impl FnOnce() + Send + 'static,
) -> String {
    thread_local! {
        static KEPT: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
    }
    let log = Log::default();
    let thread = thread::spawn({
        let log = log.clone();
        move || {
            // What is made first is dropped last.
            support::current_thread().block_on(async {});
            let guard = on_drop(move || {
                let payload = catch_unwind(AssertUnwindSafe(f)).unwrap_err();
                log.add(text(&*payload));
            });
            KEPT.with(|kept| kept.replace(Some(Box::new(guard))));
            last();
        }
    });
    thread.join().unwrap();
    log.take().concat()
}

#[test]
fn a_wait_on_a_thread_that_has_blocked_and_is_ending_is_refused() {
    let waits = || {
        let refused = try_await_sync(async {}).unwrap_err();
        assert!(refused.is_thread_ending() && !refused.is_async_code());
        await_sync(async {});
    };
    assert_eq!(
        on_an_ending_thread(waits, || await_sync(async {})),
        "`await_sync` called while the thread is ending; wait before the thread's locals are \
         dropped"
    );
}

#[test]
fn a_run_is_not_started_on_a_thread_that_is_ending() {
    let run = || support::current_thread().block_on(run_sync(|| await_sync(yield_now())));
    assert_eq!(
        on_an_ending_thread(run, run),
        "a run was polled while its thread is ending, and the thread's locals with it; \
         `.await` it before"
    );
}

#[test]
fn a_run_must_be_polled_by_tokio() {
    let (message, ..) = panic_of(|| futures::executor::block_on(run_sync_local(|| ())));
    assert!(message.contains("outside a tokio runtime"), "{message}");
    let runtime = support::current_thread();
    let guard = runtime.enter();
    let (message, ..) = panic_of(|| futures::executor::block_on(run_sync_local(|| ())));
    assert!(message.contains("outside a tokio task"), "{message}");
    drop(guard);
    // The hop needs no tokio on the caller's side.
    assert_eq!(
        futures::executor::block_on(run_sync(|| await_sync(async { 1 }))),
        1
    );
}

#[test]
fn polling_after_the_end_panics() {
    support::current_thread().block_on(async {
        let mut run = run_sync_local(|| 1);
        assert_eq!((&mut run).await, 1);
        let again = tokio::task::unconstrained(async {
            catch_unwind(AssertUnwindSafe(|| {
                futures::FutureExt::now_or_never(&mut run)
            }))
        });
        assert!(text(&*again.await.unwrap_err()).contains("after its end"));
    });
}
