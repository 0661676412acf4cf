//! Attacks on closures that borrow from the caller of a scope: wrappers of nested runs.
//!
//! What must hold: when a call returns or unwinds, none of its closures lives.
//! Where one can't end, the call never returns.
#![cfg(panic = "unwind")]

#[path = "soundness/help.rs"]
mod help;
#[path = "soundness/scoped.rs"]
mod scoped;
mod support;

use std::future::{Future, pending};
use std::mem;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::thread;

use futures::FutureExt;
use futures::future::join as join_futures;
use greenhack::{nested, run_sync_local};
use help::poll_once;
use scoped::{Living, in_both, pause};
use support::{Log, current_thread, on_drop, panic_of, text};
use tokio::task::{LocalSet, unconstrained, yield_now};

#[test]
fn a_nested_run_that_is_polled_after_its_end_says_so() {
    in_both(|| {
        let (message, ..) = panic_of(|| {
            nested(|| 1, async |mut run| (&mut run).await + (&mut run).await);
        });
        assert_eq!(message, "a nested run was polled after its end");
    });
}

#[test]
fn a_nested_run_ends_with_its_wrapper_whatever_that_does_with_it() {
    in_both(|| {
        let living = Living::default();
        let f = || {
            let _one = living.one();
            let _cleanup = on_drop(pause);
            (0..3).for_each(|_| pause());
            "served"
        };
        let check = |result: thread::Result<Option<&str>>, expected: Result<Option<&str>, &str>| {
            let result = result.map_err(|payload| text(&*payload));
            assert_eq!(result, expected.map_err(str::to_owned));
        };
        macro_rules! check {
            ($expected:expr, $wrap:expr) => {
                check(living.outlived_by(|| nested(f, $wrap)), $expected)
            };
        }
        check!(Ok(Some("served")), async |run| Some(run.await));
        check!(Ok(None), async |_| None);
        check!(Ok(None), async |run| {
            mem::forget(run);
            yield_now().await;
            None
        });
        check!(Ok(None), async |run| run.now_or_never());
        check!(Ok(None), async |run| {
            assert_eq!(run.now_or_never(), None);
            yield_now().await;
            None
        });
        check!(Err("before"), async |run| -> Option<&str> {
            let _run = run;
            resume_unwind(Box::new("before"))
        });
        check!(Err("half-way"), async |mut run| {
            assert!(poll_once(&mut run).await.is_pending());
            resume_unwind(Box::new("half-way"))
        });
        check!(Err("after"), async |run| {
            run.await;
            resume_unwind(Box::new("after"))
        });
        check!(Ok(Some("served")), async |run| {
            Some(LocalSet::new().run_until(run).await)
        });
        check!(Ok(Some("served")), async |run| {
            let set = LocalSet::new();
            Some(
                join_futures(set.run_until(run), unconstrained(yield_now()))
                    .await
                    .0,
            )
        });
        check!(Ok(Some("served")), async |mut run| {
            // Half of it in one place, the rest in another.
            let set = LocalSet::new();
            assert!(set.run_until(poll_once(&mut run)).await.is_pending());
            drop(set);
            Some(unconstrained(run).await)
        });
        check!(Ok(Some("served")), async |mut run| {
            // With a waker that wakes nobody, then with the task's.
            let mut cx = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut run).poll(&mut cx).is_pending());
            Some(run.await)
        });
        // What would deadlock in a release build is refused in others.
        if cfg!(debug_assertions) {
            let refused = living.outlived_by(|| {
                nested(pause, async |run| futures::executor::block_on(run));
            });
            assert!(text(&*refused.unwrap_err()).contains("futures::executor"));
        }
        // The caller can go on.
        pause();
    });
}

#[test]
fn deep_nests_end_and_are_cancelled() {
    fn nest(depth: u32, log: &Log) -> u32 {
        let _guard = log.on_drop("left");
        if depth == 0 {
            pause();
            pause();
            return 0;
        }
        nested(
            || nest(depth - 1, log) + 1,
            async |run| {
                tokio::select! {
                    depth = run => depth,
                    () = pending() => unreachable!(),
                }
            },
        )
    }
    const DEPTH: u32 = 50;
    in_both(|| {
        let log = Log::default();
        assert_eq!(nest(DEPTH, &log), DEPTH);
        assert_eq!(log.take().len(), DEPTH as usize + 1);
    });
    current_thread().block_on(async {
        let log = Log::default();
        let mut run = run_sync_local({
            let log = log.clone();
            move || nest(DEPTH, &log)
        });
        assert!(poll_once(&mut run).await.is_pending());
        drop(run);
        assert_eq!(log.take().len(), DEPTH as usize + 1);
    });
}
