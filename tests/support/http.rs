//! A client of HTTP/1.1, as plain as can be.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a test waits for what must happen.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The client's end of a connection.
pub struct Client<S: Read + Write>(pub BufReader<S>);

impl Client<TcpStream> {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Client::new(stream)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.get_ref().local_addr().unwrap()
    }
}

impl<S: Read + Write> Client<S> {
    pub fn new(stream: S) -> Self {
        Client(BufReader::new(stream))
    }

    /// Asks for a page, and returns the status and the body of the answer.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> (u16, String) {
        self.ask(path);
        self.answer()
    }

    pub fn ask(&mut self, path: &str) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    }

    pub fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    pub fn answer(&mut self) -> (u16, String) {
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
        (status, body)
    }

    /// Reads the status line and the headers.
    #[track_caller]
    pub fn head(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.line() {
                line if line.is_empty() => return lines,
                line => lines.push(line),
            }
        }
    }

    /// Reads a chunk of the body; the last one is empty.
    pub fn chunk(&mut self) -> String {
        let length = usize::from_str_radix(&self.line(), 16).unwrap();
        let chunk = self.exactly(length);
        assert_eq!(self.line(), "");
        chunk
    }

    /// Whether the server has closed the connection; waits until it does or
    /// says something.
    pub fn is_closed(&mut self) -> bool {
        self.0.fill_buf().map_or(true, |bytes| bytes.is_empty())
    }

    #[track_caller]
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
