//! Agents between threads and runtimes.

#[path = "support/server.rs"]
mod server;
#[path = "../../support/mod.rs"]
mod support;

use std::io::Read;
use std::sync::mpsc;
use std::thread;

use axum::Router;
use axum::routing::get;
use greenhack::{await_sync, run_sync, run_sync_local};
use server::{Connections, Server, agent, answer, listen, read_header};
use static_assertions::assert_impl_all;
use support::{Fixture, Place, current_thread};
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use ureq::{Agent, Error};

// An agent can be made of them, and be shared.
assert_impl_all!(greenhack::ureq::TcpConnector: Send, Sync, Unpin, Default);
assert_impl_all!(greenhack::ureq::DefaultResolver: Send, Sync, Unpin, Default);

/// A server on a thread of its own.
struct Kitchen {
    server: Server,
    _runtime: Runtime,
}

impl Kitchen {
    fn start() -> Kitchen {
        let runtime = multi_thread(1);
        let app = Router::new().route("/", get(|| async { "soup" }));
        let server = runtime.block_on(Server::start(app));
        Kitchen {
            server,
            _runtime: runtime,
        }
    }
}

fn multi_thread(workers: usize) -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .unwrap()
}

/// One request in a run of `runtime`.
fn in_run(runtime: &Runtime, agent: &Agent, kitchen: &Kitchen) -> String {
    let (agent, url) = (agent.clone(), kitchen.server.url("/"));
    let run = run_sync(move || server::get(&agent, &url).unwrap());
    runtime.block_on(async { tokio::spawn(run).await.unwrap() })
}

const ONE: Connections = Connections {
    accepted: 1,
    open: 1,
};

#[test]
fn smoke() {
    let (kitchen, agent) = (Kitchen::start(), agent());
    for place in support::PLACES {
        Fixture::new(place).block_on(async {
            let (agent, url) = (agent.clone(), kitchen.server.url("/"));
            let run = place.spawn(move || server::get(&agent, &url).unwrap());
            assert_eq!(run.await.unwrap(), "soup");
        });
    }
    // A single connection went along with the agent, and its runtimes are gone.
    assert_eq!(kitchen.server.connections(), ONE);
}

#[test]
fn a_plain_thread_makes_its_requests_without_a_runtime() {
    let (kitchen, agent) = (Kitchen::start(), agent());
    for _ in 0..2 {
        assert_eq!(
            server::get(&agent, &kitchen.server.url("/")).unwrap(),
            "soup"
        );
    }
    assert_eq!(kitchen.server.connections(), ONE);
}

#[test]
fn threads_that_may_block_make_requests() {
    let (kitchen, agent) = (Kitchen::start(), agent());
    let runtime = multi_thread(1);
    let url = kitchen.server.url("/");
    let guard = runtime.enter();
    assert_eq!(server::get(&agent, &url).unwrap(), "soup");
    drop(guard);
    let client = agent.clone();
    let blocking = runtime.spawn_blocking(move || server::get(&client, &url).unwrap());
    assert_eq!(runtime.block_on(blocking).unwrap(), "soup");
    assert_eq!(kitchen.server.connections(), ONE);
}

#[test]
fn a_connection_outlives_the_runtime_that_opened_it() {
    let (kitchen, agent) = (Kitchen::start(), agent());
    for _ in 0..3 {
        let runtime = current_thread();
        assert_eq!(in_run(&runtime, &agent, &kitchen), "soup");
        drop(runtime);
    }
    // On a plain thread, and in a runtime again.
    let url = kitchen.server.url("/");
    assert_eq!(server::get(&agent, &url).unwrap(), "soup");
    assert_eq!(in_run(&multi_thread(1), &agent, &kitchen), "soup");
    assert_eq!(kitchen.server.connections(), ONE);
}

#[test]
fn a_connection_does_not_depend_on_a_runtime_that_nobody_drives() {
    let (kitchen, agent) = (Kitchen::start(), agent());
    let (first, second) = (current_thread(), current_thread());
    for _ in 0..3 {
        // While one is driven, the other is not.
        assert_eq!(in_run(&first, &agent, &kitchen), "soup");
        assert_eq!(in_run(&second, &agent, &kitchen), "soup");
    }
    assert_eq!(kitchen.server.connections(), ONE);
}

#[test]
fn a_connection_that_was_closed_is_known_in_a_runtime_that_was_not_driven() {
    let runtime = current_thread();
    let other = current_thread();
    let agent = agent();
    let (listener, url) = other.block_on(listen());
    let (at, told) = (url.clone(), agent.clone());
    let (close, may_close) = mpsc::channel();
    let (closed, is_closed) = mpsc::channel();
    let server = thread::spawn(move || {
        other.block_on(async {
            for dish in ["soup", "rice"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_header(&mut stream).await;
                answer(&mut stream, dish).await;
                may_close.recv().unwrap();
                drop(stream);
                closed.send(()).unwrap();
            }
        });
    });
    let run = run_sync_local(move || server::get(&told, &at).unwrap());
    assert_eq!(runtime.block_on(run), "soup");
    // The connection is in the pool, and is closed after that.
    close.send(()).unwrap();
    is_closed.recv().unwrap();
    let run = run_sync_local(move || server::get(&agent, &url).unwrap());
    assert_eq!(runtime.block_on(run), "rice");
    close.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn an_agent_is_shared_by_all_workers() {
    let (kitchen, agent) = (Kitchen::start(), agent());
    Fixture::new(Place::Worker).block_on(async {
        for _ in 0..20 {
            let runs = [(); 8].map(|()| {
                let (agent, url) = (agent.clone(), kitchen.server.url("/"));
                Place::Worker.spawn(move || server::get(&agent, &url).unwrap())
            });
            for run in runs {
                assert_eq!(run.await.unwrap(), "soup");
            }
        }
    });
    // Three are kept of each eight.
    assert!(kitchen.server.connections().accepted <= 8 + 19 * 8);
    multi_thread(1).block_on(kitchen.server.until_open(3));
}

#[test]
fn a_response_is_read_in_another_runtime_than_it_came_to() {
    let servers = multi_thread(1);
    let (listener, url) = servers.block_on(listen());
    let (go_on, may_go_on) = oneshot::channel::<()>();
    servers.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_header(&mut stream).await;
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsoup";
        stream.write_all(half.as_bytes()).await.unwrap();
        may_go_on.await.unwrap();
        stream.write_all(b"rice").await.unwrap();
    });
    let agent = agent();
    let first = current_thread();
    let begun = run_sync(move || {
        let mut response = agent.get(&url).call().unwrap();
        let mut half = [0; 4];
        response
            .body_mut()
            .as_reader()
            .read_exact(&mut half)
            .unwrap();
        (response, half)
    });
    let (mut response, half) = first.block_on(async { tokio::spawn(begun).await.unwrap() });
    assert_eq!(&half, b"soup");
    drop(first);

    let second = current_thread();
    let rest = run_sync_local(move || response.body_mut().read_to_string().unwrap());
    let go_on = async { go_on.send(()).unwrap() };
    let (rest, ()) = second.block_on(async { tokio::join!(rest, go_on) });
    assert_eq!(rest, "rice");
}

#[test]
fn the_runtime_of_the_caller_can_be_that_of_the_socket() {
    let kitchen = Kitchen::start();
    let caller = multi_thread(1);
    let (agent, url) = (agent(), kitchen.server.url("/"));
    let run = greenhack::builder()
        .caller_runtime(true)
        .run_sync(move || (server::get(&agent, &url), server::get(&agent, &url), agent));
    let (first, second, _agent) = caller.block_on(async { tokio::spawn(run).await.unwrap() });
    assert_eq!(
        (first.unwrap(), second.unwrap()),
        ("soup".into(), "soup".into())
    );
    assert_eq!(kitchen.server.connections(), ONE);
}

#[test]
fn async_code_gets_an_error_that_says_what_to_write() {
    let (kitchen, agent) = (Kitchen::start(), agent());
    let url = kitchen.server.url("/");
    current_thread().block_on(async {
        let Error::Other(error) = server::get(&agent, &url).unwrap_err() else {
            panic!("another error")
        };
        let message = error.to_string();
        let fact = "a request of `greenhack::ureq` was made, or its response read, in async code";
        assert!(message.starts_with(fact), "{message}");
        assert!(
            message.ends_with("`greenhack::run_sync(|| ..).await`"),
            "{message}"
        );
        assert!(!message.contains("write `.await`"), "{message}");

        // And in a future that a run awaits.
        let (client, at) = (agent.clone(), url.clone());
        let error = run_sync_local(move || {
            await_sync(async { server::get(&client, &at).unwrap_err().to_string() })
        });
        assert!(error.await.contains(fact));

        // The agent is as good as before.
        let run = run_sync(move || server::get(&agent, &url).unwrap());
        assert_eq!(run.await, "soup");
    });
}

#[test]
fn a_response_that_is_read_in_async_code_gets_the_same_error() {
    current_thread().block_on(async {
        let (listener, url) = listen().await;
        let agent = agent();
        let run = run_sync_local(move || agent.get(&url).call().unwrap());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_header(&mut stream).await;
            let header = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";
            stream.write_all(header.as_bytes()).await.unwrap();
            stream
        };
        let (mut response, mut stream) = tokio::join!(run, server);
        let error = response.body_mut().read_to_string().unwrap_err();
        assert!(error.to_string().contains("async code"), "{error}");
        // Nothing was taken, and it can be read where it should be.
        stream.write_all(b"soup").await.unwrap();
        let run = run_sync_local(move || response.body_mut().read_to_string().unwrap());
        assert_eq!(run.await, "soup");
    });
}

#[test]
fn a_request_in_no_suspend_panics_and_the_agent_goes_on() {
    let (kitchen, agent) = (Kitchen::start(), agent());
    let url = kitchen.server.url("/");
    current_thread().block_on(async {
        run_sync_local(move || {
            let (message, ..) =
                support::panic_of(|| greenhack::no_suspend(|| drop(server::get(&agent, &url))));
            assert!(message.contains("no_suspend"), "{message}");
            assert_eq!(server::get(&agent, &url).unwrap(), "soup");
        })
        .await;
    });
}

#[test]
fn a_runtime_without_a_driver_panics_and_the_agent_goes_on() {
    let (kitchen, agent) = (Kitchen::start(), agent());
    let url = kitchen.server.url("/");
    let ready = current_thread();
    assert_eq!(in_run(&ready, &agent, &kitchen), "soup");
    let bare = Builder::new_current_thread().build().unwrap();
    let (client, at) = (agent.clone(), url.clone());
    let run = run_sync_local(move || {
        let (message, ..) = support::panic_of(|| drop(server::get(&client, &at)));
        message
    });
    let message = bare.block_on(run);
    assert!(message.contains("enable_io"), "{message}");
    assert_eq!(in_run(&ready, &agent, &kitchen), "soup");
}

#[test]
fn requests_of_one_handler_overlap_in_a_scope() {
    use std::sync::Arc;
    use tokio::sync::Barrier;
    let all_are_here = Arc::new(Barrier::new(3));
    let app = Router::new().route(
        "/",
        get(move || async move {
            all_are_here.wait().await;
            "soup"
        }),
    );
    current_thread().block_on(async {
        let kitchen = Server::start(app).await;
        let (agent, url) = (agent(), kitchen.url("/"));
        let dishes = run_sync_local(move || {
            greenhack::join_all([(); 3].map(|()| || server::get(&agent, &url).unwrap()))
        });
        assert_eq!(dishes.await, ["soup"; 3]);
    });
}
