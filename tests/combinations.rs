//! The cross product: place of the run × place of the panic × moment of the
//! drop × nesting. Whatever happens, each destructor runs once, on the run's
//! thread, and the outcome is the one that the case demands.
#![cfg(panic = "unwind")]

mod support;

use std::future::pending;
use std::panic::panic_any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use greenhack::{await_sync, run_sync, run_sync_local};
use support::{Fixture, Place, Signal, in_each_place, on_drop, signal};
use tokio::sync::oneshot;
use tokio::task::yield_now;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Panic {
    None,
    BeforeTheWait,
    InTheFuture,
    InTheFuturesDrop,
    AfterTheWait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drop {
    Never,
    BeforeThePoll,
    WhileSuspended,
    InADestructor,
    AfterTheEnd,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    panic: Panic,
    drop: Drop,
    nesting: u32,
}

/// How often each was dropped.
#[derive(Default)]
struct Drops {
    closure: AtomicUsize,
    future: AtomicUsize,
    guard: AtomicUsize,
    cleanup: AtomicUsize,
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct Body {
    case: Case,
    drops: Arc<Drops>,
    started: Option<Signal>,
    in_destructor: Option<Signal>,
    go_on: Option<oneshot::Receiver<()>>,
    clean_up: Option<oneshot::Receiver<()>>,
    _ended: Signal,
}

impl std::ops::Drop for Body {
    fn drop(&mut self) {
        count(&self.drops.closure);
    }
}

impl Body {
    fn run(mut self) -> u32 {
        if self.case.nesting > 0 {
            self.case.nesting -= 1;
            let nested = self.case.nesting % 2 == 0;
            return await_sync(async move {
                if nested {
                    run_sync_local(|| self.run()).await
                } else {
                    run_sync(|| self.run()).await
                }
            });
        }
        let thread = thread::current().id();
        let (case, drops) = (self.case, self.drops.clone());
        let _guard = on_drop(|| {
            assert_eq!(thread::current().id(), thread);
            count(&drops.guard);
        });
        let (in_destructor, clean_up) = (self.in_destructor.take(), self.clean_up.take());
        let _cleanup = on_drop(|| {
            in_destructor.into_iter().for_each(Signal::give);
            await_sync(async {
                yield_now().await;
                let _ = clean_up.unwrap().await;
            });
            assert_eq!(thread::current().id(), thread);
            count(&drops.cleanup);
        });
        if case.panic == Panic::BeforeTheWait {
            panic_any(7_u8);
        }
        let (started, go_on) = (self.started.take(), self.go_on.take());
        await_sync(async {
            let _future = on_drop(|| {
                count(&drops.future);
                if case.panic == Panic::InTheFuturesDrop {
                    panic_any(7_u8);
                }
            });
            started.into_iter().for_each(Signal::give);
            let _ = go_on.unwrap().await;
            if case.panic == Panic::InTheFuture {
                panic_any(7_u8);
            }
        });
        if case.panic == Panic::AfterTheWait {
            panic_any(7_u8);
        }
        7
    }
}

async fn check(place: Place, case: Case) {
    let drops = Arc::new(Drops::default());
    let (started, has_started) = signal();
    let (in_destructor, is_in_destructor) = signal();
    let (ended, has_ended) = signal();
    let (go_on_sender, go_on) = oneshot::channel();
    let (clean_up_sender, clean_up) = oneshot::channel();
    let body = Body {
        case,
        drops: drops.clone(),
        started: Some(started),
        in_destructor: Some(in_destructor),
        go_on: Some(go_on),
        clean_up: Some(clean_up),
        _ended: ended,
    };
    let ran = case.drop != Drop::BeforeThePoll;
    let waited = ran && case.panic != Panic::BeforeTheWait;
    // At the normal end of a scope a wait in a destructor can be cancelled; in an unwind
    // it can't.
    let interrupted = case.drop == Drop::InADestructor && case.panic == Panic::None;
    let task = match case.drop {
        Drop::BeforeThePoll => {
            match place {
                Place::Local => drop(run_sync_local(|| body.run())),
                _ => drop(run_sync(|| body.run())),
            }
            None
        }
        _ => Some(place.spawn(move || body.run())),
    };
    if waited {
        has_started.wait().await;
    }
    match case.drop {
        Drop::BeforeThePoll => {}
        Drop::Never | Drop::AfterTheEnd => {
            let task = task.unwrap();
            let _ = go_on_sender.send(());
            let _ = clean_up_sender.send(());
            let abort = task.abort_handle();
            let outcome = task.await;
            if case.panic == Panic::None {
                assert_eq!(outcome.unwrap(), 7);
            } else {
                let payload = outcome.unwrap_err().into_panic();
                assert_eq!(payload.downcast_ref(), Some(&7_u8));
            }
            if case.drop == Drop::AfterTheEnd {
                abort.abort();
            }
        }
        Drop::WhileSuspended | Drop::InADestructor => {
            let task = task.unwrap();
            if case.drop == Drop::InADestructor {
                let _ = go_on_sender.send(());
                is_in_destructor.wait().await;
                task.abort();
                assert!(task.await.is_err());
                // A worker that hears of both at once may end the wait by either.
                if !interrupted {
                    let _ = clean_up_sender.send(());
                }
            } else {
                task.abort();
                assert!(task.await.is_err());
                let _ = clean_up_sender.send(());
            }
        }
    }
    has_ended.wait().await;
    assert!(!thread::panicking());
    let get = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    assert_eq!(get(&drops.closure), 1);
    assert_eq!(get(&drops.guard), usize::from(ran));
    assert_eq!(get(&drops.cleanup), usize::from(ran && !interrupted));
    assert_eq!(get(&drops.future), usize::from(waited));
}

#[test]
fn every_combination_ends_as_it_should() {
    let leaked = greenhack::leaked_runs();
    in_each_place(|place| async move {
        let mut cases = 0;
        for panic in [
            Panic::None,
            Panic::BeforeTheWait,
            Panic::InTheFuture,
            Panic::InTheFuturesDrop,
            Panic::AfterTheWait,
        ] {
            for drop in [
                Drop::Never,
                Drop::BeforeThePoll,
                Drop::WhileSuspended,
                Drop::InADestructor,
                Drop::AfterTheEnd,
            ] {
                if panic == Panic::BeforeTheWait && drop == Drop::WhileSuspended {
                    continue;
                }
                for nesting in 0..=3 {
                    let case = Case {
                        panic,
                        drop,
                        nesting,
                    };
                    eprintln!("{place:?} {case:?}");
                    check(place, case).await;
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, (5 * 5 - 1) * 4);
    });
    assert_eq!(greenhack::leaked_runs(), leaked);
}

#[test]
fn many_runs_of_all_kinds_end_together() {
    for place in support::PLACES {
        Fixture::new(place).block_on(async {
            let mut aborted = Vec::new();
            let mut awaited = Vec::new();
            for index in 0..300 {
                let task = place.spawn(move || match index % 3 {
                    0 => await_sync(pending::<u32>()),
                    1 => {
                        await_sync(yield_now());
                        index
                    }
                    _ => await_sync(async move {
                        run_sync_local(move || {
                            await_sync(yield_now());
                            index
                        })
                        .await
                    }),
                });
                if index % 3 == 0 {
                    aborted.push(task);
                } else {
                    awaited.push((index, task));
                }
            }
            for (index, task) in awaited {
                assert_eq!(task.await.unwrap(), index);
            }
            for task in aborted {
                task.abort();
                assert!(task.await.unwrap_err().is_cancelled());
            }
        });
    }
}
