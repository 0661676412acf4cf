//! The kitchen's async twin: what `examples/kitchen` does when an order comes in,
//! with async functions all the way down. diesel-async in the place of Diesel, hyper
//! in the place of ureq.
//!
//! It is as like as can be: the same routes, statements, pool, checks of pooled
//! connections, spans, and the same answer to a guest who hangs up. But it does not
//! shield its statements, as that would take a task for each.
#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    missing_debug_implementations,
    reason = "one side of a comparison, which nobody else calls"
)]

mod book;
pub mod plain;

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Request, StatusCode};
use axum::middleware::from_fn;
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kitchen::orders::Order;
use kitchen::{Failure, answer_panics};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::time::timeout;
use tracing::{info, instrument, warn};

use book::Book;

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    orders: Book,
    kitchen: Kitchen,
    news: broadcast::Sender<Order>,
}

impl App {
    /// Opens the database, and brings its tables up to date.
    ///
    /// # Errors
    ///
    /// If the database can't be opened or migrated.
    pub async fn open(
        database: &str,
        kitchen: SocketAddr,
        patience: Duration,
    ) -> Result<App, Box<dyn Error + Send + Sync>> {
        Ok(App {
            orders: Book::open(database).await?,
            kitchen: Kitchen::at(kitchen, patience),
            news: broadcast::Sender::new(256),
        })
    }

    fn tell(&self, order: &Order) {
        // Nobody may be listening.
        let _ = self.news.send(order.clone());
    }
}

/// The route of the orders.
pub fn routes(app: App) -> Router {
    Router::new()
        .route("/orders", post(food_delivery))
        .layer(from_fn(answer_panics))
        .with_state(app)
}

#[derive(Debug, Deserialize)]
struct Wish {
    guest: String,
    dish: String,
}

#[instrument(skip_all)]
async fn food_delivery(
    State(app): State<App>,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Result<(StatusCode, Json<Order>), Failure> {
    let Json(wish) = wish?;
    let order = Order::new(&wish.guest, &wish.dish)?;

    let open = Open(Some((app.clone(), order.id.clone())));
    app.orders.place(&order).await?;
    info!(
        order = order.id,
        guest = order.guest,
        dish = order.dish,
        "placed"
    );
    app.tell(&order);

    let minutes = app.kitchen.ask(&order).await;
    let settled = match &minutes {
        Ok(minutes) => {
            let settled = app.orders.settle(&order.id, "cooking", Some(*minutes));
            settled.await?
        }
        Err(Failure::Silent) => app.orders.settle(&order.id, "cancelled", None).await?,
        Err(_) => app.orders.settle(&order.id, "refused", None).await?,
    };
    info!(order = order.id, state = settled.state, "settled");
    open.defuse();

    app.tell(&settled);
    match minutes {
        Ok(_) => Ok((StatusCode::CREATED, Json(settled))),
        Err(failure) => Err(failure),
    }
}

/// An order that nobody has decided on. If it is dropped like that, a task cancels it.
struct Open(Option<(App, String)>);

impl Open {
    fn defuse(mut self) {
        self.0 = None;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some((app, id)) = self.0.take() else {
            return;
        };
        tokio::spawn(async move {
            if let Ok(Some(order)) = app.orders.change(&id, "cancelled", None).await {
                app.tell(&order);
            }
        });
    }
}

/// A kitchen somewhere, which is asked over HTTP.
#[derive(Clone)]
struct Kitchen {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    patience: Duration,
}

#[derive(Serialize)]
struct Ticket<'a> {
    dish: &'a str,
}

#[derive(Deserialize)]
struct Estimate {
    minutes: i32,
}

impl Kitchen {
    fn at(address: SocketAddr, patience: Duration) -> Kitchen {
        Kitchen {
            client: Client::builder(TokioExecutor::new()).build_http(),
            url: format!("http://{address}/kitchen"),
            patience,
        }
    }

    #[instrument(skip_all, fields(order = order.id))]
    async fn ask(&self, order: &Order) -> Result<i32, Failure> {
        let answer = timeout(self.patience, self.send(order));
        match answer.await.unwrap_or(Err(Failure::Silent)) {
            Ok(minutes) => {
                info!(minutes, "the kitchen is cooking");
                Ok(minutes)
            }
            Err(failure) => {
                warn!(?failure, "the kitchen is not cooking");
                Err(failure)
            }
        }
    }

    async fn send(&self, order: &Order) -> Result<i32, Failure> {
        let ticket = Ticket { dish: &order.dish };
        let ticket = serde_json::to_vec(&ticket).map_err(refused)?;
        let request = Request::post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(ticket))
            .map_err(refused)?;
        let response = self.client.request(request).await.map_err(refused)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(refused)?;
        let body = body.to_bytes();
        if !status.is_success() {
            return Err(Failure::Refused(String::from_utf8_lossy(&body).into()));
        }
        let estimate: Estimate = serde_json::from_slice(&body).map_err(refused)?;
        Ok(estimate.minutes)
    }
}

fn refused(error: impl Error) -> Failure {
    Failure::Refused(error.to_string())
}
