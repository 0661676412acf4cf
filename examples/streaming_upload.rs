//! Plain csv, flate2 and serde_json in a handler, on bodies that stream both ways.
//!
//! - Run it: `cargo run --features io --example streaming_upload`. It ends.
//! - Try it: add orders; or leave a number out, and see the answer.
//! - It prints the answer: `{"rice":7,"soup":8}`.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;

use axum::{Router, body::Body, http::StatusCode, routing::post};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use greenhack::await_sync;
use greenhack::io::{StreamReader, SyncIoBridge, body};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/", post(totals));
    tokio::spawn(async { axum::serve(listener, app).await });
    let answer = upload(address, "dish,plates\nsoup,3\nrice,7\nsoup,5\n").await;
    let answer = answer.unwrap();
    println!("{answer}");
    assert_eq!(answer, r#"{"rice":7,"soup":8}"#);
}

#[greenhack::entry]
fn totals(upload: Body) -> Result<Body, (StatusCode, String)> {
    let upload = StreamReader::new(upload.into_data_stream());
    let mut totals = BTreeMap::<String, u64>::new();
    for order in csv::Reader::from_reader(upload).deserialize::<(String, u64)>() {
        let (dish, plates) = order.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        *totals.entry(dish).or_default() += plates;
    }
    Ok(Body::from_stream(body(move |out| {
        let mut out = GzEncoder::new(out, Compression::fast());
        serde_json::to_writer(&mut out, &totals)?;
        out.finish().map(drop)
    })))
}

#[greenhack::entry]
fn upload(address: SocketAddr, csv: &'static str) -> io::Result<String> {
    let mut socket = SyncIoBridge::new(await_sync(TcpStream::connect(address))?);
    write!(
        socket,
        "POST / HTTP/1.0\r\ncontent-length: {}\r\n\r\n{csv}",
        csv.len()
    )?;
    let mut answer = BufReader::new(socket);
    while answer.read_line(&mut String::new())? > "\r\n".len() {}
    io::read_to_string(GzDecoder::new(answer))
}

#[test]
fn runs() {
    main();
}
