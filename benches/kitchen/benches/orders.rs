//! What an order costs the service: its CPU time, user and system. The kitchen of
//! `examples/kitchen`, with plain functions all the way down, against its async twin.
//!
//! Run it with `ci/postgres.sh cargo bench -p kitchen-benches`, on Linux; without
//! PostgreSQL only SQLite is measured. The services, the client and the kitchen that
//! both ask, which answers at once, are processes of their own. The kitchen takes either
//! database by Diesel's `MultiConnection`, for which there is nothing async; "plain" is
//! the same without it, compiled for each database as the twin is. The nanoseconds of the
//! first table are CPU time of the service for one order, without that of the database
//! where it is a server; the second is what clients saw.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs, process};

use axum::body::Bytes;
use axum::routing::post;
use axum::{Json, Router};
use greenhack::axum::Distributor;
use greenhack::workers;
use greenhack_benches::load::{self, Seen, Server};
use greenhack_benches::{Case, Goal, Table};
use kitchen::Kitchen;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// More than any order takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many guests order at the same time, and how much a round.
const GUESTS: u64 = 64;
const ORDERS: u64 = 1500;

fn main() {
    let arguments: Vec<_> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("kitchen") => serve_kitchen(),
        Some("server") => server(&arguments[2], &arguments[3], &arguments[4]),
        Some(load::CLIENT) => load::client(&arguments[2..]),
        _ => bench(),
    }
}

/// Ways to serve on one thread and on two. The first is what the others of its line
/// are compared with.
const WAYS: [(&str, &[&str]); 2] = [
    ("one thread", &["async", "in place", "in place, plain"]),
    (
        "two threads",
        &["async, 2", "pinned, 2", "pinned, own pools, 2", "hop, 2"],
    ),
];

fn bench() {
    let table = Table::from_args();
    let kitchen = Server::start(&["kitchen"]);
    let body = json!({"guest": "Ada", "dish": "soup"}).to_string();
    let request = format!(
        "POST /orders HTTP/1.1\r\nHost: it\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let seen = RefCell::new(Vec::new());
    for database in databases() {
        for (threads, ways) in WAYS {
            let name = format!("{}, {threads}", database.name);
            let servers: Vec<_> = ways
                .iter()
                .map(|way| Server::start(&["server", way, &database.url, kitchen.address()]))
                .collect();
            let mut case = Case::new(name.clone(), ORDERS);
            for (server, way) in servers.iter().zip(ways) {
                let (seen, request, name) = (&seen, &request, name.clone());
                case = case.side(way, move |orders| {
                    let before = server.cpu();
                    let load = server.load(&[request], GUESTS, orders, Duration::ZERO);
                    seen.borrow_mut().push((name.clone(), *way, load));
                    server.cpu() - before
                });
                if way.starts_with("in place") || way.starts_with("pinned") {
                    case = case.goal(Goal::Times(1.10));
                }
            }
            table.case(case);
        }
    }
    print_seen(&seen.into_inner());
}

fn print_seen(seen: &[(String, &str, Seen)]) {
    println!("\n| case | side | p50, µs | p99, µs | orders/s |");
    println!("|---|---|--:|--:|--:|");
    let mut sides = Vec::new();
    for (case, side, _) in seen {
        if !sides.contains(&(case, side)) {
            sides.push((case, side));
        }
    }
    for (case, side) in sides {
        let of_side: Vec<_> = seen
            .iter()
            .filter(|(name, way, _)| name == case && way == side)
            .map(|(.., seen)| seen)
            .collect();
        let median = |number: fn(&Seen) -> f64| {
            let mut numbers: Vec<_> = of_side.iter().map(|seen| number(seen)).collect();
            numbers.sort_by(f64::total_cmp);
            numbers[numbers.len() / 2]
        };
        println!(
            "| {case} | {side} | {:.0} | {:.0} | {:.0} |",
            median(|seen| seen.median),
            median(|seen| seen.percentile_99),
            median(|seen| seen.per_second),
        );
    }
}

/// A database that all servers of a case share, until it is dropped.
struct Database {
    name: &'static str,
    url: String,
    file: Option<PathBuf>,
}

fn databases() -> Vec<Database> {
    let file = env::temp_dir().join(format!("kitchen-bench-{}.db", process::id()));
    let sqlite = Database {
        name: "SQLite",
        url: file.to_str().expect("a path of plain text").to_owned(),
        file: Some(file),
    };
    let Ok(url) = env::var("GREENHACK_TEST_POSTGRES") else {
        eprintln!("no PostgreSQL: write `ci/postgres.sh cargo bench -p kitchen-benches`");
        return vec![sqlite];
    };
    let postgres = Database {
        name: "PostgreSQL",
        url,
        file: None,
    };
    vec![sqlite, postgres]
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            for suffix in ["", "-wal", "-shm"] {
                let mut file = file.clone().into_os_string();
                file.push(suffix);
                let _ = fs::remove_file(file);
            }
        }
    }
}

/// A kitchen that takes no time.
fn serve_kitchen() {
    // Without its body, a request could be answered while a part is still to come,
    // and hyper would close the connection.
    let answer = async |_: Bytes| Json(json!({"minutes": 9}));
    let kitchen = Router::new().route("/kitchen", post(answer));
    one_thread()
        .block_on(async {
            let listener = listen().await;
            axum::serve(listener, kitchen).await
        })
        .expect("it serves until it is killed");
}

fn server(way: &str, database: &str, kitchen: &str) {
    let kitchen: SocketAddr = kitchen.parse().expect("an address");
    let runtime = match way {
        "async" | "in place" | "in place, plain" => one_thread(),
        _ => Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("there are threads"),
    };
    let workers = || workers::Builder::new().threads(2);
    workers().start().expect("there are threads");
    let result = runtime.block_on(async {
        if way.starts_with("async") {
            let app = kitchen_benches::App::open(database, kitchen, PATIENCE).await;
            let app = app.expect("the database opens");
            return axum::serve(listen().await, kitchen_benches::routes(app)).await;
        }
        let kitchen = Kitchen::at(kitchen, PATIENCE);
        let database = database.to_owned();
        if way == "in place, plain" {
            let open = move || kitchen_benches::plain::routes(&database, kitchen);
            let routes = greenhack::run_sync(open).await.expect("the database opens");
            return axum::serve(listen().await, routes).await;
        }
        if way == "pinned, own pools, 2" {
            return pinned_with_own_pools(database, kitchen, workers()).await;
        }
        let open = move || kitchen::App::open(&database, kitchen);
        let app = greenhack::run_sync(open).await.expect("the database opens");
        let routes = kitchen::routes(app);
        if way.starts_with("pinned") {
            greenhack::axum::serve(listen().await, routes)
                .with_workers(workers())
                .await
        } else {
            axum::serve(listen().await, routes).await
        }
    });
    result.expect("it serves until it is killed");
}

/// Serves on workers that open the database each for itself.
async fn pinned_with_own_pools(
    database: String,
    kitchen: Kitchen,
    workers: workers::Builder,
) -> std::io::Result<()> {
    let distributor = Distributor::new(listen().await);
    let connections = distributor.connections();
    let workers = workers.run_each(move |_| {
        let (database, kitchen) = (database.clone(), kitchen.clone());
        let listener = connections.listener();
        async move {
            let open = move || kitchen::App::open(&database, kitchen);
            let app = greenhack::run_sync_local(open)
                .await
                .expect("the database opens");
            axum::serve(listener, kitchen::routes(app)).await
        }
    })?;
    tokio::select! {
        never = distributor.run() => match never {},
        results = workers => results.into_iter().collect(),
    }
}

/// Listens, and says where.
async fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound"));
    listener
}

fn one_thread() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("there is a driver")
}
