//! Food delivery, on SQLite or on PostgreSQL. See the library for how it works.
//!
//! - Run it: `cargo run -p kitchen`. `PORT` sets the port, `DATABASE_URL` the
//!   database (`postgres://..`, or a file), `LOG=json` the form of the log.
//! - Try it: the page and the curl lines that it prints; hang up on stone soup.
//! - It prints its address and what to try, then the log.
#![forbid(unsafe_code)]

use std::env;
use std::error::Error;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use greenhack::{await_sync, dump, report_blocking};
use kitchen::{App, Kitchen, routes};
use tokio::net::TcpListener;

/// How long a ctrl-c lets handlers clean up.
const GRACE: Duration = Duration::from_secs(3);

/// How long a guest waits for the kitchen.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a handler may keep its thread from the others.
const LONGEST_TURN: Duration = Duration::from_millis(100);

#[greenhack::main(flavor = "multi_thread")]
fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error + Send + Sync>> {
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match env::var("LOG").as_deref() {
        Ok("json") => log.json().init(),
        _ => log.init(),
    }
    // Who holds up the others of a thread is named in the log.
    report_blocking(Some(LONGEST_TURN));
    dump::note_times(true);
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let database = env::var("DATABASE_URL").unwrap_or_else(|_| "kitchen.db".to_owned());

    let port: u16 = port
        .parse()
        .map_err(|error| format!("PORT={port} is no port: {error}"))?;
    let listener = await_sync(TcpListener::bind(("127.0.0.1", port)))
        .map_err(|error| format!("can't listen on port {port}, try another PORT: {error}"))?;
    let address = listener.local_addr()?;
    let app = App::open(&database, Kitchen::at(address, PATIENCE))
        .map_err(|error| format!("can't open the order book `{database}`: {error}"))?;
    println!("A restaurant with its order book in `{database}`. Open http://{address}/ and try:");
    println!("  curl http://{address}/orders");
    for dish in ["soup", "", "fugu", "stone soup"] {
        // Without `--json`, which curl has since 7.82 only.
        let order = format!(r#"{{"guest": "Ada", "dish": "{dish}"}}"#);
        println!("  curl http://{address}/orders -H content-type:application/json -d '{order}'");
    }
    println!(
        "The last one is not answered for {PATIENCE:?}. See what it waits for meanwhile at \
         http://{address}/stacks, and hang up with ctrl-c."
    );

    let stop = async { tokio::signal::ctrl_c().await.expect("a signal handler") };
    await_sync(axum::serve(listener, routes(app)).with_graceful_shutdown(stop))?;
    await_sync(greenhack::workers::shutdown(GRACE));
    Ok(())
}
