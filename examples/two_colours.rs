//! One library function for sync and async callers: it is plain, and awaits.
//!
//! - Run it: `cargo run --example two_colours`. It ends by itself.
//! - Try it: call `greeting` in the `async` block; the panic says what to write.
//! - It prints a greeting three times, and how each caller has waited for it.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};

use greenhack::{await_sync, in_context};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

fn main() {
    let address = greeter();

    // On a plain thread it blocks, on a runtime of the process.
    let plain = greeting(address).unwrap();

    let (in_a_run, in_a_pool) = tokio::runtime::Runtime::new().unwrap().block_on(async {
        // In a run it suspends: the thread serves other tasks meanwhile.
        let run = greenhack::run_sync(move || greeting(address)).await;

        // On tokio's threads for blocking code it blocks, on that runtime.
        let pool = tokio::task::spawn_blocking(move || greeting(address)).await;

        // In async code it can't wait. A library can ask.
        assert!(greenhack::try_await_sync(async {}).is_err());
        (run.unwrap(), pool.unwrap().unwrap())
    });

    let all = [plain, in_a_run, in_a_pool].join("\n");
    println!("{all}");
    assert_eq!(all, "hello, blocked\nhello, suspended\nhello, blocked");
}

/// The library: reads what `address` has to say, and adds how it has waited.
fn greeting(address: SocketAddr) -> io::Result<String> {
    let stream = await_sync(TcpStream::connect(address))?;
    let line = await_sync(BufReader::new(stream).lines().next_line())?;
    let how = if in_context() { "suspended" } else { "blocked" };
    Ok(format!("{}, {how}", line.unwrap_or_default()))
}

/// Starts a server that greets.
fn greeter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for guest in listener.incoming() {
            guest.unwrap().write_all(b"hello\n").unwrap();
        }
    });
    address
}

#[test]
fn runs() {
    main();
}
