//! How a run that hops is handed to a worker, which is at its second poll.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::task::{Context, Waker};

use greenhack::{run_sync, workers};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

/// Polls a future once, and says whether it is ready.
fn poll_once<F: Future>(future: Pin<&mut F>) -> bool {
    future
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_ready()
}

/// A runtime, beside workers that have nothing to do any more.
fn multi_thread() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(run_sync(|| ()));
    runtime
}

#[test]
fn a_run_that_was_polled_twice_goes_on_by_itself() {
    let runtime = multi_thread();
    let task = async {
        let (sender, receiver) = oneshot::channel();
        let mut run = pin!(run_sync(move || sender.send(7).unwrap()));
        let _ = poll_once(run.as_mut());
        let _ = poll_once(run.as_mut());
        // The run is alive, and not polled.
        assert_eq!(receiver.await.unwrap(), 7);
    };
    runtime.block_on(runtime.spawn(task)).unwrap();
}

#[test]
fn a_run_starts_in_the_block_on_of_another_executor_within_a_task() {
    let runtime = multi_thread();
    let task = async { futures::executor::block_on(run_sync(|| 7)) };
    assert_eq!(runtime.block_on(runtime.spawn(task)).unwrap(), 7);
}

#[test]
fn a_run_starts_that_its_first_block_on_has_given_up() {
    let multi = multi_thread();
    let single = Builder::new_current_thread().build().unwrap();
    let mut run = run_sync(|| 7);
    single.block_on(async {
        // The runtime that is entered has many threads, so that the run hops.
        let _entered = multi.enter();
        let _ = poll_once(pin!(&mut run));
    });
    assert_eq!(multi.block_on(run), 7);
}

#[test]
fn a_run_starts_while_another_task_holds_the_thread_up() {
    let runtime = multi_thread();
    let (sender, receiver) = mpsc::channel();
    let task = async move {
        let (begin, begun) = oneshot::channel();
        // It is polled when the run has been polled first.
        let greedy = tokio::spawn(async move {
            begun.await.unwrap();
            tokio::task::block_in_place(|| receiver.recv().unwrap())
        });
        let mut begin = Some(begin);
        let mut run = pin!(run_sync(move || sender.send(7).unwrap()));
        poll_fn(|cx| {
            let poll = run.as_mut().poll(cx);
            if let Some(begin) = begin.take() {
                begin.send(()).unwrap();
            }
            poll
        })
        .await;
        greedy.await.unwrap()
    };
    assert_eq!(runtime.block_on(runtime.spawn(task)).unwrap(), 7);
}

#[test]
fn runs_that_were_pushed_together_are_all_started() {
    let runtime = multi_thread();
    let task = async {
        let (sender, receiver) = mpsc::channel();
        let runs: Vec<_> = (0..100)
            .map(|number| {
                let sender = sender.clone();
                tokio::spawn(run_sync(move || sender.send(number).unwrap()))
            })
            .collect();
        for run in runs {
            run.await.unwrap();
        }
        receiver.try_iter().sum::<u32>()
    };
    assert_eq!(runtime.block_on(runtime.spawn(task)).unwrap(), 4950);
}

#[test]
fn runs_that_are_dropped_before_their_second_poll_leave_nothing_in_the_queue() {
    let runtime = multi_thread();
    runtime.block_on(async {
        for _ in 0..100 {
            let _ = poll_once(pin!(run_sync(|| ())));
        }
        while workers::metrics().queued() > 0 {
            tokio::task::yield_now().await;
        }
    });
}
