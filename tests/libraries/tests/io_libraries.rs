//! Plain libraries, as they are, over `greenhack::io`.

#[path = "../../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures::future::join_all;
use futures::stream::{self, Stream, StreamExt};
use greenhack::io::{StreamReader, SyncIoBridge, is_cancelled};
use greenhack::{await_sync, run_sync_local};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use support::{current_thread, in_each_place, signal};
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::task::yield_now;
use tungstenite::{HandshakeError, Message, WebSocket};

/// Gives `bytes` in chunks of one to `most` bytes, and waits between them.
fn trickle(bytes: Vec<u8>, most: usize) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin {
    let chunks = stream::unfold(
        (Bytes::from(bytes), 0),
        move |(mut rest, number)| async move {
            if rest.is_empty() {
                return None;
            }
            yield_now().await;
            let chunk = rest.split_to((number % most + 1).min(rest.len()));
            Some((Ok(chunk), (rest, number + 1)))
        },
    );
    Box::pin(chunks)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Default::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn table(rows: u64) -> String {
    let mut csv = "dish,price\n".to_owned();
    for row in 0..rows {
        csv += &format!("dish {row},{row}\n");
    }
    csv
}

fn sum(csv: impl Read) -> u64 {
    let mut reader = csv::Reader::from_reader(csv);
    let prices = reader
        .records()
        .map(|row| row.unwrap()[1].parse::<u64>().unwrap());
    prices.sum()
}

/// A pair of sockets of this machine.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

// WebSockets.

/// Sends a few messages, and returns how many came back.
fn talk<S: Read + Write>(mut socket: WebSocket<S>) -> usize {
    let large = vec![7; 200_000];
    socket.send(Message::text("soup")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("soup"));
    socket.send(Message::binary(large.clone())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::binary(large));
    socket.send(Message::Ping("still there?".into())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong("still there?".into()));
    socket.close(None).unwrap();
    assert!(socket.read().unwrap().is_close());
    assert!(matches!(
        socket.read().unwrap_err(),
        tungstenite::Error::ConnectionClosed
    ));
    3
}

/// Sends back what comes, and returns how many messages that were.
fn echo<S: Read + Write>(socket: &mut WebSocket<S>) -> usize {
    let mut messages = 0;
    loop {
        match socket.read() {
            Ok(message) if message.is_close() => {}
            Ok(message) => {
                messages += 1;
                if !message.is_ping() {
                    socket.send(message).unwrap();
                }
            }
            Err(tungstenite::Error::ConnectionClosed) => return messages,
            Err(error) => panic!("{error}"),
        }
    }
}

fn client<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> usize {
    let stream = SyncIoBridge::new(stream);
    let (socket, response) = tungstenite::client("ws://kitchen/orders", stream).unwrap();
    assert_eq!(response.status(), 101);
    talk(socket)
}

fn server<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> usize {
    echo(&mut tungstenite::accept(SyncIoBridge::new(stream)).unwrap())
}

#[test]
fn tungstenite_talks_to_itself_on_one_thread() {
    current_thread().block_on(async {
        let (near, far) = duplex(100);
        let both = async {
            tokio::join!(
                run_sync_local(|| client(near)),
                run_sync_local(|| server(far))
            )
        };
        assert_eq!(both.await, (3, 3));
        let (near, far) = sockets().await;
        let both = async {
            tokio::join!(
                run_sync_local(|| client(near)),
                run_sync_local(|| server(far))
            )
        };
        assert_eq!(both.await, (3, 3));
    });
}

#[test]
fn tungstenite_talks_to_itself_in_each_place() {
    in_each_place(|place| async move {
        let (near, far) = sockets().await;
        let near = place.spawn(move || client(near));
        let far = place.spawn(move || server(far));
        assert_eq!((near.await.unwrap(), far.await.unwrap()), (3, 3));
    });
}

// TLS.

/// The two ends of connections that trust each other.
fn tls() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let own = rcgen::generate_simple_self_signed(["kitchen".to_owned()]).unwrap();
    let certificate = CertificateDer::from(own.cert);
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    (Arc::new(client), Arc::new(server))
}

type Tls<C, S> = StreamOwned<C, SyncIoBridge<S>>;

fn tls_client<S>(config: Arc<ClientConfig>, stream: S) -> Tls<ClientConnection, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from("kitchen").unwrap();
    let connection = ClientConnection::new(config, name).unwrap();
    StreamOwned::new(connection, SyncIoBridge::new(stream))
}

fn tls_server<S>(config: Arc<ServerConfig>, stream: S) -> Tls<ServerConnection, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connection = ServerConnection::new(config).unwrap();
    StreamOwned::new(connection, SyncIoBridge::new(stream))
}

#[test]
fn rustls_talks_to_itself_in_each_place() {
    let (near_config, far_config) = tls();
    in_each_place(|place| {
        let (near_config, far_config) = (near_config.clone(), far_config.clone());
        async move {
            let (near, far) = duplex(1000);
            let near = place.spawn(move || {
                let mut tls = tls_client(near_config, near);
                tls.write_all(&[7; 100_000]).unwrap();
                tls.conn.send_close_notify();
                tls.flush().unwrap();
                let mut answer = String::new();
                tls.read_to_string(&mut answer).unwrap();
                answer
            });
            let far = place.spawn(move || {
                let mut tls = tls_server(far_config, far);
                let mut question = Vec::new();
                tls.read_to_end(&mut question).unwrap();
                write!(tls, "{} bytes", question.len()).unwrap();
                tls.conn.send_close_notify();
                tls.flush().unwrap();
            });
            assert_eq!(near.await.unwrap(), "100000 bytes");
            far.await.unwrap();
        }
    });
}

#[test]
fn tungstenite_over_rustls_talks_to_itself_on_one_thread() {
    let (near_config, far_config) = tls();
    current_thread().block_on(async {
        let (near, far) = sockets().await;
        let near = run_sync_local(|| {
            let stream = tls_client(near_config, near);
            talk(
                tungstenite::client("wss://kitchen/orders", stream)
                    .unwrap()
                    .0,
            )
        });
        let far = run_sync_local(|| {
            let stream = tls_server(far_config, far);
            let mut socket = tungstenite::accept(stream).unwrap();
            let messages = echo(&mut socket);
            socket.get_mut().conn.send_close_notify();
            socket.get_mut().flush().unwrap();
            messages
        });
        assert_eq!(tokio::join!(near, far), (3, 3));
    });
}

// Bodies.

#[test]
fn csv_reads_a_trickling_body() {
    in_each_place(|place| async move {
        for most in [1, 7, 1000] {
            let body = trickle(table(100).into_bytes(), most);
            let run = place.spawn(|| sum(StreamReader::new(body)));
            assert_eq!(run.await.unwrap(), 4950);
        }
    });
}

#[test]
fn serde_json_reads_a_trickling_body() {
    in_each_place(|place| async move {
        let menu: BTreeMap<_, _> = (0..100)
            .map(|price| (format!("dish {price}"), price))
            .collect();
        let json = serde_json::to_vec(&menu).unwrap();
        for most in [1, 7, 1000] {
            let body = trickle(json.clone(), most);
            let run = place.spawn(|| {
                let read = serde_json::from_reader(StreamReader::new(body));
                read.unwrap()
            });
            let read: BTreeMap<String, i32> = run.await.unwrap();
            assert_eq!(read, menu);
        }
    });
}

/// An archive of tables.
fn archive(files: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in 0..files {
        let table = table(file);
        let mut header = tar::Header::new_gnu();
        header.set_size(table.len() as u64);
        let name = format!("{file}.csv");
        tar.append_data(&mut header, name, table.as_bytes())
            .unwrap();
    }
    gzip(&tar.into_inner().unwrap())
}

/// Reads an archive of tables as it comes.
fn sum_of_archive(reader: impl Read) -> u64 {
    let mut tar = tar::Archive::new(GzDecoder::new(reader));
    tar.entries()
        .unwrap()
        .map(|entry| sum(entry.unwrap()))
        .sum()
}

#[test]
fn tar_and_flate2_read_a_trickling_body() {
    in_each_place(|place| async move {
        for most in [1, 7, 1000] {
            let body = trickle(archive(20), most);
            let run = place.spawn(|| sum_of_archive(StreamReader::new(body)));
            assert_eq!(run.await.unwrap(), 1140);
        }
    });
}

#[test]
fn fifty_uploads_are_read_at_once_on_one_thread() {
    const UPLOADS: usize = 50;
    current_thread().block_on(async {
        let thread = thread::current().id();
        let half_way = Arc::new(Barrier::new(UPLOADS));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let upload = |number: usize| {
            let mut head = archive(number as u64);
            let tail = head.split_off(head.len() / 2);
            let half_way = half_way.clone();
            // Nobody gets a second half before all have read their first.
            let body = trickle(head, 1 + number)
                .chain(
                    stream::once(async move {
                        half_way.wait().await;
                        Ok(Bytes::new())
                    })
                    .boxed(),
                )
                .chain(trickle(tail, 1 + number));
            let (now, most) = (now.clone(), most.clone());
            run_sync_local(move || {
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                let sum = sum_of_archive(StreamReader::new(body));
                now.fetch_sub(1, Ordering::Relaxed);
                assert_eq!(thread::current().id(), thread);
                sum
            })
        };
        let sums = join_all((0..UPLOADS).map(upload)).await;
        assert_eq!(most.load(Ordering::Relaxed), UPLOADS);
        assert_eq!(now.load(Ordering::Relaxed), 0);
        for (number, sum) in (0..).zip(sums) {
            assert_eq!(
                sum,
                (0..number).map(|rows| (0..rows).sum::<u64>()).sum::<u64>()
            );
        }
    });
}

// Ranges.

#[derive(Clone)]
struct File {
    bytes: Bytes,
    requests: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
}

/// Serves a range of the file, as web servers do.
async fn serve_range(State(file): State<File>, headers: HeaderMap) -> impl IntoResponse {
    let total = file.bytes.len();
    let range = headers[header::RANGE].to_str().unwrap();
    let (first, last) = range
        .strip_prefix("bytes=")
        .unwrap()
        .split_once('-')
        .unwrap();
    let first: usize = first.parse().unwrap();
    let last = last.parse::<usize>().unwrap().min(total - 1);
    file.requests.fetch_add(1, Ordering::Relaxed);
    file.sent.fetch_add(last + 1 - first, Ordering::Relaxed);
    (
        StatusCode::PARTIAL_CONTENT,
        [(
            header::CONTENT_RANGE,
            format!("bytes {first}-{last}/{total}"),
        )],
        file.bytes.slice(first..=last),
    )
}

/// A file on a web server.
struct Ranges {
    connection: BufReader<SyncIoBridge<TcpStream>>,
    position: u64,
    length: u64,
}

impl Ranges {
    fn open(address: SocketAddr) -> io::Result<Ranges> {
        let connection = SyncIoBridge::new(await_sync(TcpStream::connect(address))?);
        let mut ranges = Ranges {
            connection: BufReader::new(connection),
            position: 0,
            length: 1,
        };
        ranges.length = ranges.fetch(&mut [0])?;
        Ok(ranges)
    }

    /// Reads the range at the position, and returns the length of the file.
    fn fetch(&mut self, buf: &mut [u8]) -> io::Result<u64> {
        let last = self.position + buf.len() as u64 - 1;
        write!(
            self.connection.get_mut(),
            "GET / HTTP/1.1\r\nhost: localhost\r\nrange: bytes={}-{last}\r\n\r\n",
            self.position,
        )?;
        let mut total = None;
        for line in self.connection.by_ref().lines() {
            let line = line?;
            if let Some(range) = line.strip_prefix("content-range: ") {
                total = Some(range.split_once('/').unwrap().1.parse().unwrap());
            } else if line.is_empty() {
                break;
            }
        }
        self.connection.read_exact(buf)?;
        Ok(total.unwrap())
    }
}

impl Read for Ranges {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let length = (self.length - self.position).min(buf.len() as u64) as usize;
        if length > 0 {
            self.fetch(&mut buf[..length])?;
            self.position += length as u64;
        }
        Ok(length)
    }
}

impl Seek for Ranges {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let position = match position {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// An archive of one large file and many small ones.
fn zip_archive() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("large", stored).unwrap();
    zip.write_all(&[7; 1_000_000]).unwrap();
    for number in 0..20 {
        let deflated = stored.compression_method(zip::CompressionMethod::Deflated);
        zip.start_file(format!("{number}.csv"), deflated).unwrap();
        zip.write_all(table(number).as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn zip_reads_single_files_over_http_ranges() {
    let bytes = Bytes::from(zip_archive());
    in_each_place(|place| {
        let file = File {
            bytes: bytes.clone(),
            requests: Arc::default(),
            sent: Arc::default(),
        };
        async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let app = Router::new()
                .route("/", get(serve_range))
                .with_state(file.clone());
            let server = tokio::spawn(async { axum::serve(listener, app).await });
            let run = place.spawn(move || {
                let ranges = BufReader::with_capacity(2048, Ranges::open(address).unwrap());
                let mut zip = zip::ZipArchive::new(ranges).unwrap();
                assert_eq!(zip.len(), 21);
                [3, 19].map(|n| sum(zip.by_name(&format!("{n}.csv")).unwrap()))
            });
            assert_eq!(run.await.unwrap(), [3, 171]);
            assert!(file.requests.load(Ordering::Relaxed) > 3);
            // The large file was passed over.
            assert!(file.sent.load(Ordering::Relaxed) < 100_000);
            server.abort();
        }
    });
}

#[test]
fn a_cancellation_is_told_from_the_errors_of_libraries() {
    in_each_place(|place| async move {
        let (started, wait) = signal();
        let (ended, end) = signal();
        let (told, tells) = std::sync::mpsc::channel();
        let (near, _far) = duplex(8);
        let run = place.spawn(move || {
            let _ended = ended;
            started.give();
            let mut near = SyncIoBridge::new(near).cancel_as_error();
            let error = serde_json::from_reader::<_, u8>(&mut near).unwrap_err();
            told.send(is_cancelled(&error)).unwrap();
            let Err(HandshakeError::Failure(error)) = tungstenite::accept(near) else {
                return;
            };
            told.send(is_cancelled(&error)).unwrap();
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(tells.iter().collect::<Vec<_>>(), [true, true]);
        let other = serde_json::from_str::<u8>("x").unwrap_err();
        assert!(!is_cancelled(&other));
    });
}
