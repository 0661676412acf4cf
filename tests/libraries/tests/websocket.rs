//! Websockets of tungstenite, as the cookbook has them.

#[path = "support/server.rs"]
mod server;
#[path = "../../support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::join_all;
use greenhack::io::SyncIoBridge;
use greenhack::{await_sync, run_sync, run_sync_local};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use server::Server;
use support::{current_thread, in_each_place, signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast::{Receiver, Sender};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tungstenite::protocol::Role;
use tungstenite::{Error, Message, WebSocket};

/// The connection, and the news that came meanwhile.
struct Line<S = TokioIo<Upgraded>> {
    stream: S,
    news: Receiver<String>,
    heard: VecDeque<String>,
}

impl<S: AsyncReadExt + Unpin> Read for Line<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        await_sync(async {
            tokio::select! {
                read = self.stream.read(buf) => read,
                news = self.news.recv() => {
                    self.heard.extend(news.ok());
                    Err(io::ErrorKind::WouldBlock.into())
                }
            }
        })
    }
}

impl<S: AsyncWriteExt + Unpin> Write for Line<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        await_sync(self.stream.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        await_sync(self.stream.flush())
    }
}

fn chat(mut socket: WebSocket<Line>, room: &Sender<String>) -> tungstenite::Result<()> {
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => _ = room.send(text.to_string()),
            Ok(_) => {}
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(Error::ConnectionClosed) => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(news) = socket.get_mut().heard.pop_front() {
            socket.send(Message::text(news))?;
        }
    }
}

/// Where all meet, and what a test has to know of their runs.
#[derive(Clone)]
struct Room {
    news: Sender<String>,
    /// How each run ended; `None` if it unwound.
    ends: mpsc::UnboundedSender<Option<tungstenite::Result<()>>>,
    runs: Arc<Mutex<Vec<AbortHandle>>>,
}

struct End(Room, Option<tungstenite::Result<()>>);

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.0.ends.send(self.1.take());
    }
}

async fn join(State(room): State<Room>, request: Request) -> Response {
    let mut request = request.map(|_body| ());
    let upgraded = hyper::upgrade::on(&mut request);
    let response = match tungstenite::handshake::server::create_response(&request) {
        Ok(response) => response,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let runs = room.runs.clone();
    let run = tokio::spawn(run_sync(move || {
        let Ok(upgraded) = await_sync(upgraded) else {
            return;
        };
        let mut end = End(room.clone(), None);
        let line = Line {
            stream: TokioIo::new(upgraded),
            news: room.news.subscribe(),
            heard: VecDeque::new(),
        };
        let socket = WebSocket::from_raw_socket(line, Role::Server, None);
        end.1 = Some(chat(socket, &room.news));
    }));
    runs.lock().unwrap().push(run.abort_handle());
    response.map(|()| Body::empty())
}

type Ends = mpsc::UnboundedReceiver<Option<tungstenite::Result<()>>>;

fn room(capacity: usize) -> (Router, Room, Ends) {
    let (ends, ended) = mpsc::unbounded_channel();
    let room = Room {
        news: Sender::new(capacity),
        ends,
        runs: Arc::default(),
    };
    let app = Router::new().route("/", get(join)).with_state(room.clone());
    (app, room, ended)
}

type Client = WebSocket<SyncIoBridge<TcpStream>>;

/// A plain client, which has said something and heard it.
fn connect(server: &str) -> Client {
    let stream = SyncIoBridge::new(await_sync(TcpStream::connect(server)).unwrap());
    let (mut socket, _) = tungstenite::client(format!("ws://{server}/"), stream).unwrap();
    socket.send(Message::text("hello")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("hello"));
    socket
}

#[test]
fn smoke() {
    in_each_place(|place| async move {
        let (app, _, mut ended) = room(16);
        let server = Server::start(app).await;
        let address = server.address.to_string();
        let client = place.spawn(move || {
            let mut socket = connect(&address);
            socket.send(Message::text("soup")).unwrap();
            assert_eq!(socket.read().unwrap(), Message::text("soup"));
            socket.close(None).unwrap();
            assert!(matches!(socket.read(), Ok(Message::Close(_))));
            assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
        });
        client.await.unwrap();
        assert!(matches!(ended.recv().await.unwrap(), Some(Ok(()))));
        server.until_open(0).await;
    });
}

#[test]
fn a_client_goes_through_tls() {
    current_thread().block_on(async {
        let (app, _, mut ended) = room(16);
        let (server, certificate) = Server::start_tls(app).await;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(certificate)).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let address = server.address;
        run_sync_local(move || {
            let name = "localhost".try_into().unwrap();
            let connection = ClientConnection::new(Arc::new(config), name).unwrap();
            let stream = SyncIoBridge::new(await_sync(TcpStream::connect(address)).unwrap());
            let stream = StreamOwned::new(connection, stream);
            let (mut socket, _) = tungstenite::client("wss://localhost/", stream).unwrap();
            socket.send(Message::text("soup")).unwrap();
            assert_eq!(socket.read().unwrap(), Message::text("soup"));
            socket.close(None).unwrap();
            while socket.read().is_ok() {}
        })
        .await;
        assert!(matches!(ended.recv().await.unwrap(), Some(Ok(()))));
    });
}

#[test]
fn news_reach_fifty_sockets_on_one_thread() {
    current_thread().block_on(async {
        let (app, room, mut ended) = room(1 << 10);
        let server = Server::start(app).await;
        let (joined, mut have_joined) = mpsc::unbounded_channel();
        let clients = (0..50).map(|_| {
            let (address, joined) = (server.address.to_string(), joined.clone());
            run_sync_local(move || {
                let mut socket = connect(&address);
                joined.send(()).unwrap();
                // Others say hello meanwhile.
                while socket.read().unwrap() != Message::text("soup is ready") {}
                // And goes without a word.
            })
        });
        let tell = async {
            for _ in 0..50 {
                have_joined.recv().await.unwrap();
            }
            room.news.send("soup is ready".to_owned()).unwrap();
        };
        tokio::join!(join_all(clients), tell);
        for _ in 0..50 {
            // Each run has heard that its peer is gone.
            assert!(matches!(ended.recv().await.unwrap(), Some(Err(_))));
        }
        assert_eq!(server.connections().accepted, 50);
        server.until_open(0).await;
    });
}

#[test]
fn a_peer_that_hangs_up_ends_the_wait_for_both() {
    in_each_place(|place| async move {
        let (app, _, mut ended) = room(16);
        let server = Server::start(app).await;
        let address = server.address.to_string();
        let client = place.spawn(move || connect(&address));
        drop(client.await.unwrap());
        assert!(matches!(ended.recv().await.unwrap(), Some(Err(_))));
        server.until_open(0).await;
    });
}

#[test]
fn an_aborted_run_unwinds_and_its_peer_sees_the_end() {
    in_each_place(|place| async move {
        let (app, room, mut ended) = room(16);
        let server = Server::start(app).await;
        let address = server.address.to_string();
        let (connected, is_connected) = signal();
        let client = place.spawn(move || {
            let mut socket = connect(&address);
            connected.give();
            socket.read().unwrap_err()
        });
        is_connected.wait().await;
        let run = room.runs.lock().unwrap().pop().unwrap();
        run.abort();
        assert!(ended.recv().await.unwrap().is_none());
        let error = client.await.unwrap();
        assert!(
            matches!(error, Error::Protocol(_) | Error::Io(_)),
            "{error}"
        );
        server.until_open(0).await;
        assert_eq!(greenhack::leaked_runs(), 0);
    });
}

#[test]
fn news_in_the_middle_of_a_message_lose_nothing_of_it() {
    current_thread().block_on(async {
        let (mut far, near) = tokio::io::duplex(1 << 10);
        let news = Sender::new(16);
        let line = Line {
            stream: near,
            news: news.subscribe(),
            heard: VecDeque::new(),
        };
        let run = run_sync_local(move || {
            let mut socket = WebSocket::from_raw_socket(line, Role::Client, None);
            let Err(Error::Io(error)) = socket.read() else {
                panic!("no news")
            };
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(socket.get_mut().heard.pop_front().unwrap(), "rice");
            socket.read().unwrap()
        });
        let server = async {
            // A text of four bytes, and the first of them.
            far.write_all(&[0x81, 4, b's']).await.unwrap();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            news.send("rice".to_owned()).unwrap();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            far.write_all(b"oup").await.unwrap();
        };
        let (message, ()) = tokio::join!(run, server);
        assert_eq!(message, Message::text("soup"));
    });
}

#[test]
fn news_that_were_missed_leave_a_gap() {
    current_thread().block_on(async {
        let (app, room, _ended) = room(2);
        let server = Server::start(app).await;
        let address = server.address.to_string();
        run_sync_local(move || {
            let mut socket = connect(&address);
            // More than there is room for, before the other run has its turn.
            for dish in ["soup", "stew", "rice", "salad"] {
                room.news.send(dish.to_owned()).unwrap();
            }
            assert_eq!(socket.read().unwrap(), Message::text("rice"));
            assert_eq!(socket.read().unwrap(), Message::text("salad"));
        })
        .await;
    });
}

#[test]
fn pings_are_answered_while_the_run_waits() {
    current_thread().block_on(async {
        let (app, _, _ended) = room(16);
        let server = Server::start(app).await;
        let address = server.address.to_string();
        let pong = run_sync_local(move || {
            let mut socket = connect(&address);
            socket.send(Message::Ping("soup".into())).unwrap();
            socket.read().unwrap()
        });
        assert_eq!(pong.await, Message::Pong("soup".into()));
    });
}

#[test]
fn what_is_no_handshake_is_answered_400() {
    current_thread().block_on(async {
        let (app, room, _ended) = room(16);
        let server = Server::start(app).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = "GET / HTTP/1.1\r\nhost: kitchen\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(room.runs.lock().unwrap().is_empty());
    });
}

#[test]
fn a_plain_thread_is_a_client() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (app, _, mut ended) = room(16);
    let server = runtime.block_on(Server::start(app));
    let mut socket = connect(&server.address.to_string());
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    assert!(matches!(
        runtime.block_on(ended.recv()).unwrap(),
        Some(Ok(()))
    ));
}

/// Why the wait has to end in `Read::read`.
#[test]
#[cfg(panic = "unwind")]
fn a_socket_that_was_unwound_through_is_good_for_nothing() {
    current_thread().block_on(async {
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let run = run_sync_local(move || {
            let stream = SyncIoBridge::new(near);
            let mut socket = WebSocket::from_raw_socket(stream, Role::Client, None);
            let read = || {
                socket.read().unwrap();
            };
            let closures: [Box<dyn FnOnce()>; 2] = [
                Box::new(read),
                Box::new(|| await_sync(tokio::task::yield_now())),
            ];
            greenhack::race(closures);
            // Empty messages that nobody has sent, or nonsense.
            let heard = catch_unwind(AssertUnwindSafe(|| socket.read()));
            assert!(!matches!(heard, Ok(Ok(message)) if message == Message::text("soup")));
        });
        let server = async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            // The run may be gone already.
            let _ = far.write_all(&[0x81, 4, b's', b'o', b'u', b'p']).await;
        };
        tokio::join!(run, server);
    });
}
