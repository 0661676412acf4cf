//! A stream that plain code iterates over (behaviour 36).
#![cfg(panic = "unwind")]

mod support;

use std::cell::Cell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::pin;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt, stream};
use greenhack::stream::{blocking_iter, generate_local};
use greenhack::{await_sync, run_sync_local};
use support::{Log, in_each_place, on_drop, panic_of, signal};
use tokio::task::yield_now;
use tokio::time::sleep;

/// Counts to `end`, with a wait before each number. It isn't `Unpin`.
fn slow_count(end: u32) -> impl Stream<Item = u32> {
    stream::unfold(0, move |last| async move {
        yield_now().await;
        (last < end).then_some((last + 1, last + 1))
    })
}

#[test]
fn a_stream_is_iterated_over_in_each_place() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let mut sum = 0;
            for number in blocking_iter(slow_count(10)) {
                sum += number;
            }
            sum
        });
        assert_eq!(run.await.unwrap(), 55);
    });
}

#[test]
fn on_a_plain_thread_it_blocks() {
    let start = std::time::Instant::now();
    let slept = stream::iter(0..3).then(|number| async move {
        sleep(Duration::from_millis(1)).await;
        number
    });
    assert_eq!(blocking_iter(slept).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(start.elapsed() >= Duration::from_millis(3));
}

#[test]
fn a_borrowed_stream_goes_on_afterwards() {
    support::current_thread().block_on(run_sync_local(|| {
        let mut unpin = stream::iter(0..4);
        assert_eq!(blocking_iter(&mut unpin).next(), Some(0));
        assert_eq!(blocking_iter(&mut unpin).next(), Some(1));
        let mut iter = blocking_iter(unpin);
        assert_eq!(iter.next(), Some(2));
        assert_eq!(await_sync(iter.into_inner().next()), Some(3));

        let mut pinned = pin!(slow_count(3));
        assert_eq!(blocking_iter(pinned.as_mut()).next(), Some(1));
        assert_eq!(blocking_iter(pinned.as_mut()).collect::<Vec<_>>(), [2, 3]);
    }));
}

#[test]
fn the_items_may_borrow_from_the_caller() {
    support::current_thread().block_on(run_sync_local(|| {
        let words = ["soup".to_owned(), "salad".to_owned()];
        let lengths = Cell::new(0);
        let stream = stream::iter(&words).inspect(|word| lengths.set(lengths.get() + word.len()));
        let borrowed: Vec<&String> = blocking_iter(stream).collect();
        assert_eq!(borrowed, [&words[0], &words[1]]);
        assert_eq!(lengths.get(), 9);
    }));
}

#[test]
fn the_size_hint_is_that_of_the_stream_until_its_end() {
    let mut iter = blocking_iter(stream::iter([1, 2]));
    assert_eq!(iter.size_hint(), (2, Some(2)));
    iter.next();
    assert_eq!(iter.size_hint(), (1, Some(1)));
    // A stream that never says how much is left.
    let mut iter = blocking_iter(slow_count(1));
    assert_eq!(iter.size_hint(), (0, None));
    assert_eq!(iter.by_ref().count(), 1);
    assert_eq!(iter.size_hint(), (0, Some(0)));
}

#[test]
fn a_stream_that_has_ended_is_not_polled_again() {
    let polls = Cell::new(0);
    let mut iter = blocking_iter(stream::poll_fn(|_| {
        polls.set(polls.get() + 1);
        Poll::Ready((polls.get() == 1).then_some(7))
    }));
    assert_eq!((iter.next(), iter.next()), (Some(7), None));
    assert_eq!((iter.next(), iter.next()), (None, None));
    assert_eq!(polls.get(), 2);
}

#[test]
fn an_early_drop_drops_the_stream_there_and_then() {
    in_each_place(|place| async move {
        let log = Log::default();
        let run = place.spawn(move || {
            let thread = thread::current().id();
            let guard = on_drop(|| {
                assert_eq!(thread::current().id(), thread);
                log.add("dropped");
            });
            let stream = slow_count(10).map(move |number| {
                let _guard = &guard;
                number
            });
            for number in blocking_iter(stream) {
                log.add(number.to_string());
                if number == 2 {
                    break;
                }
            }
            log.add("goes on");
            await_sync(yield_now());
            log.take()
        });
        assert_eq!(run.await.unwrap(), ["1", "2", "dropped", "goes on"]);
    });
}

#[test]
fn a_cancelled_run_drops_its_stream_on_its_thread() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let thread = thread::current().id();
                let _outer = log.on_drop("outer");
                let guard = on_drop(|| {
                    assert_eq!(thread::current().id(), thread);
                    log.add("stream");
                });
                let mut started = Some(started);
                let stream = stream::poll_fn(move |_| {
                    let _guard = &guard;
                    drop(started.take());
                    Poll::<Option<()>>::Pending
                });
                blocking_iter(stream).for_each(drop);
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["stream", "outer"]);
    });
}

#[test]
fn a_panic_of_the_stream_resumes_at_next_and_can_be_caught() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let stream = stream::iter(0..3).then(|number| async move {
                yield_now().await;
                if number == 1 {
                    panic_any(7_u8);
                }
                number
            });
            let mut iter = blocking_iter(stream);
            assert_eq!(iter.next(), Some(0));
            let caught = catch_unwind(AssertUnwindSafe(|| iter.next()));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
            assert!(!thread::panicking());
        });
        run.await.unwrap();
    });
}

#[test]
fn in_async_code_next_panics_at_the_callers_line_and_polls_nothing() {
    in_each_place(|_| async {
        let polled = Cell::new(false);
        let mut stream = stream::poll_fn(|_| {
            polled.set(true);
            Poll::Ready(Some(1))
        });
        let mut iter = blocking_iter(&mut stream);
        let (message, line, file) = panic_of(|| {
            iter.next();
        });
        assert_eq!((line, file.as_str()), (line!() - 2, file!()));
        assert!(message.contains("async code"), "{message}");
        assert!(!polled.get());
        // Nothing is lost.
        drop(iter);
        assert_eq!(stream.next().now_or_never(), Some(Some(1)));
    });
}

#[test]
fn in_a_future_that_is_awaited_next_panics() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let (message, ..) = panic_of(|| {
                await_sync(async { blocking_iter(stream::iter([1])).next() });
            });
            assert!(message.contains("polled by `await_sync`"), "{message}");
        });
        run.await.unwrap();
    });
}

#[test]
fn iterators_and_generators_nest() {
    /// Each level iterates over the one below it, in a run of its own.
    fn level(depth: u32) -> Box<dyn Stream<Item = u32> + Unpin> {
        Box::new(generate_local(move |yielder| {
            if depth == 0 {
                (0..5).for_each(|number| yielder.yield_(number));
                return;
            }
            for number in blocking_iter(level(depth - 1)) {
                await_sync(yield_now());
                yielder.yield_(number + 1);
            }
        }))
    }
    support::current_thread().block_on(async {
        assert_eq!(level(10).collect::<Vec<_>>().await, [10, 11, 12, 13, 14]);
        // And dropped half-way.
        assert_eq!(level(10).take(2).collect::<Vec<_>>().await, [10, 11]);
    });
}

#[test]
fn a_generator_that_is_left_early_by_its_iterator_is_cancelled() {
    support::current_thread().block_on(async {
        let log = Log::default();
        let logged = log.clone();
        let run = run_sync_local(move || {
            let inner = logged.clone();
            let numbers = generate_local(move |yielder| {
                let _guard = inner.on_drop("generator unwound");
                for number in 0.. {
                    yielder.yield_(number);
                }
            });
            let head: Vec<u32> = blocking_iter(numbers).take(2).collect();
            logged.add("left");
            head
        });
        assert_eq!(run.await, [0, 1]);
        assert_eq!(log.take(), ["generator unwound", "left"]);
    });
}

#[test]
fn an_iterator_may_be_dropped_anywhere() {
    in_each_place(|place| async move {
        let log = Log::default();
        let make = |log: &Log| {
            let guard = log.on_drop("dropped");
            let mut iter = blocking_iter(stream::poll_fn(move |_| {
                let _guard = &guard;
                Poll::Ready(Some(()))
            }));
            iter.next();
            iter
        };
        // Begun in plain code, dropped in async code of another thread.
        let begun = place.spawn({
            let log = log.clone();
            move || make(&log)
        });
        let iter = begun.await.unwrap();
        assert!(log.take().is_empty());
        drop(iter);
        assert_eq!(log.take(), ["dropped"]);
        // In a future that is awaited.
        let run = place.spawn({
            let log = log.clone();
            move || {
                let iter = make(&log);
                await_sync(async {
                    yield_now().await;
                    drop(iter);
                });
            }
        });
        run.await.unwrap();
        assert_eq!(log.take(), ["dropped"]);
    });
}

#[test]
fn a_timeout_ends_an_iteration() {
    support::current_thread().block_on(async {
        let run = run_sync_local(|| {
            let stream = stream::once(pending::<()>());
            blocking_iter(stream).count()
        });
        let ended = tokio::time::timeout(Duration::from_millis(1), run).await;
        assert!(ended.is_err());
    });
}
