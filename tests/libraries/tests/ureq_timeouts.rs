//! Timeouts of ureq, by tokio's clock. It is paused, and goes on when all wait.

#[path = "support/server.rs"]
mod server;
#[path = "../../support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use greenhack::run_sync_local;
use greenhack::ureq::TcpConnector;
use server::{answer, config, listen, read_header};
use support::{current_thread, in_each_place, paused};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;
use ureq::config::{Config, ConfigBuilder};
use ureq::http::Uri;
use ureq::typestate::AgentScope;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, NextTimeout};
use ureq::{Agent, Error, Timeout};

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// The timeout that a request ends with at a server which goes so far.
fn timeout_of(
    config: ConfigBuilder<AgentScope>,
    server: impl AsyncFn(TcpStream),
    request: impl FnOnce(&Agent, &str) -> Result<String, Error> + 'static,
) -> Timeout {
    paused().block_on(async {
        let (listener, url) = listen().await;
        let agent = greenhack::ureq::agent_with(config.build());
        let start = Instant::now();
        let run = run_sync_local(move || request(&agent, &url).unwrap_err());
        let server = async {
            loop {
                server(listener.accept().await.unwrap().0).await;
            }
        };
        let error = tokio::select! {
            error = run => error,
            () = server => unreachable!(),
        };
        assert!(
            start.elapsed() >= Duration::from_secs(59),
            "{:?}",
            start.elapsed()
        );
        let Error::Timeout(timeout) = error else {
            panic!("{error:?}")
        };
        timeout
    })
}

/// Keeps the connection, and says no more.
async fn silence() {
    std::future::pending().await
}

#[test]
fn smoke() {
    in_each_place(|place| async move {
        let (listener, url) = listen().await;
        let agent = greenhack::ureq::agent_with(
            config()
                .timeout_global(Some(Duration::from_millis(1)))
                .build(),
        );
        let error = place.spawn(move || server::get(&agent, &url).unwrap_err());
        let error = error.await.unwrap();
        assert!(matches!(error, Error::Timeout(Timeout::Global)), "{error}");
        drop(listener);
    });
}

#[test]
fn a_server_without_an_answer_meets_each_timeout_that_covers_it() {
    let settings: [(ConfigBuilder<AgentScope>, Timeout); 4] = [
        (config().timeout_global(MINUTE), Timeout::Global),
        (config().timeout_per_call(MINUTE), Timeout::PerCall),
        (
            config().timeout_recv_response(MINUTE),
            Timeout::RecvResponse,
        ),
        (config().timeout_per_read(MINUTE), Timeout::PerRead),
    ];
    for (config, expected) in settings {
        let timeout = timeout_of(
            config,
            async |mut stream| {
                read_header(&mut stream).await;
                silence().await;
            },
            server::get,
        );
        assert_eq!(timeout, expected);
    }
}

#[test]
fn a_body_that_stops_half_way_meets_its_timeout() {
    let timeout = timeout_of(
        config().timeout_recv_body(MINUTE),
        async |mut stream| {
            read_header(&mut stream).await;
            let half = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nsoup";
            stream.write_all(half.as_bytes()).await.unwrap();
            silence().await;
        },
        server::get,
    );
    assert_eq!(timeout, Timeout::RecvBody);
}

#[test]
fn a_body_that_nobody_reads_meets_its_timeout() {
    for (config, expected) in [
        (config().timeout_send_body(MINUTE), Timeout::SendBody),
        (config().timeout_per_write(MINUTE), Timeout::PerWrite),
    ] {
        let timeout = timeout_of(
            config,
            async |_stream| silence().await,
            |agent, url| {
                let body = vec![b'x'; 64 << 20];
                agent.post(url).send(&body[..]).map(|_| String::new())
            },
        );
        assert_eq!(timeout, expected);
    }
}

#[test]
fn a_body_is_sent_when_no_leave_to_go_on_comes() {
    paused().block_on(async {
        let (listener, url) = listen().await;
        let agent = server::agent();
        let run = run_sync_local(move || {
            let request = agent.post(&url).header("expect", "100-continue");
            let mut response = request.send("rice").unwrap();
            response.body_mut().read_to_string().unwrap()
        });
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_header(&mut stream).await;
            let mut body = [0; 4];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut body)
                .await
                .unwrap();
            assert_eq!(&body, b"rice");
            answer(&mut stream, "soup").await;
        };
        let (text, ()) = tokio::join!(run, server);
        assert_eq!(text, "soup");
    });
}

#[test]
fn an_agent_is_as_good_as_before_after_a_timeout() {
    current_thread().block_on(async {
        let (listener, url) = listen().await;
        let agent = server::agent();
        let run = run_sync_local(move || {
            let hurried = agent
                .get(&url)
                .config()
                .timeout_global(Some(Duration::from_millis(1)))
                .build();
            let error = hurried.call().unwrap_err();
            assert!(matches!(error, Error::Timeout(Timeout::Global)), "{error}");
            server::get(&agent, &url).unwrap()
        });
        let server = async {
            let (silent, _) = listener.accept().await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            read_header(&mut stream).await;
            answer(&mut stream, "soup").await;
            drop(silent);
        };
        let (text, ()) = tokio::join!(run, server);
        assert_eq!(text, "soup");
    });
}

/// Addresses for whatever is asked for.
#[derive(Debug)]
struct Fixed(Vec<SocketAddr>);

impl Resolver for Fixed {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addrs = self.empty();
        self.0.iter().for_each(|addr| addrs.push(*addr));
        Ok(addrs)
    }
}

fn agent_to(config: Config, addrs: Vec<SocketAddr>) -> Agent {
    let connector = ().chain(TcpConnector::default());
    Agent::with_parts(config, connector, Fixed(addrs))
}

/// An address at which attempts to connect neither succeed nor fail: the queue of
/// the listener is full, and Linux passes over what comes then.
#[cfg(target_os = "linux")]
async fn black_hole() -> (SocketAddr, impl Drop) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = VecDeque::new();
    for _ in 0..2 {
        waiting.push_back(TcpStream::connect(address).await.unwrap());
    }
    struct Kept(#[allow(dead_code)] (TcpListener, Mutex<VecDeque<TcpStream>>));
    impl Drop for Kept {
        fn drop(&mut self) {}
    }
    (address, Kept((listener, Mutex::new(waiting))))
}

#[test]
#[cfg(target_os = "linux")]
fn an_address_without_an_answer_meets_the_timeout_of_connecting() {
    paused().block_on(async {
        let (hole, _kept) = black_hole().await;
        let agent = agent_to(config().timeout_connect(MINUTE).build(), vec![hole, hole]);
        let error = run_sync_local(move || server::get(&agent, "http://kitchen/").unwrap_err());
        let error = error.await;
        assert!(matches!(error, Error::Timeout(Timeout::Connect)), "{error}");
    });
}

#[test]
#[cfg(target_os = "linux")]
fn the_next_address_does_not_wait_for_one_without_an_answer() {
    paused().block_on(async {
        let (hole, _kept) = black_hole().await;
        let (listener, _) = listen().await;
        let addrs = vec![hole, hole, listener.local_addr().unwrap(), hole];
        let agent = agent_to(config().build(), addrs);
        let start = Instant::now();
        let run = run_sync_local(move || server::get(&agent, "http://kitchen/").unwrap());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let elapsed = start.elapsed();
            read_header(&mut stream).await;
            answer(&mut stream, "soup").await;
            elapsed
        };
        let (text, elapsed) = tokio::join!(run, server);
        assert_eq!(text, "soup");
        assert_eq!(elapsed.as_millis() / 250, 2, "{elapsed:?}");
    });
}

#[test]
fn addresses_are_tried_until_one_answers() {
    current_thread().block_on(async {
        let (gone, _) = listen().await;
        let closed = gone.local_addr().unwrap();
        drop(gone);
        let (listener, _) = listen().await;
        let agent = agent_to(
            config().build(),
            vec![closed, closed, listener.local_addr().unwrap()],
        );
        let run = run_sync_local(move || server::get(&agent, "http://kitchen/").unwrap());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_header(&mut stream).await;
            answer(&mut stream, "soup").await;
        };
        assert_eq!(tokio::join!(run, server).0, "soup");

        let agent = agent_to(config().build(), vec![closed; 3]);
        let error = run_sync_local(move || server::get(&agent, "http://kitchen/").unwrap_err());
        assert!(matches!(error.await, Error::Io(_)));
    });
}
