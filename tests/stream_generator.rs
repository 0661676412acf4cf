//! A plain function that is a stream.
#![cfg(panic = "unwind")]

mod support;

use std::collections::HashSet;
use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use futures::stream::FusedStream;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use greenhack::stream::{Yielder, generate, generate_local, try_generate, try_generate_local};
use greenhack::{Cancelled, await_sync, join, leaked_runs, run_sync_local, shield};
use support::{Fixture, Log, Place, in_each_place, on_drop, panic_of, signal, text};
use tokio::task::{spawn_blocking, yield_now};

type BoxStream<T> = Pin<Box<dyn FusedStream<Item = T>>>;

/// A generator in this place.
fn generator<T: Send + 'static>(
    place: Place,
    f: impl FnOnce(&Yielder<T>) + Send + 'static,
) -> BoxStream<T> {
    match place {
        Place::Local => Box::pin(generate_local(f)),
        Place::InPlace | Place::Worker => Box::pin(generate(f)),
    }
}

fn count_for_ever(yielder: &Yielder<u32>) {
    for number in 0.. {
        yielder.yield_(number);
    }
}

#[test]
fn what_is_yielded_is_the_stream() {
    in_each_place(|place| async move {
        let numbers = generator(place, |yielder| {
            for number in 0..10 {
                yielder.yield_(number);
                if number % 3 == 0 {
                    await_sync(yield_now());
                }
            }
        });
        assert_eq!(
            numbers.collect::<Vec<_>>().await,
            (0..10).collect::<Vec<_>>()
        );
        // Also nothing.
        let mut nothing = generator::<u8>(place, |_| ());
        assert!(!nothing.is_terminated());
        assert_eq!(nothing.next().await, None);
        assert!(nothing.is_terminated());
        assert_eq!(nothing.size_hint(), (0, Some(0)));
        assert_eq!(nothing.next().await, None);
    });
}

#[test]
fn nothing_is_produced_that_is_not_asked_for() {
    in_each_place(|place| async move {
        let log = Log::default();
        let mut numbers = generator(place, {
            let log = log.clone();
            move |yielder| {
                for number in 0..3 {
                    log.add(format!("makes {number}"));
                    yielder.yield_(number);
                }
                log.add("ends");
            }
        });
        yield_now().await;
        assert!(log.take().is_empty());
        for number in 0..3 {
            assert_eq!(numbers.next().await, Some(number));
            // It would have had the time, on its worker too.
            let other = place.spawn(|| await_sync(yield_now()));
            other.await.unwrap();
            assert_eq!(log.take(), [format!("makes {number}")]);
        }
        assert_eq!(numbers.next().await, None);
        assert_eq!(log.take(), ["ends"]);
    });
}

#[test]
fn closures_of_a_join_yield_in_turn() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (ended, end) = signal();
        let mut items = generator(place, {
            let log = log.clone();
            move |yielder| {
                let _ended = ended;
                let count = |from: u32| {
                    let _guard = log.on_drop("closure");
                    (from..from + 3).for_each(|number| yielder.yield_(number));
                };
                join(|| count(0), || count(10));
                yielder.yield_(20);
                join(|| count(30), || count(40));
            }
        });
        for number in [0, 10, 1, 11, 2, 12] {
            // A closure goes on when the item after its own is asked for.
            assert!(log.take().is_empty());
            assert_eq!(items.next().await, Some(number));
        }
        assert_eq!(items.next().await, Some(20));
        assert_eq!(log.take(), ["closure"; 2]);
        assert_eq!(items.next().await, Some(30));
        assert_eq!(items.next().await, Some(40));
        drop(items);
        if place == Place::Worker {
            end.wait().await;
        }
        assert_eq!(log.take(), ["closure"; 2]);
    });
}

#[test]
fn an_early_drop_cancels_the_generator_and_its_destructors_run() {
    in_each_place(|place| async move {
        for taken in 0..3 {
            let log = Log::default();
            let (ended, end) = signal();
            let mut numbers = generator(place, {
                let log = log.clone();
                move |yielder| {
                    let _ended = ended;
                    let thread = thread::current().id();
                    let _outer = on_drop(|| {
                        assert_eq!(thread::current().id(), thread);
                        log.add("outer");
                    });
                    let _inner = log.on_drop("inner");
                    count_for_ever(yielder);
                }
            });
            for number in 0..taken {
                assert_eq!(numbers.next().await, Some(number));
            }
            drop(numbers);
            if place == Place::Worker {
                end.wait().await;
            }
            let unwound: &[&str] = if taken == 0 { &[] } else { &["inner", "outer"] };
            assert_eq!(log.take(), unwound);
        }
    });
}

#[test]
fn a_generator_is_cancelled_in_another_wait_too() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let mut numbers = generator::<u8>(place, {
            let log = log.clone();
            move |_| {
                let _ended = ended;
                let _guard = log.on_drop("unwound");
                started.give();
                await_sync(pending::<()>());
            }
        });
        tokio::select! {
            biased;
            _ = numbers.next() => unreachable!(),
            () = wait.wait() => {}
        }
        drop(numbers);
        end.wait().await;
        assert_eq!(log.take(), ["unwound"]);
    });
}

#[test]
fn each_item_is_dropped_once_taken_or_not() {
    in_each_place(|place| async move {
        for _ in 0..20 {
            let log = Log::default();
            let (made, second_made) = signal();
            let (ended, end) = signal();
            let mut items = generator(place, {
                let log = log.clone();
                move |yielder| {
                    let _ended = ended;
                    yielder.yield_(log.on_drop("first"));
                    let second = log.on_drop("second");
                    made.give();
                    yielder.yield_(second);
                    unreachable!("nobody asks for a third")
                }
            });
            let first = items.next().await;
            assert!(log.take().is_empty());
            // In place it is there; a worker may be quick, or not.
            drop(futures::poll!(items.next()));
            second_made.wait().await;
            drop(items);
            end.wait().await;
            assert_eq!(log.take(), ["second"]);
            drop(first);
            assert_eq!(log.take(), ["first"]);
        }
    });
}

#[test]
fn a_panic_reaches_the_consumer_and_ends_the_stream() {
    in_each_place(|place| async move {
        let mut numbers = generator(place, |yielder| {
            yielder.yield_(1);
            await_sync(yield_now());
            panic_any(7_u8);
        });
        assert_eq!(numbers.next().await, Some(1));
        let caught = AssertUnwindSafe(numbers.next()).catch_unwind().await;
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
        assert!(numbers.is_terminated());
        assert_eq!(numbers.next().await, None);
        assert_eq!(numbers.next().await, None);
    });
}

#[test]
fn an_error_is_the_last_item() {
    in_each_place(|place| async move {
        let parse = |yielder: &Yielder<u32>| {
            for word in "1 2 x 3".split(' ') {
                yielder.yield_(word.parse().map_err(|_| word)?);
                await_sync(yield_now());
            }
            Ok(())
        };
        let mut numbers: BoxStream<Result<u32, &str>> = match place {
            Place::Local => Box::pin(try_generate_local(parse)),
            Place::InPlace | Place::Worker => Box::pin(try_generate(parse)),
        };
        assert_eq!(numbers.try_next().await, Ok(Some(1)));
        assert_eq!(numbers.try_next().await, Ok(Some(2)));
        assert_eq!(numbers.try_next().await, Err("x"));
        assert!(numbers.is_terminated());
        assert_eq!(numbers.try_next().await, Ok(None));

        let fine = try_generate(|yielder| {
            yielder.yield_(1);
            Ok::<(), ()>(())
        });
        assert_eq!(fine.try_collect::<Vec<_>>().await, Ok(vec![1]));
    });
}

#[test]
fn what_a_destructor_yields_is_taken_while_somebody_asks() {
    in_each_place(|place| async move {
        let mut numbers = generator(place, |yielder| {
            let _guard = on_drop(|| yielder.yield_(2));
            yielder.yield_(1);
            panic_any(7_u8);
        });
        assert_eq!(numbers.next().await, Some(1));
        assert_eq!(numbers.next().await, Some(2));
        let caught = AssertUnwindSafe(numbers.next()).catch_unwind().await;
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
    });
}

#[test]
fn what_a_destructor_yields_to_nobody_is_dropped() {
    let leaked = leaked_runs();
    in_each_place(|place| async move {
        let log = Log::default();
        let (ended, end) = signal();
        let mut items = generator(place, {
            let log = log.clone();
            move |yielder| {
                let _ended = ended;
                let _guard = on_drop(|| {
                    yielder.yield_(log.on_drop("item"));
                    yielder.yield_(log.on_drop("item"));
                    log.add("destructor ends");
                });
                yielder.yield_(log.on_drop("taken"));
            }
        });
        assert!(items.next().await.is_some());
        log.take();
        drop(items);
        // In place without a reaper: there is nothing to wait for.
        if place == Place::Worker {
            end.wait().await;
        }
        assert_eq!(log.take(), ["item", "item", "destructor ends"]);
    });
    assert_eq!(leaked_runs(), leaked);
}

#[test]
fn a_shielded_generator_goes_on_to_the_end_of_the_shield() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (ended, end) = signal();
        let mut numbers = generator(place, {
            let log = log.clone();
            move |yielder| {
                let _ended = ended;
                let _guard = log.on_drop("unwound");
                shield(|| {
                    (0..100).for_each(|number| yielder.yield_(number));
                    log.add("the shield ends");
                });
                log.add("unreachable");
            }
        });
        assert_eq!(numbers.next().await, Some(0));
        drop(numbers);
        end.wait().await;
        assert_eq!(log.take(), ["the shield ends", "unwound"]);
    });
}

#[test]
fn a_swallowed_cancellation_is_met_again_at_the_next_yield() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (ended, end) = signal();
        let mut numbers = generator(place, {
            let log = log.clone();
            move |yielder| {
                let _ended = ended;
                yielder.yield_(0);
                for _ in 0..3 {
                    let caught = catch_unwind(AssertUnwindSafe(|| yielder.yield_(1)));
                    assert!(caught.unwrap_err().is::<Cancelled>());
                    log.add("swallowed");
                }
            }
        });
        assert_eq!(numbers.next().await, Some(0));
        assert_eq!(numbers.next().await, Some(1));
        drop(numbers);
        end.wait().await;
        assert_eq!(log.take(), ["swallowed"; 3]);
    });
}

#[test]
fn dropping_an_unstarted_generator_drops_its_closure_only() {
    in_each_place(|place| async move {
        let log = Log::default();
        let guard = log.on_drop("closure");
        let numbers = generator::<u8>(place, move |_| {
            let _guard = &guard;
            unreachable!()
        });
        drop(numbers);
        assert_eq!(log.take(), ["closure"]);
    });
}

#[test]
fn a_forgotten_generator_does_no_harm() {
    in_each_place(|place| async move {
        let mut numbers = generator(place, |yielder| {
            count_for_ever(yielder);
        });
        assert_eq!(numbers.next().await, Some(0));
        std::mem::forget(numbers);
        assert_eq!(place.spawn(|| 7).await.unwrap(), 7);
    });
}

#[test]
fn a_generator_that_never_waits_lets_others_have_their_turn() {
    support::current_thread().block_on(async {
        let other = tokio::spawn(async {});
        let mut numbers = generate_local(|yielder| {
            count_for_ever(yielder);
        });
        while !other.is_finished() {
            // Ready at once, but for the budget of the task.
            numbers.next().await;
        }
    });
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn in_place_an_item_costs_one_poll_and_no_wake() {
    support::current_thread().block_on(async {
        let mut numbers = generate_local(|yielder| {
            (0..3).for_each(|number| yielder.yield_(number));
        });
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        poll_fn(|_| {
            let mut cx = Context::from_waker(&waker);
            for expected in [Some(0), Some(1), Some(2), None] {
                assert_eq!(numbers.poll_next_unpin(&mut cx), Poll::Ready(expected));
            }
            Poll::Ready(())
        })
        .await;
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_stream_that_is_polled_by_turns_loses_no_item() {
    in_each_place(|place| async move {
        let mut numbers = generator(place, |yielder| {
            for number in 0..20 {
                await_sync(yield_now());
                yielder.yield_(number);
            }
        });
        // Each poll is by another waker, that of a `select!` which is dropped.
        let mut got = Vec::new();
        while !numbers.is_terminated() {
            tokio::select! {
                biased;
                number = numbers.next() => got.extend(number),
                () = yield_now() => {}
            }
        }
        assert_eq!(got, (0..20).collect::<Vec<_>>());
    });
}

#[test]
fn a_started_generator_moves_between_the_tasks_of_a_multi_thread_runtime() {
    Fixture::new(Place::Worker).block_on(async {
        let (ids, mut threads) = tokio::sync::mpsc::unbounded_channel();
        let mut numbers = generate(move |yielder| {
            let here = Rc::new(thread::current().id());
            for number in 0..100 {
                yielder.yield_(number);
                ids.send(*here).unwrap();
                assert_eq!(thread::current().id(), *here);
            }
        });
        let mut all = Vec::new();
        while !numbers.is_terminated() {
            let (taken, rest) = tokio::spawn(async move {
                let number = numbers.next().await;
                (number, numbers)
            })
            .await
            .unwrap();
            all.extend(taken);
            numbers = rest;
        }
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        let mut seen = HashSet::new();
        while let Some(thread) = threads.recv().await {
            seen.insert(thread);
        }
        assert_eq!(seen.len(), 1);
    });
}

#[test]
fn many_items_cross_threads_in_order() {
    let count = if cfg!(miri) { 50 } else { 5_000 };
    Fixture::new(Place::Worker).block_on(async move {
        let streams = (0..4).map(|_| async move {
            let numbers = generate(move |yielder| {
                (0..count).for_each(|number| yielder.yield_(number));
            });
            let mut expected = 0;
            numbers
                .for_each(|number| {
                    assert_eq!(number, expected);
                    expected += 1;
                    async {}
                })
                .await;
        });
        futures::future::join_all(streams).await;
    });
}

#[test]
fn a_generator_started_in_place_and_dropped_on_another_thread_unwinds_on_its_own() {
    let runtime = support::current_thread();
    let log = Log::default();
    let mut numbers = generate({
        let log = log.clone();
        move |yielder| {
            let thread = thread::current().id();
            let _guard = on_drop(|| {
                assert_eq!(thread::current().id(), thread);
                log.add("unwound");
            });
            count_for_ever(yielder);
        }
    });
    runtime.block_on(async { assert_eq!(numbers.next().await, Some(0)) });
    thread::spawn(move || drop(numbers)).join().unwrap();
    assert!(log.take().is_empty());
    runtime.block_on(yield_now());
    assert_eq!(log.take(), ["unwound"]);
}

#[test]
fn a_generator_is_polled_by_any_executor_if_it_is_send() {
    let numbers = generate(|yielder| {
        await_sync(yield_now());
        yielder.yield_(1);
        yielder.yield_(2);
    });
    let numbers: Vec<u32> = futures::executor::block_on(numbers.collect());
    assert_eq!(numbers, [1, 2]);
}

#[test]
fn a_local_generator_outside_tokio_panics_and_has_ended() {
    let mut numbers = generate_local(|yielder| yielder.yield_(1));
    let caught = catch_unwind(AssertUnwindSafe(|| {
        futures::executor::block_on(numbers.next())
    }));
    let message = text(&*caught.unwrap_err());
    assert!(message.contains("outside a tokio runtime"), "{message}");
    assert!(numbers.is_terminated());
}

#[test]
fn in_async_code_yield_panics_at_the_callers_line() {
    in_each_place(|place| async move {
        let mut numbers = generator(place, |yielder| {
            await_sync(async {
                let (message, line, file) = panic_of(|| yielder.yield_(1));
                assert_eq!((line, file.as_str()), (line!() - 1, file!()));
                assert!(message.contains("polled by `await_sync`"), "{message}");
            });
            yielder.yield_(2);
        });
        assert_eq!(numbers.next().await, Some(2));
        assert_eq!(numbers.next().await, None);
    });
}

#[test]
fn a_yield_that_may_not_suspend_takes_its_item_back() {
    in_each_place(|place| async move {
        let mut numbers = generator(place, |yielder| {
            let (message, ..) = panic_of(|| greenhack::no_suspend(|| yielder.yield_(1)));
            assert!(message.contains("no_suspend"), "{message}");
            yielder.yield_(2);
        });
        let mut first = numbers.next().await;
        if place == Place::Worker && first == Some(1) {
            // Another thread was quicker.
            first = numbers.next().await;
        }
        assert_eq!(first, Some(2));
        assert_eq!(numbers.next().await, None);
    });
}

#[test]
fn a_generator_awaits_what_it_likes() {
    in_each_place(|place| async move {
        let sums = generator(place, |yielder| {
            for number in 0..3_u32 {
                let doubled = await_sync(spawn_blocking(move || number * 2)).unwrap();
                let nested = await_sync(run_sync_local(move || {
                    await_sync(tokio::time::sleep(Duration::from_millis(1)));
                    doubled + 1
                }));
                yielder.yield_(nested);
            }
        });
        assert_eq!(sums.collect::<Vec<_>>().await, [1, 3, 5]);
    });
}

#[test]
fn a_panic_of_the_consumer_cancels_the_generator() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (ended, end) = signal();
        let mut numbers = generator(place, {
            let log = log.clone();
            move |yielder| {
                let _ended = ended;
                let _guard = log.on_drop("unwound");
                count_for_ever(yielder);
            }
        });
        let consumer = AssertUnwindSafe(async move {
            numbers.next().await;
            panic_any(7_u8);
        });
        let caught: Result<(), _> = consumer.catch_unwind().await;
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7_u8));
        end.wait().await;
        assert_eq!(log.take(), ["unwound"]);
    });
}
