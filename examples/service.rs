//! An axum service on the multi-thread runtime whose handlers are plain
//! functions: a restaurant.
//!
//! The handlers wait for sockets, timers and channels, several calls deep, and
//! hold no thread meanwhile. One streams, one panics, and one is slow enough to
//! be hung up on.
//!
//! - Run it: `cargo run --example service`; `PORT=8080` before it sets the port.
//! - Try it: the curl lines that it prints, then ctrl-c, also during `/feast`.
//! - It prints its address and the curl lines, then what the handlers log.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::FutureExt;
use greenhack::await_sync;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{error, info};

/// How long a ctrl-c lets requests go on, and their cleanup after that.
const GRACE: Duration = Duration::from_secs(3);

fn main() -> io::Result<()> {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let result = serve();
    // The runtime has ended, and has cancelled what it still served. That
    // unwinds on the workers.
    await_sync(greenhack::workers::shutdown(GRACE));
    result
}

#[tokio::main]
async fn serve() -> io::Result<()> {
    let port = std::env::var("PORT").map_or(3000, |port| port.parse().expect("a port number"));
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    let (orders, book) = mpsc::channel(16);
    tokio::spawn(greenhack::run_sync(|| number_orders(book)));

    let app = Router::new()
        .route("/", get(index))
        .route("/menu/{dish}", get(order))
        .route("/kitchen/{dish}", get(cook))
        .route("/belt/{plates}", get(belt))
        .route("/feast", get(feast))
        .route("/fugu", get(fugu))
        .layer(from_fn(answer_panics))
        .with_state(House { address, orders });

    println!("listening on http://{address}\n\n{}", guide(address));
    tokio::select! {
        result = axum::serve(listener, app).with_graceful_shutdown(ctrl_c()) => result,
        () = ctrl_c().then(|()| sleep(GRACE)) => Ok(()),
    }
}

// The handlers. To axum they are async functions.

#[greenhack::entry]
fn index(State(house): State<House>) -> String {
    guide(house.address)
}

#[greenhack::entry]
fn order(State(house): State<House>, Path(dish): Path<String>) -> Result<String, Failure> {
    let price = price_of(&dish)?;
    let number = house.enter_order();
    let plate = house.ask_kitchen(&dish)?;
    Ok(format!("order {number}: {plate}, {price} shells\n"))
}

#[greenhack::entry]
fn cook(Path(dish): Path<String>) -> String {
    info!("kitchen: {dish} is on the fire");
    await_sync(sleep(Duration::from_millis(500)));
    info!("kitchen: {dish} is ready");
    format!("a plate of {dish}")
}

#[greenhack::entry]
fn belt(Path(plates): Path<u64>) -> Body {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(greenhack::run_sync(move || fill_belt(plates, sender)));
    Body::from_stream(ReceiverStream::new(receiver))
}

#[greenhack::entry]
fn feast() -> &'static str {
    let _table = Table;
    for course in ["starter", "main dish", "dessert"] {
        info!("feast: the {course} is served");
        await_sync(sleep(Duration::from_secs(5)));
    }
    "that was a feast\n"
}

#[greenhack::entry]
fn fugu() -> String {
    await_sync(sleep(Duration::from_millis(10)));
    panic!("the cook has tasted the fugu");
}

// Below them, plain functions. Their signatures don't tell which of them wait.

type Failure = (StatusCode, String);

/// What the handlers share.
#[derive(Clone)]
struct House {
    address: SocketAddr,
    orders: mpsc::Sender<oneshot::Sender<u64>>,
}

impl House {
    /// Has an order entered in the book.
    fn enter_order(&self) -> u64 {
        let (reply, number) = oneshot::channel();
        await_sync(self.orders.send(reply)).expect("the book is kept");
        await_sync(number).expect("each order gets a number")
    }

    /// Asks the kitchen, a service of its own: as it happens, this one.
    fn ask_kitchen(&self, dish: &str) -> Result<String, Failure> {
        http_get(self.address, &format!("/kitchen/{dish}"))
            .map_err(|error| (StatusCode::BAD_GATEWAY, error.to_string()))
    }
}

/// Keeps the book while there can be orders: an actor is a plain loop.
fn number_orders(mut book: mpsc::Receiver<oneshot::Sender<u64>>) {
    let mut number = 0;
    while let Some(reply) = await_sync(book.recv()) {
        number += 1;
        // A guest who has hung up does not hear of it.
        let _ = reply.send(number);
    }
}

fn price_of(dish: &str) -> Result<u32, Failure> {
    match dish {
        "soup" => Ok(4),
        "stew" => Ok(12),
        _ => Err((StatusCode::NOT_FOUND, format!("there is no {dish} today\n"))),
    }
}

/// Sends plates until all are served or the guest has gone.
fn fill_belt(plates: u64, belt: mpsc::Sender<io::Result<String>>) {
    for plate in 1..=plates {
        // A full belt suspends this loop until the guest has read on.
        if await_sync(belt.send(Ok(format!("plate {plate}\n")))).is_err() {
            return info!("belt: stopped at plate {plate}, the guest has gone");
        }
    }
    info!("belt: served {plates} plates");
}

/// A table, which takes a while to clear.
struct Table;

impl Drop for Table {
    fn drop(&mut self) {
        if std::thread::panicking() {
            info!("feast: unwinding, the guest has gone");
        }
        // Waits, also while it unwinds.
        greenhack::await_in_drop(sleep(Duration::from_millis(100)));
        info!("feast: the table is cleared");
    }
}

/// Gets a page by HTTP/1.1.
fn http_get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = BufReader::new(await_sync(TcpStream::connect(address))?);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    await_sync(stream.write_all(request.as_bytes()))?;
    let status = read_line(&mut stream)?;
    while !read_line(&mut stream)?.is_empty() {}
    let mut body = String::new();
    await_sync(stream.read_to_string(&mut body))?;
    match status.split(' ').nth(1) {
        Some("200") => Ok(body),
        _ => Err(io::Error::other(format!("{path}: {status}"))),
    }
}

/// Reads a line, without its end.
fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    await_sync(stream.read_line(&mut line))?;
    Ok(line.trim_end().to_owned())
}

// The rest is as in any axum service.

/// Answers a panic with 500. Otherwise the connection would be closed.
async fn answer_panics(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        error!("{path}: panicked");
        (StatusCode::INTERNAL_SERVER_ERROR, "that is our fault\n").into_response()
    })
}

async fn ctrl_c() {
    tokio::signal::ctrl_c().await.expect("signals can be had");
}

fn guide(address: SocketAddr) -> String {
    format!(
        "\
curl {address}/menu/soup       asks its own kitchen, over HTTP
curl {address}/menu/pizza      404, by `?`
curl {address}/fugu            panics: 500, and the service goes on
curl -m 1 {address}/feast      15 s; but hangs up after 1 s, and it unwinds
curl -sN {address}/belt/1000000 | head -3
                                    streams, as fast as you read, until you hang up
seq 200 | xargs -P 200 -I_ curl -s {address}/menu/stew
                                    200 at once, each takes 0.5 s
"
    )
}
