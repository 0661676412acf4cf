//! Templates whose helpers query a real SQLite file.

mod support;

use std::cell::Cell;
use std::sync::Arc;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use futures::future::join_all;
use greenhack::diesel::deadpool::Pool;
use greenhack::diesel::{Manager, SqliteConnection};
use greenhack::{await_sync, no_suspend, run_sync, run_sync_local};
use minijinja::value::{Serde, Value};
use minijinja::{Environment, context};
use recipes::minijinja::{Guest, environment};
use serde::{Serialize, Serializer};
use support::{File, in_time, one_thread};
use tokio::sync::{Barrier, oneshot};
use tokio::task::yield_now;

/// A file of orders, and connections to it.
async fn pool(file: &File) -> Pool<SqliteConnection> {
    let path = file.path().to_str().unwrap().to_owned();
    run_sync(move || {
        let mut db = SqliteConnection::establish(&path).unwrap();
        db.batch_execute(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, guest TEXT NOT NULL, dish TEXT NOT NULL);
             INSERT INTO orders (guest, dish)
             VALUES ('Ada', 'soup'), ('Bob', 'fish'), ('Ada', 'rice')",
        )
        .unwrap();
        Pool::builder(Manager::new(path))
            .max_size(2)
            .build()
            .unwrap()
    })
    .await
}

const BY_FUNCTION: &str =
    "{{ meet() }}{% for dish in orders_of(name) %}{{ name }}: {{ dish }}\n{% endfor %}";
const BY_OBJECT: &str =
    "{% set g = guest(name) %}{{ g.name }}: {{ meet() }}{{ g.orders | join(', ') }}";

/// An environment with a helper that waits until so many templates are in it.
fn environment_where(meet: usize, pool: &Pool<SqliteConnection>) -> Environment<'static> {
    let mut env = environment(pool);
    let all_here = Arc::new(Barrier::new(meet));
    env.add_function("meet", move || {
        await_sync(all_here.wait());
        ""
    });
    env
}

#[test]
fn templates_wait_for_the_database_and_for_each_other() {
    const PAGES: usize = 20;
    let file = File::new("templates");
    one_thread().block_on(in_time(async {
        let pool = pool(&file).await;
        let env = Arc::new(environment_where(PAGES, &pool));
        let pages = (0..PAGES).map(|i| {
            let env = env.clone();
            let name = if i % 2 == 0 { "Ada" } else { "Bob" };
            let template = if i % 4 < 2 { BY_FUNCTION } else { BY_OBJECT };
            tokio::spawn(run_sync(move || {
                let page = env.render_str(template, context! { name }).unwrap();
                let expected = match (name, template) {
                    ("Ada", BY_FUNCTION) => "Ada: soup\nAda: rice\n",
                    ("Ada", _) => "Ada: soup, rice",
                    (_, BY_FUNCTION) => "Bob: fish\n",
                    _ => "Bob: fish",
                };
                assert_eq!(page, expected);
            }))
        });
        for page in join_all(pages).await {
            page.unwrap();
        }
        // All are back, of as many as were needed at once.
        let status = pool.status();
        assert!((1..=2).contains(&status.size));
        assert_eq!(status.available, status.size);
    }));
}

#[test]
fn an_error_of_the_database_ends_the_rendering() {
    let file = File::new("errors");
    one_thread().block_on(in_time(async {
        let empty = file.path().to_str().unwrap().to_owned();
        let pool = Pool::builder(Manager::<SqliteConnection>::new(empty))
            .build()
            .unwrap();
        let env = environment(&pool);
        run_sync(move || {
            for template in ["{{ orders_of('Ada') }}", "{{ guest('Ada').orders }}"] {
                let error = env.render_str(template, ()).unwrap_err();
                assert!(error.to_string().contains("no such table"), "{error}");
            }
        })
        .await;
    }));
}

#[test]
fn a_template_that_is_cancelled_leaves_the_pool_as_it_was() {
    let file = File::new("cancelled");
    one_thread().block_on(in_time(async {
        let pool = pool(&file).await;
        let held = [pool.get().await.unwrap(), pool.get().await.unwrap()];
        let env = Arc::new(environment(&pool));
        let render = || {
            let env = env.clone();
            let page = move || env.render_str("{{ orders_of('Bob') | join }}", ());
            tokio::spawn(run_sync(move || page().unwrap()))
        };
        let [cancelled, other] = [render(), render()];
        while pool.status().waiting < 2 {
            yield_now().await;
        }
        cancelled.abort();
        assert!(cancelled.await.unwrap_err().is_cancelled());
        drop(held);
        assert_eq!(other.await.unwrap(), "fish");
        assert_eq!((pool.status().size, pool.status().available), (2, 2));
    }));
}

/// Waits in its `serialize`.
struct Waits(Cell<Option<(oneshot::Sender<()>, oneshot::Receiver<u32>)>>);

impl Waits {
    fn new() -> (Waits, oneshot::Receiver<()>, oneshot::Sender<u32>) {
        let (begun, has_begun) = oneshot::channel();
        let (value, is_there) = oneshot::channel();
        (Waits(Cell::new(Some((begun, is_there)))), has_begun, value)
    }
}

impl Serialize for Waits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (begun, value) = self.0.take().unwrap();
        begun.send(()).unwrap();
        serializer.serialize_u32(await_sync(value).unwrap())
    }
}

/// What one run says in JSON while another makes a value of `lazy`.
async fn meanwhile(
    lazy: impl FnOnce() -> Value + 'static,
    has_begun: oneshot::Receiver<()>,
    go_on: impl FnOnce(),
) -> String {
    let lazy = run_sync_local(lazy);
    let json = run_sync_local(move || {
        await_sync(has_begun).unwrap();
        serde_json::to_string(&Value::from("soup")).unwrap()
    });
    let other = async {
        let json = json.await;
        go_on();
        json
    };
    let (value, json) = tokio::join!(lazy, other);
    assert_eq!(value.to_string(), "7");
    json
}

/// The limit that the page names. If this fails, there is none any more.
#[test]
fn a_serialize_that_waits_inside_minijinja_shows_in_the_json_of_others() {
    one_thread().block_on(in_time(async {
        let (waits, has_begun, value) = Waits::new();
        let lazy = move || Value::from(Serde(waits));
        let json = meanwhile(lazy, has_begun, || value.send(7).unwrap()).await;
        // A handle of minijinja's, which makes sense to minijinja alone.
        assert_ne!(json, "\"soup\"");
        assert!(json.starts_with('['), "{json}");
    }));
}

#[test]
fn the_same_by_an_object_does_not() {
    one_thread().block_on(in_time(async {
        let file = File::new("object");
        let (begun, has_begun) = oneshot::channel();
        let (value, is_there) = oneshot::channel();
        let guest = Value::from_object(Guest {
            name: "Ada".to_owned(),
            pool: pool(&file).await,
        });
        let lazy = move || {
            let mut env = Environment::new();
            let once = std::sync::Mutex::new(Some((begun, is_there)));
            env.add_function("wait", move || {
                let (begun, value) = once.lock().unwrap().take().unwrap();
                begun.send(()).unwrap();
                await_sync(value).unwrap()
            });
            let text = "{{ guest.orders | length + wait() }}";
            Value::from(env.render_str(text, context! { guest }).unwrap())
        };
        let json = meanwhile(lazy, has_begun, || value.send(5).unwrap()).await;
        assert_eq!(json, "\"soup\"");
    }));
}

/// How a program makes sure that it does not step into that.
#[test]
fn no_suspend_turns_the_mix_up_into_a_panic() {
    one_thread().block_on(in_time(async {
        let (waits, _has_begun, _value) = Waits::new();
        let run = tokio::spawn(run_sync(|| no_suspend(move || Value::from(Serde(waits)))));
        assert!(run.await.unwrap_err().is_panic());
    }));
}
