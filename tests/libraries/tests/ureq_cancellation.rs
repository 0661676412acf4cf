//! Requests that are cancelled, and the agent after that.

#[path = "support/server.rs"]
mod server;
#[path = "../../support/mod.rs"]
mod support;

use std::future::{Future, poll_fn};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use axum::Router;
use axum::body::Bytes;
use axum::response::Redirect;
use axum::routing::{get, post};
use greenhack::{Cancelled, run_sync_local};
use server::{Server, agent, answer, config, listen, read_header};
use support::{current_thread, in_each_place, on_drop, signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

const SIZE: usize = 1 << 18;

fn kitchen() -> Router {
    Router::new()
        .route("/", get(|| async { "soup" }))
        .route("/much", get(|| async { Bytes::from(vec![b'x'; SIZE]) }))
        .route("/moved", get(|| async { Redirect::permanent("/much") }))
        .route(
            "/length",
            post(|body: Bytes| async move { body.len().to_string() }),
        )
}

/// A download behind a redirect, an upload, and one more on the same connection.
fn errands(agent: &Agent, url: &str) {
    let mut response = agent.get(format!("{url}moved")).call().unwrap();
    let body = response.body_mut().read_to_vec().unwrap();
    assert_eq!(body.len(), SIZE);
    let mut response = agent.post(format!("{url}length")).send(&body[..]).unwrap();
    assert_eq!(
        response.body_mut().read_to_string().unwrap(),
        SIZE.to_string()
    );
    assert_eq!(server::get(agent, url).unwrap(), "soup");
}

/// Polls `future` until it has been pending so many times, and drops it.
async fn for_pendings<F: Future>(pendings: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = pendings;
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// Cancels `errands` at each of its waits in turn, with one agent.
async fn cancel_at_each_wait(kitchen: &Server, agent: &Agent) {
    let mut waits = 0;
    loop {
        let (agent, url) = (agent.clone(), kitchen.url("/"));
        let run = run_sync_local(move || errands(&agent, &url));
        if for_pendings(waits, run).await.is_some() {
            break;
        }
        waits += 1;
    }
    assert!(waits > 4, "{waits} waits");
    // Whatever was cancelled is closed, and what is in the pool is good.
    let (client, url) = (agent.clone(), kitchen.url("/"));
    run_sync_local(move || errands(&client, &url)).await;
    kitchen.until_open(1).await;
    assert_eq!(greenhack::leaked_runs(), 0);
}

#[test]
fn smoke() {
    current_thread().block_on(async {
        let kitchen = Server::start(kitchen()).await;
        cancel_at_each_wait(&kitchen, &agent()).await;
    });
}

#[test]
fn an_agent_is_as_good_as_before_wherever_tls_was_cancelled() {
    current_thread().block_on(async {
        let (kitchen, certificate) = Server::start_tls(kitchen()).await;
        let roots = RootCerts::new_with_certs(&[Certificate::from_der(&certificate).to_owned()]);
        let tls = TlsConfig::builder().root_certs(roots).build();
        let agent = greenhack::ureq::agent_with(config().tls_config(tls).build());
        cancel_at_each_wait(&kitchen, &agent).await;
    });
}

/// Aborts the run of `request` when a server has come to the end of `so_far`, and makes
/// one more with the same agent.
fn abort_when(
    so_far: impl AsyncFn(&mut TcpStream) + Copy,
    request: impl Fn(&Agent, &str) + Send + Copy + 'static,
) {
    in_each_place(|place| async move {
        let (listener, url) = listen().await;
        let agent = agent();
        let (client, address) = (agent.clone(), url.clone());
        let (unwound, has_unwound) = signal();
        let run = place.spawn(move || {
            let _unwound = unwound;
            request(&client, &address);
            unreachable!("it is cancelled");
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        so_far(&mut stream).await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        has_unwound.wait().await;
        // The connection is closed, whatever was on it.
        let closed = async {
            while stream
                .read(&mut [0; 1 << 16])
                .await
                .is_ok_and(|read| read > 0)
            {}
        };
        closed.await;

        let run = place.spawn(move || server::get(&agent, &url).unwrap());
        let (mut stream, _) = listener.accept().await.unwrap();
        read_header(&mut stream).await;
        answer(&mut stream, "soup").await;
        assert_eq!(run.await.unwrap(), "soup");
    });
}

#[test]
fn a_request_is_cancelled_in_its_handshake() {
    abort_when(
        async |stream| {
            stream.read_u8().await.unwrap();
        },
        |agent, url| {
            let url = url.replace("http:", "https:");
            let _ = agent.get(url).call();
        },
    );
}

#[test]
fn a_request_is_cancelled_while_it_sends_its_body() {
    abort_when(
        async |stream| {
            read_header(stream).await;
        },
        |agent, url| {
            let _ = agent.post(url).send(&vec![b'x'; 64 << 20][..]);
        },
    );
}

#[test]
fn a_request_is_cancelled_while_it_waits_for_the_answer() {
    abort_when(
        async |stream| {
            read_header(stream).await;
        },
        |agent, url| {
            let _ = agent.get(url).call();
        },
    );
}

#[test]
fn a_request_is_cancelled_while_it_reads_the_answer() {
    abort_when(
        async |stream| {
            read_header(stream).await;
            let half = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nsoup";
            stream.write_all(half.as_bytes()).await.unwrap();
        },
        |agent, url| {
            let _ = server::get(agent, url);
        },
    );
}

#[test]
fn handlers_that_are_hung_up_on_leave_a_good_agent_and_a_full_pool() {
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let agent = agent();
        let ended = Arc::new(AtomicUsize::new(0));
        let runs: Vec<_> = (0..60)
            .map(|_| {
                let (agent, url, ended) = (agent.clone(), kitchen.url("/"), ended.clone());
                place.spawn(move || {
                    let _ended = on_drop(|| _ = ended.fetch_add(1, Ordering::Relaxed));
                    errands(&agent, &url);
                })
            })
            .collect();
        // Every third goes, at moments that differ.
        for run in runs.iter().step_by(3) {
            tokio::task::yield_now().await;
            run.abort();
        }
        let mut whole = 0;
        for (number, run) in runs.into_iter().enumerate() {
            match run.await {
                Ok(()) => whole += 1,
                Err(error) => assert!(error.is_cancelled() && number % 3 == 0, "{error}"),
            }
        }
        assert!(whole >= 40);
        let url = kitchen.url("/");
        place.spawn(move || errands(&agent, &url)).await.unwrap();
        kitchen.until_open(0).await;
    });
}

#[test]
fn a_panic_in_the_middle_of_a_request_leaves_the_agent_good() {
    struct Burnt;
    impl Read for Burnt {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            greenhack::await_sync(tokio::task::yield_now());
            panic!("burnt")
        }
    }
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let (agent, url) = (agent(), kitchen.url("/"));
        let run = place.spawn(move || {
            let payload = catch_unwind(AssertUnwindSafe(|| {
                let body = ureq::SendBody::from_owned_reader(Burnt);
                agent.post(&url).send(body)
            }))
            .unwrap_err();
            assert_eq!(support::text(&*payload), "burnt");
            errands(&agent, &url);
            agent
        });
        let _agent = run.await.unwrap();
        kitchen.until_open(1).await;
    });
}

#[test]
fn a_destructor_makes_its_request_while_a_cancellation_unwinds() {
    struct Report(Agent, String);
    impl Drop for Report {
        fn drop(&mut self) {
            assert_eq!(server::get(&self.0, &self.1).unwrap(), "soup");
        }
    }
    in_each_place(|place| async move {
        let reported = Arc::new(AtomicUsize::new(0));
        let count = reported.clone();
        let app = Router::new()
            .route("/silent", get(std::future::pending::<()>))
            .route(
                "/",
                get(move || async move {
                    count.fetch_add(1, Ordering::Relaxed);
                    "soup"
                }),
            );
        let kitchen = Server::start(app).await;
        let (agent, url, silent) = (agent(), kitchen.url("/"), kitchen.url("/silent"));
        let (unwound, has_unwound) = signal();
        let run = place.spawn(move || {
            let _unwound = unwound;
            let _report = Report(agent.clone(), url);
            agent.get(&silent).call().unwrap();
        });
        kitchen.until_open(1).await;
        run.abort();
        has_unwound.wait().await;
        assert_eq!(reported.load(Ordering::Relaxed), 1);
        kitchen.until_open(0).await;
        assert_eq!(greenhack::leaked_runs(), 0);
    });
}

#[test]
fn a_destructor_without_time_left_gets_an_error() {
    struct Report(Agent, String, std::sync::mpsc::Sender<String>);
    impl Drop for Report {
        fn drop(&mut self) {
            let error = server::get(&self.0, &self.1).unwrap_err();
            self.2.send(error.to_string()).unwrap();
        }
    }
    in_each_place(|place| async move {
        let app = Router::new().route("/silent", get(std::future::pending::<()>));
        let kitchen = Server::start(app).await;
        let (agent, silent) = (agent(), kitchen.url("/silent"));
        let (tell, told) = std::sync::mpsc::channel();
        let (unwound, has_unwound) = signal();
        let builder = greenhack::builder().cleanup_budget(std::time::Duration::from_millis(1));
        let run = place.spawn_with(builder, move || {
            let _unwound = unwound;
            let _report = Report(agent.clone(), silent.clone(), tell);
            agent.get(&silent).call().unwrap();
        });
        kitchen.until_open(1).await;
        run.abort();
        has_unwound.wait().await;
        let message = told.try_recv().unwrap();
        assert!(message.contains("no time left"), "{message}");
        assert_eq!(greenhack::leaked_runs(), 0);
    });
}

#[test]
fn a_body_can_be_read_on_where_its_reading_was_cancelled() {
    // The cancellation is caught, and the rest read in a place that can still wait.
    current_thread().block_on(async {
        let (listener, url) = listen().await;
        let agent = agent();
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut run = Box::pin(run_sync_local(move || {
            let mut response = agent.get(&url).call().unwrap();
            let mut reader = response.body_mut().as_reader();
            let mut text = [0; 4];
            let caught = catch_unwind(AssertUnwindSafe(|| reader.read_exact(&mut text)));
            assert!(caught.unwrap_err().is::<Cancelled>());
            tell.send(response).unwrap();
        }));
        let (mut stream, _) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            () = &mut run => unreachable!(),
        };
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";
        let server = async {
            read_header(&mut stream).await;
            stream.write_all(half.as_bytes()).await.unwrap();
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = &mut run => unreachable!(),
            () = server => {}
        }
        drop(run);
        let mut response = told.await.unwrap();
        let rest = run_sync_local(move || response.body_mut().read_to_string().unwrap());
        let server = async {
            stream.write_all(b"soup").await.unwrap();
        };
        assert_eq!(tokio::join!(rest, server).0, "soup");
    });
}

#[test]
fn a_write_that_was_cut_off_closes_its_connection() {
    // A part of the body is on the wire, and nobody knows how much of it.
    current_thread().block_on(async {
        let (listener, url) = listen().await;
        let agent = agent();
        let mut run = Box::pin(run_sync_local(move || {
            let body = vec![b'x'; 64 << 20];
            let caught = catch_unwind(AssertUnwindSafe(|| agent.post(&url).send(&body[..])));
            assert!(caught.unwrap_err().is::<Cancelled>());
        }));
        let (mut stream, _) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            () = &mut run => unreachable!(),
        };
        tokio::select! {
            _ = read_header(&mut stream) => {}
            () = &mut run => unreachable!(),
        }
        drop(run);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.len() < 64 << 20);
    });
}

#[test]
fn a_run_with_a_request_may_be_forgotten() {
    current_thread().block_on(async {
        let kitchen =
            Server::start(Router::new().route("/", get(std::future::pending::<()>))).await;
        let agent = agent();
        let (client, url) = (agent.clone(), kitchen.url("/"));
        let mut run = Box::pin(run_sync_local(move || server::get(&client, &url)));
        tokio::select! {
            _ = &mut run => unreachable!(),
            () = kitchen.until_open(1) => {}
        }
        std::mem::forget(run);
        let other = Server::start(self::kitchen()).await;
        let url = other.url("/");
        run_sync_local(move || errands(&agent, &url)).await;
    });
}
