//! The frames of a suspended stack, as text.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::path::Path;

use backtrace::{BacktraceFrame, BacktraceSymbol};

use crate::engine::account::Trace;

/// Names the frames of the run's own code, and their lines, as far as they are known.
pub(super) fn text(trace: &Trace) -> Option<String> {
    let frames = trace.frames().iter().cloned();
    let mut frames: Vec<_> = frames.map(BacktraceFrame::from).collect();
    frames.iter_mut().for_each(BacktraceFrame::resolve);
    let symbols: Vec<_> = frames.iter().flat_map(BacktraceFrame::symbols).collect();
    let mut text = String::new();
    for (index, symbol) in of_the_run(&symbols).iter().enumerate() {
        // Writing to a string does not fail.
        let _ = match symbol.name() {
            Some(name) => writeln!(text, "{index:4}: {name:#}"),
            None => writeln!(text, "{index:4}: <unknown>"),
        };
        if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
            let _ = writeln!(text, "          at {}:{line}", file.display());
        }
    }
    (!text.is_empty()).then_some(text)
}

/// Leaves off what unwinds, what waits, and what has called the run.
fn of_the_run<'a, 's>(symbols: &'a [&'s BacktraceSymbol]) -> &'a [&'s BacktraceSymbol] {
    let waits = |symbol: &&BacktraceSymbol| {
        is_of(
            symbol,
            "greenhack::engine::context::Header::",
            "engine/context.rs",
        ) || is_of(
            symbol,
            "greenhack::surface::await_sync::",
            "surface/await_sync.rs",
        )
    };
    let calls = |symbol: &&BacktraceSymbol| {
        is_of(
            symbol,
            "greenhack::engine::coroutine::root",
            "engine/coroutine.rs",
        )
    };
    let unwinds = symbols.iter().position(waits).unwrap_or_default();
    let waiting = symbols[unwinds..].iter().take_while(|symbol| waits(symbol));
    let symbols = &symbols[unwinds + waiting.count()..];
    let end = symbols.iter().position(calls);
    &symbols[..end.unwrap_or(symbols.len())]
}

/// Whether it is a function of this crate whose path begins so. What is inlined has no
/// path, but a file.
fn is_of(symbol: &BacktraceSymbol, path: &str, file: &str) -> bool {
    let file = Path::new("src").join(file);
    let name = symbol.name().map(|name| name.to_string());
    name.is_some_and(|name| name.contains(path))
        || symbol.filename().is_some_and(|known| known.ends_with(file))
}
