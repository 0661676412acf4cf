//! tonic's own `Server`, for who needs its settings, on the connections that a
//! `Distributor` hands to workers.
//!
//! - Run it: `cargo run -p tonic-kitchen --bin own_server`, until ctrl-c.
//! - Try it: as the other one.
//! - It prints its address. Answers are like `soup, on grpc-0, in place: true`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::future::pending;
use std::time::Duration;

use greenhack::await_sync;
use greenhack::axum::Distributor;
use greenhack::workers::Builder;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic_kitchen::kitchen;

/// How long calls have to end by themselves, and then to clean up.
const LIMIT: Duration = Duration::from_secs(10);

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
    let mut workers = Builder::new()
        .thread_name("grpc")
        .run_each(move |_worker| {
            Server::builder()
                .max_concurrent_streams(100)
                .http2_keepalive_interval(Some(Duration::from_secs(30)))
                .add_service(kitchen())
                // It shuts down gracefully when the stream ends.
                .serve_with_incoming_shutdown(connections.listener(), pending())
        })?;
    let distribute = tokio::spawn(distributor.run());
    await_sync(closing_time);
    // With it the streams end.
    distribute.abort();
    match await_sync(timeout(LIMIT, &mut workers)) {
        Ok(results) => results.into_iter().collect::<Result<(), _>>()?,
        Err(_) => await_sync(workers.shutdown(LIMIT)),
    }
    Ok(())
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
