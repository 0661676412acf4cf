//! What the formatters of `tracing_subscriber` write while runs interleave on
//! one thread, line by line.
#![cfg(feature = "tracing")]

#[path = "support/events.rs"]
mod events;
mod support;

use events::Written;
use greenhack::{await_sync, run_sync_local};
use support::current_thread;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::yield_now;
use tracing::instrument::{Instrument, WithSubscriber};
use tracing::{Dispatch, Level, debug, info, info_span, instrument};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{DefaultFields, FmtSpan, Format, Full};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::{fmt, registry};

/// A hand that a player gives the turn to the other with.
struct Hand {
    to: Sender<()>,
    from: Receiver<()>,
}

impl Hand {
    fn pair() -> (Hand, Hand) {
        let (to, from_other) = mpsc::channel(1);
        let (to_other, from) = mpsc::channel(1);
        (
            Hand { to, from },
            Hand {
                to: to_other,
                from: from_other,
            },
        )
    }

    fn give(&self) {
        // The other may have ended.
        let _ = self.to.try_send(());
    }

    fn wait(&mut self) {
        await_sync(self.from.recv());
    }
}

#[instrument(skip(hand))]
fn serve(user: &str, hand: &mut Hand) -> usize {
    info!("accepted");
    hand.give();
    hand.wait();
    let loaded = load(user.len(), hand);
    info!(loaded, "served");
    loaded
}

#[instrument(level = "debug", skip(hand), ret)]
fn load(rows: usize, hand: &mut Hand) -> usize {
    debug!("loading");
    hand.give();
    hand.wait();
    await_sync(async { info!("polled for the run") });
    rows
}

/// Two runs that give each other the turn at every step.
async fn play() {
    let (mut one, mut other) = Hand::pair();
    let first = run_sync_local(move || {
        serve("ada", &mut one);
        one.give();
    });
    let second = run_sync_local(move || {
        other.wait();
        serve("charles", &mut other);
        other.give();
    });
    let neighbour = async {
        info!("neighbour");
        yield_now().await;
        info!("neighbour");
    };
    tokio::join!(
        first.instrument(info_span!("request", id = 1)),
        second.instrument(info_span!("request", id = 2)),
        neighbour,
    );
    info!("the end");
}

fn format<S>(written: &Written) -> fmt::Layer<S, DefaultFields, Format<Full, ()>, Written> {
    fmt::Layer::default()
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_writer(written.clone())
}

#[track_caller]
fn expect(dispatch: impl Into<Dispatch>, written: &Written, expected: &[&str]) {
    let dispatch = dispatch.into();
    current_thread().block_on(play().with_subscriber(dispatch.clone()));
    let lines = written.take();
    assert_eq!(lines, expected, "{lines:#?}");
    assert!(dispatch.current_span().id().is_none());
}

#[test]
fn the_full_format_names_the_spans_of_each_run() {
    let written = Written::default();
    let layer = format(&written).with_filter(LevelFilter::DEBUG);
    expect(
        registry().with(layer),
        &written,
        &[
            r#" INFO request{id=1}:serve{user="ada"}: accepted"#,
            r#" INFO request{id=2}:serve{user="charles"}: accepted"#,
            " INFO neighbour",
            " INFO neighbour",
            r#"DEBUG request{id=1}:serve{user="ada"}:load{rows=3}: loading"#,
            r#"DEBUG request{id=2}:serve{user="charles"}:load{rows=7}: loading"#,
            r#" INFO request{id=1}:serve{user="ada"}:load{rows=3}: polled for the run"#,
            r#"DEBUG request{id=1}:serve{user="ada"}:load{rows=3}: return=3"#,
            r#" INFO request{id=1}:serve{user="ada"}: served loaded=3"#,
            r#" INFO request{id=2}:serve{user="charles"}:load{rows=7}: polled for the run"#,
            r#"DEBUG request{id=2}:serve{user="charles"}:load{rows=7}: return=7"#,
            r#" INFO request{id=2}:serve{user="charles"}: served loaded=7"#,
            " INFO the end",
        ],
    );
}

#[test]
fn the_json_format_lists_the_spans_of_each_run() {
    let written = Written::default();
    let layer = fmt::layer()
        .json()
        .without_time()
        .with_target(false)
        .with_writer(written.clone());
    expect(
        registry().with(layer),
        &written,
        &[
            r#"{"level":"INFO","fields":{"message":"accepted"},"span":{"user":"ada","name":"serve"},"spans":[{"id":1,"name":"request"},{"user":"ada","name":"serve"}]}"#,
            r#"{"level":"INFO","fields":{"message":"accepted"},"span":{"user":"charles","name":"serve"},"spans":[{"id":2,"name":"request"},{"user":"charles","name":"serve"}]}"#,
            r#"{"level":"INFO","fields":{"message":"neighbour"}}"#,
            r#"{"level":"INFO","fields":{"message":"neighbour"}}"#,
            r#"{"level":"DEBUG","fields":{"message":"loading"},"span":{"rows":3,"name":"load"},"spans":[{"id":1,"name":"request"},{"user":"ada","name":"serve"},{"rows":3,"name":"load"}]}"#,
            r#"{"level":"DEBUG","fields":{"message":"loading"},"span":{"rows":7,"name":"load"},"spans":[{"id":2,"name":"request"},{"user":"charles","name":"serve"},{"rows":7,"name":"load"}]}"#,
            r#"{"level":"INFO","fields":{"message":"polled for the run"},"span":{"rows":3,"name":"load"},"spans":[{"id":1,"name":"request"},{"user":"ada","name":"serve"},{"rows":3,"name":"load"}]}"#,
            r#"{"level":"DEBUG","fields":{"return":"3"},"span":{"rows":3,"name":"load"},"spans":[{"id":1,"name":"request"},{"user":"ada","name":"serve"},{"rows":3,"name":"load"}]}"#,
            r#"{"level":"INFO","fields":{"message":"served","loaded":3},"span":{"user":"ada","name":"serve"},"spans":[{"id":1,"name":"request"},{"user":"ada","name":"serve"}]}"#,
            r#"{"level":"INFO","fields":{"message":"polled for the run"},"span":{"rows":7,"name":"load"},"spans":[{"id":2,"name":"request"},{"user":"charles","name":"serve"},{"rows":7,"name":"load"}]}"#,
            r#"{"level":"DEBUG","fields":{"return":"7"},"span":{"rows":7,"name":"load"},"spans":[{"id":2,"name":"request"},{"user":"charles","name":"serve"},{"rows":7,"name":"load"}]}"#,
            r#"{"level":"INFO","fields":{"message":"served","loaded":7},"span":{"user":"charles","name":"serve"},"spans":[{"id":2,"name":"request"},{"user":"charles","name":"serve"}]}"#,
            r#"{"level":"INFO","fields":{"message":"the end"}}"#,
        ],
    );
}

#[test]
fn a_span_is_exited_and_entered_once_at_each_suspension() {
    let written = Written::default();
    let layer = format(&written).with_span_events(FmtSpan::ACTIVE);
    let run = run_sync_local(|| {
        info_span!("inner").in_scope(|| await_sync(yield_now()));
        await_sync(yield_now());
    });
    let request = async { run.instrument(info_span!("request")).await };
    current_thread().block_on(request.with_subscriber(registry().with(layer)));
    let lines = written.take();
    assert_eq!(
        lines,
        [
            " INFO request: enter",
            " INFO request:inner: enter",
            " INFO request:inner: exit",
            " INFO request: exit",
            " INFO request: enter",
            " INFO request:inner: enter",
            " INFO request:inner: exit",
            " INFO request: exit",
            " INFO request: enter",
            " INFO request: exit",
            " INFO request: enter",
            " INFO request: exit",
        ],
        "{lines:#?}"
    );
}

#[test]
fn a_filter_by_a_field_of_a_span_holds_in_that_span_only() {
    let written = Written::default();
    let filter = EnvFilter::new("info,[request{id=1}]=debug");
    expect(
        registry().with(format(&written)).with(filter),
        &written,
        &[
            r#" INFO request{id=1}:serve{user="ada"}: accepted"#,
            r#" INFO request{id=2}:serve{user="charles"}: accepted"#,
            " INFO neighbour",
            " INFO neighbour",
            r#"DEBUG request{id=1}:serve{user="ada"}:load{rows=3}: loading"#,
            r#" INFO request{id=1}:serve{user="ada"}:load{rows=3}: polled for the run"#,
            r#"DEBUG request{id=1}:serve{user="ada"}:load{rows=3}: return=3"#,
            r#" INFO request{id=1}:serve{user="ada"}: served loaded=3"#,
            r#" INFO request{id=2}:serve{user="charles"}: polled for the run"#,
            r#" INFO request{id=2}:serve{user="charles"}: served loaded=7"#,
            " INFO the end",
        ],
    );
}

#[test]
fn each_layer_sees_the_spans_that_its_filter_lets_through() {
    let (all, some) = (Written::default(), Written::default());
    let filter = filter_fn(|meta| *meta.level() <= Level::INFO && meta.name() != "serve");
    let subscriber = registry()
        .with(format(&all).with_filter(LevelFilter::DEBUG))
        .with(format(&some).with_filter(filter));
    expect(
        subscriber,
        &some,
        &[
            " INFO request{id=1}: accepted",
            " INFO request{id=2}: accepted",
            " INFO neighbour",
            " INFO neighbour",
            " INFO request{id=1}: polled for the run",
            " INFO request{id=1}: served loaded=3",
            " INFO request{id=2}: polled for the run",
            " INFO request{id=2}: served loaded=7",
            " INFO the end",
        ],
    );
    let all = all.take();
    assert!(all[4].starts_with("DEBUG request{id=1}:serve{user=\"ada\"}:load{rows=3}:"));
}
