//! Transactions on a real PostgreSQL.

mod support;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use greenhack::{await_sync, run_sync};
use recipes::transaction::{Transaction, connect};
use support::{in_time, many_threads, one_thread, server};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_postgres::{Config, Error, NoTls};

/// A table of its own, for the time of a test, and a pool of one connection.
struct Book {
    table: String,
    pool: Pool,
    /// One that is not the pool's.
    other: Pool,
}

impl Book {
    async fn new(address: &str, test: &str) -> Book {
        let table = format!("greenhack_{test}_{}", std::process::id());
        let pool = |size| {
            let mut config: Config = address.parse().unwrap();
            config.application_name(&table);
            let recycling = ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            };
            let manager = Manager::from_config(config, NoTls, recycling);
            Pool::builder(manager).max_size(size).build().unwrap()
        };
        let (pool, other) = (pool(1), pool(2));
        let book = Book { table, pool, other };
        let create = format!("CREATE TABLE {} (dish TEXT)", book.table);
        book.other
            .get()
            .await
            .unwrap()
            .batch_execute(&create)
            .await
            .unwrap();
        book
    }

    fn insert(&self) -> String {
        format!("INSERT INTO {} VALUES ($1)", self.table)
    }

    async fn dishes(&self) -> Vec<String> {
        let select = format!("SELECT dish FROM {} ORDER BY dish", self.table);
        let rows = self
            .other
            .get()
            .await
            .unwrap()
            .query(&select, &[])
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until some connection is in such a state.
    async fn until(&self, state: &str) {
        let select = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND {state}"
        );
        let other = self.other.get().await.unwrap();
        while other
            .query_one(&select, &[&self.table])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 0
        {}
    }

    /// Waits until the server has ended a connection.
    async fn until_ended(&self, pid: i32) {
        let select = "SELECT 1 FROM pg_stat_activity WHERE pid = $1";
        let other = self.other.get().await.unwrap();
        while !other.query(select, &[&pid]).await.unwrap().is_empty() {}
    }

    /// The number that the server gives to the pool's connection, which is lent
    /// when it has rolled back, and is clean.
    async fn pid(&self) -> i32 {
        let select = "SELECT pg_backend_pid(), pg_current_xact_id_if_assigned() IS NULL";
        let db = self.pool.get().await.unwrap();
        let row = db.query_one(select, &[]).await.unwrap();
        assert!(row.get::<_, bool>(1), "a transaction is open");
        row.get(0)
    }

    async fn end(self) {
        let drop = format!("DROP TABLE {}", self.table);
        self.other
            .get()
            .await
            .unwrap()
            .batch_execute(&drop)
            .await
            .unwrap();
    }
}

/// Runs a test in place, and on the workers.
fn on_each_runtime(test: &str, body: impl AsyncFn(&Book)) {
    let Some(address) = server("postgres") else {
        return;
    };
    for (kind, runtime) in [("one", one_thread()), ("many", many_threads())] {
        let runtime: Runtime = runtime;
        runtime.block_on(in_time(async {
            let book = Book::new(&address, &format!("{test}_{kind}")).await;
            body(&book).await;
            book.end().await;
        }));
    }
}

/// Plain code: the `?` is what rolls back.
fn order(pool: &Pool, insert: &str, dishes: &[&str]) -> Result<(), Error> {
    let transaction = Transaction::begin(connect(pool).unwrap())?;
    for dish in dishes {
        transaction.execute(insert, &[dish])?;
        transaction.query("SELECT 1 / length($1)", &[dish])?;
    }
    transaction.commit()
}

#[test]
fn it_commits_or_leaves_nothing() {
    on_each_runtime("commits", async |book| {
        let pid = book.pid().await;
        let (pool, insert) = (book.pool.clone(), book.insert());
        let (good, bad) = run_sync(move || {
            let good = order(&pool, &insert, &["rice", "soup"]);
            (good, order(&pool, &insert, &["fish", ""]))
        })
        .await;
        good.unwrap();
        assert_eq!(bad.unwrap_err().code().unwrap().code(), "22012");
        assert_eq!(book.dishes().await, ["rice", "soup"]);
        // The same connection, and it is clean.
        assert_eq!(book.pid().await, pid);
        book.until("state = 'idle'").await;
    });
}

#[test]
fn it_does_not_commit_what_has_failed() {
    on_each_runtime("failed", async |book| {
        let pid = book.pid().await;
        let (pool, insert) = (book.pool.clone(), book.insert());
        let committed = run_sync(move || {
            let transaction = Transaction::begin(connect(&pool).unwrap())?;
            transaction.execute(&insert, &[&"soup"])?;
            assert!(transaction.query("SELECT 1 / 0", &[]).is_err());
            transaction.commit()
        })
        .await;
        assert_eq!(committed.unwrap_err().code().unwrap().code(), "25P02");
        assert!(book.dishes().await.is_empty());
        assert_eq!(book.pid().await, pid);
    });
}

#[test]
fn it_rolls_back_on_a_panic() {
    on_each_runtime("panics", async |book| {
        let (pool, insert) = (book.pool.clone(), book.insert());
        let run = tokio::spawn(run_sync(move || {
            let transaction = Transaction::begin(connect(&pool).unwrap()).unwrap();
            transaction.execute(&insert, &[&"soup"]).unwrap();
            panic!("on purpose");
        }));
        assert!(run.await.unwrap_err().is_panic());
        book.pid().await;
        assert!(book.dishes().await.is_empty());
    });
}

#[test]
fn it_rolls_back_when_it_is_cancelled_between_statements() {
    on_each_runtime("between", async |book| {
        let (pool, insert) = (book.pool.clone(), book.insert());
        let (inserted, is_inserted) = oneshot::channel();
        let run = tokio::spawn(run_sync(move || {
            let transaction = Transaction::begin(connect(&pool).unwrap()).unwrap();
            transaction.execute(&insert, &[&"soup"]).unwrap();
            inserted.send(()).unwrap();
            await_sync(std::future::pending::<()>());
        }));
        is_inserted.await.unwrap();
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        book.pid().await;
        assert!(book.dishes().await.is_empty());
    });
}

#[test]
fn it_ends_the_statement_in_which_it_is_cancelled() {
    on_each_runtime("statement", async |book| {
        let pid = book.pid().await;
        let (pool, insert) = (book.pool.clone(), book.insert());
        let run = tokio::spawn(run_sync(move || {
            let transaction = Transaction::begin(connect(&pool).unwrap()).unwrap();
            transaction.execute(&insert, &[&"soup"]).unwrap();
            transaction.query("SELECT pg_sleep(1000)", &[]).unwrap();
        }));
        book.until("state = 'active' AND wait_event = 'PgSleep'")
            .await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        // The connection has ended, on both sides, and with it what it did.
        assert_ne!(book.pid().await, pid);
        book.until_ended(pid).await;
        assert!(book.dishes().await.is_empty());
    });
}

/// There it can't wait for the end of a rollback.
#[test]
fn dropped_in_async_code_it_closes_its_connection() {
    on_each_runtime("async_code", async |book| {
        let pid = book.pid().await;
        let (pool, insert) = (book.pool.clone(), book.insert());
        let transaction = run_sync(move || {
            let transaction = Transaction::begin(connect(&pool).unwrap()).unwrap();
            transaction.execute(&insert, &[&"soup"]).unwrap();
            transaction
        })
        .await;
        drop(transaction);
        assert_ne!(book.pid().await, pid);
        book.until_ended(pid).await;
        assert!(book.dishes().await.is_empty());
    });
}

#[test]
fn one_that_waits_for_a_lock_lets_the_holder_go_on() {
    on_each_runtime("locks", async |book| {
        // Both in the same pool of two, and on one thread.
        let (pool, insert) = (book.other.clone(), book.insert());
        let lock = format!("LOCK TABLE {} IN EXCLUSIVE MODE", book.table);
        let (locked, is_locked) = oneshot::channel();
        let (met, has_met) = oneshot::channel();
        let (pool2, insert2, lock2) = (pool.clone(), insert.clone(), lock.clone());
        let holder = tokio::spawn(run_sync(move || {
            let transaction = Transaction::begin(connect(&pool).unwrap())?;
            transaction.execute(&lock, &[])?;
            locked.send(()).unwrap();
            await_sync(has_met).unwrap();
            transaction.execute(&insert, &[&"soup"])?;
            transaction.commit()
        }));
        let waiter = tokio::spawn(run_sync(move || {
            await_sync(is_locked).unwrap();
            let transaction = Transaction::begin(connect(&pool2).unwrap())?;
            transaction.execute(&lock2, &[])?;
            transaction.execute(&insert2, &[&"rice"])?;
            transaction.commit()
        }));
        // The pool of one is the one that looks on here.
        let select = "SELECT count(*) FROM pg_stat_activity \
                      WHERE application_name = $1 AND wait_event_type = 'Lock'";
        let db = book.pool.get().await.unwrap();
        while db
            .query_one(select, &[&book.table])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 0
        {}
        met.send(()).unwrap();
        holder.await.unwrap().unwrap();
        waiter.await.unwrap().unwrap();
        assert_eq!(book.dishes().await, ["rice", "soup"]);
    });
}
