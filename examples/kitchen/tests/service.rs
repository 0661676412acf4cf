//! The service from outside: a real client, a real database, real sockets.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::RunQueryDsl;
use diesel::connection::TransactionManager;
use futures::future::join_all;
use greenhack::io::SyncIoBridge;
use greenhack::{await_sync, run_sync};
use kitchen::orders::{CONNECTIONS, Db};
use kitchen::{App, Kitchen};
use serde_json::{Value, json};
use support::{
    Database, kitchen_that_waits, one_thread, order, request, send, serve, serve_until, serve_with,
};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, oneshot};
use tokio::task::yield_now;
use tokio::time::{pause, resume, sleep, timeout};
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// More than any test takes.
const LONG: Duration = Duration::from_secs(60);

/// Enough for a kitchen that answers.
const SHORT: Duration = Duration::from_secs(2);

/// Runs `test` on each database that there is.
fn on_each_database(name: &str, test: impl AsyncFn(&Database)) {
    let databases = [Some(Database::sqlite(name)), Database::postgres(name)];
    for database in databases.iter().flatten() {
        eprintln!("-- {}", database.url);
        one_thread().block_on(test(database));
    }
}

async fn count(app: &App, state: &'static str) -> i64 {
    let orders = app.orders.clone();
    run_sync(move || orders.count(state)).await.unwrap()
}

/// Waits until no order is open.
async fn settled(app: &App) {
    while count(app, "placed").await > 0 {
        yield_now().await;
    }
}

#[test]
fn an_order_is_saved_cooked_and_listed() {
    on_each_database("order", async |database| {
        let (app, address) = serve(database, LONG).await;
        let (status, placed) = order(address, " Ada ", "soup").await;
        assert_eq!(status, 201, "{placed}");
        assert_eq!(
            (&placed["guest"], &placed["state"], &placed["minutes"]),
            (&json!("Ada"), &json!("cooking"), &json!(9))
        );
        let (status, listed) = request(address, "GET /orders?guest=Ada", String::new()).await;
        assert_eq!((status, listed), (200, json!([placed])));
        let (_, others) = request(address, "GET /orders?guest=Bob", String::new()).await;
        assert_eq!(others, json!([]));
        assert_eq!(count(&app, "cooking").await, 1);
    });
}

#[test]
fn bad_input_is_answered_and_saves_nothing() {
    on_each_database("bad_input", async |database| {
        let (_, address) = serve(database, LONG).await;
        let long = "x".repeat(81);
        for (guest, dish, error) in [
            ("", "soup", "the guest is missing"),
            ("Ada", " ", "the dish is missing"),
            ("Ada", &long, "the dish is too long"),
        ] {
            let answer = order(address, guest, dish).await;
            assert_eq!(answer, (422, json!({ "error": error })));
        }
        for (body, expected) in [("{}", 422), ("not json", 400)] {
            let (status, answer) = request(address, "POST /orders", body.to_owned()).await;
            assert_eq!(status, expected, "{answer}");
            assert!(answer["error"].is_string(), "{answer}");
        }
        let (_, listed) = request(address, "GET /orders", String::new()).await;
        assert_eq!(listed, json!([]));
    });
}

#[test]
fn a_kitchen_that_refuses_settles_the_order() {
    on_each_database("refusal", async |database| {
        let (app, address) = serve(database, LONG).await;
        let answer = order(address, "Ada", "fugu").await;
        let error = "the cook has no licence for fugu";
        assert_eq!(answer, (502, json!({ "error": error })));
        assert_eq!(count(&app, "refused").await, 1);
        assert_eq!(count(&app, "placed").await, 0);
    });
}

#[test]
fn a_kitchen_that_does_not_answer_settles_the_order() {
    on_each_database("silence", async |database| {
        let (app, address) = serve(database, SHORT).await;
        let (status, _) = order(address, "Ada", "stone soup").await;
        assert_eq!(status, 504);
        assert_eq!(count(&app, "cancelled").await, 1);
        // The client is as good as before.
        assert_eq!(order(address, "Ada", "soup").await.0, 201);
    });
}

#[test]
fn an_order_is_cancelled_when_its_guest_hangs_up() {
    on_each_database("hang_up", async |database| {
        let (app, address) = serve(database, LONG).await;
        let body = json!({"guest": "Ada", "dish": "stone soup"}).to_string();
        let stream = send(address, "POST /orders", body).await;
        while count(&app, "placed").await == 0 {
            yield_now().await;
        }
        drop(stream);
        settled(&app).await;
        assert_eq!(count(&app, "cancelled").await, 1);
    });
}

/// Finds no address: it panics.
#[derive(Debug)]
struct Panics;

impl Resolver for Panics {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        panic!("where is {uri}?");
    }
}

#[test]
fn a_panic_is_answered_and_undoes_the_order() {
    on_each_database("panic", async |database| {
        let panicking = |config| Agent::with_parts(config, DefaultConnector::default(), Panics);
        let kitchen = |address| Kitchen::with(panicking, address, LONG);
        let (app, address) = serve_with(database, kitchen).await;
        for panics in 1..=2 {
            let (status, answer) = order(address, "Ada", "soup").await;
            assert_eq!(status, 500, "{answer}");
            assert_eq!(
                answer["error"],
                "that is our fault; what you have asked for is undone"
            );
            settled(&app).await;
            assert_eq!(count(&app, "cancelled").await, panics);
        }
        let (status, listed) = request(address, "GET /orders?guest=Ada", String::new()).await;
        assert_eq!((status, listed.as_array().unwrap().len()), (200, 2));
    });
}

#[test]
fn the_guest_hears_of_it_over_the_websocket() {
    on_each_database("news", async |database| {
        let (_, address) = serve(database, LONG).await;
        let stream = TcpStream::connect(address).await.unwrap();
        let listening = run_sync(move || {
            let url = format!("ws://{address}/news?guest=Ada");
            let (mut socket, _) = tungstenite::client(url, SyncIoBridge::new(stream)).unwrap();
            // Another guest's order is none of Ada's business.
            assert_eq!(await_sync(order(address, "Bob", "rice")).0, 201);
            assert_eq!(await_sync(order(address, "Ada", "soup")).0, 201);
            let mut heard = Vec::new();
            for _ in 0..2 {
                let text = socket.read().unwrap().into_text().unwrap();
                let order: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(order["guest"], "Ada");
                heard.push(order["state"].as_str().unwrap().to_owned());
            }
            socket.close(None).unwrap();
            heard
        });
        assert_eq!(listening.await, ["placed", "cooking"]);
    });
}

#[test]
fn a_hundred_orders_are_cooked_at_once_on_one_thread() {
    on_each_database("hundred", async |database| {
        // Nobody's dish is ready before everybody's ticket is there.
        let all = Arc::new(Barrier::new(100));
        let kitchen = kitchen_that_waits(move || {
            let all = all.clone();
            async move {
                let _ = all.wait().await;
            }
        });
        let kitchen = Kitchen::at(kitchen.await, LONG);
        let (app, address) = serve_with(database, |_| kitchen).await;
        assert!(order_a_hundred(address).await.iter().all(|it| *it == 201));
        assert_eq!(count(&app, "cooking").await, 100);
    });
}

#[test]
fn a_hundred_orders_are_cooked_by_the_thread_that_asks_for_them() {
    on_each_database("itself", async |database| {
        let (app, address) = serve(database, LONG).await;
        let begin = Instant::now();
        // The clock stands until all are on the stove: none is ready before. It does
        // not go by itself, as it would if the runtime had nothing else to do.
        pause();
        let all_are_on = async {
            while app.stove().most() < 100 {
                let most = app.stove().most();
                assert!(begin.elapsed() < LONG, "{most} at once");
                yield_now().await;
            }
            resume();
        };
        let (answers, ()) = tokio::join!(order_a_hundred(address), all_are_on);
        eprintln!("100 orders of 50 ms each took {:?}", begin.elapsed());
        assert!(answers.iter().all(|status| *status == 201));
        assert_eq!(count(&app, "cooking").await, 100);
        assert_eq!(app.stove().most(), 100);
    });
}

async fn order_a_hundred(address: SocketAddr) -> Vec<u16> {
    let guests: Vec<String> = (0..100).map(|guest| format!("guest {guest}")).collect();
    let orders = guests.iter().map(|guest| order(address, guest, "soup"));
    let answers = join_all(orders).await;
    answers.into_iter().map(|(status, _)| status).collect()
}

#[test]
fn with_a_client_that_blocks_the_thread_waits_for_itself() {
    on_each_database("blocked", async |database| {
        let (app, address) = serve(database, SHORT).await;
        assert_eq!(order(address, "Ada", "soup").await.0, 201);
        assert_eq!(count(&app, "cooking").await, 1);
        // The same service, but for the agent: ureq's own, which blocks the only
        // thread, that of the kitchen. It gives up, or it would be for ever.
        let blocking = |address| Kitchen::with(Agent::new_with_config, address, SHORT);
        let (app, address) = serve_with(database, blocking).await;
        assert_eq!(order(address, "Ada", "soup").await.0, 504);
        assert_eq!(count(&app, "cooking").await, 1);
        assert_eq!(count(&app, "cancelled").await, 1);
    });
}

/// How many times fifty guests order.
const WAVES: i64 = 20;

#[test]
fn no_order_is_half_done_when_a_third_of_the_guests_hang_up() {
    on_each_database("thousand", async |database| {
        let (close, closed) = oneshot::channel();
        // Nobody is cancelled but by a hang-up.
        let kitchen = |address| Kitchen::at(address, 10 * LONG);
        let (app, address, serving) = serve_until(database, kitchen, closed).await;
        let mut dice = Dice(1);
        // As many at a time as the system lets listen.
        for wave in 0..WAVES {
            // Anywhere from before it is placed to after it is cooked.
            let moments: Vec<_> = (0..50).map(|_| dice.below(120)).collect();
            let orders = (0..50).zip(moments).map(|(guest, moment)| async move {
                let name = format!("guest-{wave}.{guest}");
                if guest % 3 > 0 {
                    return Some(order(address, &name, "soup").await.0);
                }
                // One is sure to hang up in between.
                let is_sure = guest == 0;
                let dish = if is_sure { "stone soup" } else { "soup" };
                let body = json!({"guest": name, "dish": dish}).to_string();
                let stream = send(address, "POST /orders", body).await;
                if is_sure {
                    while !is_placed(address, &name).await {}
                } else {
                    sleep(Duration::from_millis(moment)).await;
                }
                drop(stream);
                None
            });
            let answers = join_all(orders).await;
            assert!(answers.iter().flatten().all(|status| *status == 201));
        }
        // When the service has closed, those who hung up are noticed, too.
        close.send(()).unwrap();
        timeout(LONG, serving)
            .await
            .expect("who hung up is gone")
            .unwrap();
        settled(&app).await;
        let (cooking, cancelled) = (count(&app, "cooking").await, count(&app, "cancelled").await);
        assert!(cooking >= 33 * WAVES, "{cooking} orders are cooking");
        assert!(cancelled >= WAVES, "{cancelled} orders are cancelled");
        assert!(cooking + cancelled <= 50 * WAVES);
        assert_eq!(count(&app, "refused").await, 0);
        timeout(LONG, the_pool_is_full_and_clean(&app))
            .await
            .expect("all connections are back");
        // It may not have noticed yet that others were closed.
        let counted = async {
            let expected = i64::try_from(CONNECTIONS).unwrap();
            while database
                .connections()
                .await
                .is_some_and(|count| count != expected)
            {}
        };
        timeout(LONG, counted).await.expect("no connection leaks");
        assert_eq!(greenhack::leaked_runs(), 0);
        eprintln!("{cooking} cooking, {cancelled} cancelled");
    });
}

async fn is_placed(address: SocketAddr, guest: &str) -> bool {
    let line = format!("GET /orders?guest={guest}");
    let (_, listed) = request(address, &line, String::new()).await;
    listed.as_array().is_some_and(|orders| !orders.is_empty())
}

/// Lends all the connections that the pool may have at once, and asks each.
async fn the_pool_is_full_and_clean(app: &App) {
    let orders = app.orders.clone();
    run_sync(move || {
        let lend = || orders.db().unwrap();
        let mut lent: Vec<_> = std::iter::repeat_with(lend).take(CONNECTIONS).collect();
        for db in &mut lent {
            let status = Db::transaction_manager_status_mut(&mut **db);
            assert!(status.transaction_depth().unwrap().is_none());
            diesel::sql_query("SELECT 1").execute(&mut **db).unwrap();
        }
        assert_eq!(orders.connections(), (CONNECTIONS, 0));
    })
    .await;
}

/// The generator splitmix64, so that the moments are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
