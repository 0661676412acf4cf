//! Web servers on loopback, which count their connections.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::serve::Listener;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Settings that go by no variable of the environment.
pub fn config() -> ureq::config::ConfigBuilder<ureq::typestate::AgentScope> {
    ureq::Agent::config_builder().proxy(None)
}

/// A client with these settings.
pub fn agent() -> ureq::Agent {
    greenhack::ureq::agent_with(config().build())
}

/// The plain code of most tests.
pub fn get(agent: &ureq::Agent, url: &str) -> Result<String, ureq::Error> {
    agent.get(url).call()?.body_mut().read_to_string()
}

/// How many connections there were, and are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    pub accepted: usize,
    pub open: usize,
}

/// A server of axum, as tasks of the current runtime.
pub struct Server {
    pub address: SocketAddr,
    scheme: &'static str,
    connections: watch::Receiver<Connections>,
}

impl Server {
    pub async fn start(router: Router) -> Server {
        Server::start_with(router, None).await
    }

    /// A server with TLS, and its certificate.
    pub async fn start_tls(router: Router) -> (Server, Vec<u8>) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(cert.der().to_vec())], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = Server::start_with(router, Some(acceptor)).await;
        (server, cert.der().to_vec())
    }

    async fn start_with(router: Router, tls: Option<TlsAcceptor>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (count, connections) = watch::channel(Connections::default());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = Counting {
            listener,
            tls,
            count: Arc::new(count),
        };
        tokio::spawn(axum::serve(listener, router).into_future());
        Server {
            address,
            scheme,
            connections,
        }
    }

    pub fn url(&self, path: &str) -> String {
        let host = match self.scheme {
            "https" => "localhost",
            _ => "127.0.0.1",
        };
        format!("{}://{host}:{}{path}", self.scheme, self.address.port())
    }

    pub fn connections(&self) -> Connections {
        *self.connections.borrow()
    }

    /// Waits until so many connections are open.
    pub async fn until_open(&self, open: usize) {
        let mut connections = self.connections.clone();
        connections.wait_for(|now| now.open == open).await.unwrap();
    }
}

struct Counting {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    count: Arc<watch::Sender<Connections>>,
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Listener for Counting {
    type Io = Counted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Counted, SocketAddr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            let open = Open::new(self.count.clone());
            let stream: Box<dyn Stream> = match &self.tls {
                None => Box::new(stream),
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => Box::new(stream),
                    Err(_) => continue,
                },
            };
            return (
                Counted {
                    stream,
                    _open: open,
                },
                address,
            );
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

struct Open(Arc<watch::Sender<Connections>>);

impl Open {
    fn new(count: Arc<watch::Sender<Connections>>) -> Open {
        count.send_modify(|now| {
            now.accepted += 1;
            now.open += 1;
        });
        Open(count)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|now| now.open -= 1);
    }
}

/// A connection that is counted while it is open.
pub struct Counted {
    stream: Box<dyn Stream>,
    _open: Open,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A socket that listens, and its address as a URL, for servers that misbehave.
pub async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    (listener, url)
}

/// Reads a request up to the empty line behind its header.
pub async fn read_header(stream: &mut TcpStream) -> String {
    let mut header = Vec::new();
    while !header.ends_with(b"\r\n\r\n") {
        header.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(header).unwrap()
}

/// Answers with a body that has its length before it.
pub async fn answer(stream: &mut TcpStream, body: &str) {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
}
