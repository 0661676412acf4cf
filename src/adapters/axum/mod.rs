//! axum, served on workers: every handler runs in place.
//!
//! On a multi-thread runtime each run of [`#[entry]`](macro@crate::entry) hops
//! to a worker, because tasks move between threads and stacks can't. [`serve`]
//! pins the connection instead of the run. Its workers are threads, each with a
//! tokio `LocalRuntime` of its own; a connection is handed to one of them and
//! stays, and so do the handlers of its requests.
//!
//! [`Distributor`] is the part that hands the connections out, for servers other
//! than axum's. With `ReusePort` the system does, on Linux. [`RequestLimit`] is a
//! layer that lets the requests that are too many wait, or refuses them.
//!
//! # Examples
//!
//! A service needs [`serve`], and limits:
//!
//! ```
//! use axum::{Router, routing::get};
//! use greenhack::await_sync;
//! use greenhack::axum::RequestLimit;
//! # use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio::net::TcpListener;
//!
//! #[greenhack::entry]
//! fn soup() -> &'static str {
//!     await_sync(tokio::task::yield_now());
//!     "soup"
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! let limit = RequestLimit::new(1_000).max_waiting(10_000);
//! let app = Router::new().route("/", get(soup)).layer(limit.clone());
//!
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let server = greenhack::axum::serve(listener, app).max_connections(20_000);
//! let (address, connections) = (server.local_addr()?, server.connections());
//! # let server =
//! tokio::spawn(server.into_future());
//!
//! # let mut client = tokio::net::TcpStream::connect(address).await?;
//! # client.write_all(b"GET / HTTP/1.1\r\nHost: it\r\n\r\n").await?;
//! # let mut answer = [0; 1000];
//! # let mut length = 0;
//! # while !answer[..length].ends_with(b"soup") {
//! #     length += client.read(&mut answer[length..]).await?;
//! # }
//! // A client has been answered, and is still connected.
//! assert_eq!((connections.live(), limit.shed()), (1, 0));
//! # server.abort();
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod distributor;
mod limit;
#[cfg(target_os = "linux")]
mod reuse_port;

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use ::axum::extract::Request;
use ::axum::response::Response;
use ::axum::serve::{IncomingStream, Listener, ListenerExt, TapIo};
use tokio::sync::watch;
use tokio::time::timeout;
use tower_service::Service;

pub use distributor::{Connection, Connections, Distributor, Movable, WorkerListener};
pub use limit::{LimitedRequests, RequestLimit};
#[cfg(target_os = "linux")]
pub use reuse_port::ReusePort;

use crate::workers;

/// How long what is cancelled at the end of a shutdown may clean up.
const CLEANUP: Duration = Duration::from_secs(10);

/// What [`serve`] runs axum on: the listener of one worker.
///
/// It is a `TapIo`, which does nothing, because axum implements `Connected` for
/// the plain addresses of other listeners than its own only so.
pub type Pinned<L> = TapIo<WorkerListener<L>, fn(&mut Connection<<L as Listener>::Io>)>;

/// Serves an app on workers, so that its handlers run in place.
///
/// It takes the place of [`axum::serve`](::axum::serve()), with the same listener
/// and the same app, in any tokio runtime that has I/O and time. That runtime
/// accepts the connections. Requests are served by threads of their own, one for
/// each core, until the future ends.
///
/// What differs:
///
/// - A connection stays on its worker, with all its requests. A connection that
///   is much busier than others is not spread over the cores, and a handler that
///   blocks its thread holds up the connections of its worker. Where that
///   matters, [`axum::serve`](::axum::serve()) with the hop is the better choice.
/// - What handlers spawn belongs to the runtime of their worker, and ends with
///   it, at the end of this future. That holds for websockets, too: a graceful
///   shutdown does not wait for them, it cancels their handlers at its end.
/// - The app is cloned for each worker, so it is `Clone`, as the apps of axum are.
/// - `into_make_service_with_connect_info` works for the address of the client. A
///   type of one's own is implemented for `IncomingStream<'_, WorkerListener<..>>`,
///   and served with a [`Distributor`].
///
/// # Cancel safety
///
/// When the future is dropped, the listener is closed, and so are the
/// connections; handlers are cancelled and unwind on their workers. The drop
/// does not wait for that.
///
/// # Panics
///
/// The future panics if the app panics where it is cloned, or made for a
/// connection. A panic of a handler ends its connection, as with axum.
///
/// # Errors
///
/// The future ends with an error if the system gives no thread or no runtime
/// for the workers.
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::get};
/// use greenhack::await_sync;
/// use tokio::net::{TcpListener, TcpStream};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// #[greenhack::entry]
/// fn hello() -> String {
///     await_sync(tokio::task::yield_now());
///     std::thread::current().name().unwrap_or_default().to_owned()
/// }
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// let app = Router::new().route("/", get(hello));
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let mut client = TcpStream::connect(listener.local_addr()?).await?;
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
///
/// let server = greenhack::axum::serve(listener, app)
///     .with_graceful_shutdown(async { drop(stopped.await) });
/// let server = tokio::spawn(server.into_future());
///
/// client.write_all(b"GET / HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n").await?;
/// let mut answer = String::new();
/// client.read_to_string(&mut answer).await?;
/// assert!(answer.contains("\r\n\r\nserve-"), "{answer}");
///
/// drop(stop);
/// server.await?
/// # }
/// ```
pub fn serve<L, M, S>(listener: L, make_service: M) -> Serve<L, M, S>
where
    L: Listener<Io: Movable>,
    M: for<'a> Service<IncomingStream<'a, Pinned<L>>, Error = Infallible, Response = S>,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    Serve {
        distributor: Distributor::new(listener),
        make_service,
        workers: workers::Builder::new().thread_name("serve"),
        signal: None,
        shutdown_timeout: None,
        _service: PhantomData,
    }
}

/// What [`serve`] returns: a server, to be set up and awaited.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use axum::{Router, routing::get};
/// use greenhack::workers;
/// use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
/// use tokio::net::{TcpListener, TcpStream};
///
/// #[greenhack::entry]
/// fn soup() -> String {
///     format!("soup, by {}\n", std::thread::current().name().unwrap_or_default())
/// }
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let server = greenhack::axum::serve(listener, Router::new().route("/", get(soup)))
///     .with_workers(workers::Builder::new().threads(2).thread_name("kitchen"))
///     .max_connections(10_000)
///     .stall_limit(Duration::from_millis(50));
/// // What is needed of it, before it is awaited.
/// let (address, connections) = (server.local_addr()?, server.connections());
/// let server = tokio::spawn(server.into_future());
///
/// let mut client = TcpStream::connect(address).await?;
/// client.write_all(b"GET / HTTP/1.1\r\nHost: it\r\n\r\n").await?;
/// let mut lines = BufReader::new(client).lines();
/// let soup = loop {
///     let line = lines.next_line().await?.expect("there is soup");
///     if line.starts_with("soup") {
///         break line;
///     }
/// };
/// assert!(soup.starts_with("soup, by kitchen-"), "{soup}");
/// assert_eq!(connections.live(), 1);
/// # server.abort();
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is served until this is awaited"]
pub struct Serve<L: Listener<Io: Movable>, M, S> {
    distributor: Distributor<L>,
    make_service: M,
    workers: workers::Builder,
    signal: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    shutdown_timeout: Option<Duration>,
    _service: PhantomData<fn() -> S>,
}

impl<L: Listener<Io: Movable>, M, S> Serve<L, M, S> {
    /// Shuts the server down when `signal` is ready.
    ///
    /// New connections are then refused, idle ones are closed, and so are those that
    /// no worker has taken yet; the requests that are being served are finished.
    /// When all have been answered, the future ends with `Ok`. How long that may take is set by
    /// [`shutdown_timeout`](Self::shutdown_timeout).
    ///
    /// # Examples
    ///
    /// See [`serve`].
    pub fn with_graceful_shutdown<F>(mut self, signal: F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.signal = Some(Box::pin(signal));
        self
    }

    /// Sets how long a [graceful shutdown](Self::with_graceful_shutdown) may
    /// take; otherwise there is no limit.
    ///
    /// The requests that have not been answered then are cancelled, and their
    /// connections are closed. Handlers unwind; their destructors may await for
    /// ten seconds at most, and the future ends when they have, or then. It ends with `Ok`
    /// as well: to be cut off there is what was asked for.
    ///
    /// Set it where whoever stops the service loses patience, to some eleven seconds
    /// less than that: a handler that blocks its thread is left behind when its time
    /// to clean up is over. An event stream or a client that reads slowly may never end by
    /// itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use axum::{Router, routing::get};
    /// use greenhack::await_sync;
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// use tokio::net::{TcpListener, TcpStream};
    /// use tokio::sync::mpsc;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> std::io::Result<()> {
    /// let (begin, mut begun) = mpsc::unbounded_channel();
    /// let never = move || {
    ///     let begin = begin.clone();
    ///     greenhack::run_sync(move || {
    ///         begin.send(()).unwrap();
    ///         await_sync(std::future::pending::<()>());
    ///     })
    /// };
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let address = listener.local_addr()?;
    /// let server = greenhack::axum::serve(listener, Router::new().route("/", get(never)))
    ///     // When a request is being served.
    ///     .with_graceful_shutdown(async move { begun.recv().await.unwrap() })
    ///     .shutdown_timeout(Duration::from_millis(10));
    /// let server = tokio::spawn(server.into_future());
    ///
    /// let mut client = TcpStream::connect(address).await?;
    /// client.write_all(b"GET / HTTP/1.1\r\nHost: it\r\n\r\n").await?;
    /// assert!(server.await?.is_ok());
    /// // It has got nothing.
    /// assert!(!matches!(client.read(&mut [0]).await, Ok(1)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_timeout(mut self, limit: Duration) -> Self {
        self.shutdown_timeout = Some(limit);
        self
    }

    /// Sets the workers: their number, their names, and whether each is kept on
    /// one core. Otherwise there is one for each core, called `serve-0` and so
    /// on, and the system moves them as it likes. Give two servers of one process
    /// other names: by these [`dump`](crate::dump) tells their workers apart.
    pub fn with_workers(mut self, workers: workers::Builder) -> Self {
        self.workers = workers;
        self
    }

    /// Sets how many connections may be live at once, see
    /// [`Distributor::max_connections`].
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[track_caller]
    pub fn max_connections(mut self, count: usize) -> Self {
        self.distributor = self.distributor.max_connections(count);
        self
    }

    /// Sets when a worker counts as stalled, see [`Distributor::stall_limit`].
    pub fn stall_limit(mut self, limit: Duration) -> Self {
        self.distributor = self.distributor.stall_limit(limit);
        self
    }

    /// Returns what tells the number of connections.
    pub fn connections(&self) -> Connections<L> {
        self.distributor.connections()
    }

    /// Returns the address that the server is bound to.
    ///
    /// # Errors
    ///
    /// Those of the listener.
    pub fn local_addr(&self) -> io::Result<L::Addr> {
        self.distributor.local_addr()
    }
}

impl<L, M, S> Serve<L, M, S>
where
    L: Listener<Io: Movable>,
    L::Addr: fmt::Debug,
    M: for<'a> Service<IncomingStream<'a, Pinned<L>>, Error = Infallible, Response = S>
        + Clone
        + Send
        + 'static,
    for<'a> <M as Service<IncomingStream<'a, Pinned<L>>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    async fn run(self) -> io::Result<()> {
        let connections = self.distributor.connections();
        let (close, closed) = watch::channel(false);
        let make_service = self.make_service;
        let mut workers = self.workers.run_each(move |_| {
            let listener = connections.listener();
            let untouched: fn(&mut Connection<L::Io>) = |_| {};
            let mut closed = closed;
            let signal = async move {
                // If the sender is gone, the worker is about to end as well.
                let _ = closed.wait_for(|closed| *closed).await;
            };
            ::axum::serve(listener.tap_io(untouched), make_service)
                .with_graceful_shutdown(signal)
                .into_future()
        })?;

        let mut distribute = Box::pin(self.distributor.run());
        let mut signal = self.signal;
        let ended = poll_fn(|cx| {
            if let Some(signal) = &mut signal {
                if signal.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
            }
            // No worker ends before the signal, unless by a panic, which is
            // resumed here.
            if let Poll::Ready(results) = Pin::new(&mut workers).poll(cx) {
                return Poll::Ready(Some(results));
            }
            match distribute.as_mut().poll(cx) {
                Poll::Ready(never) => match never {},
                Poll::Pending => Poll::Pending,
            }
        })
        .await;

        // The listener first: who comes now is refused.
        drop(distribute);
        close.send_replace(true);
        let results = match (ended, self.shutdown_timeout) {
            (Some(results), _) => results,
            (None, None) => workers.await,
            (None, Some(limit)) => match timeout(limit, &mut workers).await {
                Ok(results) => results,
                Err(_) => {
                    workers.shutdown(CLEANUP).await;
                    return Ok(());
                }
            },
        };
        results.into_iter().collect()
    }
}

impl<L, M, S> IntoFuture for Serve<L, M, S>
where
    L: Listener<Io: Movable>,
    L::Addr: fmt::Debug,
    M: for<'a> Service<IncomingStream<'a, Pinned<L>>, Error = Infallible, Response = S>
        + Clone
        + Send
        + 'static,
    for<'a> <M as Service<IncomingStream<'a, Pinned<L>>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Output = io::Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<L: Listener<Io: Movable>, M, S> fmt::Debug for Serve<L, M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("distributor", &self.distributor)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .finish_non_exhaustive()
    }
}
