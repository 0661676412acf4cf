//! The websocket of a guest: plain tungstenite on an upgraded connection.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use greenhack::{await_sync, run_sync};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tracing::{Instrument, info, info_span};
use tungstenite::handshake::server::create_response;
use tungstenite::protocol::Role;
use tungstenite::{Error, Message, WebSocket};

use crate::App;
use crate::orders::Order;

/// Whose news to tell.
#[derive(Debug, Deserialize)]
pub(crate) struct Filter {
    guest: Option<String>,
}

/// Answers the handshake; a run of its own takes the connection.
pub(crate) async fn listen(
    State(app): State<App>,
    Query(filter): Query<Filter>,
    request: Request,
) -> Response {
    let mut request = request.map(|_body| ());
    let upgraded = hyper::upgrade::on(&mut request);
    let response = match create_response(&request) {
        Ok(response) => response,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    // What is told from now on is heard, even before the handshake ends.
    let news = app.news.subscribe();
    let guest = filter.guest;
    let span = info_span!("news", guest);
    let run = run_sync(move || {
        let Ok(upgraded) = await_sync(upgraded) else {
            return;
        };
        let line = Line {
            stream: TokioIo::new(upgraded),
            news,
            heard: VecDeque::new(),
        };
        let told = tell(WebSocket::from_raw_socket(line, Role::Server, None), guest);
        info!(?told, "the guest has gone");
    });
    tokio::spawn(run.instrument(span));
    response.map(|()| Body::empty())
}

/// Tells a guest of their orders, until they go.
fn tell(mut socket: WebSocket<Line>, guest: Option<String>) -> tungstenite::Result<()> {
    loop {
        match socket.read() {
            Ok(_) => {}
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(Error::ConnectionClosed) => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(order) = socket.get_mut().heard.pop_front() {
            if guest.as_ref().is_none_or(|guest| *guest == order.guest) {
                socket.send(Message::text(to_json(&order)))?;
            }
        }
    }
}

fn to_json(order: &Order) -> String {
    serde_json::to_string(order).expect("an order has plain fields")
}

/// The connection, and what was heard meanwhile.
struct Line {
    stream: TokioIo<Upgraded>,
    news: Receiver<Order>,
    heard: VecDeque<Order>,
}

impl Read for Line {
    /// Waits for two things at once: what the guest says, and what there is to
    /// tell. For the latter it returns `WouldBlock`, which tungstenite passes on.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        await_sync(async {
            tokio::select! {
                read = self.stream.read(buf) => read,
                news = self.news.recv() => {
                    match news {
                        Ok(order) => self.heard.push_back(order),
                        // A guest who is so slow has a gap in the news.
                        Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => return Ok(0),
                    }
                    Err(io::ErrorKind::WouldBlock.into())
                }
            }
        })
    }
}

impl Write for Line {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        await_sync(self.stream.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        await_sync(self.stream.flush())
    }
}
