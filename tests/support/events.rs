//! A subscriber that records, for the tests of tracing.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::Id;
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Records each event with the names of the spans around it, and those of
/// greenhack itself with their level.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Record>>);

#[derive(Default)]
struct Record {
    events: Vec<String>,
    enters: Vec<&'static str>,
    exits: Vec<&'static str>,
}

impl Events {
    pub fn dispatch(&self) -> Dispatch {
        Dispatch::new(Registry::default().with(self.layer()))
    }

    pub fn layer(&self) -> Recorder {
        Recorder(self.clone())
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().events)
    }

    /// How often spans were entered. As often they must have been exited.
    #[track_caller]
    pub fn enters(&self) -> usize {
        let mut record = self.0.lock().unwrap();
        record.enters.sort_unstable();
        record.exits.sort_unstable();
        assert_eq!(record.enters, record.exits);
        record.enters.len()
    }
}

/// The message of an event.
pub fn message(event: &Event<'_>) -> String {
    struct Message(String);
    impl Visit for Message {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            }
        }
    }
    let mut message = Message(String::new());
    event.record(&mut message);
    message.0
}

pub struct Recorder(Events);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let spans: Vec<_> = context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
            .map(|span| span.name())
            .collect();
        let level = match event.metadata().target() {
            "greenhack" => format!("{} ", event.metadata().level()),
            _ => String::new(),
        };
        let event = format!("{}: {level}{}", spans.join(">"), message(event));
        self.0.0.lock().unwrap().events.push(event);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let name = context.span(id).map_or("closed", |span| span.name());
        self.0.0.lock().unwrap().enters.push(name);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let name = context.span(id).map_or("closed", |span| span.name());
        self.0.0.lock().unwrap().exits.push(name);
    }
}

/// What a formatter has written.
#[derive(Clone, Default)]
pub struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    /// Takes the lines.
    pub fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Written {
    type Writer = Written;

    fn make_writer(&self) -> Written {
        self.clone()
    }
}
