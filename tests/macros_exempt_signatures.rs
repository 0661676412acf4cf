//! The signatures that `#[greenhack::exempt]` hands on.
#![deny(warnings)]

mod support;

use std::fmt::{Debug, Display};
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;

use support::{Log, LogOnDrop};
use tokio::task::yield_now;

/// Gives `value` back, but not at once.
async fn later<T>(value: T) -> T {
    yield_now().await;
    value
}

#[test]
fn parameters_can_be_generic() {
    #[greenhack::exempt]
    async fn show<T, const N: usize>(items: [T; N], suffix: impl Display) -> String
    where
        T: Debug,
    {
        let items: [T; N] = later(items).await;
        format!("{items:?}{suffix}")
    }
    // Not inferred from the arguments.
    #[greenhack::exempt]
    async fn sizes<'a, T: 'a, const N: usize>(_: &'a str) -> usize {
        later(size_of::<T>()).await * N
    }
    #[greenhack::exempt]
    async fn parsed<T: FromStr>(text: &str) -> Result<T, T::Err> {
        later(text).await.parse()
    }
    assert_eq!(show([1, 2], '!'), "[1, 2]!");
    assert_eq!(sizes::<u32, 3>(""), 12);
    assert_eq!(parsed("7"), Ok(7));
    assert!(parsed::<u8>("x").is_err());
    support::current_thread().block_on(async {
        assert_eq!(sizes_async::<u32, 3>("").await, 12);
        assert_eq!(show_async([1, 2], '!').await, "[1, 2]!");
    });
}

#[test]
fn arguments_and_results_can_be_borrows() {
    #[greenhack::exempt]
    async fn first<'a>(a: &'a str, _b: &str) -> &'a str {
        later(a).await
    }
    #[greenhack::exempt]
    async fn elided(list: &mut Vec<u32>) -> &mut u32 {
        list.push(later(1).await);
        &mut list[0]
    }
    #[greenhack::exempt]
    async fn applied(f: impl for<'a> Fn(&'a str) -> &'a str, text: &str) -> &str {
        f(later(text).await)
    }
    let kept = {
        let short = String::from("short");
        first("kept", &short)
    };
    assert_eq!(kept, "kept");
    let mut list = Vec::new();
    *elided(&mut list) += 1;
    assert_eq!(list, [2]);
    assert_eq!(applied(str::trim, " x "), "x");
}

struct Wrapper<T>(T);

struct Point {
    x: u32,
    y: u32,
}

#[test]
fn arguments_can_be_patterns() {
    #[greenhack::exempt]
    #[expect(clippy::too_many_arguments, clippy::toplevel_ref_arg)]
    async fn sum(
        Wrapper(a): Wrapper<u32>,
        (b, _): (u32, String),
        mut c: u32,
        Point { x, y: renamed }: Point,
        _: String,
        [d, rest @ ..]: [u32; 3],
        whole @ (e, _): (u32, u32),
        ref f: u32,
        (g, _): (impl Into<u32>, u8),
    ) -> u32 {
        c += later(1).await;
        a + b + c + x + renamed + d + rest.len() as u32 + whole.1 + e + *f + g.into()
    }
    let sum = sum(
        Wrapper(1),
        (2, String::new()),
        3,
        Point { x: 4, y: 5 },
        String::new(),
        [6, 0, 0],
        (7, 8),
        9,
        (10_u8, 0),
    );
    assert_eq!(sum, 1 + 2 + 4 + 4 + 5 + 6 + 2 + 8 + 7 + 9 + 10);
}

#[test]
#[allow(clippy::non_minimal_cfg)]
fn arguments_can_have_attributes() {
    #[greenhack::exempt]
    async fn some(
        #[cfg(any())] missing: u8,
        #[cfg(all())] Wrapper(present): Wrapper<u8>,
        #[allow(unused_variables)] allowed: u8,
        #[expect(unused_variables)] expected: u8,
        #[allow(unused_mut)] mut mutable: u8,
    ) -> u8 {
        present + mutable
    }
    assert_eq!(some(Wrapper(1), 0, 0, 2), 3);
}

#[test]
fn arguments_end_in_the_order_of_the_original() {
    #[greenhack::exempt]
    async fn parts((_a, _): (LogOnDrop, LogOnDrop), _: LogOnDrop, log: Log, _b: LogOnDrop) {
        let _local = log.on_drop("local");
        later(()).await;
    }
    let log = Log::default();
    let pair = || (log.on_drop("a"), log.on_drop("b"));
    parts(pair(), log.on_drop("c"), log.clone(), log.on_drop("d"));
    let plain = log.take();
    let original = parts_async(pair(), log.on_drop("c"), log.clone(), log.on_drop("d"));
    support::current_thread().block_on(original);
    assert_eq!(log.take(), plain);
    assert_eq!(plain, ["local", "d", "c", "a", "b"]);
}

#[test]
fn the_result_can_be_opaque() {
    #[greenhack::exempt]
    async fn numbers<T: Display>(end: &u32, text: &T) -> impl Iterator<Item = String> {
        let end = later(end).await;
        (0..*end).map(move |number| format!("{text}{number}"))
    }
    #[greenhack::exempt]
    async fn checked(end: u32) -> Result<impl Iterator<Item = impl Debug> + Clone, String> {
        let end = end.checked_sub(1).ok_or("empty")?;
        Ok(later(0).await..end)
    }
    let (end, text) = (2, String::from("n"));
    assert_eq!(numbers(&end, &text).collect::<Vec<_>>(), ["n0", "n1"]);
    assert_eq!(checked(3).unwrap().clone().count(), 2);
    assert!(checked(0).is_err());
}

#[test]
#[should_panic(expected = "never again")]
fn the_result_can_be_never() {
    #[greenhack::exempt]
    async fn never() -> ! {
        later(()).await;
        panic!("never again")
    }
    never()
}

#[test]
fn names_can_be_raw() {
    #[greenhack::exempt]
    async fn r#type(r#fn: u8) -> u8 {
        later(r#fn).await
    }
    #[greenhack::exempt(async = r#move)]
    async fn moved(number: u8) -> u8 {
        later(number).await
    }
    assert_eq!(r#type(1), moved(1));
    support::current_thread().block_on(async {
        assert_eq!(type_async(1).await, r#move(1).await);
    });
}

#[test]
fn an_unsafe_function_has_an_unsafe_twin() {
    /// Reads a number.
    ///
    /// # Safety
    ///
    /// The pointer is valid.
    #[greenhack::exempt]
    async unsafe fn read(pointer: *const u32) -> u32 {
        later(()).await;
        // SAFETY: the caller promises it.
        unsafe { *pointer }
    }
    let number = 7;
    // SAFETY: the number is there.
    assert_eq!(unsafe { read(&number) }, 7);
}

#[test]
fn a_function_that_returns_a_future_is_async_too() {
    #[greenhack::exempt]
    #[expect(clippy::manual_async_fn)]
    #[must_use = "a future does nothing unless it is polled"]
    fn opaque<'a>(text: &'a str) -> impl Future<Output = &'a str> + Send + use<'a> {
        async move { later(text).await }
    }
    #[greenhack::exempt]
    fn boxed(text: &str) -> Pin<Box<dyn Future<Output = usize> + Send + '_>> {
        Box::pin(async move { later(text).await.len() })
    }
    #[greenhack::exempt]
    fn nothing() -> impl core::future::Future<Output = ()> {
        later(())
    }
    assert_eq!(opaque("four"), "four");
    assert_eq!(boxed("four"), 4);
    nothing();
    opaque("the twin need not be used");
    support::current_thread().block_on(async {
        assert_eq!(boxed_async("four").await, 4);
    });
}

#[test]
fn a_macro_can_write_it() {
    macro_rules! twins {
        ($($name:ident($arg:ident: $ty:ty) -> $output:ty $body:block)*) => {$(
            #[greenhack::exempt]
            async fn $name($arg: $ty) -> $output $body
        )*};
    }
    twins! {
        length(text: &str) -> usize { later(text).await.len() }
        negated(number: i32) -> i32 { -later(number).await }
    }
    assert_eq!((length("four"), negated(1)), (4, -1));
    support::current_thread().block_on(async {
        assert_eq!(length_async("four").await, 4);
        assert_eq!(negated_async(1).await, -1);
    });
}
