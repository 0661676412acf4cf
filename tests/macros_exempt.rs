//! What `#[greenhack::exempt]` accepts, and what it makes of it.
#![deny(warnings)]

mod support;

use std::cell::Cell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use greenhack::{in_context, run_sync_local};
use support::{Log, LogOnDrop, in_each_place, panic_of, signal, text};
use tokio::task::yield_now;

/// Gives `value` back, but not at once.
async fn later<T>(value: T) -> T {
    yield_now().await;
    value
}

#[greenhack::exempt]
async fn double(number: u32) -> u32 {
    later(number).await * 2
}

// Where it is called.

#[test]
fn smoke() {
    assert_eq!(double(21), 42);
}

#[test]
fn in_a_run_the_plain_function_suspends() {
    in_each_place(|place| async move {
        let output = place.spawn(|| {
            assert!(in_context());
            greenhack::must_suspend(|| double(21))
        });
        assert_eq!(output.await.unwrap(), 42);
    });
}

#[test]
fn async_code_calls_the_original() {
    in_each_place(|_| async {
        assert_eq!(double_async(21).await, 42);
    });
}

#[test]
fn on_a_thread_for_blocking_code_the_plain_function_blocks() {
    support::current_thread().block_on(async {
        let task = tokio::task::spawn_blocking(|| double(21));
        assert_eq!(task.await.unwrap(), 42);
    });
}

#[test]
fn in_async_code_the_plain_function_panics_at_the_callers_line() {
    in_each_place(|_| async {
        let (message, line, file) = panic_of(|| assert_eq!(double(1), 2));
        assert_eq!(line, line!() - 1);
        assert!(file.ends_with("macros_exempt.rs"));
        assert!(message.starts_with("`double` called in"), "{message}");
        let remedy = "write `double_async(..).await` here";
        assert!(message.contains(remedy), "{message}");
    });
}

#[test]
fn in_a_future_that_a_plain_function_awaits_another_one_panics() {
    #[greenhack::exempt]
    async fn wrong() -> u32 {
        later(()).await;
        double(1)
    }
    #[greenhack::exempt]
    async fn right() -> u32 {
        later(()).await;
        // Plain code in async code is a run of its own.
        double_async(1).await + run_sync_local(|| double(2)).await
    }
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let payload = catch_unwind(wrong).unwrap_err();
            let message = text(&*payload);
            assert!(message.contains("itself polled"), "{message}");
            assert!(
                message.contains("write `double_async(..).await` here"),
                "{message}"
            );
            right()
        });
        assert_eq!(run.await.unwrap(), 6);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_calls_it_over_the_hop() {
    /// What it holds while it waits is not `Send`, and neither is its future.
    #[greenhack::exempt]
    async fn not_send(number: Rc<u32>) -> u32 {
        let held = number.clone();
        later(*number).await + *held
    }
    #[greenhack::entry]
    fn handler(number: u32) -> u32 {
        not_send(Rc::new(number)) + double(number)
    }
    let runs: Vec<_> = (0..50).map(|n| tokio::spawn(handler(n))).collect();
    for (n, run) in (0..50).zip(runs) {
        assert_eq!(run.await.unwrap(), 4 * n);
    }
}

// How it ends.

#[test]
fn a_panic_of_the_original_resumes_in_the_plain_function() {
    #[greenhack::exempt]
    async fn fails(text: &'static str) -> u32 {
        later(()).await;
        panic!("{text}")
    }
    let caught = || text(&*catch_unwind(|| fails("no soup")).unwrap_err());
    assert_eq!(caught(), "no soup");
    in_each_place(|place| async move {
        let run = place.spawn(move || (caught(), double(1)));
        assert_eq!(run.await.unwrap(), ("no soup".to_owned(), 2));
    });
}

#[test]
fn a_cancellation_drops_the_original_first_and_then_unwinds_the_plain_caller() {
    #[greenhack::exempt]
    async fn never(log: Log, _argument: LogOnDrop) {
        let _local = log.on_drop("local");
        pending().await
    }
    in_each_place(|place| async move {
        let log = Log::default();
        let (waits, is_waiting) = signal();
        let (ended, has_ended) = signal();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _caller = log.on_drop("caller");
                greenhack::await_sync(async { waits.give() });
                never(log.clone(), log.on_drop("argument"));
            }
        });
        is_waiting.wait().await;
        run.abort();
        has_ended.wait().await;
        assert_eq!(log.take(), ["local", "argument", "caller"]);
    });
}

#[test]
fn a_destructor_can_call_it_during_a_cancellation() {
    struct Session(Rc<Cell<u32>>);
    impl Session {
        #[greenhack::exempt]
        async fn close(&self) {
            self.0.set(later(1).await);
        }
    }
    impl Drop for Session {
        fn drop(&mut self) {
            self.close();
        }
    }
    let closed = Rc::new(Cell::new(0));
    let session = Session(closed.clone());
    support::current_thread().block_on(async {
        let mut run = Box::pin(run_sync_local(move || {
            let _session = session;
            greenhack::await_sync(pending::<()>());
        }));
        assert!(futures::poll!(&mut run).is_pending());
        drop(run);
        while closed.get() == 0 {
            yield_now().await;
        }
    });
}

#[test]
fn a_forgotten_run_keeps_the_original_as_it_is() {
    #[greenhack::exempt]
    async fn never(argument: LogOnDrop) {
        later(()).await;
        drop(argument);
    }
    let log = Log::default();
    let argument = log.on_drop("argument");
    support::current_thread().block_on(async {
        let mut run = Box::pin(run_sync_local(move || never(argument)));
        assert!(futures::poll!(&mut run).is_pending());
        std::mem::forget(run);
        assert_eq!(double_async(1).await, 2);
    });
    assert!(log.take().is_empty());
}

#[test]
fn a_cancelled_run_ends_with_the_reason_that_it_met_in_the_plain_function() {
    support::current_thread().block_on(async {
        let seen = Rc::new(Cell::new(false));
        let saw = seen.clone();
        let mut run = Box::pin(run_sync_local(move || {
            let caught = catch_unwind(AssertUnwindSafe(|| double(1)));
            saw.set(caught.unwrap_err().is::<greenhack::Cancelled>());
        }));
        assert!(futures::poll!(&mut run).is_pending());
        drop(run);
        assert!(seen.get());
    });
}

#[test]
fn the_original_does_nothing_before_it_is_polled() {
    let cell = Cell::new(0);
    #[greenhack::exempt]
    async fn set(cell: &Cell<u32>) {
        cell.set(1);
    }
    drop(set_async(&cell));
    assert_eq!(cell.get(), 0);
    set(&cell);
    assert_eq!(cell.get(), 1);
}

// Options.

mod other {
    pub(crate) mod name {
        pub(crate) use ::greenhack::*;
    }
}

#[test]
fn the_original_and_the_crate_can_have_other_names() {
    #[greenhack::exempt(async = original, crate = other::name)]
    async fn plain(number: u8) -> u8 {
        later(number).await
    }
    assert_eq!(plain(1), 1);
    assert_eq!(support::current_thread().block_on(original(1)), 1);
}

// Other attributes.

#[allow(clippy::non_minimal_cfg)]
mod documented {
    #![deny(missing_docs, unreachable_pub)]

    /// Documentation above.
    #[greenhack::exempt]
    /// Documentation below.
    #[must_use]
    #[cfg(all())]
    #[allow(unused_variables, non_snake_case)]
    #[inline]
    #[track_caller]
    pub(crate) async fn Documented(unused: u8) -> u8 {
        #![allow(unused_mut)]
        let mut result = 0;
        result += crate::later(1).await;
        result
    }

    #[greenhack::exempt]
    #[cfg(any())]
    pub async fn not_there() -> Missing {}

    #[greenhack::exempt]
    #[expect(unused_variables, reason = "fulfilled in the original only")]
    pub(super) async fn expected(unused: u8) -> u8 {
        2
    }

    #[greenhack::exempt]
    #[deprecated = "it is old"]
    pub(super) async fn old() -> u8 {
        3
    }
}

#[test]
fn attributes_are_for_the_function_that_they_fit() {
    assert_eq!(documented::Documented(0), 1);
    assert_eq!(documented::expected(0), 2);
    #[allow(deprecated)]
    let old = documented::old();
    assert_eq!(old, 3);
    let original = documented::Documented_async(0);
    assert_eq!(support::current_thread().block_on(original), 1);
}

mod spans {
    use std::sync::{Arc, Mutex};

    use super::later;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tracing::instrument(skip(secret), fields(double = id * 2))]
    #[greenhack::exempt]
    async fn above(id: u32, secret: &str) -> usize {
        tracing::info!("before");
        later(()).await;
        tracing::info!("after");
        secret.len()
    }

    #[greenhack::exempt(async = other_name)]
    #[tracing::instrument(skip(secret), fields(double = id * 2))]
    async fn below(id: u32, secret: &str) -> usize {
        tracing::info!("before");
        later(()).await;
        tracing::info!("after");
        secret.len()
    }

    #[test]
    fn instrument_means_the_same_above_and_below() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let lines = || String::from_utf8(std::mem::take(&mut *log.0.lock().unwrap())).unwrap();
        let expected = |name: &str| {
            format!(
                " INFO {name}{{id=7 double=14}}: before\n \
                 INFO {name}{{id=7 double=14}}: after\n \
                 INFO outside\n"
            )
        };
        crate::support::current_thread().block_on(async {
            let run = greenhack::run_sync_local(|| {
                assert_eq!(above(7, "secret"), 6);
                tracing::info!("outside");
            });
            run.await;
            assert_eq!(lines(), expected("above"));
            let run = greenhack::run_sync_local(|| {
                assert_eq!(below(7, "secret"), 6);
                tracing::info!("outside");
            });
            run.await;
            assert_eq!(lines(), expected("below"));
            assert_eq!(other_name(7, "secret").await, 6);
            tracing::info!("outside");
            assert_eq!(lines(), expected("below"));
        });
    }
}
