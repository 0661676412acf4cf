//! TLS by ureq's rustls, and proxies.

#[path = "support/server.rs"]
mod server;
#[path = "../../support/mod.rs"]
mod support;

use axum::Router;
use axum::routing::{get, post};
use greenhack::run_sync_local;
use server::{Server, agent, config, listen, read_header};
use support::{current_thread, in_each_place};
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Error, Proxy};

fn kitchen() -> Router {
    Router::new()
        .route("/", get(|| async { "soup" }))
        .route("/echo", post(|body: axum::body::Bytes| async { body }))
}

/// Settings that trust this certificate alone.
fn trusting(certificate: &[u8]) -> TlsConfig {
    let roots = RootCerts::new_with_certs(&[Certificate::from_der(certificate).to_owned()]);
    TlsConfig::builder().root_certs(roots).build()
}

#[test]
fn smoke() {
    in_each_place(|place| async move {
        let (kitchen, certificate) = Server::start_tls(kitchen()).await;
        let config = config().tls_config(trusting(&certificate)).https_only(true);
        let agent = greenhack::ureq::agent_with(config.build());
        for _ in 0..3 {
            let (agent, url) = (agent.clone(), kitchen.url("/"));
            let run = place.spawn(move || server::get(&agent, &url).unwrap());
            assert_eq!(run.await.unwrap(), "soup");
        }
        assert_eq!(kitchen.connections().accepted, 1);
    });
}

#[test]
fn much_goes_through_tls_both_ways() {
    current_thread().block_on(async {
        let (kitchen, certificate) = Server::start_tls(kitchen()).await;
        let agent =
            greenhack::ureq::agent_with(config().tls_config(trusting(&certificate)).build());
        let url = kitchen.url("/echo");
        let run = run_sync_local(move || {
            let body: Vec<u8> = (0..1 << 20).map(|n: u32| n as u8).collect();
            let mut response = agent.post(&url).send(&body[..]).unwrap();
            assert_eq!(response.body_mut().read_to_vec().unwrap(), body);
        });
        run.await;
    });
}

#[test]
fn a_certificate_that_is_not_trusted_is_an_error() {
    in_each_place(|place| async move {
        let (kitchen, _) = Server::start_tls(kitchen()).await;
        let (agent, url) = (agent(), kitchen.url("/"));
        let run = place.spawn(move || server::get(&agent, &url).unwrap_err());
        let error = run.await.unwrap();
        let text = error.to_string();
        assert!(text.contains("UnknownIssuer"), "{error:?}");
    });
}

#[test]
fn the_name_in_a_certificate_counts() {
    current_thread().block_on(async {
        let (kitchen, certificate) = Server::start_tls(kitchen()).await;
        let agent =
            greenhack::ureq::agent_with(config().tls_config(trusting(&certificate)).build());
        let url = kitchen.url("/").replace("localhost", "127.0.0.1");
        let error = run_sync_local(move || server::get(&agent, &url).unwrap_err()).await;
        assert!(
            format!("{error:?}").contains("NotValidForName"),
            "{error:?}"
        );
    });
}

#[test]
fn a_handshake_fits_a_small_stack() {
    current_thread().block_on(async {
        let (kitchen, certificate) = Server::start_tls(kitchen()).await;
        let agent =
            greenhack::ureq::agent_with(config().tls_config(trusting(&certificate)).build());
        let url = kitchen.url("/");
        let run = greenhack::builder()
            .stack_size(256 << 10)
            .run_sync_local(move || server::get(&agent, &url).unwrap());
        assert_eq!(run.await, "soup");
    });
}

#[test]
fn native_tls_is_refused() {
    current_thread().block_on(async {
        let (kitchen, _) = Server::start_tls(kitchen()).await;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::NativeTls)
            .build();
        let agent = greenhack::ureq::agent_with(config().tls_config(tls).build());
        let url = kitchen.url("/");
        let error = run_sync_local(move || server::get(&agent, &url).unwrap_err()).await;
        assert!(matches!(error, Error::TlsRequired), "{error:?}");
    });
}

/// A proxy that takes `CONNECT`, and one connection.
async fn proxy() -> (String, tokio::task::JoinHandle<String>) {
    let (listener, url) = listen().await;
    let proxy = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let header = read_header(&mut near).await;
        let target = header.split(' ').nth(1).unwrap();
        let mut far = TcpStream::connect(target).await.unwrap();
        near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let _ = copy_bidirectional(&mut near, &mut far).await;
        header
    });
    (url, proxy)
}

fn through(proxy: &str) -> Agent {
    let proxy = Proxy::new(proxy).unwrap();
    greenhack::ureq::agent_with(Agent::config_builder().proxy(Some(proxy)).build())
}

#[test]
fn requests_go_through_a_proxy_that_takes_connect() {
    in_each_place(|place| async move {
        let kitchen = Server::start(kitchen()).await;
        let (address, proxy) = proxy().await;
        let (agent, url) = (through(&address), kitchen.url("/"));
        let run = place.spawn(move || {
            // On one connection.
            server::get(&agent, &url).unwrap();
            server::get(&agent, &url).unwrap()
        });
        assert_eq!(run.await.unwrap(), "soup");
        let header = proxy.await.unwrap();
        assert!(
            header.starts_with(&format!("CONNECT {} ", kitchen.address)),
            "{header}"
        );
    });
}

#[test]
fn tls_goes_through_a_proxy() {
    current_thread().block_on(async {
        let (kitchen, certificate) = Server::start_tls(kitchen()).await;
        let (address, proxy) = proxy().await;
        let config = Agent::config_builder()
            .proxy(Some(Proxy::new(&address).unwrap()))
            .tls_config(trusting(&certificate))
            .build();
        let (agent, url) = (greenhack::ureq::agent_with(config), kitchen.url("/"));
        assert_eq!(
            run_sync_local(move || server::get(&agent, &url).unwrap()).await,
            "soup"
        );
        proxy.await.unwrap();
    });
}

#[test]
fn a_socks_proxy_is_an_error_and_is_not_passed_by() {
    current_thread().block_on(async {
        let kitchen = Server::start(kitchen()).await;
        let (agent, url) = (through("socks5://127.0.0.1:9"), kitchen.url("/"));
        let error = run_sync_local(move || server::get(&agent, &url).unwrap_err()).await;
        assert!(error.to_string().contains("has no SOCKS"), "{error:?}");
        assert_eq!(kitchen.connections().accepted, 0);
    });
}

#[test]
fn no_proxy_is_obeyed() {
    current_thread().block_on(async {
        let kitchen = Server::start(kitchen()).await;
        let proxy = Proxy::builder(ureq::ProxyProtocol::Socks5)
            .host("127.0.0.1")
            .port(9)
            .no_proxy("127.0.0.1")
            .build()
            .unwrap();
        let config = Agent::config_builder().proxy(Some(proxy)).build();
        let (agent, url) = (greenhack::ureq::agent_with(config), kitchen.url("/"));
        assert_eq!(
            run_sync_local(move || server::get(&agent, &url).unwrap()).await,
            "soup"
        );
    });
}
