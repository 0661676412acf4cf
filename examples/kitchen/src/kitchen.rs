//! The kitchen: a client of it, in plain ureq, and the service itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use greenhack::await_sync;
use greenhack::time::sleep;
use serde::{Deserialize, Serialize};
use tracing::{info, instrument, warn};
use ureq::Agent;
use ureq::config::Config;

use crate::orders::Order;
use crate::{App, Failure};

/// How many connections to the kitchen are kept.
const IDLE: usize = 100;

/// A kitchen somewhere, which is asked over HTTP.
#[derive(Clone, Debug)]
pub struct Kitchen {
    agent: Agent,
    url: String,
}

/// What the kitchen is asked.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Ticket {
    dish: String,
}

/// What it answers.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Estimate {
    minutes: i32,
}

impl Kitchen {
    /// A kitchen that is given some time to answer. Who asks it waits, the thread
    /// does not.
    pub fn at(address: SocketAddr, patience: Duration) -> Kitchen {
        Kitchen::with(greenhack::ureq::agent_with, address, patience)
    }

    /// One that is asked by an agent of any kind.
    pub fn with(agent: fn(Config) -> Agent, address: SocketAddr, patience: Duration) -> Kitchen {
        let config = Agent::config_builder()
            .timeout_global(Some(patience))
            .http_status_as_error(false)
            // What many orders at a time need they shall not open again and again.
            .max_idle_connections(IDLE)
            .max_idle_connections_per_host(IDLE)
            .build();
        Kitchen {
            agent: agent(config),
            url: format!("http://{address}/kitchen"),
        }
    }

    /// Asks how long the dish takes.
    ///
    /// # Errors
    ///
    /// If the kitchen refuses, or does not answer.
    #[instrument(skip_all, fields(order = order.id))]
    pub fn ask(&self, order: &Order) -> Result<i32, Failure> {
        match self.send(order) {
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

    fn send(&self, order: &Order) -> Result<i32, Failure> {
        let ticket = Ticket {
            dish: order.dish.clone(),
        };
        let mut response = self.agent.post(&self.url).send_json(&ticket)?;
        if !response.status().is_success() {
            return Err(Failure::Refused(response.body_mut().read_to_string()?));
        }
        let estimate: Estimate = response.body_mut().read_json()?;
        Ok(estimate.minutes)
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Timeout(_) => Failure::Silent,
            error => Failure::Refused(error.to_string()),
        }
    }
}

/// What is on the stove right now.
#[derive(Clone, Debug, Default)]
pub struct Stove(Arc<Pots>);

#[derive(Debug, Default)]
struct Pots {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Stove {
    /// How many dishes were cooked at the same time, at most.
    pub fn most(&self) -> usize {
        self.0.most.load(Ordering::Relaxed)
    }

    fn put_on(&self) -> Pot<'_> {
        let now = self.0.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.most.fetch_max(now, Ordering::Relaxed);
        Pot(&self.0)
    }
}

/// A pot, until it is taken off.
struct Pot<'a>(&'a Pots);

impl Drop for Pot<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long the kitchen takes to look at a ticket.
const A_MOMENT: Duration = Duration::from_millis(50);

/// The kitchen's own service. It takes its time, won't cook fugu, and nobody
/// has ever heard of a stone soup again.
#[greenhack::entry]
#[instrument(skip_all, fields(dish = ticket.dish))]
pub(crate) fn cook(
    State(app): State<App>,
    Json(ticket): Json<Ticket>,
) -> Result<Json<Estimate>, (StatusCode, &'static str)> {
    let _pot = app.stove.put_on();
    sleep(A_MOMENT);
    match ticket.dish.as_str() {
        "fugu" => Err((StatusCode::FORBIDDEN, "the cook has no licence for fugu")),
        "stone soup" => await_sync(std::future::pending()),
        dish => Ok(Json(Estimate {
            minutes: 5 + i32::try_from(dish.len()).unwrap_or(0),
        })),
    }
}
