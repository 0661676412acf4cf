//! One listener, whose connections are handed to workers.
//!
//! ```text
//!   Distributor::run                         a worker
//!   ────────────────                         ────────
//!   accept, detach from this runtime
//!   offer it to the worker that has ───────▶ its queue ──▶ accept: attach it
//!   the fewest                                  │          to this runtime
//!                                               │ not taken within the limit:
//!                                               ▼ the worker is stalled
//!                                            the rest, for whoever comes first
//! ```
//!
//! # Invariants
//!
//! - D1 A connection that is offered, or among the rest, is so under the lock
//!   under which a worker that found nothing has left its waker; whoever adds
//!   one takes that waker. So a connection and a worker never miss each other.
//! - D2 The load of a worker counts its queue and its [`Connection`]s, each of
//!   which is counted out by its drop.
//! - D3 When the distributor is gone, nothing waits and nothing is added. The
//!   workers that wait have been woken, to see it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::ops::{Deref, DerefMut};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use ::axum::serve::Listener;
use futures::future::{Either, select};
use futures::stream::Stream;
use sealed::Detach;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::sleep;
#[cfg(feature = "tonic")]
use tonic::transport::server::Connected;

/// How long a worker may leave a connection, if nobody says it.
const STALL_LIMIT: Duration = Duration::from_millis(10);

/// Hands the connections of one listener to workers.
///
/// [`serve`](super::serve) does all of this. The parts are for a service that
/// puts something between the connection and the app, such as TLS, or that has
/// another server than axum on its [workers](crate::workers::Builder::run_each):
/// hyper and tonic take connections as well, as a stream of them.
///
/// A connection goes to the worker that has the fewest. A worker that does not
/// take it within the [stall limit](Self::stall_limit), because a handler blocks
/// it, loses what it has not taken to the others, and gets nothing more until it
/// is back.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use axum::serve::Listener;
/// use greenhack::axum::Distributor;
/// use greenhack::workers;
/// use tokio::net::{TcpListener, TcpStream};
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let address = listener.local_addr()?;
/// let distributor = Distributor::new(listener).stall_limit(Duration::from_secs(60));
/// let connections = distributor.connections();
/// let workers = workers::Builder::new().threads(2).run_each(move |_worker| {
///     // To register at once, not when the future is polled.
///     let mut listener = connections.listener();
///     async move {
///         let (stream, client) = listener.accept().await;
///         drop(stream);
///         client
///     }
/// })?;
/// tokio::spawn(distributor.run());
/// let clients = [TcpStream::connect(address).await?, TcpStream::connect(address).await?];
/// let mut served = workers.await;
/// // Each worker has got one of the two.
/// let mut addresses = [clients[0].local_addr()?, clients[1].local_addr()?];
/// served.sort();
/// addresses.sort();
/// assert_eq!(served, addresses);
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is accepted until `run` is awaited"]
pub struct Distributor<L: Listener<Io: Movable>> {
    listener: L,
    open: Open<L>,
    max_connections: usize,
    stall_limit: Duration,
}

impl<L: Listener<Io: Movable>> Distributor<L> {
    /// Makes a distributor of what `listener` accepts: a tokio `TcpListener` or
    /// `UnixListener`, or one of them with something added.
    pub fn new(listener: L) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                seats: Vec::new(),
                next_id: 0,
                rest: VecDeque::new(),
                closed: false,
            }),
            total: Arc::default(),
            offered: Notify::new(),
        });
        Distributor {
            listener,
            open: Open(Connections(shared)),
            max_connections: usize::MAX,
            stall_limit: STALL_LIMIT,
        }
    }

    /// Sets how many connections may be live at once; otherwise there is no
    /// limit.
    ///
    /// When there are so many, no more are accepted until one ends. The system
    /// keeps those that come meanwhile waiting, as many as the backlog of the
    /// listener allows.
    ///
    /// # Panics
    ///
    /// If it is 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use axum::serve::Listener;
    /// use greenhack::axum::Distributor;
    /// use greenhack::workers;
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// use tokio::net::{TcpListener, TcpStream};
    /// use tokio::task::spawn_local;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> std::io::Result<()> {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let distributor = Distributor::new(listener).max_connections(1);
    /// let (address, connections) = (distributor.local_addr()?, distributor.connections());
    /// let _workers = workers::Builder::new().threads(2).run_each({
    ///     let connections = connections.clone();
    ///     move |_worker| {
    ///         let mut listener = connections.listener();
    ///         async move {
    ///             loop {
    ///                 let (mut stream, _address) = listener.accept().await;
    ///                 let greeting = connections.live() as u8;
    ///                 spawn_local(async move {
    ///                     stream.write_u8(greeting).await.unwrap();
    ///                     // Until the client goes.
    ///                     let _ = stream.read_u8().await;
    ///                 });
    ///             }
    ///         }
    ///     }
    /// })?;
    /// tokio::spawn(distributor.run());
    ///
    /// // The system lets the second connect, but it is not accepted before the first has gone.
    /// let mut first = TcpStream::connect(address).await?;
    /// let mut second = TcpStream::connect(address).await?;
    /// assert_eq!(first.read_u8().await?, 1);
    /// assert_eq!(connections.live(), 1);
    /// drop(first);
    /// assert_eq!(second.read_u8().await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn max_connections(mut self, count: usize) -> Self {
        assert!(
            count > 0,
            "there must be room for at least one connection; write `.max_connections(1)`"
        );
        self.max_connections = count;
        self
    }

    /// Sets how long a worker may leave a connection that is offered to it
    /// before it counts as stalled; otherwise 10 ms.
    pub fn stall_limit(mut self, limit: Duration) -> Self {
        self.stall_limit = limit;
        self
    }

    /// Returns the workers' side.
    pub fn connections(&self) -> Connections<L> {
        self.open.0.clone()
    }

    /// Returns the address that the listener is bound to.
    ///
    /// # Errors
    ///
    /// Those of the listener.
    pub fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }

    /// Accepts connections and hands them out, for ever.
    ///
    /// It runs on any runtime that has I/O and time. The connections move to
    /// those of the workers.
    ///
    /// # Cancel safety
    ///
    /// When it is dropped, the listener is closed, and so are the connections
    /// that no worker has taken yet. Those that have been taken go on.
    pub async fn run(self) -> Infallible {
        let Distributor {
            mut listener,
            open,
            max_connections,
            stall_limit,
        } = self;
        let shared = &*open.0.0;
        let accept_all = async {
            loop {
                shared.total.has_room(max_connections).await;
                let (io, addr) = listener.accept().await;
                // One that can't be moved is closed.
                if let Ok(detached) = io.detach() {
                    shared.offer(Detached {
                        io: detached,
                        addr,
                        count: Count::new(shared.total.clone()),
                    });
                }
            }
        };
        let (accept_all, watch) = (pin!(accept_all), pin!(shared.watch(stall_limit)));
        match select(accept_all, watch).await {
            Either::Left((never, _)) | Either::Right((never, _)) => never,
        }
    }
}

impl<L: Listener<Io: Movable>> fmt::Debug for Distributor<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distributor")
            .field("max_connections", &self.max_connections)
            .field("stall_limit", &self.stall_limit)
            .finish_non_exhaustive()
    }
}

/// Closes what waits when the distributor is gone.
struct Open<L: Listener<Io: Movable>>(Connections<L>);

impl<L: Listener<Io: Movable>> Drop for Open<L> {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.closed = true;
        let rest = mem::take(&mut state.rest);
        let queues: Vec<_> = state
            .seats
            .iter_mut()
            .map(|seat| mem::take(&mut seat.queue))
            .collect();
        state.wake_all();
        drop((rest, queues));
    }
}

/// The connections of a [`Distributor`], as the workers and metrics see them.
///
/// It can be cloned, and sent to where it is needed.
///
/// # Examples
///
/// ```
/// use axum::serve::Listener;
/// use greenhack::axum::Distributor;
/// use greenhack::workers;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::{TcpListener, TcpStream};
/// use tokio::sync::watch;
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// let distributor = Distributor::new(TcpListener::bind("127.0.0.1:0").await?);
/// let address = distributor.local_addr()?;
/// let connections = distributor.connections();
/// let (close, closed) = watch::channel(false);
/// let workers = workers::Builder::new().threads(2).run_each({
///     let connections = connections.clone();
///     move |_worker| {
///         let (mut listener, mut closed) = (connections.listener(), closed.clone());
///         async move {
///             let (mut stream, _address) = listener.accept().await;
///             stream.write_all(b"!").await.unwrap();
///             closed.wait_for(|closed| *closed).await.unwrap();
///         }
///     }
/// })?;
/// let distribute = tokio::spawn(distributor.run());
///
/// let mut clients = [TcpStream::connect(address).await?, TcpStream::connect(address).await?];
/// for client in &mut clients {
///     client.read_u8().await?;
/// }
/// assert_eq!(connections.live(), 2);
/// assert_eq!(connections.live_per_worker(), [1, 1]);
/// close.send_replace(true);
/// workers.await;
/// assert_eq!(connections.live(), 0);
/// # distribute.abort();
/// # Ok(())
/// # }
/// ```
pub struct Connections<L: Listener<Io: Movable>>(Arc<Shared<L>>);

impl<L: Listener<Io: Movable>> Connections<L> {
    /// Registers the caller as one who takes connections, until the listener
    /// that is returned is dropped.
    ///
    /// From now on connections are offered to it, so make it where it is going
    /// to be used, and use it soon: in the closure of
    /// [`run_each`](crate::workers::Builder::run_each).
    pub fn listener(&self) -> WorkerListener<L> {
        let load = Arc::new(AtomicUsize::new(0));
        let mut state = self.0.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.seats.push(Seat {
            id,
            load: load.clone(),
            queue: VecDeque::new(),
            waker: None,
            is_watched: false,
            is_stalled: false,
        });
        drop(state);
        WorkerListener {
            shared: self.0.clone(),
            id,
            yields: false,
        }
    }

    /// Returns how many connections have been accepted and have not ended.
    pub fn live(&self) -> usize {
        self.0.total.live.load(Ordering::Relaxed)
    }

    /// Returns how many of them each worker has, in the order in which they
    /// have registered.
    pub fn live_per_worker(&self) -> Vec<usize> {
        let state = self.0.lock();
        state.seats.iter().map(Seat::load).collect()
    }
}

impl<L: Listener<Io: Movable>> Clone for Connections<L> {
    fn clone(&self) -> Self {
        Connections(self.0.clone())
    }
}

impl<L: Listener<Io: Movable>> fmt::Debug for Connections<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("live", &self.live())
            .finish_non_exhaustive()
    }
}

struct Shared<L: Listener<Io: Movable>> {
    state: Mutex<State<L>>,
    total: Arc<Total>,
    /// Told when a worker has been offered a connection.
    offered: Notify,
}

struct State<L: Listener<Io: Movable>> {
    seats: Vec<Seat<L>>,
    next_id: usize,
    /// What stalled workers have left, and what came while all were stalled.
    rest: VecDeque<Detached<L>>,
    closed: bool,
}

/// A worker, in the eyes of the distributor.
struct Seat<L: Listener<Io: Movable>> {
    id: usize,
    load: Arc<AtomicUsize>,
    queue: VecDeque<Detached<L>>,
    waker: Option<Waker>,
    /// Set when the clock for its queue starts; cleared when it comes.
    is_watched: bool,
    /// Set when it has not come in time; cleared when it comes.
    is_stalled: bool,
}

impl<L: Listener<Io: Movable>> Seat<L> {
    fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }
}

/// A connection on its way.
struct Detached<L: Listener<Io: Movable>> {
    io: <L::Io as Detach>::Detached,
    addr: L::Addr,
    count: Count,
}

impl<L: Listener<Io: Movable>> Shared<L> {
    fn lock(&self) -> MutexGuard<'_, State<L>> {
        // Nothing in here panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a connection to the worker that has the fewest.
    fn offer(&self, mut connection: Detached<L>) {
        let mut state = self.lock();
        let fewest = state
            .seats
            .iter_mut()
            .filter(|seat| !seat.is_stalled)
            .min_by_key(|seat| seat.load());
        let Some(seat) = fewest else {
            state.rest.push_back(connection);
            return state.wake_all();
        };
        connection.count.move_to(Some(&seat.load));
        seat.queue.push_back(connection);
        let waker = seat.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        self.offered.notify_one();
    }

    /// Takes from workers that are stalled what they have not taken.
    async fn watch(&self, limit: Duration) -> Infallible {
        loop {
            self.offered.notified().await;
            while self.lock().start_clocks() {
                sleep(limit).await;
                self.lock().stop_clocks();
            }
        }
    }

    /// Takes a connection for a worker, and tells whether it is of the rest.
    /// `None` if none will come.
    fn poll_take(&self, id: usize, cx: &mut Context<'_>) -> Poll<Option<(Detached<L>, bool)>> {
        // What wakers do when they are cloned and dropped is not for the lock.
        let waker = cx.waker().clone();
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(seat) = state.seats.iter_mut().find(|seat| seat.id == id) else {
            unreachable!("it is there as long as its listener");
        };
        seat.is_watched = false;
        seat.is_stalled = false;
        if let Some(connection) = seat.queue.pop_front() {
            return Poll::Ready(Some((connection, false)));
        }
        if let Some(mut connection) = state.rest.pop_front() {
            connection.count.move_to(Some(&seat.load));
            return Poll::Ready(Some((connection, true)));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        let before = seat.waker.replace(waker);
        drop(guard);
        drop(before);
        Poll::Pending
    }
}

impl<L: Listener<Io: Movable>> State<L> {
    /// Starts the clocks of the workers that have something to take; tells
    /// whether there are any.
    fn start_clocks(&mut self) -> bool {
        for seat in &mut self.seats {
            seat.is_watched = !seat.queue.is_empty();
        }
        self.seats.iter().any(|seat| seat.is_watched)
    }
}

/// What can be done with the lock held at first.
trait Unlocking {
    /// Wakes all workers that wait.
    fn wake_all(self);

    /// Finds the workers that have not come since their clocks were started.
    fn stop_clocks(self);
}

impl<L: Listener<Io: Movable>> Unlocking for MutexGuard<'_, State<L>> {
    fn wake_all(mut self) {
        let wakers: Vec<_> = self
            .seats
            .iter_mut()
            .filter_map(|seat| seat.waker.take())
            .collect();
        drop(self);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn stop_clocks(mut self) {
        let State { seats, rest, .. } = &mut *self;
        let before = rest.len();
        for seat in seats.iter_mut().filter(|seat| seat.is_watched) {
            seat.is_watched = false;
            seat.is_stalled = true;
            for mut connection in seat.queue.drain(..) {
                connection.count.move_to(None);
                rest.push_back(connection);
            }
        }
        if rest.len() > before {
            self.wake_all();
        }
    }
}

/// A worker's listener: what a [`Distributor`] hands to it.
///
/// It is to be used on the worker, in one of two ways:
///
/// - as a [`Listener`] for [`axum::serve`](::axum::serve()). Its `accept` waits for
///   ever when the distributor is gone. It does not know its address; the
///   distributor does.
/// - as a [`Stream`] of connections for other servers: hyper's, or that of tonic,
///   whose `Connected` a [`Connection`] implements with the feature `tonic`. It
///   never yields an error, as accepting is not its business, and ends when the
///   distributor is gone: then the server lets its connections come to an end.
///
/// # Cancel safety
///
/// A connection that is not returned, because an `accept` is dropped, stays for
/// the next.
///
/// # Examples
///
/// hyper, with plain handlers in place:
///
/// ```
/// use std::convert::Infallible;
///
/// use futures::StreamExt;
/// use greenhack::axum::Distributor;
/// use greenhack::{await_sync, workers};
/// use hyper::server::conn::http1;
/// use hyper::{Response, service::service_fn};
/// use hyper_util::rt::TokioIo;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::{TcpListener, TcpStream};
/// use tokio::task::{spawn_local, yield_now};
///
/// fn soup() -> Result<Response<String>, Infallible> {
///     await_sync(yield_now());
///     Ok(Response::new("soup".to_owned()))
/// }
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let address = listener.local_addr()?;
/// let distributor = Distributor::new(listener);
/// let connections = distributor.connections();
/// let workers = workers::Builder::new().threads(2).run_each(move |_worker| {
///     let mut connections = connections.listener();
///     async move {
///         let mut served = 0;
///         while let Some(Ok(connection)) = connections.next().await {
///             let soup = service_fn(|_request| greenhack::run_sync_local(soup));
///             spawn_local(http1::Builder::new().serve_connection(TokioIo::new(connection), soup));
///             served += 1;
///         }
///         served
///     }
/// })?;
/// let distribute = tokio::spawn(distributor.run());
///
/// let mut client = TcpStream::connect(address).await?;
/// client.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
/// let mut answer = String::new();
/// client.read_to_string(&mut answer).await?;
/// assert!(answer.ends_with("\r\n\r\nsoup"), "{answer}");
///
/// distribute.abort();
/// assert_eq!(workers.await.iter().sum::<i32>(), 1);
/// # Ok(())
/// # }
/// ```
pub struct WorkerListener<L: Listener<Io: Movable>> {
    shared: Arc<Shared<L>>,
    id: usize,
    /// Whether others are to have their turn first.
    yields: bool,
}

/// What an `accept` returns.
type Accepted<L> = (Connection<<L as Listener>::Io>, <L as Listener>::Addr);

impl<L: Listener<Io: Movable>> WorkerListener<L> {
    /// Takes the next connection; `None` if none will come.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<L>>> {
        loop {
            // tokio keeps the waker of who yields, so that the future can go.
            if mem::take(&mut self.yields) && pin!(yield_now()).poll(cx).is_pending() {
                return Poll::Pending;
            }
            let Some((connection, is_of_the_rest)) = ready!(self.shared.poll_take(self.id, cx))
            else {
                return Poll::Ready(None);
            };
            // The rest is for all that come.
            self.yields = is_of_the_rest;
            let Detached { io, addr, count } = connection;
            // One for which this runtime has no room is closed.
            if let Ok(io) = Detach::attach(io) {
                let connection = Connection { io, _count: count };
                return Poll::Ready(Some((connection, addr)));
            }
        }
    }
}

impl<L: Listener<Io: Movable>> Listener for WorkerListener<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        poll_fn(|cx| match self.poll_accept(cx) {
            Poll::Ready(Some(accepted)) => Poll::Ready(accepted),
            // A listener has no end.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn local_addr(&self) -> io::Result<L::Addr> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a worker's listener has no address; ask the `Distributor`",
        ))
    }
}

impl<L: Listener<Io: Movable>> Stream for WorkerListener<L> {
    type Item = io::Result<Connection<L::Io>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = ready!(self.poll_accept(cx));
        Poll::Ready(accepted.map(|(connection, _addr)| Ok(connection)))
    }
}

impl<L: Listener<Io: Movable>> Drop for WorkerListener<L> {
    fn drop(&mut self) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let Some(index) = state.seats.iter().position(|seat| seat.id == self.id) else {
            return;
        };
        let mut seat = state.seats.remove(index);
        for mut connection in seat.queue.drain(..) {
            connection.count.move_to(None);
            state.rest.push_back(connection);
        }
        guard.wake_all();
        drop(seat);
    }
}

impl<L: Listener<Io: Movable>> fmt::Debug for WorkerListener<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerListener").finish_non_exhaustive()
    }
}

/// All connections that have been accepted and have not ended.
#[derive(Default)]
struct Total {
    live: AtomicUsize,
    /// Told when one ends.
    ended: Notify,
}

impl Total {
    async fn has_room(&self, most: usize) {
        while self.live.load(Ordering::Relaxed) >= most {
            self.ended.notified().await;
        }
    }
}

/// Counts a connection, wherever it is, until it is dropped.
struct Count {
    total: Arc<Total>,
    load: Option<Arc<AtomicUsize>>,
}

impl Count {
    fn new(total: Arc<Total>) -> Count {
        total.live.fetch_add(1, Ordering::Relaxed);
        Count { total, load: None }
    }

    /// Counts it as one of a worker's, and no more as that of another.
    fn move_to(&mut self, load: Option<&Arc<AtomicUsize>>) {
        if let Some(load) = load {
            load.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(before) = mem::replace(&mut self.load, load.cloned()) {
            before.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.move_to(None);
        self.total.live.fetch_sub(1, Ordering::Relaxed);
        self.total.ended.notify_one();
    }
}

/// A connection that a worker has taken.
///
/// It reads and writes as the stream does that it [derefs](Deref) to, and is
/// counted until it is dropped.
///
/// # Examples
///
/// See [`Distributor`].
#[derive(Debug)]
pub struct Connection<Io> {
    // Closed before it is counted out.
    io: Io,
    _count: Count,
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Count").finish_non_exhaustive()
    }
}

impl<Io> Deref for Connection<Io> {
    type Target = Io;

    fn deref(&self) -> &Io {
        &self.io
    }
}

impl<Io> DerefMut for Connection<Io> {
    fn deref_mut(&mut self) -> &mut Io {
        &mut self.io
    }
}

#[cfg(feature = "tonic")]
impl<Io: Connected> Connected for Connection<Io> {
    type ConnectInfo = Io::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Connection<Io> {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Connection<Io> {
    #[inline]
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    #[inline]
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// A stream that can move to the runtime of another thread.
///
/// Implemented for tokio's `TcpStream` and `UnixStream`, and for nothing else: a
/// stream of TLS can't leave the runtime of the stream below it, and is made on
/// the worker.
///
/// # Examples
///
/// An app behind a proxy, on a Unix socket:
///
/// ```
/// # #[cfg(unix)]
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// use axum::{Router, routing::get};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::{UnixListener, UnixStream};
///
/// # let path = std::env::temp_dir().join(format!("greenhack-movable-{}", std::process::id()));
/// let listener = UnixListener::bind(&path)?;
/// let app = Router::new().route("/", get(|| greenhack::run_sync(|| "soup")));
/// let server = tokio::spawn(greenhack::axum::serve(listener, app).into_future());
///
/// let mut proxy = UnixStream::connect(&path).await?;
/// proxy.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
/// let mut answer = String::new();
/// proxy.read_to_string(&mut answer).await?;
/// assert!(answer.ends_with("\r\n\r\nsoup"), "{answer}");
/// # server.abort();
/// # std::fs::remove_file(path)
/// # }
/// # #[cfg(not(unix))]
/// # fn main() {}
/// ```
pub trait Movable: sealed::Detach {}

impl Movable for TcpStream {}

#[cfg(unix)]
impl Movable for UnixStream {}

mod sealed {
    use std::io;

    use tokio::net::TcpStream;
    #[cfg(unix)]
    use tokio::net::UnixStream;

    /// A stream without the runtime that it was registered with.
    #[allow(unreachable_pub, reason = "it seals a public trait")]
    pub trait Detach: Sized {
        type Detached: Send;

        fn detach(self) -> io::Result<Self::Detached>;

        fn attach(detached: Self::Detached) -> io::Result<Self>;
    }

    impl Detach for TcpStream {
        type Detached = std::net::TcpStream;

        fn detach(self) -> io::Result<Self::Detached> {
            self.into_std()
        }

        fn attach(detached: Self::Detached) -> io::Result<Self> {
            TcpStream::from_std(detached)
        }
    }

    #[cfg(unix)]
    impl Detach for UnixStream {
        type Detached = std::os::unix::net::UnixStream;

        fn detach(self) -> io::Result<Self::Detached> {
            self.into_std()
        }

        fn attach(detached: Self::Detached) -> io::Result<Self> {
            UnixStream::from_std(detached)
        }
    }
}
