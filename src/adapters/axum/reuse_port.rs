//! One port, on which each worker listens with a socket of its own.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait for a worker, as tokio's own listener has it.
const BACKLOG: u32 = 1024;

/// A TCP port on which each worker listens with a socket of its own
/// (`SO_REUSEPORT`), so that the system spreads the connections.
///
/// There is nothing between the system and the workers then: no thread that
/// accepts, and no hand-over. But the system spreads by a hash of the addresses,
/// blindly. Some workers get more connections than others, one that is stuck gets
/// its share, and what waits for a worker is lost when its listener is closed. So
/// [`serve`](super::serve) and [`Distributor`](super::Distributor) are the better
/// choice unless connections are short, and accepting them is what the service
/// spends its time on.
///
/// A clone is the same port. As long as one of them is there, the system gives the
/// number to nobody who lets it choose; a listener of somebody else that asks for it is
/// refused once a worker listens.
///
/// # Platform-specific behavior
///
/// Only on Linux. Other systems take the option, and give all connections to
/// whoever listened last.
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::get};
/// use greenhack::axum::ReusePort;
/// use greenhack::{await_sync, workers};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::TcpStream;
///
/// #[greenhack::entry]
/// fn soup() -> String {
///     await_sync(tokio::task::yield_now());
///     format!("soup, by {}", std::thread::current().name().unwrap_or_default())
/// }
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// let port = ReusePort::bind(([127, 0, 0, 1], 0).into())?;
/// let address = port.local_addr();
/// let app = Router::new().route("/", get(soup));
/// let workers = workers::Builder::new()
///     .threads(2)
///     .thread_name("port")
///     .run_each(move |_worker| {
///         // At once, so that all listen when the first client comes.
///         let listener = port.listen();
///         async move { axum::serve(listener?, app).await }
///     })?;
///
/// let mut client = TcpStream::connect(address).await?;
/// client.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
/// let mut answer = String::new();
/// client.read_to_string(&mut answer).await?;
/// assert!(answer.contains("\r\n\r\nsoup, by port-"), "{answer}");
///
/// workers.shutdown(std::time::Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ReusePort {
    address: SocketAddr,
    /// Keeps the port. It does not listen, so that it gets no connections.
    _socket: Arc<TcpSocket>,
}

impl ReusePort {
    /// Takes a port. With port 0 the system chooses one.
    ///
    /// # Errors
    ///
    /// The system's: `AddrInUse` if somebody listens there already who does not
    /// share the port, or who is another user.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenhack::axum::ReusePort;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> std::io::Result<()> {
    /// let port = ReusePort::bind(([127, 0, 0, 1], 0).into())?;
    /// let address = port.local_addr();
    /// // As many as there are workers.
    /// let listeners = [port.listen()?, port.listen()?];
    /// assert!(listeners.iter().all(|listener| listener.local_addr().unwrap() == address));
    /// // Nobody gets it who does not share it.
    /// assert!(std::net::TcpListener::bind(address).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn bind(address: SocketAddr) -> io::Result<ReusePort> {
        let socket = bind(address)?;
        Ok(ReusePort {
            address: socket.local_addr()?,
            _socket: Arc::new(socket),
        })
    }

    /// Returns the address, with the port that the system has chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Listens on the port. From now on this listener gets its share of the
    /// connections, so it is called on a worker that is about to serve, in the
    /// closure of [`run_each`](crate::workers::Builder::run_each).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime that has I/O.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn listen(&self) -> io::Result<TcpListener> {
        bind(self.address)?.listen(BACKLOG)
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // As tokio's own listener does: connections of a process before this one may
    // still be ending.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}
