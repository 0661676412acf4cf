//! [`TcpTransport`]: a connection, as ureq sees it, over a socket of tokio.
//!
//! ```text
//!            opened        used in another runtime
//!   (none) ─────────▶ here ───────────────────────▶ there
//!                      │ ▲                       as `here`
//!              a write │ │ ... ends
//!                      ▼ │
//!                   taken ──── is dropped, or fails ────▶ closed
//! ```
//!
//! A write takes the socket away. If it does not end, since the run is cancelled or
//! the time is over, the peer has got a part of something, and the socket goes with
//! it. A read that does not end has taken nothing.
//!
//! # Invariants
//!
//! - **T1** `is_open` neither waits nor panics nor takes a lock: ureq calls it with
//!   that of its pool.
//! - **T2** A socket is used only in the runtime in which it is registered.
#![forbid(unsafe_code)]

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;

use ::ureq::Error;
use ::ureq::unversioned::transport::{
    Buffers, LazyBuffers, NextTimeout, ShutdownHandle, Transport,
};
use futures::task::AtomicWaker;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Id};

use super::wait::within;

/// A connection of ureq's.
#[derive(Debug)]
pub(super) struct TcpTransport {
    socket: Socket,
    buffers: LazyBuffers,
}

impl TcpTransport {
    pub(super) fn new(socket: Socket, buffers: LazyBuffers) -> Self {
        TcpTransport { socket, buffers }
    }
}

impl Transport for TcpTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = &self.buffers.output()[..amount];
        within(timeout.for_write(), self.socket.write_all(output))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let input = self.buffers.input_append_buf();
        let amount = within(timeout.for_read(), self.socket.read(input))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.socket.is_quiet()
    }
}

/// A socket that goes along from runtime to runtime.
#[derive(Debug)]
pub(super) struct Socket {
    /// `None` during a write, and after one that has not ended.
    stream: Option<TcpStream>,
    /// Where `stream` is registered.
    runtime: Id,
    shutdown: Arc<Shutdown>,
}

impl Socket {
    /// Wraps a socket that was opened in the current runtime.
    pub(super) fn new(stream: TcpStream) -> Self {
        Socket {
            stream: Some(stream),
            runtime: Handle::current().id(),
            shutdown: Arc::default(),
        }
    }

    pub(super) fn shutdown_handle(&self) -> Weak<dyn ShutdownHandle> {
        let handle: Weak<Shutdown> = Arc::downgrade(&self.shutdown);
        handle
    }

    async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let stream = self.take()?;
        let stream = self.stream.insert(stream);
        self.shutdown.unless(stream.read(buf)).await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.take()?;
        self.shutdown.unless(stream.write_all(bytes)).await?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Takes the socket, registered in the current runtime (T2).
    fn take(&mut self) -> io::Result<TcpStream> {
        let Some(stream) = self.stream.take() else {
            let why = "the connection was closed by a write that had not ended";
            return Err(io::Error::new(io::ErrorKind::NotConnected, why));
        };
        let here = Handle::current().id();
        if self.runtime == here {
            return Ok(stream);
        }
        let stream = TcpStream::from_std(stream.into_std()?)?;
        self.runtime = here;
        Ok(stream)
    }

    /// Whether the peer has neither closed the connection nor sent anything.
    ///
    /// It asks the system: what tokio knows is as old as the last turn of the runtime
    /// that drives the socket, if it is driven at all.
    fn is_quiet(&self) -> bool {
        let Some(stream) = &self.stream else {
            return false;
        };
        let mut byte = [MaybeUninit::uninit()];
        let peeked = SockRef::from(stream).peek(&mut byte);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// How an agent that is shut down tells a connection that is in use.
#[derive(Debug, Default)]
struct Shutdown {
    /// Set before `waiting` is woken, and never reset.
    done: AtomicBool,
    /// Whoever reads or writes. There is one at a time.
    waiting: AtomicWaker,
}

impl Shutdown {
    /// Waits for `future`, or until the agent is shut down.
    async fn unless<T>(&self, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            // First, so that a shutdown after the next line wakes the task.
            self.waiting.register(cx.waker());
            if self.done.load(Ordering::Acquire) {
                let why = "the agent is shut down";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::NotConnected, why)));
            }
            future.as_mut().poll(cx)
        })
        .await
    }
}

impl ShutdownHandle for Shutdown {
    fn shutdown(&self) {
        self.done.store(true, Ordering::Release);
        self.waiting.wake();
    }
}
