//! `greenhack::axum::serve`: from outside, over sockets.

#[path = "../../support/http.rs"]
mod http;
#[path = "../../support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::future::{IntoFuture, Ready, ready};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::panic::panic_any;
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::connect_info::Connected;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, Extension, Path, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::{IncomingStream, Listener, ListenerExt};
use futures::StreamExt;
use greenhack::axum::{Connections, Distributor, Pinned, Serve, WorkerListener, serve};
use greenhack::workers::Builder;
use greenhack::{await_sync, entry, is_cancelled, run_sync};
use http::{Client, LIMIT};
use support::on_drop;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::yield_now;
use tower_service::Service;

/// A server on two workers, on a thread of its own.
struct Server {
    address: SocketAddr,
    connections: Connections<TcpListener>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Server {
    fn start(app: Router) -> Server {
        // A busy machine must not make a worker look stalled.
        Server::start_with(app, |serve| serve.stall_limit(LIMIT))
    }

    fn start_with(
        app: Router,
        set: impl FnOnce(Serve<TcpListener, Router, Router>) -> Serve<TcpListener, Router, Router>
        + Send
        + 'static,
    ) -> Server {
        let (stop, stopped) = oneshot::channel();
        let (sender, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            multi_thread().block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let serve = serve(listener, app)
                    .with_workers(Builder::new().threads(2).thread_name("pinned"))
                    .with_graceful_shutdown(async { drop(stopped.await) });
                let serve = set(serve);
                sender
                    .send((serve.local_addr()?, serve.connections()))
                    .unwrap();
                serve.await
            })
        });
        let (address, connections) = started.recv().unwrap();
        Server {
            address,
            connections,
            stop,
            thread,
        }
    }

    fn connect(&self) -> Client<TcpStream> {
        Client::connect(self.address)
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.connect().get(path)
    }

    #[track_caller]
    fn stop(self) {
        drop(self.stop);
        self.thread.join().unwrap().unwrap();
    }
}

fn multi_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn thread_name() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

#[entry]
fn hello() -> &'static str {
    await_sync(yield_now());
    "hello"
}

#[test]
fn smoke() {
    let server = Server::start(Router::new().route("/", get(hello)));
    assert_eq!(server.get("/"), (200, "hello".to_owned()));
    server.stop();
}

/// Says on which thread the connection's task runs.
async fn mark_thread(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(thread::current().id());
    next.run(request).await
}

#[entry]
fn in_place(Extension(task): Extension<ThreadId>) -> String {
    assert_eq!(thread::current().id(), task);
    await_sync(tokio::task::yield_now());
    assert_eq!(thread::current().id(), task);
    thread_name()
}

#[test]
fn every_handler_runs_in_place() {
    let app = Router::new()
        .route("/", get(in_place))
        .layer(from_fn(mark_thread));
    let server = Server::start(app);
    let mut clients = [server.connect(), server.connect()];
    for _ in 0..3 {
        let mut names = clients.each_mut().map(|client| client.get("/").1);
        names.sort();
        assert_eq!(names, ["pinned-0", "pinned-1"]);
    }
    drop(clients);
    server.stop();
}

async fn from(ConnectInfo(address): ConnectInfo<SocketAddr>) -> String {
    format!("{address} {}", thread_name())
}

/// Serves until the client's part is over.
async fn serve_for<R: Send + 'static>(
    server: impl IntoFuture<Output = io::Result<()>>,
    client: impl FnOnce() -> R + Send + 'static,
) -> R {
    let client = tokio::task::spawn_blocking(client);
    tokio::select! {
        result = server.into_future() => panic!("it serves for ever: {result:?}"),
        output = client => output.unwrap(),
    }
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn connect_info_is_there_and_a_connection_is_kept_alive() {
    let app = Router::new().route("/", get(from));
    support::current_thread().block_on(async {
        let (listener, address) = bind().await;
        let server = serve(
            listener,
            app.into_make_service_with_connect_info::<SocketAddr>(),
        );
        let connections = server.connections();
        let client = move || {
            let mut client = Client::connect(address);
            let first = client.get("/").1;
            assert!(first.starts_with(&format!("{} serve-", client.address())));
            for _ in 0..3 {
                assert_eq!(client.get("/").1, first);
            }
            assert_eq!(connections.live(), 1);
        };
        serve_for(server, client).await;
    });
}

/// Connect info of one's own.
#[derive(Clone)]
struct Port(u16);

impl Connected<IncomingStream<'_, WorkerListener<TcpListener>>> for Port {
    fn connect_info(stream: IncomingStream<'_, WorkerListener<TcpListener>>) -> Self {
        assert!(stream.io().peer_addr().is_ok());
        Port(stream.remote_addr().port())
    }
}

async fn port(ConnectInfo(Port(port)): ConnectInfo<Port>) -> String {
    port.to_string()
}

#[test]
fn a_distributor_serves_with_connect_info_of_ones_own() {
    support::current_thread().block_on(async {
        let (listener, address) = bind().await;
        let app = Router::new().route("/", get(port));
        let app = app.into_make_service_with_connect_info::<Port>();
        let distributor = Distributor::new(listener);
        assert_eq!(distributor.local_addr().unwrap(), address);
        let connections = distributor.connections();
        let workers = Builder::new().threads(2).run_each(move |_| {
            let listener = connections.listener();
            assert!(listener.local_addr().is_err());
            axum::serve(listener, app).into_future()
        });
        let distribute = tokio::spawn(distributor.run());
        let client = tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(address);
            assert_eq!(client.get("/").1, client.address().port().to_string());
        });
        client.await.unwrap();
        distribute.abort();
        assert!(distribute.await.unwrap_err().is_cancelled());
        workers.unwrap().shutdown(LIMIT).await;
    });
}

#[test]
fn a_listener_that_was_tapped_is_served_too() {
    support::current_thread().block_on(async {
        let (listener, address) = bind().await;
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        let app = Router::new().route("/", get(hello));
        let client = move || Client::connect(address).get("/");
        assert_eq!(serve_for(serve(listener, app), client).await.0, 200);
    });
}

#[cfg(unix)]
#[test]
fn a_unix_socket_is_served() {
    use tokio::net::UnixListener;
    use tokio::net::unix::SocketAddr;

    async fn peer(ConnectInfo(address): ConnectInfo<SocketAddr>) -> String {
        format!("{} {}", address.is_unnamed(), thread_name())
    }

    let path = std::env::temp_dir().join(format!("greenhack-serve-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let _removed = on_drop(|| std::fs::remove_file(&path).unwrap());
    support::current_thread().block_on(async {
        let listener = UnixListener::bind(&path).unwrap();
        let app = Router::new().route("/", get(peer));
        let server = serve(
            listener,
            app.into_make_service_with_connect_info::<SocketAddr>(),
        );
        let path = path.clone();
        let client = move || {
            let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            Client::new(stream).get("/").1
        };
        let answer = serve_for(server, client).await;
        assert!(answer.starts_with("true serve-"), "{answer}");
    });
}

#[entry]
fn echo(body: Body) -> Body {
    let chunks = body.into_data_stream().map(|chunk| {
        let chunk = chunk?.to_ascii_uppercase();
        Ok::<_, axum::Error>(Bytes::from(chunk))
    });
    Body::from_stream(chunks)
}

#[test]
fn bodies_stream_both_ways() {
    let server = Server::start(Router::new().route("/", post(echo)));
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: it\r\nTransfer-Encoding: chunked\r\n\r\n");
    for n in 0..3 {
        client.send(&format!("4\r\nabc{n}\r\n"));
        if n == 0 {
            client.head();
        }
        assert_eq!(client.chunk(), format!("ABC{n}"));
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.chunk(), "");
    drop(client);
    server.stop();
}

/// A gate that handlers wait at, and the log of who is there.
#[derive(Clone)]
struct Gate {
    arrived: mpsc::Sender<String>,
    open: watch::Receiver<bool>,
}

impl Gate {
    fn new() -> (Gate, mpsc::Receiver<String>, watch::Sender<bool>) {
        let (arrived, arrivals) = mpsc::channel();
        let (opener, open) = watch::channel(false);
        (Gate { arrived, open }, arrivals, opener)
    }
}

#[entry]
fn wait_at(State(gate): State<Gate>) -> &'static str {
    let thread = thread::current().id();
    let left = on_drop(|| {
        await_sync(yield_now());
        assert_eq!(thread::current().id(), thread);
        gate.arrived.send("unwound".to_owned()).unwrap();
    });
    gate.arrived.send(thread_name()).unwrap();
    await_sync(gate.open.clone().wait_for(|open| *open)).unwrap();
    std::mem::forget(left);
    "open"
}

fn gated(gate: Gate) -> Router {
    Router::new()
        .route("/gate", get(wait_at))
        .with_state(gate)
        .route("/", get(hello))
}

fn next(arrivals: &mpsc::Receiver<String>) -> String {
    arrivals.recv_timeout(LIMIT).unwrap()
}

#[test]
fn a_graceful_shutdown_finishes_requests_and_refuses_connections() {
    let (gate, arrivals, opener) = Gate::new();
    let server = Server::start(gated(gate));
    let (mut busy, mut idle) = (server.connect(), server.connect());
    assert_eq!(idle.get("/").0, 200);
    busy.ask("/gate");
    assert!(next(&arrivals).starts_with("pinned-"));

    drop(server.stop);
    assert!(idle.is_closed());
    assert!(TcpStream::connect(server.address).is_err());
    assert!(!server.thread.is_finished());
    opener.send(true).unwrap();
    assert_eq!(busy.answer(), (200, "open".to_owned()));
    assert!(busy.is_closed());
    server.thread.join().unwrap().unwrap();
    assert_eq!(server.connections.live(), 0);
}

/// A graceful shutdown that may take ten seconds, on a clock that only the test
/// moves. One request is being served.
struct Closing {
    server: tokio::task::JoinHandle<io::Result<()>>,
    busy: Client<TcpStream>,
    connections: Connections<TcpListener>,
    arrivals: mpsc::Receiver<String>,
    opener: watch::Sender<bool>,
    /// While a blocking task runs, tokio does not move a clock that is paused.
    _clock: mpsc::Sender<()>,
}

const JUST_BEFORE: Duration = Duration::from_millis(9_990);

impl Closing {
    async fn begin() -> Closing {
        let (clock, stands) = mpsc::channel();
        drop(tokio::task::spawn_blocking(move || {
            let _: Result<(), _> = stands.recv();
        }));
        let (gate, arrivals, opener) = Gate::new();
        let (listener, address) = bind().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let server = serve(listener, gated(gate))
            .with_graceful_shutdown(async { drop(stopped.await) })
            .shutdown_timeout(Duration::from_secs(10));
        let connections = server.connections();
        let server = tokio::spawn(server.into_future());
        let client = tokio::task::spawn_blocking(move || {
            let (mut busy, mut idle) = (Client::connect(address), Client::connect(address));
            assert_eq!(idle.get("/").0, 200);
            busy.ask("/gate");
            assert!(next(&arrivals).starts_with("serve-"));
            drop(stop);
            // So it has begun.
            assert!(idle.is_closed());
            (busy, arrivals)
        });
        let (busy, arrivals) = client.await.unwrap();
        Closing {
            server,
            busy,
            connections,
            arrivals,
            opener,
            _clock: clock,
        }
    }
}

fn with_paused_clock(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

#[test]
fn a_graceful_shutdown_that_takes_too_long_cancels_what_is_left() {
    with_paused_clock(async {
        let mut closing = Closing::begin().await;
        tokio::time::advance(JUST_BEFORE).await;
        assert!(!closing.server.is_finished());
        assert!(closing.arrivals.try_recv().is_err());
        assert!(closing.connections.live() > 0);

        tokio::time::advance(Duration::from_millis(20)).await;
        closing.server.await.unwrap().unwrap();
        // It has ended when the handler had, whose destructor awaits.
        assert_eq!(closing.arrivals.try_recv().unwrap(), "unwound");
        assert_eq!(closing.connections.live(), 0);
        assert!(closing.busy.is_closed());
    });
}

#[test]
fn a_graceful_shutdown_that_ends_in_time_cancels_nothing() {
    with_paused_clock(async {
        let mut closing = Closing::begin().await;
        tokio::time::advance(JUST_BEFORE).await;
        closing.opener.send(true).unwrap();
        closing.server.await.unwrap().unwrap();
        assert_eq!(closing.busy.answer(), (200, "open".to_owned()));
        assert!(closing.arrivals.try_recv().is_err());
        assert!(closing.busy.is_closed());
    });
}

#[test]
fn a_hang_up_unwinds_the_handler_on_its_thread() {
    let (gate, arrivals, _opener) = Gate::new();
    let server = Server::start(gated(gate));
    let mut client = server.connect();
    client.ask("/gate");
    assert!(next(&arrivals).starts_with("pinned-"));
    drop(client);
    assert_eq!(next(&arrivals), "unwound");
    assert_eq!(server.get("/").0, 200);
    server.stop();
}

#[test]
fn a_drop_of_the_server_unwinds_the_handlers_on_their_threads() {
    let (gate, arrivals, _opener) = Gate::new();
    support::current_thread().block_on(async {
        let (listener, address) = bind().await;
        let server = tokio::spawn(serve(listener, gated(gate)).into_future());
        let (mut client, arrivals) = tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(address);
            client.ask("/gate");
            assert!(next(&arrivals).starts_with("serve-"));
            (client, arrivals)
        })
        .await
        .unwrap();
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        assert_eq!(next(&arrivals), "unwound");
        assert!(client.is_closed());
        assert!(TcpStream::connect(address).is_err());
    });
}

#[entry]
fn panics() {
    await_sync(yield_now());
    panic_any("that is its fault");
}

#[test]
fn a_panic_of_a_handler_ends_its_connection_and_nothing_else() {
    let app = Router::new()
        .route("/panic", get(panics))
        .route("/", get(hello));
    let server = Server::start(app);
    // One on each worker.
    let mut others = [server.connect(), server.connect()];
    for other in &mut others {
        assert_eq!(other.get("/").0, 200);
    }
    for _ in 0..4 {
        let mut client = server.connect();
        client.ask("/panic");
        assert!(client.is_closed());
    }
    for other in &mut others {
        assert_eq!(other.get("/").0, 200);
    }
    drop(others);
    server.stop();
}

/// An app that can't be made.
#[derive(Clone)]
struct Broken;

impl Service<IncomingStream<'_, Pinned<TcpListener>>> for Broken {
    type Response = Router;
    type Error = Infallible;
    type Future = Ready<Result<Router, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: IncomingStream<'_, Pinned<TcpListener>>) -> Self::Future {
        match true {
            true => panic_any("no app today"),
            false => ready(Ok(Router::new())),
        }
    }
}

#[test]
fn a_panic_of_a_worker_resumes_in_whoever_awaits_the_server() {
    support::current_thread().block_on(async {
        let (listener, address) = bind().await;
        let server = tokio::spawn(serve(listener, Broken).into_future());
        let client = tokio::net::TcpStream::connect(address).await.unwrap();
        let payload = server.await.unwrap_err().into_panic();
        assert_eq!(support::text(&*payload), "no app today");
        drop(client);
    });
}

/// Runs this test binary again for one test, where many files may be open.
fn with_many_files(test: &str, f: impl FnOnce()) {
    if std::env::var_os("GREENHACK_MANY_FILES").is_some() {
        return f();
    }
    let status = std::process::Command::new("sh")
        .arg("-c")
        .arg("ulimit -n $(ulimit -H -n) && exec \"$0\" --exact --nocapture \"$1\"")
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env("GREENHACK_MANY_FILES", "yes")
        .status()
        .unwrap();
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn a_thousand_handlers_wait_on_two_workers() {
    with_many_files("a_thousand_handlers_wait_on_two_workers", || {
        let (gate, arrivals, opener) = Gate::new();
        let server = Server::start(gated(gate));
        let mut clients: Vec<_> = (0..1000).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.ask("/gate");
        }
        let mut first = 0;
        for _ in 0..1000 {
            first += usize::from(next(&arrivals) == "pinned-0");
        }
        assert!((250..=750).contains(&first), "{first} on the first");
        assert_eq!(server.connections.live(), 1000);
        let per_worker = server.connections.live_per_worker();
        assert_eq!(per_worker, [first, 1000 - first]);
        opener.send(true).unwrap();
        for client in &mut clients {
            assert_eq!(client.answer(), (200, "open".to_owned()));
        }
        drop(clients);
        server.stop();
    });
}

#[test]
fn a_worker_that_is_stalled_gets_nothing() {
    let barrier = Arc::new(Barrier::new(2));
    let (blocked, is_blocked) = mpsc::channel();
    let app = Router::new().route("/", get(hello)).route(
        "/block",
        get({
            let barrier = barrier.clone();
            move || {
                let (barrier, blocked) = (barrier.clone(), blocked.clone());
                run_sync(move || {
                    blocked.send(()).unwrap();
                    barrier.wait();
                })
            }
        }),
    );
    let server = Server::start_with(app, |serve| serve);
    let mut stuck = server.connect();
    stuck.ask("/block");
    is_blocked.recv_timeout(LIMIT).unwrap();
    // More than the least loaded of two would get.
    let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").0, 200);
    }
    let mut per_worker = server.connections.live_per_worker();
    per_worker.sort();
    assert_eq!(per_worker, [1, 10]);
    barrier.wait();
    assert_eq!(stuck.answer().0, 200);
    // It is back, and has the fewest.
    let mut more: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut more {
        assert_eq!(client.get("/").0, 200);
    }
    drop((stuck, clients, more));
    server.stop();
}

#[test]
fn connections_beyond_the_limit_wait_until_one_ends() {
    let app = Router::new().route("/", get(hello));
    let server = Server::start_with(app, |serve| serve.max_connections(2));
    let (mut first, mut second) = (server.connect(), server.connect());
    assert_eq!(first.get("/").0, 200);
    assert_eq!(second.get("/").0, 200);
    // The system has accepted it, the server has not.
    let mut third = server.connect();
    third.ask("/");
    for _ in 0..3 {
        assert_eq!(first.get("/").0, 200);
        assert_eq!(server.connections.live(), 2);
    }
    drop(second);
    assert_eq!(third.answer().0, 200);
    assert_eq!(server.connections.live(), 2);
    drop((first, third));
    server.stop();
}

#[test]
fn no_room_is_refused_where_it_is_set() {
    let (listener, _) = support::current_thread().block_on(bind());
    let mut line = 0;
    let (message, at, file) = support::panic_of(|| {
        let server = serve(listener, Router::new());
        line = line!() + 1;
        drop(server.max_connections(0));
    });
    assert_eq!((at, &*file), (line, file!()));
    assert_eq!(
        message,
        "there must be room for at least one connection; write `.max_connections(1)`"
    );
}

#[test]
fn a_plain_function_serves() {
    let (stop, stopped) = oneshot::channel::<()>();
    let (sender, receiver) = mpsc::channel();
    let client = thread::spawn(move || {
        let answer = Client::connect(receiver.recv().unwrap()).get("/");
        drop(stop);
        answer
    });
    let run = run_sync(move || {
        let listener = await_sync(TcpListener::bind("127.0.0.1:0"))?;
        sender.send(listener.local_addr()?).unwrap();
        let app = Router::new().route("/", get(hello));
        await_sync(serve(listener, app).with_graceful_shutdown(async { drop(stopped.await) }))
    });
    support::current_thread().block_on(run).unwrap();
    assert_eq!(client.join().unwrap().0, 200);
}

/// Says again what it hears, in plain code.
fn parrot(mut socket: WebSocket) {
    while let Some(Ok(Message::Text(text))) = await_sync(socket.recv()) {
        let answer = format!("{text}, {}", thread_name());
        await_sync(socket.send(Message::Text(answer.into()))).unwrap();
    }
}

#[test]
fn websockets_are_served_in_place() {
    let upgrade = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|socket| run_sync(move || parrot(socket)))
    };
    let server = Server::start(Router::new().route("/", get(upgrade)));
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let (mut socket, _) = tungstenite::client("ws://localhost/", stream).unwrap();
    for word in ["hello", "hello again"] {
        socket.send(tungstenite::Message::text(word)).unwrap();
        let answer = socket.read().unwrap();
        assert_eq!(answer.to_text().unwrap(), format!("{word}, pinned-0"));
    }
    drop(socket);
    server.stop();
}

#[test]
fn a_graceful_shutdown_cancels_the_handlers_of_websockets_at_its_end() {
    let (ended, end) = mpsc::channel();
    let listen = move |upgrade: WebSocketUpgrade| {
        let ended = ended.clone();
        let handler = move |socket| {
            let _ended = on_drop(move || {
                await_sync(yield_now());
                ended.send((thread_name(), is_cancelled())).unwrap();
            });
            parrot(socket);
        };
        async { upgrade.on_upgrade(|socket| run_sync(move || handler(socket))) }
    };
    let server = Server::start(Router::new().route("/", get(listen)));
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let (mut socket, _) = tungstenite::client("ws://localhost/", stream).unwrap();
    socket.send(tungstenite::Message::text("hello")).unwrap();
    let answer = socket.read().unwrap();
    assert_eq!(answer.to_text().unwrap(), "hello, pinned-0");

    // It waits for the next word.
    server.stop();
    assert_eq!(end.try_recv(), Ok(("pinned-0".to_owned(), true)));
    assert!(socket.read().is_err());
}

#[cfg(target_os = "linux")]
#[test]
fn workers_share_the_connections_of_a_port() {
    use std::collections::HashSet;

    use greenhack::axum::ReusePort;

    let port = ReusePort::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = port.local_addr();
    assert!(TcpStream::connect(address).is_err());
    let app = Router::new()
        .route("/", get(in_place))
        .layer(from_fn(mark_thread));
    let (stop, mut stopped) = watch::channel(false);
    let workers = Builder::new().threads(2).thread_name("pinned").run_each({
        let port = port.clone();
        move |_| {
            let listener = port.listen();
            async move {
                let signal = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
                let server = axum::serve(listener?, app);
                server.with_graceful_shutdown(signal).await
            }
        }
    });
    let taken = std::net::TcpListener::bind(address).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);

    // Which worker gets a connection is as good as random.
    let (mut clients, mut names) = (Vec::new(), HashSet::new());
    while names.len() < 2 {
        assert!(clients.len() < 500, "all are served by {names:?}");
        let mut client = Client::connect(address);
        let name = client.get("/").1;
        assert_eq!(client.get("/").1, name);
        names.insert(name);
        clients.push(client);
    }
    assert_eq!(names, ["pinned-0", "pinned-1"].map(str::to_owned).into());

    stop.send(true).unwrap();
    let results = await_sync(workers.unwrap());
    assert!(results.iter().all(|result| result.is_ok()));
    assert!(clients.iter_mut().all(|client| client.is_closed()));
    // Still taken, but nobody listens.
    assert!(TcpStream::connect(address).is_err());
    drop(port);
}

#[entry]
fn number(Path(number): Path<u32>, Extension(task): Extension<ThreadId>) -> String {
    await_sync(tokio::task::yield_now());
    assert_eq!(thread::current().id(), task);
    format!("{number} {}", thread_name())
}

#[test]
fn http_2_is_served_in_place() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let app = Router::new()
        .route("/{number}", get(number))
        .layer(from_fn(mark_thread));
    let server = Server::start(app);
    let address = server.address;
    support::current_thread().block_on(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        // All at once, over one connection.
        let requests = (0..50).map(|number| {
            let mut sender = sender.clone();
            async move {
                let request = hyper::Request::get(format!("http://it/{number}"));
                let request = request.body(Empty::<Bytes>::new()).unwrap();
                let answer = sender.send_request(request).await.unwrap();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, format!("{number} pinned-0"));
            }
        });
        futures::future::join_all(requests).await;
    });
    server.stop();
}
