//! The kitchen for one kind of database: `examples/kitchen` without Diesel's
//! `MultiConnection`, which the async twin has not either.

use std::convert::Infallible;
use std::error::Error;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::routing::post;
use axum::{Json, Router};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use greenhack::diesel::deadpool::Pool;
use greenhack::diesel::{Manager, PgConnection, SqliteConnection};
use greenhack::guard::{Exit, Guard, Teardown};
use greenhack::{await_sync, shield};
use kitchen::orders::{Order, Orders, orders};
use kitchen::{Failure, Kitchen, answer_panics};
use tokio::sync::broadcast;
use tracing::{info, instrument};

use crate::Wish;
use crate::book::SETTINGS;

/// Opens the database, and gives the route of the orders.
///
/// # Errors
///
/// If the database can't be opened or migrated.
pub fn routes(database: &str, kitchen: Kitchen) -> Result<Router, Box<dyn Error + Send + Sync>> {
    // For its migrations.
    drop(Orders::open(database)?);
    if database.starts_with("postgres") {
        postgres::routes(Manager::new(database), kitchen)
    } else {
        let database = database.to_owned();
        let open = move || {
            let mut db = SqliteConnection::establish(&database)?;
            db.batch_execute(SETTINGS)
                .map_err(ConnectionError::CouldntSetupConfiguration)?;
            Ok(db)
        };
        sqlite::routes(Manager::with(open), kitchen)
    }
}

/// All of it, for one kind of connection.
macro_rules! kitchen {
    ($name:ident, $connection:ty) => {
        mod $name {
            use super::*;

            #[derive(Clone)]
            struct App {
                pool: Pool<$connection>,
                kitchen: Kitchen,
                news: broadcast::Sender<Order>,
            }

            pub(super) fn routes(
                manager: Manager<$connection>,
                kitchen: Kitchen,
            ) -> Result<Router, Box<dyn Error + Send + Sync>> {
                let app = App {
                    pool: Pool::builder(manager).max_size(8).build()?,
                    kitchen,
                    news: broadcast::Sender::new(256),
                };
                let orders = post(food_delivery);
                let orders = Router::new().route("/orders", orders);
                Ok(orders.layer(from_fn(answer_panics)).with_state(app))
            }

            #[greenhack::entry]
            #[instrument(skip_all)]
            fn food_delivery(
                State(app): State<App>,
                wish: Result<Json<Wish>, JsonRejection>,
            ) -> Result<(StatusCode, Json<Order>), Failure> {
                let Json(wish) = wish?;
                let order = Order::new(&wish.guest, &wish.dish)?;
                let open = Guard::new(Open(&app, &order.id));
                shield(|| app.place(&order))?;
                info!(
                    order = order.id,
                    guest = order.guest,
                    dish = order.dish,
                    "placed"
                );
                app.tell(&order);

                let minutes = app.kitchen.ask(&order);
                let settled = shield(|| match &minutes {
                    Ok(minutes) => app.settle(&order.id, "cooking", Some(*minutes)),
                    Err(Failure::Silent) => app.settle(&order.id, "cancelled", None),
                    Err(_) => app.settle(&order.id, "refused", None),
                })?;
                info!(order = order.id, state = settled.state, "settled");
                Guard::into_inner(open);

                app.tell(&settled);
                match minutes {
                    Ok(_) => Ok((StatusCode::CREATED, Json(settled))),
                    Err(failure) => Err(failure),
                }
            }

            struct Open<'a>(&'a App, &'a str);

            impl Teardown for Open<'_> {
                async fn teardown(self, _: Exit<'_>) -> Result<(), Infallible> {
                    let (app, id) = (self.0.clone(), self.1.to_owned());
                    let cancel = move || {
                        if let Ok(Some(order)) = app.change(&id, "cancelled", None) {
                            app.tell(&order);
                        }
                    };
                    greenhack::run_sync_local(cancel).await;
                    Ok(())
                }
            }

            impl App {
                fn tell(&self, order: &Order) {
                    // Nobody may be listening.
                    let _ = self.news.send(order.clone());
                }

                #[instrument(skip_all)]
                fn place(&self, order: &Order) -> Result<(), Failure> {
                    let mut db = await_sync(self.pool.get()).map_err(no_connection)?;
                    diesel::insert_into(orders::table)
                        .values(order)
                        .execute(&mut *db)?;
                    Ok(())
                }

                #[instrument(skip_all)]
                fn settle(
                    &self,
                    id: &str,
                    state: &str,
                    minutes: Option<i32>,
                ) -> Result<Order, Failure> {
                    self.change(id, state, minutes)?
                        .ok_or_else(|| Failure::Database("the order is no longer open".to_owned()))
                }

                fn change(
                    &self,
                    id: &str,
                    state: &str,
                    minutes: Option<i32>,
                ) -> Result<Option<Order>, Failure> {
                    let mut db = await_sync(self.pool.get()).map_err(no_connection)?;
                    db.transaction(|db| {
                        let open = orders::table
                            .filter(orders::id.eq(id))
                            .filter(orders::state.eq("placed"));
                        let changed = diesel::update(open)
                            .set((orders::state.eq(state), orders::minutes.eq(minutes)))
                            .execute(db)?;
                        if changed == 0 {
                            return Ok(None);
                        }
                        let order = orders::table.find(id).select(Order::as_select());
                        Ok(Some(order.first(db)?))
                    })
                }
            }
        }
    };
}
kitchen!(sqlite, SqliteConnection);
kitchen!(postgres, PgConnection);

fn no_connection(error: impl Error) -> Failure {
    Failure::Database(error.to_string())
}
