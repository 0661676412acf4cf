//! tonic's own `Server`, for who needs its settings, on the connections that a
//! `Distributor` hands to workers.
//!
//! - Run it: `cargo run -p tonic-kitchen --bin own_server`, until ctrl-c.
//! - Try it: as the other one.
//! - It prints its address. Answers are like `soup, on grpc-0, in place: true`.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use futures::Stream;
use futures::stream::unfold;
use greenhack::await_sync;
use greenhack::axum::{Connection, Distributor, WorkerListener};
use greenhack::workers::Builder;
use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic_kitchen::kitchen;

#[greenhack::main]
fn main() -> Result<(), Box<dyn Error>> {
    let listener = await_sync(TcpListener::bind("127.0.0.1:50051"))?;
    println!("kitchen.Kitchen is at {}.", listener.local_addr()?);
    serve(listener, async {
        tokio::signal::ctrl_c().await.expect("a signal handler")
    })
}

/// Serves until `closing_time`.
fn serve(
    listener: TcpListener,
    closing_time: impl Future<Output = ()>,
) -> Result<(), Box<dyn Error>> {
    let distributor = Distributor::new(listener);
    let connections = distributor.connections();
    let workers = Builder::new()
        .thread_name("grpc")
        .run_each(move |_worker| {
            Server::builder()
                .max_concurrent_streams(100)
                .http2_keepalive_interval(Some(Duration::from_secs(30)))
                .add_service(kitchen())
                .serve_with_incoming(incoming(connections.listener()))
        })?;
    let distribute = tokio::spawn(distributor.run());
    await_sync(closing_time);
    distribute.abort();
    await_sync(workers.shutdown(Duration::from_secs(10)));
    Ok(())
}

/// The connections of one worker, as tonic wants them.
fn incoming(
    listener: WorkerListener<TcpListener>,
) -> impl Stream<Item = Result<Pinned, Infallible>> {
    unfold(listener, async |mut listener| {
        let (connection, _client) = listener.accept().await;
        Some((Ok(Pinned(connection)), listener))
    })
}

/// A connection for which tonic's `Connected` can be implemented here.
struct Pinned(Connection<TcpStream>);

impl Connected for Pinned {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.0.connect_info()
    }
}

impl AsyncRead for Pinned {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Pinned {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[greenhack::test]
    fn handlers_run_in_place() {
        let listener = await_sync(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        serve(listener, async {
            let answers = tonic_kitchen::dine(address, "soup").await.unwrap();
            assert_eq!(answers.len(), 3);
            for answer in answers {
                assert!(answer.contains("soup, on grpc-"), "{answer}");
                assert!(answer.ends_with("in place: true"), "{answer}");
            }
        })
        .unwrap();
        // The process's own start once, with the first run that hops; none has.
        Builder::new().threads(1).start().unwrap();
    }
}
