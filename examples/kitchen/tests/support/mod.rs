//! A service for a test, and who asks it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::env;
use std::fs;
use std::future::pending;
use std::io::{Write, stderr};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use axum::body::Bytes;
use axum::routing::post;
use axum::{Json, Router};
use kitchen::{App, Kitchen, routes};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// A database of its own for one test.
pub(crate) struct Database {
    pub(crate) url: String,
    file: Option<PathBuf>,
    schema: Option<(String, String)>,
}

impl Database {
    /// A new SQLite file.
    pub(crate) fn sqlite(name: &str) -> Database {
        let file = env::temp_dir().join(format!("kitchen-{}-{name}.db", std::process::id()));
        Database {
            url: file.to_str().expect("a path of plain text").to_owned(),
            file: Some(file),
            schema: None,
        }
    }

    /// A new schema in the PostgreSQL that the environment names. `None` where
    /// there is none, which in CI is a failure.
    pub(crate) fn postgres(name: &str) -> Option<Database> {
        let Ok(server) = env::var("GREENHACK_TEST_POSTGRES") else {
            assert!(
                env::var_os("CI").is_none(),
                "CI must set GREENHACK_TEST_POSTGRES; write `ci/postgres.sh cargo test ..`"
            );
            static SAID: Once = Once::new();
            // The harness holds back what `eprintln` says in a test that passes.
            SAID.call_once(|| {
                let _ = writeln!(
                    stderr(),
                    "\nNOT TESTED: the kitchen on PostgreSQL, since GREENHACK_TEST_POSTGRES is \
                     not set; try `ci/postgres.sh cargo test -p kitchen`"
                );
            });
            return None;
        };
        let schema = format!("kitchen_{}_{name}", std::process::id());
        execute(&server, &format!("CREATE SCHEMA {schema}"));
        let separator = if server.contains('?') { '&' } else { '?' };
        Some(Database {
            url: format!(
                "{server}{separator}options=-csearch_path%3D{schema}&application_name={schema}"
            ),
            file: None,
            schema: Some((server, schema)),
        })
    }

    /// How many connections the server has from this test.
    pub(crate) async fn connections(&self) -> Option<i64> {
        let (server, schema) = self.schema.clone()?;
        Some(greenhack::run_sync(move || count_connections(&server, &schema)).await)
    }
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
        if let Some((server, schema)) = &self.schema {
            execute(server, &format!("DROP SCHEMA {schema} CASCADE"));
        }
    }
}

fn execute(server: &str, statement: &str) {
    use diesel::{Connection, RunQueryDsl};
    let mut db = greenhack::diesel::PgConnection::establish(server).expect("the server answers");
    diesel::sql_query(statement)
        .execute(&mut db)
        .expect("the statement is right");
}

fn count_connections(server: &str, name: &str) -> i64 {
    use diesel::prelude::*;
    use diesel::sql_types::BigInt;
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let mut db = greenhack::diesel::PgConnection::establish(server).expect("the server answers");
    let query =
        format!("SELECT count(*) AS count FROM pg_stat_activity WHERE application_name = '{name}'");
    let count: Count = diesel::sql_query(query)
        .get_result(&mut db)
        .expect("one row");
    count.count
}

/// One thread, on which all handlers run in place.
pub(crate) fn one_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system gives a runtime")
}

/// Starts the service on this runtime. It asks a kitchen of its own.
pub(crate) async fn serve(database: &Database, patience: Duration) -> (App, SocketAddr) {
    serve_with(database, |address| Kitchen::at(address, patience)).await
}

/// Starts the service with a kitchen, which may be at the service's own address.
pub(crate) async fn serve_with(
    database: &Database,
    kitchen: impl FnOnce(SocketAddr) -> Kitchen,
) -> (App, SocketAddr) {
    let (app, address, _) = serve_until(database, kitchen, pending::<()>()).await;
    (app, address)
}

/// Starts the service, which closes after `stop`: it ends when all its connections
/// have.
pub(crate) async fn serve_until<F: Future + Send + 'static>(
    database: &Database,
    kitchen: impl FnOnce(SocketAddr) -> Kitchen,
    stop: F,
) -> (App, SocketAddr, JoinHandle<()>) {
    let (listener, address) = listen().await;
    let (url, kitchen) = (database.url.clone(), kitchen(address));
    let app = greenhack::run_sync(move || App::open(&url, kitchen))
        .await
        .expect("the database opens");
    let stop = async { drop(stop.await) };
    let serving = axum::serve(listener, routes(app.clone())).with_graceful_shutdown(stop);
    let serving = tokio::spawn(async { serving.await.expect("it serves until it is told") });
    (app, address, serving)
}

/// Starts a kitchen that holds each ticket back until `permit` lets it go, and then
/// says that it takes seven minutes.
pub(crate) async fn kitchen_that_waits<F>(
    permit: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send,
{
    let (listener, address) = listen().await;
    // It reads the ticket: hyper closes the connection of a request that is answered
    // while a part of it is still to come.
    let cook = move |_: Bytes| {
        let permit = permit();
        async {
            permit.await;
            Json(json!({"minutes": 7}))
        }
    };
    let kitchen = Router::new().route("/kitchen", post(cook));
    tokio::spawn(axum::serve(listener, kitchen).into_future());
    address
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// Sends an order and returns the status and the body of the answer.
pub(crate) async fn order(address: SocketAddr, guest: &str, dish: &str) -> (u16, Value) {
    request(
        address,
        "POST /orders",
        json!({"guest": guest, "dish": dish}).to_string(),
    )
    .await
}

pub(crate) async fn request(address: SocketAddr, line: &str, body: String) -> (u16, Value) {
    let mut stream = send(address, line, body).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).expect("a status");
    let body = serde_json::from_str(body).unwrap_or(Value::String(body.to_owned()));
    (status.parse().expect("a number"), body)
}

/// Sends a request, whose answer is still to come.
pub(crate) async fn send(address: SocketAddr, line: &str, body: String) -> TcpStream {
    let mut stream = TcpStream::connect(address)
        .await
        .expect("the service listens");
    let request = format!(
        "{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream
        .write_all(request.as_bytes())
        .await
        .expect("the service reads");
    stream
}
