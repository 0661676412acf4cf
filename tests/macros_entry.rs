//! What `#[greenhack::entry]` accepts, and what it makes of it.
#![deny(warnings)]

use std::cell::RefCell;
use std::fmt::{Debug, Display};
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use greenhack::await_sync;

/// Suspends the caller, then gives `value` back.
fn later<T>(value: T) -> T {
    await_sync(async {
        tokio::task::yield_now().await;
        value
    })
}

fn is_send<F: Future + Send + 'static>(future: F) -> F {
    future
}

#[greenhack::entry]
fn double(number: u32) -> u32 {
    later(number) * 2
}

#[tokio::test]
async fn smoke() {
    assert_eq!(double(21).await, 42);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_can_be_spawned_on_many_threads() {
    let runs: Vec<_> = (0..50).map(|n| tokio::spawn(double(n))).collect();
    for (n, run) in (0..50).zip(runs) {
        assert_eq!(run.await.unwrap(), n * 2);
    }
}

#[tokio::test]
async fn an_entry_is_send_and_does_nothing_before_it_is_awaited() {
    #[greenhack::entry]
    fn set(flag: Arc<Mutex<bool>>) {
        *flag.lock().unwrap() = later(true);
    }
    let flag = Arc::new(Mutex::new(false));
    let run = is_send(set(flag.clone()));
    assert!(!*flag.lock().unwrap());
    run.await;
    assert!(*flag.lock().unwrap());
}

// Arguments.

struct Wrapper<T>(T);

struct Point {
    x: u32,
    y: u32,
}

#[tokio::test]
async fn arguments_can_be_patterns() {
    #[greenhack::entry]
    #[expect(clippy::too_many_arguments)]
    fn sum(
        Wrapper(a): Wrapper<u32>,
        (b, _): (u32, String),
        mut c: u32,
        Point { x, y: renamed }: Point,
        _: String,
        [d, rest @ ..]: [u32; 3],
        whole @ (e, _): (u32, u32),
        ref f: u32,
    ) -> u32 {
        c += later(1);
        a + b + c + x + renamed + d + rest.len() as u32 + whole.1 + e + *f
    }
    let point = Point { x: 4, y: 5 };
    let sum = sum(
        Wrapper(1),
        (2, String::new()),
        3,
        point,
        String::new(),
        [6, 0, 0],
        (7, 8),
        9,
    );
    assert_eq!(sum.await, 1 + 2 + 4 + 4 + 5 + 6 + 2 + 8 + 7 + 9);
}

/// Writes its name down when it ends.
struct Ends(&'static str, Arc<Mutex<Vec<&'static str>>>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.1.lock().unwrap().push(self.0);
    }
}

#[tokio::test]
async fn arguments_end_in_the_order_of_a_plain_function() {
    macro_rules! both {
        ($(fn $name:ident($($pat:pat => $ty:ty),*) $body:block)*) => {$(
            pub(super) mod $name {
                use super::*;

                pub(crate) fn plain($($pat: $ty),*) $body

                #[greenhack::entry]
                pub(crate) fn entry($($pat: $ty),*) $body
            }
        )*};
    }
    mod functions {
        use crate::{Ends, later};

        both! {
            fn variables(a => Ends, b => Ends) {
                let _local = Ends("local", a.1.clone());
                later_if_entered();
                drop(b);
            }
            fn unnamed(a => Ends, _ => Ends, _unused => Ends) {
                let _local = Ends("local", a.1.clone());
            }
            fn parts((_a, _) => (Ends, Ends), (_, _b) => (Ends, Ends)) {
                later_if_entered();
            }
        }
        fn later_if_entered() {
            if greenhack::in_context() {
                later(());
            }
        }
    }
    use functions::{parts, unnamed, variables};

    let log = Arc::new(Mutex::new(Vec::new()));
    let ends = |name| Ends(name, log.clone());
    let taken = || std::mem::take(&mut *log.lock().unwrap());

    variables::plain(ends("a"), ends("b"));
    let plain = taken();
    variables::entry(ends("a"), ends("b")).await;
    assert_eq!(plain, ["b", "local", "a"]);
    assert_eq!(taken(), plain);

    unnamed::plain(ends("a"), ends("b"), ends("c"));
    let plain = taken();
    unnamed::entry(ends("a"), ends("b"), ends("c")).await;
    assert_eq!(plain, ["local", "c", "b", "a"]);
    assert_eq!(taken(), plain);

    parts::plain((ends("a"), ends("b")), (ends("c"), ends("d")));
    let plain = taken();
    parts::entry((ends("a"), ends("b")), (ends("c"), ends("d"))).await;
    assert_eq!(plain, ["d", "c", "a", "b"]);
    assert_eq!(taken(), plain);
}

#[tokio::test]
async fn the_last_expression_can_borrow_an_argument() {
    #[greenhack::entry]
    fn length(text: Mutex<String>) -> usize {
        text.lock().unwrap().len()
    }
    assert_eq!(length(Mutex::new("four".to_owned())).await, 4);
}

#[tokio::test]
#[allow(clippy::non_minimal_cfg)]
async fn arguments_can_have_attributes() {
    #[greenhack::entry]
    fn some(
        #[cfg(any())] missing: u8,
        #[cfg(all())] Wrapper(present): Wrapper<u8>,
        #[allow(unused_variables)] allowed: u8,
        #[expect(unused_variables)] expected: u8,
        #[allow(unused_mut)] mut mutable: u8,
    ) -> u8 {
        present + mutable
    }
    assert_eq!(some(Wrapper(1), 0, 0, 2).await, 3);
}

#[tokio::test]
async fn arguments_can_be_generic() {
    #[greenhack::entry]
    fn show<T, const N: usize>(items: [T; N], suffix: impl Display + Send + 'static) -> String
    where
        T: Debug + Send + 'static,
    {
        let items: [T; N] = later(items);
        format!("{items:?}{suffix}")
    }
    assert_eq!(show([1, 2], '!').await, "[1, 2]!");
}

#[tokio::test]
async fn an_impl_trait_argument_can_have_a_pattern() {
    #[greenhack::entry]
    fn show((left, _): (impl Display + Send + 'static, u8)) -> String {
        later(left).to_string()
    }
    assert_eq!(show((1, 2)).await, "1");
}

#[tokio::test]
async fn lifetimes_that_are_bound_or_static_are_no_borrows() {
    type Hook = Box<dyn for<'a> Fn(&'a str) -> &'a str + Send>;
    #[greenhack::entry]
    fn apply(
        text: &'static str,
        first: fn(&str) -> usize,
        second: Hook,
        third: impl Fn(&str) -> usize + Send + 'static,
        fourth: Box<dyn for<'a> Fn(&'a str) -> usize + Send + 'static>,
    ) -> &'static str {
        assert_eq!(first(text) + third(text) + fourth(text), 12);
        assert_eq!(second(later(text)), "four");
        text
    }
    let run = apply(
        "four",
        str::len,
        Box::new(|text| text),
        str::len,
        Box::new(str::len),
    );
    assert_eq!(run.await, "four");
}

#[tokio::test]
async fn names_can_be_raw() {
    #[greenhack::entry]
    fn r#type(r#fn: u8) -> u8 {
        later(r#fn)
    }
    assert_eq!(r#type(1).await, 1);
}

// Results.

#[greenhack::entry]
fn parse(text: String) -> Result<u32, std::num::ParseIntError> {
    if text.is_empty() {
        return Ok(0);
    }
    let number: u32 = later(text).parse()?;
    Ok(number)
}

#[tokio::test]
async fn question_mark_and_return_leave_the_entry() {
    assert_eq!(parse(String::new()).await, Ok(0));
    assert_eq!(parse("7".to_owned()).await, Ok(7));
    assert!(parse("x".to_owned()).await.is_err());
}

#[tokio::test]
async fn an_entry_can_return_an_impl_trait() {
    #[greenhack::entry]
    fn numbers(end: u32) -> impl Iterator<Item = u32> + Debug {
        if end == 0 {
            return 1..1;
        }
        later(0)..end
    }
    #[greenhack::entry]
    fn checked(end: u32) -> Result<impl Iterator<Item = u32>, String> {
        let end = end.checked_sub(1).ok_or("empty")?;
        Ok(later(0)..end)
    }
    assert_eq!(numbers(3).await.sum::<u32>(), 3);
    assert_eq!(checked(3).await.unwrap().count(), 2);
    assert!(checked(0).await.is_err());
}

#[tokio::test]
#[should_panic(expected = "never again")]
async fn an_entry_can_return_never() {
    #[greenhack::entry]
    fn never() -> ! {
        later(());
        panic!("never again")
    }
    never().await
}

#[tokio::test]
async fn a_body_can_end_with_a_return_or_a_loop() {
    #[greenhack::entry]
    #[allow(clippy::needless_return)]
    fn returns() -> u8 {
        return later(1);
    }
    #[greenhack::entry]
    fn loops() -> u8 {
        loop {
            if later(true) {
                break 2;
            }
        }
    }
    #[greenhack::entry]
    fn empty() {}
    #[greenhack::entry]
    fn unit(log: Arc<Mutex<u8>>) {
        if later(*log.lock().unwrap()) == 1 {
            return;
        }
        *log.lock().unwrap() = later(1)
    }
    assert_eq!(returns().await + loops().await, 3);
    empty().await;
    let log = Arc::default();
    unit(Arc::clone(&log)).await;
    unit(log.clone()).await;
    assert_eq!(*log.lock().unwrap(), 1);
}

// Options.

const SMALL: usize = 128 * 1024;

tokio::task_local! {
    static USER: &'static str;
    static REQUEST: u32;
}

mod other {
    pub(crate) mod name {
        pub(crate) use ::greenhack::*;
    }
}

#[greenhack::entry(stack_size = 2 * SMALL, name = "checkout", carry(USER, self::REQUEST))]
fn all_options() -> String {
    let user = USER.with(|user| *user);
    format!("{user} {}", later(REQUEST.get()))
}

#[greenhack::entry(crate = other::name)]
fn renamed() -> u8 {
    later(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn carried_task_locals_can_be_read() {
    let run = USER.scope("ada", REQUEST.scope(7, all_options()));
    assert_eq!(tokio::spawn(run).await.unwrap(), "ada 7");
}

#[tokio::test]
async fn the_crate_can_have_another_path() {
    assert_eq!(renamed().await, 1);
}

#[tokio::test]
async fn a_local_entry_takes_and_returns_what_is_not_send() {
    #[greenhack::entry(local)]
    fn push(list: Rc<RefCell<Vec<u8>>>, item: u8) -> Rc<RefCell<Vec<u8>>> {
        list.borrow_mut().push(later(item));
        list
    }
    let list = push(Rc::default(), 1).await;
    assert_eq!(*push(list, 2).await.borrow(), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_body_holds_need_not_be_send() {
    #[greenhack::entry]
    fn shared() -> u8 {
        let held = Rc::new(RefCell::new(1));
        let borrow = held.borrow();
        later(());
        *borrow
    }
    assert_eq!(tokio::spawn(shared()).await.unwrap(), 1);
}

// Other attributes.

#[allow(clippy::non_minimal_cfg)]
mod documented {
    #![deny(missing_docs)]

    /// Documentation above.
    #[greenhack::entry]
    /// Documentation below.
    #[must_use]
    #[cfg(all())]
    #[allow(unused_variables, non_snake_case)]
    pub fn Documented(unused: u8) -> u8 {
        #![allow(unused_mut)]
        let mut result = 0;
        result += crate::later(1);
        result
    }

    #[greenhack::entry]
    #[cfg(any())]
    pub fn not_there() -> Missing {}
}

#[tokio::test]
async fn attributes_below_stay_on_the_function() {
    assert_eq!(documented::Documented(0).await, 1);
}

mod spans {
    use super::later;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Id(u32);

    #[tracing::instrument(skip(secret), fields(double = id * 2))]
    #[greenhack::entry]
    fn above(Id(id): Id, secret: String) -> Result<usize, String> {
        tracing::info!("before");
        later(());
        tracing::info!("after");
        Ok(secret.len())
    }

    #[greenhack::entry(stack_size = 1 << 20)]
    #[tracing::instrument(skip(secret), fields(double = id * 2))]
    fn below(Id(id): Id, secret: String) -> Result<usize, String> {
        tracing::info!("before");
        later(());
        tracing::info!("after");
        Ok(secret.len())
    }

    #[derive(Clone, Debug)]
    struct Service(u32);

    impl Service {
        #[greenhack::entry]
        #[cfg_attr(all(), tracing::instrument)]
        fn method(&self) -> u32 {
            later(());
            tracing::info!("{self:?}");
            self.0
        }
    }

    /// `#[tokio::main]` takes nothing but an async function.
    #[greenhack::entry(local)]
    #[tokio::main(flavor = "current_thread")]
    #[tracing::instrument]
    fn framework(id: u32) -> u32 {
        later(());
        tracing::info!("inside");
        id
    }

    fn log() -> (Log, tracing::subscriber::DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        (log, guard)
    }

    fn lines(log: &Log) -> String {
        String::from_utf8(std::mem::take(&mut *log.0.lock().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn instrument_means_the_same_above_and_below() {
        let (log, _guard) = log();
        assert_eq!(above(Id(7), "secret".to_owned()).await, Ok(6));
        tracing::info!("outside");
        assert_eq!(
            lines(&log),
            " INFO above{id=7 double=14}: before\n \
             INFO above{id=7 double=14}: after\n \
             INFO outside\n"
        );
        assert_eq!(below(Id(8), "secret".to_owned()).await, Ok(6));
        tracing::info!("outside");
        assert_eq!(
            lines(&log),
            " INFO below{id=8 double=16}: before\n \
             INFO below{id=8 double=16}: after\n \
             INFO outside\n"
        );
    }

    #[cfg(feature = "tracing")]
    #[tokio::test(flavor = "multi_thread")]
    async fn instrument_works_on_a_worker() {
        use tracing::Instrument;

        let (log, _guard) = log();
        let caller = tracing::info_span!("caller");
        assert_eq!(below(Id(7), String::new()).instrument(caller).await, Ok(0));
        assert_eq!(
            lines(&log),
            " INFO caller:below{id=7 double=14}: before\n \
             INFO caller:below{id=7 double=14}: after\n"
        );
    }

    #[test]
    fn an_attribute_between_entry_and_instrument_sees_the_async_function() {
        let (log, _guard) = log();
        assert_eq!(framework(7), 7);
        assert_eq!(lines(&log), " INFO framework{id=7}: inside\n");
    }

    #[tokio::test]
    async fn instrument_records_a_cloned_self_under_its_name() {
        let (log, _guard) = log();
        assert_eq!(Service(3).method().await, 3);
        assert_eq!(lines(&log), " INFO method{self=Service(3)}: Service(3)\n");
    }
}

#[tokio::test]
async fn an_entry_is_an_axum_handler() {
    use axum::body::{Body, to_bytes};
    use axum::extract::{Request, State};
    use axum::handler::Handler;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;

    #[greenhack::entry]
    fn greet(
        State(greeting): State<String>,
        request: Request,
    ) -> Result<impl IntoResponse, StatusCode> {
        let name = request.uri().path().trim_start_matches('/').to_owned();
        if name.is_empty() {
            return Err(StatusCode::NOT_FOUND);
        }
        Ok(format!("{greeting}, {}", later(name)))
    }

    let get = |uri: &str| Request::builder().uri(uri).body(Body::empty()).unwrap();
    let hello = "hello".to_owned();
    let answer = greet.call(get("/ada"), hello.clone()).await;
    let body = to_bytes(answer.into_body(), 100).await.unwrap();
    assert_eq!(body, "hello, ada");
    let answer = greet.call(get("/"), hello).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}

/// What the options, or the lack of them, say of a run.
mod without_a_stack {
    use std::panic::AssertUnwindSafe;

    use futures::FutureExt;

    #[greenhack::entry(stack_size = usize::MAX)]
    fn in_a_module() {}

    #[greenhack::entry(stack_size = usize::MAX)]
    fn r#match() {}

    #[greenhack::entry(local, stack_size = usize::MAX / 2 + 1)]
    fn local() {}

    #[greenhack::entry(name = "the pantry", stack_size = usize::MAX)]
    fn named() {}

    struct Pantry;

    impl Pantry {
        #[greenhack::entry(stack_size = usize::MAX)]
        fn method(self) {}
    }

    /// The size and the name in the panic of a run.
    async fn size_and_name(run: impl Future) -> (usize, String) {
        let Err(payload) = AssertUnwindSafe(run).catch_unwind().await else {
            panic!("there is such a stack");
        };
        let message = payload.downcast_ref::<String>().expect("it has words");
        let rest = message.strip_prefix("no stack of ").expect(message);
        let (size, rest) = rest.split_once(" bytes for `").expect(message);
        let (name, _) = rest.split_once("`: ").expect(message);
        (size.parse().expect(message), name.to_owned())
    }

    #[tokio::test]
    async fn the_panic_names_the_run_and_its_size() {
        let path = |name| format!("macros_entry::without_a_stack::{name}");
        let most = usize::MAX;
        assert_eq!(
            size_and_name(in_a_module()).await,
            (most, path("in_a_module"))
        );
        assert_eq!(size_and_name(r#match()).await, (most, path("match")));
        assert_eq!(size_and_name(local()).await, (most / 2 + 1, path("local")));
        assert_eq!(size_and_name(Pantry.method()).await, (most, path("method")));
        let name = "the pantry".to_owned();
        assert_eq!(size_and_name(named()).await, (most, name));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn so_it_does_on_a_worker() {
        let run = tokio::spawn(size_and_name(in_a_module()));
        let name = "macros_entry::without_a_stack::in_a_module".to_owned();
        assert_eq!(run.await.unwrap(), (usize::MAX, name));
    }
}
