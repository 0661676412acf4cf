//! Serves in place: each connection is pinned to a worker, so that no run hops.
//!
//! - Run it: `cargo run --features axum --example pinned`. It ends by itself.
//! - Try it: it asks itself. Put `axum::serve` in the place of
//!   `greenhack::axum::serve`, and the two threads are not the same.
//! - It prints the answers: `1 + 1 = 2, on serve-0, in place: true` and the like.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, ThreadId};
use std::time::Duration;

use axum::extract::{Extension, Path, Request};
use axum::middleware::{Next, from_fn};
use axum::{Router, response::Response, routing::get};
use greenhack::await_sync;
use tokio::net::TcpListener;

#[greenhack::main]
fn main() -> io::Result<()> {
    let listener = await_sync(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let app = Router::new()
        .route("/sum/{a}/{b}", get(sum))
        .layer(from_fn(note_thread));
    let guests = tokio::task::spawn_blocking(move || (1..=4).try_for_each(|n| ask(address, n)));

    // The workers serve; this thread accepts, until the guests have gone.
    let server = greenhack::axum::serve(listener, app).shutdown_timeout(Duration::from_secs(10));
    await_sync(server.with_graceful_shutdown(async { guests.await.unwrap().unwrap() }))
}

#[greenhack::entry]
fn sum(Path((a, b)): Path<(u32, u32)>, Extension(task): Extension<ThreadId>) -> String {
    await_sync(tokio::task::yield_now());
    let here = thread::current();
    let in_place = here.id() == task;
    let name = here.name().unwrap_or_default();
    format!("{a} + {b} = {}, on {name}, in place: {in_place}", a + b)
}

/// Notes where the task of the connection runs, for the handler to compare.
async fn note_thread(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(thread::current().id());
    next.run(request).await
}

fn ask(address: SocketAddr, n: u32) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(format!("GET /sum/{n}/{n} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{}", answer.lines().last().unwrap_or_default());
    assert!(answer.contains("on serve-") && answer.ends_with("in place: true"));
    Ok(())
}

#[test]
fn runs() {
    main().unwrap();
}
