//! Attacks on the end of a run: by a subscriber that panics in it, by a process
//! that exits in it, and by closures that are too large for it.
#![cfg(panic = "unwind")]

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::cell::RefCell;
use std::future::poll_fn;

use greenhack::{await_sync, builder, run_sync, run_sync_local, scope};
use help::{AnyRun, in_child};
use support::current_thread;
use tokio::task::yield_now;

/// Exits in a run that a thread local owns, so that it is dropped below itself.
fn exit_in_a_run(stack_size: usize) {
    thread_local! {
        static RUN: RefCell<Option<AnyRun>> = const { RefCell::new(None) };
    }
    let thread = std::thread::spawn(move || {
        current_thread().block_on(async move {
            // Makes the marks by which the end of a thread is seen, so that the run
            // is destroyed before them.
            run_sync_local(|| await_sync(async {})).await;
            let run = builder()
                .stack_size(stack_size)
                .run_sync_local(|| std::process::exit(3));
            RUN.set(Some(Box::pin(run)));
            poll_fn(|cx| RUN.with_borrow_mut(|run| run.as_mut().unwrap().as_mut().poll(cx))).await;
        });
    });
    let _ = thread.join();
}

#[test]
fn a_process_may_exit_in_a_run_that_a_thread_local_owns() {
    let name = "a_process_may_exit_in_a_run_that_a_thread_local_owns";
    let status = in_child(name, || exit_in_a_run(64 * 1024)).status;
    assert_eq!(status.code(), Some(3), "{status}");
}

#[test]
fn a_process_may_exit_in_such_a_run_on_a_stack_with_a_mapping_of_its_own() {
    let name = "a_process_may_exit_in_such_a_run_on_a_stack_with_a_mapping_of_its_own";
    let status = in_child(name, || exit_in_a_run(4 * 1024 * 1024)).status;
    assert_eq!(status.code(), Some(3), "{status}");
}

#[test]
fn a_large_closure_runs() {
    #[repr(align(64))]
    struct Aligned([u8; 4096]);

    let large = [7_u8; 4096];
    let aligned = Aligned([1; 4096]);
    let run = run_sync_local(move || {
        await_sync(yield_now());
        assert_eq!((&raw const aligned).addr() % 64, 0);
        let mut seen = 0;
        scope(|s| {
            let seen = &mut seen;
            s.spawn(move || *seen = large[5] + aligned.0[5]);
        });
        seen
    });
    assert_eq!(current_thread().block_on(run), 8);
    let away = help::multi_thread().block_on(run_sync(move || large));
    assert_eq!(away, large);
}

/// A registry that panics where it is told to.
#[cfg(feature = "tracing")]
mod subscriber {
    use std::any::TypeId;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};
    use tracing_core::span::Current;
    use tracing_subscriber::Registry;

    #[derive(Default)]
    pub(crate) struct Knobs {
        pub(crate) in_current_span: AtomicBool,
        pub(crate) in_drop: AtomicBool,
        /// How many events panic.
        pub(crate) in_events: AtomicUsize,
    }

    pub(crate) struct Panics(Registry, Arc<Knobs>);

    impl Panics {
        pub(crate) fn new() -> (Panics, Arc<Knobs>) {
            let knobs = Arc::new(Knobs::default());
            (Panics(tracing_subscriber::registry(), knobs.clone()), knobs)
        }
    }

    impl Drop for Panics {
        fn drop(&mut self) {
            assert!(!self.1.in_drop.load(SeqCst), "drop");
        }
    }

    impl Subscriber for Panics {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            self.0.enabled(metadata)
        }

        fn new_span(&self, span: &Attributes<'_>) -> Id {
            self.0.new_span(span)
        }

        fn record(&self, span: &Id, values: &Record<'_>) {
            self.0.record(span, values);
        }

        fn record_follows_from(&self, span: &Id, follows: &Id) {
            self.0.record_follows_from(span, follows);
        }

        fn event(&self, _: &Event<'_>) {
            let one_less = |left: usize| left.checked_sub(1);
            let panics = self.1.in_events.fetch_update(SeqCst, SeqCst, one_less);
            assert!(panics.is_err(), "event");
        }

        fn enter(&self, span: &Id) {
            self.0.enter(span);
        }

        fn exit(&self, span: &Id) {
            self.0.exit(span);
        }

        fn clone_span(&self, span: &Id) -> Id {
            self.0.clone_span(span)
        }

        fn try_close(&self, span: Id) -> bool {
            self.0.try_close(span)
        }

        fn current_span(&self) -> Current {
            assert!(!self.1.in_current_span.swap(false, SeqCst), "current_span");
            self.0.current_span()
        }

        // SAFETY: what is returned points to a value of the type that is asked for,
        // which lives as long as `self`.
        unsafe fn downcast_raw(&self, id: TypeId) -> Option<*const ()> {
            if id == TypeId::of::<Self>() {
                Some((&raw const *self).cast())
            } else if id == TypeId::of::<Registry>() {
                Some((&raw const self.0).cast())
            } else {
                None
            }
        }
    }
}

#[cfg(feature = "tracing")]
mod with_a_subscriber_that_panics {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
    use std::sync::atomic::Ordering::SeqCst;
    use std::sync::mpsc;
    use std::task::Poll;

    use greenhack::{in_context, leaked_runs, limit_stack_memory, shield};
    use help::{Resource, poll_once, succeeds_in_child};
    use support::on_drop;
    use tracing::dispatcher::{Dispatch, get_default, set_default};

    use super::subscriber::Panics;
    use super::*;

    /// Polls `run`, which panics.
    async fn poll_panics(run: &mut AnyRun) {
        let panicked = poll_fn(|cx| {
            let polled = catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(cx)));
            Poll::Ready(polled.is_err())
        });
        assert!(panicked.await, "the poll has not panicked");
    }

    #[test]
    fn a_run_that_has_panicked_at_its_end_is_not_resumed() {
        succeeds_in_child(
            "with_a_subscriber_that_panics::a_run_that_has_panicked_at_its_end_is_not_resumed",
            || {
                let (subscriber, knobs) = Panics::new();
                let _default = set_default(&Dispatch::new(subscriber));
                current_thread().block_on(async {
                    let run = run_sync_local(move || knobs.in_current_span.store(true, SeqCst));
                    let mut run: AnyRun = Box::pin(run);
                    poll_panics(&mut run).await;
                    // The hook of the second panic must not take the parent's stack for
                    // that of the run, which has ended.
                    let (seen, in_hook) = mpsc::channel();
                    let hook = take_hook();
                    set_hook(Box::new(move |_| seen.send(in_context()).unwrap()));
                    poll_panics(&mut run).await;
                    set_hook(hook);
                    assert_eq!(in_hook.iter().collect::<Vec<_>>(), [false]);
                });
            },
        );
    }

    #[test]
    fn a_default_is_not_lost_when_a_poll_begins_with_a_panic() {
        let (subscriber, knobs) = Panics::new();
        let _default = set_default(&Dispatch::new(subscriber));
        let is_there = || get_default(|dispatch| dispatch.is::<Panics>());
        current_thread().block_on(async {
            let mut run: AnyRun = Box::pin(run_sync_local(|| {
                let _span = tracing::info_span!("held").entered();
                await_sync(yield_now());
            }));
            assert!(poll_once(&mut run).await.is_pending());
            assert!(is_there());
            knobs.in_current_span.store(true, SeqCst);
            poll_panics(&mut run).await;
            assert!(is_there());
        });
    }

    #[test]
    fn a_leak_whose_report_panics_counts_once() {
        succeeds_in_child(
            "with_a_subscriber_that_panics::a_leak_whose_report_panics_counts_once",
            || {
                let (subscriber, knobs) = Panics::new();
                let _default = set_default(&Dispatch::new(subscriber));
                let shielded = || shield(|| await_sync(std::future::pending::<()>()));
                let mut run: AnyRun = Box::pin(run_sync_local(shielded));
                current_thread().block_on(async {
                    assert!(poll_once(&mut run).await.is_pending());
                });
                // Both would abort the process.
                knobs.in_events.store(2, SeqCst);
                let _ = catch_unwind(AssertUnwindSafe(|| drop(run)));
                assert_eq!(leaked_runs(), 1);
            },
        );
    }

    /// Calls `f` in the unwind of a task, where the next events panic.
    fn in_an_unwind(f: impl FnOnce()) {
        let (subscriber, knobs) = Panics::new();
        let _default = set_default(&Dispatch::new(subscriber));
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            current_thread().block_on(async {
                let _guard = on_drop(f);
                knobs.in_events.store(usize::MAX, SeqCst);
                resume_unwind(Box::new("outer"));
            });
        }));
        assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"outer"));
    }

    #[test]
    fn a_report_that_panics_in_an_unwind_does_not_abort() {
        succeeds_in_child(
            "with_a_subscriber_that_panics::a_report_that_panics_in_an_unwind_does_not_abort",
            || {
                in_an_unwind(|| drop(Resource));
                let mut run: AnyRun = Box::pin(run_sync_local(|| {
                    while catch_unwind(|| await_sync(std::future::pending::<()>())).is_err() {}
                }));
                current_thread().block_on(async {
                    assert!(poll_once(&mut run).await.is_pending());
                });
                in_an_unwind(|| drop(run));
                assert_eq!(leaked_runs(), 1);
            },
        );
    }

    #[test]
    fn a_stack_comes_back_whatever_a_destructor_beside_it_does() {
        succeeds_in_child(
            "with_a_subscriber_that_panics::a_stack_comes_back_whatever_a_destructor_beside_it_does",
            || {
                const SIZE: usize = 64 * 1024;
                limit_stack_memory(2 * SIZE);
                let start = |f: Box<dyn FnOnce()>| builder().stack_size(SIZE).run_sync_local(f);
                current_thread().block_on(async {
                    for _ in 0..4 {
                        let (subscriber, knobs) = Panics::new();
                        knobs.in_drop.store(true, SeqCst);
                        let dispatch = Dispatch::new(subscriber);
                        let default = set_default(&dispatch);
                        let at_end = move || knobs.in_current_span.store(true, SeqCst);
                        let mut run: AnyRun = Box::pin(start(Box::new(at_end)));
                        poll_panics(&mut run).await;
                        drop(default);
                        drop(dispatch);
                        // The last one who knows the subscriber is the run.
                        let dropped = catch_unwind(AssertUnwindSafe(|| drop(run)));
                        assert!(dropped.is_err());
                        start(Box::new(|| ())).await;
                    }
                });
            },
        );
    }
}
