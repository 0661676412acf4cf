//! A library for sync and async callers, written once, with `#[exempt]`.
//!
//! - Run it: `cargo run --example two_colours`. It ends by itself.
//! - Try it: call `ask()` in the `async` block; the panic says what to write.
//! - It prints an answer three times, and how each caller has waited for it.

use std::io;

use client::Client;

fn main() {
    let blocked = ask().unwrap();
    let (suspended, awaited) = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let suspended = tokio::spawn(handler()).await.unwrap().unwrap();
        let mut client = client::connect_async().await.unwrap();
        (suspended, client.ask_for_async::<u64>(42).await.unwrap())
    });
    let all = format!("{blocked}, {suspended}, awaited {awaited}");
    println!("{all}");
    assert_eq!(all, "blocked 42, suspended 42, awaited 42");
}

#[greenhack::entry]
fn handler() -> io::Result<String> {
    ask()
}

fn ask() -> io::Result<String> {
    let how = ["blocked", "suspended"][usize::from(greenhack::in_context())];
    let answer: u64 = client::connect()?.ask_for(42)?;
    Ok(format!("{how} {answer}"))
}

/// The library: async inside, with a plain twin of each name for plain callers.
mod client {
    use std::io;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    pub(crate) trait Client {
        #[greenhack::exempt]
        async fn ask(&mut self, question: u32) -> io::Result<u32>;
        #[greenhack::exempt]
        async fn ask_for<T: From<u32>>(&mut self, question: u32) -> io::Result<T> {
            self.ask_async(question).await.map(T::from)
        }
    }
    impl Client for TcpStream {
        async fn ask_async(&mut self, question: u32) -> io::Result<u32> {
            self.write_u32(question).await?;
            self.read_u32().await
        }
    }

    /// Connects with a server that sends back what it gets.
    #[greenhack::exempt]
    pub(crate) async fn connect() -> io::Result<TcpStream> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            let (mut reader, mut writer) = listener.accept().await?.0.into_split();
            tokio::io::copy(&mut reader, &mut writer).await
        });
        TcpStream::connect(address).await
    }
}

#[test]
fn runs() {
    main();
}
