//! What a suspended coroutine tells of itself.
//!
//! Most of it its parent can see. Where it waits, only the waiting frame knows, and the
//! frames below it only an unwinder that begins there. So the coroutine is resumed, writes
//! that down, and suspends again; see [`Header::ask`]. On its stack that allocates nothing
//! and takes no lock, and does not unwind: no code of others runs there.

use std::borrow::Cow;
use std::mem;
use std::panic::Location;
use std::ptr;
use std::time::Duration;

use super::context::{Header, Kind};
use super::spans::Unnamed;

/// What is known of a coroutine at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) name: Cow<'static, str>,
    pub(crate) state: State,
    /// The line that waits.
    pub(crate) location: Option<&'static Location<'static>>,
    /// For how long, if times are taken.
    pub(crate) waited: Option<Duration>,
    pub(crate) kind: Kind,
    /// The names of the spans that it holds open, outermost first.
    pub(crate) spans: Vec<&'static str>,
    unnamed: Unnamed,
    pub(crate) stack_size: usize,
    /// How much of the stack is below its end, in bytes.
    pub(crate) stack_used: Option<usize>,
    /// The frames from the waiting one on.
    pub(crate) trace: Trace,
    /// Where the end of the stack is.
    end: usize,
}

/// What a [stack](crate::dump::Stack) is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Its code has not begun.
    New,
    /// Its code runs: it has called the one who lists it.
    Running,
    /// It waits for a future.
    Waiting,
    /// It waits for closures of a [scope](crate::scope), which have stacks of their own.
    InScope,
    /// It was cancelled, and waits all the same: in a destructor, or a
    /// [`shield`](crate::shield).
    CleaningUp,
    /// It was [leaked](crate::leaked_runs), and never goes on.
    Leaked,
}

impl Account {
    pub(crate) fn new(header: &Header) -> Account {
        Account {
            name: header.owned_name(),
            state: header.state(),
            location: None,
            waited: header.since().map(|since| since.elapsed()),
            kind: header.kind(),
            spans: Vec::new(),
            unnamed: header.spans(),
            stack_size: header.stack_size(),
            stack_used: None,
            trace: Trace::default(),
            end: ptr::from_ref(header).addr(),
        }
    }

    /// Takes down a wait, on the coroutine's stack, where it calls this.
    pub(crate) fn take(&mut self, location: &'static Location<'static>) {
        self.location = Some(location);
        // What it waits for may be anywhere in the frame that waits. This is below.
        let here = 0_u8;
        let here = (&raw const here).addr();
        let lowest = self.end.saturating_sub(self.stack_size);
        // Its code may have gone to a stack of its own before. And the stand-in for the
        // switch has the header elsewhere.
        if !cfg!(greenhack_threads) && (lowest..self.end).contains(&here) {
            self.stack_used = Some(self.end - here);
            self.trace.take(lowest..self.end, here);
        }
    }

    /// Looks up the names of the spans.
    pub(crate) fn name_spans(&mut self) {
        self.spans = mem::take(&mut self.unnamed).into_names();
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

    /// What an unwinder may need of a stack, in bytes, and how much of that may lie below
    /// the stack.
    const ROOM: usize = 24 * 1024;

    /// The most frames that are taken down.
    const MOST: usize = 256;

    /// The frames of a suspended stack, innermost first.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Trace {
        frames: Vec<Frame>,
    }

    impl Trace {
        /// Allocates what [`take`](Self::take) may need.
        pub(crate) fn prepare(&mut self) {
            self.frames.reserve_exact(MOST);
        }

        /// Takes down the frames on `stack`, where that has room enough below `here`.
        pub(super) fn take(&mut self, stack: Range<usize>, here: usize) {
            if here.saturating_sub(stack.start) < ROOM {
                return;
            }
            walk(|frame| {
                // Those of the parent follow, on its own stack.
                let is_ours = stack.contains(&frame.sp().addr());
                let has_room = self.frames.len() < self.frames.capacity();
                if is_ours && has_room {
                    self.frames.push(frame.clone());
                }
                is_ours && has_room
            });
        }

        /// Gives back what it has not needed.
        pub(crate) fn finish(&mut self) {
            self.frames.shrink_to_fit();
        }

        pub(crate) fn frames(&self) -> &[Frame] {
            &self.frames
        }
    }

    /// Calls `f` with the frames from here on.
    #[cfg(not(windows))]
    fn walk(f: impl FnMut(&Frame) -> bool) {
        // SAFETY: what the lock of `backtrace` guards is the library of Windows, and the
        // tables of those who look up names. They have it for long, and may panic with it.
        unsafe { backtrace::trace_unsynchronized(f) };
    }

    #[cfg(windows)]
    fn walk(f: impl FnMut(&Frame) -> bool) {
        use std::panic::{AssertUnwindSafe, catch_unwind};

        // Where others have panicked with its lock, this panics too.
        let walked = catch_unwind(AssertUnwindSafe(|| backtrace::trace(f)));
        walked.unwrap_or_else(crate::ground::error::discard);
    }
}

#[cfg(not(feature = "backtrace"))]
mod without_frames {
    use std::ops::Range;

    /// Nothing.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Trace {}

    impl Trace {
        pub(crate) fn prepare(&mut self) {}

        pub(super) fn take(&mut self, _stack: Range<usize>, _here: usize) {}

        pub(crate) fn finish(&mut self) {}
    }
}
