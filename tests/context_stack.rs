//! The way to the thread's own stack (behaviour 33).
#![cfg(panic = "unwind")]

mod support;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use greenhack::{await_sync, builder, in_context, on_thread_stack, run_sync, try_await_sync};
use support::{in_each_place, panic_of, text};
use tokio::task::yield_now;

/// More than the stacks of these runs, less than any thread's.
const HUNGRY: usize = 256 * 1024;

#[inline(never)]
fn eat() -> usize {
    let eaten = std::hint::black_box([1_u8; HUNGRY]);
    eaten.iter().map(|&byte| usize::from(byte)).sum()
}

#[test]
fn a_hungry_function_runs_from_a_small_stack() {
    in_each_place(|place| async move {
        let small = builder().stack_size(64 * 1024);
        let run = place.spawn_with(small, || {
            let mut eaten = 0;
            await_sync(yield_now());
            on_thread_stack(|| eaten += eat());
            await_sync(yield_now());
            on_thread_stack(|| eaten += eat());
            eaten
        });
        assert_eq!(run.await.unwrap(), 2 * HUNGRY);
    });
    assert_eq!(on_thread_stack(eat), HUNGRY);
}

#[test]
fn code_that_measures_its_stack_finds_that_of_the_thread() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            on_thread_stack(|| {
                let left = stacker::remaining_stack().expect("this system tells it");
                assert!(left > HUNGRY);
                stacker::maybe_grow(HUNGRY, 4 * HUNGRY, eat)
            })
        });
        assert_eq!(run.await.unwrap(), HUNGRY);
    });
}

#[test]
fn a_wait_on_the_threads_stack_is_refused_where_it_is_written() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            on_thread_stack(|| {
                assert!(!in_context());
                let (message, line, file) = panic_of(|| await_sync(async {}));
                assert!(
                    message.contains("`greenhack::on_thread_stack`"),
                    "{message}"
                );
                assert_eq!((line, file.as_str()), (line!() - 5, file!()));
                let refused = try_await_sync(async {}).unwrap_err();
                assert!(refused.is_on_thread_stack() && !refused.is_async_code());
                let (message, ..) = panic_of(|| {
                    greenhack::join(|| (), || ());
                });
                assert!(message.starts_with("`join` called inside"), "{message}");
                // There is no further to go.
                on_thread_stack(|| ());
            });
            // A future that is polled is async code as before.
            await_sync(async {
                assert!(try_await_sync(async {}).unwrap_err().is_async_code());
            });
        });
        run.await.unwrap();
    });
}

#[test]
fn a_panic_on_the_threads_stack_resumes_in_the_run() {
    support::current_thread().block_on(run_sync(|| {
        let ran = Cell::new(false);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            on_thread_stack(|| {
                ran.set(true);
                resume_unwind(Box::new("hungry"));
            })
        }));
        assert_eq!(text(&*caught.unwrap_err()), "hungry");
        assert!(ran.get());
        await_sync(async {
            assert!(try_await_sync(async {}).unwrap_err().is_async_code());
        });
    }));
}

#[test]
fn async_code_and_plain_threads_are_there_already() {
    assert_eq!(on_thread_stack(|| 1), 1);
    support::current_thread().block_on(async { assert_eq!(on_thread_stack(|| 2), 2) });
}
