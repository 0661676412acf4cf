//! The frames of a suspended stack, as text.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::path::Path;

use backtrace::{BacktraceFrame, BacktraceSymbol};

use super::await_sync;
use crate::engine::account::Trace;
use crate::engine::{context, coroutine};

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
    let waits = |symbol: &&BacktraceSymbol| WAIT.iter().any(|code| code.has(symbol));
    let unwinds = symbols.iter().position(waits).unwrap_or_default();
    let waiting = symbols[unwinds..].iter().take_while(|symbol| waits(symbol));
    let symbols = &symbols[unwinds + waiting.count()..];
    let end = symbols.iter().position(|symbol| CALL.has(symbol));
    &symbols[..end.unwrap_or(symbols.len())]
}

/// Code of this crate.
struct Code {
    /// What its names contain.
    path: &'static str,
    /// Where it is, as the compiler was told.
    file: &'static str,
}

/// What waits.
const WAIT: [Code; 2] = [
    Code {
        path: "greenhack::engine::context::Header",
        file: context::FILE,
    },
    Code {
        path: "greenhack::surface::await_sync::",
        file: await_sync::FILE,
    },
];

/// What calls the run.
const CALL: Code = Code {
    path: "greenhack::engine::coroutine::root",
    file: coroutine::FILE,
};

impl Code {
    fn has(&self, symbol: &BacktraceSymbol) -> bool {
        // Without the hashes that newer names have.
        let name = symbol.name().map(|name| format!("{name:#}"));
        self.is(name.as_deref(), symbol.filename())
    }

    /// What is inlined has no path, but a file. The same file may be in other crates, if
    /// the compiler was not told of a place outside of its own folder.
    fn is(&self, name: Option<&str>, file: Option<&Path>) -> bool {
        name.is_some_and(|name| name.contains(self.path))
            || file.is_some_and(|file| file.ends_with(self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: Code = Code {
        path: "greenhack::engine::context::Header",
        file: "/registry/greenhack-0.1.0/src/engine/context.rs",
    };

    #[test]
    fn code_is_known_by_its_name_of_either_kind() {
        let is = |name| CODE.is(Some(name), None);
        assert!(is("greenhack::engine::context::Header::give_account"));
        assert!(is("<greenhack::engine::context::Header>::give_account"));
        assert!(!is("game::engine::context::Header::give_account"));
    }

    #[test]
    fn code_is_known_by_its_file_and_not_by_one_that_is_called_so() {
        let is = |file| CODE.is(Some("give_account"), Some(Path::new(file)));
        assert!(is("/registry/greenhack-0.1.0/src/engine/context.rs"));
        assert!(!is("/game/src/engine/context.rs"));
    }

    #[test]
    fn names_of_the_newer_kind_are_compared_without_hashes() {
        let name = backtrace::SymbolName::new(b"_RNvCs4fqI2P2rA04_9greenhack4root");
        assert_eq!(format!("{name:#}"), "greenhack::root");
    }
}
