//! Plain requests to servers on loopback.

#[path = "support/server.rs"]
mod server;
#[path = "../../support/mod.rs"]
mod support;

use std::io::{Read, repeat};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Redirect;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::future::{join_all, poll_immediate};
use greenhack::run_sync_local;
use serde_json::{Value, json};
use server::{Connections, Server, agent, answer, config, listen, read_header};
use support::{current_thread, in_each_place};
use tokio::io::AsyncReadExt;
use tokio::sync::{Barrier, oneshot};
use ureq::{Error, SendBody};

/// Far more than a buffer of ureq's.
const MUCH: usize = 16 << 20;

/// More than all buffers of a connection on loopback together.
const TOO_MUCH: usize = 64 << 20;

fn kitchen() -> Router {
    Router::new()
        .route("/", get(|| async { "soup" }))
        .route("/echo", post(|body: String| async { body }))
        .route(
            "/order",
            post(|Json(order): Json<Value>| async move {
                Json(json!({ "dish": order["dish"], "minutes": 5 }))
            }),
        )
        .route("/moved", get(|| async { Redirect::permanent("/") }))
        .route(
            "/for_ever",
            get(|| async { Redirect::temporary("/for_ever") }),
        )
        .route(
            "/none",
            get(|| async { (StatusCode::NOT_FOUND, "no pizza today") }),
        )
        .route(
            "/accept",
            get(|headers: HeaderMap| async move {
                headers[header::ACCEPT_ENCODING]
                    .to_str()
                    .unwrap()
                    .to_owned()
            }),
        )
        .route(
            "/length",
            post(|body: Body| async {
                let mut length = 0;
                let mut body = body.into_data_stream();
                while let Some(chunk) = futures::StreamExt::next(&mut body).await {
                    length += chunk.unwrap().len();
                }
                length.to_string()
            }),
        )
        .route("/much", get(|| async { Bytes::from(vec![b'x'; MUCH]) }))
}

#[test]
fn smoke() {
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let (agent, url) = (agent(), kitchen.url("/"));
        let run = place.spawn(move || server::get(&agent, &url).unwrap());
        assert_eq!(run.await.unwrap(), "soup");
    });
}

#[test]
fn a_body_is_posted() {
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let (agent, url) = (agent(), kitchen.url("/echo"));
        let run = place.spawn(move || {
            let mut response = agent.post(&url).send("rice").unwrap();
            response.body_mut().read_to_string().unwrap()
        });
        assert_eq!(run.await.unwrap(), "rice");
    });
}

#[test]
fn json_goes_both_ways() {
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let (agent, url) = (agent(), kitchen.url("/order"));
        let run = place.spawn(move || {
            let mut response = agent
                .post(&url)
                .send_json(json!({ "dish": "rice" }))
                .unwrap();
            response.body_mut().read_json::<Value>().unwrap()
        });
        assert_eq!(run.await.unwrap(), json!({ "dish": "rice", "minutes": 5 }));
    });
}

#[test]
fn a_redirect_is_followed_on_the_same_connection() {
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let (agent, url) = (agent(), kitchen.url("/moved"));
        let run = place.spawn(move || server::get(&agent, &url).unwrap());
        assert_eq!(run.await.unwrap(), "soup");
        assert_eq!(kitchen.connections().accepted, 1);
    });
}

#[test]
fn endless_redirects_and_statuses_are_errors() {
    current_thread().block_on(async {
        let kitchen = Server::start(kitchen()).await;
        let (agent, around, none) = (agent(), kitchen.url("/for_ever"), kitchen.url("/none"));
        run_sync_local(move || {
            let error = server::get(&agent, &around).unwrap_err();
            assert!(matches!(error, Error::TooManyRedirects), "{error}");
            let error = server::get(&agent, &none).unwrap_err();
            assert!(matches!(error, Error::StatusCode(404)), "{error}");
        })
        .await;
    });
}

#[test]
fn features_of_the_users_ureq_are_those_of_the_agent() {
    current_thread().block_on(async {
        let kitchen = Server::start(kitchen()).await;
        let (agent, url) = (agent(), kitchen.url("/accept"));
        let run = run_sync_local(move || server::get(&agent, &url).unwrap());
        assert_eq!(run.await, "gzip");
    });
}

#[test]
fn a_hundred_requests_wait_at_once_on_one_thread() {
    current_thread().block_on(async {
        let all_are_here = Arc::new(Barrier::new(100));
        let app = Router::new().route(
            "/",
            get(move || async move {
                all_are_here.wait().await;
                "soup"
            }),
        );
        let kitchen = Server::start(app).await;
        let agent = agent();
        let runs = (0..100).map(|_| {
            let (agent, url) = (agent.clone(), kitchen.url("/"));
            run_sync_local(move || server::get(&agent, &url).unwrap())
        });
        // None is answered before all have asked.
        assert_eq!(join_all(runs).await, ["soup"; 100]);
        assert_eq!(kitchen.connections().accepted, 100);
        // The pool keeps three for a host, which is its default.
        kitchen.until_open(3).await;
        drop(agent);
        kitchen.until_open(0).await;
    });
}

#[test]
fn the_pool_keeps_as_many_connections_as_it_is_told() {
    in_each_place(|place| async move {
        let both_are_here = Arc::new(Barrier::new(2));
        let app = Router::new().route(
            "/",
            get(move || async move {
                both_are_here.wait().await;
                "soup"
            }),
        );
        let kitchen = Server::start(app).await;
        let agent = greenhack::ureq::agent_with(config().max_idle_connections_per_host(1).build());
        for round in 1..=3 {
            let runs = [(); 2].map(|()| {
                let (agent, url) = (agent.clone(), kitchen.url("/"));
                place.spawn(move || server::get(&agent, &url).unwrap())
            });
            for run in runs {
                assert_eq!(run.await.unwrap(), "soup");
            }
            kitchen.until_open(1).await;
            // The first of two takes the one that was kept.
            assert_eq!(kitchen.connections().accepted, round + 1);
        }
    });
}

#[test]
fn one_connection_serves_requests_in_turn() {
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let agent = agent();
        for _ in 0..10 {
            let (agent, url) = (agent.clone(), kitchen.url("/"));
            let run = place.spawn(move || server::get(&agent, &url).unwrap());
            assert_eq!(run.await.unwrap(), "soup");
        }
        let one = Connections {
            accepted: 1,
            open: 1,
        };
        assert_eq!(kitchen.connections(), one);
    });
}

#[test]
fn a_response_that_is_dropped_unread_takes_its_connection_along() {
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let (agent, much, url) = (agent(), kitchen.url("/much"), kitchen.url("/"));
        let run = place.spawn(move || {
            let response = agent.get(&much).call().unwrap();
            drop(response);
            server::get(&agent, &url).unwrap();
            agent
        });
        let _agent = run.await.unwrap();
        kitchen.until_open(1).await;
        assert_eq!(kitchen.connections().accepted, 2);
    });
}

#[test]
fn a_connection_that_the_server_closed_is_not_used_again() {
    current_thread().block_on(async {
        let (listener, url) = listen().await;
        let (close, may_close) = oneshot::channel();
        let (closed, is_closed) = oneshot::channel();
        let server = tokio::spawn(async move {
            let (mut first, _) = listener.accept().await.unwrap();
            read_header(&mut first).await;
            answer(&mut first, "soup").await;
            may_close.await.unwrap();
            drop(first);
            closed.send(()).unwrap();
            let (mut second, _) = listener.accept().await.unwrap();
            read_header(&mut second).await;
            answer(&mut second, "rice").await;
        });
        let agent = agent();
        run_sync_local(move || {
            assert_eq!(server::get(&agent, &url).unwrap(), "soup");
            // It is in the pool, and is closed there.
            close.send(()).unwrap();
            greenhack::await_sync(is_closed).unwrap();
            assert_eq!(server::get(&agent, &url).unwrap(), "rice");
        })
        .await;
        server.await.unwrap();
    });
}

#[test]
fn a_server_that_hangs_up_is_an_error_and_the_agent_goes_on() {
    in_each_place(|place| async move {
        let (listener, url) = listen().await;
        let server = tokio::spawn(async move {
            // Before the request is read, after it, and in the middle of the answer.
            drop(listener.accept().await.unwrap());
            let (mut stream, _) = listener.accept().await.unwrap();
            read_header(&mut stream).await;
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            read_header(&mut stream).await;
            let cut = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nso";
            tokio::io::AsyncWriteExt::write_all(&mut stream, cut.as_bytes())
                .await
                .unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            read_header(&mut stream).await;
            answer(&mut stream, "soup").await;
        });
        let agent = agent();
        let run = place.spawn(move || {
            for _ in 0..3 {
                let error = server::get(&agent, &url).unwrap_err();
                assert!(matches!(error, Error::Io(_)), "{error}");
            }
            server::get(&agent, &url).unwrap()
        });
        assert_eq!(run.await.unwrap(), "soup");
        server.await.unwrap();
    });
}

#[test]
fn nobody_listening_is_an_error() {
    current_thread().block_on(async {
        let (listener, url) = listen().await;
        drop(listener);
        let agent = agent();
        let error = run_sync_local(move || server::get(&agent, &url).unwrap_err()).await;
        let Error::Io(error) = error else {
            panic!("{error}")
        };
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn urls_that_cannot_be_are_errors() {
    let agent = agent();
    for url in ["/menu", "http:///menu", "kitchen://soup/"] {
        let error = server::get(&agent, url).unwrap_err();
        assert!(
            matches!(error, Error::BadUri(_) | Error::Http(_)),
            "{error:?}"
        );
    }
    // The lookup itself fails.
    let error = server::get(&agent, "http://kitchen.invalid/").unwrap_err();
    assert!(
        matches!(error, Error::Io(_) | Error::HostNotFound),
        "{error:?}"
    );
}

#[test]
fn much_is_sent_and_received() {
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let (agent, up, down) = (agent(), kitchen.url("/length"), kitchen.url("/much"));
        let run = place.spawn(move || {
            let mut body = repeat(b'x').take(MUCH as u64);
            let mut response = agent
                .post(&up)
                .send(SendBody::from_reader(&mut body))
                .unwrap();
            let sent = response.body_mut().read_to_string().unwrap();
            let mut response = agent.get(&down).call().unwrap();
            let mut buffer = vec![0; 1 << 16];
            let mut reader = response.body_mut().as_reader();
            let mut received = 0;
            loop {
                match reader.read(&mut buffer).unwrap() {
                    0 => return (sent, received),
                    amount => {
                        assert!(buffer[..amount].iter().all(|&byte| byte == b'x'));
                        received += amount;
                    }
                }
            }
        });
        assert_eq!(run.await.unwrap(), (MUCH.to_string(), MUCH));
        assert_eq!(kitchen.connections().accepted, 1);
    });
}

#[test]
fn a_body_is_sent_no_faster_than_it_is_read() {
    current_thread().block_on(async {
        let (listener, url) = listen().await;
        let agent = agent();
        let mut run = Box::pin(run_sync_local(move || {
            let body = vec![b'x'; TOO_MUCH];
            let mut response = agent.post(&url).send(&body[..]).unwrap();
            response.body_mut().read_to_string().unwrap()
        }));
        assert!(poll_immediate(&mut run).await.is_none());
        let (mut stream, _) = listener.accept().await.unwrap();
        let header = tokio::select! {
            header = read_header(&mut stream) => header,
            _ = &mut run => unreachable!("it is not answered"),
        };
        assert!(
            header.contains(&format!("content-length: {TOO_MUCH}")),
            "{header}"
        );
        // It is suspended in the middle of the body until this is read.
        let read = async {
            let mut left = TOO_MUCH;
            let mut buffer = vec![0; 1 << 16];
            while left > 0 {
                left -= stream.read(&mut buffer).await.unwrap();
            }
            answer(&mut stream, "soup").await;
        };
        let (text, ()) = tokio::join!(run, read);
        assert_eq!(text, "soup");
    });
}

#[test]
fn a_body_is_received_no_faster_than_it_is_read() {
    current_thread().block_on(async {
        let (chunks, produced) = (TOO_MUCH >> 16, Arc::new(AtomicUsize::new(0)));
        let count = produced.clone();
        let app = Router::new().route(
            "/",
            get(move || async move {
                Body::from_stream(futures::stream::iter((0..chunks).map(move |_| {
                    count.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 1 << 16]))
                })))
            }),
        );
        let kitchen = Server::start(app).await;
        let (agent, url) = (agent(), kitchen.url("/"));
        let (begun, has_begun) = oneshot::channel();
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let run = tokio::task::LocalSet::new();
        let run = run.run_until(async move {
            let reader = tokio::task::spawn_local(run_sync_local(move || {
                let mut response = agent.get(&url).call().unwrap();
                begun.send(()).unwrap();
                greenhack::await_sync(may_go_on).unwrap();
                let mut reader = response.body_mut().as_reader();
                std::io::copy(&mut reader, &mut std::io::sink()).unwrap()
            }));
            has_begun.await.unwrap();
            // The server has had as many turns as it likes.
            for _ in 0..10_000 {
                tokio::task::yield_now().await;
            }
            assert!(produced.load(Ordering::Relaxed) < chunks);
            go_on.send(()).unwrap();
            assert_eq!(reader.await.unwrap(), (chunks as u64) << 16);
            assert_eq!(produced.load(Ordering::Relaxed), chunks);
        });
        run.await;
    });
}

#[test]
fn the_body_of_a_request_may_wait_itself() {
    /// Comes a byte at a time, and not at once.
    struct Slow(&'static [u8]);
    impl Read for Slow {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            greenhack::await_sync(tokio::task::yield_now());
            let amount = buf.len().min(1);
            Read::read(&mut self.0, &mut buf[..amount])
        }
    }
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let (agent, url) = (agent(), kitchen.url("/echo"));
        let run = place.spawn(move || {
            let mut body = Slow(b"soup");
            let mut response = agent
                .post(&url)
                .send(SendBody::from_reader(&mut body))
                .unwrap();
            response.body_mut().read_to_string().unwrap()
        });
        assert_eq!(run.await.unwrap(), "soup");
    });
}

#[test]
fn an_agent_that_is_shut_down_lets_its_requests_go() {
    in_each_place(|place| async move {
        let (listener, url) = listen().await;
        let agent = agent();
        let (client, again) = (agent.clone(), url.clone());
        let run = place.spawn(move || {
            let error = server::get(&client, &url).unwrap_err();
            (error, server::get(&client, &again).unwrap_err())
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        read_header(&mut stream).await;
        agent.shutdown();
        let errors = run.await.unwrap();
        for error in [errors.0, errors.1] {
            let Error::Io(error) = error else {
                panic!("{error}")
            };
            assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
        }
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    });
}
