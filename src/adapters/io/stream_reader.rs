//! [`StreamReader`]: a stream of chunks as `Read` and `BufRead`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{self, BufRead, IoSliceMut, Read};

use bytes::Buf;
use futures::{Stream, StreamExt};

use super::wait::wait;

/// Lets plain code read a stream of chunks, such as a request body.
///
/// [`Read`] and [`BufRead`] over any `Stream<Item = Result<B, E>>`. The chunks
/// aren't copied: [`fill_buf`](BufRead::fill_buf) lends what is left of the current
/// one. Empty chunks are passed over. A call that has to wait for a chunk suspends
/// the run; outside a run it blocks the thread, see
/// [`await_sync`](crate::await_sync).
///
/// It has the name and the methods of `tokio_util::io::StreamReader`, but for
/// `get_pin_mut`: what is not `Unpin` is boxed. The errors of the stream need not be
/// of `io`: an [`io::Error`] stays what it is, others become the inner error of one.
///
/// To limit what a client can send, use [`take`](Read::take).
///
/// # Cancel safety
///
/// If the run is cancelled in a call, the call unwinds, or after
/// [`cancel_as_error`](Self::cancel_as_error) returns an error. The stream has
/// given no chunk meanwhile that was not read.
///
/// # Panics
///
/// The calls that wait panic like [`await_sync`](crate::await_sync): in async code,
/// for one.
///
/// # Errors
///
/// After an error of the stream it isn't polled again, and every further call
/// fails: a body that was cut off never seems to end. Its regular end stays, too.
///
/// # Examples
///
/// ```
/// use std::io::BufRead;
///
/// use greenhack::io::StreamReader;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let chunks = ["so", "", "up\nri", "ce\n"].map(|chunk| Ok::<_, &str>(chunk.as_bytes()));
/// let body = StreamReader::new(futures::stream::iter(chunks));
/// let dishes = greenhack::run_sync_local(|| body.lines().collect::<Result<Vec<_>, _>>());
/// assert_eq!(dishes.await.unwrap(), ["soup", "rice"]);
/// # });
/// ```
#[derive(Debug)]
pub struct StreamReader<S, B> {
    stream: S,
    chunk: Option<B>,
    state: State,
    cancel_as_error: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Failed,
}

impl<S, B, E> StreamReader<S, B>
where
    S: Stream<Item = Result<B, E>>,
    B: Buf,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    /// Wraps `stream`. To be read it must be `Unpin`; wrap `Box::pin(stream)` if
    /// it isn't.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Read;
    /// use greenhack::io::StreamReader;
    ///
    /// let mut body = StreamReader::new(axum::body::Body::from("soup").into_data_stream());
    /// let mut text = String::new();
    /// body.read_to_string(&mut text).unwrap();
    /// assert_eq!(text, "soup");
    /// ```
    pub fn new(stream: S) -> Self {
        StreamReader {
            stream,
            chunk: None,
            state: State::Open,
            cancel_as_error: false,
        }
    }

    /// Returns the stream, and what is left of the current chunk.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Read;
    /// use greenhack::io::StreamReader;
    ///
    /// let chunks = futures::stream::iter([Ok::<_, &str>(&b"soup"[..])]);
    /// let mut body = StreamReader::new(chunks);
    /// body.read_exact(&mut [0; 1]).unwrap();
    /// assert_eq!(body.into_inner_with_chunk().1, Some(&b"oup"[..]));
    /// ```
    pub fn into_inner_with_chunk(self) -> (S, Option<B>) {
        (self.stream, self.chunk.filter(Buf::has_remaining))
    }
}

impl<S, B> StreamReader<S, B> {
    /// Makes a cancellation of the run an error of the call that waits, instead
    /// of an unwind, see the [module](super#cancellation) and
    /// [`SyncIoBridge`](super::SyncIoBridge::cancel_as_error).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::BufRead;
    ///
    /// use futures::{StreamExt, stream};
    /// use greenhack::io::{StreamReader, is_cancelled};
    /// use greenhack::run_sync_local;
    /// use tokio::sync::oneshot;
    /// use tokio::task::yield_now;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let (tell, told) = oneshot::channel();
    /// // One line has come, and the client is silent.
    /// let upload = stream::iter([Ok::<_, &str>(&b"soup\n"[..])]).chain(stream::pending());
    /// let run = run_sync_local(|| {
    ///     let mut lines = StreamReader::new(upload).cancel_as_error().lines();
    ///     let first = lines.next().unwrap().unwrap();
    ///     let error = lines.next().unwrap().unwrap_err();
    ///     tell.send((first, is_cancelled(&error))).unwrap();
    /// });
    /// tokio::select! { biased; () = run => {}, () = yield_now() => {} }
    /// assert_eq!(told.await.unwrap(), ("soup".to_owned(), true));
    /// # });
    /// ```
    pub fn cancel_as_error(mut self) -> Self {
        self.cancel_as_error = true;
        self
    }

    /// Returns the stream. It does not have what was taken from it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Read;
    /// use futures::Stream;
    /// use greenhack::io::StreamReader;
    ///
    /// let chunks = ["so", "up"].map(|chunk| Ok::<_, &str>(chunk.as_bytes()));
    /// let mut body = StreamReader::new(futures::stream::iter(chunks));
    /// body.read_exact(&mut [0; 1]).unwrap();
    /// assert_eq!(body.get_ref().size_hint(), (1, Some(1)));
    /// ```
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Returns the stream. What is taken from it here is missing in between.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Returns the stream, and drops what is left of the current chunk.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Read;
    /// use greenhack::io::StreamReader;
    ///
    /// let chunks = ["soup", "rice"].map(|chunk| Ok::<_, &str>(chunk.as_bytes()));
    /// let mut body = StreamReader::new(futures::stream::iter(chunks));
    /// body.read_exact(&mut [0; 1]).unwrap();
    /// let mut body = StreamReader::new(body.into_inner());
    /// let mut text = String::new();
    /// body.read_to_string(&mut text).unwrap();
    /// assert_eq!(text, "rice");
    /// ```
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S, B, E> BufRead for StreamReader<S, B>
where
    S: Stream<Item = Result<B, E>> + Unpin,
    B: Buf,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    #[track_caller]
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while !self.chunk.as_ref().is_some_and(Buf::has_remaining) {
            match self.state {
                State::Open => {}
                State::Ended => return Ok(&[]),
                State::Failed => return Err(io::Error::other("the stream has failed before")),
            }
            match wait(self.cancel_as_error, self.stream.next())? {
                Some(Ok(chunk)) => self.chunk = Some(chunk),
                Some(Err(error)) => {
                    self.state = State::Failed;
                    return Err(into_io_error(error.into()));
                }
                None => self.state = State::Ended,
            }
        }
        Ok(self.chunk.as_ref().map_or(&[], Buf::chunk))
    }

    fn consume(&mut self, amount: usize) {
        if amount > 0 {
            self.chunk
                .as_mut()
                .expect("`consume` called for more than `fill_buf` has returned")
                .advance(amount);
        }
    }
}

impl<S, B, E> Read for StreamReader<S, B>
where
    S: Stream<Item = Result<B, E>> + Unpin,
    B: Buf,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    #[track_caller]
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let read = self.fill_buf()?.read(buf)?;
        self.consume(read);
        Ok(read)
    }

    #[track_caller]
    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Ok(0);
        }
        let read = self.fill_buf()?.read_vectored(bufs)?;
        self.consume(read);
        Ok(read)
    }

    #[track_caller]
    fn read_to_end(&mut self, buf: &mut Vec<u8>) -> io::Result<usize> {
        let before = buf.len();
        loop {
            let chunk = self.fill_buf()?;
            if chunk.is_empty() {
                return Ok(buf.len() - before);
            }
            buf.extend_from_slice(chunk);
            let read = chunk.len();
            self.consume(read);
        }
    }
}

fn into_io_error(error: Box<dyn Error + Send + Sync>) -> io::Error {
    match error.downcast::<io::Error>() {
        // The loops of std would try again, and meet another error.
        Ok(error) if error.kind() == io::ErrorKind::Interrupted => io::Error::other(error),
        Ok(error) => *error,
        Err(error) => io::Error::other(error),
    }
}
