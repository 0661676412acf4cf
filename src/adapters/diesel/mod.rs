//! Diesel, the plain synchronous ORM, on async drivers.
//!
//! Handlers, models and queries are written as Diesel's guide teaches it, with
//! `diesel::prelude` and not a single `.await`. Where Diesel's own connections
//! would block the thread for the answer of the database, [`PgConnection`] and
//! [`SqliteConnection`] suspend the run, and the thread serves others meanwhile.
//! Outside a run they block, as [`await_sync`](crate::await_sync) does, so that
//! migrations, scripts and tests need nothing else.
//!
//! | feature | adds |
//! |---|---|
//! | `diesel-postgres` | [`PgConnection`], on tokio-postgres; libpq is not needed |
//! | `diesel-sqlite` | [`SqliteConnection`], on the blocking threads of tokio; SQLite is built from its source |
//! | `diesel-deadpool` | pools by [deadpool](self::deadpool) |
//! | `diesel-bb8` | pools by [bb8](self::bb8) |
//! | `diesel` | all of them |
//!
//! The versions are those of Diesel 2.2 and diesel-async 0.6, since later ones
//! need a later Rust than this crate: write `diesel = "~2.2"` beside it.
//!
//! # Broken connections
//!
//! If a call on a connection unwinds, because its run was cancelled or because a
//! closure given to `transaction` panicked, nobody knows how far the database has
//! come, or whether a transaction is open. The connection is then broken: each
//! further call returns `Error::BrokenTransactionManager`, and a [`Pooled`] one is
//! closed instead of returned. What was not committed, the database rolls back.
//!
//! # Panics
//!
//! In async code all calls panic that wait, as [`await_sync`](crate::await_sync)
//! does. Diesel's functions lie in between and don't track their callers, so the
//! panic's location is not that of the query; its backtrace has it.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "diesel-sqlite")] {
//! use diesel::prelude::*;
//! use diesel::sql_types::Integer;
//! use greenhack::diesel::SqliteConnection;
//!
//! fn double(conn: &mut SqliteConnection, number: i32) -> QueryResult<i32> {
//!     diesel::select(number.into_sql::<Integer>() + number).get_result(conn)
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let run = greenhack::run_sync(|| {
//!     let mut conn = SqliteConnection::establish(":memory:").unwrap();
//!     double(&mut conn, 21)
//! });
//! assert_eq!(run.await, Ok(42));
//! # });
//! # }
//! ```
#![forbid(unsafe_code)]

mod blocking;
#[cfg(any(feature = "diesel-deadpool", feature = "diesel-bb8"))]
mod pool;
#[cfg(feature = "diesel-postgres")]
mod postgres;
#[cfg(feature = "diesel-sqlite")]
mod sqlite;

#[cfg(feature = "diesel-bb8")]
pub mod bb8;
#[cfg(feature = "diesel-deadpool")]
pub mod deadpool;

pub use blocking::{Await, AwaitShielded, Blocking, Rows, Verb};
#[cfg(any(feature = "diesel-deadpool", feature = "diesel-bb8"))]
pub use pool::{Idle, Manager, Pooled};
#[cfg(feature = "diesel-postgres")]
pub use postgres::PgConnection;
#[cfg(feature = "diesel-sqlite")]
pub use sqlite::{OnBlockingThread, SqliteConnection};
