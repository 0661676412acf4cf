//! What the pools have in common: how a connection is opened, checked, lent, and
//! thrown away.
#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread::panicking;

use ::diesel::connection::{
    Connection, ConnectionSealed, Instrumentation, LoadConnection, SimpleConnection,
    TransactionManager, TransactionManagerStatus,
};
use ::diesel::expression::QueryMetadata;
use ::diesel::migration::MigrationConnection;
use ::diesel::query_builder::{Query, QueryFragment, QueryId};
use ::diesel::result::{ConnectionError, Error};
use ::diesel::{ConnectionResult, QueryResult};

use super::blocking::{Breakable, end_transaction, intact};
use crate::builder;

/// The name of the runs. That of their closures has the types of the whole connection.
const NAME: &str = "greenhack::diesel::Manager";

/// Opens and checks the connections of a pool, with plain code.
///
/// For [deadpool](super::deadpool) and [bb8](super::bb8), and for any connection of
/// Diesel's kind, also one of `#[derive(MultiConnection)]`. Both pools call it in
/// futures, wherever somebody asks for a connection; it runs its plain code in runs
/// of its own, which are called `greenhack::diesel::Manager`.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "diesel-sqlite")] {
/// use diesel::connection::SimpleConnection;
/// use diesel::prelude::*;
/// use greenhack::diesel::{Manager, SqliteConnection};
///
/// let manager = Manager::with(|| {
///     let mut conn = SqliteConnection::establish(":memory:")?;
///     conn.batch_execute("PRAGMA foreign_keys = ON")
///         .map_err(ConnectionError::CouldntSetupConfiguration)?;
///     Ok(conn)
/// });
/// assert!(format!("{manager:?}").contains("check: true"));
/// # }
/// ```
pub struct Manager<C> {
    establish: Arc<dyn Fn() -> ConnectionResult<C> + Send + Sync>,
    check: bool,
}

impl<C: Connection + 'static> Manager<C> {
    /// Makes a manager that opens connections with `C::establish(database_url)`.
    pub fn new(database_url: impl Into<String>) -> Self {
        let database_url = database_url.into();
        Manager::with(move || C::establish(&database_url))
    }

    /// Makes a manager that opens connections with `establish`, a plain function
    /// that may wait.
    pub fn with(establish: impl Fn() -> ConnectionResult<C> + Send + Sync + 'static) -> Self {
        Manager {
            establish: Arc::new(establish),
            check: true,
        }
    }

    /// Sets whether a connection that was used before is tried with `SELECT 1` when it
    /// is lent again. The default is `true`.
    ///
    /// It costs a round trip, and spares the handler a connection that the server has
    /// closed meanwhile.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "diesel-sqlite")] {
    /// use greenhack::diesel::{Manager, SqliteConnection};
    ///
    /// let manager = Manager::<SqliteConnection>::new("orders.db").check(false);
    /// assert!(format!("{manager:?}").contains("check: false"));
    /// # }
    /// ```
    pub fn check(mut self, check: bool) -> Self {
        self.check = check;
        self
    }

    pub(super) async fn open(&self) -> ConnectionResult<Idle<C>> {
        let establish = self.establish.clone();
        let run = builder().name(NAME).run_sync(move || establish());
        Ok(Idle(Some(run.await?)))
    }

    /// Whether a connection may be lent again.
    pub(super) async fn try_again(&self, idle: &mut Idle<C>) -> ConnectionResult<()> {
        if idle.is_broken() {
            return Err(ConnectionError::BadConnection("it is broken".to_owned()));
        }
        if !self.check {
            return Ok(());
        }
        // The run owns it, since a run can't borrow. If this is dropped, the
        // connection is gone.
        let Some(mut conn) = idle.0.take() else {
            unreachable!("what is gone is broken");
        };
        let run = builder().name(NAME).run_sync(move || {
            let answer = conn.batch_execute("SELECT 1");
            (conn, answer)
        });
        let (conn, answer) = run.await;
        idle.0 = Some(conn);
        answer.map_err(|error| ConnectionError::BadConnection(error.to_string()))
    }
}

impl<C> fmt::Debug for Manager<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("check", &self.check)
            .finish_non_exhaustive()
    }
}

/// A connection as a pool keeps it; [`Pooled`] lends it.
pub struct Idle<C>(Option<C>);

impl<C: Connection> Idle<C> {
    pub(super) fn is_broken(&mut self) -> bool {
        match &mut self.0 {
            Some(conn) => C::TransactionManager::is_broken_transaction_manager(conn),
            None => true,
        }
    }
}

impl<C> fmt::Debug for Idle<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idle").finish_non_exhaustive()
    }
}

/// A connection that is lent by a pool.
///
/// It is a Diesel connection itself, and derefs to the one that it holds, so that
/// functions which take `&mut C` take `&mut pooled`.
///
/// When it is dropped, it goes back to its pool. It is closed instead, and the pool has
/// room for another,
///
/// - in an unwind: the run was cancelled, or the handler panicked;
/// - if it is [broken](super#broken-connections): such an unwind was caught;
/// - if a transaction is open.
///
/// So a pool never lends a connection with a transaction of somebody else, and none
/// keeps locks in the database while it lies in the pool. What it does not see is state
/// that was set with SQL: an open `BEGIN`, a `SET`, a temporary table.
///
/// # Examples
///
/// ```
/// # #[cfg(all(feature = "diesel-sqlite", feature = "diesel-deadpool"))] {
/// use diesel::prelude::*;
/// use greenhack::await_sync;
/// use greenhack::diesel::{Manager, Pooled, SqliteConnection, deadpool::Pool};
///
/// let pool = Pool::builder(Manager::new(":memory:")).max_size(1).build().unwrap();
/// let mut conn: Pooled<SqliteConnection> = await_sync(pool.get()).unwrap();
/// assert_eq!(diesel::sql_query("CREATE TABLE dishes (name TEXT)").execute(&mut conn), Ok(0));
///
/// drop(conn);
/// assert_eq!(pool.status().available, 1);
/// # }
/// ```
pub struct Pooled<C: Connection + 'static> {
    home: Home<C>,
    broken: bool,
}

/// The pool's own guard.
pub(super) enum Home<C: Connection + 'static> {
    #[cfg(feature = "diesel-deadpool")]
    Deadpool(Option<::deadpool::managed::Object<Manager<C>>>),
    #[cfg(feature = "diesel-bb8")]
    Bb8(::bb8::PooledConnection<'static, Manager<C>>),
}

impl<C: Connection + 'static> Pooled<C> {
    pub(super) fn of(home: Home<C>) -> Self {
        Pooled {
            home,
            broken: false,
        }
    }

    fn idle(&self) -> &Idle<C> {
        match &self.home {
            #[cfg(feature = "diesel-deadpool")]
            Home::Deadpool(object) => object.as_ref().expect("it is there until it is dropped"),
            #[cfg(feature = "diesel-bb8")]
            Home::Bb8(conn) => conn,
        }
    }

    fn idle_mut(&mut self) -> &mut Idle<C> {
        match &mut self.home {
            #[cfg(feature = "diesel-deadpool")]
            Home::Deadpool(object) => object.as_mut().expect("it is there until it is dropped"),
            #[cfg(feature = "diesel-bb8")]
            Home::Bb8(conn) => conn,
        }
    }
}

impl<C: Connection + 'static> Drop for Pooled<C> {
    fn drop(&mut self) {
        if !(self.broken || panicking() || self.idle_mut().is_broken()) {
            return;
        }
        // Closed here and now: deadpool would look at it when it lends it again.
        drop(self.idle_mut().0.take());
        match &mut self.home {
            #[cfg(feature = "diesel-deadpool")]
            Home::Deadpool(object) => {
                let _gone = object.take().map(::deadpool::managed::Object::take);
            }
            // It asks whether the connection is broken.
            #[cfg(feature = "diesel-bb8")]
            Home::Bb8(_) => {}
        }
    }
}

impl<C: Connection + 'static> Deref for Pooled<C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.idle().0.as_ref().expect("what is lent is there")
    }
}

impl<C: Connection + 'static> DerefMut for Pooled<C> {
    fn deref_mut(&mut self) -> &mut C {
        self.idle_mut().0.as_mut().expect("what is lent is there")
    }
}

impl<C: Connection + 'static> fmt::Debug for Pooled<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled")
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl<C: Connection + 'static> Breakable for Pooled<C> {
    fn set_broken(&mut self) {
        self.broken = true;
    }
}

impl<C: Connection + 'static> SimpleConnection for Pooled<C> {
    fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        intact(self.broken)?;
        (**self).batch_execute(query)
    }
}

impl<C: Connection + 'static> ConnectionSealed for Pooled<C> {}

impl<C: Connection + 'static> Connection for Pooled<C> {
    type Backend = C::Backend;
    type TransactionManager = PooledTransactions<C::TransactionManager>;

    /// Is an error: a pool lends connections, see [`Manager`].
    fn establish(_: &str) -> ConnectionResult<Self> {
        Err(ConnectionError::BadConnection(
            "a pooled connection comes from its pool".to_owned(),
        ))
    }

    fn begin_test_transaction(&mut self) -> QueryResult<()> {
        (**self).begin_test_transaction()
    }

    fn execute_returning_count<T>(&mut self, source: &T) -> QueryResult<usize>
    where
        T: QueryFragment<Self::Backend> + QueryId,
    {
        intact(self.broken)?;
        (**self).execute_returning_count(source)
    }

    fn transaction_state(
        &mut self,
    ) -> &mut <C::TransactionManager as TransactionManager<C>>::TransactionStateData {
        (**self).transaction_state()
    }

    fn instrumentation(&mut self) -> &mut dyn Instrumentation {
        (**self).instrumentation()
    }

    fn set_instrumentation(&mut self, instrumentation: impl Instrumentation) {
        (**self).set_instrumentation(instrumentation);
    }
}

impl<B, C: LoadConnection<B> + 'static> LoadConnection<B> for Pooled<C> {
    type Cursor<'conn, 'query> = C::Cursor<'conn, 'query>;
    type Row<'conn, 'query> = C::Row<'conn, 'query>;

    fn load<'conn, 'query, T>(
        &'conn mut self,
        source: T,
    ) -> QueryResult<Self::Cursor<'conn, 'query>>
    where
        T: Query + QueryFragment<Self::Backend> + QueryId + 'query,
        Self::Backend: QueryMetadata<T::SqlType>,
    {
        intact(self.broken)?;
        (**self).load(source)
    }
}

impl<C: MigrationConnection + 'static> MigrationConnection for Pooled<C> {
    fn setup(&mut self) -> QueryResult<usize> {
        (**self).setup()
    }
}

/// What begins and ends the transactions of a [`Pooled`].
#[derive(Debug)]
pub struct PooledTransactions<T>(PhantomData<T>);

impl<C, T> TransactionManager<Pooled<C>> for PooledTransactions<T>
where
    C: Connection<TransactionManager = T> + 'static,
    T: TransactionManager<C>,
{
    type TransactionStateData = T::TransactionStateData;

    fn begin_transaction(conn: &mut Pooled<C>) -> QueryResult<()> {
        intact(conn.broken)?;
        T::begin_transaction(&mut **conn)
    }

    fn rollback_transaction(conn: &mut Pooled<C>) -> QueryResult<()> {
        intact(conn.broken)?;
        T::rollback_transaction(&mut **conn)
    }

    fn commit_transaction(conn: &mut Pooled<C>) -> QueryResult<()> {
        intact(conn.broken)?;
        T::commit_transaction(&mut **conn)
    }

    fn transaction_manager_status_mut(conn: &mut Pooled<C>) -> &mut TransactionManagerStatus {
        T::transaction_manager_status_mut(&mut **conn)
    }

    fn transaction<F, R, E>(conn: &mut Pooled<C>, callback: F) -> Result<R, E>
    where
        F: FnOnce(&mut Pooled<C>) -> Result<R, E>,
        E: From<Error>,
    {
        Self::begin_transaction(conn)?;
        end_transaction(conn, callback)
    }

    fn is_broken_transaction_manager(conn: &mut Pooled<C>) -> bool {
        conn.broken || conn.idle_mut().is_broken()
    }
}
