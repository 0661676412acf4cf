//! Pools by the crate [bb8](https://docs.rs/bb8).
//!
//! Use [deadpool](super::deadpool) for a pool that opens connections in the future of
//! its `get`, without tasks of its own.
//!
//! bb8 opens connections in tasks of the runtime in which somebody asks for one. If
//! that runtime ends meanwhile, bb8 counts the connection as coming, for ever.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "diesel-sqlite")] {
//! use diesel::prelude::*;
//! use diesel::sql_types::Integer;
//! use greenhack::await_sync;
//! use greenhack::diesel::bb8::Pool;
//! use greenhack::diesel::{Manager, Pooled, SqliteConnection};
//!
//! fn handler(pool: &Pool<SqliteConnection>) -> QueryResult<i32> {
//!     let conn = await_sync(pool.get_owned()).expect("the file can be opened");
//!     diesel::select(1.into_sql::<Integer>()).get_result(&mut Pooled::from(conn))
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let pool = Pool::builder().max_size(4).build(Manager::new(":memory:")).await.unwrap();
//! let run = greenhack::run_sync({
//!     let pool = pool.clone();
//!     move || handler(&pool)
//! });
//! assert_eq!(run.await, Ok(1));
//! assert_eq!(pool.state().connections, 1);
//! # });
//! # }
//! ```
#![forbid(unsafe_code)]

use std::panic::AssertUnwindSafe;
use std::thread::panicking;

use ::bb8::{ManageConnection, PooledConnection, RunError};
use ::diesel::connection::Connection;
use ::diesel::result::ConnectionError;
use futures::FutureExt;

use super::pool::{Home, Idle, Manager, Pooled};

/// bb8's pool; its `get_owned` is a future of what becomes a [`Pooled`] connection.
pub type Pool<C> = ::bb8::Pool<Manager<C>>;

/// The error of its `get_owned`.
pub type PoolError = RunError<ConnectionError>;

impl<C: Connection + 'static> ManageConnection for Manager<C> {
    type Connection = Idle<C>;
    type Error = ConnectionError;

    async fn connect(&self) -> Result<Idle<C>, ConnectionError> {
        // It is a task of bb8, which would count it for ever if it ended otherwise.
        AssertUnwindSafe(self.open())
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(ConnectionError::BadConnection("it panicked".to_owned())))
    }

    async fn is_valid(&self, idle: &mut Idle<C>) -> Result<(), ConnectionError> {
        self.try_again(idle).await
    }

    fn has_broken(&self, idle: &mut Idle<C>) -> bool {
        panicking() || idle.is_broken()
    }
}

impl<C: Connection + 'static> From<PooledConnection<'static, Manager<C>>> for Pooled<C> {
    fn from(conn: PooledConnection<'static, Manager<C>>) -> Self {
        Pooled::of(Home::Bb8(conn))
    }
}
