//! Thread-local contexts that go with a run, by `Ambient`.

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;

use greenhack::{Ambient, await_in_drop, await_sync, join, run_sync_local, scope, with_ambient};
use help::{poll_once, settle};
use opentelemetry::{Context, ContextGuard};
use support::{Place, current_thread, in_each_place, on_drop};
use tokio::task::yield_now;

thread_local! {
    static STACK: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    static CALLS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Pushes a name to a stack of the thread.
struct Name(&'static str);

impl Ambient for Name {
    fn mount(&mut self) {
        STACK.with_borrow_mut(|stack| stack.push(self.0));
        CALLS.with_borrow_mut(|calls| calls.push(format!("+{}", self.0)));
    }

    fn unmount(&mut self) {
        assert_eq!(STACK.with_borrow_mut(Vec::pop), Some(self.0));
        CALLS.with_borrow_mut(|calls| calls.push(format!("-{}", self.0)));
    }
}

fn stack() -> String {
    STACK.with_borrow(|stack| stack.join(">"))
}

fn calls() -> String {
    CALLS.take().join(" ")
}

#[test]
fn it_is_mounted_at_each_poll_and_unmounted_when_the_poll_returns() {
    current_thread().block_on(async {
        let mut run = run_sync_local(|| {
            assert_eq!(stack(), "");
            with_ambient(Name("a"), || {
                assert_eq!(stack(), "a");
                await_sync(yield_now());
                // What is ready does not suspend.
                await_sync(async { assert_eq!(stack(), "a") });
                with_ambient(Name("b"), || await_sync(yield_now()));
                assert_eq!(stack(), "a");
            });
            assert_eq!(stack(), "");
            await_sync(yield_now());
        });
        assert!(poll_once(&mut run).await.is_pending());
        assert_eq!((stack(), calls()), (String::new(), "+a -a".to_owned()));
        assert!(poll_once(&mut run).await.is_pending());
        assert_eq!(calls(), "+a +b -b -a");
        assert!(poll_once(&mut run).await.is_pending());
        assert_eq!(calls(), "+a +b -b -a");
        run.await;
        assert_eq!((stack(), calls()), Default::default());
    });
}

#[test]
fn that_of_one_closure_is_not_its_siblings() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let steps = |name: &'static str, whole: &'static str| {
                move || {
                    with_ambient(Name(name), || {
                        for _ in 0..3 {
                            assert_eq!(stack(), whole);
                            await_sync(yield_now());
                        }
                        await_sync(async {
                            assert_eq!(stack(), whole);
                            yield_now().await;
                            assert_eq!(stack(), whole);
                        });
                        assert_eq!(stack(), whole);
                    });
                }
            };
            with_ambient(Name("caller"), || {
                join(steps("a", "caller>a"), steps("b", "caller>b"));
                assert_eq!(stack(), "caller");
                scope(|s| {
                    with_ambient(Name("body"), || {
                        let spawned = s.spawn(steps("c", "caller>c"));
                        steps("d", "caller>body>d")();
                        spawned.join().unwrap();
                        assert_eq!(stack(), "caller>body");
                    });
                });
                assert_eq!(stack(), "caller");
            });
            assert_eq!(stack(), "");
            // They took turns: one was off the thread while the other was on it.
            let calls = calls();
            assert!(calls.contains("+a -a +b -b"), "{calls}");
            calls
        });
        run.await.unwrap();
        assert_eq!(stack(), "");
    });
}

#[test]
fn outside_a_run_it_is_mounted_for_the_call() {
    let call = || with_ambient(Name("a"), || with_ambient(Name("b"), stack));
    assert_eq!(call(), "a>b");
    assert_eq!(calls(), "+a +b -b -a");
    // Also where nothing can wait.
    current_thread().block_on(async { assert_eq!(call(), "a>b") });
    let polled = run_sync_local(move || await_sync(async move { call() }));
    assert_eq!(current_thread().block_on(polled), "a>b");
    // And with a wait that blocks.
    with_ambient(Name("a"), || {
        await_sync(async {
            yield_now().await;
            assert_eq!(stack(), "a");
        });
    });
    assert_eq!(stack(), "");
}

#[test]
fn a_nested_run_is_mounted_within_the_outer() {
    current_thread().block_on(async {
        let mut run = run_sync_local(|| {
            with_ambient(Name("outer"), || {
                let nested = run_sync_local(|| {
                    assert_eq!(stack(), "outer");
                    with_ambient(Name("nested"), || {
                        await_sync(yield_now());
                        assert_eq!(stack(), "outer>nested");
                    });
                });
                let beside = async {
                    assert_eq!(stack(), "outer");
                    yield_now().await;
                    assert_eq!(stack(), "outer");
                };
                await_sync(async { tokio::join!(biased; nested, beside) });
            });
        });
        assert!(poll_once(&mut run).await.is_pending());
        assert_eq!(stack(), "");
        run.await;
        assert_eq!(
            calls(),
            "+outer +nested -nested -outer +outer +nested -nested -outer"
        );
    });
}

#[test]
fn destructors_find_it_mounted_when_a_run_is_cancelled() {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let see = |when: &'static str| {
        let seen = seen.clone();
        move || seen.borrow_mut().push(format!("{when}: {}", stack()))
    };
    current_thread().block_on(async {
        let (outer, inner, future) = (see("outer"), see("inner"), see("future"));
        let (waits, waited) = (see("waits"), see("waited"));
        let mut run = run_sync_local(move || {
            let _outer = on_drop(outer);
            with_ambient(Name("a"), || {
                let _inner = on_drop(inner);
                let _waits = on_drop(|| {
                    waits();
                    await_in_drop(yield_now());
                    waited();
                });
                await_sync(async {
                    let _future = on_drop(future);
                    pending::<()>().await;
                });
            });
        });
        assert!(poll_once(&mut run).await.is_pending());
        // The task has a context of its own, and the reaper none.
        with_ambient(Name("task"), || drop(run));
        assert_eq!(stack(), "");
        settle().await;
    });
    let expected = [
        "future: task>a",
        "waits: task>a",
        "waited: a",
        "inner: a",
        "outer: ",
    ];
    assert_eq!(*seen.borrow(), expected);
}

#[test]
fn a_panic_of_the_code_passes_and_unmounts() {
    current_thread().block_on(async {
        let run = run_sync_local(|| {
            with_ambient(Name("a"), || {
                await_sync(yield_now());
                std::panic::panic_any(7);
            });
        });
        let caught = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(run));
        assert_eq!(caught.await.unwrap_err().downcast_ref(), Some(&7));
        assert_eq!(
            (stack(), calls()),
            (String::new(), "+a -a +a -a".to_owned())
        );
    });
}

/// The context of OpenTelemetry.
struct Attached {
    context: Context,
    guard: Option<ContextGuard>,
}

impl Attached {
    fn new(context: Context) -> Attached {
        Attached {
            context,
            guard: None,
        }
    }
}

impl Ambient for Attached {
    fn mount(&mut self) {
        self.guard = Some(self.context.clone().attach());
    }

    fn unmount(&mut self) {
        self.guard = None;
    }
}

#[derive(Debug, PartialEq)]
struct User(u32);

#[derive(Debug, PartialEq)]
struct Depth(u32);

fn user() -> Option<u32> {
    Context::map_current(|context| context.get::<User>().map(|user| user.0))
}

fn depth() -> Option<u32> {
    Context::map_current(|context| context.get::<Depth>().map(|depth| depth.0))
}

fn serve(id: u32) {
    assert_eq!((user(), depth()), (Some(id), None));
    for depth_here in 0..id % 4 {
        let deeper = Context::current().with_value(Depth(depth_here));
        with_ambient(Attached::new(deeper), || {
            await_sync(yield_now());
            assert_eq!((user(), depth()), (Some(id), Some(depth_here)));
            await_sync(async {
                yield_now().await;
                assert_eq!((user(), depth()), (Some(id), Some(depth_here)));
            });
        });
        await_sync(yield_now());
        assert_eq!((user(), depth()), (Some(id), None));
    }
}

#[test]
fn contexts_of_opentelemetry_go_with_their_runs_in_each_place() {
    in_each_place(|place| async move {
        let tasks: Vec<_> = (0..100)
            .map(|id| {
                let context = Context::current().with_value(User(id));
                place.spawn(move || with_ambient(Attached::new(context), || serve(id)))
            })
            .collect();
        for task in tasks {
            assert_eq!(user(), None);
            task.await.unwrap();
        }
        assert_eq!(place.spawn(user).await.unwrap(), None);
    });
}

/// An error reporter keeps a stack of scopes per thread, the hub, and hands out
/// guards of it.
mod reporter {
    use super::*;

    #[derive(Clone, Default)]
    pub(crate) struct Hub(Rc<RefCell<Vec<String>>>);

    thread_local! {
        static CURRENT: Cell<Option<Hub>> = const { Cell::new(None) };
    }

    impl Hub {
        pub(crate) fn switch(hub: Option<Hub>) -> Option<Hub> {
            CURRENT.replace(hub)
        }

        fn current() -> Hub {
            let hub = CURRENT.take().unwrap_or_default();
            CURRENT.set(Some(hub.clone()));
            hub
        }
    }

    pub(crate) struct Scope(Hub);

    pub(crate) fn push(name: String) -> Scope {
        let hub = Hub::current();
        hub.0.borrow_mut().push(name);
        Scope(hub)
    }

    pub(crate) fn report() -> String {
        Hub::current().0.borrow().join(">")
    }

    impl Drop for Scope {
        fn drop(&mut self) {
            let hub = Hub::current();
            assert!(Rc::ptr_eq(&hub.0, &self.0.0), "dropped in another hub");
            hub.0.borrow_mut().pop();
        }
    }
}

/// Swaps the hub of the thread with that of the run.
#[derive(Default)]
struct OwnHub(Option<reporter::Hub>);

impl Ambient for OwnHub {
    fn mount(&mut self) {
        self.0 = reporter::Hub::switch(self.0.take());
    }

    fn unmount(&mut self) {
        self.0 = reporter::Hub::switch(self.0.take());
    }
}

#[test]
fn guards_of_a_hub_may_be_held_across_waits_if_the_hub_is_the_runs_own() {
    in_each_place(|place| async move {
        let serve = |id: u32| {
            move || {
                with_ambient(OwnHub::default(), || {
                    let _user = reporter::push(format!("user {id}"));
                    for step in 0..id % 5 {
                        let _step = reporter::push(format!("step {step}"));
                        await_sync(yield_now());
                        let expected = format!("user {id}>step {step}");
                        assert_eq!(reporter::report(), expected);
                        await_sync(async { assert_eq!(reporter::report(), expected) });
                    }
                    reporter::report()
                })
            }
        };
        let tasks: Vec<_> = (0..100).map(|id| (id, place.spawn(serve(id)))).collect();
        for (id, task) in tasks {
            assert_eq!(task.await.unwrap(), format!("user {id}"));
        }
        if place != Place::Worker {
            assert_eq!(reporter::report(), "");
        }
    });
}

#[test]
fn a_context_may_borrow_nothing_but_share_what_it_has_seen() {
    struct Counts(Rc<Cell<(u32, u32)>>);
    impl Ambient for Counts {
        fn mount(&mut self) {
            let (mounts, unmounts) = self.0.get();
            self.0.set((mounts + 1, unmounts));
        }
        fn unmount(&mut self) {
            let (mounts, unmounts) = self.0.get();
            self.0.set((mounts, unmounts + 1));
        }
    }
    let counts = Rc::new(Cell::new((0, 0)));
    let shared = counts.clone();
    let run = run_sync_local(move || {
        with_ambient(Counts(shared), || {
            for _ in 0..10 {
                await_sync(yield_now());
            }
        });
    });
    current_thread().block_on(run);
    assert_eq!(counts.get(), (11, 11));
    assert_eq!(Rc::strong_count(&counts), 1);
}

#[test]
fn a_run_that_is_leaked_leaves_nothing_mounted() {
    current_thread().block_on(async {
        let mut run = run_sync_local(|| {
            with_ambient(Name("a"), || {
                while std::panic::catch_unwind(|| await_sync(pending::<()>())).is_err() {}
            });
        });
        assert!(poll_once(&mut run).await.is_pending());
        drop(run);
        assert_eq!(stack(), "");
        assert_eq!(greenhack::leaked_runs(), 1);
        let mut run = run_sync_local(|| with_ambient(Name("b"), || await_sync(pending::<()>())));
        assert!(poll_once(&mut run).await.is_pending());
        std::mem::forget(run);
        assert_eq!(stack(), "");
    });
}

#[test]
fn it_is_unmounted_before_what_it_is_made_of_is_dropped() {
    struct Waits;
    impl Ambient for Waits {
        fn mount(&mut self) {}
        fn unmount(&mut self) {
            CALLS.with_borrow_mut(|calls| calls.push("unmounted".to_owned()));
        }
    }
    impl Drop for Waits {
        fn drop(&mut self) {
            // Here it is a value like any other, and may wait.
            await_sync(yield_now());
            CALLS.with_borrow_mut(|calls| calls.push("dropped".to_owned()));
        }
    }
    current_thread().block_on(async {
        run_sync_local(|| with_ambient(Waits, || await_sync(yield_now()))).await;
    });
    assert_eq!(calls(), "unmounted unmounted dropped");
}
