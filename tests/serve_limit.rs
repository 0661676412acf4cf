//! `greenhack::axum::RequestLimit`: who is served, who waits, who is shed.
#![cfg(all(feature = "axum", feature = "macros", panic = "unwind"))]

#[path = "support/http.rs"]
mod http;
mod support;

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use axum::routing::get;
use futures::StreamExt;
use greenhack::await_sync;
use greenhack::axum::{LimitedRequests, RequestLimit, serve};
use greenhack::workers::Builder;
use http::{Client, LIMIT};
use static_assertions::assert_impl_all;
use support::{Log, on_drop, paused, signal};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc as tokio_mpsc};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tower_service::Service;

assert_impl_all!(RequestLimit: Send, Sync, Clone, std::fmt::Debug);
assert_impl_all!(LimitedRequests<axum::routing::Route>: Send, Sync, Clone, std::fmt::Debug);

/// An app with a limit, whose handlers end when they are let.
struct Limited {
    limit: RequestLimit,
    app: Router,
    let_end: Arc<Semaphore>,
    log: Log,
}

impl Limited {
    fn new(limit: RequestLimit) -> Limited {
        let (let_end, log) = (Arc::new(Semaphore::new(0)), Log::default());
        let serve = {
            let (let_end, log) = (let_end.clone(), log.clone());
            async move |request: Request| {
                log.add(request.uri().path());
                let_end.acquire().await.unwrap().forget();
            }
        };
        let app = Router::new()
            .route("/{name}", get(serve))
            .layer(limit.clone());
        Limited {
            limit,
            app,
            let_end,
            log,
        }
    }

    /// Sends a request, and lets it come as far as it gets.
    async fn send(&self, path: &'static str) -> JoinHandle<u16> {
        let app = self.app.clone();
        let sent = tokio::spawn(async move { ask(app, path).await.status().as_u16() });
        settle().await;
        sent
    }

    async fn let_one_end(&self) {
        self.let_end.add_permits(1);
        settle().await;
    }

    /// How many are served, wait, and have been shed.
    fn numbers(&self) -> (usize, usize, u64) {
        (self.limit.live(), self.limit.waiting(), self.limit.shed())
    }
}

async fn ask(app: Router, path: &str) -> Response {
    let request = Request::builder().uri(path).body(Body::empty()).unwrap();
    app.into_service::<Body>().call(request).await.unwrap()
}

/// Lets all tasks come as far as they get, on a runtime with one thread.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

fn on_paused_clock(test: impl Future<Output = ()>) {
    paused().block_on(test);
}

#[test]
fn the_rest_waits_for_its_turn() {
    on_paused_clock(async {
        let f = Limited::new(RequestLimit::new(2));
        assert_eq!(f.numbers(), (0, 0, 0));
        let mut sent = Vec::new();
        for path in ["/1", "/2", "/3", "/4"] {
            sent.push(f.send(path).await);
        }
        assert_eq!(f.log.take(), ["/1", "/2"]);
        assert_eq!(f.numbers(), (2, 2, 0));
        f.let_one_end().await;
        assert_eq!(f.log.take(), ["/3"]);
        assert_eq!(f.numbers(), (2, 1, 0));
        // One who comes now does not overtake.
        sent.push(f.send("/5").await);
        f.let_one_end().await;
        assert_eq!(f.log.take(), ["/4"]);
        assert_eq!(f.numbers(), (2, 1, 0));
        for _ in 0..3 {
            f.let_one_end().await;
        }
        assert_eq!(f.log.take(), ["/5"]);
        assert_eq!(f.numbers(), (0, 0, 0));
        for sent in sent {
            assert_eq!(sent.await.unwrap(), 200);
        }
    });
}

#[test]
fn who_finds_no_room_to_wait_is_shed_at_once() {
    on_paused_clock(async {
        let f = Limited::new(RequestLimit::new(1).max_waiting(1));
        let served = f.send("/served").await;
        let waits = f.send("/waits").await;
        let begin = Instant::now();
        let shed = f.send("/shed").await;
        assert_eq!(shed.await.unwrap(), 503);
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert_eq!(f.numbers(), (1, 1, 1));
        f.let_one_end().await;
        f.let_one_end().await;
        assert_eq!((served.await.unwrap(), waits.await.unwrap()), (200, 200));
        assert_eq!(f.log.take(), ["/served", "/waits"]);
        assert_eq!(f.numbers(), (0, 0, 1));
    });
}

#[test]
fn nobody_waits_where_nobody_may() {
    on_paused_clock(async {
        let f = Limited::new(RequestLimit::new(1).max_waiting(0));
        let served = f.send("/served").await;
        for count in 1..=3 {
            assert_eq!(f.send("/shed").await.await.unwrap(), 503);
            assert_eq!(f.numbers(), (1, 0, count));
        }
        f.let_one_end().await;
        assert_eq!(served.await.unwrap(), 200);
        let served = f.send("/again").await;
        f.let_one_end().await;
        assert_eq!(served.await.unwrap(), 200);
    });
}

#[test]
fn who_waits_too_long_is_shed() {
    on_paused_clock(async {
        let limit = Duration::from_millis(50);
        let f = Limited::new(RequestLimit::new(1).max_wait(limit));
        let served = f.send("/served").await;
        let begin = Instant::now();
        let late = f.send("/late").await;
        assert_eq!(f.numbers(), (1, 1, 0));
        assert_eq!(late.await.unwrap(), 503);
        assert!(begin.elapsed() >= limit, "{:?}", begin.elapsed());
        assert_eq!(f.numbers(), (1, 0, 1));
        // Its turn has gone to nobody.
        f.let_one_end().await;
        assert_eq!(served.await.unwrap(), 200);
        assert_eq!(f.numbers(), (0, 0, 1));
        assert_eq!(f.log.take(), ["/served"]);
    });
}

#[test]
fn who_gives_up_loses_its_turn() {
    on_paused_clock(async {
        let f = Limited::new(RequestLimit::new(1).max_waiting(2));
        let served = f.send("/served").await;
        let gone = f.send("/gone").await;
        let next = f.send("/next").await;
        assert_eq!(f.numbers(), (1, 2, 0));
        gone.abort();
        settle().await;
        assert_eq!(f.numbers(), (1, 1, 0));
        // And who is served gives its place back.
        served.abort();
        settle().await;
        assert_eq!(f.log.take(), ["/served", "/next"]);
        assert_eq!(f.numbers(), (1, 0, 0));
        f.let_one_end().await;
        assert_eq!(next.await.unwrap(), 200);
    });
}

async fn no_soup() -> &'static str {
    panic!("no soup")
}

/// A route that answers once, with this body.
fn once(body: Body) -> axum::routing::MethodRouter {
    let body = Arc::new(Mutex::new(Some(body)));
    get(async move || body.lock().unwrap().take().unwrap())
}

#[test]
fn a_panic_gives_the_place_back() {
    on_paused_clock(async {
        let limit = RequestLimit::new(1);
        let app = Router::new().route("/", get(no_soup)).layer(limit.clone());
        for _ in 0..2 {
            let app = app.clone();
            let sent = tokio::spawn(async move { drop(ask(app, "/").await) });
            assert!(sent.await.unwrap_err().is_panic());
            assert_eq!(limit.live(), 0);
        }
    });
}

#[test]
fn a_body_keeps_the_place_until_its_end() {
    on_paused_clock(async {
        let limit = RequestLimit::new(1).max_waiting(0);
        let (sender, receiver) = tokio_mpsc::channel::<Bytes>(1);
        let chunks = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
        let app = Router::new()
            .route("/", once(Body::from_stream(chunks)))
            .route("/short", get(async || "short"))
            .layer(limit.clone());
        let response = ask(app.clone(), "/").await;
        assert_eq!(limit.live(), 1);
        assert_eq!(ask(app.clone(), "/short").await.status(), 503);
        let mut body = response.into_body().into_data_stream();
        sender.send("one".into()).await.unwrap();
        assert_eq!(body.next().await.unwrap().unwrap(), "one");
        assert_eq!(limit.live(), 1);
        drop(sender);
        assert!(body.next().await.is_none());
        drop(body);
        assert_eq!(limit.live(), 0);

        // What is known of a body is known as before.
        let short = ask(app, "/short").await;
        let size = axum::body::HttpBody::size_hint(short.body());
        assert_eq!(size.exact(), Some(5));
        drop(short);
        assert_eq!((limit.live(), limit.shed()), (0, 1));
    });
}

#[test]
fn a_cancelled_body_unwinds_its_run_before_the_place_is_free() {
    on_paused_clock(async {
        let limit = RequestLimit::new(1);
        let log = Log::default();
        let (started, wait) = signal();
        let chunks = {
            let (limit, log) = (limit.clone(), log.clone());
            greenhack::stream::generate(move |_| {
                let _guard = on_drop(move || log.add(format!("unwinds, {}", limit.live())));
                started.give();
                await_sync(pending::<()>());
            })
        };
        let chunks = chunks.map(Ok::<Bytes, Infallible>);
        let app = Router::new()
            .route("/", once(Body::from_stream(chunks)))
            .layer(limit.clone());
        let mut body = ask(app, "/").await.into_body().into_data_stream();
        assert!(futures::poll!(body.next()).is_pending());
        wait.wait().await;
        drop(body);
        assert_eq!(log.take(), ["unwinds, 1"]);
        assert_eq!(limit.live(), 0);
    });
}

/// Blocks its worker until the test comes.
#[greenhack::entry]
fn meet(barrier: axum::extract::State<Arc<Barrier>>) {
    barrier.wait();
    barrier.wait();
}

#[test]
fn one_limit_is_for_all_workers_and_routes() {
    let limit = RequestLimit::new(1).max_waiting(0);
    let barrier = Arc::new(Barrier::new(2));
    let app = Router::new()
        .route("/", get(meet).with_state(barrier.clone()))
        .route("/other", get(async || "served"))
        .layer(limit.clone());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (sender, addresses) = mpsc::channel();
    let server = thread::spawn(move || {
        support::current_thread().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            sender.send(listener.local_addr()?).unwrap();
            serve(listener, app)
                .with_workers(Builder::new().threads(2))
                .stall_limit(LIMIT)
                .with_graceful_shutdown(async { drop(stopped.await) })
                .await
        })
    });
    let address = addresses.recv().unwrap();
    // Two connections: one on each worker.
    let (mut first, mut second) = (Client::connect(address), Client::connect(address));
    assert_eq!(second.get("/other"), (200, "served".to_owned()));
    first.ask("/");
    barrier.wait();
    assert_eq!(limit.live(), 1);
    assert_eq!(second.get("/other").0, 503);
    barrier.wait();
    assert_eq!(first.answer().0, 200);
    assert_eq!(limit.shed(), 1);
    drop(stop);
    drop((first, second));
    server.join().unwrap().unwrap();
    assert_eq!(limit.live(), 0);
}

#[test]
#[should_panic(expected = "write `RequestLimit::new(1)`")]
fn a_limit_of_nothing_is_refused() {
    let _ = RequestLimit::new(0);
}
