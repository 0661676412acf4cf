//! What a coroutine has on the thread only while it is polled.
//!
//! Plain code may hold a thread-local scope open while it waits. So when the
//! poll returns, the scopes are taken off the thread, and the next poll puts
//! them back: [`Ambient`] contexts, which users bring along, and
//! [spans](super::spans), which are found without being told of.
//!
//! ```text
//!   poll   mount  ambient 1, ambient 2, spans
//!            the coroutine runs, its future is polled
//!          unmount       spans, ambient 2, ambient 1
//!   other tasks of the thread
//!   poll   mount  ambient 1, ambient 2, spans
//!            ...
//! ```
//!
//! # Invariants
//!
//! - M1 Between two polls nothing of the coroutine is mounted, also after a
//!   panic of what is mounted here: each of them is seen to by itself, and the
//!   first panic is handed to the caller at the end.
//! - M2 While they are mounted and unmounted nothing is current: the code of
//!   users that runs here cannot suspend the coroutine.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::spans::Spans;
use crate::ground::error::{Payload, discard};

pub(crate) use super::spans::Base;

/// A thread-local context that belongs to a run, and goes with it.
///
/// Libraries keep what is "current" in a thread-local: the context of
/// OpenTelemetry, the hub of an error reporter, the user of a request. A run
/// shares its thread with others, so what it sets there must not be seen by
/// them while it waits, nor theirs by it. Whoever implements this trait says
/// how such a context gets on the thread and off again;
/// [`with_ambient`](crate::with_ambient) sees to it that this happens whenever
/// the run is suspended and resumed.
///
/// Spans of `tracing` need no such help (with the feature `tracing`), nor do
/// [`tokio::task_local!`] values that are set around a run.
///
/// Neither method can wait: `await_sync` panics in them. Both should be short,
/// because they are called at every poll of the run.
///
/// # Panics
///
/// A panic of `mount` or `unmount` at a poll resumes in whoever awaits the run;
/// when the run is cancelled nobody does, and the panic ends here. The other
/// contexts are mounted and unmounted all the same. An `unmount` follows only a
/// `mount` that has returned.
///
/// # Examples
///
/// A thread-local that is swapped with a value of the run's own. What the code
/// has made of it goes with the run too:
///
/// ```
/// use std::cell::Cell;
/// use std::mem;
///
/// use greenhack::{Ambient, await_sync, run_sync_local, with_ambient};
/// use tokio::task::yield_now;
///
/// thread_local! {
///     static USER: Cell<&'static str> = const { Cell::new("nobody") };
/// }
///
/// struct User(&'static str);
///
/// impl Ambient for User {
///     fn mount(&mut self) {
///         self.0 = USER.replace(self.0);
///     }
///
///     fn unmount(&mut self) {
///         self.0 = USER.replace(self.0);
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let serve = |name| {
///     run_sync_local(move || {
///         with_ambient(User(name), || {
///             await_sync(yield_now());
///             USER.get()
///         })
///     })
/// };
/// assert_eq!(tokio::join!(serve("ada"), serve("bob")), ("ada", "bob"));
/// assert_eq!(USER.get(), "nobody");
/// # });
/// ```
pub trait Ambient {
    /// Makes the context current on this thread.
    fn mount(&mut self);

    /// Takes the context off this thread, and puts back what `mount` found.
    fn unmount(&mut self);
}

/// An ambient context in its scope.
pub(crate) struct Entry {
    ambient: Box<dyn Ambient>,
    is_mounted: bool,
}

impl Entry {
    pub(crate) fn new(ambient: Box<dyn Ambient>) -> Entry {
        Entry {
            ambient,
            is_mounted: false,
        }
    }

    /// May unwind.
    pub(crate) fn mount(&mut self) {
        self.ambient.mount();
        self.is_mounted = true;
    }

    /// May unwind.
    pub(crate) fn unmount(&mut self) {
        if mem::take(&mut self.is_mounted) {
            self.ambient.unmount();
        }
    }
}

/// All that is mounted with one coroutine.
pub(crate) struct Mounts {
    /// Outermost first. Most runs have none, and are made and dropped with one word.
    #[allow(clippy::box_collection, reason = "it is small where there are none")]
    entries: RefCell<Option<Box<Vec<Entry>>>>,
    pub(crate) spans: Spans,
}

impl Mounts {
    pub(crate) fn new() -> Mounts {
        Mounts {
            entries: RefCell::default(),
            spans: Spans::new(),
        }
    }

    /// Adds a context that is mounted already.
    pub(crate) fn push(&self, entry: Entry) {
        let mut entries = self.entries.borrow_mut();
        entries.get_or_insert_default().push(entry);
    }

    /// Removes the context that was added last.
    pub(crate) fn pop(&self) -> Option<Entry> {
        self.entries.borrow_mut().as_mut()?.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        let entries = self.entries.borrow();
        entries.as_ref().is_none_or(|entries| entries.is_empty())
    }

    /// Mounts all contexts. Does not unwind.
    #[cold]
    pub(crate) fn mount(&self, panics: &mut FirstPanic) {
        let mut entries = self.entries.borrow_mut();
        for entry in entries.as_deref_mut().into_iter().flatten() {
            panics.catch(|| entry.mount());
        }
    }

    /// Unmounts those that are mounted, innermost first. Does not unwind.
    #[cold]
    pub(crate) fn unmount(&self, panics: &mut FirstPanic) {
        let mut entries = self.entries.borrow_mut();
        for entry in entries.as_deref_mut().into_iter().flatten().rev() {
            panics.catch(|| entry.unmount());
        }
    }
}

/// The first panic of some calls that all have to be made.
#[derive(Default)]
pub(crate) struct FirstPanic(Option<Payload>);

impl FirstPanic {
    /// Calls `f` and returns its output, or keeps its panic.
    #[inline]
    pub(crate) fn catch<R>(&mut self, f: impl FnOnce() -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(f)) {
            Ok(output) => Some(output),
            Err(payload) => {
                self.keep(payload);
                None
            }
        }
    }

    #[cold]
    fn keep(&mut self, payload: Payload) {
        match &self.0 {
            None => self.0 = Some(payload),
            // The hook has shown it.
            Some(_) => discard(payload),
        }
    }

    #[inline]
    pub(crate) fn into_payload(self) -> Option<Payload> {
        self.0
    }
}
