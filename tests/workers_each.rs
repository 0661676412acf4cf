//! Workers of one's own, each with a future: `workers::Builder::run_each`.
#![cfg(panic = "unwind")]

mod support;

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::{Future, pending};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use greenhack::workers::{Builder, Worker, Workers};
use greenhack::{await_sync, leaked_runs, run_sync, run_sync_local};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use support::{Log, on_drop, signal};
use tokio::task::{spawn_local, yield_now};

const LONG: Duration = Duration::from_secs(60);

fn two() -> Builder {
    Builder::new().threads(2).thread_name("own")
}

#[greenhack::entry]
fn thread_of_an_entry() -> thread::ThreadId {
    await_sync(yield_now());
    thread::current().id()
}

#[test]
fn every_worker_runs_a_future_that_is_not_send() {
    let workers = two().run_each(|worker| async move {
        let names = Rc::new(RefCell::new(Vec::new()));
        let inner = names.clone();
        let task = spawn_local(async move {
            inner
                .borrow_mut()
                .push(thread::current().name().unwrap().to_owned());
        });
        task.await.unwrap();
        (worker.index(), names.take())
    });
    let names = |index: usize| (index, vec![format!("own-{index}")]);
    assert_eq!(await_sync(workers.unwrap()), [names(0), names(1)]);
}

#[test]
fn runs_are_in_place() {
    let workers = two().run_each(|_| async {
        let here = thread::current().id();
        let mut threads = HashSet::from([here]);
        threads.insert(run_sync(|| thread::current().id()).await);
        threads.insert(thread_of_an_entry().await);
        threads.insert(tokio::spawn(thread_of_an_entry()).await.unwrap());
        threads.insert(run_sync_local(|| thread::current().id()).await);
        (here, threads.len())
    });
    let each = await_sync(workers.unwrap());
    assert_ne!(each[0].0, each[1].0);
    assert_eq!([each[0].1, each[1].1], [1, 1]);
}

#[test]
fn the_closure_has_been_called_when_run_each_returns() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let workers = two().run_each(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        pending::<()>()
    });
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    await_sync(workers.unwrap().shutdown(LONG));
}

#[test]
fn a_shutdown_drops_the_futures_and_unwinds_the_runs_on_their_threads() {
    let log = Log::default();
    let of_workers = log.clone();
    let (started, has_started) = mpsc::channel();
    let workers = two().run_each(move |worker| async move {
        let (here, index) = (thread::current().id(), worker.index());
        let run = |what: &'static str| {
            let (log, started) = (of_workers.clone(), started.clone());
            move || {
                let _guard = on_drop(|| {
                    await_sync(tokio::time::sleep(Duration::from_millis(1)));
                    assert_eq!(thread::current().id(), here);
                    log.add(format!("{what} {index}"));
                });
                started.send(()).unwrap();
                await_sync(pending::<()>());
            }
        };
        drop(tokio::spawn(run_sync(run("task"))));
        run_sync(run("future")).await;
    });
    let workers = workers.unwrap();
    (0..4).for_each(|_| has_started.recv().unwrap());
    await_sync(workers.shutdown(LONG));
    let mut ended = log.take();
    ended.sort();
    assert_eq!(ended, ["future 0", "future 1", "task 0", "task 1"]);
    assert_eq!(leaked_runs(), 0);
}

#[test]
fn a_shutdown_leaks_what_has_not_ended_within_its_limit() {
    // Where no other test counts leaks.
    in_a_process_of_its_own(
        "a_shutdown_leaks_what_has_not_ended_within_its_limit",
        || {
            let log = Log::default();
            let of_workers = log.clone();
            let (started, has_started) = mpsc::channel();
            let (cleaning, cleans) = mpsc::channel();
            let workers = two().run_each(move |worker| async move {
                let run = move || {
                    let _guard = on_drop(move || {
                        await_sync(yield_now());
                        cleaning.send(worker.index()).unwrap();
                        if worker.index() == 1 {
                            await_sync(pending::<()>());
                        }
                        of_workers.add(format!("ended {}", worker.index()));
                    });
                    started.send(()).unwrap();
                    await_sync(pending::<()>());
                };
                // Its own budget is not what ends it.
                let builder = greenhack::builder().cleanup_budget(Duration::from_secs(3600));
                builder.run_sync(run).await;
            });
            let workers = workers.unwrap();
            (0..2).for_each(|_| has_started.recv().unwrap());
            await_sync(workers.shutdown(Duration::from_secs(1)));
            assert_eq!(cleans.try_iter().collect::<HashSet<_>>().len(), 2);
            assert_eq!(log.take(), ["ended 0"]);
            assert_eq!(leaked_runs(), 1);
        },
    );
}

#[test]
fn a_worker_that_was_given_up_and_goes_on_ends_without_a_panic() {
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let may_go_on = Arc::new(Mutex::new(may_go_on));
    let (ended, has_ended) = mpsc::channel();
    let (started, has_started) = mpsc::channel();
    let workers = Builder::new().threads(1).run_each(move |_| async move {
        yield_now().await;
        started.send(()).unwrap();
        // It blocks its thread.
        may_go_on.lock().unwrap().recv().unwrap();
        on_drop(move || ended.send(thread::panicking()).unwrap())
    });
    has_started.recv().unwrap();
    await_sync(workers.unwrap().shutdown(Duration::ZERO));
    go_on.send(()).unwrap();
    // What it returns is dropped at the end of its thread.
    assert_eq!(has_ended.recv(), Ok(false));
}

#[test]
fn the_limit_of_a_shutdown_is_that_of_a_cleanup_that_goes_on_already() {
    in_a_process_of_its_own(
        "the_limit_of_a_shutdown_is_that_of_a_cleanup_that_goes_on_already",
        || {
            let (cleaning, cleans) = mpsc::channel();
            let workers = Builder::new().threads(1).run_each(move |_| async move {
                let run = move || {
                    let _guard = on_drop(move || {
                        // Until the worker's future has returned.
                        await_sync(yield_now());
                        cleaning.send(()).unwrap();
                        await_sync(pending::<()>());
                    });
                    await_sync(pending::<()>());
                };
                let builder = greenhack::builder().cleanup_budget(Duration::from_secs(3600));
                let left = builder.run_sync(run).now_or_never();
                assert!(left.is_none());
            });
            let workers = workers.unwrap();
            cleans.recv().unwrap();
            await_sync(workers.shutdown(Duration::ZERO));
            assert_eq!(leaked_runs(), 1);
        },
    );
}

#[test]
fn a_shutdown_needs_no_timer_of_the_caller() {
    let own = || two().run_each(|_| pending::<()>()).unwrap();
    let mut without_timer = tokio::runtime::Builder::new_current_thread();
    let runtime = without_timer.build().unwrap();
    runtime.block_on(own().shutdown(LONG));
    futures::executor::block_on(own().shutdown(LONG));
}

#[test]
fn a_shutdown_waits_whatever_the_clock_of_the_caller_says() {
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let may_go_on = Arc::new(Mutex::new(may_go_on));
    let ends = Arc::new(AtomicUsize::new(0));
    let counted = ends.clone();
    let workers = Builder::new().threads(1).run_each(move |_| {
        let guard = on_drop(move || {
            may_go_on.lock().unwrap().recv().unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
        });
        async move {
            let _guard = guard;
            pending::<()>().await;
        }
    });
    support::paused().block_on(async {
        let mut shutdown = pin!(workers.unwrap().shutdown(LONG));
        assert!(shutdown.as_mut().now_or_never().is_none());
        // The clock of this runtime jumps to the end of that.
        tokio::time::sleep(LONG * 2).await;
        assert!(shutdown.as_mut().now_or_never().is_none());
        go_on.send(()).unwrap();
        shutdown.await;
    });
    assert_eq!(ends.load(Ordering::Relaxed), 1);
}

/// Runs this test binary again for one test.
fn in_a_process_of_its_own(test: &str, f: impl FnOnce()) {
    if std::env::var_os("GREENHACK_OWN_PROCESS").is_some() {
        return f();
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env("GREENHACK_OWN_PROCESS", "yes")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_drop_ends_the_workers_without_waiting() {
    let (dropped, has_dropped) = mpsc::channel();
    let workers = two().run_each(move |_| {
        let guard = on_drop(move || dropped.send(thread::current().id()).unwrap());
        async move {
            let _guard = guard;
            pending::<()>().await;
        }
    });
    drop(workers.unwrap());
    let threads = [has_dropped.recv().unwrap(), has_dropped.recv().unwrap()];
    assert_ne!(threads[0], threads[1]);
    assert!(!threads.contains(&thread::current().id()));
}

#[test]
fn what_a_future_leaves_behind_ends_with_its_worker() {
    let log = Log::default();
    let of_workers = log.clone();
    let workers = Builder::new().threads(1).run_each(move |_| async move {
        let (started, has_started) = signal();
        let (run, task) = (of_workers.clone(), of_workers.on_drop("a task"));
        drop(spawn_local(async move {
            let _task = task;
            pending::<()>().await;
        }));
        drop(tokio::spawn(run_sync(move || {
            let _guard = on_drop(|| {
                await_sync(yield_now());
                run.add("a run");
            });
            started.give();
            await_sync(pending::<()>());
        })));
        has_started.wait().await;
    });
    assert_eq!(await_sync(workers.unwrap()), [()]);
    assert_eq!(log.take(), ["a run", "a task"]);
}

#[test]
fn a_panic_of_a_worker_ends_the_others_and_resumes_in_the_caller() {
    let log = Log::default();
    let of_workers = log.clone();
    let workers = two().run_each(move |worker| {
        let dropped = of_workers.on_drop("dropped");
        async move {
            let _dropped = dropped;
            if worker.index() == 1 {
                panic_any("the second");
            }
            pending::<()>().await;
        }
    });
    let workers = workers.unwrap();
    let payload = catch_unwind(AssertUnwindSafe(|| await_sync(workers))).unwrap_err();
    assert_eq!(support::text(&*payload), "the second");
    assert_eq!(log.take(), ["dropped", "dropped"]);
}

#[test]
fn panics_of_the_closure_and_of_a_drop_resume_in_the_caller() {
    let made = |_: Worker| -> Pin<Box<dyn Future<Output = ()>>> { panic_any("made") };
    let workers = two().run_each(made).unwrap();
    let payload = catch_unwind(AssertUnwindSafe(|| await_sync(workers))).unwrap_err();
    assert_eq!(support::text(&*payload), "made");

    let workers = two().run_each(|_| {
        let guard = on_drop(|| panic_any("dropped"));
        async move {
            let _guard = guard;
            pending::<()>().await;
        }
    });
    let shutdown = workers.unwrap().shutdown(LONG);
    let payload = catch_unwind(AssertUnwindSafe(|| await_sync(shutdown))).unwrap_err();
    assert_eq!(support::text(&*payload), "dropped");
}

#[test]
fn a_run_awaits_workers_and_its_cancellation_ends_them() {
    let (dropped, has_dropped) = mpsc::channel();
    support::current_thread().block_on(async move {
        let (started, has_started) = signal();
        let run = tokio::spawn(run_sync(move || {
            let workers = two().run_each(move |_| {
                let guard = on_drop(move || dropped.send(()).unwrap());
                async move {
                    let _guard = guard;
                    pending::<()>().await;
                }
            });
            started.give();
            await_sync(workers.unwrap());
        }));
        has_started.wait().await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
    });
    has_dropped.recv().unwrap();
    has_dropped.recv().unwrap();
}

#[test]
fn forgotten_workers_go_on() {
    let (sender, receiver) = mpsc::channel();
    let (ask, asked) = tokio::sync::mpsc::unbounded_channel();
    let workers = Builder::new().threads(1).run_each({
        let asked = Arc::new(Mutex::new(Some(asked)));
        move |_| async move {
            let mut asked = asked.lock().unwrap().take().unwrap();
            while let Some(number) = asked.recv().await {
                sender.send(number).unwrap();
            }
        }
    });
    std::mem::forget(workers);
    ask.send(2).unwrap();
    assert_eq!(receiver.recv(), Ok(2));
    drop(ask);
    assert!(receiver.recv().is_err());
}

#[test]
fn workers_that_are_polled_after_their_end_panic() {
    let mut workers = two().run_each(|_| async {}).unwrap();
    assert_eq!(await_sync(&mut workers).len(), 2);
    let mut cx = Context::from_waker(Waker::noop());
    let again = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut workers).poll(&mut cx)));
    assert!(again.is_err());
}

#[test]
fn no_threads_and_too_many_are_refused_where_they_are_set() {
    let here = line!() + 1;
    let (message, line, file) = support::panic_of(|| drop(Builder::new().threads(0)));
    assert_eq!((line, &*file), (here, file!()));
    assert_eq!(
        message,
        "there must be at least one worker; write `.threads(1)`"
    );
    let (message, line, _) = support::panic_of(|| drop(Builder::new().threads(usize::MAX)));
    assert_eq!(line, line!() - 1);
    let expected = format!("there can't be {} workers; ", usize::MAX);
    assert!(message.starts_with(&expected), "{message}");
}

#[test]
fn a_name_that_no_thread_can_have_is_refused_where_it_is_set() {
    let here = line!() + 1;
    let (message, line, file) = support::panic_of(|| drop(Builder::new().thread_name("a\0b")));
    assert_eq!((line, &*file), (here, file!()));
    assert_eq!(
        message,
        "the name of a thread can't have a zero byte; leave it out of \"a\\0b\""
    );
}

#[test]
fn workers_are_send_and_sync_whatever_they_do() {
    assert_impl_all!(Workers<String>: Send, Sync, Unpin);
    assert_impl_all!(Worker: Send, Sync, Clone);
    assert_not_impl_any!(Workers<Rc<()>>: Send);
}
