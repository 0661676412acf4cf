//! The program, as the README starts it: a process, what it prints, its log, and its
//! end.
#![cfg(unix)]

mod support;

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use greenhack::await_sync;
use serde_json::{Value, json};
use support::{Database, request, send};
use tungstenite::WebSocket;

/// How long a test waits for what must happen.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn what_it_prints_can_be_tried() {
    let database = Database::sqlite("program");
    let program = Program::start(&database);
    let guide = &program.guide;
    let first = format!(
        "A restaurant with its order book in `{}`. Open {}/ and try:",
        database.url, program.url
    );
    assert_eq!(guide[0], first);
    let (status, page) = await_sync(request(program.address, "GET /", String::new()));
    assert_eq!(status, 200);
    assert!(page.as_str().unwrap().starts_with("<!doctype html>"));

    assert_eq!(guide[1], format!("  curl {}/orders", program.url));
    assert_eq!(program.orders(), json!([]));

    let mut socket = program.listen();
    for (line, expected) in guide[2..5].iter().zip([201, 422, 502]) {
        let body = program.order_in(line);
        let (status, answer) = await_sync(request(program.address, "POST /orders", body));
        assert_eq!(status, expected, "{line}: {answer}");
    }
    for state in ["placed", "cooking", "placed", "refused"] {
        let text = socket.read().unwrap().into_text().unwrap();
        let order: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(order["state"], state);
    }

    // The last one is not answered.
    let body = program.order_in(&guide[5]);
    let hanging = await_sync(send(program.address, "POST /orders", body));
    let heard = socket.read().unwrap().into_text().unwrap();
    assert!(heard.contains("\"placed\""), "{heard}");
    let (status, stacks) = await_sync(request(program.address, "GET /stacks", String::new()));
    assert_eq!(status, 200);
    let waits = "- `kitchen::food_delivery` waits at ";
    assert!(stacks.as_str().unwrap().contains(waits), "{stacks}");
    drop(hanging);
    let heard = socket.read().unwrap().into_text().unwrap();
    assert!(heard.contains("\"cancelled\""), "{heard}");
    drop(socket);
    let states: Vec<_> = program
        .orders()
        .as_array()
        .unwrap()
        .iter()
        .map(|order| order["state"].clone())
        .collect();
    assert_eq!(states, ["cancelled", "refused", "cooking"]);
    program.end();
}

#[test]
fn its_log_has_the_spans_and_the_order() {
    let database = Database::sqlite("log");
    let program = Program::start(&database);
    let body = program.order_in(&program.guide[2]);
    let (_, placed) = await_sync(request(program.address, "POST /orders", body));
    let line = program.log_with("placed");
    assert_eq!(line["fields"]["order"], placed["id"]);
    assert_eq!(line["fields"]["guest"], "Ada");
    assert_eq!(line["spans"], json!([{"name": "food_delivery"}]));
    // A plain function below the handler.
    let line = program.log_with("the kitchen is cooking");
    let spans = json!([{"name": "food_delivery"}, {"name": "ask", "order": placed["id"]}]);
    assert_eq!(line["spans"], spans);
    let line = program.log_with("settled");
    assert_eq!(line["fields"]["order"], placed["id"]);
    assert_eq!(line["fields"]["state"], "cooking");
    program.end();
}

#[test]
fn a_wrong_port_is_its_last_word() {
    let output = Command::new(env!("CARGO_BIN_EXE_kitchen"))
        .env("PORT", "http")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("PORT=http is no port: "), "{said}");
}

/// The program, which ends with this.
struct Program {
    child: Child,
    address: SocketAddr,
    url: String,
    /// What it has printed.
    guide: Vec<String>,
    log: Receiver<String>,
    seen: RefCell<Vec<String>>,
    /// Kept open, so that it can print.
    _stdout: BufReader<ChildStdout>,
}

impl Program {
    fn start(database: &Database) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kitchen"))
            .envs([
                ("PORT", "0"),
                ("DATABASE_URL", database.url.as_str()),
                ("LOG", "json"),
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");

        let (sender, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });

        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut guide = Vec::new();
        while guide.len() < 7 {
            let mut line = String::new();
            let read = stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "it has ended after {guide:#?}");
            guide.push(line.trim_end().to_owned());
        }
        let (_, rest) = guide[0].split_once("http://").expect("it says where");
        let (address, _) = rest.split_once('/').expect("a page has a path");
        Program {
            child,
            address: address.parse().expect("an address and a port"),
            url: format!("http://{address}"),
            guide,
            log,
            seen: RefCell::default(),
            _stdout: stdout,
        }
    }

    /// The order that a line of the guide sends.
    #[track_caller]
    fn order_in(&self, line: &str) -> String {
        let header = "-H content-type:application/json";
        let command = format!("  curl {}/orders {header} -d '", self.url);
        let order = line.strip_prefix(&command);
        let order = order.and_then(|order| order.strip_suffix('\''));
        order.unwrap_or_else(|| panic!("{line}")).to_owned()
    }

    /// What is in the book, the latest first.
    fn orders(&self) -> Value {
        let (status, orders) = await_sync(request(self.address, "GET /orders", String::new()));
        assert_eq!(status, 200);
        orders
    }

    /// Listens to the news of all guests, with a client that blocks.
    fn listen(&self) -> WebSocket<TcpStream> {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let url = format!("ws://{}/news", self.address);
        tungstenite::client(url, stream).unwrap().0
    }

    /// Waits for the next line of the log with the message.
    #[track_caller]
    fn log_with(&self, message: &str) -> Value {
        loop {
            let Ok(line) = self.log.recv_timeout(LIMIT) else {
                panic!("no {message:?} after {:#?}", self.seen.borrow());
            };
            let event: Value = serde_json::from_str(&line).expect("a line of JSON");
            self.seen.borrow_mut().push(line);
            if event["fields"]["message"] == message {
                return event;
            }
        }
    }

    /// Stops it as ctrl-c does, and waits until it has ended well.
    fn end(mut self) {
        let kill = format!("kill -INT {}", self.child.id());
        let killed = Command::new("sh").args(["-c", &kill]).status();
        assert!(killed.unwrap().success());
        // Its log ends when it does.
        let ended = loop {
            match self.log.recv_timeout(LIMIT) {
                Ok(line) => self.seen.borrow_mut().push(line),
                Err(ended) => break ended,
            }
        };
        assert_eq!(ended, RecvTimeoutError::Disconnected);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {:#?}", self.seen.borrow());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
