//! When a run that hops is handed to a worker: it need not be polled again for that,
//! and nothing that the polling thread does next holds it up.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};

use greenhack::run_sync;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::block_in_place;

/// Polls a future once.
async fn poll_once(mut future: Pin<&mut impl Future>) {
    poll_fn(|cx| {
        let _ = future.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}

/// A runtime, beside workers that have nothing to do any more.
fn multi_thread() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(run_sync(|| ()));
    runtime
}

#[test]
fn a_run_that_was_polled_once_starts() {
    let task = async {
        let (sender, receiver) = oneshot::channel();
        let run = pin!(run_sync(move || sender.send(7).unwrap()));
        poll_once(run).await;
        // The run is alive, and not polled.
        assert_eq!(receiver.await.unwrap(), 7);
    };
    let runtime = multi_thread();
    runtime.block_on(runtime.spawn(task)).unwrap();
}

#[test]
fn a_run_starts_while_its_caller_is_in_block_in_place() {
    let task = async {
        let (sender, receiver) = mpsc::channel();
        let run = pin!(run_sync(move || sender.send(7).unwrap()));
        poll_once(run).await;
        assert_eq!(block_in_place(|| receiver.recv().unwrap()), 7);
    };
    let runtime = multi_thread();
    runtime.block_on(runtime.spawn(task)).unwrap();
}

#[test]
fn a_run_starts_while_the_thread_that_polled_it_blocks() {
    let poll_and_block = || {
        let (sender, receiver) = mpsc::channel();
        let run = pin!(run_sync(move || sender.send(7).unwrap()));
        let mut cx = Context::from_waker(Waker::noop());
        let _ = run.poll(&mut cx);
        assert_eq!(receiver.recv().unwrap(), 7);
    };
    // No scheduler is entered, so that there is nothing to wait for.
    let runtime = multi_thread();
    poll_and_block();
    runtime.block_on(async { poll_and_block() });
    runtime.block_on(async {
        Handle::current()
            .spawn_blocking(poll_and_block)
            .await
            .unwrap()
    });
}

#[test]
fn runs_that_were_pushed_together_are_all_started() {
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
    let runtime = multi_thread();
    assert_eq!(runtime.block_on(runtime.spawn(task)).unwrap(), 4950);
}
