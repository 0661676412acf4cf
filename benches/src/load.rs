//! Servers and clients as processes of their own, so that each one's CPU time can
//! be told. They are the program that measures, called again with a role. For Linux.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

/// The role of [`client`].
pub const CLIENT: &str = "client";

/// A server, as a child process that ends with this.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Starts this program with the arguments; the first line that it prints is where
    /// it listens.
    pub fn start(arguments: &[&str]) -> Server {
        Server::start_on(None, arguments)
    }

    /// As [`start`](Self::start), on that core alone, if one is named.
    pub fn start_on(core: Option<&str>, arguments: &[&str]) -> Server {
        let mut child = this_program(core, arguments);
        let mut address = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout)
            .read_line(&mut address)
            .expect("it says where it listens");
        Server {
            child,
            address: address.trim_end().to_owned(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The CPU time that it has taken, user and system, in ticks of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
            .expect("the server is alive");
        // After the name, which is in parentheses: utime is the 12th, stime the
        // 13th.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|field| field.parse().unwrap_or(0)).sum();
        Duration::from_millis(ticks * 10)
    }

    /// The CPU time that its threads have taken, in nanoseconds. For servers none of
    /// whose threads end: what those took is not in it.
    pub fn cpu_of_threads(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let nanos = threads.expect("the server is alive").map(|thread| {
            let path = thread
                .expect("the server is alive")
                .path()
                .join("schedstat");
            let text = std::fs::read_to_string(path).expect("the system counts");
            let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
            nanos.unwrap_or(0)
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Sends it so many requests over so many connections. A connection always sends
    /// the same; the first connections send the first of `kinds`, and so on, in turn.
    /// What is seen is that of the connections that send the last.
    ///
    /// A connection sends a request each `interval`, or when it has the answer to the
    /// last, if that is later. How long an answer takes is counted from when its request
    /// was due.
    ///
    /// # Panics
    ///
    /// If an answer is not one of success.
    pub fn load(
        &self,
        kinds: &[&str],
        connections: u64,
        requests: u64,
        interval: Duration,
    ) -> Seen {
        let interval = interval.as_micros().try_into().expect("no such patience");
        let numbers = [connections, requests, interval].map(|number| number.to_string());
        let numbers = numbers.each_ref().map(String::as_str);
        let arguments = [&[CLIENT, &self.address], &numbers[..], kinds].concat();
        let client = this_program(None, &arguments);
        let output = client.wait_with_output().expect("it is a child");
        assert!(output.status.success(), "the client has failed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut numbers = text.split_whitespace().map(|number| number.parse());
        let mut next = || {
            let number = numbers.next().and_then(Result::ok);
            number.expect("the client prints three numbers")
        };
        Seen {
            median: next(),
            percentile_99: next(),
            per_second: next(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the clients have seen: how long answers took, in µs, and how many there were.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Half of the answers took less.
    pub median: f64,
    /// All but a hundredth took less.
    pub percentile_99: f64,
    /// How many answers there were in a second.
    pub per_second: f64,
}

fn this_program(core: Option<&str>, arguments: &[&str]) -> Child {
    let program = std::env::current_exe().expect("the system knows it");
    let mut command = match core {
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["-c", core]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can run again")
}

/// What a program does that is called with [`CLIENT`] and these arguments.
///
/// # Panics
///
/// If the arguments are wrong, or an answer.
pub fn client(arguments: &[String]) {
    let [address, connections, requests, interval, kinds @ ..] = arguments else {
        panic!("client <address> <connections> <requests> <interval in µs> <request>...");
    };
    let numbers = [connections, requests, interval];
    let [connections, requests, interval] =
        numbers.map(|number| number.parse::<u64>().expect("a number"));
    let interval = Duration::from_micros(interval);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("there is a driver");
    let begin = Instant::now();
    let mut latencies = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for client in 0..connections {
            let share = requests / connections + u64::from(client < requests % connections);
            let kind = client as usize % kinds.len();
            let first = Instant::now() + interval * client as u32 / connections as u32;
            let asked = ask(address.clone(), kinds[kind].clone(), share, first, interval);
            let is_seen = kind == kinds.len() - 1;
            tasks.spawn(async move {
                let latencies = asked.await;
                if is_seen { latencies } else { Vec::new() }
            });
        }
        tasks.join_all().await.concat()
    });
    let elapsed = begin.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    println!("{} {} {}", at(50), at(99), requests as f64 / elapsed);
}

async fn ask(
    address: String,
    request: String,
    count: u64,
    first: Instant,
    interval: Duration,
) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.set_nodelay(true).expect("it is a TCP stream");
    let mut buffer = vec![0; 4096];
    let mut latencies = Vec::new();
    let mut due = first;
    for _ in 0..count {
        if interval.is_zero() {
            due = Instant::now();
        } else {
            sleep_until(due.into()).await;
        }
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
        latencies.push(due.elapsed());
        due += interval;
    }
    latencies
}

/// Whether this is all of an answer.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    assert!(head.starts_with("HTTP/1.1 2"), "{head}\n\n{body}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    length.and_then(|length| length.parse().ok()) == Some(body.len())
}
