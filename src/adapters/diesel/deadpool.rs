//! Pools by the crate [deadpool](https://docs.rs/deadpool).
//!
//! Use [bb8](super::bb8) for a pool that keeps a minimum of connections open, or
//! closes old ones.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "diesel-sqlite")] {
//! use diesel::prelude::*;
//! use diesel::sql_types::Integer;
//! use greenhack::await_sync;
//! use greenhack::diesel::deadpool::Pool;
//! use greenhack::diesel::{Manager, SqliteConnection};
//!
//! fn handler(pool: &Pool<SqliteConnection>) -> QueryResult<i32> {
//!     let mut conn = await_sync(pool.get()).expect("the file can be opened");
//!     diesel::select(1.into_sql::<Integer>()).get_result(&mut conn)
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let pool = Pool::builder(Manager::new(":memory:")).max_size(4).build().unwrap();
//! let run = greenhack::run_sync({
//!     let pool = pool.clone();
//!     move || handler(&pool)
//! });
//! assert_eq!(run.await, Ok(1));
//! assert_eq!(pool.status().size, 1);
//! # });
//! # }
//! ```
#![forbid(unsafe_code)]

use std::thread::panicking;

use ::deadpool::managed;
use ::diesel::connection::Connection;
use ::diesel::result::ConnectionError;

/// Names tokio to a pool's builder, if it is to have timeouts.
pub use ::deadpool::Runtime;

use super::pool::{Home, Idle, Manager, Pooled};

/// deadpool's pool; its `get` is a future of a [`Pooled`] connection.
pub type Pool<C> = managed::Pool<Manager<C>, Pooled<C>>;

/// The error of its `get`.
pub type PoolError = managed::PoolError<ConnectionError>;

impl<C: Connection + 'static> managed::Manager for Manager<C> {
    type Type = Idle<C>;
    type Error = ConnectionError;

    async fn create(&self) -> Result<Idle<C>, ConnectionError> {
        self.open().await
    }

    async fn recycle(
        &self,
        idle: &mut Idle<C>,
        _: &managed::Metrics,
    ) -> managed::RecycleResult<ConnectionError> {
        if panicking() {
            return Err(managed::RecycleError::message(
                "it was asked for in an unwind",
            ));
        }
        Ok(self.try_again(idle).await?)
    }
}

impl<C: Connection + 'static> From<managed::Object<Manager<C>>> for Pooled<C> {
    fn from(object: managed::Object<Manager<C>>) -> Self {
        Pooled::of(Home::Deadpool(Some(object)))
    }
}
