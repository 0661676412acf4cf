//! How a call of plain I/O waits, and how it hears of a cancellation.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::thread;

use crate::{Cancelled, await_in_drop, await_or_cancelled, await_sync};

/// Waits for `future`, as the settings of the caller's adapter say.
///
/// # Errors
///
/// If the run is cancelled and `cancel_as_error` is set, and if a wait in an
/// unwind is given up.
#[inline(always)]
#[track_caller]
pub(super) fn wait<F: Future>(cancel_as_error: bool, future: F) -> io::Result<F::Output> {
    if thread::panicking() {
        // A destructor flushes. Whatever happens, it must not unwind.
        match await_in_drop(future) {
            Some(output) => Ok(output),
            None => Err(given_up()),
        }
    } else if cancel_as_error {
        match await_or_cancelled(future) {
            Ok(output) => Ok(output),
            Err(cancelled) => Err(cancellation(cancelled)),
        }
    } else {
        Ok(await_sync(future))
    }
}

/// The error of a call whose run was cancelled.
#[cold]
pub(super) fn cancellation(cancelled: Cancelled) -> io::Error {
    io::Error::other(Held(cancelled))
}

/// What an error of a cancellation holds.
///
/// The source of an [`io::Error`] is that of the error which it holds, and some
/// libraries hand on no more. So the cancellation is one below.
#[derive(Debug)]
struct Held(Cancelled);

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Held {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

#[cold]
fn given_up() -> io::Error {
    io::Error::other(
        "a destructor had no time left to wait, or could not wait where it ran; \
         finish or flush the writer before it is dropped",
    )
}

/// Returns whether `error`, or what it stems from, is a cancellation that an
/// adapter of this module has returned.
///
/// Libraries wrap the errors of their reader into their own. This looks through
/// all that tell their [`source`](Error::source).
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use std::io::Read;
/// use std::rc::Rc;
///
/// use greenhack::io::{SyncIoBridge, is_cancelled};
/// use greenhack::run_sync_local;
/// use tokio::task::yield_now;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let seen = Rc::new(Cell::new(false));
/// let run = run_sync_local({
///     let seen = seen.clone();
///     move || {
///         // The peer stays, and says nothing.
///         let (near, _far) = tokio::io::duplex(16);
///         let mut near = SyncIoBridge::new(near).cancel_as_error();
///         let error = near.read(&mut [0; 16]).unwrap_err();
///         seen.set(is_cancelled(&error));
///     }
/// });
/// tokio::select! { biased; () = run => {}, () = yield_now() => {} }
/// assert!(seen.get());
/// # });
/// ```
pub fn is_cancelled(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<Cancelled>() {
            return true;
        }
        // An `io::Error` does not call what it holds its source.
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    false
}
