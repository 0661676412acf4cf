//! Stacks stay on their thread, and wakes from elsewhere are not lost
//! (behaviours 27 and 28), under load.

mod support;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;

use greenhack::await_sync;
use support::{Fixture, Place, in_each_place};
use tokio::sync::Barrier;
use tokio::task::yield_now;

thread_local! {
    static COUNTER: Cell<u64> = const { Cell::new(0) };
}

/// Holds what is not `Send` across waits.
fn hold_what_is_not_send(rounds: u32) {
    let thread = thread::current().id();
    let shared = Rc::new(RefCell::new(0));
    let other = shared.clone();
    let mutex = Mutex::new(());
    let _guard = mutex.lock().unwrap();
    let mut borrow = shared.borrow_mut();
    COUNTER.with(|counter| {
        for _ in 0..rounds {
            let address = std::ptr::from_ref(counter);
            await_sync(yield_now());
            assert_eq!(thread::current().id(), thread);
            assert_eq!(COUNTER.with(std::ptr::from_ref), address);
            counter.set(counter.get() + 1);
            *borrow += 1;
            assert!(other.try_borrow().is_err());
        }
    });
    drop(borrow);
    assert_eq!(*shared.borrow(), rounds);
}

#[test]
fn what_is_not_send_lives_across_waits_under_load() {
    in_each_place(|place| async move {
        let runs: Vec<_> = (0..500)
            .map(|_| place.spawn(|| hold_what_is_not_send(20)))
            .collect();
        for run in runs {
            run.await.unwrap();
        }
    });
}

#[test]
fn ten_thousand_handlers_are_suspended_at_the_same_time() {
    const HANDLERS: usize = 10_000;
    in_each_place(|place| async move {
        let barrier = Arc::new(Barrier::new(HANDLERS + 1));
        let runs: Vec<_> = (0..HANDLERS)
            .map(|index| {
                let barrier = barrier.clone();
                let builder = greenhack::builder().stack_size(32 * 1024);
                place.spawn_with(builder, move || {
                    await_sync(barrier.wait());
                    index
                })
            })
            .collect();
        // Passes when all of them wait.
        barrier.wait().await;
        for (index, run) in runs.into_iter().enumerate() {
            assert_eq!(run.await.unwrap(), index);
        }
    });
}

/// A future that is ready when another thread says so, which it does at once.
struct Remote {
    ready: Arc<AtomicBool>,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl Remote {
    fn new(threads: &[mpsc::Sender<Remote>], turn: usize) -> Remote {
        let remote = Remote {
            ready: Arc::default(),
            waker: Arc::default(),
        };
        let other = Remote {
            ready: remote.ready.clone(),
            waker: remote.waker.clone(),
        };
        threads[turn % threads.len()].send(other).unwrap();
        remote
    }

    fn wake(&self) {
        self.ready.store(true, Ordering::Release);
        // Twice, and by value and by reference: more wakes than needed.
        let waker = self.waker.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake_by_ref();
            waker.wake();
        }
    }

    async fn wait(&self) {
        poll_fn(|cx| {
            *self.waker.lock().unwrap() = Some(cx.waker().clone());
            if self.ready.load(Ordering::Acquire) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

#[test]
fn wakes_from_many_threads_are_neither_lost_nor_doubled() {
    let rounds = if cfg!(miri) { 4 } else { 500 };
    let (senders, threads): (Vec<_>, Vec<_>) = (0..4)
        .map(|_| {
            let (sender, receiver) = mpsc::channel::<Remote>();
            let thread = thread::spawn(move || receiver.iter().for_each(|remote| remote.wake()));
            (sender, thread)
        })
        .unzip();
    for place in support::PLACES {
        let resumed = Arc::new(AtomicUsize::new(0));
        Fixture::new(place).block_on(async {
            let runs: Vec<_> = (0..32)
                .map(|index| {
                    let (senders, resumed) = (senders.clone(), resumed.clone());
                    place.spawn(move || {
                        for round in 0..rounds {
                            let remote = Remote::new(&senders, index + round);
                            await_sync(remote.wait());
                            assert!(remote.ready.load(Ordering::Acquire));
                            resumed.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            for run in runs {
                run.await.unwrap();
            }
        });
        assert_eq!(resumed.load(Ordering::Relaxed), 32 * rounds);
    }
    drop(senders);
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn runs_and_their_cancellations_race_without_loss() {
    // Half of the callers go away at a random moment; every closure is dropped
    // exactly once all the same.
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    const RUNS: usize = 2_000;
    let (all_dropped, wait) = std::sync::mpsc::channel::<()>();
    let fixture = Fixture::new(Place::Worker);
    fixture.block_on(async {
        let mut stay = Vec::new();
        for index in 0..RUNS {
            let (counted, all_dropped) = (Counted, all_dropped.clone());
            let run = Place::Worker.spawn(move || {
                let (_counted, _all_dropped) = (counted, all_dropped);
                STARTED.fetch_add(1, Ordering::Relaxed);
                for _ in 0..index % 7 {
                    await_sync(yield_now());
                }
            });
            if index % 2 == 0 {
                for _ in 0..index % 5 {
                    yield_now().await;
                }
                run.abort();
            } else {
                stay.push(run);
            }
        }
        for run in stay {
            run.await.unwrap();
        }
    });
    drop(fixture);
    drop(all_dropped);
    // Ends when the last closure is gone.
    assert!(wait.recv().is_err());
    assert_eq!(DROPPED.load(Ordering::Relaxed), RUNS);
    assert!(STARTED.load(Ordering::Relaxed) >= RUNS / 2);
}
