//! Scripts that call a real web service.

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::{get, post};
use futures::future::join_all;
use greenhack::{await_sync, builder};
use recipes::rhai::{STACK, engine};
use rhai::{Engine, EvalAltResult, Scope};
use support::{in_time, many_threads, one_thread};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Barrier, Notify};
use tokio::task::JoinHandle;
use ureq::Agent;

/// A kitchen on the current runtime, which says a price when so many guests are
/// there; and who hears of each.
async fn kitchen_and_guests(guests: usize) -> (SocketAddr, UnboundedReceiver<()>) {
    let (arrived, arrivals) = unbounded_channel();
    let together = Arc::new(Barrier::new(guests));
    let price = move |Path(dish): Path<String>| {
        let together = together.clone();
        // Not every test listens.
        let _ = arrived.send(());
        async move {
            together.wait().await;
            dish.len().to_string()
        }
    };
    let cook = async |dish: String| match dish.as_str() {
        "fugu" => Err((StatusCode::FORBIDDEN, "no licence")),
        dish => Ok(format!("hot {dish}")),
    };
    let routes = Router::new()
        .route("/price/{dish}", get(price))
        .route("/cook", post(cook));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, routes).into_future());
    (address, arrivals)
}

async fn kitchen(guests: usize) -> SocketAddr {
    kitchen_and_guests(guests).await.0
}

fn shared_engine() -> Arc<Engine> {
    let config = Agent::config_builder().proxy(None).build();
    Arc::new(engine(&greenhack::ureq::agent_with(config)))
}

/// Evaluates a script in a task of its own.
fn spawn(
    engine: &Arc<Engine>,
    kitchen: SocketAddr,
    script: &'static str,
) -> JoinHandle<Result<String, String>> {
    let engine = engine.clone();
    let run = builder().stack_size(STACK).run_sync(move || {
        let mut scope = Scope::new();
        scope.push("kitchen", format!("http://{kitchen}"));
        let answer = engine.eval_with_scope(&mut scope, script);
        answer.map_err(|error: Box<EvalAltResult>| error.to_string())
    });
    tokio::spawn(run)
}

const ORDER: &str = r#"
    fn order(kitchen, dish) {
        let price = get(kitchen + "/price/" + dish).parse_int();
        let cooked = post(kitchen + "/cook", dish);
        `${cooked} for ${price}`
    }
    order(kitchen, "soup")
"#;

async fn scripts_that_wait_for_each_other() {
    const SCRIPTS: usize = 10;
    let (engine, kitchen) = (shared_engine(), kitchen(SCRIPTS).await);
    let scripts = join_all((0..SCRIPTS).map(|_| spawn(&engine, kitchen, ORDER)));
    for answer in in_time(scripts).await {
        assert_eq!(answer.unwrap().unwrap(), "hot soup for 4");
    }
}

/// The kitchen is served by the very thread on which the scripts run.
#[test]
fn scripts_overlap_on_one_thread() {
    one_thread().block_on(scripts_that_wait_for_each_other());
}

#[test]
fn scripts_overlap_on_the_workers() {
    many_threads().block_on(scripts_that_wait_for_each_other());
}

#[test]
fn an_error_of_the_service_can_be_caught_in_the_script() {
    one_thread().block_on(in_time(async {
        let (engine, kitchen) = (shared_engine(), kitchen(1).await);
        let script = r#"
            let served = "";
            try { served = post(kitchen + "/cook", "fugu"); } catch (why) { served = `sorry: ${why}`; }
            served
        "#;
        let answer = spawn(&engine, kitchen, script).await.unwrap();
        assert_eq!(answer.unwrap(), "sorry: http status: 403");
        let answer = spawn(&engine, kitchen, r#"post(kitchen + "/cook", "fugu")"#).await;
        assert!(answer.unwrap().unwrap_err().contains("403"));
    }));
}

#[test]
fn an_endless_script_lets_others_go_on_and_can_be_cancelled() {
    one_thread().block_on(in_time(async {
        let (engine, kitchen) = (shared_engine(), kitchen(1).await);
        let endless = spawn(&engine, kitchen, "loop { }");
        let answer = spawn(&engine, kitchen, ORDER).await.unwrap();
        assert_eq!(answer.unwrap(), "hot soup for 4");
        assert!(!endless.is_finished());
        endless.abort();
        assert!(endless.await.unwrap_err().is_cancelled());
    }));
}

#[test]
fn a_script_that_is_cancelled_in_a_call_leaves_the_engine_as_it_was() {
    one_thread().block_on(in_time(async {
        // The first two meet, and the third waits for a fourth.
        let (engine, (kitchen, mut arrivals)) = (shared_engine(), kitchen_and_guests(2).await);
        let pair = [
            spawn(&engine, kitchen, ORDER),
            spawn(&engine, kitchen, ORDER),
        ];
        for answer in join_all(pair).await {
            assert_eq!(answer.unwrap().unwrap(), "hot soup for 4");
        }
        let lonely = spawn(&engine, kitchen, ORDER);
        for _ in 0..3 {
            arrivals.recv().await.unwrap();
        }
        lonely.abort();
        assert!(lonely.await.unwrap_err().is_cancelled());
        let answer = spawn(&engine, kitchen, r#"post(kitchen + "/cook", "rice")"#).await;
        assert_eq!(answer.unwrap().unwrap(), "hot rice");
    }));
}

/// Puts code into code.
type Nest = fn(&str) -> String;

/// A script that goes as deep as the engine lets it, in calls and in each call.
fn deepest(engine: &Engine, nest: Nest) -> String {
    let script = |depth: usize| {
        let inner = "if n == 0 { mark(); 0 } else { 1 + deep(n - 1) }".to_owned();
        let body = (0..depth).fold(inner, |body, _| nest(&body));
        format!("fn deep(n) {{ {body} }} mark(); deep(31)")
    };
    let scripts = (1..).map(script);
    let compiled = scripts.take_while(|script| engine.compile(script).is_ok());
    compiled.last().unwrap()
}

#[test]
fn the_stack_is_enough_for_the_deepest_script() {
    one_thread().block_on(in_time(async {
        let places = Arc::new(Mutex::new(Vec::new()));
        let mut engine = Arc::into_inner(shared_engine()).unwrap();
        let marks = places.clone();
        engine.register_fn("mark", move || {
            let here = 0_u8;
            marks.lock().unwrap().push(std::ptr::from_ref(&here).addr());
        });
        let engine = Arc::new(engine);
        let nests: [(&str, Nest); 3] = [
            ("if", |body| format!("if true {{ {body} }}")),
            ("switch", |body| format!("switch 1 {{ 1 => {{ {body} }} }}")),
            ("+", |body| format!("(0 + {body})")),
        ];
        for (name, nest) in nests {
            let script = deepest(&engine, nest);
            let deep = engine.clone();
            let run = move || deep.eval::<i64>(&script);
            let number = builder().stack_size(STACK).run_sync(run).await;
            assert_eq!(number.unwrap(), 31);
            let places = std::mem::take(&mut *places.lock().unwrap());
            let used = places[0] - places[1];
            println!("{name}: {} of {} KiB", used / 1024, STACK / 1024);
            // A call of the web service at that depth needs some, too.
            assert!(used < STACK - 512 * 1024, "{name}: {used}");
        }
        // Deeper is an error of the script, and no overflow.
        let run = move || engine.eval::<i64>("fn deep(n) { 1 + deep(n + 1) } deep(0)");
        let error = builder().stack_size(STACK).run_sync(run).await.unwrap_err();
        assert!(error.to_string().contains("Stack overflow"), "{error}");
    }));
}

/// A limit that the page names: rhai locks what a function changes while it is
/// called.
#[test]
fn a_value_of_two_scripts_is_refused_while_a_function_waits_with_it() {
    one_thread().block_on(in_time(async {
        let mut engine = Engine::new();
        let (here, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (is_here, may_go_on) = (here.clone(), go_on.clone());
        engine.register_fn("hold", move |_: &mut rhai::Array| {
            is_here.notify_one();
            await_sync(may_go_on.notified());
        });
        let engine = Arc::new(engine);
        let shared = rhai::Dynamic::from_array(Vec::new()).into_shared();
        let script = |text: &'static str| {
            let (engine, shared) = (engine.clone(), shared.clone());
            tokio::spawn(builder().stack_size(STACK).run_sync(move || {
                let mut scope = Scope::new();
                scope.push_dynamic("list", shared);
                engine
                    .eval_with_scope::<i64>(&mut scope, text)
                    .map_err(|error| error.to_string())
            }))
        };
        let holder = script("list.hold(); 1");
        here.notified().await;
        let other = script("list.push(1); 2");
        assert_eq!(other.await.unwrap().unwrap_err(), "Data race detected");
        go_on.notify_one();
        assert_eq!(holder.await.unwrap(), Ok(1));
    }));
}
