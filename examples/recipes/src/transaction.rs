//! A transaction of tokio-postgres that rolls back when it is dropped.

use std::cell::Cell;

use deadpool_postgres::{Object, Pool};
use greenhack::{await_in_drop, await_sync};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, NoTls, Row};

/// A transaction. If it is not committed, it is rolled back, whether by an error,
/// a panic or a cancellation.
///
/// tokio-postgres's own leaves that to whoever drives the connection, and tells
/// nobody how it went. This one knows, and gives a connection back to the pool
/// only when it is clean.
pub struct Transaction {
    /// `None` when it has ended.
    client: Option<Object>,
    /// Whether a statement has begun and not ended.
    cut_off: Cell<bool>,
}

impl Transaction {
    /// Begins one.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub fn begin(client: Object) -> Result<Transaction, Error> {
        // From here on `drop` cares for it, also when this very call is cut off.
        let transaction = Transaction {
            client: Some(client),
            cut_off: Cell::new(false),
        };
        transaction.wait(transaction.client().batch_execute("BEGIN"))?;
        Ok(transaction)
    }

    /// Executes a statement.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub fn execute(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.wait(self.client().execute(sql, values))
    }

    /// Asks for rows.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub fn query(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.wait(self.client().query(sql, values))
    }

    /// Commits. If it is cut off here, nobody knows whether it has taken place.
    ///
    /// # Errors
    ///
    /// If the database fails, or a statement has failed before. The transaction is
    /// then rolled back.
    pub fn commit(mut self) -> Result<(), Error> {
        // The `COMMIT` of a transaction in which a statement has failed rolls back,
        // which is no error to PostgreSQL. A `SELECT` there is one.
        self.wait(self.client().batch_execute("SELECT 1; COMMIT"))?;
        self.client = None;
        Ok(())
    }

    fn wait<T>(&self, statement: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.cut_off.set(true);
        let result = await_sync(statement);
        self.cut_off.set(false);
        result
    }

    fn client(&self) -> &Object {
        self.client.as_ref().expect("it has not ended")
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else {
            return;
        };
        if self.cut_off.get() {
            // The statement goes on in the server, which looks for us at its end.
            // The request may be late and meet what comes next, so that nothing
            // may come next on this connection.
            let _ = await_in_drop(client.cancel_token().cancel_query(NoTls));
            drop(Object::take(client));
            return;
        }
        let rolled_back = await_in_drop(client.batch_execute("ROLLBACK"));
        if !matches!(rolled_back, Some(Ok(()))) {
            // The pool opens another; the server rolls back as this one ends.
            drop(Object::take(client));
        }
    }
}

/// Takes a connection out of the pool.
///
/// # Errors
///
/// If none can be opened.
pub fn connect(pool: &Pool) -> Result<Object, deadpool_postgres::PoolError> {
    await_sync(pool.get())
}
