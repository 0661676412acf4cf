//! What can go wrong, and what the client hears of it.

use std::panic::AssertUnwindSafe;

use axum::Json;
use axum::extract::Request;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use serde::Serialize;
use tracing::error;

/// Why there is no order.
#[derive(Debug)]
pub enum Failure {
    /// The client has sent something else than an order.
    Bad(StatusCode, String),
    /// The kitchen has refused.
    Refused(String),
    /// The kitchen has not answered.
    Silent,
    /// The database has failed.
    Database(String),
    /// A handler has panicked.
    Panic,
}

#[derive(Serialize)]
struct Body {
    error: String,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Failure::Bad(status, text) => (status, text),
            Failure::Refused(text) => (StatusCode::BAD_GATEWAY, text),
            Failure::Silent => {
                let text = "the kitchen does not answer, so your order is cancelled";
                (StatusCode::GATEWAY_TIMEOUT, text.to_owned())
            }
            Failure::Database(text) => {
                error!(text, "the database has failed");
                let text = "we can't find our order book; try again later";
                (StatusCode::INTERNAL_SERVER_ERROR, text.to_owned())
            }
            Failure::Panic => {
                let text = "that is our fault; what you have asked for is undone";
                (StatusCode::INTERNAL_SERVER_ERROR, text.to_owned())
            }
        };
        (status, Json(Body { error: text })).into_response()
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        Failure::Bad(rejection.status(), rejection.body_text())
    }
}

impl From<diesel::result::Error> for Failure {
    fn from(error: diesel::result::Error) -> Self {
        Failure::Database(error.to_string())
    }
}

/// Answers a panic with 500. Otherwise the connection would be closed.
pub async fn answer_panics(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        error!(path, "a handler has panicked");
        Failure::Panic.into_response()
    })
}
