//! Food delivery: a handler that saves an order, posts it to the kitchen's HTTP
//! service, saves the answer, and tells the guest over a websocket.
//!
//! All of it is plain functions. Diesel, ureq and tungstenite are synchronous
//! libraries, and none of them holds a thread while it waits.
#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    missing_debug_implementations,
    reason = "an example, which nobody calls"
)]

mod failure;
mod kitchen;
mod news;
pub mod orders;

use std::error::Error;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use greenhack::guard::{Exit, Guard, Teardown};
use greenhack::{await_sync, block, dump, shield};
use serde::Deserialize;
use tokio::sync::broadcast;
use tracing::{info, instrument};

pub use failure::{Failure, answer_panics};
pub use kitchen::{Kitchen, Stove};
use orders::{Order, Orders};

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct App {
    pub orders: Orders,
    kitchen: Kitchen,
    stove: Stove,
    news: broadcast::Sender<Order>,
}

impl App {
    /// Opens the database, and brings its tables up to date.
    ///
    /// # Errors
    ///
    /// If the database can't be opened or migrated.
    pub fn open(database: &str, kitchen: Kitchen) -> Result<App, Box<dyn Error + Send + Sync>> {
        Ok(App {
            orders: Orders::open(database)?,
            kitchen,
            stove: Stove::default(),
            news: broadcast::Sender::new(256),
        })
    }

    /// The kitchen of this process.
    pub fn stove(&self) -> &Stove {
        &self.stove
    }
}

/// The routes of the service, and of the kitchen that it asks.
pub fn routes(app: App) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/orders", get(list).post(food_delivery))
        .route("/news", get(news::listen))
        .route("/kitchen", post(kitchen::cook))
        .route("/stacks", get(stacks))
        .layer(from_fn(answer_panics))
        .with_state(app)
}

async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}

/// What the handlers wait for at this moment, for whoever runs the service.
#[greenhack::entry]
fn stacks() -> String {
    let dump = await_sync(dump::all(Duration::from_secs(1)));
    // It looks up names of functions, which takes long.
    block(move || dump.to_string())
}

/// What a guest wants.
#[derive(Debug, Deserialize)]
struct Wish {
    guest: String,
    dish: String,
}

/// Takes an order. This is the whole of it, from top to bottom.
#[greenhack::entry]
#[instrument(skip_all)]
fn food_delivery(
    State(app): State<App>,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Result<(StatusCode, Json<Order>), Failure> {
    let Json(wish) = wish?;
    let order = Order::new(&wish.guest, &wish.dish)?;

    // From here on the order ends one way or another, whatever happens to us.
    let open = Guard::new(Open(&app, &order.id));
    // A guest who hangs up meanwhile does so when the order is there, to be
    // cancelled: a statement that is cut off may take effect later.
    shield(|| app.orders.place(&order))?;
    info!(
        order = order.id,
        guest = order.guest,
        dish = order.dish,
        "placed"
    );
    app.tell(&order);

    let minutes = app.kitchen.ask(&order);
    // The kitchen has made up its mind. A guest who hangs up now is too late.
    let settled = shield(|| match &minutes {
        Ok(minutes) => app.orders.settle(&order.id, "cooking", Some(*minutes)),
        Err(Failure::Silent) => app.orders.settle(&order.id, "cancelled", None),
        Err(_) => app.orders.settle(&order.id, "refused", None),
    })?;
    info!(order = order.id, state = settled.state, "settled");
    Guard::into_inner(open);

    app.tell(&settled);
    match minutes {
        Ok(_) => Ok((StatusCode::CREATED, Json(settled))),
        Err(failure) => Err(failure),
    }
}

impl App {
    /// Tells the guest's websockets.
    fn tell(&self, order: &Order) {
        // Nobody may be listening.
        let _ = self.news.send(order.clone());
    }
}

/// An order that nobody has decided on. If the handler is left like that, by a
/// failure, a panic or a guest who hangs up, it is cancelled.
struct Open<'a>(&'a App, &'a str);

impl Teardown for Open<'_> {
    async fn teardown(self, exit: Exit<'_>) -> Result<(), std::convert::Infallible> {
        let (app, id) = (self.0.clone(), self.1.to_owned());
        info!(order = id, ?exit, "given up");
        let cancel = move || {
            if let Ok(Some(order)) = app.orders.cancel(&id) {
                app.tell(&order);
            }
        };
        greenhack::run_sync_local(cancel).await;
        Ok(())
    }
}

/// Which orders to list.
#[derive(Debug, Deserialize)]
struct Filter {
    guest: Option<String>,
}

#[greenhack::entry]
fn list(State(app): State<App>, Query(filter): Query<Filter>) -> Result<Json<Vec<Order>>, Failure> {
    Ok(Json(app.orders.list(filter.guest.as_deref())?))
}
