//! Attacks on dumps: from wherever code of others runs, and of stacks in whatever state.

#![cfg(all(panic = "unwind", not(greenhack_threads)))]

#[path = "soundness/help.rs"]
mod help;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::hint::black_box;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use futures::poll;
use greenhack::dump::{self, State, this_thread};
use greenhack::{
    Ambient, await_in_drop, await_sync, builder, in_context, join, nested, no_suspend,
    on_thread_stack, run_sync, run_sync_local, scope, shield, with_ambient,
};
use help::{AnyRun, multi_thread, poll_once, settle, succeeds_in_child};
use tokio::runtime::LocalRuntime;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local, yield_now};

const KIB: usize = 1024;

fn block_on<F: Future>(future: F) -> F::Output {
    LocalRuntime::new().unwrap().block_on(future)
}

fn the_only_one() -> dump::Stack {
    let thread = this_thread();
    match thread.stacks().unwrap() {
        [stack] => stack.clone(),
        stacks => panic!("there are {} stacks", stacks.len()),
    }
}

/// Suspended runs in all states in which they can be asked.
struct Zoo {
    go: Rc<Notify>,
    runs: Vec<AnyRun>,
    ended: Rc<Cell<usize>>,
    seen: Rc<Cell<usize>>,
}

/// How many stacks there are in a [`Zoo`].
const STACKS: usize = 7;

/// Waits in an unwind of its own.
struct WaitsInUnwind(Rc<Notify>, Rc<Cell<usize>>);

impl Drop for WaitsInUnwind {
    fn drop(&mut self) {
        assert!(thread::panicking());
        await_in_drop(self.0.notified());
        assert!(thread::panicking());
        self.1.set(self.1.get() + 1);
    }
}

impl Zoo {
    async fn new() -> Zoo {
        let (go, ended) = <(Rc<Notify>, Rc<Cell<usize>>)>::default();
        let end = |ended: Rc<Cell<usize>>| move || ended.set(ended.get() + 1);
        let mut runs: Vec<AnyRun> = Vec::new();
        for size in [64 * KIB, 2 * KIB * KIB] {
            let (go, end) = (go.clone(), end(ended.clone()));
            let run = builder().stack_size(size).run_sync_local(move || {
                await_sync(go.notified());
                end();
            });
            runs.push(Box::pin(run));
        }
        let (wait, end) = (go.clone(), end(ended.clone()));
        let scoped = run_sync_local(move || {
            join(
                || await_sync(wait.notified()),
                || await_sync(wait.notified()),
            );
            end();
        });
        runs.push(Box::pin(scoped));
        let unwinds = WaitsInUnwind(go.clone(), ended.clone());
        let unwinds = run_sync_local(move || {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let _unwinds = unwinds;
                resume_unwind(Box::new(7));
            }));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7));
        });
        runs.push(Box::pin(unwinds));
        for run in &mut runs {
            assert!(poll_once(run).await.is_pending());
        }
        // It is no longer ours.
        let (wait, ended_too) = (go.clone(), ended.clone());
        let cancelled = spawn_local(run_sync_local(move || {
            shield(|| {
                await_sync(wait.notified());
                ended_too.set(ended_too.get() + 1);
            });
        }));
        yield_now().await;
        cancelled.abort();
        yield_now().await;
        Zoo {
            go,
            runs,
            ended,
            seen: Rc::default(),
        }
    }

    /// What looks at all stacks, and that nothing is as if it had not.
    fn look(&self) -> impl Fn() + Clone + 'static {
        let seen = self.seen.clone();
        move || {
            let before = (thread::panicking(), in_context());
            let thread = this_thread();
            assert_eq!((thread::panicking(), in_context()), before);
            let stacks = thread.stacks().unwrap();
            assert!(stacks.len() >= STACKS, "{thread}");
            for stack in &stacks[..STACKS] {
                assert!(stack.state() != State::Running && stack.location().is_some());
            }
            seen.set(seen.get() + 1);
        }
    }

    /// Lets all go on, and sees that they do as if nobody had looked.
    #[track_caller]
    fn end(self, looks: usize) -> impl Future<Output = ()> {
        assert_eq!(self.seen.get(), looks);
        async move {
            self.go.notify_waiters();
            for run in self.runs {
                run.await;
            }
            settle().await;
            assert_eq!(self.ended.get(), 5);
            assert!(!thread::panicking());
            assert!(this_thread().stacks().unwrap().is_empty());
        }
    }
}

/// Calls its closure when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn whoever_is_polled_or_dropped_by_a_run_may_look() {
    block_on(async {
        let zoo = Zoo::new().await;
        let look = zoo.look();
        let looks = look.clone();
        // The poll of what is awaited, its drop at its end, and its drop by a cancellation.
        let mut run = run_sync_local(move || {
            let once = looks.clone();
            let _in_an_unwind = OnDrop(looks.clone());
            await_sync(async move {
                let _at_its_end = OnDrop(once.clone());
                once();
                yield_now().await;
                once();
            });
            let _cancelled = OnDrop(looks.clone());
            await_sync(async move {
                let _cancelled = OnDrop(looks);
                pending::<()>().await;
            });
        });
        for _ in 0..2 {
            assert!(poll!(&mut run).is_pending());
        }
        drop(run);
        zoo.end(6).await;
    });
}

#[test]
fn captures_and_outputs_may_look_when_they_are_dropped() {
    block_on(async {
        let zoo = Zoo::new().await;
        let look = zoo.look();
        let (captured, output) = (OnDrop(look.clone()), OnDrop(look.clone()));
        run_sync_local(move || drop(captured)).await;
        drop(run_sync_local(move || output).await);
        // Of a closure that has not begun.
        let captured = OnDrop(look.clone());
        drop(run_sync_local(move || drop(captured)));
        // In an unwind of the run's parent.
        let output = OnDrop(look.clone());
        let mut run = run_sync_local(move || {
            await_sync(pending::<()>());
            output
        });
        assert!(poll!(&mut run).is_pending());
        let unwound = catch_unwind(AssertUnwindSafe(move || {
            let _run = run;
            resume_unwind(Box::new(()));
        }));
        assert!(unwound.is_err());
        zoo.end(4).await;
    });
}

#[test]
fn wakers_may_look_when_they_are_woken_and_dropped() {
    struct Looks(Box<dyn Fn()>);
    impl Wake for Looks {
        fn wake(self: Arc<Self>) {
            (self.0)();
        }
    }
    // SAFETY: the waker that it is in does not leave its thread.
    unsafe impl Send for Looks {}
    // SAFETY: as above.
    unsafe impl Sync for Looks {}
    impl Drop for Looks {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    block_on(async {
        let zoo = Zoo::new().await;
        let waker = Waker::from(Arc::new(Looks(Box::new(zoo.look()))));
        let notify = Rc::new(Notify::new());
        let wait = notify.clone();
        let mut run = run_sync_local(move || {
            join(
                || await_sync(wait.notified()),
                || await_sync(wait.notified()),
            );
        });
        // Woken while it waits, and dropped by the one that takes its place.
        assert!(
            Pin::new(&mut run)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        notify.notify_one();
        let woken = zoo.seen.get();
        assert!(woken > 0);
        drop(waker);
        assert!(poll!(&mut run).is_pending());
        assert_eq!(zoo.seen.get(), woken + 1);
        notify.notify_one();
        run.await;
        zoo.end(woken + 1).await;
    });
}

#[test]
fn ambient_contexts_may_look_when_they_come_and_go() {
    struct Looks<F>(F);
    impl<F: Fn()> Ambient for Looks<F> {
        fn mount(&mut self) {
            (self.0)();
        }
        fn unmount(&mut self) {
            (self.0)();
        }
    }
    block_on(async {
        let zoo = Zoo::new().await;
        let looks = Looks(zoo.look());
        let mut run = run_sync_local(move || {
            with_ambient(looks, || await_sync(yield_now()));
        });
        assert!(poll!(&mut run).is_pending());
        // It is mounted, then unmounted, each time.
        assert_eq!(zoo.seen.get(), 2);
        run.await;
        zoo.end(4).await;
    });
}

#[test]
fn nested_places_of_all_kinds_may_look() {
    block_on(async {
        let zoo = Zoo::new().await;
        let looks = zoo.look();
        let run = run_sync_local(move || {
            looks();
            shield(&looks);
            no_suspend(&looks);
            on_thread_stack(&looks);
            nested(&looks, async |run| run.await);
            join(&looks, || on_thread_stack(&looks));
            scope(|s| {
                s.spawn(|| {
                    await_sync(yield_now());
                    looks();
                });
            });
            let inner = looks.clone();
            await_sync(run_sync_local(move || {
                await_sync(yield_now());
                await_sync(async move { inner() });
            }));
        });
        run.await;
        zoo.end(9).await;
    });
}

#[test]
fn a_panic_hook_may_look() {
    succeeds_in_child("a_panic_hook_may_look", || {
        thread_local! {
            static LOOK: RefCell<Option<Box<dyn Fn()>>> = const { RefCell::new(None) };
        }
        std::panic::set_hook(Box::new(|_| {
            LOOK.with_borrow(|look| look.as_ref().unwrap()());
        }));
        block_on(async {
            let zoo = Zoo::new().await;
            let look = zoo.look();
            LOOK.set(Some(Box::new(move || {
                assert!(thread::panicking());
                look();
            })));
            // On the thread's stack, and on a coroutine's that unwinds already.
            let caught = catch_unwind(|| panic!("soup"));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"soup"));
            assert!(!thread::panicking());
            let run = run_sync_local(|| {
                let caught = catch_unwind(|| {
                    let _again = OnDrop(|| {
                        let caught = catch_unwind(|| panic!("nut"));
                        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"nut"));
                        assert!(thread::panicking());
                    });
                    panic!("stew");
                });
                assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"stew"));
                assert!(!thread::panicking());
            });
            run.await;
            zoo.end(3).await;
        });
    });
}

#[test]
fn a_runtime_and_a_local_set_that_drop_their_tasks_may_be_looked_at() {
    let (sender, seen) = mpsc::channel();
    let count = move || {
        let thread = this_thread();
        let stacks = thread.stacks().unwrap();
        let states: Vec<_> = stacks.iter().map(dump::Stack::state).collect();
        sender.send(states).unwrap();
    };
    let waits = || {
        let at_its_end = OnDrop(count.clone());
        run_sync_local(move || {
            let _at_its_end = at_its_end;
            await_sync(pending::<()>());
        })
    };
    let states = || seen.try_iter().collect::<Vec<_>>();
    let the_last = vec![State::Running];

    let runtime = LocalRuntime::new().unwrap();
    let set = LocalSet::new();
    runtime.block_on(set.run_until(async {
        set.spawn_local(waits());
        set.spawn_local(waits());
        yield_now().await;
    }));
    drop(set);
    let [first, second] = states().try_into().unwrap();
    assert_eq!((first.len(), second), (2, the_last.clone()));

    runtime.spawn_local(waits());
    runtime.spawn_local(waits());
    runtime.block_on(yield_now());
    drop(runtime);
    let [first, second] = states().try_into().unwrap();
    assert_eq!((first.len(), second), (2, the_last));
    assert!(this_thread().stacks().unwrap().is_empty());
}

#[test]
fn a_wait_on_a_stack_of_other_code_gives_an_account() {
    block_on(async {
        // What is mapped next is above or below the stacks of runs.
        let hole = vec![0_u8; 8 * KIB * KIB];
        let mut run = run_sync_local(|| {
            let grown = || {
                let line = line!() + 1;
                await_sync(yield_now());
                line
            };
            await_sync(yield_now());
            stacker::grow(64 * KIB, grown) + stacker::grow(64 * KIB, grown)
        });
        assert!(poll!(&mut run).is_pending());
        assert!(the_only_one().used().is_some() || cfg!(greenhack_sanitizer));
        assert!(poll!(&mut run).is_pending());
        let below = the_only_one();
        drop(hole);
        assert!(poll!(&mut run).is_pending());
        let above = the_only_one();
        for stack in [&below, &above] {
            assert_eq!(stack.state(), State::Waiting);
            assert_eq!((stack.used(), stack.backtrace()), (None, None));
        }
        assert_eq!(run.await, 2 * below.location().unwrap().line());
    });
}

#[test]
fn a_run_that_was_leaked_where_it_could_not_wait_is_not_resumed() {
    struct Stuck;
    impl Drop for Stuck {
        fn drop(&mut self) {
            no_suspend(|| await_sync(yield_now()));
            unreachable!("it can neither wait nor unwind");
        }
    }
    let gets_stuck = || {
        let _stuck = Stuck;
        resume_unwind(Box::new(()));
    };
    thread::spawn(move || {
        block_on(async {
            for (name, is_scoped) in [("alone", false), ("scoped", true)] {
                let run = builder()
                    .name(name)
                    .run_sync_local(move || match is_scoped {
                        false => gets_stuck(),
                        true => {
                            join(gets_stuck, || ());
                        }
                    });
                assert!(spawn_local(run).await.unwrap_err().is_panic());
            }
            for _ in 0..2 {
                let thread = this_thread();
                let stacks = thread.stacks().unwrap();
                let names: Vec<_> = stacks.iter().map(dump::Stack::name).collect();
                assert_eq!(names, ["alone", "scoped", "scoped"]);
                for stack in stacks {
                    assert_eq!((stack.state(), stack.location()), (State::Leaked, None));
                }
                assert!(!thread::panicking());
            }
        });
    })
    .join()
    .unwrap();
}

#[test]
fn a_local_that_is_destroyed_before_the_runs_may_look_at_those_that_stay() {
    thread_local! {
        static LAST: RefCell<Option<Box<dyn std::any::Any>>> = const { RefCell::new(None) };
    }
    let (sender, seen) = mpsc::channel();
    thread::spawn(move || {
        block_on(async {
            let never = Rc::<Notify>::default();
            let (wait, unwinds) = (never.clone(), WaitsInUnwind(never, Rc::default()));
            let mut plain = Box::pin(run_sync_local(move || await_sync(wait.notified())));
            let mut unwinding = Box::pin(run_sync_local(move || {
                let _unwinds = unwinds;
                resume_unwind(Box::new(()));
            }));
            assert!(poll!(&mut plain).is_pending());
            assert!(poll!(&mut unwinding).is_pending());
            mem::forget((plain, unwinding));
        });
        // Made after the runs, and so destroyed before it shows that the thread ends.
        LAST.set(Some(Box::new(OnDrop(move || {
            let thread = this_thread();
            let states = thread.stacks().unwrap().iter().map(dump::Stack::state);
            sender
                .send((states.collect(), thread::panicking()))
                .unwrap();
        }))));
    })
    .join()
    .unwrap();
    let (states, panicking): (Vec<_>, _) = seen.recv().unwrap();
    assert_eq!(states, [State::Waiting; 2]);
    assert!(!panicking);
}

/// An address on this stack, below all of the caller's frame.
#[inline(never)]
fn address() -> usize {
    let here = black_box(0_u8);
    (&raw const here).addr()
}

/// Waits for something that is moved about on its stack before. Returns an address below
/// the frame.
#[inline(never)]
fn wait_with<const SIZE: usize>() -> usize {
    let load = black_box([1_u8; SIZE]);
    let address = address();
    await_sync(async move {
        yield_now().await;
        black_box(&load);
    });
    address
}

#[test]
#[cfg_attr(greenhack_sanitizer, ignore = "locals are elsewhere than on the stack")]
fn what_is_in_use_is_all_of_the_frame_that_waits() {
    block_on(async {
        let mut run = run_sync_local(|| (wait_with::<16>(), wait_with::<{ 16 * KIB }>()));
        assert!(poll!(&mut run).is_pending());
        let small = the_only_one().used().unwrap();
        assert!(poll!(&mut run).is_pending());
        let large = the_only_one().used().unwrap();
        let (small_at, large_at) = run.await;
        assert!(small_at - large_at > 16 * KIB);
        let difference = (large - small).abs_diff(small_at - large_at);
        assert!(difference < KIB, "{difference}");
    });
}

#[test]
fn a_stack_that_is_nearly_full_is_not_overflowed() {
    /// What is left below the last frame that waits, but for what lies above the first.
    const LEFT: usize = 3 * KIB;

    /// Waits at each depth, until no more than `left` bytes are.
    #[inline(never)]
    fn descend(begin: usize, left: usize) {
        let frame = black_box([0_u8; 64]);
        if begin - address() < 64 * KIB - left {
            wait_with::<{ 4 * KIB }>();
            descend(begin, left);
        }
        black_box(frame);
    }

    succeeds_in_child("a_stack_that_is_nearly_full_is_not_overflowed", || {
        block_on(async {
            let small = builder().stack_size(64 * KIB);
            let mut run = small.run_sync_local(|| {
                let begin = address();
                let frame = begin - wait_with::<{ 4 * KIB }>();
                descend(begin, frame + LEFT);
            });
            let mut looks = 0;
            while poll!(&mut run).is_pending() {
                assert!(the_only_one().location().is_some());
                looks += 1;
            }
            assert!(looks > 32, "{looks}");
        });
    });
}

#[test]
fn a_limit_that_is_none_or_endless_is_one() {
    multi_thread().block_on(async {
        // There are workers then.
        run_sync(|| ()).await;
        for limit in [Duration::ZERO, Duration::MAX] {
            let dump = dump::all(limit).await;
            assert!(dump.threads()[0].stacks().is_some());
        }
    });
}

#[test]
fn a_worker_that_asks_is_never_late_itself() {
    let (name, dump) = multi_thread().block_on(run_sync(|| {
        // It does nothing else until it has the answers.
        let mut all = Box::pin(dump::all(Duration::ZERO));
        let dump = await_sync(async {
            loop {
                match poll!(&mut all) {
                    Poll::Ready(dump) => break dump,
                    Poll::Pending => thread::yield_now(),
                }
            }
        });
        (thread::current().name().unwrap().to_owned(), dump)
    }));
    let mut threads = dump.threads().iter();
    let own = threads.find(|thread| thread.name() == name).unwrap();
    assert!(own.stacks().is_some());
}

#[test]
fn a_worker_that_closes_can_ask_all_and_is_asked() {
    struct Asks(mpsc::Sender<Option<dump::Dump>>);
    impl Drop for Asks {
        fn drop(&mut self) {
            let dump = await_in_drop(dump::all(Duration::MAX));
            self.0.send(dump).unwrap();
        }
    }
    succeeds_in_child("a_worker_that_closes_can_ask_all_and_is_asked", || {
        let workers = greenhack::workers::Builder::new().threads(1);
        workers.start().unwrap();
        let (sender, asked) = mpsc::channel();
        multi_thread().block_on(async {
            let (begin, begun) = tokio::sync::oneshot::channel();
            let run = tokio::spawn(run_sync(move || {
                let _asks = Asks(sender);
                begin.send(()).unwrap();
                await_sync(pending::<()>());
            }));
            begun.await.unwrap();
            greenhack::workers::shutdown(Duration::from_secs(60)).await;
            assert!(run.await.unwrap_err().is_panic());
            // There is no worker any more.
            let dump = dump::all(Duration::MAX).await;
            assert_eq!(dump.threads().len(), 1);
        });
        let dump = asked.recv().unwrap().unwrap();
        assert_eq!(dump.threads().len(), 1);
        let [stack] = dump.threads()[0].stacks().unwrap() else {
            panic!("{dump}");
        };
        assert_eq!(stack.state(), State::CleaningUp);
        assert_eq!(greenhack::leaked_runs(), 0);
    });
}

#[test]
fn a_run_that_does_not_wait_has_not_waited() {
    block_on(async {
        dump::note_times(true);
        let run = run_sync_local(|| {
            await_sync(yield_now());
            the_only_one()
        });
        let stack = run.await;
        assert_eq!((stack.state(), stack.waited()), (State::Running, None));
    });
}

#[cfg(feature = "tracing")]
#[test]
fn a_subscriber_that_is_asked_for_names_may_end_the_run() {
    use std::any::TypeId;
    use tracing::Subscriber;
    use tracing::subscriber::with_default;
    use tracing_subscriber::layer::{Layer, SubscriberExt};

    thread_local! {
        static TO_END: RefCell<Option<AnyRun>> = const { RefCell::new(None) };
    }
    struct Ends;
    impl<S: Subscriber> Layer<S> for Ends {
        // It is how a dump finds the registry.
        unsafe fn downcast_raw(&self, _: TypeId) -> Option<*const ()> {
            drop(TO_END.take());
            None
        }
    }
    with_default(tracing_subscriber::registry().with(Ends), || {
        block_on(async {
            let has_ended = Rc::new(Cell::new(false));
            let ends = has_ended.clone();
            let mut before = run_sync_local(|| await_sync(yield_now()));
            let mut ended: AnyRun = Box::pin(run_sync_local(move || {
                let _ends = OnDrop(|| ends.set(true));
                let _span = tracing::info_span!("order").entered();
                await_sync(pending::<()>());
            }));
            let mut after = run_sync_local(|| await_sync(yield_now()));
            assert!(poll!(&mut before).is_pending());
            assert!(poll!(&mut ended).is_pending());
            assert!(poll!(&mut after).is_pending());
            TO_END.set(Some(ended));
            let thread = this_thread();
            assert!(has_ended.get());
            let stacks = thread.stacks().unwrap();
            let spans: Vec<_> = stacks.iter().map(dump::Stack::spans).collect();
            // It was there when it was looked at, its span no longer.
            assert_eq!(spans, [&[] as &[&str]; 3]);
            assert_eq!(this_thread().stacks().unwrap().len(), 2);
            before.await;
            after.await;
        });
    });
}

#[cfg(feature = "backtrace")]
mod backtraces {
    use super::*;

    /// Of this, names are looked up.
    fn any_function() -> *mut std::ffi::c_void {
        (block_on::<std::future::Ready<()>> as *mut u8)
            .wrapping_add(1)
            .cast()
    }

    #[test]
    fn a_dump_does_not_wait_for_names_that_others_look_up() {
        let (begin, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let looks_up = thread::spawn(move || {
            let mut was_looked_at = None;
            backtrace::resolve(any_function(), |_| {
                begin.send(()).unwrap();
                // Otherwise it would be for ever.
                was_looked_at = Some(ended.recv_timeout(Duration::from_secs(20)));
            });
            was_looked_at
        });
        begun.recv().unwrap();
        block_on(async {
            let mut run = run_sync_local(|| await_sync(pending::<()>()));
            assert!(poll!(&mut run).is_pending());
            assert!(the_only_one().location().is_some());
        });
        end.send(()).unwrap();
        assert_eq!(looks_up.join().unwrap(), Some(Ok(())));
    }

    #[test]
    fn a_panic_of_others_who_look_up_names_reaches_no_run() {
        succeeds_in_child(
            "backtraces::a_panic_of_others_who_look_up_names_reaches_no_run",
            || {
                let panicked = catch_unwind(|| {
                    backtrace::resolve(any_function(), |_| resume_unwind(Box::new(())));
                });
                assert!(panicked.is_err());
                block_on(async {
                    let mut run = run_sync_local(|| await_sync(yield_now()));
                    assert!(poll!(&mut run).is_pending());
                    assert!(the_only_one().location().is_some());
                    run.await;
                });
            },
        );
    }
}
