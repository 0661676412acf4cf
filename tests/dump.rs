//! What a dump shows of suspended runs, and that it changes nothing in them.

use std::cell::{Cell, RefCell};
use std::future::{pending, ready};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use futures::poll;
use greenhack::dump::{self, State};
use greenhack::workers::Builder as Workers;
use greenhack::{
    await_in_drop, await_sync, builder, join, on_thread_stack, run_sync, run_sync_local, shield,
};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime, Runtime};
use tokio::sync::{Notify, oneshot};
use tokio::task::{spawn_local, yield_now};

const LONG: Duration = Duration::from_secs(600);

fn runtime() -> LocalRuntime {
    let options = LocalOptions::default();
    Builder::new_current_thread().build_local(options).unwrap()
}

fn multi_thread() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// The stacks of this thread: their names, and what they are about.
fn states() -> Vec<(String, State)> {
    let thread = dump::this_thread();
    let stacks = thread.stacks().unwrap().iter();
    stacks
        .map(|stack| (stack.name().to_owned(), stack.state()))
        .collect()
}

fn names() -> Vec<String> {
    states().into_iter().map(|(name, _)| name).collect()
}

fn the_only_one() -> dump::Stack {
    let thread = dump::this_thread();
    match thread.stacks().unwrap() {
        [stack] => stack.clone(),
        stacks => panic!("there are {} stacks", stacks.len()),
    }
}

fn waits_for(
    notify: &Rc<Notify>,
    name: &'static str,
) -> greenhack::LocalRun<impl FnOnce() -> &'static str + use<>, &'static str> {
    let notify = notify.clone();
    builder().name(name).run_sync_local(move || {
        await_sync(notify.notified());
        name
    })
}

#[test]
#[cfg_attr(greenhack_sanitizer, ignore = "locals are elsewhere than on the stack")]
fn a_dump_tells_where_a_run_waits() {
    runtime().block_on(async {
        let notify = Rc::new(Notify::new());
        let line = Rc::new(Cell::new(0));
        let (notified, waits_at) = (notify.clone(), line.clone());
        let soup = builder().name("soup").stack_size(65536);
        let run = spawn_local(soup.run_sync_local(move || {
            waits_at.set(line!() + 1);
            await_sync(notified.notified());
        }));
        yield_now().await;

        let stack = the_only_one();
        assert_eq!((stack.name(), stack.state()), ("soup", State::Waiting));
        let location = stack.location().unwrap();
        assert_eq!((location.file(), location.line()), (file!(), line.get()));
        assert_eq!(stack.size(), 65536);
        let used = stack.used().unwrap();
        assert!((100..8192).contains(&used), "{used}");
        let text = stack.to_string();
        assert!(
            text.starts_with(&format!(
                "- `soup` waits at {location}; {used} of 65536 bytes"
            )),
            "{text}"
        );
        notify.notify_one();
        run.await.unwrap();
        assert!(names().is_empty());
    });
}

#[test]
fn a_dump_changes_nothing() {
    runtime().block_on(async {
        let notify = Rc::new(Notify::new());
        let mut run = waits_for(&notify, "soup");
        assert!(poll!(&mut run).is_pending());
        for _ in 0..3 {
            assert_eq!(names(), ["soup"]);
        }
        assert!(poll!(&mut run).is_pending());
        assert_eq!(names(), ["soup"]);
        notify.notify_one();
        assert_eq!(run.await, "soup");
    });
}

#[test]
fn a_run_that_waits_twice_tells_of_the_second_wait() {
    runtime().block_on(async {
        let mut run = run_sync_local(|| {
            await_sync(yield_now());
            await_sync(yield_now());
        });
        assert!(poll!(&mut run).is_pending());
        let first = the_only_one().location().unwrap().line();
        assert!(poll!(&mut run).is_pending());
        assert_eq!(the_only_one().location().unwrap().line(), first + 1);
        run.await;
    });
}

#[test]
fn runs_leave_the_list_in_any_order() {
    runtime().block_on(async {
        let notify: [_; 5] = std::array::from_fn(|_| Rc::new(Notify::new()));
        let all = ["a", "b", "c", "d", "e"];
        let mut runs: Vec<_> = notify
            .iter()
            .zip(all)
            .map(|(notify, name)| waits_for(notify, name))
            .collect();
        for run in &mut runs {
            assert!(poll!(run).is_pending());
        }
        assert_eq!(names(), all);
        let mut left = all.to_vec();
        // The middle, both ends, by its end or by a cancellation, and one comes again.
        for (name, is_cancelled) in [("c", false), ("a", true), ("e", false)] {
            let index = left.iter().position(|other| *other == name).unwrap();
            let run = runs.remove(index);
            left.remove(index);
            if is_cancelled {
                drop(run);
            } else {
                notify[name.as_bytes()[0] as usize - 97].notify_one();
                assert_eq!(run.await, name);
            }
            assert_eq!(names(), left);
        }
        let mut again = waits_for(&notify[0], "a");
        assert!(poll!(&mut again).is_pending());
        assert_eq!(names(), ["b", "d", "a"]);
        drop(runs);
        assert_eq!(names(), ["a"]);
        drop(again);
        assert!(names().is_empty());
    });
}

#[test]
fn a_run_that_asks_is_shown_as_running() {
    runtime().block_on(async {
        let notify = Rc::new(Notify::new());
        let mut other = waits_for(&notify, "other");
        assert!(poll!(&mut other).is_pending());
        let own = builder().name("own").run_sync_local(states);
        let expected = [("other", State::Waiting), ("own", State::Running)];
        assert_eq!(
            own.await,
            expected.map(|(name, state)| (name.to_owned(), state))
        );
        notify.notify_one();
        other.await;
    });
}

#[test]
fn a_nested_run_sees_the_outer_ones_wait() {
    runtime().block_on(async {
        let outer = builder().name("outer").run_sync_local(|| {
            await_sync(async {
                let inner = builder().name("inner").run_sync_local(|| {
                    await_sync(yield_now());
                    states()
                });
                inner.await
            })
        });
        let expected = [("outer", State::Waiting), ("inner", State::Running)];
        assert_eq!(
            outer.await,
            expected.map(|(name, state)| (name.to_owned(), state))
        );
    });
}

#[test]
fn code_on_the_threads_stack_sees_its_run_wait_for_it() {
    runtime().block_on(async {
        let states = run_sync_local(|| on_thread_stack(states)).await;
        assert_eq!(states.len(), 1);
        assert_eq!(states[0].1, State::Waiting);
    });
}

#[test]
fn closures_of_a_scope_have_stacks_of_their_own() {
    runtime().block_on(async {
        let seen = RefCell::new(Vec::new());
        let seen = Rc::new(seen);
        let to = seen.clone();
        let run = builder().name("soup").run_sync_local(move || {
            join(
                || await_sync(yield_now()),
                || {
                    let thread = dump::this_thread();
                    to.replace(thread.stacks().unwrap().to_vec());
                },
            );
        });
        run.await;
        let seen = seen.take();
        let whose: Vec<_> = seen
            .iter()
            .map(|stack| (stack.name(), stack.is_closure()))
            .collect();
        assert_eq!(whose, [("soup", false), ("soup", true), ("soup", true)]);
        let shown = seen[1].to_string();
        assert!(
            shown.starts_with("- a closure of `soup` waits at "),
            "{shown}"
        );
        let seen: Vec<_> = seen
            .into_iter()
            .map(|stack| (stack.state(), stack.location()))
            .collect();
        let [(outer, join), (first, wait), (second, nothing)] = seen.try_into().unwrap();
        assert_eq!(
            (outer, first, second),
            (State::InScope, State::Waiting, State::Running)
        );
        assert_eq!(join.unwrap().line() + 1, wait.unwrap().line());
        assert_eq!(nothing, None);
        assert!(names().is_empty());
    });
}

#[test]
fn closures_on_a_plain_thread_are_said_to_be_so() {
    let (first, stacks) = join(
        || {
            let thread = dump::this_thread();
            thread.stacks().unwrap()[0].to_string()
        },
        || dump::this_thread().stacks().unwrap().len(),
    );
    assert!(
        first.starts_with("- a closure of `a plain thread` runs;"),
        "{first}"
    );
    assert!(stacks > 0);
}

#[test]
fn a_run_that_cleans_up_says_so_and_unwinds_as_before() {
    struct Cleanup(Rc<Notify>, Rc<Cell<bool>>);
    impl Drop for Cleanup {
        fn drop(&mut self) {
            await_in_drop(self.0.notified());
            self.1.set(thread::panicking());
        }
    }
    runtime().block_on(async {
        let (notify, panicking) = <(Rc<Notify>, Rc<Cell<bool>>)>::default();
        let cleanup = Cleanup(notify.clone(), panicking.clone());
        let run = spawn_local(run_sync_local(move || {
            let _cleanup = cleanup;
            await_sync(pending::<()>());
        }));
        yield_now().await;
        assert_eq!(the_only_one().state(), State::Waiting);
        run.abort();
        while the_only_one().state() == State::Waiting {
            yield_now().await;
        }
        for _ in 0..2 {
            assert_eq!(the_only_one().state(), State::CleaningUp);
            assert!(the_only_one().location().is_some());
            assert!(!thread::panicking());
        }
        notify.notify_one();
        while !names().is_empty() {
            yield_now().await;
        }
        assert!(panicking.get());
    });
}

#[test]
fn a_dump_in_an_unwind_leaves_both_unwinds_alone() {
    struct Dump(Rc<Cell<usize>>);
    impl Drop for Dump {
        fn drop(&mut self) {
            self.0.set(names().len());
            assert!(thread::panicking());
        }
    }
    runtime().block_on(async {
        let notify = Rc::new(Notify::new());
        let mut run = waits_for(&notify, "soup");
        assert!(poll!(&mut run).is_pending());
        let seen = Rc::new(Cell::new(0));
        let dump = Dump(seen.clone());
        let unwound = catch_unwind(AssertUnwindSafe(move || {
            let _dump = dump;
            resume_unwind(Box::new(()));
        }));
        assert!(unwound.is_err());
        assert_eq!(seen.get(), 1);
        assert!(!thread::panicking());
        notify.notify_one();
        assert_eq!(run.await, "soup");
    });
}

#[test]
fn a_shielded_run_says_that_it_was_cancelled() {
    runtime().block_on(async {
        let notify = Rc::new(Notify::new());
        let waits = notify.clone();
        let run = spawn_local(run_sync_local(move || {
            shield(|| await_sync(waits.notified()))
        }));
        yield_now().await;
        run.abort();
        while the_only_one().state() == State::Waiting {
            yield_now().await;
        }
        assert_eq!(the_only_one().state(), State::CleaningUp);
        notify.notify_one();
        while !names().is_empty() {
            yield_now().await;
        }
    });
}

#[test]
fn a_forgotten_run_is_shown_for_ever() {
    thread::spawn(|| {
        let runtime = runtime();
        runtime.block_on(async {
            let mut run = waits_for(&Rc::default(), "forgotten");
            assert!(poll!(&mut run).is_pending());
            mem::forget(run);
        });
        drop(runtime);
        assert_eq!(states(), [("forgotten".to_owned(), State::Waiting)]);
    })
    .join()
    .unwrap();
}

#[test]
fn a_leaked_run_is_shown_as_such() {
    thread::spawn(|| {
        let mut run = builder().name("leaked").run_sync_local(|| {
            shield(|| await_sync(pending::<()>()));
        });
        runtime().block_on(async { assert!(poll!(&mut run).is_pending()) });
        // Nobody can drive what it still waits for.
        drop(run);
        assert_eq!(states(), [("leaked".to_owned(), State::Leaked)]);
        assert!(the_only_one().location().is_some());
    })
    .join()
    .unwrap();
}

#[test]
fn a_thread_shows_its_own_stacks_only() {
    runtime().block_on(async {
        let mut run = waits_for(&Rc::default(), "soup");
        assert!(poll!(&mut run).is_pending());
        assert!(thread::spawn(names).join().unwrap().is_empty());
        assert_eq!(names(), ["soup"]);
    });
}

#[test]
fn a_dump_is_empty_while_the_locals_of_its_thread_end() {
    struct Last(mpsc::Sender<usize>);
    impl Drop for Last {
        fn drop(&mut self) {
            self.0.send(names().len()).unwrap();
        }
    }
    thread_local! {
        static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
    }
    let (sender, seen) = mpsc::channel();
    thread::spawn(move || {
        // The first to be made, and the last to be destroyed.
        LAST.set(Some(Last(sender)));
        runtime().block_on(async {
            let mut run = waits_for(&Rc::default(), "forgotten");
            assert!(poll!(&mut run).is_pending());
            mem::forget(run);
        });
        assert_eq!(names(), ["forgotten"]);
    })
    .join()
    .unwrap();
    assert_eq!(seen.recv().unwrap(), 0);
}

#[test]
fn times_are_shown_if_they_are_noted() {
    runtime().block_on(async {
        dump::note_times(true);
        let mut run = waits_for(&Rc::default(), "soup");
        assert!(poll!(&mut run).is_pending());
        let first = the_only_one().waited().unwrap();
        assert!(poll!(&mut run).is_pending());
        assert!(the_only_one().waited().unwrap() >= first);
        assert!(the_only_one().to_string().contains(", for "));
    });
}

#[test]
fn workers_answer_where_they_are() {
    let served = Arc::new(Notify::new());
    multi_thread().block_on(async {
        let (begin, begun) = oneshot::channel();
        let notify = served.clone();
        let run = builder().name("on a worker").run_sync(move || {
            begin
                .send(thread::current().name().unwrap().to_owned())
                .unwrap();
            await_sync(notify.notified());
        });
        let run = tokio::spawn(run);
        let worker = begun.await.unwrap();

        let dump = dump::all(LONG).await;
        let thread = dump.threads().iter().find(|thread| thread.name() == worker);
        let stacks = thread.unwrap().stacks().unwrap();
        let ours: Vec<_> = stacks
            .iter()
            .filter(|stack| stack.name() == "on a worker")
            .collect();
        assert_eq!(ours.len(), 1);
        assert_eq!(ours[0].state(), State::Waiting);
        assert!(dump.to_string().contains("`on a worker` waits at "));
        // The thread that asks comes first.
        assert_ne!(dump.threads()[0].name(), worker);
        served.notify_one();
        run.await.unwrap();
    });
}

#[test]
fn a_worker_that_is_blocked_is_named() {
    let (begin, begun) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let channels = Arc::new(Mutex::new(Some((begin, ended))));
    let workers = Workers::new()
        .threads(1)
        .thread_name("blocked")
        .run_each(move |_| {
            let (begin, ended) = channels.lock().unwrap().take().unwrap();
            async move {
                yield_now().await;
                begin.send(()).unwrap();
                // It blocks the thread.
                let _ = ended.recv();
            }
        })
        .unwrap();
    begun.recv().unwrap();
    let dump = await_sync(dump::all(Duration::from_millis(1)));
    let thread = dump
        .threads()
        .iter()
        .find(|thread| thread.name() == "blocked-0");
    assert!(thread.unwrap().stacks().is_none());
    let line = "thread `blocked-0` has not answered: something blocks it";
    assert!(dump.to_string().lines().any(|other| other == line));
    drop(end);
    await_sync(workers);
}

#[test]
fn workers_of_ones_own_answer_until_they_end() {
    let is_listed = || {
        let dump = await_sync(dump::all(LONG));
        dump.threads().iter().any(|thread| thread.name() == "own-0")
    };
    let (end, ended) = oneshot::channel::<()>();
    let ended = Mutex::new(Some(ended));
    let ended = Arc::new(ended);
    let workers = Workers::new()
        .threads(1)
        .thread_name("own")
        .run_each(move |_| {
            let ended = ended.lock().unwrap().take().unwrap();
            async { ended.await.unwrap() }
        })
        .unwrap();
    assert!(is_listed());
    end.send(()).unwrap();
    await_sync(workers);
    assert!(!is_listed());
}

#[test]
fn workers_that_end_while_they_are_asked_answer_or_are_left_out() {
    let ends = thread::spawn(|| {
        for _ in 0..if cfg!(greenhack_sanitizer) { 10 } else { 100 } {
            let workers = Workers::new().threads(2).thread_name("ends");
            await_sync(workers.run_each(|_| yield_now()).unwrap());
        }
    });
    while !ends.is_finished() {
        // Who neither answers nor ends would be waited for as long as this process lives.
        let dump = await_sync(dump::all(Duration::MAX));
        assert!(
            dump.threads()
                .iter()
                .all(|thread| thread.stacks().is_some())
        );
    }
    ends.join().unwrap();
}

#[test]
fn runs_that_wait_for_nothing_are_not_shown_for_long() {
    runtime().block_on(async {
        assert_eq!(run_sync_local(|| await_sync(ready(7))).await, 7);
        assert!(names().is_empty());
        assert_eq!(run_sync(|| 7).await, 7);
        assert!(names().is_empty());
        assert!(
            tokio::task::spawn_local(run_sync_local(|| resume_unwind(Box::new(()))))
                .await
                .unwrap_err()
                .is_panic()
        );
        assert!(names().is_empty());
    });
}

#[cfg(feature = "backtrace")]
mod backtraces {
    use super::*;

    #[inline(never)]
    fn inner() {
        await_sync(yield_now());
    }

    #[inline(never)]
    fn outer() {
        inner();
        std::hint::black_box(());
    }

    #[inline(never)]
    fn who_asks() -> dump::Stack {
        let stack = the_only_one();
        std::hint::black_box(());
        stack
    }

    fn frames(stack: &dump::Stack) -> Vec<String> {
        let text = stack.backtrace().unwrap();
        let names = text.lines().filter(|line| !line.trim().starts_with("at "));
        names
            .map(|line| line.split_once(": ").unwrap().1.to_owned())
            .collect()
    }

    #[test]
    #[cfg_attr(greenhack_sanitizer, ignore = "locals are elsewhere than on the stack")]
    fn a_backtrace_has_the_runs_own_frames() {
        runtime().block_on(async {
            let mut run = run_sync_local(outer);
            assert!(poll!(&mut run).is_pending());
            let frames = frames(&who_asks());
            // With line tables alone, what is inlined has no path.
            assert!(frames[0].ends_with("inner"), "{frames:#?}");
            assert!(frames[1].ends_with("outer"), "{frames:#?}");
            let asks = frames.iter().any(|frame| frame.contains("who_asks"));
            assert!(!asks && frames.len() < 8, "{frames:#?}");
            run.await;
        });
    }

    #[test]
    #[cfg_attr(greenhack_sanitizer, ignore = "locals are elsewhere than on the stack")]
    fn a_stack_without_room_has_no_backtrace() {
        /// Waits when it is 42 KiB below `begin`.
        #[inline(never)]
        fn descend(begin: usize) {
            let here = std::hint::black_box([0_u8; 256]);
            if begin - here.as_ptr().addr() > 42 * 1024 {
                await_sync(yield_now());
            } else {
                descend(begin);
            }
            std::hint::black_box(here);
        }
        fn hungry() {
            let begin = std::hint::black_box(0_u8);
            descend((&raw const begin).addr());
        }
        runtime().block_on(async {
            let mut run = builder().stack_size(64 * 1024).run_sync_local(hungry);
            assert!(poll!(&mut run).is_pending());
            let stack = the_only_one();
            assert!(stack.used().unwrap() > 42 * 1024);
            assert!(stack.location().is_some());
            assert_eq!(stack.backtrace(), None);
            run.await;
        });
    }
}

#[cfg(feature = "tracing")]
mod spans {
    use super::*;
    use tracing::subscriber::with_default;

    #[test]
    fn the_spans_that_a_run_holds_open_are_named() {
        with_default(tracing_subscriber::registry(), || {
            runtime().block_on(async {
                let mut run = run_sync_local(|| {
                    let _order = tracing::info_span!("order").entered();
                    let _cook = tracing::info_span!("cook").entered();
                    await_sync(yield_now());
                });
                assert!(poll!(&mut run).is_pending());
                let stack = the_only_one();
                assert_eq!(stack.spans(), ["order", "cook"]);
                assert!(stack.to_string().contains(", in order:cook"));
                run.await;
            });
        });
    }
}
