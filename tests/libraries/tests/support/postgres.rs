//! A place of its own for each test in a PostgreSQL that runs already.
#![allow(unreachable_pub, reason = "it is a module of a test binary")]

use std::env;
use std::io::{Write, stderr};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use greenhack::diesel::{Manager, PgConnection};

use crate::orders::{AnyConnection, migrate};

/// Where the address of PostgreSQL is. `ci/postgres.sh` sets it.
const VARIABLE: &str = "GREENHACK_TEST_POSTGRES";

/// The address, or `None` on a machine without PostgreSQL, where the tests that need
/// it are left out. In CI that is a failure.
fn address() -> Option<String> {
    static SAID: Once = Once::new();
    let address = env::var(VARIABLE).ok();
    assert!(
        address.is_some() || env::var_os("CI").is_none(),
        "{VARIABLE} is not set; run the tests by `ci/postgres.sh cargo test ..`"
    );
    if address.is_none() {
        // The harness holds back what `eprintln` says in a test that passes.
        SAID.call_once(|| {
            let _ = writeln!(
                stderr(),
                "\nNOT TESTED: what needs PostgreSQL, since {VARIABLE} is not set; \
                 try `ci/postgres.sh cargo test --test diesel_postgres --features diesel`"
            );
        });
    }
    address
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// A schema, and an application name by which PostgreSQL knows its connections.
pub struct Database {
    name: String,
    address: String,
}

impl Database {
    pub fn new(test: &str) -> Option<Database> {
        let address = address()?;
        let name = format!("greenhack_{test}_{}", std::process::id());
        let database = Database { name, address };
        database.elsewhere(|conn, name| {
            conn.batch_execute(&format!("CREATE SCHEMA {name}"))
                .unwrap();
        });
        Some(database)
    }

    /// One with a table of orders.
    pub fn with_orders(test: &str) -> Option<Database> {
        let database = Database::new(test)?;
        let url = database.url();
        thread::scope(|scope| {
            let thread = scope.spawn(|| migrate(&mut open(&url).unwrap()));
            thread.join().unwrap();
        });
        Some(database)
    }

    pub fn url(&self) -> String {
        let (address, name) = (&self.address, &self.name);
        let joint = if address.contains('?') { '&' } else { '?' };
        format!("{address}{joint}application_name={name}&options=-c%20search_path%3D{name}")
    }

    pub fn manager(&self) -> Manager<AnyConnection> {
        let url = self.url();
        Manager::with(move || open(&url))
    }

    /// Waits, on a thread of its own, until as many of this database's connections
    /// are in the state.
    pub fn wait_for(&self, expected: i64, state: &str) {
        self.elsewhere(|conn, name| {
            let begun = Instant::now();
            loop {
                let count: i64 = diesel::sql_query(format!(
                    "SELECT count(*) AS count FROM pg_stat_activity \
                     WHERE application_name = $1 AND ({state})"
                ))
                .bind::<Text, _>(name)
                .get_result::<Count>(conn)
                .unwrap()
                .count;
                if count == expected {
                    return;
                }
                assert!(
                    begun.elapsed() < Duration::from_secs(60),
                    "{count} instead of {expected} where {state}"
                );
            }
        });
    }

    /// Calls `f` with a connection that is not one of this database's, on a thread
    /// that may block.
    pub fn elsewhere<R: Send>(&self, f: impl FnOnce(&mut PgConnection, &str) -> R + Send) -> R {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut conn = PgConnection::establish(&self.address).unwrap();
                f(&mut conn, &self.name)
            });
            thread.join().unwrap()
        })
    }
}

pub fn open(url: &str) -> ConnectionResult<AnyConnection> {
    Ok(AnyConnection::Postgres(PgConnection::establish(url)?))
}

impl Drop for Database {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.elsewhere(|conn, name| {
                conn.batch_execute(&format!("DROP SCHEMA {name} CASCADE"))
                    .unwrap();
            });
        }
    }
}
