//! [`DefaultResolver`]: names, looked up by tokio.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use ::ureq::Error;
use ::ureq::config::Config;
use ::ureq::http::Uri;
use ::ureq::unversioned::resolver::{self, ArrayVec, ResolvedSocketAddrs, Resolver};
use ::ureq::unversioned::transport::NextTimeout;
use tokio::net::lookup_host;

use super::wait::within;

/// Looks names up with [`tokio::net::lookup_host`], and suspends meanwhile.
///
/// It is a part of [`agent`](super::agent). Use it with other connectors, or a
/// [`Resolver`] of yours in its place; see [`TcpConnector`](super::TcpConnector).
///
/// # Cancel safety
///
/// If the run is cancelled, the lookup ends unheard, on a blocking thread of tokio.
///
/// # Errors
///
/// As [`agent`](super::agent).
///
/// # Examples
///
/// ```
/// use greenhack::ureq::DefaultResolver;
/// use ureq::config::Config;
/// use ureq::unversioned::resolver::Resolver;
/// use ureq::unversioned::transport::NextTimeout;
///
/// let uri = "http://127.0.0.1:8080/menu".parse().unwrap();
/// let found = DefaultResolver::default()
///     .resolve(&uri, &Config::default(), NextTimeout::default())
///     .unwrap();
/// assert_eq!(found[..], ["127.0.0.1:8080".parse().unwrap()]);
/// ```
#[derive(Debug, Default)]
pub struct DefaultResolver(());

impl Resolver for DefaultResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri
            .scheme()
            .zip(uri.authority())
            .and_then(|(scheme, authority)| {
                resolver::DefaultResolver::host_and_port(scheme, authority)
            })
            .ok_or_else(|| Error::BadUri(uri.to_string()))?;
        let found: Vec<SocketAddr> =
            within(timeout, async { Ok(lookup_host(host).await?.collect()) })?;
        let wanted = config.ip_family();
        let addrs = filled(self.empty(), wanted.keep_wanted(found.into_iter()));
        if addrs.is_empty() {
            return Err(Error::HostNotFound);
        }
        Ok(addrs)
    }
}

/// Puts in as many as there is room for.
fn filled<const N: usize>(
    mut addrs: ArrayVec<SocketAddr, N>,
    found: impl Iterator<Item = SocketAddr>,
) -> ArrayVec<SocketAddr, N> {
    for addr in found.take(N) {
        addrs.push(addr);
    }
    addrs
}
