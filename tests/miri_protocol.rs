//! The protocol between a run and the task that polls it, one step at a time.
//!
//! Miri runs this file with a thread in the place of each stack, so nothing on
//! a run's side asks for tokio's context. The tests with `leak` in their names
//! leave a suspended run behind, and so, under Miri, a thread.

#[path = "support/log.rs"]
mod log;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::join;
use futures::poll;
use greenhack::{
    Ambient, Cancelled, await_in_drop, await_or_cancelled, await_sync, in_context, leaked_runs,
    no_suspend, run_sync, run_sync_local, shield, try_await_sync, with_ambient,
};
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use log::{Log, Mark};

/// How often the swallowers may be thrown at.
const MOST_THROWS: usize = 32;

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

/// Lets the tasks of the runtime run until they are idle.
fn settle(rt: &Runtime) {
    rt.block_on(async {
        for _ in 0..16 {
            yield_now().await;
        }
    });
}

/// Polls a run once, which must leave it pending.
fn start<F: Future<Output: std::fmt::Debug> + Unpin>(rt: &Runtime, run: &mut F) {
    rt.block_on(async { assert!(poll!(run).is_pending()) });
}

/// Is pending for `times` polls.
struct Polls {
    times: u32,
}

impl Future for Polls {
    type Output = &'static str;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.times == 0 {
            return Poll::Ready("ready");
        }
        self.times -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Awaits when it is dropped.
struct AwaitOnDrop {
    log: Log,
    polls: u32,
}

impl Drop for AwaitOnDrop {
    fn drop(&mut self) {
        self.log.add("destructor begins");
        await_sync(Polls { times: self.polls });
        self.log.add("destructor ends");
    }
}

// Waiting.

#[test]
fn a_ready_future_gives_its_output() {
    let output = runtime().block_on(run_sync_local(|| await_sync(ready(String::from("7")))));
    assert_eq!(output, "7");
}

#[test]
fn a_pending_future_is_polled_until_it_is_ready() {
    let run = run_sync_local(|| {
        let first = await_sync(Polls { times: 3 });
        let second = await_sync(Polls { times: 1 });
        (first, second)
    });
    assert_eq!(runtime().block_on(run), ("ready", "ready"));
}

#[test]
fn a_future_borrows_from_its_caller() {
    let run = run_sync_local(|| {
        let mut values = vec![1];
        let sum = Cell::new(0);
        for round in 0..3 {
            let last = await_sync(async {
                values.push(round);
                yield_now().await;
                values.push(round + 10);
                sum.set(sum.get() + values.iter().sum::<u32>());
                values.last().copied()
            });
            assert_eq!(last, values.last().copied());
        }
        (values, sum.get())
    });
    let expected = (vec![1, 0, 10, 1, 11, 2, 12], 11 + 23 + 37);
    assert_eq!(runtime().block_on(run), expected);
}

#[test]
fn a_future_borrows_from_itself() {
    let run = run_sync_local(|| {
        await_sync(async {
            let mut values = [1, 2, 3];
            let borrowed = &mut values;
            for value in borrowed.iter_mut() {
                yield_now().await;
                *value *= 2;
            }
            borrowed.iter().sum::<i32>()
        })
    });
    assert_eq!(runtime().block_on(run), 12);
}

#[test]
fn an_unpin_future_that_borrows_uniquely_is_polled_again() {
    let run = run_sync_local(|| {
        let mut polls = 0;
        let mut inner = Polls { times: 2 };
        let output = await_sync(poll_fn(|cx| {
            polls += 1;
            Pin::new(&mut inner).poll(cx)
        }));
        (output, polls, inner.times)
    });
    assert_eq!(runtime().block_on(run), ("ready", 3, 0));
}

#[test]
fn a_pinned_future_of_the_caller_goes_on_in_a_second_wait() {
    let run = run_sync_local(|| {
        let mut future = pin!(async {
            let text = String::from("kept");
            let borrowed = &text;
            yield_now().await;
            yield_now().await;
            borrowed.len()
        });
        assert!(await_sync(async { poll!(future.as_mut()) }).is_pending());
        await_sync(future)
    });
    assert_eq!(runtime().block_on(run), 4);
}

#[test]
fn what_is_polled_is_not_in_the_run() {
    let run = run_sync_local(|| {
        let polled = await_sync(async {
            let refused = try_await_sync(ready(1)).unwrap_err();
            (
                in_context(),
                refused.is_async_code(),
                refused.into_inner().await,
            )
        });
        (in_context(), polled)
    });
    assert_eq!(runtime().block_on(run), (true, (false, true, 1)));
}

#[test]
fn two_runs_take_turns() {
    let log = Log::default();
    let run = |name: [&'static str; 2]| {
        let log = log.clone();
        run_sync_local(move || {
            for step in name {
                log.add(step);
                await_sync(yield_now());
            }
        })
    };
    runtime().block_on(join(run(["a1", "a2"]), run(["b1", "b2"])));
    log.is(&["a1", "b1", "a2", "b2"]);
}

#[test]
fn runs_nest() {
    fn nested(depth: u32) -> u32 {
        if depth == 0 {
            await_sync(Polls { times: 2 });
            return 0;
        }
        await_sync(async {
            yield_now().await;
            1 + run_sync(move || nested(depth - 1)).await
        })
    }
    assert_eq!(runtime().block_on(run_sync_local(|| nested(4))), 4);
}

#[test]
fn a_run_that_suspends_where_it_must_not_goes_on() {
    let log = Log::default();
    let mark = log.mark("future");
    let run = run_sync_local(move || {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            no_suspend(|| await_sync(mark.then(pending::<()>())))
        }));
        assert!(caught.is_err());
        await_sync(Polls { times: 1 })
    });
    assert_eq!(runtime().block_on(run), "ready");
    log.is(&["future outside"]);
}

// Panics.

#[test]
fn contexts_are_mounted_and_unmounted_around_each_poll() {
    struct Logs(Log, [&'static str; 2]);
    impl Ambient for Logs {
        fn mount(&mut self) {
            assert!(!in_context());
            self.0.add(self.1[0]);
        }
        fn unmount(&mut self) {
            assert!(try_await_sync(ready(())).is_err());
            self.0.add(self.1[1]);
        }
    }
    let rt = runtime();
    let log = Log::default();
    let inner = log.clone();
    let mut run = run_sync_local(move || {
        with_ambient(Logs(inner.clone(), ["+a", "-a"]), || {
            assert!(in_context());
            let panics = catch_unwind(AssertUnwindSafe(|| {
                with_ambient(Logs(inner.clone(), ["+b", "-b"]), || {
                    await_sync(Polls { times: 1 });
                    resume_unwind(Box::new("in b"));
                })
            }));
            assert!(panics.is_err());
            let _mark = inner.mark("frame");
            await_sync(pending::<()>());
        });
    });
    start(&rt, &mut run);
    log.is(&["+a", "+b", "-b", "-a"]);
    start(&rt, &mut run);
    drop(run);
    log.is(&[
        "+a",
        "+b",
        "-b",
        "-a",
        "+a",
        "+b",
        "-b",
        "-a",
        "+a",
        "frame in a run",
        "-a",
    ]);
}

#[test]
fn a_panic_of_the_future_is_caught_at_the_wait() {
    let run = run_sync_local(|| {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            await_sync(async {
                yield_now().await;
                resume_unwind(Box::new(String::from("of the future")));
            })
        }));
        let payload = caught.unwrap_err().downcast::<String>().unwrap();
        (payload, await_sync(Polls { times: 1 }))
    });
    let (payload, after) = runtime().block_on(run);
    assert_eq!((payload.as_str(), after), ("of the future", "ready"));
}

#[test]
fn a_panic_of_the_run_arrives_at_its_awaiter() {
    let log = Log::default();
    let mark = log.mark("frame");
    let run = run_sync_local(move || {
        let _mark = mark;
        await_sync(yield_now());
        resume_unwind(Box::new(String::from("of the run")));
    });
    let rt = runtime();
    let caught = catch_unwind(AssertUnwindSafe(|| rt.block_on(run)));
    let payload = caught.unwrap_err().downcast::<String>().unwrap();
    assert_eq!(*payload, "of the run");
    log.is(&["frame in a run"]);
}

#[test]
fn a_destructor_awaits_during_a_panic() {
    let log = Log::default();
    let guard = AwaitOnDrop {
        log: log.clone(),
        polls: 2,
    };
    let run = run_sync_local(move || {
        let _guard = guard;
        resume_unwind(Box::new("of the run"));
    });
    let rt = runtime();
    let caught = catch_unwind(AssertUnwindSafe(|| rt.block_on(run)));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"of the run"));
    log.is(&["destructor begins", "destructor ends"]);
}

// Cancellation.

#[test]
fn a_run_that_never_started_drops_its_closure() {
    let log = Log::default();
    let (first, second) = (log.mark("local"), log.mark("run"));
    drop(run_sync_local(move || drop(first)));
    log.is(&["local outside"]);
    let value = Cell::new(1);
    drop(run_sync(move || value.get()));
    drop(second);
    log.is(&["local outside", "run outside"]);
}

#[test]
fn a_cancellation_drops_the_future_and_then_the_frames() {
    let log = Log::default();
    let (outer, inner, future) = (log.mark("outer"), log.mark("inner"), log.mark("future"));
    fn deeper(_inner: Mark, future: Mark) {
        await_sync(future.then(pending::<()>()));
    }
    let mut run = run_sync_local(move || {
        let _outer = outer;
        deeper(inner, future);
        unreachable!("a cancelled wait returns");
    });
    let rt = runtime();
    start(&rt, &mut run);
    log.is(&[]);
    drop(run);
    log.is(&["future outside", "inner in a run", "outer in a run"]);
}

#[test]
fn a_cancellation_can_be_seen_and_passed_on() {
    let log = Log::default();
    let inner = log.clone();
    let mut run = run_sync_local(move || {
        let caught = catch_unwind(|| await_sync(pending::<()>())).unwrap_err();
        assert!(caught.is::<Cancelled>());
        inner.add("seen");
        resume_unwind(caught);
    });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    log.is(&["seen"]);
}

#[test]
fn a_cancelled_run_may_end_with_a_value() {
    let log = Log::default();
    let value = log.mark("value");
    let mut run = run_sync_local(move || {
        assert!(catch_unwind(|| await_sync(pending::<()>())).is_err());
        value
    });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    log.is(&["value outside"]);
}

#[test]
fn a_panic_in_the_drop_of_the_future_leaves_the_drop_of_the_run() {
    struct PanicOnDrop;
    impl Drop for PanicOnDrop {
        fn drop(&mut self) {
            resume_unwind(Box::new("of the drop"));
        }
    }
    let log = Log::default();
    let frame = log.mark("frame");
    let mut run = run_sync_local(move || {
        let _frame = frame;
        let guard = PanicOnDrop;
        await_sync(async move {
            let _guard = guard;
            pending::<()>().await;
        });
    });
    let rt = runtime();
    start(&rt, &mut run);
    let caught = catch_unwind(AssertUnwindSafe(|| drop(run)));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"of the drop"));
    log.is(&["frame in a run"]);
}

#[test]
fn a_destructor_awaits_during_a_cancellation() {
    let log = Log::default();
    let guard = AwaitOnDrop {
        log: log.clone(),
        polls: 3,
    };
    let outer = log.mark("outer");
    let mut run = run_sync_local(move || {
        let _outer = outer;
        let _guard = guard;
        await_sync(pending::<()>());
    });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    log.is(&["destructor begins"]);
    settle(&rt);
    log.is(&["destructor begins", "destructor ends", "outer in a run"]);
}

#[test]
fn a_destructor_awaits_while_its_runtime_is_dropped() {
    let log = Log::default();
    let guard = AwaitOnDrop {
        log: log.clone(),
        polls: 3,
    };
    let rt = runtime();
    rt.block_on(async {
        let local = tokio::task::LocalSet::new();
        local.spawn_local(run_sync_local(move || {
            let _guard = guard;
            await_sync(pending::<()>());
        }));
        local.run_until(yield_now()).await;
        drop(local);
    });
    drop(rt);
    log.is(&["destructor begins", "destructor ends"]);
}

#[test]
fn a_cancellation_in_the_destructor_of_a_panic_keeps_the_panic() {
    let log = Log::default();
    let guard = AwaitOnDrop {
        log: log.clone(),
        polls: 2,
    };
    let inner = log.clone();
    let mut run = run_sync_local(move || {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _guard = guard;
            resume_unwind(Box::new("of the run"));
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"of the run"));
        inner.add("caught");
        await_sync(ready(()));
        unreachable!("the cancellation waits for the next wait");
    });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    log.is(&["destructor begins"]);
    settle(&rt);
    log.is(&["destructor begins", "destructor ends", "caught"]);
}

#[test]
fn a_cancellation_reaches_nested_runs() {
    let log = Log::default();
    let marks = [log.mark("outer"), log.mark("future"), log.mark("inner")];
    let [outer, future, inner] = marks;
    let mut run = run_sync_local(move || {
        let _outer = outer;
        await_sync(future.then(run_sync_local(move || {
            let _inner = inner;
            await_sync(pending::<()>());
        })));
    });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    log.is(&["inner in a run", "future outside", "outer in a run"]);
}

#[test]
fn a_nested_run_that_awaits_in_a_destructor_outlives_its_parent() {
    let log = Log::default();
    let guard = AwaitOnDrop {
        log: log.clone(),
        polls: 2,
    };
    let outer = log.mark("outer");
    let mut run = run_sync_local(move || {
        let _outer = outer;
        await_sync(run_sync_local(move || {
            let _guard = guard;
            await_sync(pending::<()>());
        }));
    });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    log.is(&["destructor begins", "outer in a run"]);
    settle(&rt);
    log.is(&["destructor begins", "outer in a run", "destructor ends"]);
}

#[test]
fn a_shield_holds_the_cancellation_back() {
    let log = Log::default();
    let (inner, frame) = (log.clone(), log.mark("frame"));
    let mut run = run_sync_local(move || {
        let _frame = frame;
        shield(|| {
            inner.add(await_sync(Polls { times: 2 }));
            inner.add(await_sync(Polls { times: 2 }));
        });
        unreachable!("the cancellation arrives at the end of the shield");
    });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    log.is(&[]);
    settle(&rt);
    log.is(&["ready", "ready", "frame in a run"]);
}

#[test]
fn a_cancellation_is_an_error_where_it_is_asked_for() {
    let log = Log::default();
    let (inner, future) = (log.clone(), log.mark("future"));
    let mut run = run_sync_local(move || {
        assert!(await_or_cancelled(future.then(pending::<()>())).is_err());
        inner.add("first");
        assert!(await_or_cancelled(ready(())).is_err());
        inner.add("second");
    });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    log.is(&["future outside", "first", "second"]);
}

#[test]
fn cleanup_ends_with_its_budget() {
    let log = Log::default();
    struct Cleanup(Mark);
    impl Drop for Cleanup {
        fn drop(&mut self) {
            self.0.log().add("cleanup begins");
            assert_eq!(await_in_drop(pending::<()>()), None);
        }
    }
    let guard = Cleanup(log.mark("guard"));
    let mut run = greenhack::builder()
        .cleanup_budget(Duration::from_secs(1))
        .run_sync_local(move || {
            let _guard = guard;
            await_sync(pending::<()>());
        });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    log.is(&["cleanup begins"]);
    rt.block_on(async { tokio::time::sleep(Duration::from_secs(2)).await });
    log.is(&["cleanup begins", "guard in a run"]);
}

#[test]
fn a_swallower_meets_its_cancellation_again() {
    let log = Log::default();
    let (inner, frame) = (log.clone(), log.mark("frame"));
    let mut run = run_sync_local(move || {
        let _frame = frame;
        for _ in 0..MOST_THROWS - 1 {
            assert!(catch_unwind(|| await_sync(pending::<()>())).is_err());
            inner.add("swallowed");
        }
        await_sync(pending::<()>());
    });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    let mut expected = vec!["swallowed"; MOST_THROWS - 1];
    expected.push("frame in a run");
    log.is(&expected);
}

// What is left behind.

#[test]
fn an_endless_swallower_is_leaked() {
    let throws = Rc::new(Cell::new(0));
    let inner = throws.clone();
    let mut run = run_sync_local(move || {
        loop {
            assert!(catch_unwind(|| await_sync(pending::<()>())).is_err());
            inner.set(inner.get() + 1);
        }
    });
    let rt = runtime();
    start(&rt, &mut run);
    let before = leaked_runs();
    drop(run);
    assert_eq!(throws.get(), MOST_THROWS);
    assert!(leaked_runs() > before);
    settle(&rt);
    assert_eq!(throws.get(), MOST_THROWS);
}

#[test]
fn a_forgotten_run_leaks_as_it_is() {
    let log = Log::default();
    let (frame, shared) = (log.mark("frame"), Rc::new(RefCell::new(vec![1])));
    let inner = shared.clone();
    let mut run = run_sync_local(move || {
        let _frame = frame;
        let mut borrowed = inner.borrow_mut();
        await_sync(async {
            borrowed.push(2);
            pending::<()>().await;
        });
    });
    let rt = runtime();
    start(&rt, &mut run);
    std::mem::forget(run);
    drop(rt);
    log.is(&[]);
    assert!(shared.try_borrow().is_err());
}

#[test]
fn an_endless_cleanup_is_leaked_when_its_budget_ends() {
    let log = Log::default();
    let guard = AwaitOnDrop {
        log: log.clone(),
        polls: u32::MAX,
    };
    let mut run = greenhack::builder()
        .cleanup_budget(Duration::from_millis(10))
        .run_sync_local(move || {
            let _guard = guard;
            await_sync(pending::<()>());
        });
    let rt = runtime();
    start(&rt, &mut run);
    drop(run);
    let before = leaked_runs();
    rt.block_on(async {
        tokio::time::advance(Duration::from_millis(20)).await;
        yield_now().await;
    });
    drop(rt);
    assert!(leaked_runs() > before);
    log.is(&["destructor begins"]);
}
