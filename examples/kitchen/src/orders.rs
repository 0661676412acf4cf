//! The order book: plain Diesel, on SQLite or on PostgreSQL.

use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use greenhack::await_sync;
use greenhack::diesel::deadpool::Pool;
use greenhack::diesel::{Manager, PgConnection, Pooled, SqliteConnection};
use serde::Serialize;
use tracing::instrument;

use crate::Failure;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// How many connections the pool has, at most.
pub const CONNECTIONS: usize = 8;

/// How many orders a list has, at most.
const LISTED: i64 = 100;

/// How long a name may be.
const LONGEST: usize = 80;

diesel::table! {
    orders (id) {
        id -> Text,
        guest -> Text,
        dish -> Text,
        state -> Text,
        minutes -> Nullable<Integer>,
        placed_at -> BigInt,
    }
}

/// One order.
#[derive(Clone, Debug, Insertable, Queryable, Selectable, Serialize)]
pub struct Order {
    pub id: String,
    pub guest: String,
    pub dish: String,
    pub state: String,
    pub minutes: Option<i32>,
    /// In milliseconds since 1970.
    pub placed_at: i64,
}

impl Order {
    /// A new order, which nobody knows of yet.
    ///
    /// # Errors
    ///
    /// If it makes no sense.
    pub fn new(guest: &str, dish: &str) -> Result<Order, Failure> {
        Ok(Order {
            id: uuid::Uuid::new_v4().to_string(),
            guest: named("guest", guest)?,
            dish: named("dish", dish)?,
            state: "placed".to_owned(),
            minutes: None,
            placed_at: now(),
        })
    }
}

/// A connection to either database. The queries are the same.
#[derive(diesel::MultiConnection)]
pub enum Db {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// The order book.
#[derive(Clone)]
pub struct Orders {
    pool: Pool<Db>,
}

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orders").finish_non_exhaustive()
    }
}

impl Orders {
    /// Opens a database by its URL, or an SQLite file by its path.
    ///
    /// # Errors
    ///
    /// If it can't be opened or migrated.
    pub fn open(database: &str) -> Result<Orders, Box<dyn Error + Send + Sync>> {
        match connect(database)? {
            Db::Sqlite(mut db) => db.run_pending_migrations(MIGRATIONS).map(drop)?,
            Db::Postgres(mut db) => db.run_pending_migrations(MIGRATIONS).map(drop)?,
        }
        let database = database.to_owned();
        let pool = Pool::builder(Manager::with(move || connect(&database)))
            .max_size(CONNECTIONS)
            .build()?;
        Ok(Orders { pool })
    }

    /// How many connections the pool has, and how many of them are free.
    pub fn connections(&self) -> (usize, usize) {
        let status = self.pool.status();
        (status.size, status.available)
    }

    /// Waits for a connection of the pool.
    ///
    /// # Errors
    ///
    /// If none can be opened.
    pub fn db(&self) -> Result<Pooled<Db>, Failure> {
        await_sync(self.pool.get()).map_err(|error| Failure::Database(error.to_string()))
    }

    /// Writes down a new order.
    ///
    /// # Errors
    ///
    /// If the database fails.
    #[instrument(skip_all)]
    pub fn place(&self, order: &Order) -> Result<(), Failure> {
        diesel::insert_into(orders::table)
            .values(order)
            .execute(&mut *self.db()?)?;
        Ok(())
    }

    /// Notes what the kitchen has said.
    ///
    /// # Errors
    ///
    /// If the database fails, or the order is no longer open.
    #[instrument(skip_all)]
    pub fn settle(&self, id: &str, state: &str, minutes: Option<i32>) -> Result<Order, Failure> {
        self.change(id, state, minutes)?
            .ok_or_else(|| Failure::Database("the order is no longer open".to_owned()))
    }

    /// Cancels an order that is still open.
    ///
    /// # Errors
    ///
    /// If the database fails.
    #[instrument(skip_all)]
    pub fn cancel(&self, id: &str) -> Result<Option<Order>, Failure> {
        self.change(id, "cancelled", None)
    }

    fn change(
        &self,
        id: &str,
        state: &str,
        minutes: Option<i32>,
    ) -> Result<Option<Order>, Failure> {
        self.db()?.transaction(|db| {
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

    /// The latest orders, of one guest or of all.
    ///
    /// # Errors
    ///
    /// If the database fails.
    #[instrument(skip_all)]
    pub fn list(&self, guest: Option<&str>) -> Result<Vec<Order>, Failure> {
        let mut query = orders::table.select(Order::as_select()).into_boxed();
        if let Some(guest) = guest {
            query = query.filter(orders::guest.eq(guest));
        }
        let latest = query.order(orders::placed_at.desc()).limit(LISTED);
        Ok(latest.load(&mut *self.db()?)?)
    }

    /// How many orders are in a state.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub fn count(&self, state: &str) -> Result<i64, Failure> {
        let orders = orders::table.filter(orders::state.eq(state)).count();
        Ok(orders.get_result(&mut *self.db()?)?)
    }
}

fn connect(database: &str) -> ConnectionResult<Db> {
    if database.starts_with("postgres://") || database.starts_with("postgresql://") {
        return PgConnection::establish(database).map(Db::Postgres);
    }
    let mut db = SqliteConnection::establish(database)?;
    // Readers don't wait for writers, and writers wait for each other.
    db.batch_execute(
        "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
    )
    .map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(Db::Sqlite(db))
}

/// Checks a name that a client has sent.
fn named(what: &str, name: &str) -> Result<String, Failure> {
    let name = name.trim();
    let wrong = if name.is_empty() {
        "is missing"
    } else if name.chars().count() > LONGEST {
        "is too long"
    } else {
        return Ok(name.to_owned());
    };
    let text = format!("the {what} {wrong}");
    Err(Failure::Bad(StatusCode::UNPROCESSABLE_ENTITY, text))
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis().try_into().unwrap_or(i64::MAX))
}
