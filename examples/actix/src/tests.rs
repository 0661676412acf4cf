//! The server from outside, on real sockets.

use std::future::pending;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Sender};

use actix_web::rt::System;
use actix_web::rt::task::spawn_blocking;
use actix_web::web::get;
use greenhack::{await_sync, run_sync, workers};

use super::*;

/// Asks over one connection, which stays on its worker.
fn ask(address: SocketAddr, paths: &[&str]) -> Vec<String> {
    let mut stream = TcpStream::connect(address).unwrap();
    for path in paths {
        let request = format!("GET {path} HTTP/1.1\r\nHost: it\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let answers = answers.split("HTTP/1.1 ").skip(1).map(|answer| {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("200 "), "{head}");
        body.to_owned()
    });
    answers.collect()
}

/// Serves while `client` asks.
fn serve_while(client: impl FnOnce(SocketAddr) + Send + 'static) {
    System::new().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = serve(listener).unwrap();
        let handle = server.handle();
        let server = actix_web::rt::spawn(server);
        spawn_blocking(move || client(address)).await.unwrap();
        handle.stop(true).await;
        server.await.unwrap().unwrap();
    });
}

#[test]
fn handlers_run_in_place() {
    serve_while(|address| {
        assert_eq!(
            ask(address, &["/turn", "/soup/Ada", "/turn"]),
            [
                "turn 0, in place: true",
                "soup for Ada, in place: true",
                "turn 1, in place: true",
            ]
        );
        // More connections, so that both workers get some.
        for _ in 0..4 {
            let answers = ask(address, &["/turn", "/soup/Bob"]);
            assert!(answers[0].ends_with("in place: true"), "{}", answers[0]);
            assert_eq!(answers[1], "soup for Bob, in place: true");
        }
    });
    // They start once, with the first run that hops; none has.
    workers::Builder::new().threads(1).start().unwrap();
}

#[test]
fn a_stop_unwinds_a_handler_that_waits() {
    struct Waits(Sender<ThreadId>);

    impl Drop for Waits {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).unwrap();
        }
    }

    let (sender, threads) = mpsc::channel();
    let wait_for_ever = move || {
        let sender = sender.clone();
        run_sync(move || {
            sender.send(thread::current().id()).unwrap();
            let _waits = Waits(sender);
            await_sync(pending::<()>());
            "never"
        })
    };
    let app = move || App::new().route("/", get().to(wait_for_ever.clone()));
    System::new().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let server = HttpServer::new(app).workers(1).listen(listener).unwrap();
        let server = server.run();
        let handle = server.handle();
        let server = actix_web::rt::spawn(server);
        let (threads, begun) = spawn_blocking(move || {
            let begun = threads.recv().unwrap();
            (threads, begun)
        })
        .await
        .unwrap();
        handle.stop(false).await;
        server.await.unwrap().unwrap();
        let unwound = spawn_blocking(move || threads.recv().unwrap());
        assert_eq!(unwound.await.unwrap(), begun);
    });
    assert_eq!(greenhack::leaked_runs(), 0);
}
