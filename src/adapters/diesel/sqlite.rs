//! SQLite, on the blocking threads of tokio.
#![forbid(unsafe_code)]

use std::any::Any;
use std::error::Error as StdError;

use ::diesel::connection::{AnsiTransactionManager, MultiConnectionHelper};
use ::diesel::result::Error;
use diesel_async::sync_connection_wrapper::{SpawnBlocking, SyncConnectionWrapper};
use futures::FutureExt;
use futures::future::BoxFuture;
// The library is linked for Diesel, which does not bring it.
use libsqlite3_sys as _;
use tokio::task::spawn_blocking;

use super::blocking::{AwaitShielded, Blocking, Verb, end_transaction};

/// A connection to an SQLite file with Diesel's plain interface.
///
/// It stands for `diesel::SqliteConnection`. Each statement is run to its end on one
/// of tokio's blocking threads, with all its rows; the run that waits for it is
/// suspended. A statement can't be interrupted: a run that is cancelled meanwhile
/// unwinds when the statement has ended.
///
/// Several connections to one file want `PRAGMA busy_timeout`, and
/// [`immediate_transaction`](Self::immediate_transaction) where a transaction reads
/// before it writes.
///
/// # Examples
///
/// ```
/// use diesel::prelude::*;
/// use greenhack::diesel::SqliteConnection;
///
/// let mut conn = SqliteConnection::establish(":memory:").unwrap();
/// assert_eq!(diesel::sql_query("PRAGMA busy_timeout = 5000").execute(&mut conn), Ok(0));
/// ```
pub type SqliteConnection =
    Blocking<SyncConnectionWrapper<::diesel::SqliteConnection, OnBlockingThread>, AwaitShielded>;

/// Runs statements on the blocking threads of the runtime that waits for them.
///
/// diesel-async's own remembers the runtime in which a connection was opened, and
/// fails when that has ended; a pool outlives runtimes.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnBlockingThread;

impl SpawnBlocking for OnBlockingThread {
    fn spawn_blocking<'a, R>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn StdError + Send + Sync + 'static>>>
    where
        R: Send + 'static,
    {
        // A runtime is entered when it is polled, not always before.
        async { spawn_blocking(task).await.map_err(Box::from) }.boxed()
    }

    fn get_runtime() -> Self {
        OnBlockingThread
    }
}

impl<V: Verb> Blocking<SyncConnectionWrapper<::diesel::SqliteConnection, OnBlockingThread>, V> {
    /// Suspends while `f` runs in a transaction that may write from its beginning.
    ///
    /// The transaction waits for other writers when it begins (`BEGIN IMMEDIATE`). With
    /// `transaction`, one that has read may fail with "database is locked" when it
    /// first writes.
    ///
    /// # Cancel safety
    ///
    /// As [`Blocking`]: the connection is broken, and SQLite rolls back when it is
    /// dropped.
    ///
    /// # Panics
    ///
    /// With the panic of `f`, and in async code.
    ///
    /// # Errors
    ///
    /// With that of `f`, after a rollback. If a transaction is open already. If SQLite
    /// refuses the beginning, the commit or the rollback.
    ///
    /// # Examples
    ///
    /// ```
    /// use diesel::prelude::*;
    /// use greenhack::diesel::SqliteConnection;
    ///
    /// let mut conn = SqliteConnection::establish(":memory:").unwrap();
    /// let added = conn.immediate_transaction(|conn| {
    ///     diesel::sql_query("CREATE TABLE dishes (name TEXT)").execute(conn)?;
    ///     diesel::sql_query("INSERT INTO dishes VALUES ('soup')").execute(conn)
    /// });
    /// assert_eq!(added, Ok(1));
    /// ```
    pub fn immediate_transaction<R, E, F>(&mut self, f: F) -> Result<R, E>
    where
        F: FnOnce(&mut Self) -> Result<R, E>,
        E: From<Error>,
    {
        self.transaction_begun_with("BEGIN IMMEDIATE", f)
    }

    /// Suspends while `f` runs in a transaction that no other connection may write or
    /// begin to read beside (`BEGIN EXCLUSIVE`).
    ///
    /// As [`immediate_transaction`](Self::immediate_transaction) in all else. With a
    /// write-ahead log the two are the same.
    ///
    /// # Errors
    ///
    /// As [`immediate_transaction`](Self::immediate_transaction).
    ///
    /// # Examples
    ///
    /// ```
    /// use diesel::prelude::*;
    /// use greenhack::diesel::SqliteConnection;
    ///
    /// let mut conn = SqliteConnection::establish(":memory:").unwrap();
    /// let answer = conn.exclusive_transaction(|conn| {
    ///     diesel::select(diesel::dsl::sql::<diesel::sql_types::Integer>("42")).get_result(conn)
    /// });
    /// assert_eq!(answer, QueryResult::Ok(42));
    /// ```
    pub fn exclusive_transaction<R, E, F>(&mut self, f: F) -> Result<R, E>
    where
        F: FnOnce(&mut Self) -> Result<R, E>,
        E: From<Error>,
    {
        self.transaction_begun_with("BEGIN EXCLUSIVE", f)
    }

    fn transaction_begun_with<R, E, F>(&mut self, begin: &'static str, f: F) -> Result<R, E>
    where
        F: FnOnce(&mut Self) -> Result<R, E>,
        E: From<Error>,
    {
        self.call(|conn| {
            conn.spawn_blocking(move |conn| {
                AnsiTransactionManager::begin_transaction_sql(conn, begin)
            })
        })?;
        end_transaction(self, f)
    }
}

impl<V: Verb> MultiConnectionHelper
    for Blocking<SyncConnectionWrapper<::diesel::SqliteConnection, OnBlockingThread>, V>
{
    fn to_any<'a>(lookup: &mut ()) -> &mut (dyn Any + 'a) {
        lookup
    }

    fn from_any(lookup: &mut dyn Any) -> Option<&mut ()> {
        lookup.downcast_mut()
    }
}
