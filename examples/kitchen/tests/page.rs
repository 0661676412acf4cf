//! The page, as people see it: a real browser, see `support/browser.rs` for where it
//! comes from.

#[path = "support/browser.rs"]
mod browser;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use browser::Browser;
use kitchen::Kitchen;
use serde_json::json;
use support::{Database, kitchen_that_waits, order, serve, serve_with};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// More than any test takes.
const LONG: Duration = Duration::from_secs(60);

/// As in `main`: handlers hop to workers. The test's own thread is the person.
fn runtime() -> Runtime {
    Runtime::new().expect("the system gives a runtime")
}

/// Opens the page as a guest, and waits until it listens.
fn visit(browser: &Browser, address: SocketAddr, guest: &str) {
    browser.open(&format!("http://{address}/"));
    browser.wait_for_text("#line", "live");
    browser.type_over("#guest", guest);
    // It leaves the field, so that the page knows that the name is whole.
    browser.click("#dish");
    browser.wait_for_text("#line", "live");
}

fn order_here(browser: &Browser, dish: &str) {
    browser.type_into("#dish", dish);
    browser.click("button");
}

#[test]
fn an_order_arrives_live() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let (database, runtime) = (Database::sqlite("live"), runtime());
    let stove = Arc::new(Semaphore::new(0));
    let address = runtime.block_on(async {
        let permits = stove.clone();
        let kitchen = kitchen_that_waits(move || {
            let permits = permits.clone();
            async move { permits.acquire().await.expect("it is open").forget() }
        });
        let kitchen = kitchen.await;
        serve_with(&database, |_| Kitchen::at(kitchen, LONG))
            .await
            .1
    });
    visit(&browser, address, "Ada");
    assert_eq!(browser.orders(), json!([]));

    order_here(&browser, "<b>soup</b>");
    browser.wait_for_text(".placed .state", "placed");
    assert_eq!(
        browser.orders(),
        json!([["<b>soup</b>", "placed", ""]]),
        "the kitchen holds it back"
    );
    browser.wait_for_text("#answer", "We ask the kitchen for <b>soup</b> …");
    stove.add_permits(1);
    browser.wait_for("document.querySelector('.cooking')");
    assert_eq!(
        browser.orders(),
        json!([["<b>soup</b>", "cooking", "7 min"]])
    );
    browser.wait_for_text("#answer", "<b>soup</b> in 7 minutes.");

    // What the guest orders elsewhere arrives as well: it is the websocket's doing.
    stove.add_permits(1);
    assert_eq!(runtime.block_on(order(address, "Ada", "rice")).0, 201);
    browser.wait_for("document.querySelectorAll('.cooking').length === 2");
    assert_eq!(browser.orders()[0], json!(["rice", "cooking", "7 min"]));
}

#[test]
fn another_guest_sees_none_of_it() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let (database, runtime) = (Database::sqlite("guests"), runtime());
    let (_, address) = runtime.block_on(serve(&database, LONG));
    visit(&browser, address, "Bob");
    runtime.block_on(async {
        assert_eq!(order(address, "Ada", "soup").await.0, 201);
        // All hear the news in one order: Bob would have heard of Ada before.
        assert_eq!(order(address, "Bob", "rice").await.0, 201);
    });
    browser.wait_for("document.querySelector('.cooking')");
    assert_eq!(browser.orders(), json!([["rice", "cooking", "9 min"]]));

    // Ada, on the same page in a window of her own, and in Bob's.
    browser.new_window();
    visit(&browser, address, "Ada");
    browser.wait_for("document.querySelector('.cooking')");
    assert_eq!(browser.orders(), json!([["soup", "cooking", "9 min"]]));
    browser.type_over("#guest", "Eve");
    browser.click("#dish");
    browser.wait_for("!document.querySelector('.cooking')");
    browser.wait_for_text("#line", "live");
    assert_eq!(browser.orders(), json!([]));
}

#[test]
fn a_bad_order_is_explained() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let (database, runtime) = (Database::sqlite("bad"), runtime());
    let (_, address) = runtime.block_on(serve(&database, LONG));
    visit(&browser, address, "Ada");
    order_here(&browser, "  ");
    browser.wait_for_text("#answer.bad", "No order: the dish is missing.");
    assert_eq!(browser.orders(), json!([]));

    order_here(&browser, "fugu");
    browser.wait_for_text("#answer.bad", "No fugu: the cook has no licence for fugu.");
    browser.wait_for_text(".refused .state", "refused");
    assert_eq!(browser.orders(), json!([["fugu", "refused", ""]]));

    order_here(&browser, "soup");
    browser.wait_for_text("#answer:not(.bad)", "soup in 9 minutes.");
}

#[test]
fn the_page_comes_back_when_the_connection_does() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let (database, runtime) = (Database::sqlite("broken"), runtime());
    let (_, service) = runtime.block_on(serve(&database, LONG));
    let (listener, address) = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    });
    let wire = runtime.spawn(wire(listener, service));
    visit(&browser, address, "Ada");
    order_here(&browser, "soup");
    browser.wait_for("document.querySelector('.cooking')");

    cut(&runtime, wire);
    browser.wait_for_text("#line", "not connected, trying again …");
    order_here(&browser, "cake");
    browser.wait_for_text(
        "#answer.bad",
        "We don't know what has become of cake: the restaurant does not answer.",
    );
    // The page can't hear of this one.
    assert_eq!(runtime.block_on(order(service, "Ada", "rice")).0, 201);
    assert_eq!(browser.orders(), json!([["soup", "cooking", "9 min"]]));

    let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
    let wire = runtime.spawn(self::wire(listener, service));
    browser.wait_for_text("#line", "live");
    let missed = json!([["rice", "cooking", "9 min"], ["soup", "cooking", "9 min"]]);
    assert_eq!(browser.orders(), missed);
    // It listens as before, and has ordered nothing twice.
    order_here(&browser, "fugu");
    browser.wait_for("document.querySelector('.refused')");
    assert_eq!(browser.orders().as_array().map(Vec::len), Some(3));
    cut(&runtime, wire);
}

/// What is between the browser and the service.
async fn wire(listener: TcpListener, service: SocketAddr) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (mut browser, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            let mut service = TcpStream::connect(service).await.unwrap();
            let _ = copy_bidirectional(&mut browser, &mut service).await;
        });
    }
}

/// Cuts it: all connections break, and nobody listens any more.
fn cut(runtime: &Runtime, wire: JoinHandle<()>) {
    wire.abort();
    assert!(runtime.block_on(wire).unwrap_err().is_cancelled());
}
