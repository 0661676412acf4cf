//! Drops suspended runs in a program that is built with `panic = "abort"`.
//!
//! Nothing can unwind here, so each run must be detached and go on to its end.
//! `ci/abort.sh` counts the lines that this prints.

use std::cell::Cell;
use std::convert::Infallible;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use greenhack::guard::{self, Exit, Guard, Teardown};
use greenhack::io::body;
use greenhack::stream::generate;
use greenhack::{await_or_cancelled, await_sync, nested, race, run_sync, run_sync_local, shield};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc};
use tokio::task::{LocalSet, yield_now};
use tokio::time::{sleep, timeout};

fn main() {
    let current_thread = Builder::new_current_thread().enable_all().build().unwrap();
    let multi_thread = Builder::new_multi_thread().enable_all().build().unwrap();
    dropped("in place", &current_thread);
    dropped("on a worker", &multi_thread);
    aborted("in place", &current_thread);
    aborted("on a worker", &multi_thread);
    local(&current_thread);
    outside(&current_thread);
    scoped("in place", &current_thread);
    scoped("on a worker", &multi_thread);
    guarded("in place", &current_thread);
    guarded("on a worker", &multi_thread);
    timed("in place", &current_thread);
    timed("on a worker", &multi_thread);
    written("in place", &current_thread);
    written("on a worker", &multi_thread);
    generated("in place", &current_thread);
    generated("on a worker", &multi_thread);
    assert_eq!(greenhack::leaked_runs(), 0);
}

/// A plain function that is still waiting when its caller has gone.
fn serve(name: &str, go: &Notify, ended: &mpsc::Sender<()>) {
    await_sync(go.notified());
    await_sync(sleep(Duration::from_millis(1)));
    shield(|| await_sync(yield_now()));
    // Nobody is told of a cancellation that can't be carried out.
    assert_eq!(await_or_cancelled(async { 7 }), Ok(7));
    println!("ended: {name}");
    await_sync(ended.send(())).unwrap();
}

/// The future of the run is dropped by a timeout.
fn dropped(place: &str, rt: &Runtime) {
    rt.block_on(async {
        let (sender, mut ended) = mpsc::channel(1);
        let go = Arc::new(Notify::new());
        let (name, inner) = (format!("a run that was dropped {place}"), go.clone());
        let run = run_sync(move || serve(&name, &inner, &sender));
        assert!(timeout(Duration::from_millis(20), run).await.is_err());
        go.notify_one();
        ended.recv().await.unwrap();
        // The run's own end has dropped the sender.
        assert!(ended.recv().await.is_none());
    });
}

/// The task of the run is aborted.
fn aborted(place: &str, rt: &Runtime) {
    rt.block_on(async {
        let (sender, mut ended) = mpsc::channel(1);
        let go = Arc::new(Notify::new());
        let (name, inner) = (format!("a task that was aborted {place}"), go.clone());
        let started = Arc::new(AtomicUsize::new(0));
        let starts = started.clone();
        let task = tokio::spawn(run_sync(move || {
            starts.fetch_add(1, Ordering::Relaxed);
            serve(&name, &inner, &sender);
        }));
        while started.load(Ordering::Relaxed) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        go.notify_one();
        ended.recv().await.unwrap();
    });
}

/// A local run is dropped in a `LocalSet`.
fn local(rt: &Runtime) {
    rt.block_on(LocalSet::new().run_until(async {
        let (sender, mut ended) = mpsc::channel(1);
        let go = Arc::new(Notify::new());
        let inner = go.clone();
        let run = run_sync_local(move || serve("a local run that was dropped", &inner, &sender));
        assert!(timeout(Duration::from_millis(20), run).await.is_err());
        go.notify_one();
        ended.recv().await.unwrap();
    }));
}

/// A run is dropped while its runtime does not run.
fn outside(rt: &Runtime) {
    let (sender, mut ended) = mpsc::channel(1);
    let go = Arc::new(Notify::new());
    let inner = go.clone();
    let mut run = Box::pin(run_sync_local(move || {
        serve("a run that was dropped outside", &inner, &sender);
    }));
    rt.block_on(async { assert!(timeout(Duration::from_millis(20), &mut run).await.is_err()) });
    drop(run);
    go.notify_one();
    rt.block_on(async { ended.recv().await.unwrap() });
}

/// A run is dropped while it waits for closures that have lost.
fn scoped(place: &str, rt: &Runtime) {
    rt.block_on(async {
        let (sender, mut ended) = mpsc::channel(1);
        let go = Arc::new(Notify::new());
        let (name, inner) = (
            format!("closures of a run that was dropped {place}"),
            go.clone(),
        );
        let run = run_sync(move || {
            let has_lost = Cell::new(false);
            let loser = || {
                await_sync(inner.notified());
                has_lost.set(true);
            };
            race([&loser as &dyn Fn(), &|| ()]);
            // Nobody has told it to end.
            assert!(has_lost.get());
            let f = || serve(&name, &inner, &sender);
            nested(f, async |run| {
                tokio::select! {
                    biased;
                    () = run => unreachable!(),
                    () = async {} => {}
                }
            });
        });
        assert!(timeout(Duration::from_millis(20), run).await.is_err());
        go.notify_one();
        yield_now().await;
        go.notify_one();
        ended.recv().await.unwrap();
        assert!(ended.recv().await.is_none());
    });
}

/// Tells how its scope has ended, and that it has.
struct Told(&'static str, mpsc::Sender<()>);

impl Teardown for Told {
    async fn teardown(self, exit: Exit<'_>) -> Result<(), Infallible> {
        assert_eq!(format!("{exit:?}"), self.0);
        self.1.send(()).await.unwrap();
        Ok(())
    }
}

/// A run is dropped in scopes: they end as if nothing had happened.
fn guarded(place: &str, rt: &Runtime) {
    rt.block_on(async {
        let (sender, mut ended) = mpsc::channel(1);
        let go = Arc::new(Notify::new());
        let (name, inner) = (
            format!("the scopes of a run that was dropped {place}"),
            go.clone(),
        );
        let run = run_sync(move || {
            let _guard = Guard::new(Told("Dropped", sender.clone()));
            let Ok(()) = guard::with(Told("Returned", sender.clone()), |_| {
                serve(&name, &inner, &sender);
                Ok(())
            });
        });
        assert!(timeout(Duration::from_millis(20), run).await.is_err());
        go.notify_one();
        // By the closure, by `with`, by the guard, and then by no one.
        for _ in 0..3 {
            ended.recv().await.unwrap();
        }
        assert!(ended.recv().await.is_none());
    });
}

/// A closure goes on when its time is over, and is waited for.
fn timed(place: &str, rt: &Runtime) {
    rt.block_on(async {
        let (sender, mut ended) = mpsc::channel(1);
        let go = Notify::new();
        go.notify_one();
        let name = format!("a closure whose time was over {place}");
        let run = run_sync(move || {
            let late = greenhack::time::timeout(Duration::from_millis(1), || {
                await_sync(sleep(Duration::from_millis(20)));
                serve(&name, &go, &sender);
            });
            assert!(late.is_err());
            sender.is_closed()
        });
        assert!(!run.await);
        ended.recv().await.unwrap();
    });
}

/// The stream of what plain code writes is dropped.
fn written(place: &str, rt: &Runtime) {
    rt.block_on(async {
        let (sender, mut ended) = mpsc::channel(1);
        let (go, then) = (Arc::new(Notify::new()), Notify::new());
        then.notify_one();
        let (name, inner) = (
            format!("the writer of a body that was dropped {place}"),
            go.clone(),
        );
        let mut chunks = body(move |out| {
            out.write_all(b"soup")?;
            out.flush()?;
            await_sync(inner.notified());
            out.write_all(b"rice")?;
            let error = out.flush().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            serve(&name, &then, &sender);
            Err(error)
        });
        assert_eq!(chunks.next().await.unwrap().unwrap(), "soup");
        drop(chunks);
        go.notify_one();
        ended.recv().await.unwrap();
        assert!(ended.recv().await.is_none());
    });
}

/// A generator is dropped, and goes on to its next item.
fn generated(place: &str, rt: &Runtime) {
    rt.block_on(async {
        let (sender, mut steps) = mpsc::channel(1);
        let go = Arc::new(Notify::new());
        let inner = go.clone();
        let mut numbers = generate(move |yielder| {
            yielder.yield_(1);
            await_sync(sender.send(())).unwrap();
            await_sync(inner.notified());
            await_sync(sender.send(())).unwrap();
            yielder.yield_(2);
            unreachable!("nobody has asked for a third");
        });
        assert_eq!(numbers.next().await, Some(1));
        tokio::select! {
            _ = numbers.next() => unreachable!(),
            step = steps.recv() => step.unwrap(),
        }
        drop(numbers);
        go.notify_one();
        steps.recv().await.unwrap();
        // It has its turns, as others have.
        for _ in 0..9 {
            run_sync(|| await_sync(yield_now())).await;
        }
        assert!(!steps.is_closed() && steps.is_empty());
        println!("stays: a generator that was dropped {place}");
    });
}
