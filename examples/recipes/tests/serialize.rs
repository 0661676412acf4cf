//! Values that await while they are serialised.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use futures::{Stream, StreamExt, stream};
use greenhack::io::body;
use greenhack::{run_sync, run_sync_local};
use recipes::serialize::Rows;
use serde::Serialize;
use support::{in_time, one_thread};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::oneshot;
use tokio::task::yield_now;

#[derive(Serialize)]
struct Order {
    id: u32,
    dish: &'static str,
}

fn orders(ids: Receiver<u32>) -> impl Stream<Item = Result<Order, String>> {
    stream::unfold(ids, async |mut ids| {
        let id = ids.recv().await?;
        let order = match id {
            0 => Err("the database has gone".to_owned()),
            id => Ok(Order { id, dish: "soup" }),
        };
        Some((order, ids))
    })
}

const TWO: &str = r#"[{"id":1,"dish":"soup"},{"id":2,"dish":"soup"}]"#;

#[test]
fn two_values_are_serialised_at_once_on_one_thread() {
    one_thread().block_on(in_time(async {
        let ((to_a, a), (to_b, b)) = (channel(1), channel(1));
        let texts = [a, b].map(|ids| {
            tokio::spawn(run_sync(move || {
                serde_json::to_string(&Rows::new(orders(ids))).unwrap()
            }))
        });
        // By turns: neither has all its rows before the other.
        for id in [1, 2] {
            to_a.send(id).await.unwrap();
            to_b.send(id).await.unwrap();
        }
        drop((to_a, to_b));
        for text in join_all(texts).await {
            assert_eq!(text.unwrap(), TWO);
        }
    }));
}

#[test]
fn an_error_of_the_stream_is_one_of_the_serialiser() {
    one_thread().block_on(in_time(async {
        let (to, ids) = channel(2);
        to.send(1).await.unwrap();
        to.send(0).await.unwrap();
        let text = run_sync(move || serde_json::to_string(&Rows::new(orders(ids)))).await;
        assert_eq!(text.unwrap_err().to_string(), "the database has gone");
    }));
}

/// The way of a large answer: a row is sent before the next is read.
fn streamed(ids: Receiver<u32>) -> Body {
    Body::from_stream(body(move |out| {
        out.set_chunk_size(1);
        Ok(serde_json::to_writer(out, &Rows::new(orders(ids)))?)
    }))
}

#[test]
fn a_body_is_sent_while_it_is_serialised() {
    one_thread().block_on(in_time(async {
        let (to, ids) = channel(1);
        let mut chunks = streamed(ids).into_data_stream();
        let mut text = String::new();
        to.send(1).await.unwrap();
        while !text.ends_with("soup\"") {
            text += std::str::from_utf8(&chunks.next().await.unwrap().unwrap()).unwrap();
        }
        // The next is not even there yet.
        assert_eq!(text, r#"[{"id":1,"dish":"soup""#);
        to.send(2).await.unwrap();
        drop(to);
        while let Some(chunk) = chunks.next().await {
            text += std::str::from_utf8(&chunk.unwrap()).unwrap();
        }
        assert_eq!(text, TWO);
    }));
}

#[test]
fn a_client_who_leaves_ends_the_stream() {
    one_thread().block_on(in_time(async {
        let (to, ids) = channel(1);
        let mut chunks = streamed(ids).into_data_stream();
        to.send(1).await.unwrap();
        chunks.next().await.unwrap().unwrap();
        drop(chunks);
        to.closed().await;
    }));
}

/// The trap: what a handler returns is made a response when its run has ended.
#[test]
fn as_the_return_value_of_a_handler_it_cannot_wait() {
    one_thread().block_on(in_time(async {
        let (_to, ids) = channel(1);
        let rows = run_sync_local(move || Json(Rows::new(orders(ids)))).await;
        let payload = catch_unwind(AssertUnwindSafe(|| rows.into_response())).unwrap_err();
        let text = payload.downcast_ref::<String>().unwrap();
        assert!(
            text.starts_with("`await_sync` called in async code"),
            "{text}"
        );
    }));
}

/// The remedy, for answers that fit into memory.
#[test]
fn made_a_response_in_the_handler_it_can() {
    one_thread().block_on(in_time(async {
        let (to, ids) = channel(1);
        let (begun, has_begun) = oneshot::channel();
        let handler = run_sync(move || -> Response {
            begun.send(()).unwrap();
            Json(Rows::new(orders(ids))).into_response()
        });
        let handler = tokio::spawn(handler);
        has_begun.await.unwrap();
        for id in [1, 2] {
            to.send(id).await.unwrap();
            yield_now().await;
        }
        drop(to);
        let response = handler.await.unwrap();
        let text = to_bytes(response.into_body(), 1000).await.unwrap();
        assert_eq!(text, TWO);
    }));
}
