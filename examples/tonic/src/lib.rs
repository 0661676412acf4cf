//! The kitchen: a service of tonic in plain code, and a guest.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::pin::Pin;
use std::thread::{self, ThreadId};
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use greenhack::stream::{Yielder, try_generate};
use greenhack::time::sleep;
use tonic::{Request, Response, Status};

use proto::kitchen_client::KitchenClient;
use proto::kitchen_server::{Kitchen, KitchenServer};
use proto::{Dish, Receipt, Spoon};

/// What the .proto file says.
#[allow(missing_docs, reason = "it is generated")]
pub mod proto {
    tonic::include_proto!("kitchen");
}

/// Returns the service, to be added to a server.
pub fn kitchen() -> KitchenServer<Cook> {
    KitchenServer::new(Cook)
}

/// The service.
#[derive(Clone, Copy, Debug)]
pub struct Cook;

/// What tonic wants to see; the work is done by the plain functions below.
#[tonic::async_trait]
impl Kitchen for Cook {
    async fn order(&self, dish: Request<Dish>) -> Result<Response<Receipt>, Status> {
        let task = thread::current().id();
        order(dish.into_inner(), task).await.map(Response::new)
    }

    type EatStream = Pin<Box<dyn Stream<Item = Result<Spoon, Status>> + Send>>;

    async fn eat(&self, dish: Request<Dish>) -> Result<Response<Self::EatStream>, Status> {
        let (dish, task) = (dish.into_inner(), thread::current().id());
        let spoons = try_generate(move |spoons| eat(dish, task, spoons));
        Ok(Response::new(Box::pin(spoons)))
    }
}

#[greenhack::entry]
fn order(dish: Dish, task: ThreadId) -> Result<Receipt, Status> {
    if dish.name.is_empty() {
        return Err(Status::invalid_argument("which dish?"));
    }
    sleep(Duration::from_millis(1));
    let text = format!("{}, {}", dish.name, place(task));
    Ok(Receipt { text })
}

/// Yields as it goes: the next spoon is made when there is room for it.
fn eat(dish: Dish, task: ThreadId, spoons: &Yielder<Spoon>) -> Result<(), Status> {
    for spoon in 1..=dish.spoons {
        sleep(Duration::from_millis(1));
        let text = format!("spoon {spoon} of {}, {}", dish.name, place(task));
        spoons.yield_(Spoon { text });
    }
    Ok(())
}

fn place(task: ThreadId) -> String {
    let here = thread::current();
    let name = here.name().unwrap_or_default();
    format!("on {name}, in place: {}", here.id() == task)
}

/// Orders a dish and eats it, over one connection; returns the answers.
///
/// # Errors
///
/// Whatever goes wrong on the way.
pub async fn dine(address: SocketAddr, name: &str) -> Result<Vec<String>, Status> {
    let kitchen = KitchenClient::connect(format!("http://{address}")).await;
    let mut kitchen = kitchen.map_err(|error| Status::from_error(Box::new(error)))?;
    let dish = Dish {
        name: name.to_owned(),
        spoons: 2,
    };
    let receipt = kitchen.order(dish.clone()).await?;
    let spoons = kitchen.eat(dish).await?.into_inner();
    let mut answers = vec![receipt.into_inner().text];
    answers.extend(
        spoons
            .map_ok(|spoon| spoon.text)
            .try_collect::<Vec<_>>()
            .await?,
    );
    Ok(answers)
}
