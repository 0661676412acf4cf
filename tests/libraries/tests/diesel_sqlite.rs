//! `greenhack::diesel` on SQLite files.
#![forbid(unsafe_code)]

#[path = "support/orders.rs"]
mod orders;
#[path = "../../support/mod.rs"]
mod support;

use std::fs;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::Integer;
use greenhack::diesel::{Manager, SqliteConnection};
use greenhack::{await_sync, builder, dump, run_sync, run_sync_local, shield};
use tokio::sync::{mpsc, oneshot};

use orders::{AnyConnection, Pool, add, all, ids, migrate, order, serve};
use support::{Log, Place, current_thread, in_each_place, on_drop, signal, text};

/// A file that is removed at the end of the test.
struct File(PathBuf);

impl File {
    fn new() -> File {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("greenhack-{}-{count}.sqlite", std::process::id());
        File(std::env::temp_dir().join(name))
    }

    /// One with a table of orders.
    fn with_orders() -> File {
        let file = File::new();
        // On a thread that may block, wherever this is called.
        thread::scope(|scope| scope.spawn(|| migrate(&mut file.open())).join().unwrap());
        file
    }

    fn url(&self) -> String {
        self.0.to_str().unwrap().to_owned()
    }

    fn open(&self) -> AnyConnection {
        open(&self.url()).unwrap()
    }

    fn manager(&self) -> Manager<AnyConnection> {
        let url = self.url();
        Manager::with(move || open(&url))
    }
}

fn open(url: &str) -> ConnectionResult<AnyConnection> {
    let mut conn = SqliteConnection::establish(url)?;
    conn.batch_execute("PRAGMA busy_timeout = 30000; PRAGMA journal_mode = WAL")
        .map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(AnyConnection::Sqlite(conn))
}

impl Drop for File {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", self.url()));
        }
    }
}

diesel::define_sql_function! {
    /// Waits for something on SQLite's thread.
    fn wait() -> Integer;
}

/// A connection whose function `wait` calls `f`.
fn with_wait(url: &str, f: impl FnMut() + Send + 'static) -> SqliteConnection {
    let mut conn = SqliteConnection::establish(url).unwrap();
    let mut f = AssertUnwindSafe(f);
    let registered = conn.as_async().spawn_blocking(move |conn| {
        wait_utils::register_nondeterministic_impl(conn, move || {
            let AssertUnwindSafe(f) = &mut f;
            f();
            1
        })
    });
    shield(|| await_sync(registered)).unwrap();
    conn
}

#[test]
fn smoke() {
    in_each_place(async |place| {
        let file = File::with_orders();
        let url = file.url();
        let run = place.spawn(move || {
            let mut conn = open(&url).unwrap();
            assert_eq!(add(&mut conn, 1), Ok(1));
            assert_eq!(all(&mut conn), [order(1)]);
            assert_eq!(serve(&mut conn, 1), Ok(1));
            assert!(all(&mut conn)[0].served);
        });
        run.await.unwrap();
    });
}

#[test]
fn a_plain_thread_blocks() {
    let file = File::with_orders();
    let mut conn = file.open();
    add(&mut conn, 1).unwrap();
    assert_eq!(ids(&mut conn), [1]);
}

#[test]
fn a_connection_outlives_the_runtime_that_opened_it() {
    let file = File::with_orders();
    let mut conn = current_thread().block_on(run_sync(move || (file.open(), file)));
    add(&mut conn.0, 1).unwrap();
    let ids = current_thread().block_on(run_sync(move || ids(&mut conn.0)));
    assert_eq!(ids, [1]);
}

#[test]
fn async_code_is_refused() {
    let file = File::with_orders();
    let mut conn = file.open();
    let payload = current_thread().block_on(async {
        tokio::spawn(async move { add(&mut conn, 1) })
            .await
            .unwrap_err()
            .into_panic()
    });
    assert!(text(&*payload).starts_with("`await_or_cancelled` called in async code"));
}

#[test]
fn an_error_rolls_back() {
    let file = File::with_orders();
    let mut conn = file.open();
    let refused = conn.transaction(|conn| {
        add(conn, 1)?;
        add(conn, 1)
    });
    assert!(matches!(refused, Err(Error::DatabaseError(..))));
    assert_eq!(ids(&mut conn), [0; 0]);
}

#[test]
fn a_savepoint_rolls_back_alone() {
    let file = File::with_orders();
    let kept = file.open().transaction(|conn| {
        add(conn, 1)?;
        let inner: QueryResult<()> = conn.transaction(|conn| {
            add(conn, 2)?;
            Err(Error::RollbackTransaction)
        });
        assert_eq!(inner, Err(Error::RollbackTransaction));
        add(conn, 3)
    });
    assert_eq!(kept, Ok(1));
    assert_eq!(ids(&mut file.open()), [1, 3]);
}

#[test]
fn a_test_transaction_is_rolled_back() {
    let file = File::with_orders();
    let mut conn = file.open();
    conn.test_transaction(|conn| add(conn, 1));
    assert_eq!(ids(&mut conn), [0; 0]);
    conn.begin_test_transaction().unwrap();
    add(&mut conn, 2).unwrap();
    drop(conn);
    assert_eq!(ids(&mut file.open()), [0; 0]);
}

#[test]
fn transactions_that_write_from_their_beginning_exclude_each_other() {
    let file = File::with_orders();
    let mut other = SqliteConnection::establish(&file.url()).unwrap();
    let mut conn = SqliteConnection::establish(&file.url()).unwrap();
    let result: QueryResult<()> = conn.immediate_transaction(|conn| {
        let locked: QueryResult<()> = other.immediate_transaction(|_| Ok(()));
        assert!(matches!(locked, Err(Error::DatabaseError(..))));
        assert_eq!(other.exclusive_transaction(|_| Ok(())), locked);
        // It is a transaction of Diesel's, which has savepoints.
        conn.transaction(|_| QueryResult::Ok(()))?;
        let twice = conn.immediate_transaction(|_| Ok(()));
        assert_eq!(twice, Err(Error::AlreadyInTransaction));
        Ok(())
    });
    assert_eq!(result, Ok(()));
    assert_eq!(other.exclusive_transaction(|_| QueryResult::Ok(1)), Ok(1));
}

#[test]
fn rows_are_iterated() {
    let file = File::with_orders();
    let mut conn = file.open();
    for id in 1..=3 {
        add(&mut conn, id).unwrap();
    }
    let rows = orders::orders::table.order(orders::orders::id);
    let mut rows = rows.load_iter::<orders::Order, _>(&mut conn).unwrap();
    assert_eq!(rows.next().unwrap(), Ok(order(1)));
    drop(rows);
    assert_eq!(ids(&mut conn), [1, 2, 3]);
}

#[test]
fn a_hundred_statements_run_at_once_for_one_thread() {
    const COUNT: usize = 100;
    let barrier = Arc::new(Barrier::new(COUNT));
    current_thread().block_on(async {
        let runs: Vec<_> = (0..COUNT)
            .map(|_| {
                let barrier = barrier.clone();
                // Each answers when all of them are there.
                tokio::spawn(run_sync(move || {
                    let mut conn = with_wait(":memory:", move || {
                        barrier.wait();
                    });
                    diesel::select(wait()).get_result::<i32>(&mut conn)
                }))
            })
            .collect();
        for run in runs {
            assert_eq!(run.await.unwrap(), Ok(1));
        }
    });
}

#[test]
fn a_statement_that_is_cancelled_ends_before_the_run_unwinds() {
    in_each_place(async |place| {
        let log = Log::default();
        let (ended, end) = signal();
        let (begun, has_begun) = oneshot::channel();
        let (go_on, goes_on) = oneshot::channel();
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = on_drop(|| ended.give());
                let _unwound = log.on_drop("unwound");
                let mut channels = Some((begun, goes_on));
                let mut conn = with_wait(":memory:", move || {
                    let (begun, goes_on) = channels.take().unwrap();
                    begun.send(()).unwrap();
                    goes_on.blocking_recv().unwrap();
                    log.add("ended");
                });
                let _ = diesel::select(wait()).get_result::<i32>(&mut conn);
                await_sync(pending::<()>());
            }
        });
        has_begun.await.unwrap();
        run.abort();
        go_on.send(()).unwrap();
        end.wait().await;
        assert_eq!(log.take(), ["ended", "unwound"]);
        assert!(run.await.unwrap_err().is_cancelled());
    });
}

#[test]
fn a_statement_that_outlasts_the_budget_is_left_to_itself() {
    in_each_place(async |place| {
        let file = File::with_orders();
        let url = file.url();
        let (begun, mut has_begun) = mpsc::channel(1);
        let (go_on, goes_on) = mpsc::channel(1);
        let first = Mutex::new(Some((begun, goes_on)));
        let manager = Manager::with(move || match first.lock().unwrap().take() {
            Some((begun, mut goes_on)) => Ok(AnyConnection::Sqlite(with_wait(&url, move || {
                begun.blocking_send(()).unwrap();
                goes_on.blocking_recv().unwrap();
            }))),
            None => open(&url),
        });
        let pool = orders::deadpool(manager);
        let (ended, end) = signal();
        let run = place.spawn_with(builder().cleanup_budget(Duration::ZERO), {
            let pool = pool.clone();
            move || {
                let _ended = on_drop(|| ended.give());
                let mut conn = pool.lend();
                let _ = conn.transaction(|conn| {
                    add(conn, 1)?;
                    conn.batch_execute("SELECT wait()")
                });
                unreachable!("it was cancelled");
            }
        });
        has_begun.recv().await.unwrap();
        run.abort();
        end.wait().await;
        assert_eq!(pool.size(), 0);
        go_on.send(()).await.unwrap();
        // SQLite rolls back when the statement has ended, and others wait for that.
        assert_eq!(orders::ids_in(place, &pool).await, [0; 0]);
        orders::cancel_with_a_destructor(place, &pool, 2).await;
        assert_eq!(orders::ids_in(place, &pool).await, [2]);
    });
}

/// Asks its connection something when it is dropped, and tells the answer.
struct Sweeper {
    conn: SqliteConnection,
    question: &'static str,
    answer: Option<oneshot::Sender<QueryResult<()>>>,
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        let answer = self.conn.batch_execute(self.question);
        self.answer.take().unwrap().send(answer).unwrap();
    }
}

#[test]
fn a_destructor_finds_its_connection_broken() {
    in_each_place(async |place| {
        if place == Place::Worker {
            // The statement may end before its worker hears of the cancellation.
            return;
        }
        let (begun, has_begun) = oneshot::channel();
        let (go_on, goes_on) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        let run = place.spawn(move || {
            let mut channels = Some((begun, goes_on));
            let mut sweeper = Sweeper {
                conn: with_wait(":memory:", move || {
                    let (begun, goes_on) = channels.take().unwrap();
                    begun.send(()).unwrap();
                    goes_on.blocking_recv().unwrap();
                }),
                question: "DELETE FROM orders",
                answer: Some(answer),
            };
            let _ = sweeper.conn.batch_execute("SELECT wait()");
        });
        has_begun.await.unwrap();
        run.abort();
        go_on.send(()).unwrap();
        orders::is_broken(answered.await.unwrap());
    });
}

#[test]
fn a_statement_in_a_destructor_fails_when_the_budget_is_over() {
    in_each_place(async |place| {
        let (ended, end) = signal();
        let (begins, begun) = oneshot::channel();
        let (go_on, mut goes_on) = mpsc::channel(1);
        let (answer, answered) = oneshot::channel();
        let run = place.spawn_with(builder().cleanup_budget(Duration::ZERO), move || {
            let _ended = on_drop(|| ended.give());
            let _sweeper = Sweeper {
                conn: with_wait(":memory:", move || goes_on.blocking_recv().unwrap()),
                question: "SELECT wait()",
                answer: Some(answer),
            };
            begins.send(()).unwrap();
            await_sync(pending::<()>());
        });
        begun.await.unwrap();
        run.abort();
        // It is neither leaked, nor does it abort.
        orders::is_broken(answered.await.unwrap());
        end.wait().await;
        go_on.send(()).await.unwrap();
    });
}

#[test]
fn a_panic_on_the_blocking_thread_is_an_error() {
    let mut conn = SqliteConnection::establish(":memory:").unwrap();
    let panicked = conn
        .as_async()
        .spawn_blocking(|_| -> QueryResult<()> { panic!("on a blocking thread") });
    assert!(await_sync(panicked).is_err());
    // The lock that it poisoned does not matter.
    let one = diesel::select(1.into_sql::<Integer>());
    assert_eq!(one.get_result(&mut conn), Ok(1));
}

#[test]
fn pools_stay_full_and_clean() {
    in_each_place(async |place| {
        let file = File::with_orders();
        orders::the_pool_stays_full_and_clean(place, orders::deadpool(file.manager())).await;
        let file = File::with_orders();
        orders::the_pool_stays_full_and_clean(place, orders::bb8(file.manager())).await;
    });
}

#[test]
fn the_runs_of_a_manager_have_a_short_name() {
    current_thread().block_on(async {
        let file = File::with_orders();
        let (url, (send, mut names)) = (file.url(), mpsc::unbounded_channel());
        let pool = orders::deadpool(Manager::with(move || {
            let thread = dump::this_thread();
            let stacks = thread.stacks().unwrap().iter();
            stacks.for_each(|stack| send.send(stack.name().to_owned()).unwrap());
            open(&url)
        }));
        let run = run_sync(move || ids(&mut pool.lend()));
        assert!(run.await.is_empty());
        let mut name = || names.try_recv();
        assert!(name().unwrap().contains("the_runs_of_a_manager"));
        assert_eq!(name().unwrap(), "greenhack::diesel::Manager");
        assert!(name().is_err());
    });
}

#[test]
fn migrations_run_on_a_connection_of_a_pool() {
    in_each_place(|place| async move {
        let file = File::new();
        let pool = orders::deadpool(file.manager());
        let run = place.spawn(move || {
            let mut conn = pool.lend();
            migrate(&mut conn);
            add(&mut conn, 1).unwrap();
            ids(&mut conn)
        });
        assert_eq!(run.await.unwrap(), [1]);
    });
}

#[test]
fn a_cancelled_transaction_leaves_no_lock_behind() {
    in_each_place(async |place| {
        let file = File::with_orders();
        let pool = orders::deadpool(file.manager());
        orders::cancel_in_a_transaction(place, &pool, 1).await;
        // Nobody has asked the pool for it, and no time is given.
        let url = file.url();
        let written = place.spawn(move || {
            let mut conn = SqliteConnection::establish(&url).unwrap();
            conn.immediate_transaction(|_| QueryResult::Ok(()))
        });
        assert_eq!(written.await.unwrap(), Ok(()));
    });
}

#[test]
fn an_open_transaction_is_closed_with_its_connection() {
    let file = File::with_orders();
    let pool = orders::deadpool(file.manager());
    let mut conn = pool.lend();
    conn.begin_test_transaction().unwrap();
    add(&mut conn, 1).unwrap();
    drop(conn);
    // A test that has begun one wants to go on in it.
    assert_eq!(ids(&mut pool.lend()), [1]);

    let pool = orders::deadpool(file.manager());
    let mut conn = pool.lend();
    use diesel::connection::TransactionManager;
    AnyConnection::begin_transaction(&mut conn).unwrap();
    drop(conn);
    assert_eq!(pool.size(), 0);
    assert_eq!(ids(&mut pool.lend()), [0; 0]);
}

#[test]
fn a_pooled_connection_is_dropped_anywhere() {
    in_each_place(async |place| {
        let file = File::with_orders();
        let (deadpool, bb8) = (
            orders::deadpool(file.manager()),
            orders::bb8(file.manager()),
        );
        let lent = place.spawn({
            let pools = (deadpool.clone(), bb8.clone());
            move || (pools.0.lend(), pools.1.lend())
        });
        // In async code, and on a thread that knows no runtime.
        let (one, other) = lent.await.unwrap();
        drop(one);
        thread::spawn(move || drop(other)).join().unwrap();
        assert_eq!((deadpool.size(), bb8.size()), (1, 1));
        orders::is_full_and_clean(place, &deadpool).await;
        orders::is_full_and_clean(place, &bb8).await;
    });
}

#[test]
fn a_forgotten_connection_is_missed() {
    let file = File::with_orders();
    let pool = orders::deadpool(file.manager());
    std::mem::forget(pool.lend());
    let lent: Vec<_> = (1..orders::SIZE).map(|_| pool.lend()).collect();
    assert_eq!(pool.status().available, 0);
    assert_eq!(lent.len(), 3);
}

#[test]
fn a_connection_that_is_broken_says_so() {
    let file = File::with_orders();
    let mut conn = SqliteConnection::establish(&file.url()).unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        conn.immediate_transaction(|_| -> QueryResult<()> { panic!("the soup is cold") })
    }));
    assert!(caught.is_err());
    assert_eq!(format!("{conn:?}"), "Blocking { broken: true, .. }");
    orders::is_broken(conn.batch_execute("SELECT 1"));
    orders::is_broken(conn.transaction(|_| QueryResult::Ok(())));
    orders::is_broken(orders::orders::table.load::<orders::Order>(&mut conn));
}

#[test]
fn an_inner_unwind_that_is_caught_rolls_all_back() {
    let file = File::with_orders();
    let mut conn = orders::deadpool(file.manager()).lend();
    let result = conn.transaction(|conn| {
        add(conn, 1)?;
        let _ = catch_unwind(AssertUnwindSafe(|| {
            conn.transaction(|_| -> QueryResult<()> { panic!("the soup is cold") })
        }));
        Ok(())
    });
    orders::is_broken(result);
    drop(conn);
    assert_eq!(ids(&mut file.open()), [0; 0]);
}

#[test]
fn asking_for_a_connection_can_be_cancelled() {
    in_each_place(async |place| {
        async fn attack(place: Place, pool: impl Pool) {
            let lent = place.spawn({
                let pool = pool.clone();
                move || (0..orders::SIZE).map(|_| pool.lend()).collect::<Vec<_>>()
            });
            let lent = lent.await.unwrap();
            let (ended, end) = signal();
            let (waits, waiting) = oneshot::channel();
            let run = place.spawn({
                let pool = pool.clone();
                move || {
                    let _ended = on_drop(|| ended.give());
                    waits.send(()).unwrap();
                    pool.lend();
                }
            });
            waiting.await.unwrap();
            run.abort();
            end.wait().await;
            drop(lent);
            orders::is_full_and_clean(place, &pool).await;
        }
        let file = File::with_orders();
        attack(place, orders::deadpool(file.manager())).await;
        attack(place, orders::bb8(file.manager())).await;
    });
}

#[test]
fn opening_a_connection_can_be_cancelled_or_panic() {
    in_each_place(async |place| {
        let file = File::with_orders();
        let url = file.url();
        let count = Arc::new(AtomicU32::new(0));
        let (opens, mut opening) = mpsc::channel(1);
        let manager = Manager::with(move || match count.fetch_add(1, Ordering::Relaxed) {
            0 => {
                let opens = opens.clone();
                await_sync(async move { opens.send(()).await.unwrap() });
                await_sync(pending())
            }
            1 => panic!("the door is locked"),
            _ => open(&url),
        });
        let pool = orders::deadpool(manager);
        let (ended, end) = signal();
        let run = place.spawn({
            let pool = pool.clone();
            move || {
                let _ended = on_drop(|| ended.give());
                pool.lend();
            }
        });
        opening.recv().await.unwrap();
        run.abort();
        end.wait().await;
        let run = place.spawn({
            let pool = pool.clone();
            move || drop(pool.lend())
        });
        assert_eq!(
            text(&*run.await.unwrap_err().into_panic()),
            "the door is locked"
        );
        orders::is_full_and_clean(place, &pool).await;
    });
}

#[test]
fn a_panic_in_a_task_of_bb8_is_an_error() {
    current_thread().block_on(async {
        let file = File::with_orders();
        let url = file.url();
        let count = AtomicU32::new(0);
        let pool = orders::bb8(Manager::with(move || {
            match count.fetch_add(1, Ordering::Relaxed) {
                0 => panic!("the door is locked"),
                _ => open(&url),
            }
        }));
        // bb8 tries again.
        orders::is_full_and_clean(Place::InPlace, &pool).await;
    });
}

#[test]
fn a_connection_goes_into_a_nested_run_and_back() {
    current_thread().block_on(run_sync(|| {
        let file = File::with_orders();
        let mut conn = file.open();
        let mut conn = await_sync(run_sync_local(move || {
            add(&mut conn, 1).unwrap();
            conn
        }));
        assert_eq!(ids(&mut conn), [1]);
    }));
}

#[test]
fn a_closed_pool_is_an_error() {
    let file = File::with_orders();
    let pool = orders::deadpool(file.manager());
    pool.close();
    assert!(await_sync(pool.get()).is_err());
    let missing = orders::deadpool(Manager::with(|| open("/no/such/directory/orders.db")));
    assert!(await_sync(missing.get()).is_err());
}

#[test]
fn types_are_send() {
    static_assertions::assert_impl_all!(SqliteConnection: Send);
    static_assertions::assert_impl_all!(greenhack::diesel::PgConnection: Send);
    static_assertions::assert_impl_all!(greenhack::diesel::Pooled<SqliteConnection>: Send);
    static_assertions::assert_impl_all!(Manager<SqliteConnection>: Send, Sync);
    static_assertions::assert_impl_all!(greenhack::diesel::bb8::Pool<SqliteConnection>: Send, Sync);
    static_assertions::assert_impl_all!(greenhack::diesel::deadpool::Pool<SqliteConnection>: Send, Sync);
}
