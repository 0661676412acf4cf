//! [`TcpConnector`]: connections to the first address that answers.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ::ureq::unversioned::transport::time::{Duration as Limit, Instant};
use ::ureq::unversioned::transport::{
    ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
};
use ::ureq::{Error, ProxyProtocol};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time;

use super::transport::{Socket, TcpTransport};
use super::wait::within;

/// How long the attempts so far have for themselves: what RFC 8305 recommends.
const HEAD_START: Duration = Duration::from_millis(250);

/// Opens tokio's sockets for ureq, and suspends meanwhile.
///
/// It is a part of [`agent`](super::agent). Use it for a chain of connectors of
/// your own.
///
/// The addresses of a host are tried in order. The next one's turn comes when one has
/// failed, or after 250 ms; those before it go on, and the first to answer is taken.
///
/// # Cancel safety
///
/// If the run is cancelled, all attempts are dropped.
///
/// # Panics
///
/// As [`agent`](super::agent).
///
/// # Errors
///
/// That of the last address, if none answers; that of a SOCKS proxy in the settings,
/// which this does not know; otherwise as [`agent`](super::agent).
///
/// # Examples
///
/// ```
/// use greenhack::ureq::{DefaultResolver, TcpConnector};
/// use ureq::Agent;
/// use ureq::config::Config;
/// use ureq::unversioned::transport::Connector;
///
/// // Without TLS, and without proxies.
/// let connector = ().chain(TcpConnector::default());
/// let agent = Agent::with_parts(Config::default(), connector, DefaultResolver::default());
/// let error = agent.get("http://127.0.0.1:9/").call().unwrap_err();
/// assert!(matches!(error, ureq::Error::Io(_)));
/// ```
#[derive(Debug, Default)]
pub struct TcpConnector(());

impl<In: Transport> Connector<In> for TcpConnector {
    type Out = Either<In, Box<dyn Transport>>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        // A proxy, or whatever comes before this, has connected already.
        if let Some(transport) = chained {
            return Ok(Some(Either::A(transport)));
        }
        refuse_socks(details)?;
        let config = details.config;
        let socket = within(left(details), async {
            let stream = first(&details.addrs).await?;
            if config.no_delay() {
                stream.set_nodelay(true)?;
            }
            Ok(Socket::new(stream))
        })?;
        (details.register_shutdown)(socket.shutdown_handle())?;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Either::B(Box::new(TcpTransport::new(
            socket, buffers,
        )))))
    }
}

/// Does not go round a proxy that this can't use.
fn refuse_socks(details: &ConnectionDetails<'_>) -> Result<(), Error> {
    match details.config.proxy() {
        Some(proxy)
            if !matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https)
                && !proxy.is_no_proxy(details.uri) =>
        {
            let why = "`greenhack::ureq` has no SOCKS; set a proxy that takes `CONNECT`, \
                       or none, with `Config::builder().proxy(None)`";
            Err(Error::Other(why.into()))
        }
        _ => Ok(()),
    }
}

/// What is left of the time to connect: a connector before this may have used some.
fn left(details: &ConnectionDetails<'_>) -> NextTimeout {
    let mut timeout = details.timeout;
    if let (Limit::Exact(after), Instant::Exact(start), Instant::Exact(now)) =
        (timeout.after, details.now, (details.current_time)())
    {
        let used = now.saturating_duration_since(start);
        timeout.after = after.saturating_sub(used).into();
    }
    timeout
}

/// Connects to the first of `addrs` that answers.
async fn first(addrs: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut rest = addrs.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failed = io::Error::from(io::ErrorKind::ConnectionRefused);
    loop {
        attempts.extend(rest.next().map(TcpStream::connect));
        let next = attempts.next();
        let ended = if rest.len() > 0 {
            time::timeout(HEAD_START, next).await
        } else {
            Ok(next.await)
        };
        match ended {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => failed = error,
            // All have failed.
            Ok(None) => return Err(failed),
            Err(_) => {}
        }
    }
}
