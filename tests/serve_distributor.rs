//! `greenhack::axum::Distributor`: which worker gets which connection. The
//! workers here are tasks of one thread, each with a listener.
#![cfg(feature = "axum")]

#[path = "support/http.rs"]
mod http;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::Listener;
use futures::{FutureExt, StreamExt};
use greenhack::axum::{Connection, Connections, Distributor, WorkerListener};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, yield_now};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

type Worker = WorkerListener<TcpListener>;

struct Fixture {
    address: SocketAddr,
    connections: Connections<TcpListener>,
    distribute: JoinHandle<std::convert::Infallible>,
}

impl Fixture {
    async fn new(
        set: impl FnOnce(Distributor<TcpListener>) -> Distributor<TcpListener>,
    ) -> Fixture {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let distributor = set(Distributor::new(listener));
        let connections = distributor.connections();
        assert_eq!(distributor.local_addr().unwrap(), address);
        Fixture {
            address,
            connections,
            distribute: tokio::spawn(distributor.run()),
        }
    }

    /// Connects so many clients, and waits until they are accepted.
    async fn connect(&self, count: usize) -> Vec<TcpStream> {
        let before = self.connections.live();
        let mut clients = Vec::new();
        for n in 1..=count {
            clients.push(TcpStream::connect(self.address).await.unwrap());
            while self.connections.live() < before + n {
                yield_now().await;
            }
        }
        clients
    }

    fn live_per_worker(&self) -> Vec<usize> {
        self.connections.live_per_worker()
    }
}

/// Takes what has been offered.
fn take(worker: &mut Worker) -> Vec<Connection<TcpStream>> {
    std::iter::from_fn(|| worker.accept().now_or_never())
        .map(|(connection, _)| connection)
        .collect()
}

fn run(test: impl Future<Output = ()>) {
    support::current_thread().block_on(test);
}

#[test]
fn a_connection_goes_to_the_worker_that_has_the_fewest() {
    run(async {
        let f = Fixture::new(|distributor| distributor.stall_limit(LONG)).await;
        let mut workers = [f.connections.listener(), f.connections.listener()];
        let _clients = f.connect(6).await;
        assert_eq!(f.live_per_worker(), [3, 3]);
        let mut taken = workers.each_mut().map(take);
        assert_eq!([taken[0].len(), taken[1].len()], [3, 3]);
        assert_eq!(f.live_per_worker(), [3, 3]);
        taken[1].truncate(1);
        assert_eq!(f.live_per_worker(), [3, 1]);
        assert_eq!(f.connections.live(), 4);
        let _more = f.connect(2).await;
        assert_eq!(f.live_per_worker(), [3, 3]);
        drop(taken);
        assert_eq!(f.live_per_worker(), [0, 2]);
        assert_eq!(take(&mut workers[1]).len(), 2);
        assert_eq!(f.connections.live(), 0);
    });
}

#[test]
fn a_connection_moves_with_its_address_and_what_was_sent() {
    run(async {
        let f = Fixture::new(|distributor| distributor).await;
        let mut worker = f.connections.listener();
        let mut client = TcpStream::connect(f.address).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        // On another thread, and another runtime.
        let served = tokio::task::spawn_blocking(move || {
            support::current_thread().block_on(async {
                let (mut connection, address) = worker.accept().await;
                let mut buffer = [0; 4];
                connection.read_exact(&mut buffer).await.unwrap();
                assert!(connection.is_write_vectored());
                connection.set_nodelay(true).unwrap();
                connection.write_all(&buffer).await.unwrap();
                connection.shutdown().await.unwrap();
                address
            })
        });
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "ping");
        assert_eq!(served.await.unwrap(), client.local_addr().unwrap());
    });
}

#[test]
fn what_a_worker_has_not_taken_when_it_leaves_is_for_the_others() {
    run(async {
        let f = Fixture::new(|distributor| distributor.stall_limit(LONG)).await;
        let leaves = f.connections.listener();
        let mut stays = f.connections.listener();
        let _clients = f.connect(4).await;
        drop(leaves);
        assert_eq!(f.live_per_worker(), [2]);
        // One of the rest at a time, so that others have their turn.
        for _ in 0..4 {
            stays.accept().await;
        }
    });
}

#[test]
fn a_worker_that_does_not_come_loses_what_it_has_not_taken() {
    run(async {
        let limit = Duration::from_millis(1);
        let f = Fixture::new(|distributor| distributor.stall_limit(limit)).await;
        let mut stuck = f.connections.listener();
        let mut comes = f.connections.listener();
        let _clients = f.connect(4).await;
        let mut taken = Vec::new();
        for _ in 0..4 {
            taken.push(comes.accept().await);
        }
        assert_eq!(f.live_per_worker(), [0, 4]);
        // It has the fewest, but gets nothing.
        let _more = f.connect(1).await;
        assert_eq!(f.live_per_worker(), [0, 5]);
        taken.push(comes.accept().await);
        // Until it is back.
        assert!(stuck.accept().now_or_never().is_none());
        let _more = f.connect(1).await;
        assert_eq!(f.live_per_worker(), [1, 5]);
        stuck.accept().await;
    });
}

#[test]
fn what_comes_while_all_are_stuck_waits_for_the_first_that_comes() {
    run(async {
        let limit = Duration::from_millis(1);
        let f = Fixture::new(|distributor| distributor.stall_limit(limit)).await;
        let mut workers = [f.connections.listener(), f.connections.listener()];
        let _clients = f.connect(4).await;
        while f.live_per_worker() != [0, 0] {
            yield_now().await;
        }
        let _more = f.connect(1).await;
        assert_eq!(f.connections.live(), 5);
        assert_eq!(f.live_per_worker(), [0, 0]);
        let mut taken = Vec::new();
        for _ in 0..4 {
            taken.push(workers[1].accept().await);
        }
        taken.push(workers[0].accept().await);
        assert_eq!(f.live_per_worker(), [1, 4]);
    });
}

#[test]
fn a_worker_that_waits_is_woken() {
    run(async {
        let f = Fixture::new(|distributor| distributor).await;
        let mut worker = f.connections.listener();
        let accept = tokio::spawn(async move { worker.accept().await.1 });
        yield_now().await;
        let client = TcpStream::connect(f.address).await.unwrap();
        assert_eq!(accept.await.unwrap(), client.local_addr().unwrap());
        assert_eq!(f.connections.live(), 0);
    });
}

#[test]
fn an_accept_that_is_dropped_loses_nothing() {
    run(async {
        let f = Fixture::new(|distributor| distributor.stall_limit(LONG)).await;
        let mut worker = f.connections.listener();
        for _ in 0..3 {
            assert!(worker.accept().now_or_never().is_none());
        }
        let leaves = f.connections.listener();
        let _clients = f.connect(4).await;
        drop(leaves);
        let mut taken = take(&mut worker);
        // After the first of the rest it gives way, and is dropped there.
        assert_eq!(taken.len(), 3);
        taken.push(worker.accept().await.0);
        assert_eq!(f.connections.live(), 4);
    });
}

#[test]
fn the_limit_holds_until_a_connection_ends() {
    run(async {
        let f = Fixture::new(|distributor| distributor.max_connections(2)).await;
        let mut worker = f.connections.listener();
        let _clients = f.connect(2).await;
        let first = worker.accept().await;
        let _second = worker.accept().await;
        let _third = TcpStream::connect(f.address).await.unwrap();
        for _ in 0..100 {
            yield_now().await;
        }
        assert_eq!(f.connections.live(), 2);
        drop(first);
        let _taken = worker.accept().await;
        assert_eq!(f.connections.live(), 2);
    });
}

#[test]
fn the_end_of_the_distributor_closes_what_nobody_has_taken() {
    run(async {
        let f = Fixture::new(|distributor| distributor.stall_limit(LONG)).await;
        let mut worker = f.connections.listener();
        let mut clients = f.connect(2).await;
        let (mut taken, address) = worker.accept().await;
        clients.sort_by_key(|client| client.local_addr().unwrap() != address);
        f.distribute.abort();
        assert!(f.distribute.await.unwrap_err().is_cancelled());
        let mut nothing = String::new();
        let closed = clients[1].read_to_string(&mut nothing).await;
        assert!(!matches!(closed, Ok(1..)));
        assert_eq!(f.connections.live(), 1);
        assert!(worker.accept().now_or_never().is_none());
        assert!(TcpStream::connect(f.address).await.is_err());
        // What has been taken goes on.
        taken.write_all(b"pong").await.unwrap();
        let mut buffer = [0; 4];
        clients[0].read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"pong");
    });
}

#[test]
fn the_stream_of_a_worker_ends_with_the_distributor() {
    run(async {
        let f = Fixture::new(|distributor| distributor.stall_limit(LONG)).await;
        let mut stream = f.connections.listener();
        assert!(stream.next().now_or_never().is_none());
        let clients = f.connect(1).await;
        let connection = stream.next().await.unwrap().unwrap();
        assert_eq!(
            connection.peer_addr().unwrap(),
            clients[0].local_addr().unwrap()
        );
        let waits = tokio::spawn(async move {
            let ended = stream.next().await.is_none();
            // A listener has no end, and a stream stays ended.
            assert!(stream.accept().now_or_never().is_none());
            ended && stream.next().await.is_none()
        });
        yield_now().await;
        assert!(!waits.is_finished());
        f.distribute.abort();
        assert!(waits.await.unwrap());
        assert!(f.connections.listener().next().await.is_none());
        assert_eq!(f.connections.live(), 1);
    });
}

#[test]
fn a_stream_takes_its_turn_with_the_rest() {
    run(async {
        let f = Fixture::new(|distributor| distributor.stall_limit(LONG)).await;
        let leaves = f.connections.listener();
        let mut stream = f.connections.listener();
        let _clients = f.connect(4).await;
        drop(leaves);
        let mut taken = Vec::new();
        while let Some(Some(connection)) = stream.next().now_or_never() {
            taken.push(connection.unwrap());
        }
        // Two of its own and one of the rest; then it gives way, and is woken.
        assert_eq!(taken.len(), 3);
        taken.push(stream.next().await.unwrap().unwrap());
        assert_eq!(f.live_per_worker(), [4]);
    });
}

#[test]
fn hyper_serves_the_stream_of_each_worker() {
    use std::convert::Infallible;

    use greenhack::workers::Builder;
    use greenhack::{await_sync, run_sync_local};
    use http::Client;
    use hyper::Response;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::task::JoinSet;

    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let distributor = Distributor::new(listener).stall_limit(LONG);
        let connections = distributor.connections();
        let builder = Builder::new().threads(2).thread_name("hyper");
        let workers = builder.run_each(move |_| {
            let mut connections = connections.listener();
            async move {
                let mut tasks = JoinSet::new();
                while let Some(connection) = connections.next().await {
                    let service = service_fn(|_| {
                        let task = std::thread::current().id();
                        run_sync_local(move || {
                            await_sync(yield_now());
                            let here = std::thread::current();
                            assert_eq!(here.id(), task);
                            let name = here.name().unwrap().to_owned();
                            Ok::<_, Infallible>(Response::new(name))
                        })
                    });
                    let io = TokioIo::new(connection.unwrap());
                    tasks.spawn_local(http1::Builder::new().serve_connection(io, service));
                }
                // Each ends with its client.
                let results = tasks.join_all().await;
                results.iter().filter(|result| result.is_ok()).count()
            }
        });
        let distribute = tokio::spawn(distributor.run());
        let clients = tokio::task::spawn_blocking(move || {
            let mut clients = [0; 4].map(|_| Client::connect(address));
            for _ in 0..2 {
                let mut names = clients.each_mut().map(|client| client.get("/"));
                names.sort();
                let names = names.each_ref().map(|(status, name)| (*status, &**name));
                let (zero, one) = ((200, "hyper-0"), (200, "hyper-1"));
                assert_eq!(names, [zero, zero, one, one]);
            }
        });
        clients.await.unwrap();
        distribute.abort();
        assert_eq!(workers.unwrap().await, [2, 2]);
    });
}

#[cfg(feature = "tonic")]
#[test]
fn tonic_learns_the_addresses_of_a_connection() {
    use tonic::transport::server::Connected;

    run(async {
        let f = Fixture::new(|distributor| distributor).await;
        let mut stream = f.connections.listener();
        let client = TcpStream::connect(f.address).await.unwrap();
        let info = stream.next().await.unwrap().unwrap().connect_info();
        assert_eq!(info.remote_addr(), Some(client.local_addr().unwrap()));
        assert_eq!(info.local_addr(), Some(f.address));
    });
}

#[test]
fn the_workers_side_can_be_sent_and_shared() {
    assert_impl_all!(Distributor<TcpListener>: Send, Sync);
    assert_impl_all!(Connections<TcpListener>: Send, Sync, Clone);
    assert_impl_all!(Worker: Send, Sync);
    assert_not_impl_any!(Worker: Clone);
    assert_impl_all!(Connection<TcpStream>: Send, Sync, Unpin);
    fn is_send<T: Send>(_: &T) {}
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        is_send(&Distributor::new(listener).run());
    });
}
