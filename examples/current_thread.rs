//! Plain handlers on a current_thread runtime: they run in place, without
//! workers. One thread is the service and its client at once.
//!
//! - Run it: `cargo run --example current_thread`. It ends by itself.
//! - Try it: it asks itself.
//! - It prints the answer: `1 + 1 = 2, on the thread of main: true`.

use std::io;
use std::net::SocketAddr;
use std::thread::{self, ThreadId};

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use greenhack::await_sync;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = Router::new()
        .route("/sum/{a}/{b}", get(sum))
        .with_state(thread::current().id());
    tokio::spawn(axum::serve(listener, app).into_future());

    let answer = greenhack::run_sync(move || http_get(address, "/sum/1/1")).await?;
    println!("{answer}");
    assert_eq!(answer, "1 + 1 = 2, on the thread of main: true");
    Ok(())
}

#[greenhack::entry]
fn sum(State(main): State<ThreadId>, Path((a, b)): Path<(u32, u32)>) -> String {
    let sum = slow_sum(a, b);
    let in_place = thread::current().id() == main;
    format!("{a} + {b} = {sum}, on the thread of main: {in_place}")
}

fn slow_sum(a: u32, b: u32) -> u32 {
    await_sync(tokio::task::yield_now());
    a + b
}

/// Gets the body of a page by HTTP/1.0.
fn http_get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = await_sync(TcpStream::connect(address))?;
    await_sync(stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()))?;
    let mut answer = String::new();
    await_sync(stream.read_to_string(&mut answer))?;
    let body = answer.split_once("\r\n\r\n").map(|(_head, body)| body);
    Ok(body.unwrap_or_default().to_owned())
}

#[test]
fn runs() {
    main().unwrap();
}
