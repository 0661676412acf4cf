//! PostgreSQL, through tokio-postgres.
#![forbid(unsafe_code)]

use std::any::Any;
use std::borrow::Cow;

use ::diesel::connection::MultiConnectionHelper;
use ::diesel::pg::{FailedToLookupTypeError, PgMetadataCacheKey, PgMetadataLookup, PgTypeMetadata};
use ::diesel::result::Error;
use diesel_async::{AnsiTransactionManager, AsyncPgConnection};

use super::blocking::{Await, Blocking, Verb, end_transaction};

/// A connection to PostgreSQL with Diesel's plain interface.
///
/// It stands for `diesel::PgConnection`. See [`Blocking`] for what it does when it
/// is cancelled.
///
/// tokio drives the socket in a task of the runtime in which `establish` waits: for
/// a run on a worker, in the worker's. The connection may be used on any thread as
/// long as that runtime lives. `establish` has no TLS; build an
/// [`AsyncPgConnection`] with it, and convert it with `From`.
///
/// # Examples
///
/// ```no_run
/// use diesel::prelude::*;
/// use greenhack::diesel::PgConnection;
///
/// fn version() -> ConnectionResult<String> {
///     let mut conn = PgConnection::establish("postgres://localhost/orders")?;
///     let version = diesel::dsl::sql::<diesel::sql_types::Text>("SELECT version()");
///     Ok(version.get_result(&mut conn).expect("there is a version"))
/// }
///
/// assert!(version().unwrap().starts_with("PostgreSQL"));
/// ```
pub type PgConnection = Blocking<AsyncPgConnection, Await>;

impl<V: Verb> Blocking<AsyncPgConnection, V> {
    /// Suspends while `f` runs in a transaction that the statement `begin` opens.
    ///
    /// For an isolation level, or a transaction that only reads: in place of
    /// `build_transaction`. Otherwise use `transaction`.
    ///
    /// # Cancel safety
    ///
    /// As [`Blocking`]: the connection is broken, and PostgreSQL rolls back when it is
    /// dropped.
    ///
    /// # Panics
    ///
    /// With the panic of `f`, and in async code.
    ///
    /// # Errors
    ///
    /// With that of `f`, after a rollback. If a transaction is open already. If
    /// PostgreSQL refuses the beginning, the commit or the rollback.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use diesel::prelude::*;
    /// use greenhack::diesel::PgConnection;
    ///
    /// # let mut conn = PgConnection::establish("postgres://localhost/orders").unwrap();
    /// let level = conn.transaction_begun_with("BEGIN ISOLATION LEVEL SERIALIZABLE", |conn| {
    ///     diesel::dsl::sql::<diesel::sql_types::Text>("SHOW transaction_isolation")
    ///         .get_result::<String>(conn)
    /// });
    /// assert_eq!(level.unwrap(), "serializable");
    /// ```
    pub fn transaction_begun_with<R, E, F>(&mut self, begin: &str, f: F) -> Result<R, E>
    where
        F: FnOnce(&mut Self) -> Result<R, E>,
        E: From<Error>,
    {
        self.call(|conn| AnsiTransactionManager::begin_transaction_sql(conn, begin))?;
        end_transaction(self, f)
    }
}

/// Stands for the lookup of types in a `MultiConnection`.
///
/// diesel-async looks types up when it runs a query, with a type of its own that
/// can't be named. So what is passed through `Any` is this, which knows none:
/// types that PostgreSQL is built with need no lookup.
struct BuiltInTypes;

impl PgMetadataLookup for BuiltInTypes {
    fn lookup_type(&mut self, name: &str, schema: Option<&str>) -> PgTypeMetadata {
        let key = PgMetadataCacheKey::new(
            schema.map(|schema| Cow::Owned(schema.to_owned())),
            Cow::Owned(name.to_owned()),
        );
        PgTypeMetadata::from_result(Err(FailedToLookupTypeError::new(key)))
    }

    fn as_any<'a>(&mut self) -> &mut (dyn Any + 'a)
    where
        Self: 'a,
    {
        self
    }
}

type Lookup = dyn PgMetadataLookup;

impl<V: Verb> MultiConnectionHelper for Blocking<AsyncPgConnection, V> {
    fn to_any<'a>(_: &mut Lookup) -> &mut (dyn Any + 'a) {
        // It has no size, so nothing is allocated that could leak.
        Box::leak(Box::new(BuiltInTypes))
    }

    fn from_any(lookup: &mut dyn Any) -> Option<&mut Lookup> {
        lookup
            .downcast_mut::<BuiltInTypes>()
            .map(|lookup| lookup as &mut Lookup)
    }
}
