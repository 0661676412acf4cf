//! [`body`]: what plain code writes, as a stream.
#![forbid(unsafe_code)]

use std::any::{Any, type_name};
use std::fmt;
use std::io::{self, IoSlice, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::future::{BoxFuture, LocalBoxFuture};
use tokio::sync::mpsc::{Receiver, Sender};

use super::producer::{CHUNK, Producer, chunks};
use super::wait::wait;
use crate::adapters::guard::discard;
use crate::{Cancelled, builder};

/// For how many bytes there is memory before they are written.
const MOST_RESERVED: usize = 1024 * 1024;

/// Makes a stream of what `f` writes, such as the body of a response.
///
/// `f` runs as a [run](crate::run_sync), which the stream drives, from its first
/// poll on: it may wait, and so may everything that writes to its [`BodyWriter`].
/// There is room for two chunks: when they are full and the reader is slow, `f` is
/// suspended. The stream is `Send`, as is `f`; for one that isn't, use
/// [`body_local`].
///
/// The stream ends well if `f` has returned `Ok`. If it returns an error, the stream
/// ends with that; if it panics, with an error that has the message. What `f` had
/// written by then and was not yet a chunk is dropped. So a reader never takes a
/// body that was cut off for a whole one.
///
/// # Cancel safety
///
/// If the stream is dropped, `f` is cancelled. A write that waits for the reader
/// unwinds, or fails with [`BrokenPipe`](io::ErrorKind::BrokenPipe).
///
/// # Panics
///
/// The stream panics where [`run_sync`](crate::run_sync) does, but not with the
/// panics of `f`.
///
/// # Examples
///
/// ```
/// use std::io::Write;
///
/// use axum::body::{Body, to_bytes};
/// use greenhack::await_sync;
/// use greenhack::io::body;
/// use tokio::task::yield_now;
///
/// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
/// let menu = body(|out| {
///     for dish in ["soup", "rice"] {
///         await_sync(yield_now());
///         writeln!(out, "{dish}")?;
///     }
///     Ok(())
/// });
/// let response = Body::from_stream(menu);
/// assert_eq!(to_bytes(response, 100).await.unwrap(), "soup\nrice\n");
/// # });
/// ```
pub fn body<F>(f: F) -> BodyStream
where
    F: FnOnce(&mut BodyWriter) -> io::Result<()> + Send + 'static,
{
    let (writer, chunks) = BodyWriter::new();
    let run = builder()
        .name(type_name::<F>())
        .run_sync(move || writer.run(f));
    BodyStream(Producer::new(chunks, Box::pin(run)))
}

/// Makes a stream of what `f` writes, in the current task.
///
/// It is [`body`] over [`run_sync_local`](crate::run_sync_local): neither `f` nor
/// the stream is `Send`.
///
/// # Cancel safety
///
/// As [`body`].
///
/// # Panics
///
/// The stream panics where [`run_sync_local`](crate::run_sync_local) does, but not
/// with the panics of `f`.
///
/// # Examples
///
/// ```
/// use std::io::Write;
/// use std::rc::Rc;
///
/// use futures::TryStreamExt;
/// use greenhack::io::body_local;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let dish = Rc::new("soup");
/// let chunks = body_local(move |out| out.write_all(dish.as_bytes()));
/// let chunks: Vec<_> = chunks.try_collect().await.unwrap();
/// assert_eq!(chunks, ["soup"]);
/// # });
/// ```
pub fn body_local<F>(f: F) -> LocalBodyStream
where
    F: FnOnce(&mut BodyWriter) -> io::Result<()> + 'static,
{
    let (writer, chunks) = BodyWriter::new();
    let run = builder()
        .name(type_name::<F>())
        .run_sync_local(move || writer.run(f));
    LocalBodyStream(Producer::new(chunks, Box::pin(run)))
}

/// What the closure given to [`body`] writes to.
///
/// It gathers what is written into chunks of 8 KiB, which go to the reader when
/// they are full, on [`flush`](Write::flush), and when the closure has returned
/// `Ok`. A call suspends the run while there is no room.
///
/// # Cancel safety
///
/// If the stream is dropped in a call, the call has taken nothing.
///
/// # Panics
///
/// The calls that wait panic like [`await_sync`](crate::await_sync).
///
/// # Errors
///
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe), if the stream is dropped; the
/// cancellation, after [`cancel_as_error`](Self::cancel_as_error).
///
/// # Examples
///
/// ```
/// use std::io::Write;
///
/// use futures::TryStreamExt;
/// use greenhack::io::body_local;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let chunks = body_local(|out| {
///     out.write_all(b"so")?;
///     out.write_all(b"up")?;
///     out.flush()?;
///     out.write_all(b"rice")
/// });
/// let chunks: Vec<_> = chunks.try_collect().await.unwrap();
/// assert_eq!(chunks, ["soup", "rice"]);
/// # });
/// ```
pub struct BodyWriter {
    buffer: BytesMut,
    chunk_size: usize,
    chunks: Sender<Bytes>,
    cancel_as_error: bool,
}

impl BodyWriter {
    fn new() -> (BodyWriter, Receiver<Bytes>) {
        let (sender, receiver) = chunks();
        let writer = BodyWriter {
            buffer: BytesMut::new(),
            chunk_size: CHUNK,
            chunks: sender,
            cancel_as_error: false,
        };
        (writer, receiver)
    }

    /// Sets the size of the chunks from here on, in bytes. Zero means one, and
    /// `usize::MAX` a chunk for each flush.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Write;
    ///
    /// use futures::TryStreamExt;
    /// use greenhack::io::body_local;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let chunks = body_local(|out| {
    ///     out.set_chunk_size(3);
    ///     out.write_all(b"soups")
    /// });
    /// let chunks: Vec<_> = chunks.try_collect().await.unwrap();
    /// assert_eq!(chunks, ["sou", "ps"]);
    /// # });
    /// ```
    pub fn set_chunk_size(&mut self, bytes: usize) {
        self.chunk_size = bytes.max(1);
    }

    /// Makes a cancellation of the run an error of the call that waits, instead
    /// of an unwind, see the [module](super#cancellation) and
    /// [`SyncIoBridge`](super::SyncIoBridge::cancel_as_error).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Write;
    ///
    /// use futures::StreamExt;
    /// use greenhack::io::{body_local, is_cancelled};
    /// use tokio::sync::oneshot;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let (tell, told) = oneshot::channel();
    /// let mut export = body_local(|out| {
    ///     out.cancel_as_error().set_chunk_size(4);
    ///     let error = loop {
    ///         if let Err(error) = out.write_all(b"soup") {
    ///             break error;
    ///         }
    ///     };
    ///     tell.send(is_cancelled(&error)).unwrap();
    ///     Err(error)
    /// });
    /// // The client reads a little, and goes.
    /// assert_eq!(export.next().await.unwrap().unwrap(), "soup");
    /// drop(export);
    /// assert_eq!(told.await, Ok(true));
    /// # });
    /// ```
    pub fn cancel_as_error(&mut self) -> &mut Self {
        self.cancel_as_error = true;
        self
    }

    /// Runs `f` with this, on the coroutine.
    fn run<F>(mut self, f: F) -> io::Result<()>
    where
        F: FnOnce(&mut BodyWriter) -> io::Result<()>,
    {
        match catch_unwind(AssertUnwindSafe(|| f(&mut self))) {
            Ok(Ok(())) => self.flush(),
            Ok(Err(error)) => Err(error),
            Err(payload) if payload.is::<Cancelled>() => resume_unwind(payload),
            Err(payload) => {
                let error = panicked(&*payload);
                discard(payload);
                Err(error)
            }
        }
    }

    /// Returns how many bytes can be written at once, after making room for
    /// some.
    #[track_caller]
    fn room(&mut self) -> io::Result<usize> {
        if self.buffer.len() >= self.chunk_size {
            self.flush()?;
        }
        if self.buffer.is_empty() {
            self.buffer.reserve(self.chunk_size.min(MOST_RESERVED));
        }
        Ok(self.chunk_size - self.buffer.len())
    }
}

impl Write for BodyWriter {
    #[track_caller]
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let length = self.room()?.min(buf.len());
        self.buffer.extend_from_slice(&buf[..length]);
        Ok(length)
    }

    #[track_caller]
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let room = self.room()?;
        let mut written = 0;
        for buf in bufs {
            let length = buf.len().min(room - written);
            self.buffer.extend_from_slice(&buf[..length]);
            written += length;
        }
        Ok(written)
    }

    /// Hands what was written to the stream. Does not wait until it is read.
    #[track_caller]
    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        // A wait in an unwind is for a reaper to go on with. None is needed.
        if thread::panicking() && self.chunks.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // The chunk is still here if this unwinds.
        match wait(self.cancel_as_error, self.chunks.reserve())? {
            Ok(room) => room.send(self.buffer.split().freeze()),
            Err(_) => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        Ok(())
    }
}

impl fmt::Debug for BodyWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyWriter")
            .field("buffered", &self.buffer.len())
            .field("chunk_size", &self.chunk_size)
            .finish_non_exhaustive()
    }
}

#[cold]
fn panicked(payload: &(dyn Any + Send)) -> io::Error {
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    io::Error::other(format!(
        "the plain code that writes the body panicked: {message}"
    ))
}

/// The stream of [`body`].
///
/// # Cancel safety
///
/// If it is dropped, the closure is cancelled.
///
/// # Examples
///
/// See [`body`].
#[must_use = "streams do nothing unless they are polled"]
pub struct BodyStream(Producer<BoxFuture<'static, io::Result<()>>>);

/// The stream of [`body_local`].
///
/// # Cancel safety
///
/// If it is dropped, the closure is cancelled.
///
/// # Examples
///
/// See [`body_local`].
#[must_use = "streams do nothing unless they are polled"]
pub struct LocalBodyStream(Producer<LocalBoxFuture<'static, io::Result<()>>>);

impl Stream for BodyStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next(cx)
    }
}

impl Stream for LocalBodyStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next(cx)
    }
}

impl fmt::Debug for BodyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyStream").finish_non_exhaustive()
    }
}

impl fmt::Debug for LocalBodyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBodyStream").finish_non_exhaustive()
    }
}
