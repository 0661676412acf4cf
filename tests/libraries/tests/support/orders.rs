//! What the tests of Diesel share: a book of orders, kept by plain code that does
//! not know its database, and what must hold of pools whichever they are.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use diesel::connection::TransactionManager;
use diesel::prelude::*;
use diesel::result::Error;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use greenhack::diesel::{Manager, PgConnection, Pooled, SqliteConnection, bb8, deadpool};
use greenhack::{await_sync, shield};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::support::{Place, on_drop, signal};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// As many connections as a pool of these tests may have.
pub const SIZE: u32 = 4;

diesel::table! {
    orders (id) {
        id -> Integer,
        dish -> Text,
        served -> Bool,
    }
}

#[derive(Clone, Debug, Insertable, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = orders)]
pub struct Order {
    pub id: i32,
    pub dish: String,
    pub served: bool,
}

/// One of the two, at run time.
#[derive(diesel::MultiConnection)]
pub enum AnyConnection {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

pub fn order(id: i32) -> Order {
    Order {
        id,
        dish: "soup".to_owned(),
        served: false,
    }
}

pub fn add<C>(conn: &mut C, id: i32) -> QueryResult<usize>
where
    C: Connection<Backend = MultiBackend>,
{
    diesel::insert_into(orders::table)
        .values(order(id))
        .execute(conn)
}

pub fn serve(conn: &mut AnyConnection, id: i32) -> QueryResult<usize> {
    diesel::update(orders::table.find(id))
        .set(orders::served.eq(true))
        .execute(conn)
}

pub fn all(conn: &mut AnyConnection) -> Vec<Order> {
    orders::table
        .order(orders::id)
        .select(Order::as_select())
        .load(conn)
        .unwrap()
}

pub fn ids(conn: &mut AnyConnection) -> Vec<i32> {
    let ids = orders::table.order(orders::id).select(orders::id);
    ids.load(conn).unwrap()
}

pub fn migrate(conn: &mut impl MigrationHarness<MultiBackend>) {
    conn.run_pending_migrations(MIGRATIONS).unwrap();
    assert!(!conn.has_pending_migration(MIGRATIONS).unwrap());
}

pub fn depth(conn: &mut AnyConnection) -> Option<u32> {
    let status = AnyConnection::transaction_manager_status_mut(conn);
    status.transaction_depth().unwrap().map(Into::into)
}

/// Asserts that this is what a broken connection says.
#[track_caller]
pub fn is_broken<T: std::fmt::Debug>(result: QueryResult<T>) {
    // Diesel holds this error unequal to itself.
    let broken = matches!(result, Err(Error::BrokenTransactionManager));
    assert!(broken, "{result:?}");
}

/// A pool, whichever.
pub trait Pool: Clone + Send + 'static {
    /// Waits for a connection.
    fn lend(&self) -> Pooled<AnyConnection>;
    /// How many connections there are, in it and lent.
    fn size(&self) -> u32;
}

impl Pool for deadpool::Pool<AnyConnection> {
    fn lend(&self) -> Pooled<AnyConnection> {
        await_sync(self.get()).unwrap()
    }

    fn size(&self) -> u32 {
        self.status().size as u32
    }
}

impl Pool for bb8::Pool<AnyConnection> {
    fn lend(&self) -> Pooled<AnyConnection> {
        Pooled::from(await_sync(self.get_owned()).unwrap())
    }

    fn size(&self) -> u32 {
        self.state().connections
    }
}

pub fn deadpool(manager: Manager<AnyConnection>) -> deadpool::Pool<AnyConnection> {
    deadpool::Pool::builder(manager)
        .max_size(SIZE as usize)
        .build()
        .unwrap()
}

pub fn bb8(manager: Manager<AnyConnection>) -> bb8::Pool<AnyConnection> {
    bb8::Pool::builder()
        .max_size(SIZE)
        .idle_timeout(None)
        .max_lifetime(None)
        .build_unchecked(manager)
}

/// Suspends until the pool has lent all the connections that it may have, and each
/// has answered.
pub async fn is_full_and_clean(place: Place, pool: &impl Pool) {
    let pool = pool.clone();
    let lent = place.spawn(move || {
        let mut lent: Vec<_> = (0..SIZE).map(|_| pool.lend()).collect();
        for conn in &mut lent {
            assert_eq!(depth(conn), None);
            ids(conn);
        }
        assert_eq!(pool.size(), SIZE);
    });
    let limit = Duration::from_secs(30);
    timeout(limit, lent).await.expect("it is full").unwrap();
}

/// What is in the book.
pub async fn ids_in(place: Place, pool: &impl Pool) -> Vec<i32> {
    let pool = pool.clone();
    place.spawn(move || ids(&mut pool.lend())).await.unwrap()
}

/// Cancels a run with an order that is not committed, and suspends until it has
/// unwound.
pub async fn cancel_in_a_transaction(place: Place, pool: &impl Pool, id: i32) {
    let (ended, end) = signal();
    let (added, has_added) = oneshot::channel();
    let pool = pool.clone();
    let task = place.spawn(move || {
        let _ended = on_drop(|| ended.give());
        pool.lend().transaction(|conn| {
            add(conn, id)?;
            added.send(()).unwrap();
            await_sync(pending::<QueryResult<()>>())
        })
    });
    has_added.await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    end.wait().await;
}

/// Panics in a run with an order that is not committed.
pub async fn panic_in_a_transaction(place: Place, pool: &impl Pool, id: i32) {
    let pool = pool.clone();
    let task = place.spawn(move || {
        pool.lend().transaction(|conn| -> QueryResult<()> {
            add(conn, id)?;
            panic!("the soup is cold");
        })
    });
    assert!(task.await.unwrap_err().is_panic());
}

/// Catches the panic of a transaction, and goes on with the connection.
pub async fn catch_in_a_transaction(place: Place, pool: &impl Pool, id: i32) {
    let pool = pool.clone();
    let task = place.spawn(move || {
        let mut conn = pool.lend();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            conn.transaction(|conn| -> QueryResult<()> {
                add(conn, id)?;
                panic!("the soup is cold");
            })
        }));
        assert!(caught.is_err());
        is_broken(add(&mut conn, id));
        is_broken(conn.transaction(|conn| add(conn, id)));
        // In its place another is opened.
        let before = pool.size();
        drop(conn);
        assert_eq!(pool.size(), before - 1);
    });
    task.await.unwrap();
}

/// Cancels a run in a shielded transaction, and suspends until it has unwound.
pub async fn cancel_in_a_shield(place: Place, pool: &impl Pool, id: i32) {
    let (ended, end) = signal();
    let (added, has_added) = oneshot::channel();
    let (go_on, goes_on) = oneshot::channel();
    let pool = pool.clone();
    let task = place.spawn(move || {
        let _ended = on_drop(|| ended.give());
        shield(|| {
            pool.lend().transaction(|conn| -> QueryResult<_> {
                add(conn, id)?;
                added.send(()).unwrap();
                await_sync(goes_on).unwrap();
                serve(conn, id)
            })
        })
        .unwrap();
        await_sync(pending::<()>());
    });
    has_added.await.unwrap();
    task.abort();
    go_on.send(()).unwrap();
    end.wait().await;
    assert!(task.await.unwrap_err().is_cancelled());
}

/// Cancels a run whose destructor keeps a book of its own.
pub async fn cancel_with_a_destructor(place: Place, pool: &impl Pool, id: i32) {
    let (ended, end) = signal();
    let (waits, waiting) = oneshot::channel();
    let pool = pool.clone();
    let task = place.spawn(move || {
        let _ended = on_drop(|| ended.give());
        let _adds = on_drop(|| {
            pool.lend().transaction(|conn| add(conn, id)).unwrap();
        });
        waits.send(()).unwrap();
        await_sync(pending::<()>());
    });
    waiting.await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    end.wait().await;
}

/// All of it, with one pool.
pub async fn the_pool_stays_full_and_clean(place: Place, pool: impl Pool) {
    is_full_and_clean(place, &pool).await;
    cancel_in_a_transaction(place, &pool, 1).await;
    assert_eq!(pool.size(), SIZE - 1, "it is gone before it is asked for");
    panic_in_a_transaction(place, &pool, 2).await;
    catch_in_a_transaction(place, &pool, 3).await;
    assert_eq!(ids_in(place, &pool).await, [0; 0]);
    cancel_in_a_shield(place, &pool, 4).await;
    cancel_with_a_destructor(place, &pool, 5).await;
    assert_eq!(ids_in(place, &pool).await, [4, 5]);
    is_full_and_clean(place, &pool).await;
}
