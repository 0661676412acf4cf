//! Plain code that makes chunks on a coroutine, which its reader drives.
//!
//! ```text
//!   the reader's task                       the coroutine
//!   ─────────────────                       ─────────────
//!   poll_next
//!     a chunk is there? ◀──── one chunk ─── waits until there is room,
//!     or else: poll the run ──────────────▶ and goes on with the next
//!     it has ended: its outcome, when all chunks are taken
//! ```
//!
//! It ends well only if the plain code has returned `Ok`. Dropping it ends the
//! plain code: first the channel, so that nothing that still writes has to wait
//! for room, then the run.
#![forbid(unsafe_code)]

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::wait::cancellation;
use crate::Cancelled;

/// How large a chunk is, unless the writer says otherwise.
pub(super) const CHUNK: usize = 8 * 1024;

/// A channel that holds one chunk.
pub(super) fn chunks() -> (Sender<Bytes>, Receiver<Bytes>) {
    channel(1)
}

/// The reader's end, with the run at the other.
pub(super) struct Producer<R> {
    /// Dropped before the run.
    chunks: Receiver<Bytes>,
    run: State<R>,
}

enum State<R> {
    Running(R),
    /// The outcome is to be told when the last chunk has been taken.
    Ended(io::Result<()>),
    /// It has panicked, and the panic went to the reader.
    Panicked,
}

impl<R> Producer<R>
where
    R: Future<Output = io::Result<()>> + Unpin,
{
    pub(super) fn new(chunks: Receiver<Bytes>, run: R) -> Self {
        Producer {
            chunks,
            run: State::Running(run),
        }
    }

    /// Gives the next chunk, or the error at the end; after that `None`.
    ///
    /// # Panics
    ///
    /// With the panic of the run.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        // As long as there is something to take, the plain code has rest.
        if let Poll::Ready(Some(chunk)) = self.chunks.poll_recv(cx) {
            return Poll::Ready(Some(Ok(chunk)));
        }
        self.poll_run(cx);
        if matches!(self.run, State::Running(_)) {
            return match self.chunks.poll_recv(cx) {
                Poll::Ready(Some(chunk)) => Poll::Ready(Some(Ok(chunk))),
                _ => Poll::Pending,
            };
        }
        // Not by a poll: that finds nothing once the task has had its share.
        if let Ok(chunk) = self.chunks.try_recv() {
            return Poll::Ready(Some(Ok(chunk)));
        }
        match std::mem::replace(&mut self.run, State::Ended(Ok(()))) {
            State::Ended(Err(error)) => Poll::Ready(Some(Err(error))),
            State::Panicked => Poll::Ready(Some(Err(io::Error::other(
                "the plain code that makes the chunks has panicked before",
            )))),
            _ => Poll::Ready(None),
        }
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) {
        self.run = match std::mem::replace(&mut self.run, State::Panicked) {
            State::Running(mut run) => {
                match catch_unwind(AssertUnwindSafe(|| run.poll_unpin(cx))) {
                    Ok(Poll::Pending) => State::Running(run),
                    Ok(Poll::Ready(outcome)) => State::Ended(outcome),
                    // The workers have been shut down.
                    Err(payload) => match payload.downcast::<Cancelled>() {
                        Ok(cancelled) => State::Ended(Err(cancellation(*cancelled))),
                        Err(payload) => resume_unwind(payload),
                    },
                }
            }
            ended => ended,
        };
    }
}
