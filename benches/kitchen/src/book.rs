//! The order book: diesel-async, on SQLite or on PostgreSQL.

use std::error::Error;

use deadpool::managed;
use diesel::prelude::*;
use diesel_async::scoped_futures::ScopedFutureExt;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, TransactionManager};
use kitchen::Failure;
use kitchen::orders::{Order, Orders, orders};
use tracing::instrument;

/// Those of `kitchen::orders`.
pub(crate) const SETTINGS: &str =
    "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL";

type Sqlite = SyncConnectionWrapper<SqliteConnection>;

/// As `kitchen::orders::Orders`. Diesel's `MultiConnection` has no async twin, so
/// each statement is written once and compiled for each database by a macro.
#[derive(Clone)]
pub(crate) enum Book {
    Sqlite(managed::Pool<Manager<Sqlite>>),
    Postgres(managed::Pool<Manager<AsyncPgConnection>>),
}

/// Calls a function of the module that has the database's statements, with a
/// connection of the pool.
macro_rules! on_either {
    ($book:expr, $function:ident, $($argument:expr),*) => {
        match $book {
            Book::Sqlite(pool) => {
                sqlite::$function(&mut *pool.get().await.map_err(no_connection)?, $($argument),*)
                    .await
            }
            Book::Postgres(pool) => {
                postgres::$function(&mut *pool.get().await.map_err(no_connection)?, $($argument),*)
                    .await
            }
        }
    };
}

impl Book {
    pub(crate) async fn open(database: &str) -> Result<Book, Box<dyn Error + Send + Sync>> {
        let url = database.to_owned();
        // For its migrations.
        greenhack::run_sync(move || Orders::open(&url).map(drop)).await?;
        if database.starts_with("postgres") {
            return Ok(Book::Postgres(pool(database, "SELECT 1")?));
        }
        Ok(Book::Sqlite(pool(database, SETTINGS)?))
    }

    #[instrument(skip_all)]
    pub(crate) async fn place(&self, order: &Order) -> Result<(), Failure> {
        Ok(on_either!(self, place, order)?)
    }

    #[instrument(skip_all)]
    pub(crate) async fn settle(
        &self,
        id: &str,
        state: &str,
        minutes: Option<i32>,
    ) -> Result<Order, Failure> {
        self.change(id, state, minutes)
            .await?
            .ok_or_else(|| Failure::Database("the order is no longer open".to_owned()))
    }

    pub(crate) async fn change(
        &self,
        id: &str,
        state: &str,
        minutes: Option<i32>,
    ) -> Result<Option<Order>, Failure> {
        Ok(on_either!(self, change, id, state, minutes)?)
    }
}

/// The statements, for one kind of connection.
macro_rules! statements {
    ($name:ident, $connection:ty) => {
        mod $name {
            use super::*;

            pub(super) async fn place(db: &mut $connection, order: &Order) -> QueryResult<()> {
                diesel::insert_into(orders::table)
                    .values(order)
                    .execute(db)
                    .await?;
                Ok(())
            }

            pub(super) async fn change(
                db: &mut $connection,
                id: &str,
                state: &str,
                minutes: Option<i32>,
            ) -> QueryResult<Option<Order>> {
                let changing = db.transaction(|db| {
                    async move {
                        let open = orders::table
                            .filter(orders::id.eq(id))
                            .filter(orders::state.eq("placed"));
                        let changed = diesel::update(open)
                            .set((orders::state.eq(state), orders::minutes.eq(minutes)))
                            .execute(db)
                            .await?;
                        if changed == 0 {
                            return Ok(None);
                        }
                        let order = orders::table.find(id).select(Order::as_select());
                        Ok(Some(order.first(db).await?))
                    }
                    .scope_boxed()
                });
                changing.await
            }
        }
    };
}
statements!(sqlite, Sqlite);
statements!(postgres, AsyncPgConnection);

/// Opens connections and checks them, as `greenhack::diesel::Manager` does.
pub(crate) struct Manager<C> {
    url: String,
    settings: &'static str,
    kind: std::marker::PhantomData<fn() -> C>,
}

impl<C: AsyncConnection + 'static> managed::Manager for Manager<C> {
    type Type = C;
    type Error = ConnectionError;

    async fn create(&self) -> ConnectionResult<C> {
        let mut db = C::establish(&self.url).await?;
        let set = db.batch_execute(self.settings).await;
        set.map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(db)
    }

    async fn recycle(
        &self,
        db: &mut C,
        _: &managed::Metrics,
    ) -> managed::RecycleResult<ConnectionError> {
        if C::TransactionManager::is_broken_transaction_manager(db) {
            return Err(managed::RecycleError::message("it is broken"));
        }
        let answer = db.batch_execute("SELECT 1").await;
        answer.map_err(|error| ConnectionError::BadConnection(error.to_string()).into())
    }
}

fn pool<C: AsyncConnection + 'static>(
    url: &str,
    settings: &'static str,
) -> Result<managed::Pool<Manager<C>>, managed::BuildError> {
    let manager = Manager {
        url: url.to_owned(),
        settings,
        kind: std::marker::PhantomData,
    };
    managed::Pool::builder(manager).max_size(8).build()
}

fn no_connection(error: managed::PoolError<ConnectionError>) -> Failure {
    Failure::Database(error.to_string())
}
