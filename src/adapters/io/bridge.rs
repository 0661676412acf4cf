//! [`SyncIoBridge`]: tokio's I/O traits as those of std.
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::io::{self, BufRead, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt, AsyncWrite,
    AsyncWriteExt, ReadBuf,
};

use super::wait::wait;

/// Lets plain code read, write and seek in what tokio reads, writes and seeks
/// in.
///
/// [`Read`], [`BufRead`], [`Write`] and [`Seek`] over [`AsyncRead`],
/// [`AsyncBufRead`], [`AsyncWrite`] and [`AsyncSeek`]. A call that has to wait
/// suspends the run; outside a run it blocks the thread, where that is allowed, see
/// [`await_sync`](crate::await_sync).
///
/// It has the name and the methods of `tokio_util::io::SyncIoBridge`, and needs
/// no thread of its own. There is no `new_with_handle`: a run waits in the task
/// that it is part of, and elsewhere the thread tells which runtime to block on.
/// Hold the guard of [`Handle::enter`](tokio::runtime::Handle::enter) to choose one.
///
/// One call at a time reads or writes. To do both at once, split the socket
/// (`into_split`, [`tokio::io::split`]) and give its halves to two runs. Each call
/// is a call to the socket, as with std: put a [`BufReader`](io::BufReader) or a
/// [`BufWriter`](io::BufWriter) around it, of tokio inside or of std outside.
///
/// # Cancel safety
///
/// If the run is cancelled in a call, the call unwinds, or after
/// [`cancel_as_error`](Self::cancel_as_error) returns an error. `read`,
/// `read_vectored`, `fill_buf`, `write` and `write_vectored` have then neither
/// taken nor written anything. What `read_to_end`, `read_to_string`, `read_until`
/// and `read_line` had read is in their buffers if they return an error.
/// `read_exact` and `write_all` may have done a part. Writers around it
/// that write when they are dropped may wait once more, see the
/// [module](super#cancellation).
///
/// # Panics
///
/// The calls that wait panic like [`await_sync`](crate::await_sync): in async code,
/// for one. The destructor of a `BufWriter` that is dropped there with something in
/// it calls `write`.
///
/// # Examples
///
/// ```
/// use std::io::{BufRead, BufReader, Write};
///
/// use greenhack::io::SyncIoBridge;
/// use greenhack::run_sync_local;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let (near, far) = tokio::io::duplex(16);
/// let client = run_sync_local(|| {
///     let mut near = BufReader::new(SyncIoBridge::new(near));
///     near.get_mut().write_all(b"soup\n").unwrap();
///     let mut answer = String::new();
///     near.read_line(&mut answer).unwrap();
///     answer
/// });
/// let cook = run_sync_local(|| {
///     let mut far = BufReader::new(SyncIoBridge::new(far));
///     let mut dish = String::new();
///     far.read_line(&mut dish).unwrap();
///     write!(far.get_mut(), "one {dish}").unwrap();
/// });
/// let (answer, ()) = tokio::join!(client, cook);
/// assert_eq!(answer, "one soup\n");
/// # });
/// ```
#[derive(Debug)]
pub struct SyncIoBridge<T> {
    src: T,
    cancel_as_error: bool,
    /// What `read_vectored` met after it had read something.
    deferred: Option<io::Error>,
}

impl<T: Unpin> SyncIoBridge<T> {
    /// Wraps `src`. If it isn't `Unpin`, wrap `Box::pin(src)`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Read;
    /// use greenhack::io::SyncIoBridge;
    ///
    /// // On a plain thread it blocks.
    /// let mut bridge = SyncIoBridge::new(&b"soup"[..]);
    /// let mut text = String::new();
    /// bridge.read_to_string(&mut text).unwrap();
    /// assert_eq!(text, "soup");
    /// ```
    pub fn new(src: T) -> Self {
        SyncIoBridge {
            src,
            cancel_as_error: false,
            deferred: None,
        }
    }

    /// Makes a cancellation of the run an error of the call that waits, instead
    /// of an unwind.
    ///
    /// For libraries that must not be unwound through, and for code that would
    /// rather clean up on its way back. See the [module](super#cancellation).
    /// The cancellation stays: every call that follows fails at once, and a run
    /// that goes on for more than 32 of them is leaked. In a
    /// [`shield`](crate::shield) calls fail when the cleanup budget is over, and not
    /// before.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Read;
    ///
    /// use greenhack::io::{SyncIoBridge, is_cancelled};
    /// use greenhack::run_sync_local;
    /// use tokio::sync::oneshot;
    /// use tokio::task::yield_now;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let (near, _far) = tokio::io::duplex(16);
    /// let (tell, told) = oneshot::channel();
    /// let run = run_sync_local(move || {
    ///     let mut near = SyncIoBridge::new(near).cancel_as_error();
    ///     // Nobody writes.
    ///     tell.send(near.read(&mut [0; 16])).unwrap();
    /// });
    /// tokio::select! { biased; () = run => {}, () = yield_now() => {} }
    /// assert!(is_cancelled(&told.await.unwrap().unwrap_err()));
    /// # });
    /// ```
    pub fn cancel_as_error(mut self) -> Self {
        self.cancel_as_error = true;
        self
    }

    /// Returns what is wrapped.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenhack::io::SyncIoBridge;
    ///
    /// assert_eq!(SyncIoBridge::new(&b"soup"[..]).into_inner(), b"soup");
    /// ```
    pub fn into_inner(self) -> T {
        self.src
    }
}

impl<T: AsyncWrite> SyncIoBridge<T> {
    /// Whether [`write_vectored`](Write::write_vectored) is efficient, see
    /// [`AsyncWrite::is_write_vectored`].
    ///
    /// # Examples
    ///
    /// ```
    /// use greenhack::io::SyncIoBridge;
    ///
    /// assert!(SyncIoBridge::new(Vec::new()).is_write_vectored());
    /// ```
    pub fn is_write_vectored(&self) -> bool {
        self.src.is_write_vectored()
    }
}

impl<T: AsyncWrite + Unpin> SyncIoBridge<T> {
    /// Suspends until what was written is flushed and the writing side is shut
    /// down, see [`AsyncWriteExt::shutdown`].
    ///
    /// # Cancel safety
    ///
    /// If the run is cancelled meanwhile, it may be called again.
    ///
    /// # Panics
    ///
    /// As [`await_sync`](crate::await_sync).
    ///
    /// # Errors
    ///
    /// Those of the writer, and the cancellation after
    /// [`cancel_as_error`](Self::cancel_as_error).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use greenhack::io::SyncIoBridge;
    ///
    /// let (near, far) = tokio::io::duplex(16);
    /// let (mut near, mut far) = (SyncIoBridge::new(near), SyncIoBridge::new(far));
    /// near.write_all(b"soup").unwrap();
    /// near.shutdown().unwrap();
    /// let mut text = String::new();
    /// far.read_to_string(&mut text).unwrap();
    /// assert_eq!(text, "soup");
    /// ```
    #[track_caller]
    pub fn shutdown(&mut self) -> io::Result<()> {
        wait(self.cancel_as_error, self.src.shutdown())?
    }
}

impl<T> SyncIoBridge<T> {
    fn deferred(&mut self) -> io::Result<()> {
        self.deferred.take().map_or(Ok(()), Err)
    }
}

impl<T: AsyncRead + Unpin> Read for SyncIoBridge<T> {
    #[track_caller]
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            // A socket would wait until there is something to leave there.
            return Ok(0);
        }
        self.deferred()?;
        wait(self.cancel_as_error, self.src.read(buf))?
    }

    /// Waits for the first bytes, and then takes what is there without a wait.
    #[track_caller]
    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.deferred()?;
        let (src, deferred) = (&mut self.src, &mut self.deferred);
        let read = poll_fn(|cx| {
            let mut total = 0;
            for buf in bufs.iter_mut().filter(|buf| !buf.is_empty()) {
                let mut buf = ReadBuf::new(buf);
                match Pin::new(&mut *src).poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(())) => total += buf.filled().len(),
                    // Only one of the two can be returned now.
                    Poll::Ready(Err(error)) if total > 0 => *deferred = Some(error),
                    Poll::Pending if total > 0 => {}
                    poll => ready!(poll)?,
                }
                if buf.remaining() > 0 {
                    break;
                }
            }
            Poll::Ready(Ok(total))
        });
        wait(self.cancel_as_error, read)?
    }

    #[track_caller]
    fn read_to_end(&mut self, buf: &mut Vec<u8>) -> io::Result<usize> {
        self.deferred()?;
        wait(self.cancel_as_error, self.src.read_to_end(buf))?
    }

    // That of tokio takes the string away while it reads, and keeps it if it
    // is cancelled.
    #[track_caller]
    fn read_to_string(&mut self, buf: &mut String) -> io::Result<usize> {
        let mut bytes = Vec::new();
        let result = self.read_to_end(&mut bytes);
        match String::from_utf8(bytes) {
            Ok(text) if buf.is_empty() => *buf = text,
            Ok(text) => buf.push_str(&text),
            Err(error) => {
                return result.and(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
        result
    }

    #[track_caller]
    fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.deferred()?;
        wait(self.cancel_as_error, self.src.read_exact(buf))?.map(drop)
    }
}

/// `read_line` is that of std: tokio's would lose the string if it is cancelled.
impl<T: AsyncBufRead + Unpin> BufRead for SyncIoBridge<T> {
    #[track_caller]
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.deferred()?;
        wait(self.cancel_as_error, self.src.fill_buf())?
    }

    fn consume(&mut self, amount: usize) {
        AsyncBufReadExt::consume(&mut self.src, amount);
    }

    #[track_caller]
    fn read_until(&mut self, byte: u8, buf: &mut Vec<u8>) -> io::Result<usize> {
        self.deferred()?;
        wait(self.cancel_as_error, self.src.read_until(byte, buf))?
    }
}

impl<T: AsyncWrite + Unpin> Write for SyncIoBridge<T> {
    #[track_caller]
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        wait(self.cancel_as_error, self.src.write(buf))?
    }

    #[track_caller]
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        wait(self.cancel_as_error, self.src.write_vectored(bufs))?
    }

    #[track_caller]
    fn flush(&mut self) -> io::Result<()> {
        wait(self.cancel_as_error, self.src.flush())?
    }

    #[track_caller]
    fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        wait(self.cancel_as_error, self.src.write_all(buf))?
    }
}

impl<T: AsyncSeek + Unpin> Seek for SyncIoBridge<T> {
    #[track_caller]
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        wait(self.cancel_as_error, self.src.seek(position))?
    }
}

impl<T> AsMut<T> for SyncIoBridge<T> {
    fn as_mut(&mut self) -> &mut T {
        &mut self.src
    }
}

impl<T> AsRef<T> for SyncIoBridge<T> {
    fn as_ref(&self) -> &T {
        &self.src
    }
}
