//! What a suspended coroutine tells of itself.
//!
//! Most of it its parent can see. Where it waits, only the waiting frame knows, and the
//! frames below it only an unwinder that begins there. So the coroutine is resumed, writes
//! that down, and suspends again; see [`Header::ask`].
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::panic::Location;
use std::ptr;
use std::time::Duration;

use super::context::Header;

/// What is known of a coroutine at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) name: Cow<'static, str>,
    pub(crate) condition: Condition,
    /// The line that waits.
    pub(crate) location: Option<&'static Location<'static>>,
    /// For how long, if times are taken.
    pub(crate) waited: Option<Duration>,
    /// The names of the spans that it holds open, outermost first.
    pub(crate) spans: Vec<&'static str>,
    pub(crate) stack_size: usize,
    /// How much of the stack is below its end, in bytes.
    pub(crate) stack_used: Option<usize>,
    /// The frames from the waiting one on.
    pub(crate) trace: Trace,
    /// Where the end of the stack is.
    end: usize,
}

/// In what state a coroutine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It has not begun.
    New,
    /// It runs: in it, somebody asks for the accounts.
    Running,
    Waiting,
    /// It waits for closures that borrow from it.
    WaitingForScope,
    /// It was cancelled, and waits.
    Ending,
    /// It will never be resumed.
    Leaked,
}

impl Account {
    pub(crate) fn new(header: &Header) -> Account {
        Account {
            name: header.owned_name(),
            condition: header.condition(),
            location: None,
            waited: header.since().map(|since| since.elapsed()),
            spans: header.span_names(),
            stack_size: header.stack_size(),
            stack_used: None,
            trace: Trace::default(),
            end: ptr::from_ref(header).addr(),
        }
    }

    /// Takes down a wait, on the coroutine's stack. The waiting frame is at `frame`.
    pub(crate) fn take(&mut self, frame: usize, location: &'static Location<'static>) {
        self.location = Some(location);
        // The stand-in for the switch has the header elsewhere.
        if !cfg!(greenhack_threads) {
            let used = self.end - frame;
            self.stack_used = Some(used);
            let lowest = self.end.saturating_sub(self.stack_size);
            self.trace.take(lowest..self.end, frame);
        }
    }
}

#[cfg(feature = "backtrace")]
pub(crate) use with_frames::Trace;

#[cfg(not(feature = "backtrace"))]
pub(crate) use without_frames::Trace;

#[cfg(feature = "backtrace")]
mod with_frames {
    use std::ops::Range;

    use backtrace::Frame;

    /// What an unwinder may need of a stack, in bytes.
    const ROOM: usize = 24 * 1024;

    /// The most frames that are taken down.
    const MOST: usize = 256;

    /// The frames of a suspended stack, innermost first.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Trace {
        frames: Vec<Frame>,
    }

    impl Trace {
        /// Takes down the frames on `stack`, where that has room enough below `frame`.
        pub(super) fn take(&mut self, stack: Range<usize>, frame: usize) {
            if frame.saturating_sub(stack.start) < ROOM {
                return;
            }
            backtrace::trace(|frame| {
                // Those of the parent follow, on its own stack.
                let is_ours = stack.contains(&frame.sp().addr());
                if is_ours {
                    self.frames.push(frame.clone());
                }
                is_ours && self.frames.len() < MOST
            });
        }

        pub(crate) fn frames(&self) -> &[Frame] {
            &self.frames
        }
    }
}

#[cfg(not(feature = "backtrace"))]
mod without_frames {
    use std::ops::Range;

    /// Nothing.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Trace(());

    impl Trace {
        pub(super) fn take(&mut self, _stack: Range<usize>, _frame: usize) {}
    }
}
