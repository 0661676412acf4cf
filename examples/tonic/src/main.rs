//! gRPC with plain handlers: tonic's services, on connections that are pinned to
//! workers, so that no run hops.
//!
//! - Run it: `cargo run -p tonic-kitchen`. It serves until ctrl-c.
//! - Try it: `cargo run -p tonic-kitchen --bin guest`, and `--bin own_server` in
//!   the place of this.
//! - It prints its address; the guest what it got: `soup, on serve-0, in place:
//!   true` and the like.
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use axum::Router;
use greenhack::await_sync;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic_kitchen::kitchen;

#[greenhack::main]
fn main() -> io::Result<()> {
    let listener = await_sync(TcpListener::bind("127.0.0.1:50051"))?;
    println!("kitchen.Kitchen is at {}.", listener.local_addr()?);
    let closing_time = async { tokio::signal::ctrl_c().await.expect("a signal handler") };
    let server = greenhack::axum::serve(listener, app())
        .with_graceful_shutdown(closing_time)
        .shutdown_timeout(Duration::from_secs(10));
    await_sync(server)
}

/// A router of axum, which is what tonic makes of its services itself. What its
/// `Server` would add are layers, which axum has, too.
fn app() -> Router {
    Routes::new(kitchen()).prepare().into_axum_router()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tonic::Code;
    use tonic_kitchen::dine;

    use super::*;

    #[greenhack::test]
    fn handlers_run_in_place() {
        let listener = await_sync(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, answers) = mpsc::channel();
        let guests = async move {
            for _ in 0..2 {
                sender.send(dine(address, "soup").await).unwrap();
            }
            sender.send(dine(address, "").await).unwrap();
        };
        let workers = greenhack::workers::Builder::new()
            .threads(1)
            .thread_name("pinned");
        let server = greenhack::axum::serve(listener, app()).with_workers(workers);
        await_sync(server.with_graceful_shutdown(guests)).unwrap();

        let answers: Vec<_> = answers.iter().collect();
        for answers in &answers[..2] {
            assert_eq!(
                answers.as_ref().unwrap(),
                &[
                    "soup, on pinned-0, in place: true",
                    "spoon 1 of soup, on pinned-0, in place: true",
                    "spoon 2 of soup, on pinned-0, in place: true",
                ]
            );
        }
        let refused = answers[2].as_ref().unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "which dish?")
        );
        // The process's own start once, with the first run that hops; none has.
        greenhack::workers::Builder::new()
            .threads(1)
            .start()
            .unwrap();
    }
}
