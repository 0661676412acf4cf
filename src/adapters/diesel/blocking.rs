//! An async connection that looks like one of Diesel's own.
//!
//! Before each call a mark is set, that only a return removes: so a connection
//! knows when a call was cut off.
#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::thread::panicking;

use ::diesel::connection::{
    Connection, ConnectionSealed, Instrumentation, LoadConnection, SimpleConnection,
    TransactionManager, TransactionManagerStatus,
};
use ::diesel::expression::QueryMetadata;
use ::diesel::migration::{CREATE_MIGRATIONS_TABLE, MigrationConnection};
use ::diesel::query_builder::{Query, QueryFragment, QueryId};
use ::diesel::result::{ConnectionError, Error};
use ::diesel::{ConnectionResult, QueryResult};
use diesel_async::{AsyncConnection, TransactionManager as AsyncTransactionManager};
use futures::{Stream, StreamExt};

use crate::{Cancelled, await_or_cancelled, shield};

/// How a connection waits: [`Await`] or [`AwaitShielded`].
pub trait Verb: private::Verb + Send {}

mod private {
    use crate::Cancelled;

    pub trait Verb {
        /// Is an error only when nothing can be waited for any more.
        fn wait<F: Future>(future: F) -> Result<F::Output, Cancelled>;
    }
}

/// Waits as [`await_sync`](crate::await_sync) does: for drivers whose futures can be
/// dropped at any time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Await;

impl Verb for Await {}

impl private::Verb for Await {
    fn wait<F: Future>(future: F) -> Result<F::Output, Cancelled> {
        await_or_cancelled(future)
    }
}

/// Waits as [`await_sync`](crate::await_sync) does in a [`shield`]: for drivers whose
/// calls go on when their futures are dropped.
///
/// A run that is cancelled meanwhile unwinds when the call has returned, or its
/// [cleanup budget](crate::Builder::cleanup_budget) is over.
#[derive(Clone, Copy, Debug, Default)]
pub struct AwaitShielded;

impl Verb for AwaitShielded {}

impl private::Verb for AwaitShielded {
    fn wait<F: Future>(future: F) -> Result<F::Output, Cancelled> {
        shield(|| await_or_cancelled(future))
    }
}

/// Waits for a call on a connection, and leaves `broken` set unless it returns.
///
/// [`await_sync`](crate::await_sync) would leak the run, and with it the connection
/// and its place in a pool, when the cleanup budget is over in a shield or in a
/// destructor. This unwinds, and where that is not possible, returns an error.
#[inline]
fn ask<V: Verb, F: Future>(
    broken: &mut bool,
    call: impl FnOnce() -> F,
) -> Result<F::Output, Cancelled> {
    *broken = true;
    match V::wait(call()) {
        Ok(output) => {
            *broken = false;
            Ok(output)
        }
        // A second unwind would abort.
        Err(cancelled) if panicking() => Err(cancelled),
        Err(cancelled) => resume_unwind(Box::new(cancelled)),
    }
}

/// What a broken connection says.
fn is_broken(_: Cancelled) -> Error {
    Error::BrokenTransactionManager
}

/// Refuses a call on a broken connection.
pub(super) fn intact(broken: bool) -> QueryResult<()> {
    if broken {
        return Err(Error::BrokenTransactionManager);
    }
    Ok(())
}

/// A connection of diesel-async with the plain interface of Diesel.
///
/// Use it by the names [`PgConnection`](super::PgConnection) and
/// [`SqliteConnection`](super::SqliteConnection), or with another connection of
/// diesel-async. All that is generic over [`diesel::Connection`](Connection) works:
/// the query DSL, `transaction` with savepoints inside, `load_iter`, instrumentation,
/// migrations, `#[derive(MultiConnection)]`. Each of these calls suspends; in async
/// code use the connection that it is made of.
///
/// # Cancel safety
///
/// If the run is cancelled in a call, the call unwinds, and the connection is
/// [broken](super#broken-connections). The statement may have taken effect or not. To
/// see a transaction through, put it in [`shield`].
///
/// # Panics
///
/// In async code, see [the module](super#panics).
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "diesel-sqlite")] {
/// use diesel::connection::SimpleConnection;
/// use diesel::prelude::*;
/// use greenhack::diesel::SqliteConnection;
///
/// // On a plain thread it blocks.
/// let mut conn = SqliteConnection::establish(":memory:").unwrap();
/// conn.batch_execute("CREATE TABLE dishes (name TEXT)").unwrap();
/// let added = diesel::sql_query("INSERT INTO dishes VALUES ('soup')").execute(&mut conn);
/// assert_eq!(added, Ok(1));
/// # }
/// ```
pub struct Blocking<C, V = Await> {
    connection: C,
    /// Whether a call is under way, or was cut off.
    broken: bool,
    verb: PhantomData<V>,
}

impl<C, V> Blocking<C, V> {
    /// The connection that this is made of, for what it alone can do.
    ///
    /// A call by this way that is cut off does not break the connection.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "diesel-sqlite")] {
    /// use diesel::prelude::*;
    /// use diesel::sql_types::{Integer, Text};
    /// use greenhack::{await_sync, shield};
    /// use greenhack::diesel::SqliteConnection;
    ///
    /// diesel::define_sql_function! {
    ///     fn letters(word: Text) -> Integer;
    /// }
    ///
    /// let mut conn = SqliteConnection::establish(":memory:").unwrap();
    /// // SQLite's functions need Diesel's own connection, on the thread that it is on.
    /// let added = conn.as_async().spawn_blocking(|conn| {
    ///     letters_utils::register_impl(conn, |word: String| word.chars().count() as i32)
    /// });
    /// shield(|| await_sync(added)).unwrap();
    /// assert_eq!(diesel::select(letters("soup")).get_result(&mut conn), Ok(4));
    /// # }
    /// ```
    pub fn as_async(&mut self) -> &mut C
    where
        C: AsyncConnection,
    {
        &mut self.connection
    }
}

impl<C, V: Verb> Blocking<C, V> {
    /// Waits for a call on the connection.
    #[inline]
    pub(super) fn call<'a, F, R>(&'a mut self, f: impl FnOnce(&'a mut C) -> F) -> QueryResult<R>
    where
        F: Future<Output = QueryResult<R>>,
    {
        intact(self.broken)?;
        let connection = &mut self.connection;
        ask::<V, _>(&mut self.broken, || f(connection)).map_err(is_broken)?
    }
}

impl<C: AsyncConnection, V> From<C> for Blocking<C, V> {
    fn from(connection: C) -> Self {
        Blocking {
            connection,
            broken: false,
            verb: PhantomData,
        }
    }
}

impl<C, V> fmt::Debug for Blocking<C, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocking")
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl<C: AsyncConnection, V: Verb> SimpleConnection for Blocking<C, V> {
    fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        self.call(|connection| connection.batch_execute(query))
    }
}

impl<C, V> ConnectionSealed for Blocking<C, V> {}

impl<C: AsyncConnection, V: Verb> Connection for Blocking<C, V> {
    type Backend = C::Backend;
    type TransactionManager = Transactions;

    fn establish(database_url: &str) -> ConnectionResult<Self> {
        ask::<V, _>(&mut false, || C::establish(database_url))
            .map_err(|cancelled| ConnectionError::BadConnection(cancelled.to_string()))?
            .map(Self::from)
    }

    fn execute_returning_count<T>(&mut self, source: &T) -> QueryResult<usize>
    where
        T: QueryFragment<Self::Backend> + QueryId,
    {
        self.call(|connection| connection.execute_returning_count(source))
    }

    fn transaction_state(
        &mut self,
    ) -> &mut <C::TransactionManager as AsyncTransactionManager<C>>::TransactionStateData {
        self.connection.transaction_state()
    }

    fn instrumentation(&mut self) -> &mut dyn Instrumentation {
        self.connection.instrumentation()
    }

    fn set_instrumentation(&mut self, instrumentation: impl Instrumentation) {
        self.connection.set_instrumentation(instrumentation);
    }
}

impl<C: AsyncConnection, V: Verb> LoadConnection for Blocking<C, V> {
    type Cursor<'conn, 'query>
        = Rows<'conn, C::Stream<'conn, 'query>, V>
    where
        Self: 'conn;

    type Row<'conn, 'query>
        = C::Row<'conn, 'query>
    where
        Self: 'conn;

    fn load<'conn, 'query, T>(
        &'conn mut self,
        source: T,
    ) -> QueryResult<Self::Cursor<'conn, 'query>>
    where
        T: Query + QueryFragment<Self::Backend> + QueryId + 'query,
        Self::Backend: QueryMetadata<T::SqlType>,
    {
        let Self {
            connection, broken, ..
        } = self;
        intact(*broken)?;
        let stream = ask::<V, _>(broken, || connection.load(source)).map_err(is_broken)??;
        Ok(Rows {
            stream: Box::pin(stream),
            broken,
            verb: PhantomData,
        })
    }
}

/// The rows of a query, each of which is waited for when it is asked for.
///
/// Diesel's `load_iter` makes it. Dropped early, the rest is discarded.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "diesel-sqlite")] {
/// use diesel::connection::DefaultLoadingMode;
/// use diesel::prelude::*;
/// use diesel::sql_types::Integer;
/// use greenhack::diesel::SqliteConnection;
///
/// diesel::define_sql_function!(fn abs(number: Integer) -> Integer);
///
/// let mut conn = SqliteConnection::establish(":memory:").unwrap();
/// let query = diesel::select(abs(-4)).union_all(diesel::select(abs(3)));
/// let rows = query.load_iter::<i32, DefaultLoadingMode>(&mut conn).unwrap();
/// let prices = rows.collect::<QueryResult<Vec<_>>>();
/// assert_eq!(prices, Ok(vec![4, 3]));
/// # }
/// ```
pub struct Rows<'conn, S, V> {
    stream: Pin<Box<S>>,
    broken: &'conn mut bool,
    verb: PhantomData<V>,
}

impl<S, V, R> Iterator for Rows<'_, S, V>
where
    S: Stream<Item = QueryResult<R>>,
    V: Verb,
{
    type Item = QueryResult<R>;

    fn next(&mut self) -> Option<Self::Item> {
        let stream = &mut self.stream;
        ask::<V, _>(self.broken, || stream.next())
            .unwrap_or_else(|cancelled| Some(Err(is_broken(cancelled))))
    }
}

impl<S, V> fmt::Debug for Rows<'_, S, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").finish_non_exhaustive()
    }
}

impl<C: AsyncConnection, V: Verb> MigrationConnection for Blocking<C, V> {
    fn setup(&mut self) -> QueryResult<usize> {
        self.batch_execute(CREATE_MIGRATIONS_TABLE).map(|()| 0)
    }
}

/// What begins and ends the transactions of a [`Blocking`].
#[derive(Debug)]
pub struct Transactions;

impl<C: AsyncConnection, V: Verb> TransactionManager<Blocking<C, V>> for Transactions {
    type TransactionStateData =
        <C::TransactionManager as AsyncTransactionManager<C>>::TransactionStateData;

    fn begin_transaction(conn: &mut Blocking<C, V>) -> QueryResult<()> {
        conn.call(C::TransactionManager::begin_transaction)
    }

    fn rollback_transaction(conn: &mut Blocking<C, V>) -> QueryResult<()> {
        conn.call(C::TransactionManager::rollback_transaction)
    }

    fn commit_transaction(conn: &mut Blocking<C, V>) -> QueryResult<()> {
        conn.call(C::TransactionManager::commit_transaction)
    }

    fn transaction_manager_status_mut(conn: &mut Blocking<C, V>) -> &mut TransactionManagerStatus {
        C::TransactionManager::transaction_manager_status_mut(&mut conn.connection)
    }

    fn transaction<F, R, E>(conn: &mut Blocking<C, V>, callback: F) -> Result<R, E>
    where
        F: FnOnce(&mut Blocking<C, V>) -> Result<R, E>,
        E: From<Error>,
    {
        Self::begin_transaction(conn)?;
        end_transaction(conn, callback)
    }

    fn is_broken_transaction_manager(conn: &mut Blocking<C, V>) -> bool {
        // In this order: the state can't be had while a statement is under way.
        conn.broken || C::TransactionManager::is_broken_transaction_manager(&mut conn.connection)
    }
}

/// A connection that can be told that it is broken.
pub(super) trait Breakable: Connection {
    fn set_broken(&mut self);
}

impl<C: AsyncConnection, V: Verb> Breakable for Blocking<C, V> {
    fn set_broken(&mut self) {
        self.broken = true;
    }
}

/// Calls `callback` in a transaction that is open, and ends the transaction; if
/// `callback` unwinds, the connection is broken.
pub(super) fn end_transaction<C, F, R, E>(conn: &mut C, callback: F) -> Result<R, E>
where
    C: Breakable,
    F: FnOnce(&mut C) -> Result<R, E>,
    E: From<Error>,
{
    struct Open<'a, C: Breakable> {
        conn: &'a mut C,
        returned: bool,
    }
    impl<C: Breakable> Drop for Open<'_, C> {
        fn drop(&mut self) {
            if !self.returned {
                self.conn.set_broken();
            }
        }
    }

    let mut open = Open {
        conn: &mut *conn,
        returned: false,
    };
    let result = callback(open.conn);
    open.returned = true;
    drop(open);
    match result {
        Ok(value) => {
            C::TransactionManager::commit_transaction(conn)?;
            Ok(value)
        }
        Err(error) => match C::TransactionManager::rollback_transaction(conn) {
            // The error is the likely cause of what has broken the connection.
            Ok(()) | Err(Error::BrokenTransactionManager) => Err(error),
            Err(failed) => Err(failed.into()),
        },
    }
}
