//! Plain `Commands` against a real redis.

mod support;

use std::sync::Arc;

use futures::future::join_all;
use greenhack::time::yield_now;
use greenhack::{await_sync, run_sync};
use recipes::redis::Blocking;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Commands, ConnectionLike, RedisResult};
use support::{in_time, many_threads, one_thread, server};
use tokio::sync::Barrier;

type Connection = Blocking<MultiplexedConnection>;

/// The keys of one test.
struct Keys(String);

impl Keys {
    fn new(test: &str) -> Keys {
        Keys(format!("greenhack:{test}:{}", std::process::id()))
    }

    fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.0)
    }
}

fn client() -> Option<Client> {
    Some(Client::open(server("redis")?).unwrap())
}

async fn connect(client: &Client) -> Connection {
    // By default an answer that takes more than half a second is an error, also
    // that of a command which is there to wait.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    Blocking::new(connection.await.unwrap())
}

/// Plain code, as written for redis's own connection.
fn commands(db: &mut impl ConnectionLike, keys: &Keys) -> RedisResult<()> {
    let (dish, count) = (keys.key("dish"), keys.key("count"));
    let () = db.set(&dish, "soup")?;
    assert_eq!(db.get::<_, String>(&dish)?, "soup");
    assert_eq!(db.incr::<_, _, i64>(&count, 2)?, 2);

    let (dish_was, counted): (String, i64) = redis::pipe()
        .getset(&dish, "rice with\r\nbinary \0")
        .incr(&count, 1)
        .query(db)?;
    assert_eq!((&*dish_was, counted), ("soup", 3));

    let (dish_is, counted): (Vec<u8>, i64) = redis::pipe()
        .atomic()
        .set(&dish, "fish")
        .ignore()
        .get(&dish)
        .incr(&count, 1)
        .query(db)?;
    assert_eq!((&*dish_is, counted), (&b"fish"[..], 4));

    // More than fit into one answer.
    for i in 0..100 {
        let () = db.set(keys.key(&format!("many:{i}")), i)?;
    }
    let many = db.scan_match::<_, String>(keys.key("many:*"))?;
    assert_eq!(many.collect::<RedisResult<Vec<_>>>()?.len(), 100);

    // The server's errors are errors here, alone and among others.
    assert!(db.lpush::<_, _, i64>(&dish, "x").is_err());
    let failed: RedisResult<()> = redis::pipe().get(&dish).lpush(&dish, "x").query(db);
    assert!(failed.is_err());
    let aborted: RedisResult<()> = redis::pipe()
        .atomic()
        .cmd("NONSENSE")
        .set(&dish, "never")
        .query(db);
    assert!(aborted.is_err());
    assert_eq!(db.get::<_, String>(&dish)?, "fish");
    assert!(db.check_connection() && db.is_open());

    let all: Vec<String> = db.keys(keys.key("*"))?;
    db.del(all)
}

#[test]
fn plain_code_does_all_it_does_with_a_plain_connection() {
    let Some(client) = client() else { return };
    let keys = Keys::new("plain");
    commands(&mut client.get_connection().unwrap(), &keys).unwrap();
}

#[test]
fn plain_code_does_the_same_in_a_run() {
    let Some(client) = client() else { return };
    for (name, runtime) in [("here", one_thread()), ("hop", many_threads())] {
        let client = client.clone();
        runtime.block_on(in_time(async {
            let mut db = connect(&client).await;
            let keys = Keys::new(name);
            run_sync(move || commands(&mut db, &keys)).await.unwrap();
        }));
    }
}

#[test]
fn plain_code_does_the_same_without_a_runtime() {
    let Some(client) = client() else { return };
    let mut db = await_sync(connect(&client));
    commands(&mut db, &Keys::new("outside")).unwrap();
}

#[test]
fn runs_of_one_thread_share_a_connection() {
    const RUNS: usize = 50;
    let Some(client) = client() else { return };
    one_thread().block_on(in_time(async {
        let db = connect(&client).await;
        let key = Keys::new("shared").key("count");
        let all_here = Arc::new(Barrier::new(RUNS));
        let runs = (0..RUNS).map(|_| {
            let (mut db, key, all_here) = (db.clone(), key.clone(), all_here.clone());
            tokio::spawn(run_sync(move || {
                let mine: usize = db.incr(&key, 1).unwrap();
                await_sync(all_here.wait());
                assert_eq!(db.get::<_, usize>(&key).unwrap(), RUNS);
                mine
            }))
        });
        let mut numbers: Vec<_> = join_all(runs)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(1..=RUNS));
        let mut db = db;
        run_sync(move || db.del::<_, ()>(&key)).await.unwrap();
    }));
}

#[test]
fn two_runs_of_one_thread_wait_for_each_other() {
    let Some(client) = client() else { return };
    one_thread().block_on(in_time(async {
        let keys = Arc::new(Keys::new("each_other"));
        // Each has a connection of its own: a command that waits holds up those
        // behind it.
        let (mut cook, mut guest) = (connect(&client).await, connect(&client).await);
        let here = keys.clone();
        let cook = tokio::spawn(run_sync(move || {
            let (_, dish): (String, String) = cook.blpop(here.key("orders"), 0.0).unwrap();
            cook.rpush::<_, _, ()>(here.key("table"), format!("hot {dish}"))
                .unwrap();
        }));
        let guest = tokio::spawn(run_sync(move || {
            guest.rpush::<_, _, ()>(keys.key("orders"), "soup").unwrap();
            guest.blpop::<_, (String, String)>(keys.key("table"), 0.0)
        }));
        assert_eq!(guest.await.unwrap().unwrap().1, "hot soup");
        cook.await.unwrap();
    }));
}

/// The number that the server has given to a connection.
fn id(db: &mut Connection) -> i64 {
    redis::cmd("CLIENT").arg("ID").query(db).unwrap()
}

#[test]
fn a_cancelled_command_takes_effect_and_the_connection_goes_on() {
    let Some(client) = client() else { return };
    one_thread().block_on(in_time(async {
        let list = Keys::new("cancelled").key("orders");
        let (shared, mut other) = (connect(&client).await, connect(&client).await);
        let mut waiting = shared.clone();
        let number = run_sync(move || id(&mut waiting)).await;

        let (mut waiting, here) = (shared.clone(), list.clone());
        let run = tokio::spawn(run_sync(move || {
            waiting.blpop::<_, (String, String)>(here, 0.0).unwrap();
        }));
        let (mut other, here) = run_sync(move || {
            // Until the server has the command.
            let mut listed = redis::cmd("CLIENT");
            listed.arg("LIST").arg("ID").arg(number);
            while !listed
                .query::<String>(&mut other)
                .unwrap()
                .contains("cmd=blpop")
            {
                yield_now();
            }
            (other, list)
        })
        .await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());

        let mut shared = shared;
        run_sync(move || {
            // The server does not know that nobody is there any more.
            other.rpush::<_, _, ()>(&here, "soup").unwrap();
            other.rpush::<_, _, ()>(&here, "rice").unwrap();
            let left: Vec<String> = shared.lrange(&here, 0, -1).unwrap();
            assert_eq!(left, ["rice"]);
            // Each answer still goes to its own question.
            assert_eq!(id(&mut shared), number);
            shared.del::<_, ()>(&here).unwrap();
        })
        .await;
    }));
}

#[test]
fn a_connection_that_has_ended_says_so() {
    let Some(client) = client() else { return };
    one_thread().block_on(in_time(async {
        let (mut db, mut other) = (connect(&client).await, connect(&client).await);
        run_sync(move || {
            let number = id(&mut db);
            redis::cmd("CLIENT")
                .arg("KILL")
                .arg("ID")
                .arg(number)
                .exec(&mut other)
                .unwrap();
            assert!(db.is_open());
            assert!(!db.check_connection());
            assert!(!db.is_open());
        })
        .await;
    }));
}
