//! Closures that run at once and borrow from their caller (behaviour 24).
#![cfg(panic = "unwind")]

mod support;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::iter::from_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use greenhack::{
    Cancelled, await_in_drop, await_sync, in_context, join, join_all, map_concurrent, must_suspend,
    no_suspend, race, run_sync, run_sync_local, scope, shield,
};
use support::{Log, count_leaks, everywhere, in_each_place, on_drop, panic_of, signal, text};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::yield_now;

fn pause() {
    await_sync(yield_now());
}

#[test]
fn joined_closures_take_turns_and_return_in_order() {
    everywhere(|| {
        let log = Log::default();
        let outputs = join(
            || {
                log.add("a1");
                pause();
                log.add("a2");
                assert!(in_context());
                1
            },
            || {
                log.add("b1");
                pause();
                log.add("b2");
                "two"
            },
        );
        assert_eq!(outputs, (1, "two"));
        let mut log = log.take();
        assert_eq!(log[..2], ["a1", "b1"]);
        log.sort();
        assert_eq!(log, ["a1", "a2", "b1", "b2"]);
    });
}

#[test]
fn closures_of_different_types_run_at_once_and_return_in_order() {
    everywhere(|| {
        let (sender, receiver) = oneshot::channel();
        let (log, name) = (Log::default(), String::from("borrowed"));
        let outputs = join!(|| await_sync(receiver).unwrap(), || name.as_str(), || {
            pause();
            log.add("waited");
            sender.send(1).unwrap();
        },);
        assert_eq!(outputs, (1, "borrowed", ()));
        assert_eq!(log.take(), ["waited"]);
        assert_eq!(join!(|| 1), (1,));
        let (a, .., l) = join!(
            || 'a',
            || 2,
            || 3,
            || 4,
            || 5,
            || 6,
            || 7,
            || 8,
            || 9,
            || 10,
            || 11,
            || 'l'
        );
        assert_eq!((a, l), ('a', 'l'));
    });
}

#[test]
fn the_first_of_closures_of_different_types_wins() {
    everywhere(|| {
        let log = Log::default();
        let owned = String::from("owned");
        let first = race!(
            || {
                let _loser = log.on_drop("unwound");
                await_sync(pending())
            },
            || {
                pause();
                owned
            },
        );
        assert_eq!(first, "owned");
        assert_eq!(log.take(), ["unwound"]);
    });
}

#[test]
fn a_panic_of_one_of_three_closures_ends_the_others() {
    everywhere(|| {
        let log = Log::default();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            join!(
                || {
                    let _guard = log.on_drop("first");
                    await_sync(pending::<()>());
                },
                || resume_unwind(Box::new("second")),
                || await_sync(pending::<u8>()),
            )
        }));
        assert_eq!(text(&*caught.unwrap_err()), "second");
        assert_eq!(log.take(), ["first"]);
    });
}

#[test]
fn closures_that_wait_for_each_other_end() {
    everywhere(|| {
        let (sender, receiver) = oneshot::channel();
        let outputs = join(
            || await_sync(receiver).unwrap(),
            || {
                pause();
                sender.send(7).unwrap();
            },
        );
        assert_eq!(outputs, (7, ()));
    });
}

#[test]
fn many_closures_borrow_and_change_what_the_caller_has() {
    everywhere(|| {
        let sum = Cell::new(0);
        let mut numbers = [1, 2, 3, 4];
        let doubled = join_all(numbers.iter_mut().map(|number| {
            let sum = &sum;
            move || {
                pause();
                *number *= 2;
                sum.set(sum.get() + *number);
                *number
            }
        }));
        assert_eq!(
            (doubled, sum.get(), numbers),
            (vec![2, 4, 6, 8], 20, [2, 4, 6, 8])
        );
        assert!(join_all(Vec::<fn() -> u8>::new()).is_empty());
    });
}

#[test]
fn closures_may_have_what_is_not_send() {
    everywhere(|| {
        let shared = Rc::new(RefCell::new(Vec::new()));
        let thread = thread::current().id();
        join_all((0..3).map(|index| {
            let shared = Rc::clone(&shared);
            move || {
                pause();
                assert_eq!(thread::current().id(), thread);
                shared.borrow_mut().push(index);
            }
        }));
        shared.borrow_mut().sort();
        assert_eq!(*shared.borrow(), [0, 1, 2]);
    });
}

#[test]
fn a_panic_cancels_the_siblings_and_resumes_when_they_have_ended() {
    everywhere(|| {
        let log = Log::default();
        let payload = catch_unwind(AssertUnwindSafe(|| {
            join_all([true, false].map(|panics| {
                let log = &log;
                move || {
                    if panics {
                        pause();
                        resume_unwind(Box::new("burnt"));
                    }
                    let _guard = on_drop(|| {
                        assert!(thread::panicking());
                        await_in_drop(yield_now());
                        log.add("cleaned up");
                    });
                    await_sync(pending::<()>());
                }
            }));
        }))
        .unwrap_err();
        assert_eq!(text(&*payload), "burnt");
        assert_eq!(log.take(), ["cleaned up"]);
        // The caller can wait as before.
        pause();
    });
}

#[test]
fn the_first_panic_is_the_one_that_resumes() {
    everywhere(|| {
        let payload = catch_unwind(|| {
            join(
                || {
                    let _guard = on_drop(pause);
                    pause();
                    resume_unwind(Box::new("first"));
                },
                || {
                    // Its cancellation makes it panic, too.
                    let caught = catch_unwind(|| await_sync(pending::<()>()));
                    assert!(caught.unwrap_err().is::<Cancelled>());
                    resume_unwind(Box::new("second"));
                },
            )
        });
        assert_eq!(text(&*payload.unwrap_err()), "first");
    });
}

#[test]
fn a_closure_that_swallows_its_cancellation_is_waited_for() {
    let leaks = count_leaks();
    everywhere(|| {
        let (swallowed, done) = (Cell::new(0), Cell::new(false));
        let caught = catch_unwind(AssertUnwindSafe(|| {
            join(
                || {
                    for _ in 0..100 {
                        if catch_unwind(pause).is_err() {
                            swallowed.set(swallowed.get() + 1);
                        }
                    }
                    done.set(true);
                },
                || resume_unwind(Box::new("over")),
            )
        }));
        assert_eq!(text(&*caught.unwrap_err()), "over");
        assert_eq!((swallowed.get(), done.get()), (32, true));
    });
    assert_eq!(leaks.count(), 0);
}

#[test]
fn a_cancelled_run_unwinds_when_its_closures_have_ended() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _outer = log.on_drop("caller");
                let borrowed = String::from("borrowed");
                join(
                    || {
                        let _guard = on_drop(|| {
                            pause();
                            log.add(borrowed.clone());
                        });
                        await_sync(pending::<()>());
                    },
                    || {
                        started.give();
                        let _guard = log.on_drop("sibling");
                        await_sync(async {
                            let _future = log.on_drop("future");
                            pending::<()>().await;
                        });
                    },
                );
                log.add("unreachable");
            }
        });
        wait.wait().await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        end.wait().await;
        assert_eq!(log.take(), ["future", "sibling", "borrowed", "caller"]);
    });
}

#[test]
fn in_a_shield_closures_are_not_cancelled() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let (go, gone) = oneshot::channel::<()>();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                shield(|| {
                    let outputs = join(
                        || {
                            started.give();
                            let _ = await_sync(gone);
                            1
                        },
                        || 2,
                    );
                    assert_eq!(outputs, (1, 2));
                    log.add("committed");
                });
                // Over the hop the cancellation may come this late.
                await_sync(pending::<()>());
                log.add("unreachable");
            }
        });
        wait.wait().await;
        run.abort();
        drop(go);
        end.wait().await;
        assert_eq!(log.take(), ["committed"]);
    });
}

#[test]
fn closures_that_outlive_the_budget_are_leaked_with_their_caller() {
    support::current_thread().block_on(async {
        let leaks = count_leaks();
        let log = Log::default();
        let builder = greenhack::builder().cleanup_budget(Duration::ZERO);
        let (started, wait) = signal();
        let task = tokio::spawn(builder.run_sync({
            let log = log.clone();
            move || {
                let _caller = log.on_drop("caller");
                let borrowed = String::from("borrowed");
                join(
                    || {
                        let _guard = on_drop(|| {
                            // A plain wait in an unwind can't fail.
                            await_sync(pending::<()>());
                            unreachable!("{borrowed}");
                        });
                        started.give();
                        await_sync(pending::<()>());
                    },
                    || {
                        let _sibling = log.on_drop("sibling");
                        await_sync(pending::<()>());
                    },
                );
            }
        }));
        wait.wait().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        while leaks.count() == 0 {
            yield_now().await;
        }
        assert_eq!(leaks.count(), 1);
        assert_eq!(log.take(), ["sibling"]);
    });
}

#[test]
fn cleanup_that_can_fail_ends_with_the_budget_and_the_caller_unwinds() {
    support::current_thread().block_on(async {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let builder = greenhack::builder().cleanup_budget(Duration::ZERO);
        let task = tokio::spawn(builder.run_sync({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _caller = log.on_drop("caller");
                join(
                    || {
                        let _guard = on_drop(|| {
                            assert_eq!(await_in_drop(pending::<()>()), None);
                            log.add("gave up");
                        });
                        started.give();
                        await_sync(pending::<()>());
                    },
                    || (),
                );
            }
        }));
        wait.wait().await;
        task.abort();
        end.wait().await;
        assert_eq!(log.take(), ["gave up", "caller"]);
    });
}

#[test]
fn a_destructor_may_join_while_its_run_is_cancelled() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _guard = on_drop(|| {
                    let both = join(
                        || {
                            assert!(!thread::panicking());
                            pause();
                            1
                        },
                        || 2,
                    );
                    log.add(format!("{both:?}"));
                });
                started.give();
                await_sync(pending::<()>());
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        let both = log.take();
        // The run is cancelled and unwinding: its closures may wait as its
        // destructors may.
        assert_eq!(both, ["(1, 2)"]);
    });
}

#[test]
fn a_section_that_must_not_suspend_refuses_closures_that_wait() {
    everywhere(|| {
        if !in_context() {
            return;
        }
        assert_eq!(no_suspend(|| join(|| 1, || 2)), (1, 2));
        let ended = Cell::new(false);
        let (message, line, file) = panic_of(|| {
            no_suspend(|| {
                join(
                    || {
                        let _guard = on_drop(|| ended.set(true));
                        await_sync(pending::<()>());
                    },
                    || (),
                )
            });
        });
        assert!(message.contains("no_suspend"), "{message}");
        assert_eq!((line, file.as_str()), (line!() - 10, file!()));
        assert!(ended.get());
        must_suspend(|| join(pause, || ()));
    });
}

#[test]
fn async_code_is_refused_before_anything_runs() {
    support::current_thread().block_on(async {
        let ran = Cell::new(false);
        let (message, line, file) = panic_of(|| {
            join(|| ran.set(true), || ran.set(true));
        });
        assert_eq!((line, file.as_str()), (line!() - 2, file!()));
        assert_eq!(
            message,
            "`join` called in async code, which must not block; run the plain code that calls it \
             with `greenhack::run_sync(|| ..).await`"
        );
        let (message, ..) = panic_of(|| scope(|_| ran.set(true)));
        assert!(
            message.starts_with("`scope` called in async code"),
            "{message}"
        );
        let (message, line, _) = panic_of(|| drop(map_concurrent(2, [1, 2], |_| ran.set(true))));
        assert_eq!(line, line!() - 1);
        assert!(
            message.starts_with("`map_concurrent` called in async code"),
            "{message}"
        );
        let (message, ..) = panic_of(|| drop(join_all([|| ran.set(true)])));
        assert!(
            message.starts_with("`join_all` called in async code"),
            "{message}"
        );
        let (message, line, file) = panic_of(|| {
            join!(|| ran.set(true), || 1, || ran.set(true));
        });
        assert_eq!((line, file.as_str()), (line!() - 2, file!()));
        assert!(
            message.starts_with("`join!` called in async code"),
            "{message}"
        );
        let (message, line, _) = panic_of(|| race!(|| ran.set(true), || ()));
        assert_eq!(line, line!() - 1);
        assert!(
            message.starts_with("`race` called in async code"),
            "{message}"
        );
        // In a future that a run awaits, too.
        run_sync_local(move || {
            await_sync(async {
                let (message, ..) = panic_of(|| {
                    race([|| ran.set(true)]);
                });
                assert!(
                    message.starts_with("`race` called in a future"),
                    "{message}"
                );
                assert!(!ran.get());
            });
        })
        .await;
    });
}

#[test]
fn the_first_that_ends_wins_and_the_others_have_ended_when_it_returns() {
    everywhere(|| {
        let log = Log::default();
        let closures: Vec<Box<dyn FnOnce() -> &'static str>> = vec![
            Box::new(|| {
                let _guard = on_drop(|| {
                    pause();
                    log.add("loser");
                });
                await_sync(pending())
            }),
            Box::new(|| {
                pause();
                "winner"
            }),
            Box::new(|| {
                // It returns all the same, too late.
                let _ = catch_unwind(|| await_sync(pending::<()>()));
                "late"
            }),
        ];
        assert_eq!(race(closures), "winner");
        assert_eq!(log.take(), ["loser"]);
    });
}

#[test]
fn a_panic_in_a_race_resumes_when_the_others_have_ended() {
    everywhere(|| {
        let ended = Cell::new(false);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            race([true, false].map(|panics| {
                let ended = &ended;
                move || {
                    if panics {
                        resume_unwind(Box::new("over"));
                    }
                    let _guard = on_drop(|| ended.set(true));
                    await_sync(pending::<()>());
                }
            }))
        }));
        assert_eq!(text(&*caught.unwrap_err()), "over");
        // It had not started, or it was unwound.
        pause();
    });
    let (message, line, _) = panic_of(|| race(Vec::<fn()>::new()));
    assert!(message.contains("without closures"), "{message}");
    assert_eq!(line, line!() - 2);
}

#[test]
fn a_scope_waits_for_all_and_returns_the_result_of_its_closure() {
    everywhere(|| {
        let log = Log::default();
        let output = scope(|s| {
            s.spawn(|| {
                pause();
                // What is spawned may spawn in turn.
                s.spawn(|| {
                    pause();
                    log.add("grandchild");
                });
                log.add("child");
            });
            let handle = s.spawn(|| "joined");
            assert!(!handle.is_finished());
            log.add(handle.join().unwrap());
            log.add("body");
            7
        });
        assert_eq!(output, 7);
        let mut log = log.take();
        log.sort();
        assert_eq!(log, ["body", "child", "grandchild", "joined"]);
    });
}

#[test]
fn a_handle_gives_the_panic_of_its_closure() {
    everywhere(|| {
        let sibling = scope(|s| {
            let burnt = s.spawn(|| -> u8 { resume_unwind(Box::new("burnt")) });
            let sibling = s.spawn(|| {
                pause();
                pause();
                1
            });
            assert_eq!(text(&*burnt.join().unwrap_err()), "burnt");
            sibling.join().unwrap()
        });
        assert_eq!(sibling, 1);
    });
}

#[test]
fn a_panic_that_nobody_joins_ends_the_scope() {
    everywhere(|| {
        let log = Log::default();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            scope(|s| {
                drop(s.spawn(|| {
                    pause();
                    resume_unwind(Box::new("burnt"));
                }));
                let _body = log.on_drop("body");
                await_sync(pending::<()>());
            })
        }));
        assert_eq!(text(&*caught.unwrap_err()), "burnt");
        assert_eq!(log.take(), ["body"]);
    });
}

#[test]
fn a_panic_of_the_body_cancels_what_it_has_spawned() {
    everywhere(|| {
        let log = Log::default();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let (started, wait) = signal();
            scope(|s| {
                s.spawn(|| {
                    let _guard = log.on_drop("child");
                    started.give();
                    await_sync(pending::<()>());
                });
                await_sync(wait.wait());
                resume_unwind(Box::new("body"));
            })
        }));
        assert_eq!(text(&*caught.unwrap_err()), "body");
        assert_eq!(log.take(), ["child"]);
    });
}

#[test]
fn one_closure_can_be_cancelled_alone() {
    everywhere(|| {
        let log = Log::default();
        let output = scope(|s| {
            let (started, wait) = signal();
            let endless = s.spawn(|| {
                let _guard = on_drop(|| {
                    pause();
                    log.add("ended");
                });
                started.give();
                await_sync(pending::<()>());
            });
            let unstarted = s.spawn(|| log.add("unreachable"));
            unstarted.abort();
            assert!(unstarted.join().unwrap_err().is::<Cancelled>());
            await_sync(wait.wait());
            endless.abort();
            // Nobody joins this one; its end is no panic.
            s.spawn(|| await_sync(pending::<()>())).abort();
            assert!(endless.join().unwrap_err().is::<Cancelled>());
            1
        });
        assert_eq!(output, 1);
        assert_eq!(log.take(), ["ended"]);
    });
}

#[test]
fn at_most_so_many_run_at_a_time() {
    everywhere(|| {
        let (now, most) = (Cell::new(0), Cell::new(0));
        let items = (0..20).inspect(|_| pause());
        let three = Semaphore::new(0);
        let doubled = map_concurrent(3, items, |item| {
            now.set(now.get() + 1);
            most.set(most.get().max(now.get()));
            if now.get() == 3 {
                three.add_permits(20);
            }
            await_sync(three.acquire()).unwrap().forget();
            pause();
            now.set(now.get() - 1);
            item * 2
        });
        assert_eq!(doubled, (0..20).map(|item| item * 2).collect::<Vec<_>>());
        assert_eq!((now.get(), most.get()), (0, 3));
        assert!(map_concurrent(3, Vec::<u8>::new(), |item| item).is_empty());
    });
    let (message, line, _) = panic_of(|| {
        map_concurrent(0, [1], |item| item);
    });
    assert!(message.contains("limit of 0"), "{message}");
    assert_eq!(line, line!() - 3);
}

#[test]
fn a_limit_that_is_none_takes_no_more_stacks_than_there_are_items() {
    everywhere(|| {
        let (now, most) = (Cell::new(0), Cell::new(0));
        let mut left = 3..6;
        // Nobody can tell how many there will be.
        let items = from_fn(|| left.next());
        let all_there = Semaphore::new(0);
        let doubled = map_concurrent(usize::MAX, items, |item| {
            now.set(now.get() + 1);
            most.set(most.get().max(now.get()));
            if now.get() == 3 {
                all_there.add_permits(3);
            }
            await_sync(all_there.acquire()).unwrap().forget();
            item * 2
        });
        assert_eq!(doubled, [6, 8, 10]);
        assert_eq!(most.get(), 3);
    });
}

#[test]
fn items_end_with_the_first_that_is_none() {
    everywhere(|| {
        let mut steps = [Some(1), None, Some(2)].into_iter();
        let items = from_fn(|| steps.next().flatten());
        let taken = map_concurrent(3, items, |item| {
            pause();
            item
        });
        assert_eq!(taken, [1]);
    });
}

#[test]
fn a_panic_of_a_call_ends_the_other_calls() {
    everywhere(|| {
        let log = Log::default();
        let (taken, waiting) = (Cell::new(0), Cell::new(0));
        let items = (0..20).inspect(|_| taken.set(taken.get() + 1));
        let caught = catch_unwind(AssertUnwindSafe(|| {
            map_concurrent(3, items, |item| {
                if item == 2 {
                    while waiting.get() < 2 {
                        pause();
                    }
                    resume_unwind(Box::new("burnt"));
                }
                let _guard = on_drop(|| {
                    await_in_drop(yield_now());
                    log.add("cleaned up");
                });
                waiting.set(waiting.get() + 1);
                await_sync(pending::<()>());
            })
        }));
        assert_eq!(text(&*caught.unwrap_err()), "burnt");
        assert_eq!(log.take(), ["cleaned up", "cleaned up"]);
        // No other call has begun.
        assert_eq!(taken.get(), 3);
    });
}

#[test]
fn scopes_nest() {
    everywhere(|| {
        fn sum(depth: u32) -> u32 {
            if depth == 0 {
                pause();
                return 1;
            }
            let (left, right) = join(|| sum(depth - 1), || sum(depth - 1));
            left + right
        }
        assert_eq!(sum(5), 32);
    });
}

#[test]
fn a_cancellation_reaches_the_innermost_scope_first() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _outer = log.on_drop("caller");
                scope(|s| {
                    s.spawn(|| {
                        let _child = log.on_drop("child");
                        join(
                            || {
                                let _grandchild = log.on_drop("grandchild");
                                started.give();
                                await_sync(pending::<()>());
                            },
                            || (),
                        );
                    });
                    await_sync(pending::<()>());
                });
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["grandchild", "child", "caller"]);
    });
}

#[test]
fn a_run_that_is_polled_on_ends_closures_that_are_cancelled_by_a_sibling() {
    support::current_thread().block_on(async {
        let output = run_sync(|| {
            let lost = catch_unwind(|| {
                join(
                    || {
                        let _guard = on_drop(pause);
                        await_sync(pending::<()>());
                    },
                    || resume_unwind(Box::new(1_u8)),
                )
            });
            *lost.unwrap_err().downcast::<u8>().unwrap()
        });
        assert_eq!(output.await, 1);
    });
}
