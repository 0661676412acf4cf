//! The future that a coroutine waits for, as its parent sees it.
//!
//! [`Slot`] lives in the frame of the waiting call, on the coroutine's stack.
//! The parent knows it as `dyn Pollable`: it polls and drops the future in
//! place, on its own stack, and leaves behind what became of it.
//!
//! ```text
//!   Waiting(future) ──poll──▶ Ready(output)
//!          │        ──poll──▶ Panicked(payload)
//!          └────────end─────▶ Ended(Cancelled | Refused)
//! ```
#![forbid(unsafe_code)]

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project::pin_project;

use crate::ground::ambient::Moved;
use crate::ground::error::{Payload, discard};

/// Why a future was dropped before it was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The run was cancelled.
    Cancelled,
    /// The coroutine can't stay suspended where it is.
    Refused(Moved),
    /// The caller said that it must not suspend.
    Forbidden,
}

/// A future in the frame that waits for it, then its outcome.
#[pin_project(project = SlotProjection)]
pub(crate) enum Slot<F: Future> {
    Waiting(#[pin] F),
    Ready(F::Output),
    Panicked(Payload),
    Ended(End),
}

/// A [`Slot`] of whatever future.
pub(crate) trait Pollable {
    /// Polls the future. When this is `Ready`, the future has been dropped and
    /// the outcome is in the slot. Never unwinds.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()>;

    /// Drops the future unfinished. Never unwinds: a panic of the future's
    /// destructor is returned.
    fn end(self: Pin<&mut Self>, why: End) -> Result<(), Payload>;
}

impl<F: Future> Pollable for Slot<F> {
    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = catch_unwind(AssertUnwindSafe(|| match self.as_mut().project() {
            SlotProjection::Waiting(future) => match future.poll(cx) {
                Poll::Ready(output) => {
                    self.set(Slot::Ready(output));
                    Poll::Ready(())
                }
                Poll::Pending => Poll::Pending,
            },
            _ => Poll::Ready(()),
        }));
        match polled {
            Ok(poll) => poll,
            Err(payload) => {
                self.panicked(payload);
                Poll::Ready(())
            }
        }
    }

    #[cold]
    fn end(mut self: Pin<&mut Self>, why: End) -> Result<(), Payload> {
        catch_unwind(AssertUnwindSafe(|| self.set(Slot::Ended(why))))
    }
}

impl<F: Future> Slot<F> {
    /// Records that the future, or the drop of it, has panicked.
    #[cold]
    fn panicked(mut self: Pin<&mut Self>, payload: Payload) {
        // What is dropped here may panic again. The first panic is the one
        // that counts; the hook has already shown the second.
        let dropped = catch_unwind(AssertUnwindSafe(|| self.set(Slot::Panicked(payload))));
        dropped.unwrap_or_else(discard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::pin::pin;
    use std::task::Waker;

    struct DropPanics<'a>(&'a Cell<u32>);

    impl Drop for DropPanics<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
            std::panic::resume_unwind(Box::new("drop"));
        }
    }

    fn poll<F: Future>(slot: Pin<&mut Slot<F>>) -> Poll<()> {
        slot.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_ready_future_leaves_its_output() {
        let mut slot = pin!(Slot::Waiting(async { 7 }));
        assert!(poll(slot.as_mut()).is_ready());
        assert!(matches!(*slot, Slot::Ready(7)));
    }

    #[test]
    fn a_panic_of_the_future_is_kept() {
        let mut slot = pin!(Slot::Waiting(async {
            std::panic::resume_unwind(Box::new("poll"));
        }));
        assert!(poll(slot.as_mut()).is_ready());
        match &*slot {
            Slot::Panicked(payload) => assert_eq!(payload.downcast_ref(), Some(&"poll")),
            _ => panic!("the panic was lost"),
        }
    }

    #[test]
    fn a_panic_in_the_drop_of_a_ready_future_is_kept() {
        let drops = Cell::new(0);
        let guard = DropPanics(&drops);
        let mut done = false;
        let mut slot = pin!(Slot::Waiting(std::future::poll_fn(|_| {
            let _ = &guard;
            done = true;
            Poll::Ready(7)
        })));
        // `guard` is borrowed, not owned: nothing panics yet.
        assert!(poll(slot.as_mut()).is_ready());
        assert!(matches!(*slot, Slot::Ready(7)));
        std::mem::forget(guard);

        let guard = DropPanics(&drops);
        let mut slot = pin!(Slot::Waiting(std::future::poll_fn(move |_| {
            let _ = &guard;
            Poll::Ready(7)
        })));
        assert!(poll(slot.as_mut()).is_ready());
        assert!(matches!(&*slot, Slot::Panicked(payload) if payload.is::<&str>()));
        assert!(done);
        assert_eq!(drops.get(), 1);
    }

    #[test]
    fn ending_drops_the_future_once() {
        let drops = Cell::new(0);
        let guard = DropPanics(&drops);
        let mut slot = pin!(Slot::Waiting(std::future::poll_fn(move |_| {
            let _ = &guard;
            Poll::<()>::Pending
        })));
        assert!(poll(slot.as_mut()).is_pending());
        let dropped = slot.as_mut().end(End::Cancelled);
        assert_eq!(dropped.unwrap_err().downcast_ref(), Some(&"drop"));
        assert!(matches!(*slot, Slot::Ended(End::Cancelled)));
        assert_eq!(drops.get(), 1);
    }
}
