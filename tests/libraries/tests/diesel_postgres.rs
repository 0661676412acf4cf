//! `greenhack::diesel` on a real PostgreSQL; see `tests/support/postgres.rs` for where
//! it comes from.
#![forbid(unsafe_code)]

#[path = "support/orders.rs"]
mod orders;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "../../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::prelude::*;
use diesel::query_builder::QueryId;
use diesel::result::Error;
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::{BigInt, SqlType, Text};
use greenhack::diesel::PgConnection;
use greenhack::{builder, run_sync, run_sync_local, shield};
use tokio::task::yield_now;

use orders::{AnyConnection, Pool, add, all, ids, order, serve};
use postgres::{Database, open};
use support::{Place, current_thread, in_each_place, on_drop, signal, text};

#[test]
fn smoke() {
    let Some(database) = Database::with_orders("smoke") else {
        return;
    };
    for (id, place) in (1..).zip(support::PLACES) {
        let url = database.url();
        support::Fixture::new(place).block_on(async {
            let run = place.spawn(move || {
                let mut conn = open(&url).unwrap();
                assert_eq!(add(&mut conn, id), Ok(1));
                assert_eq!(all(&mut conn).last(), Some(&order(id)));
                assert_eq!(serve(&mut conn, id), Ok(1));
                assert!(all(&mut conn).last().unwrap().served);
            });
            run.await.unwrap();
        });
    }
}

#[test]
fn a_plain_thread_blocks() {
    let Some(database) = Database::with_orders("plain") else {
        return;
    };
    let mut conn = open(&database.url()).unwrap();
    add(&mut conn, 1).unwrap();
    assert_eq!(ids(&mut conn), [1]);
}

#[test]
fn async_code_is_refused() {
    let Some(database) = Database::with_orders("refused") else {
        return;
    };
    let mut conn = open(&database.url()).unwrap();
    let payload = current_thread().block_on(async {
        let task = tokio::spawn(async move { add(&mut conn, 1) });
        task.await.unwrap_err().into_panic()
    });
    assert!(text(&*payload).starts_with("`await_or_cancelled` called in async code"));
}

#[test]
fn a_connection_of_a_runtime_that_has_ended_is_an_error() {
    let Some(database) = Database::with_orders("ended") else {
        return;
    };
    let url = database.url();
    let mut conn = current_thread().block_on(run_sync(move || open(&url).unwrap()));
    assert!(add(&mut conn, 1).is_err());
}

#[test]
fn an_unreachable_server_is_an_error() {
    let refused = PgConnection::establish("postgres://nobody@127.0.0.1:1/nothing");
    assert!(refused.is_err());
}

#[test]
fn errors_and_savepoints_roll_back() {
    let Some(database) = Database::with_orders("rollback") else {
        return;
    };
    let mut conn = open(&database.url()).unwrap();
    let refused = conn.transaction(|conn| {
        add(conn, 1)?;
        add(conn, 1)
    });
    assert!(matches!(refused, Err(Error::DatabaseError(..))));
    let kept = conn.transaction(|conn| {
        add(conn, 1)?;
        // Without the savepoint the error would end the outer one as well.
        let twice = conn.transaction(|conn| add(conn, 1));
        assert!(matches!(twice, Err(Error::DatabaseError(..))));
        add(conn, 2)
    });
    assert_eq!(kept, Ok(1));
    assert_eq!(ids(&mut conn), [1, 2]);
}

#[test]
fn a_transaction_begins_as_it_is_told() {
    let Some(database) = Database::new("begin") else {
        return;
    };
    let mut conn = PgConnection::establish(&database.url()).unwrap();
    let begin = "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY";
    let level = conn.transaction_begun_with(begin, |conn| {
        let twice: QueryResult<()> = conn.transaction_begun_with(begin, |_| Ok(()));
        assert_eq!(twice, Err(Error::AlreadyInTransaction));
        let refused = conn.transaction(|conn| conn.batch_execute("CREATE TABLE dishes ()"));
        assert!(matches!(refused, Err(Error::DatabaseError(..))));
        diesel::dsl::sql::<Text>("SHOW transaction_isolation").get_result::<String>(conn)
    });
    assert_eq!(level, Ok("serializable".to_owned()));
    assert_eq!(conn.batch_execute("CREATE TABLE dishes ()"), Ok(()));
}

#[test]
fn a_hundred_handlers_sleep_at_once_on_one_thread() {
    const COUNT: i64 = 100;
    let Some(database) = Database::new("sleep") else {
        return;
    };
    // All wait for a lock, until PostgreSQL says that all of them do.
    let mut holder = PgConnection::establish(&database.url()).unwrap();
    holder
        .batch_execute("SELECT pg_advisory_lock(100)")
        .unwrap();
    let slept = Arc::new(AtomicU32::new(0));
    current_thread().block_on(async {
        let runs: Vec<_> = (0..COUNT)
            .map(|_| {
                let (url, slept) = (database.url(), slept.clone());
                tokio::spawn(run_sync(move || {
                    let mut conn = PgConnection::establish(&url).unwrap();
                    conn.batch_execute(
                        "SELECT pg_advisory_lock_shared(100); SELECT pg_sleep(0.05)",
                    )
                    .unwrap();
                    slept.fetch_add(1, Ordering::Relaxed);
                }))
            })
            .collect();
        let let_go = tokio::task::spawn_blocking(move || {
            database.wait_for(COUNT, "wait_event = 'advisory'");
            holder
                .batch_execute("SELECT pg_advisory_unlock(100)")
                .unwrap();
            database
        });
        let _database = let_go.await.unwrap();
        for run in runs {
            run.await.unwrap();
        }
    });
    assert_eq!(slept.load(Ordering::Relaxed), 100);
}

#[test]
fn rows_arrive_before_the_query_has_ended() {
    let Some(database) = Database::new("rows") else {
        return;
    };
    let mut holder = PgConnection::establish(&database.url()).unwrap();
    holder.batch_execute("SELECT pg_advisory_lock(3)").unwrap();
    let mut conn = PgConnection::establish(&database.url()).unwrap();
    // PostgreSQL sends what it has when it has more than 8 KiB.
    let query = diesel::dsl::sql::<Text>(
        "SELECT CASE n WHEN 3 THEN pg_advisory_xact_lock_shared(3)::text ELSE '' END \
         || repeat('x', 10000) FROM generate_series(1, 3) AS n",
    );
    let mut rows = query.load_iter::<String, _>(&mut conn).unwrap();
    assert_eq!(rows.next().unwrap().unwrap().len(), 10_000);
    holder
        .batch_execute("SELECT pg_advisory_unlock(3)")
        .unwrap();
    assert_eq!(rows.by_ref().count(), 2);
    drop(rows);

    // What is not read does not matter to the next query.
    let many = diesel::dsl::sql::<BigInt>("SELECT n::int8 FROM generate_series(1, 100000) AS n");
    let first = many.load_iter::<i64, _>(&mut conn).unwrap().next();
    assert_eq!(first, Some(Ok(1)));
    let one = diesel::dsl::sql::<BigInt>("SELECT 1::int8");
    assert_eq!(one.get_result(&mut conn), Ok(1_i64));
}

#[derive(QueryId, SqlType)]
#[diesel(postgres_type(name = "course"))]
struct CourseType;

#[derive(AsExpression, Clone, Copy, Debug, FromSqlRow, PartialEq, Eq)]
#[diesel(sql_type = CourseType)]
enum Course {
    Starter,
    Dessert,
}

impl ToSql<CourseType, Pg> for Course {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        use std::io::Write;
        out.write_all(match self {
            Course::Starter => b"starter",
            Course::Dessert => b"dessert",
        })?;
        Ok(IsNull::No)
    }
}

impl FromSql<CourseType, Pg> for Course {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        match value.as_bytes() {
            b"starter" => Ok(Course::Starter),
            b"dessert" => Ok(Course::Dessert),
            _ => Err("there is no such course".into()),
        }
    }
}

#[test]
fn types_of_the_database_are_looked_up() {
    let Some(database) = Database::new("types") else {
        return;
    };
    current_thread().block_on(run_sync_local(move || {
        let mut conn = PgConnection::establish(&database.url()).unwrap();
        conn.batch_execute("CREATE TYPE course AS ENUM ('starter', 'dessert')")
            .unwrap();
        for course in [Course::Starter, Course::Dessert] {
            let same = diesel::select(course.into_sql::<CourseType>());
            assert_eq!(same.get_result(&mut conn), Ok(course));
        }
    }));
}

#[test]
fn pools_stay_full_and_clean() {
    in_each_place(async |place| {
        let Some(database) = Database::with_orders(&format!("pools_{place:?}").to_lowercase())
        else {
            return;
        };
        let pool = orders::deadpool(database.manager());
        orders::the_pool_stays_full_and_clean(place, pool.clone()).await;
        let database = wait_for(database, orders::SIZE.into(), "state = 'idle'").await;
        pool.close();
        drop(pool);
        let task = place.spawn(move || {
            let mut conn = open(&database.url()).unwrap();
            diesel::delete(orders::orders::table)
                .execute(&mut conn)
                .unwrap();
            database
        });
        let database = task.await.unwrap();

        let pool = orders::bb8(database.manager());
        orders::the_pool_stays_full_and_clean(place, pool).await;
        wait_for(database, 0, "state LIKE '%in transaction%'").await;
    });
}

#[test]
fn a_cancelled_transaction_leaves_no_lock_behind() {
    in_each_place(async |place| {
        let name = format!("locks_{place:?}").to_lowercase();
        let Some(database) = Database::with_orders(&name) else {
            return;
        };
        let pool = orders::deadpool(database.manager());
        orders::cancel_in_a_transaction(place, &pool, 1).await;
        // Nobody has asked the pool for it.
        let _database = wait_for(database, 0, "true").await;
        assert_eq!(pool.size(), 0);
    });
}

/// Waits for a lock that a test holds, or holds it.
const LOCK: &str = "SELECT pg_advisory_lock(hashtext(current_schema()))";

/// A connection that holds the lock.
async fn holder(place: Place, database: &Database) -> PgConnection {
    let url = database.url();
    let holder = place.spawn(move || {
        let mut holder = PgConnection::establish(&url).unwrap();
        holder.batch_execute(LOCK).unwrap();
        holder
    });
    holder.await.unwrap()
}

/// Cancels a run while PostgreSQL lets it wait for the lock, and suspends until it
/// has unwound.
async fn cancel_at_the_lock<P: Pool>(
    place: Place,
    database: Database,
    pool: P,
    wait: fn(&mut AnyConnection),
) -> Database {
    let (ended, end) = signal();
    let run = place.spawn_with(builder().cleanup_budget(Duration::ZERO), {
        let pool = pool.clone();
        move || {
            let _ended = on_drop(|| ended.give());
            wait(&mut pool.lend());
        }
    });
    let database = wait_for(database, 1, "wait_event = 'advisory'").await;
    run.abort();
    end.wait().await;
    assert_eq!(pool.size(), 0);
    // PostgreSQL would notice when it has the lock.
    database.elsewhere(|conn, name| {
        diesel::sql_query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE application_name = $1 AND wait_event = 'advisory'",
        )
        .bind::<Text, _>(name)
        .execute(conn)
        .unwrap();
    });
    wait_for(database, 1, "true").await
}

/// As the method, without blocking the thread.
async fn wait_for(database: Database, expected: i64, state: &'static str) -> Database {
    let waited = tokio::task::spawn_blocking(move || {
        database.wait_for(expected, state);
        database
    });
    waited.await.unwrap()
}

#[test]
fn a_query_that_is_cancelled_costs_its_connection() {
    in_each_place(async |place| {
        let name = format!("query_{place:?}").to_lowercase();
        let Some(database) = Database::with_orders(&name) else {
            return;
        };
        fn wait(conn: &mut AnyConnection) {
            conn.batch_execute(LOCK).unwrap();
        }
        let holder = holder(place, &database).await;
        let pool = orders::deadpool(database.manager());
        let database = cancel_at_the_lock(place, database, pool, wait).await;
        let pool = orders::bb8(database.manager());
        let database = cancel_at_the_lock(place, database, pool, wait).await;
        drop(holder);
        wait_for(database, 0, "true").await;
    });
}

#[test]
fn a_shield_opens_when_the_budget_is_over() {
    in_each_place(async |place| {
        let name = format!("shield_{place:?}").to_lowercase();
        let Some(database) = Database::with_orders(&name) else {
            return;
        };
        fn wait(conn: &mut AnyConnection) {
            shield(|| conn.transaction(|conn| conn.batch_execute(LOCK))).unwrap();
        }
        let holder = holder(place, &database).await;
        let pool = orders::deadpool(database.manager());
        let database = cancel_at_the_lock(place, database, pool, wait).await;
        drop(holder);
        wait_for(database, 0, "true").await;
    });
}

#[test]
fn a_connection_that_the_server_has_closed_is_replaced() {
    in_each_place(async |place| {
        let name = format!("closed_{place:?}").to_lowercase();
        let Some(database) = Database::with_orders(&name) else {
            return;
        };
        let (deadpool, bb8) = (
            orders::deadpool(database.manager()),
            orders::bb8(database.manager()),
        );
        orders::is_full_and_clean(place, &deadpool).await;
        orders::is_full_and_clean(place, &bb8).await;
        database.elsewhere(|conn, name| {
            diesel::sql_query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
            )
            .bind::<Text, _>(name)
            .execute(conn)
            .unwrap();
        });
        let database = wait_for(database, 0, "true").await;
        orders::is_full_and_clean(place, &deadpool).await;
        orders::is_full_and_clean(place, &bb8).await;
        drop(database);
    });
}

/// What a handler does: all of it or nothing.
fn handle(pool: &impl Pool, id: i32) -> QueryResult<usize> {
    let mut conn = pool.lend();
    conn.transaction(|conn| {
        add(conn, id)?;
        serve(conn, id)
    })
}

#[test]
fn no_order_is_half_done_when_a_third_of_the_guests_leave() {
    const COUNT: i32 = 300;
    in_each_place(async |place| {
        let name = format!("guests_{place:?}").to_lowercase();
        let Some(database) = Database::with_orders(&name) else {
            return;
        };
        let pool = orders::deadpool(database.manager());
        let runs: Vec<_> = (0..COUNT)
            .map(|id| {
                let pool = pool.clone();
                place.spawn(move || handle(&pool, id).unwrap())
            })
            .collect();
        // A guest leaves after a while that differs from guest to guest.
        let (mut stayed, mut random) = (Vec::new(), 4_u32);
        for (id, run) in (0..).zip(runs) {
            if id % 3 != 0 {
                stayed.push((id, run));
                continue;
            }
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            for _ in 0..random >> 25 {
                yield_now().await;
            }
            run.abort();
            match run.await {
                Ok(served) => assert_eq!(served, 1),
                Err(error) => assert!(error.is_cancelled()),
            }
        }
        let mut served = Vec::new();
        for (id, run) in stayed {
            assert_eq!(run.await.unwrap(), 1);
            served.push(id);
        }
        orders::is_full_and_clean(place, &pool).await;
        let url = database.url();
        let orders = place
            .spawn(move || all(&mut open(&url).unwrap()))
            .await
            .unwrap();
        assert!(orders.iter().all(|order| order.served));
        assert!(
            served
                .iter()
                .all(|id| orders.iter().any(|order| order.id == *id))
        );
        wait_for(database, orders::SIZE.into(), "true").await;
    });
}
