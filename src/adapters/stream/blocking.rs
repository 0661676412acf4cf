//! [`blocking_iter`]: a stream that plain code iterates over.
#![forbid(unsafe_code)]

use std::fmt;
use std::iter::FusedIterator;
use std::pin::Pin;

use futures::{Stream, StreamExt};

use crate::await_sync;

/// Returns an iterator over `stream`, for plain code.
///
/// Its `next` suspends in a run, and blocks a plain thread, as
/// [`await_sync`] does. The stream may be any, also one that isn't `Unpin`; it
/// is kept on the heap. To use a stream in part, pass `&mut stream`, or
/// `stream.as_mut()` if it is pinned. In async code, write
/// `while let Some(item) = stream.next().await`.
///
/// Drop the iterator early, and the stream is dropped there and then, on this
/// thread.
///
/// # Examples
///
/// ```
/// use futures::stream;
/// use greenhack::stream::blocking_iter;
///
/// fn total(orders: impl futures::Stream<Item = u32>) -> u32 {
///     blocking_iter(orders).filter(|order| order % 2 == 1).sum()
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// assert_eq!(greenhack::run_sync(|| total(stream::iter(1..6))).await, 9);
/// # });
///
/// // In part, on a plain thread:
/// let mut stream = stream::iter(1..6);
/// let head: Vec<_> = blocking_iter(&mut stream).take(2).collect();
/// assert_eq!((head, total(stream)), (vec![1, 2], 8));
/// ```
pub fn blocking_iter<S: Stream>(stream: S) -> BlockingStream<S> {
    BlockingStream {
        stream: Box::pin(stream),
        has_ended: false,
    }
}

/// An iterator over a stream, made by [`blocking_iter`].
///
/// It is fused: when the stream has ended, it isn't polled again.
///
/// # Examples
///
/// ```
/// use futures::stream;
///
/// let iter = greenhack::stream::blocking_iter(stream::iter([1, 2]));
/// assert_eq!(iter.size_hint(), (2, Some(2)));
/// assert_eq!(iter.collect::<Vec<_>>(), [1, 2]);
/// ```
#[must_use = "iterators are lazy and do nothing unless consumed"]
pub struct BlockingStream<S> {
    stream: Pin<Box<S>>,
    has_ended: bool,
}

impl<S: Unpin> BlockingStream<S> {
    /// Gives the stream back, with the items that are left.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::{StreamExt, stream};
    /// use greenhack::stream::blocking_iter;
    ///
    /// let mut lines = blocking_iter(stream::iter(["dish,price", "soup,4", "rice,3"]));
    /// let head = lines.next();
    /// // Async code takes the rest.
    /// let rest = greenhack::await_sync(lines.into_inner().count());
    /// assert_eq!((head, rest), (Some("dish,price"), 2));
    /// ```
    pub fn into_inner(self) -> S {
        *Pin::into_inner(self.stream)
    }
}

impl<S: Stream> Iterator for BlockingStream<S> {
    type Item = S::Item;

    /// Suspends the calling plain function until the stream has its next item.
    ///
    /// # Cancel safety
    ///
    /// If the run is cancelled, the stream has not given the item; it is
    /// dropped where the iterator is.
    ///
    /// # Panics
    ///
    /// As [`await_sync`], so with the panic of the stream.
    #[track_caller]
    fn next(&mut self) -> Option<S::Item> {
        if self.has_ended {
            return None;
        }
        let item = await_sync(self.stream.next());
        self.has_ended = item.is_none();
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        if self.has_ended {
            (0, Some(0))
        } else {
            self.stream.size_hint()
        }
    }
}

impl<S: Stream> FusedIterator for BlockingStream<S> {}

impl<S: fmt::Debug> fmt::Debug for BlockingStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingStream")
            .field("stream", &self.stream)
            .field("has_ended", &self.has_ended)
            .finish()
    }
}
