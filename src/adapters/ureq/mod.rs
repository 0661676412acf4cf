//! The plain HTTP client [ureq](::ureq), on tokio's sockets.
//!
//! [`agent()`] makes an ordinary [`ureq::Agent`](::ureq::Agent): the requests, the pool,
//! redirects, bodies and TLS are ureq's own. Only what waits is not: names are looked
//! up, and sockets connect, read and write, through [`await_sync`](crate::await_sync).
//! In a run a request suspends; on a thread that may block it blocks.
//!
//! ureq itself is a dependency of yours as well, for its types and for its features
//! (`json`, `gzip`, `cookies`, ...): `ureq = { version = "3.5", features = ["json"] }`.
//!
//! # What works
//!
//! | | |
//! |---|---|
//! | timeouts | all of them, by tokio's clock, as [`Error::Timeout`](::ureq::Error::Timeout) of the right kind |
//! | TLS | ureq's rustls, with the settings of [`TlsConfig`](::ureq::tls::TlsConfig). It is computed on the run's stack, and fits 256 KiB |
//! | several addresses | one after the other, and the next after 250 ms without waiting for those before it |
//! | proxies | those that take `CONNECT`, `NO_PROXY`, the variables of the environment |
//! | [`Agent::shutdown`](::ureq::Agent::shutdown) | requests that wait fail at once |
//!
//! | what does not | it gives |
//! |---|---|
//! | SOCKS proxies | [`Error::Other`](::ureq::Error::Other) |
//! | native-tls | [`Error::TlsRequired`](::ureq::Error::TlsRequired); put its connector behind [`TcpConnector`] |
//! | Unix sockets, HTTP/2 | ureq has neither |
//!
//! # Threads and runtimes
//!
//! An agent can be shared by all threads and runtimes of the process. A socket of
//! tokio is served by the runtime in which it was opened. So a connection that is
//! used in another runtime, from the pool or with a response that went there, moves
//! to that one first. It is as good as new if the former runtime is idle, or gone.
//!
//! The runtime must have its I/O driver and its timer (`enable_all`).
//!
//! # Cancellation
//!
//! A request whose run is cancelled unwinds, wherever it waits. Its connection is
//! closed, and never goes back to the pool; what the server has made of the request is
//! unknown. The agent is as good as before: ureq holds none of its locks while it
//! waits. The destructor of something that makes a request while a cancellation unwinds
//! is given the [`cleanup_budget`](crate::Builder::cleanup_budget), and then an
//! error.
//!
//! # Errors
//!
//! In async code a request does not block the thread, but fails with
//! [`Error::Other`](::ureq::Error::Other), which says what to write. It is an error
//! instead of a panic because ureq is between you and the wait, and a panic could not
//! name your line.
//!
//! # Examples
//!
//! Two requests at once, from a plain function, on the thread that also answers them:
//!
//! ```
//! use axum::{Router, extract::Path, routing::get};
//! use greenhack::{join, run_sync};
//! use tokio::net::TcpListener;
//! use ureq::Agent;
//!
//! fn price(agent: &Agent, market: &str, dish: &str) -> Result<String, ureq::Error> {
//!     let mut response = agent.get(format!("{market}/{dish}")).call()?;
//!     response.body_mut().read_to_string()
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let app = Router::new().route("/{dish}", get(|Path(dish): Path<String>| async { dish + ": 3" }));
//! let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
//! let market = format!("http://{}", listener.local_addr().unwrap());
//! tokio::spawn(axum::serve(listener, app).into_future());
//!
//! let agent = greenhack::ureq::agent();
//! let prices = run_sync(move || {
//!     join(|| price(&agent, &market, "soup"), || price(&agent, &market, "rice"))
//! });
//! let (soup, rice) = prices.await;
//! assert_eq!((&*soup.unwrap(), &*rice.unwrap()), ("soup: 3", "rice: 3"));
//! # });
//! ```
#![forbid(unsafe_code)]

mod connect;
mod resolve;
mod transport;
mod wait;

use ::ureq::Agent;
use ::ureq::config::Config;
use ::ureq::unversioned::transport::{ConnectProxyConnector, Connector, RustlsConnector};

pub use connect::TcpConnector;
pub use resolve::DefaultResolver;

/// Makes an agent with ureq's defaults, whose requests suspend.
///
/// It has a pool of its own: make one, and clone it. To set timeouts, certificates
/// or the size of the pool, use [`agent_with`].
///
/// # Cancel safety
///
/// See the [module](self#cancellation).
///
/// # Panics
///
/// A request panics if the current runtime has no I/O driver, or no timer when it
/// needs one, and in [`no_suspend`](crate::no_suspend).
///
/// # Errors
///
/// See the [module](self#errors).
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::get};
/// use tokio::net::TcpListener;
///
/// fn dish(agent: &ureq::Agent, kitchen: &str) -> Result<String, ureq::Error> {
///     agent.get(kitchen).call()?.body_mut().read_to_string()
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let kitchen = Router::new().route("/", get(|| async { "soup" }));
/// let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
/// let url = format!("http://{}/", listener.local_addr().unwrap());
/// tokio::spawn(axum::serve(listener, kitchen).into_future());
///
/// // The kitchen is served by the thread that asks it.
/// let agent = greenhack::ureq::agent();
/// let dish = greenhack::run_sync(move || dish(&agent, &url));
/// assert_eq!(dish.await.unwrap(), "soup");
/// # });
/// ```
pub fn agent() -> Agent {
    agent_with(Config::default())
}

/// Makes an agent with settings of yours, whose requests suspend.
///
/// It is [`Agent::with_parts`] with [`TcpConnector`] between the connectors of ureq for
/// proxies and for TLS, and with [`DefaultResolver`]. For other parts, call that.
///
/// # Cancel safety
///
/// As [`agent`].
///
/// # Panics
///
/// As [`agent`].
///
/// # Errors
///
/// As [`agent`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio::net::TcpListener;
/// use ureq::{Agent, Error, Timeout};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
/// let config = Agent::config_builder().timeout_global(Some(Duration::from_secs(9)));
/// let agent = greenhack::ureq::agent_with(config.build());
///
/// // Nobody ever accepts.
/// let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
/// let url = format!("http://{}/", listener.local_addr().unwrap());
/// let error = greenhack::run_sync(move || agent.get(url).call().unwrap_err()).await;
/// assert!(matches!(error, Error::Timeout(Timeout::Global)));
/// # });
/// ```
pub fn agent_with(config: Config) -> Agent {
    let connector =
        ().chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(RustlsConnector::default());
    Agent::with_parts(config, connector, DefaultResolver::default())
}
