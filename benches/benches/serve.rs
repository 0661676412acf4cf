//! What a request costs the server: its CPU time, user and system, and how long
//! clients wait. The same service in several ways:
//!
//! - async handlers in axum, with which the others are compared;
//! - plain handlers in axum: runs that hop, and runs in place on
//!   `greenhack::axum::serve`, both with one pool of connections to the database
//!   for all workers, or one for each; for handlers that compute, in place on more
//!   workers than there are cores;
//! - plain handlers that block a thread: `block_on` in `spawn_blocking`, and in
//!   `block_in_place`;
//! - actix-web, with async handlers and with runs in place.
//!
//! Run it with `cargo bench -p greenhack-benches --bench serve`, on Linux. The
//! servers, the client, and the database that handlers ask are processes of their
//! own; a server is started anew for each measurement, because what one costs
//! differs by a tenth from process to process. The nanoseconds of the first table are CPU time of the server for one
//! request; the second is what clients saw. `--svg=FILE` draws the first.
//! `--ways=async/hop` leaves the others out. `--server-core=1` keeps the server to that
//! core; with `taskset -c 0` before the command, client and database are on another.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::routing::{get, post};
use axum::{Json, Router};
use greenhack::await_sync;
use greenhack_benches::load::{self, Seen, Server};
use greenhack_benches::{Case, Chart, Goal, Table};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{block_in_place, spawn_blocking};
use tokio::time::sleep;

/// How many connections to the database there are.
const POOL: usize = 32;

/// How long a handler of the stall mix waits, and how long one of `STALL_EVERY`
/// computes then.
const NAP: Duration = Duration::from_millis(1);
const STALL: Duration = Duration::from_millis(20);
const STALL_EVERY: u64 = 200;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("server") => server(&arguments[2], &arguments[3]),
        Some("database") => database(),
        Some(load::CLIENT) => load::client(&arguments[2..]),
        _ => bench(&arguments),
    }
}

/// Ways to serve; the first is what the others are compared with.
const WAYS: [&str; 11] = [
    "async",
    "hop",
    "hop, own pools",
    "in place",
    "in place, own pools",
    MORE_WORKERS,
    "async, pinned",
    "spawn_blocking",
    "block_in_place",
    "actix, async",
    "actix, in place",
];

/// How long a heavy handler computes.
const HEAVY: Duration = Duration::from_micros(200);

/// For the stall mix and for unequal connections only.
const MORE_WORKERS: &str = "in place, 16 workers a core";

/// What is asked, over how many connections, how often, and how many times a second;
/// 0 is as often as there are answers.
const CASES: [(&str, u64, u64, u64); 10] = [
    ("none", 64, 20_000, 0),
    ("trips/1", 64, 10_000, 0),
    ("trips/3", 64, 5_000, 0),
    ("trips/10", 64, 2_000, 0),
    ("body", 64, 20_000, 0),
    ("none", 1000, 20_000, 0),
    ("trips/3", 1000, 5_000, 0),
    ("stalls", 64, 10_000, 0),
    ("stalls", 64, 10_000, 3_200),
    ("unequal", 64, 20_000, 0),
];

fn name_of(work: &str, connections: u64, rate: u64) -> String {
    match rate {
        0 => format!("{work}, {connections} connections"),
        rate => format!("{work}, {connections} connections, {rate} a second"),
    }
}

/// What the median of a way may be, at most, in CPU time and in the 99th
/// percentile of the time that clients wait.
fn goals(work: &str, way: &str) -> (Option<Goal>, Option<f64>) {
    match (way, work) {
        ("in place" | MORE_WORKERS, "stalls") => (None, Some(1.5)),
        (_, "unequal") => (None, None),
        ("in place" | "in place, own pools", _) => (Some(Goal::Times(1.05)), Some(1.2)),
        ("hop", "none") => (Some(Goal::Times(1.8)), None),
        ("hop" | "hop, own pools", "trips/3") => (Some(Goal::Times(1.25)), None),
        ("hop", "stalls") => (None, Some(1.5)),
        _ => (None, None),
    }
}

fn bench(arguments: &[String]) {
    let option = |name: &str| arguments.iter().find_map(|it| it.strip_prefix(name));
    let wanted: Vec<_> = match option("--ways=") {
        Some(ways) => WAYS
            .into_iter()
            .filter(|way| ways.split('/').any(|it| it == *way))
            .collect(),
        None => WAYS.to_vec(),
    };
    let core = option("--server-core=");
    let table = Table::from_args();
    let database = Server::start(&["database"]);
    let (latencies, mut chart) = (
        RefCell::default(),
        Chart::new("CPU time of the server for a request, against async axum (µs)"),
    );
    for (work, connections, requests, rate) in CASES {
        let name = name_of(work, connections, rate);
        let interval = Duration::from_secs(connections).checked_div(rate as u32);
        let interval = interval.unwrap_or_default();
        let kinds = requests_of(work);
        let kinds: Vec<_> = kinds.iter().map(String::as_str).collect();
        let mut case = Case::new(name.clone(), requests);
        for way in &wanted {
            if left_out(way, work, connections) {
                continue;
            }
            let (latencies, kinds, key) = (&latencies, &kinds, (name.clone(), *way));
            let address = database.address();
            case = case.side(way, move |requests| {
                let server = Server::start_on(core, &["server", way, address]);
                server.load(kinds, connections, requests.div_ceil(10), Duration::ZERO);
                let before = server.cpu_of_threads();
                let seen = server.load(kinds, connections, requests, interval);
                let cpu = server.cpu_of_threads() - before;
                let mut latencies: std::cell::RefMut<'_, Latencies> = latencies.borrow_mut();
                latencies.entry(key.clone()).or_default().push(seen);
                cpu
            });
            if let Some(goal) = goals(work, way).0 {
                case = case.goal(goal);
            }
        }
        let sides = table.case(case).into_iter().filter_map(|row| {
            let (nanos, ratio) = row.result.ok()?;
            Some((row.side, nanos / 1000.0, ratio))
        });
        // There the time is that of the computations.
        let computes = work == "stalls" || work == "unequal";
        let sides: Vec<_> = sides.filter(|_| !computes).collect();
        if !sides.is_empty() {
            chart.group(&name, sides.into_iter());
        }
    }
    print_latencies(&latencies.into_inner());
    if let Some(file) = option("--svg=") {
        fs::write(file, chart.svg()).expect("the file can be written");
    }
}

fn left_out(way: &str, work: &str, connections: u64) -> bool {
    let has_trips = work.starts_with("trips");
    match way {
        // It deadlocks when it comes to its 512 threads: all wait for the pool, and
        // none is left to drive the connections of that.
        "block_in_place" => has_trips && connections > 512,
        _ if way.ends_with("own pools") => !has_trips,
        MORE_WORKERS => work != "stalls" && work != "unequal",
        _ => false,
    }
}

/// For each case and way, the rounds; the first is to warm up.
type Latencies = BTreeMap<(String, &'static str), Vec<Seen>>;

fn print_latencies(latencies: &Latencies) {
    println!("\n| case | side | p50, µs | p99, µs | p99 to the first | requests/s | goal |");
    println!("|---|---|--:|--:|--:|--:|--:|");
    for (work, connections, _, rate) in CASES {
        let case = name_of(work, connections, rate);
        let of_way = |way| {
            latencies
                .get(&(case.clone(), way))
                .map(|rounds| &rounds[1..])
        };
        let first = WAYS.into_iter().find_map(of_way);
        for way in WAYS {
            let (Some(seen), Some(first)) = (of_way(way), first) else {
                continue;
            };
            let p50 = median(seen.iter().map(|seen| seen.median));
            let p99 = median(seen.iter().map(|seen| seen.percentile_99));
            let rate = median(seen.iter().map(|seen| seen.per_second));
            let pairs = seen.iter().zip(first);
            let ratio = median(pairs.map(|(ours, first)| ours.percentile_99 / first.percentile_99));
            let goal = goals(work, way).1.map(|most| match ratio <= most {
                true => format!("× {most}: met"),
                false => format!("× {most}: missed"),
            });
            let goal = goal.unwrap_or_default();
            println!("| {case} | {way} | {p50:.0} | {p99:.0} | {ratio:.2} | {rate:.0} | {goal} |");
        }
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// What is sent, for a kind of work: by connections in turn.
fn requests_of(work: &str) -> Vec<String> {
    let get = |path: &str| format!("GET /{path} HTTP/1.1\r\nHost: it\r\n\r\n");
    match work {
        "body" => {
            let body = json();
            vec![format!(
                "POST /body HTTP/1.1\r\nHost: it\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            )]
        }
        // One connection in 16 asks for much.
        "unequal" => {
            let mut kinds = vec![get("heavy")];
            kinds.resize(16, get("none"));
            kinds
        }
        work => vec![get(work)],
    }
}

/// 1 KB of JSON.
fn json() -> String {
    let dish =
        |number| format!("{{\"dish\":\"ramen {number:02}\",\"spicy\":true,\"price\":{number}.5}}");
    let dishes: Vec<_> = (10..32).map(dish).collect();
    format!("{{\"guest\":\"Ada\",\"dishes\":[{}]}}", dishes.join(","))
}

fn server(way: &str, database: &str) {
    assert!(DATABASE.set(Pool::new(database, POOL)).is_ok());
    if way.starts_with("actix") {
        return actix_server(way == "actix, in place");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // For `Process::cpu`.
        .thread_keep_alive(Duration::from_secs(3600))
        .build()
        .expect("there are threads");
    let result = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        match way {
            "async" => axum::serve(listener, async_app()).await,
            "hop" => axum::serve(listener, plain_app::<Greenhack>()).await,
            "hop, own pools" => axum::serve(listener, plain_app::<OwnPools>()).await,
            "in place" => greenhack::axum::serve(listener, plain_app::<Greenhack>()).await,
            "in place, own pools" => {
                greenhack::axum::serve(listener, plain_app::<OwnPools>()).await
            }
            MORE_WORKERS => {
                let workers = greenhack::workers::Builder::new().threads(16 * workers());
                greenhack::axum::serve(listener, plain_app::<Greenhack>())
                    .with_workers(workers)
                    .await
            }
            "async, pinned" => greenhack::axum::serve(listener, async_app()).await,
            "spawn_blocking" => axum::serve(listener, plain_app::<SpawnBlocking>()).await,
            "block_in_place" => axum::serve(listener, plain_app::<BlockInPlace>()).await,
            _ => panic!("no such way"),
        }
    });
    result.expect("it serves until it is killed");
}

fn async_app() -> Router {
    Router::new()
        .route("/none", get(async || "done"))
        .route("/trips/1", get(|| trips(1)))
        .route("/trips/3", get(|| trips(3)))
        .route("/trips/10", get(|| trips(10)))
        .route("/body", post(async |body: Json<Value>| body))
        .route("/stalls", get(stalls))
        .route("/heavy", get(async || compute(HEAVY)))
}

async fn trips(count: u64) -> &'static str {
    for _ in 0..count {
        trip(Pool::of_all()).await;
    }
    "done"
}

async fn stalls() -> &'static str {
    sleep(NAP).await;
    compute_sometimes();
    "done"
}

/// A way to have plain handlers.
trait Plain: 'static {
    /// Runs one.
    fn run<T: Send + 'static>(
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send;

    /// Waits in one.
    fn wait<T>(future: impl Future<Output = T>) -> T;

    /// Asks the database in one.
    fn trip() {
        Self::wait(trip(Pool::of_all()));
    }
}

struct Greenhack;

impl Plain for Greenhack {
    // This is what `#[entry]` writes.
    fn run<T: Send + 'static>(
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send {
        greenhack::run_sync(f)
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        await_sync(future)
    }
}

struct OwnPools;

impl Plain for OwnPools {
    fn run<T: Send + 'static>(
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send {
        greenhack::run_sync(f)
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        await_sync(future)
    }

    fn trip() {
        thread_local! {
            static OWN: Pool = Pool::new(&Pool::of_all().address, POOL / workers());
        }
        OWN.with(|pool| await_sync(trip(pool)));
    }
}

struct SpawnBlocking;

impl Plain for SpawnBlocking {
    async fn run<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
        spawn_blocking(f).await.expect("it does not panic")
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        Handle::current().block_on(future)
    }
}

struct BlockInPlace;

impl Plain for BlockInPlace {
    async fn run<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
        block_in_place(f)
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        Handle::current().block_on(future)
    }
}

fn plain_app<P: Plain>() -> Router {
    Router::new()
        .route("/none", get(|| P::run(|| "done")))
        .route("/trips/1", get(|| P::run(|| plain_trips::<P>(1))))
        .route("/trips/3", get(|| P::run(|| plain_trips::<P>(3))))
        .route("/trips/10", get(|| P::run(|| plain_trips::<P>(10))))
        .route("/body", post(|body: Json<Value>| P::run(|| body)))
        .route("/stalls", get(|| P::run(plain_stalls::<P>)))
        .route("/heavy", get(|| P::run(|| compute(HEAVY))))
}

fn plain_trips<P: Plain>(count: u64) -> &'static str {
    for _ in 0..count {
        P::trip();
    }
    "done"
}

fn plain_stalls<P: Plain>() -> &'static str {
    P::wait(async { sleep(NAP).await });
    compute_sometimes();
    "done"
}

fn actix_server(is_plain: bool) {
    use actix_web::{App, HttpServer, web};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound"));
    let async_app = || {
        App::new()
            .route("/none", web::get().to(async || "done"))
            .route("/trips/1", web::get().to(|| trips(1)))
            .route("/trips/3", web::get().to(|| trips(3)))
            .route("/trips/10", web::get().to(|| trips(10)))
            .route("/body", web::post().to(async |body: web::Json<Value>| body))
            .route("/stalls", web::get().to(stalls))
            .route("/heavy", web::get().to(async || compute(HEAVY)))
    };
    type P = Greenhack;
    let plain_app = || {
        App::new()
            .route("/none", web::get().to(|| P::run(|| "done")))
            .route("/trips/1", web::get().to(|| P::run(|| plain_trips::<P>(1))))
            .route("/trips/3", web::get().to(|| P::run(|| plain_trips::<P>(3))))
            .route(
                "/trips/10",
                web::get().to(|| P::run(|| plain_trips::<P>(10))),
            )
            .route(
                "/body",
                web::post().to(|body: web::Json<Value>| P::run(|| body)),
            )
            .route("/stalls", web::get().to(|| P::run(plain_stalls::<P>)))
            .route("/heavy", web::get().to(|| P::run(|| compute(HEAVY))))
    };
    let result = actix_web::rt::System::new().block_on(async {
        match is_plain {
            true => {
                HttpServer::new(plain_app)
                    .workers(workers())
                    .listen(listener)?
                    .run()
                    .await
            }
            false => {
                HttpServer::new(async_app)
                    .workers(workers())
                    .listen(listener)?
                    .run()
                    .await
            }
        }
    });
    result.expect("it serves until it is killed");
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Connections to the database, as any pool of an async driver has them.
struct Pool {
    address: String,
    idle: Mutex<Vec<TcpStream>>,
    permits: Semaphore,
}

static DATABASE: OnceLock<Pool> = OnceLock::new();

impl Pool {
    fn new(address: &str, most: usize) -> Pool {
        Pool {
            address: address.to_owned(),
            idle: Mutex::default(),
            permits: Semaphore::new(most),
        }
    }

    /// The one that all threads share.
    fn of_all() -> &'static Pool {
        DATABASE.get().expect("this is set at the beginning")
    }
}

/// A round trip to the database: a connection of the pool, 64 bytes there, 64
/// bytes back.
async fn trip(pool: &Pool) {
    let _permit = pool.permits.acquire().await.expect("it is never closed");
    let idle = pool.idle.lock().expect("nothing panics with it").pop();
    let mut stream = match idle {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(&pool.address).await.expect("it listens");
            stream.set_nodelay(true).expect("it is a TCP stream");
            stream
        }
    };
    let mut message = [7; 64];
    stream.write_all(&message).await.expect("it is open");
    stream.read_exact(&mut message).await.expect("it answers");
    pool.idle
        .lock()
        .expect("nothing panics with it")
        .push(stream);
}

/// Answers each message of 64 bytes at once.
fn database() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("there is a driver");
    let result: std::io::Result<()> = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut message = [0; 64];
                while stream.read_exact(&mut message).await.is_ok() {
                    stream.write_all(&message).await.expect("it is open");
                }
            });
        }
    });
    result.expect("it answers until it is killed");
}

/// Computes for a while, once in `STALL_EVERY` calls.
fn compute_sometimes() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static CALLS: AtomicU64 = AtomicU64::new(0);
    if CALLS
        .fetch_add(1, Ordering::Relaxed)
        .is_multiple_of(STALL_EVERY)
    {
        compute(STALL);
    }
}

fn compute(time: Duration) -> &'static str {
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
    "done"
}
