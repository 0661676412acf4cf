//! `#[greenhack::exempt]` on methods and in traits.
#![deny(warnings)]
#![allow(
    clippy::needless_lifetimes,
    clippy::manual_async_fn,
    reason = "each form is tested"
)]

mod support;

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use greenhack::run_sync;
use support::{everywhere, in_each_place, panic_of};
use tokio::task::yield_now;

/// Gives `value` back, but not at once.
async fn later<T>(value: T) -> T {
    yield_now().await;
    value
}

// Methods.

#[derive(Clone, Debug, Default)]
struct Account<T>(T);

impl<T: Copy + std::ops::AddAssign + PartialOrd> Account<T> {
    #[greenhack::exempt]
    async fn shared(&self) -> &T {
        later(&self.0).await
    }

    #[greenhack::exempt]
    async fn exclusive(&mut self, amount: T) -> &mut Self {
        self.0 += later(amount).await;
        self
    }

    #[greenhack::exempt]
    async fn owned(mut self, amount: T) -> T {
        self.exclusive_async(amount).await.0
    }

    #[greenhack::exempt]
    async fn arc(self: Arc<Self>) -> T {
        later(self.0).await
    }

    #[greenhack::exempt]
    async fn boxed(mut self: Box<Self>, amount: T) -> Box<Self> {
        self.0 += later(amount).await;
        self
    }

    #[greenhack::exempt]
    async fn pinned(self: Pin<&mut Self>) -> T {
        later(self.0).await
    }

    #[greenhack::exempt]
    async fn arc_ref<'a>(self: &'a Arc<Self>, _other: &str) -> &'a T {
        later(&self.0).await
    }

    // In the signature, `Self` says that these belong to the type.
    #[greenhack::exempt]
    async fn opened(amount: T) -> Self {
        Account(later(amount).await)
    }

    #[greenhack::exempt]
    async fn bounded(amount: T) -> T
    where
        Self: Sized,
    {
        later(amount).await
    }

    // In the body.
    #[greenhack::exempt]
    async fn built(amount: T) -> Account<T> {
        let wrapped = later(Some(amount)).await.map(|amount| Self(amount));
        wrapped.unwrap()
    }

    // Nowhere.
    #[greenhack::exempt(associated)]
    async fn told(amount: T) -> T {
        later(amount).await
    }
}

#[test]
fn every_receiver_goes_along() {
    let mut account = Account(1);
    assert_eq!(*account.shared(), 1);
    assert_eq!(account.exclusive(1).exclusive(1).0, 3);
    assert_eq!(account.clone().owned(1), 4);
    assert_eq!(Arc::new(account.clone()).arc(), 3);
    assert_eq!(Box::new(account.clone()).boxed(2).0, 5);
    assert_eq!(Pin::new(&mut account).pinned(), 3);
    assert_eq!(*Arc::new(account).arc_ref(""), 3);
}

#[test]
fn an_associated_function_is_found() {
    assert_eq!(Account::opened(1).0, 1);
    assert_eq!(Account::bounded(2), 2);
    assert_eq!(Account::built(3).0, 3);
    assert_eq!(Account::told(4), 4);
}

#[test]
fn a_self_that_means_another_type_does_not_make_a_function_associated() {
    #[greenhack::exempt]
    async fn free(number: u32) -> u32 {
        struct Inner(Option<Box<Self>>);
        impl Inner {
            fn depth(&self) -> u32 {
                let Self(inner) = self;
                inner.as_ref().map_or(0, |inner| inner.depth() + 1)
            }
        }
        let said = stringify!(Self);
        assert_eq!(said, "Self");
        later(number).await + Inner(Some(Box::new(Inner(None)))).depth()
    }
    assert_eq!(free(1), 2);
}

// Traits.

trait Store {
    /// Looks `key` up.
    #[greenhack::exempt]
    async fn load(&self, key: &str) -> Option<String>;

    #[greenhack::exempt]
    async fn add(&mut self, number: u32)
    where
        Self: Sized;

    #[greenhack::exempt]
    async fn parse<T: FromStr>(&self, key: &str) -> Option<T> {
        self.load_async(key).await?.parse().ok()
    }

    #[greenhack::exempt]
    async fn keys<'a>(&'a self) -> impl Iterator<Item = &'a str>;

    #[greenhack::exempt]
    async fn capacity() -> usize;
}

#[derive(Clone)]
struct Memory(u32);

impl Memory {
    /// Not the one of the trait, and so not what the trait's plain method calls.
    async fn load_async(&self, _: &str) -> &'static str {
        "own"
    }
}

impl Store for Memory {
    async fn load_async(&self, _: &str) -> Option<String> {
        Some(later(self.0).await.to_string())
    }

    async fn add_async(&mut self, number: u32) {
        self.0 += later(number).await;
    }

    async fn keys_async<'a>(&'a self) -> impl Iterator<Item = &'a str> {
        ["one", "two"]
            .into_iter()
            .take(later(self.0).await as usize)
    }

    async fn capacity_async() -> usize {
        later(1).await
    }
}

/// The same with the attribute.
struct Attributed;

impl Store for Attributed {
    #[greenhack::exempt]
    async fn load(&self, key: &str) -> Option<String> {
        Some(later(key).await.to_owned())
    }

    #[greenhack::exempt]
    async fn add(&mut self, _: u32) {
        later(()).await;
    }

    #[greenhack::exempt]
    async fn keys<'a>(&'a self) -> impl Iterator<Item = &'a str> {
        [later("own").await].into_iter()
    }

    #[greenhack::exempt(associated)]
    async fn capacity() -> usize {
        later(2).await
    }
}

fn use_plain<S: Store>(store: &mut S) -> (Option<String>, Option<u32>, Vec<String>, usize) {
    store.add(1);
    let keys = store.keys().map(str::to_owned).collect();
    (store.load("7"), store.parse("7"), keys, S::capacity())
}

async fn use_async<S: Store>(store: &mut S) -> (Option<String>, Option<u32>, Vec<String>, usize) {
    store.add_async(1).await;
    let keys = store.keys_async().await.map(str::to_owned).collect();
    let load = store.load_async("7").await;
    (
        load,
        store.parse_async("7").await,
        keys,
        S::capacity_async().await,
    )
}

#[test]
fn a_trait_has_both_and_an_implementation_the_async_methods() {
    let seen = use_plain(&mut Memory(1));
    let (two, keys) = (
        Some("2".to_owned()),
        vec!["one".to_owned(), "two".to_owned()],
    );
    assert_eq!(seen, (two, Some(2), keys, 1));
    support::current_thread().block_on(async {
        assert_eq!(use_async(&mut Memory(1)).await, seen);
        assert_eq!(Memory(1).load_async("").await, "own");
    });
}

#[test]
fn an_implementation_can_have_the_attribute() {
    let seen = use_plain(&mut Attributed);
    let seven = Some("7".to_owned());
    assert_eq!(seen, (seven, Some(7), vec!["own".to_owned()], 2));
    let original = support::current_thread().block_on(async { use_async(&mut Attributed).await });
    assert_eq!(original, seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trait_can_promise_that_the_future_is_send() {
    trait Fetch: Send + Sync + 'static {
        #[greenhack::exempt]
        fn fetch(&self, key: &str) -> impl Future<Output = String> + Send;
    }
    struct Echo;
    impl Fetch for Echo {
        async fn fetch_async(&self, key: &str) -> String {
            later(key.to_owned()).await
        }
    }
    fn generic<F: Fetch>(fetch: Arc<F>) -> impl Future<Output = String> + Send {
        async move {
            let own = fetch.fetch_async("a").await;
            own + &run_sync(move || fetch.fetch("b")).await
        }
    }
    assert_eq!(tokio::spawn(generic(Arc::new(Echo))).await.unwrap(), "ab");
}

#[test]
fn a_trait_object_has_both() {
    trait Fetch {
        #[greenhack::exempt]
        fn fetch<'a>(&'a self, key: &'a str) -> Pin<Box<dyn Future<Output = String> + 'a>>;

        // As `#[async_trait]` writes it.
        #[greenhack::exempt]
        fn twice<'life0, 'life1, 'async_trait>(
            &'life0 self,
            key: &'life1 str,
        ) -> ::core::pin::Pin<Box<dyn ::core::future::Future<Output = String> + 'async_trait>>
        where
            'life0: 'async_trait,
            'life1: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async move { self.fetch_async(key).await.repeat(2) })
        }
    }
    struct Echo;
    impl Fetch for Echo {
        fn fetch_async<'a>(&'a self, key: &'a str) -> Pin<Box<dyn Future<Output = String> + 'a>> {
            Box::pin(later(key.to_owned()))
        }
    }
    let fetch: &dyn Fetch = &Echo;
    assert_eq!(fetch.fetch("a") + &fetch.twice("b"), "abb");
    let seen = support::current_thread().block_on(async { fetch.twice_async("b").await });
    assert_eq!(seen, "bb");
}

#[test]
fn async_trait_goes_together_with_exempt() {
    #[async_trait::async_trait]
    trait Fetch: Send + Sync {
        #[greenhack::exempt]
        async fn fetch(&self, key: &str) -> String;

        #[greenhack::exempt]
        async fn twice(&mut self, key: &str) -> String {
            self.fetch_async(key).await.repeat(2)
        }
    }

    struct Echo(usize);

    #[async_trait::async_trait]
    impl Fetch for Echo {
        async fn fetch_async(&self, key: &str) -> String {
            later(key.repeat(self.0)).await
        }
    }

    /// With the attribute, below that of async-trait here too.
    struct Attributed;

    #[async_trait::async_trait]
    impl Fetch for Attributed {
        #[greenhack::exempt]
        async fn fetch(&self, key: &str) -> String {
            later(key.to_uppercase()).await
        }
    }

    everywhere(|| {
        let fetch: &dyn Fetch = &Echo(3);
        assert_eq!(fetch.fetch("a"), "aaa");
        let mut fetch: Box<dyn Fetch> = Box::new(Attributed);
        assert_eq!(fetch.fetch("a") + &fetch.twice("b"), "ABB");
        assert_eq!(Echo(1).twice("c"), "cc");
    });
    in_each_place(|_| async {
        let mut fetch: Box<dyn Fetch> = Box::new(Echo(1));
        // The future is `Send`, as async-trait promises.
        let seen = tokio::spawn(async move {
            let fetched = fetch.fetch_async("a").await;
            fetched + &fetch.twice_async("b").await
        });
        assert_eq!(seen.await.unwrap(), "abb");
        let fetch: &dyn Fetch = &Echo(1);
        let (message, line, _) = panic_of(|| assert_eq!(fetch.fetch("a"), "a"));
        assert_eq!(line, line!() - 1);
        assert!(message.contains("fetch_async"), "{message}");
    });
}

#[test]
fn in_async_code_a_plain_method_panics_at_the_callers_line() {
    in_each_place(|_| async {
        let mut memory = Memory(1);
        let (_, line, _) = panic_of(|| memory.add(1));
        assert_eq!(line, line!() - 1);
        let (_, line, _) = panic_of(|| assert!(memory.load("key").is_none()));
        assert_eq!(line, line!() - 1);
        let (_, line, _) = panic_of(|| assert!(memory.parse::<u32>("key").is_none()));
        assert_eq!(line, line!() - 1);
        let (_, line, _) = panic_of(|| assert!(Attributed.load("key").is_none()));
        assert_eq!(line, line!() - 1);
        let (_, line, _) = panic_of(|| assert_eq!(Account::told(1), 1));
        assert_eq!(line, line!() - 1);
        assert_eq!(memory.0, 1);
    });
}

#[test]
fn generic_plain_code_calls_it_in_each_place() {
    in_each_place(|place| async move {
        let run = place.spawn(|| use_plain(&mut Memory(2)).1);
        assert_eq!(run.await.unwrap(), Some(3));
    });
}
