//! What can go wrong, and what the client hears of it.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
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
