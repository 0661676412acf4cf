//! The example service, from outside: a process, sockets, HTTP, its log.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// How long a test waits for what must happen.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn smoke() {
    let service = Service::start();
    let answer = service.get("/");
    assert_eq!(answer.status, 200);
    let line = format!("curl {}/menu/soup ", service.address);
    assert!(answer.body.contains(&line), "{}", answer.body);
}

#[test]
fn an_order_goes_through_the_book_and_the_kitchen() {
    let service = Service::start();
    let soup = service.get("/menu/soup");
    assert_eq!(
        (soup.status, &*soup.body),
        (200, "order 1: a plate of soup, 4 shells\n")
    );
    assert!(
        service
            .log_with("kitchen: ")
            .ends_with("soup is on the fire")
    );
    assert!(service.log_with("kitchen: ").ends_with("soup is ready"));
    let stew = service.get("/menu/stew");
    assert_eq!(
        (stew.status, &*stew.body),
        (200, "order 2: a plate of stew, 12 shells\n")
    );
}

#[test]
fn an_error_of_a_plain_function_is_answered() {
    let service = Service::start();
    let pizza = service.get("/menu/pizza");
    assert_eq!(
        (pizza.status, &*pizza.body),
        (404, "there is no pizza today\n")
    );
}

#[test]
fn a_panic_is_answered_500_and_the_connection_goes_on() {
    let service = Service::start();
    let mut connection = service.connect();
    for _ in 0..2 {
        let fugu = connection.get("/fugu");
        assert_eq!((fugu.status, &*fugu.body), (500, "that is our fault\n"));
        service.log_with("the cook has tasted the fugu");
        service.log_with("/fugu: panicked");
        assert_eq!(connection.get("/kitchen/soup").body, "a plate of soup");
    }
}

#[test]
fn a_stream_arrives_whole() {
    let service = Service::start();
    let belt = service.get("/belt/100");
    let plates: Vec<_> = (1..=100).map(|plate| format!("plate {plate}")).collect();
    assert_eq!(belt.status, 200);
    assert!(belt.body.lines().eq(&plates), "{}", belt.body);
    service.log_with("belt: served 100 plates");
}

#[test]
fn a_stream_arrives_in_chunks_and_ends_when_its_reader_has_gone() {
    let service = Service::start();
    let mut connection = service.connect();
    // More than could ever be served, or held in memory, before it arrives.
    connection.ask("/belt/1000000000000");
    let head = connection.head();
    assert!(
        head.contains(&"transfer-encoding: chunked".to_owned()),
        "{head:?}"
    );
    assert_eq!(connection.chunk(), "plate 1\n");
    assert_eq!(connection.chunk(), "plate 2\n");
    drop(connection);
    service.log_with("belt: stopped at plate ");
    assert_eq!(service.get("/kitchen/soup").status, 200);
}

#[test]
fn a_hang_up_unwinds_the_handler_and_its_destructor_waits() {
    let service = Service::start();
    let mut connection = service.connect();
    connection.ask("/feast");
    service.log_with("feast: the starter is served");
    drop(connection);
    service.log_with("feast: unwinding, the guest has gone");
    service.log_with("feast: the table is cleared");
    assert_eq!(service.get("/kitchen/soup").status, 200);
}

#[test]
fn two_hundred_handlers_wait_at_once() {
    let service = Service::start();
    let mut connections: Vec<_> = (0..200).map(|_| service.connect()).collect();
    for connection in &mut connections {
        connection.ask("/kitchen/stew");
    }
    for connection in &mut connections {
        assert_eq!(connection.answer().body, "a plate of stew");
    }
    // What is on the fire, from line to line of the log.
    let (mut now, mut peak) = (0, 0);
    for _ in 0..400 {
        if service.log_with("kitchen: stew").ends_with("on the fire") {
            now += 1;
            peak = peak.max(now);
        } else {
            now -= 1;
        }
    }
    let workers = thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(now, 0);
    assert!(
        peak > workers,
        "{workers} workers have cooked {peak} at once"
    );
}

#[test]
#[cfg(unix)]
fn ctrl_c_unwinds_what_does_not_end_in_time() {
    let mut service = Service::start();
    let mut connection = service.connect();
    connection.ask("/feast");
    service.log_with("feast: the starter is served");
    let pid = service.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    service.log_with("feast: unwinding, the guest has gone");
    service.log_with("feast: the table is cleared");
    assert!(service.child.wait().unwrap().success());
    let panics: Vec<_> = service.log.try_iter().collect();
    assert!(panics.is_empty(), "{panics:?}");
}

/// The service, as a child process that ends with this.
struct Service {
    child: Child,
    address: String,
    log: Receiver<String>,
    seen: RefCell<Vec<String>>,
    /// Kept open, so that the service can print.
    _stdout: BufReader<ChildStdout>,
}

impl Service {
    fn start() -> Service {
        // From `target/debug/deps/example_service-0123`.
        let deps = std::env::current_exe().unwrap();
        let profile = deps.parent().unwrap().parent().unwrap();
        let file = format!("service{}", std::env::consts::EXE_SUFFIX);
        let mut child = Command::new(profile.join("examples").join(file))
            .envs([("PORT", "0"), ("NO_COLOR", "1"), ("RUST_BACKTRACE", "0")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("write `cargo build --example service` before this; `cargo test` does");

        let (sender, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });

        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on http://");
        Service {
            address: address.expect("the first line says where").to_owned(),
            child,
            log,
            seen: RefCell::default(),
            _stdout: stdout,
        }
    }

    /// Waits for the next line of the log that contains `words`.
    #[track_caller]
    fn log_with(&self, words: &str) -> String {
        loop {
            let Ok(line) = self.log.recv_timeout(LIMIT) else {
                panic!("no line with {words:?} after {:#?}", self.seen.borrow());
            };
            self.seen.borrow_mut().push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    fn connect(&self) -> Connection {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Connection(BufReader::new(stream))
    }

    fn get(&self, path: &str) -> Answer {
        self.connect().get(path)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The client's end of a connection.
struct Connection(BufReader<TcpStream>);

struct Answer {
    status: u16,
    body: String,
}

impl Connection {
    fn get(&mut self, path: &str) -> Answer {
        self.ask(path);
        self.answer()
    }

    fn ask(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
    }

    fn answer(&mut self) -> Answer {
        let head = self.head();
        let status = head[0].split(' ').nth(1).unwrap().parse().unwrap();
        let mut lengths = head
            .iter()
            .filter_map(|line| line.strip_prefix("content-length: "));
        let body = match lengths.next() {
            Some(length) => self.exactly(length.parse().unwrap()),
            None => {
                let chunks = std::iter::repeat_with(|| self.chunk());
                chunks.take_while(|chunk| !chunk.is_empty()).collect()
            }
        };
        Answer { status, body }
    }

    /// Reads the status line and the headers.
    fn head(&mut self) -> Vec<String> {
        let lines = std::iter::repeat_with(|| self.line());
        lines.take_while(|line| !line.is_empty()).collect()
    }

    /// Reads a chunk of the body; the last one is empty.
    fn chunk(&mut self) -> String {
        let length = usize::from_str_radix(&self.line(), 16).unwrap();
        let chunk = self.exactly(length);
        assert_eq!(self.line(), "");
        chunk
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.strip_suffix("\r\n")
            .expect("the connection is open")
            .to_owned()
    }

    fn exactly(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }
}
