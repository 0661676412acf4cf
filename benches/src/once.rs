//! The shortest wait that there is.

use std::pin::Pin;
use std::task::{Context, Poll};

/// Pending at its first poll, ready at its second, and woken at once.
#[derive(Debug, Default)]
pub struct Once(bool);

impl Future for Once {
    type Output = u64;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        if self.0 {
            return Poll::Ready(1);
        }
        self.0 = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
