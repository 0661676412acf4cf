//! The protocol between a scope and its closures, one step at a time.
//!
//! As `miri_protocol.rs`, for Miri with a thread in the place of each stack. The
//! tests with `leak` in their names leave suspended stacks behind.

#[path = "support/log.rs"]
mod log;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use futures::FutureExt;
use futures::poll;
use greenhack::dump::{Stack, State, this_thread};
use greenhack::{
    Cancelled, await_in_drop, await_sync, join, join_all, leaked_runs, map_concurrent, nested,
    no_suspend, race, run_sync_local, scope,
};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{spawn_local, yield_now};

use log::{Log, Mark};

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// Polls a run once, which must leave it pending.
fn start<F: Future<Output: std::fmt::Debug> + Unpin>(rt: &Runtime, run: &mut F) {
    rt.block_on(async { assert!(poll!(run).is_pending()) });
}

/// Lets the tasks of the runtime run until they are idle.
fn settle(rt: &Runtime) {
    rt.block_on(async {
        for _ in 0..16 {
            yield_now().await;
        }
    });
}

fn pause() {
    await_sync(yield_now());
}

/// Awaits when it is dropped, and then is an event.
struct Cleanup(Mark);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let woken = await_in_drop(yield_now()).is_some();
        self.0
            .log()
            .add(if woken { "cleaned up" } else { "gave up" });
    }
}

#[test]
fn closures_change_what_their_caller_has() {
    let run = run_sync_local(|| {
        let mut values = [1, 2, 3];
        let sum = Cell::new(0);
        let lengths = join_all(values.iter_mut().map(|value| {
            let sum = &sum;
            move || {
                let text = "x".repeat(*value);
                pause();
                *value *= 10;
                sum.set(sum.get() + *value);
                await_sync(async {
                    yield_now().await;
                    *value += text.len();
                });
                text.len()
            }
        }));
        (values, sum.get(), lengths)
    });
    assert_eq!(runtime().block_on(run), ([11, 22, 33], 60, vec![1, 2, 3]));
}

#[test]
fn scopes_nest_and_hand_results_over() {
    let run = run_sync_local(|| {
        let words = vec![String::from("soup"), String::from("stew")];
        let log = RefCell::new(Vec::new());
        let length = scope(|s| {
            let first = s.spawn(|| {
                s.spawn(|| log.borrow_mut().push(words[1].len()));
                pause();
                words[0].as_str()
            });
            let second = s.spawn(|| {
                let pair = join(
                    || words[0].len(),
                    || map_concurrent(2, &words, |word| word.len()),
                );
                log.borrow_mut().extend(pair.1);
                first.join().unwrap().len()
            });
            second.join().unwrap()
        });
        log.borrow_mut().sort();
        (length, log.into_inner())
    });
    assert_eq!(runtime().block_on(run), (4, vec![4, 4, 4]));
}

#[test]
fn losers_end_before_the_race_returns() {
    let log = Log::default();
    let cleanup = Cleanup(log.mark("loser"));
    let run = run_sync_local(move || {
        let prize = String::from("prize");
        let loser = || {
            let _cleanup = cleanup;
            await_sync(pending())
        };
        let winner = || {
            pause();
            prize.len()
        };
        let closures: [Box<dyn FnOnce() -> usize>; 2] = [Box::new(loser), Box::new(winner)];
        race(closures)
    });
    assert_eq!(runtime().block_on(run), 5);
    log.is(&["cleaned up", "loser in a run"]);
}

#[test]
fn a_panic_ends_the_siblings_first() {
    let log = Log::default();
    let (cleanup, unstarted) = (Cleanup(log.mark("sibling")), log.mark("unstarted"));
    let run = run_sync_local(move || {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            scope(|s| {
                s.spawn(|| {
                    let _cleanup = cleanup;
                    await_sync(pending::<()>());
                });
                pause();
                s.spawn(move || drop(unstarted));
                resume_unwind(Box::new(String::from("burnt")));
            });
        }));
        *caught.unwrap_err().downcast::<String>().unwrap()
    });
    assert_eq!(runtime().block_on(run), "burnt");
    log.is(&["unstarted in a run", "cleaned up", "sibling in a run"]);
}

#[test]
fn a_cancellation_passes_through_nested_scopes() {
    let log = Log::default();
    let (caller, cleanup) = (log.mark("caller"), Cleanup(log.mark("closure")));
    let mut run = run_sync_local(move || {
        let caller = caller;
        let closure = || {
            let _cleanup = cleanup;
            await_sync(pending::<()>());
            drop(caller);
        };
        nested(|| join(closure, || ()), async |run| run.await);
    });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    settle(&rt);
    log.is(&["cleaned up", "closure in a run", "caller in a run"]);
}

#[test]
fn a_nested_run_is_polled_by_its_wrapper_and_then_by_its_caller() {
    let log = Log::default();
    let cleanup = Cleanup(log.mark("closure"));
    let run = run_sync_local(move || {
        let text = String::from("borrowed");
        nested(
            || {
                let _cleanup = cleanup;
                pause();
                let length = await_sync(async { text.len() });
                await_sync(pending::<()>());
                length
            },
            async |mut run| {
                assert!((&mut run).now_or_never().is_none());
                yield_now().await;
                assert!((&mut run).now_or_never().is_none());
            },
        );
        nested(|| text.len(), async |run| run.await + 1)
    });
    assert_eq!(runtime().block_on(run), 9);
    log.is(&["cleaned up", "closure in a run"]);
}

/// Panics when it is woken.
struct Hostile;

impl Wake for Hostile {
    fn wake(self: Arc<Self>) {
        resume_unwind(Box::new("woken"));
    }
}

#[test]
fn a_waker_that_panics_leaves_no_closure_behind() {
    let log = Log::default();
    let cleanup = Cleanup(log.mark("closure"));
    let run = run_sync_local(move || {
        let text = String::from("borrowed");
        nested(
            || {
                let _cleanup = cleanup;
                await_sync(async {
                    pending::<()>().await;
                    drop(text);
                });
            },
            async |mut run| {
                let waker = Waker::from(Arc::new(Hostile));
                let poll = Pin::new(&mut run).poll(&mut Context::from_waker(&waker));
                assert!(matches!(poll, Poll::Pending));
            },
        );
    });
    runtime().block_on(run);
    log.is(&["cleaned up", "closure in a run"]);
}

#[test]
fn closures_end_where_their_caller_must_not_suspend() {
    let log = Log::default();
    let cleanup = Cleanup(log.mark("closure"));
    let run = run_sync_local(move || {
        let closure = || {
            let _cleanup = cleanup;
            await_sync(pending::<()>());
        };
        let refused = catch_unwind(AssertUnwindSafe(|| no_suspend(|| join(closure, || ()))));
        assert!(refused.is_err());
        pause();
    });
    runtime().block_on(run);
    log.is(&["cleaned up", "closure in a run"]);
}

#[test]
fn a_thread_that_may_block_waits_for_its_closures() {
    let text = String::from("borrowed");
    let rt = runtime();
    let _entered = rt.enter();
    let length = nested(
        || join(|| text.len(), || race([|| text.len()])),
        async |run| run.await,
    );
    assert_eq!(length, (8, 8));
}

// What is left behind.

#[test]
fn a_forgotten_run_leaks_with_its_closures() {
    let log = Log::default();
    let (caller, closure) = (log.mark("caller"), log.mark("closure"));
    let mut run = run_sync_local(move || {
        let caller = caller;
        join(
            || {
                let future = async {
                    pending::<()>().await;
                    drop(caller);
                };
                await_sync(closure.then(future));
            },
            || (),
        );
    });
    let rt = runtime();
    start(&rt, &mut run);
    std::mem::forget(run);
    settle(&rt);
    drop(rt);
    log.is(&[]);
}

#[test]
fn a_stuck_closure_leaks_with_its_caller() {
    let log = Log::default();
    let (caller, sibling) = (log.mark("caller"), log.mark("sibling"));
    let run = run_sync_local(move || {
        let caller = caller;
        /// Awaits where it can neither suspend nor fail.
        struct Stuck<'a>(&'a Mark);
        impl Drop for Stuck<'_> {
            fn drop(&mut self) {
                no_suspend(pause);
                self.0.log().add("unreachable");
            }
        }
        let stuck = || {
            let _stuck = Stuck(&caller);
            resume_unwind(Box::new("an ordinary panic"));
        };
        join(
            || {
                let _sibling = sibling;
                await_sync(pending::<()>());
            },
            || join(stuck, || ()),
        );
    });
    let before = leaked_runs();
    let set = tokio::task::LocalSet::new();
    let ended = set.block_on(&runtime(), async { spawn_local(run).await });
    assert!(ended.unwrap_err().is_panic());
    assert!(leaked_runs() > before);
    log.is(&["sibling in a run"]);
}

#[test]
fn a_cancelled_closure_is_no_panic() {
    let run = run_sync_local(|| {
        scope(|s| {
            let endless = s.spawn(|| await_sync(pending::<()>()));
            pause();
            endless.abort();
            endless.join().unwrap_err().is::<Cancelled>()
        })
    });
    assert!(runtime().block_on(run));
}

#[test]
fn a_caller_whose_closures_are_polled_gives_an_account() {
    let run = run_sync_local(|| {
        let text = String::from("borrowed");
        // Asked in a poll, which has borrowed two of the slots.
        let ask = || await_sync(async { this_thread() });
        join(pause, || {
            let states = ask().stacks().unwrap().iter().map(Stack::state).collect();
            (text.len(), states)
        })
    });
    let ((), (length, states)): (_, (_, Vec<_>)) = runtime().block_on(run);
    assert_eq!(length, 8);
    assert_eq!(states[0], State::InScope);
    if !cfg!(greenhack_threads) {
        assert_eq!(states[1..], [State::Waiting; 2]);
    }
}

#[test]
fn a_run_gives_an_account_and_goes_on() {
    let rt = runtime();
    let mut run = run_sync_local(|| {
        let _cleanup = "borrowed".to_owned();
        pause();
        await_sync(async {
            yield_now().await;
            7
        })
    });
    assert!(this_thread().stacks().unwrap().is_empty());
    for _ in 0..2 {
        start(&rt, &mut run);
        let line = |stack: &Stack| stack.location().unwrap().line();
        let lines = || {
            this_thread()
                .stacks()
                .unwrap()
                .iter()
                .map(line)
                .collect::<Vec<_>>()
        };
        assert_eq!(lines(), lines());
    }
    assert_eq!(rt.block_on(run), 7);
    assert!(this_thread().stacks().unwrap().is_empty());
}

#[test]
fn a_future_that_has_borrowed_from_its_run_may_ask_when_it_is_polled_and_dropped() {
    /// Asks, in the middle of using what it has borrowed from the frame that waits.
    struct Asks<'a>(&'a mut u32, &'a Cell<u32>);
    impl Asks<'_> {
        fn ask(&mut self) {
            let count = &mut *self.0;
            let thread = this_thread();
            let stacks = thread.stacks().unwrap();
            assert!(stacks[0].location().is_some());
            *count += 1;
            self.1.set(self.1.get() + *count);
        }
    }
    impl Future for Asks<'_> {
        type Output = ();
        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.ask();
            cx.waker().wake_by_ref();
            if *self.0 == 2 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }
    }
    impl Drop for Asks<'_> {
        fn drop(&mut self) {
            self.ask();
        }
    }
    let rt = runtime();
    let sum = std::rc::Rc::new(Cell::new(0));
    let sums = sum.clone();
    let mut run = run_sync_local(move || {
        let mut count = 0;
        // Polled twice, and dropped by its end.
        await_sync(Asks(&mut count, &sums));
        assert_eq!(count, 3);
        // Polled once, and dropped by the cancellation.
        await_sync(Asks(&mut count, &sums));
    });
    start(&rt, &mut run);
    start(&rt, &mut run);
    assert_eq!(sum.get(), 1 + 2 + 3 + 4);
    rt.block_on(async move { drop(run) });
    assert_eq!(sum.get(), 1 + 2 + 3 + 4 + 5);
    assert!(this_thread().stacks().unwrap().is_empty());
}

#[test]
fn a_run_that_is_dropped_on_another_thread_may_be_asked_meanwhile() {
    let rt = runtime();
    let mut run = greenhack::run_sync(|| {
        pause();
        pause();
    });
    start(&rt, &mut run);
    let dropped = std::thread::spawn(move || drop(run));
    let mut looks = 0;
    while !dropped.is_finished() || looks == 0 {
        let thread = this_thread();
        let [stack] = thread.stacks().unwrap() else {
            panic!("it waits until this thread is back in its runtime");
        };
        assert!(stack.location().is_some());
        looks += 1;
    }
    dropped.join().unwrap();
    settle(&rt);
    assert!(this_thread().stacks().unwrap().is_empty());
}
