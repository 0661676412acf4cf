//! [`AsyncReader`]: a plain reader as `AsyncRead`.
#![forbid(unsafe_code)]

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures::future::{BoxFuture, LocalBoxFuture};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};
use tokio::sync::mpsc::Sender;

use super::producer::{CHUNK, Producer, chunks};
use crate::{await_sync, builder};

/// Lets async code read from a plain reader which itself may wait.
///
/// [`AsyncRead`] and [`AsyncBufRead`] over a [`Read`], say a decoder over a
/// [`SyncIoBridge`](super::SyncIoBridge) over a socket. The closure that makes the
/// reader, and all its reading, run as a [run](crate::run_sync), which this drives
/// from its first poll on. The reader need not be `Send`: it is made where it
/// stays. Where the closure isn't `Send` either, use [`LocalAsyncReader`].
///
/// It reads ahead of you by one chunk, of at most 8 KiB, and is suspended then.
///
/// For plain code that would rather write than be read from, see
/// [`body`](super::body).
///
/// # Cancel safety
///
/// If a read is dropped, nothing is lost. If the `AsyncReader` is dropped, the run
/// is cancelled and the plain reader is dropped by it; what was read ahead is
/// lost.
///
/// # Panics
///
/// A poll panics with the panic of the plain reader or the closure, and where
/// [`run_sync`](crate::run_sync) panics.
///
/// # Errors
///
/// Those of the plain reader. After one it isn't read from again, and every
/// further read fails.
///
/// # Examples
///
/// ```
/// use flate2::read::GzDecoder;
/// use greenhack::io::{AsyncReader, SyncIoBridge};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # let zipped = {
/// #     use std::io::Write;
/// #     let mut zipped = flate2::write::GzEncoder::new(Vec::new(), Default::default());
/// #     zipped.write_all(b"soup").unwrap();
/// #     zipped.finish().unwrap()
/// # };
/// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
/// let (near, mut far) = tokio::io::duplex(64);
/// let mut text = AsyncReader::new(|| GzDecoder::new(SyncIoBridge::new(near)));
/// far.write_all(&zipped).await.unwrap();
/// let mut dish = String::new();
/// text.read_to_string(&mut dish).await.unwrap();
/// assert_eq!(dish, "soup");
/// # });
/// ```
pub struct AsyncReader(Chunked<BoxFuture<'static, io::Result<()>>>);

/// Lets async code read from a plain reader, in the current task.
///
/// It is [`AsyncReader`] over [`run_sync_local`](crate::run_sync_local): neither
/// the closure nor this is `Send`.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
///
/// use greenhack::io::LocalAsyncReader;
/// use tokio::io::AsyncReadExt;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let dish: Rc<[u8]> = Rc::from(*b"soup");
/// let mut reader = LocalAsyncReader::new(|| std::io::Cursor::new(dish));
/// let mut text = String::new();
/// reader.read_to_string(&mut text).await.unwrap();
/// assert_eq!(text, "soup");
/// # });
/// ```
pub struct LocalAsyncReader(Chunked<LocalBoxFuture<'static, io::Result<()>>>);

impl AsyncReader {
    /// Wraps the reader that `f` will make, when this is first polled.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenhack::io::AsyncReader;
    /// use tokio::io::AsyncReadExt;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let mut reader = AsyncReader::new(|| &b"soup"[..]);
    /// assert_eq!(reader.read_u8().await.unwrap(), b's');
    /// # });
    /// ```
    pub fn new<F, R>(f: F) -> Self
    where
        F: FnOnce() -> R + Send + 'static,
        R: Read,
    {
        let (sender, receiver) = chunks();
        let run = builder()
            .name(type_name::<F>())
            .run_sync(move || read_all(f(), &sender));
        AsyncReader(Chunked::new(Producer::new(receiver, Box::pin(run))))
    }
}

impl LocalAsyncReader {
    /// Wraps the reader that `f` will make, when this is first polled.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenhack::io::LocalAsyncReader;
    /// use tokio::io::AsyncReadExt;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let mut reader = LocalAsyncReader::new(|| &b"soup"[..]);
    /// assert_eq!(reader.read_u8().await.unwrap(), b's');
    /// # });
    /// ```
    pub fn new<F, R>(f: F) -> Self
    where
        F: FnOnce() -> R + 'static,
        R: Read,
    {
        let (sender, receiver) = chunks();
        let run = builder()
            .name(type_name::<F>())
            .run_sync_local(move || read_all(f(), &sender));
        LocalAsyncReader(Chunked::new(Producer::new(receiver, Box::pin(run))))
    }
}

/// Reads to the end, and hands over each piece as it comes.
fn read_all(mut reader: impl Read, chunks: &Sender<Bytes>) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        // Room first, so that nothing is read that can't be handed over.
        let Ok(room) = await_sync(chunks.reserve()) else {
            return Ok(());
        };
        if buffer.len() < CHUNK / 4 {
            buffer = BytesMut::zeroed(CHUNK);
        }
        let length = loop {
            match reader.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if length == 0 {
            return Ok(());
        }
        room.send(buffer.split_to(length).freeze());
    }
}

/// Chunks, read in other pieces than they come in.
struct Chunked<R> {
    producer: Producer<R>,
    chunk: Bytes,
    failed: bool,
}

impl<R> Chunked<R>
where
    R: Future<Output = io::Result<()>> + Unpin,
{
    fn new(producer: Producer<R>) -> Self {
        Chunked {
            producer,
            chunk: Bytes::new(),
            failed: false,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let chunk = ready!(self.poll_fill_buf(cx))?;
        let length = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk[..length]);
        self.chunk.advance(length);
        Poll::Ready(Ok(()))
    }

    fn poll_fill_buf(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        if self.chunk.is_empty() {
            if self.failed {
                return Poll::Ready(Err(io::Error::other("the reader has failed before")));
            }
            match ready!(self.producer.poll_next(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => {
                    self.failed = true;
                    return Poll::Ready(Err(error));
                }
                None => {}
            }
        }
        Poll::Ready(Ok(&self.chunk))
    }
}

impl AsyncRead for AsyncReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncBufRead for AsyncReader {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.get_mut().0.poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.0.chunk.advance(amount);
    }
}

impl AsyncRead for LocalAsyncReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncBufRead for LocalAsyncReader {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.get_mut().0.poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.0.chunk.advance(amount);
    }
}

impl fmt::Debug for AsyncReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncReader").finish_non_exhaustive()
    }
}

impl fmt::Debug for LocalAsyncReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalAsyncReader").finish_non_exhaustive()
    }
}
