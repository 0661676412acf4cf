//! Plain I/O over async I/O, and back.
//!
//! | there is | wanted | write |
//! |---|---|---|
//! | a tokio socket, file, pipe | `Read`, `Write`, `BufRead`, `Seek` | [`SyncIoBridge::new`] |
//! | a request body, any stream of `Bytes` | `Read`, `BufRead` | [`StreamReader::new`] |
//! | plain code that writes | a response body, a stream of `Bytes` | [`body`], [`body_local`] |
//! | a `Read` | `AsyncRead`, `AsyncBufRead` | [`AsyncReader::new`], [`LocalAsyncReader::new`] |
//!
//! The first two are used in a run, or on a thread that may block, wherever
//! [`await_sync`](crate::await_sync) can wait. The others are made and polled in
//! async code, and run their plain code on a coroutine.
//!
//! # Cancellation
//!
//! A call that waits when its run is cancelled unwinds, like
//! [`await_sync`](crate::await_sync). After `cancel_as_error()` it returns an
//! error instead, whose source is [`Cancelled`](crate::Cancelled). It goes up through
//! whatever library reads or writes; [`is_cancelled`] tells it from others. Its
//! kind is [`Other`](std::io::ErrorKind::Other), since the loops of std and of many
//! libraries try again after `Interrupted`, `WouldBlock` or `TimedOut`, and take
//! `UnexpectedEof` or `ConnectionReset` for an end.
//!
//! Writers that write when they are dropped, such as
//! [`BufWriter`](std::io::BufWriter) or an encoder, do so while a cancellation or
//! a panic unwinds, too. In a run that is cancelled, a call that waits in an unwind is
//! given the [`cleanup_budget`](crate::Builder::cleanup_budget); when it is over, or if
//! the place can't wait, the call returns an error. It neither unwinds, which would end
//! the process, nor gets the run leaked. So what was buffered is written, if the
//! peer takes it in time. It also means that a peer may get the proper end of a
//! compressed stream whose content was cut off; [`body`] ends with an error then.
//!
//! On a panic, and in a closure that [`time::timeout`](crate::time::timeout),
//! [`race`](fn@crate::race) or the panic of a sibling cancels, there is no budget: the
//! call waits until the peer takes what is written, or closes. Where a peer may do
//! neither, flush before the scope ends, or give the stream a time limit of its own.
//!
//! With `cancel_as_error()` nothing unwinds, and every wait after the cancellation
//! fails, that of a `BufWriter` that is dropped too. What it holds is lost.
//!
//! # Examples
//!
//! Plain code between a request body and the body of its answer, line by line:
//!
//! ```
//! use std::io::{BufRead, Write};
//!
//! use futures::{TryStreamExt, stream};
//! use greenhack::io::{StreamReader, body};
//!
//! # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
//! let upload = ["so", "up\nri", "ce\n"].map(|chunk| Ok::<_, &str>(chunk.as_bytes()));
//! let upload = StreamReader::new(stream::iter(upload));
//!
//! let download = body(|out| {
//!     for dish in upload.lines() {
//!         writeln!(out, "a plate of {}", dish?)?;
//!     }
//!     Ok(())
//! });
//!
//! let download: Vec<_> = download.try_collect().await.unwrap();
//! assert_eq!(download.concat(), b"a plate of soup\na plate of rice\n");
//! # });
//! ```
#![forbid(unsafe_code)]

mod async_reader;
mod body;
mod bridge;
mod producer;
mod stream_reader;
mod wait;

pub use async_reader::{AsyncReader, LocalAsyncReader};
pub use body::{BodyStream, BodyWriter, LocalBodyStream, body, body_local};
pub use bridge::SyncIoBridge;
pub use stream_reader::StreamReader;
pub use wait::is_cancelled;
