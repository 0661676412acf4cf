//! What a request costs the server: its CPU time, user and system, and how long
//! clients wait. An axum service whose handlers are async, the same with plain
//! handlers that hop, and with plain handlers on `greenhack::axum::serve`.
//!
//! Run it with `cargo bench -p greenhack-benches --bench serve`, on Linux. Servers
//! and the client are processes of their own. The nanoseconds of the first table
//! are CPU time of the server for one request; the second is what clients saw.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};
use greenhack::await_sync;
use greenhack_benches::{Case, Goal, Table};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// A trip to a database, as it were.
const TRIP: Duration = Duration::from_millis(1);

/// How long one of `STALL_EVERY` handlers computes in the stall mix.
const STALL: Duration = Duration::from_millis(20);
const STALL_EVERY: u64 = 200;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("server") => server(&arguments[2]),
        Some("client") => client(&arguments[2..]),
        _ => bench(),
    }
}

/// Ways to serve; the first is what the others are compared with.
const WAYS: [&str; 3] = ["async", "hop", "pinned"];

fn bench() {
    let table = Table::from_args();
    let servers = WAYS.map(Server::start);
    let latencies = RefCell::new(Vec::new());
    for (work, connections, requests) in [
        ("none", 64, 20_000),
        ("trips/1", 64, 10_000),
        ("trips/3", 64, 10_000),
        ("trips/10", 64, 5_000),
        ("body", 64, 20_000),
        ("none", 1000, 20_000),
        ("trips/3", 1000, 10_000),
        ("stalls", 64, 10_000),
    ] {
        let name = format!("serve {work}, {connections} connections");
        let mut case = Case::new(name.clone(), requests);
        for server in &servers {
            let (latencies, name) = (&latencies, name.clone());
            case = case.side(server.way, move |requests| {
                let before = server.cpu();
                let seen = server.load(work, connections, requests);
                latencies
                    .borrow_mut()
                    .push((name.clone(), server.way, seen));
                server.cpu() - before
            });
            if server.way == "pinned" && work != "stalls" {
                case = case.goal(Goal::Times(1.05));
            }
        }
        table.case(case);
    }
    print_latencies(&latencies.into_inner());
}

/// What the clients have seen: the median, the 99th percentile in µs, and
/// requests a second.
type Seen = [f64; 3];

fn print_latencies(latencies: &[(String, &str, Seen)]) {
    println!("\n| case | side | p50, µs | p99, µs | requests/s |");
    println!("|---|---|--:|--:|--:|");
    let mut cases: Vec<_> = latencies.iter().map(|(case, ..)| case).collect();
    cases.dedup();
    cases.sort();
    cases.dedup();
    for case in cases {
        for way in WAYS {
            let of_way = latencies
                .iter()
                .filter(|(name, side, _)| name == case && *side == way);
            let seen: Vec<_> = of_way.map(|(.., seen)| *seen).collect();
            let median = |index: usize| {
                let mut numbers: Vec<_> = seen.iter().map(|seen| seen[index]).collect();
                numbers.sort_by(f64::total_cmp);
                numbers[numbers.len() / 2]
            };
            println!(
                "| {case} | {way} | {:.0} | {:.0} | {:.0} |",
                median(0),
                median(1),
                median(2)
            );
        }
    }
}

/// A server, as a child process that ends with this.
struct Server {
    way: &'static str,
    child: Child,
    address: String,
}

impl Server {
    fn start(way: &'static str) -> Server {
        let mut child = this_program(&["server", way]);
        let mut address = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout)
            .read_line(&mut address)
            .expect("it says where it listens");
        Server {
            way,
            child,
            address: address.trim_end().to_owned(),
        }
    }

    /// The CPU time that it has taken, in ticks of 10 ms.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
            .expect("the server is alive");
        // After the name, which is in parentheses: utime is the 12th, stime the
        // 13th.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|field| field.parse().unwrap_or(0)).sum();
        Duration::from_millis(ticks * 10)
    }

    fn load(&self, work: &str, connections: u64, requests: u64) -> Seen {
        let numbers = [connections, requests].map(|number| number.to_string());
        let [connections, requests] = &numbers;
        let client = this_program(&["client", &self.address, work, connections, requests]);
        let output = client.wait_with_output().expect("it is a child");
        assert!(output.status.success(), "the client has failed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut numbers = text.split_whitespace().map(|number| number.parse());
        std::array::from_fn(|_| {
            let number = numbers.next().and_then(Result::ok);
            number.expect("the client prints three numbers")
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn this_program(arguments: &[&str]) -> Child {
    let program = std::env::current_exe().expect("the system knows it");
    Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can run again")
}

fn server(way: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("there are threads");
    let result = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        match way {
            "async" => axum::serve(listener, async_app()).await,
            "hop" => axum::serve(listener, plain_app()).await,
            _ => greenhack::axum::serve(listener, plain_app()).await,
        }
    });
    result.expect("it serves until it is killed");
}

fn async_app() -> Router {
    async fn trips(count: u64) -> &'static str {
        for _ in 0..count {
            sleep(TRIP).await;
        }
        "done"
    }

    async fn stalls() -> &'static str {
        sleep(TRIP).await;
        compute_sometimes();
        "done"
    }

    Router::new()
        .route("/none", get(async || "done"))
        .route("/trips/1", get(|| trips(1)))
        .route("/trips/3", get(|| trips(3)))
        .route("/trips/10", get(|| trips(10)))
        .route("/body", post(async |body: Bytes| body))
        .route("/stalls", get(stalls))
}

fn plain_app() -> Router {
    #[greenhack::entry]
    fn none() -> &'static str {
        "done"
    }

    fn trips(count: u64) -> impl Future<Output = &'static str> + Send {
        greenhack::run_sync(move || {
            for _ in 0..count {
                await_sync(async { sleep(TRIP).await });
            }
            "done"
        })
    }

    #[greenhack::entry]
    fn body(body: Bytes) -> Bytes {
        body
    }

    #[greenhack::entry]
    fn stalls() -> &'static str {
        await_sync(async { sleep(TRIP).await });
        compute_sometimes();
        "done"
    }

    Router::new()
        .route("/none", get(none))
        .route("/trips/1", get(|| trips(1)))
        .route("/trips/3", get(|| trips(3)))
        .route("/trips/10", get(|| trips(10)))
        .route("/body", post(body))
        .route("/stalls", get(stalls))
}

/// Computes for a while, once in `STALL_EVERY` calls.
fn compute_sometimes() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static CALLS: AtomicU64 = AtomicU64::new(0);
    if CALLS
        .fetch_add(1, Ordering::Relaxed)
        .is_multiple_of(STALL_EVERY)
    {
        let begin = Instant::now();
        while begin.elapsed() < STALL {
            std::hint::spin_loop();
        }
    }
}

/// Asks over many connections, each one request after the other.
fn client(arguments: &[String]) {
    let [address, work, connections, requests] = arguments else {
        panic!("client <address> <work> <connections> <requests>");
    };
    let connections: u64 = connections.parse().expect("a number");
    let requests: u64 = requests.parse().expect("a number");
    let request = match work.as_str() {
        "body" => format!(
            "POST /body HTTP/1.1\r\nHost: it\r\nContent-Length: 1024\r\n\r\n{}",
            "x".repeat(1024)
        ),
        work => format!("GET /{work} HTTP/1.1\r\nHost: it\r\n\r\n"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("there is a driver");
    let begin = Instant::now();
    let mut latencies = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for client in 0..connections {
            let share = requests / connections + u64::from(client < requests % connections);
            tasks.spawn(ask(address.clone(), request.clone(), share));
        }
        tasks.join_all().await.concat()
    });
    let elapsed = begin.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    println!("{} {} {}", at(50), at(99), requests as f64 / elapsed);
}

async fn ask(address: String, request: String, count: u64) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.set_nodelay(true).expect("it is a TCP stream");
    let mut buffer = vec![0; 4096];
    let mut latencies = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        stream
            .write_all(request.as_bytes())
            .await
            .expect("it is open");
        let mut length = 0;
        while !is_whole(&buffer[..length]) {
            let read = stream.read(&mut buffer[length..]).await;
            match read.expect("it answers") {
                0 => panic!("it hangs up"),
                read => length += read,
            }
        }
        latencies.push(begin.elapsed());
    }
    latencies
}

/// Whether this is all of an answer.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    length.and_then(|length| length.parse().ok()) == Some(body.len())
}
