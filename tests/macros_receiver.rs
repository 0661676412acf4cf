//! Methods as entries: every receiver, and `self` wherever a body can say it.
#![deny(warnings)]

use std::fmt::{self, Debug, Display};
use std::future::Future;
use std::ops::AddAssign;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use greenhack::await_sync;

fn later<T>(value: T) -> T {
    await_sync(async {
        tokio::task::yield_now().await;
        value
    })
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Counter {
    count: u32,
    name: String,
}

impl Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.count)
    }
}

fn counter(count: u32) -> Counter {
    Counter {
        count,
        name: "c".to_owned(),
    }
}

impl Counter {
    #[greenhack::entry]
    fn by_value(self, more: u32) -> u32 {
        later(self.count) + more
    }

    #[greenhack::entry]
    fn by_mutable_value(mut self) -> Self {
        self.count += later(1);
        self
    }

    #[greenhack::entry]
    fn by_arc(self: Arc<Self>) -> u32 {
        later(self.count)
    }

    #[greenhack::entry]
    fn by_box(mut self: Box<Self>) -> Box<Self> {
        self.count += later(1);
        self
    }

    #[greenhack::entry(local)]
    fn by_rc(self: Rc<Self>) -> u32 {
        later(self.count)
    }

    #[greenhack::entry]
    fn by_pin(self: Pin<Box<Self>>) -> u32 {
        later(self.count)
    }

    #[greenhack::entry]
    fn by_static(&'static self) -> &'static str {
        later(());
        &self.name
    }

    #[greenhack::entry]
    fn by_reference(&self, more: u32) -> u32 {
        let count = || self.count;
        later(count()) + more
    }

    #[greenhack::entry]
    #[expect(clippy::needless_arbitrary_self_type)]
    fn by_named_reference<'a>(self: &'a Self) -> u32 {
        later(self.count)
    }

    #[greenhack::entry]
    fn by_reference_to_arc(self: &Arc<Self>) -> usize {
        later(());
        Arc::strong_count(self)
    }

    #[greenhack::entry]
    fn without_mention(&self) -> u32 {
        later(1)
    }

    fn helper(&self) -> u32 {
        self.count
    }

    #[greenhack::entry]
    #[allow(clippy::useless_vec)]
    fn in_macros(&self) -> Vec<String> {
        assert!(self.count > 0, "{self}");
        assert_eq!(self.count, self.helper(), "of {self}");
        let mut written = String::new();
        fmt::Write::write_fmt(&mut written, format_args!("{self}")).unwrap();
        vec![
            format!("{}", self.count),
            format!("{self} {self:?} {{self}} {:>2}", later(self.count)),
            format!(r"{self}\{}", "{self}"),
            vec!["{self}", &self.name].concat(),
            matches!(self, Self { count: 1, .. }).to_string(),
            format!("{}", vec![format!("{self}"), "{self}".to_owned()].join(",")),
            written,
        ]
    }

    #[greenhack::entry]
    fn with_nested_items(&self) -> u32 {
        use self::module::{self, seven};

        trait Get {
            fn get(&self) -> u32;

            fn twice(&self) -> u32 {
                self.get() * 2
            }
        }
        impl Get for u32 {
            fn get(&self) -> u32 {
                *self
            }
        }
        struct Sum(u32);
        impl AddAssign<u32> for Sum {
            fn add_assign(&mut self, other: u32) {
                self.0 += other;
            }
        }
        fn id<T>(value: T) -> T {
            value
        }
        macro_rules! count {
            () => {
                self.count
            };
        }
        let pointer: fn(u32) -> u32 = id;
        let mut sum = Sum(0);
        sum += pointer(self.count).twice();
        sum += self::module::seven() + seven() + module::seven();
        sum += count!();
        sum.0
    }

    #[greenhack::entry]
    fn with_self_type(&self) -> Self {
        let Self { count, name } = Self::clone(self);
        later(Self { count, name })
    }
}

mod module {
    pub(super) fn seven() -> u32 {
        7
    }
}

#[tokio::test]
async fn smoke() {
    assert_eq!(counter(1).by_reference(2).await, 3);
}

#[tokio::test]
async fn every_receiver_that_owns_is_accepted() {
    assert_eq!(counter(1).by_value(2).await, 3);
    assert_eq!(counter(1).by_mutable_value().await, counter(2));
    assert_eq!(Arc::new(counter(1)).by_arc().await, 1);
    assert_eq!(*Box::new(counter(1)).by_box().await, counter(2));
    assert_eq!(Rc::new(counter(1)).by_rc().await, 1);
    assert_eq!(Box::pin(counter(1)).by_pin().await, 1);
    assert_eq!(Box::leak(Box::new(counter(1))).by_static().await, "c");
}

#[tokio::test]
async fn a_shared_receiver_is_cloned() {
    assert_eq!(counter(1).by_named_reference().await, 1);
    let shared = Arc::new(counter(1));
    assert_eq!(shared.by_reference_to_arc().await, 2);
    assert_eq!(Arc::strong_count(&shared), 1);
    assert_eq!(shared.without_mention().await, 1);
    assert_eq!(shared.with_self_type().await, *shared);
}

#[tokio::test]
async fn self_is_found_in_macros_and_in_their_format_strings() {
    let all = counter(1).in_macros().await;
    let debug = format!("{:?}", counter(1));
    assert_eq!(
        all,
        [
            "1",
            &format!("c=1 {debug} {{self}}  1"),
            r"c=1\{self}",
            "{self}c",
            "true",
            "c=1,{self}",
            "c=1",
        ]
    );
}

/// Writes a method of its own, around what it is given.
macro_rules! method {
    ($(#[$attr:meta])* fn $name:ident(&$this:ident, $arg:ident: $ty:ty) $body:block) => {
        $(#[$attr])*
        fn $name(&$this, $arg: $ty) -> String {
            later(());
            $body
        }
    };
}

impl Counter {
    method! {
        #[greenhack::entry]
        fn by_a_macro(&self, more: u32) {
            format!("{self} and {more}, {}", self.helper())
        }
    }
}

#[tokio::test]
async fn self_and_other_names_are_found_in_a_method_that_a_macro_has_written() {
    let counter = counter(3);
    let (count, helper) = (counter.to_string(), counter.helper());
    let expected = format!("{count} and 4, {helper}");
    assert_eq!(counter.by_a_macro(4).await, expected);
}

#[tokio::test]
async fn nested_items_keep_their_own_self() {
    assert_eq!(counter(1).with_nested_items().await, 2 + 21 + 1);
}

#[tokio::test]
async fn the_whole_of_self_ends_with_the_run() {
    struct Ends(Arc<()>);
    struct Two {
        used: u8,
        #[expect(dead_code)]
        unused: Ends,
    }
    impl Two {
        #[greenhack::entry]
        fn run(self, other: std::sync::Weak<()>) -> (u8, usize) {
            let used = self.used;
            (later(used), other.strong_count())
        }
    }
    impl Drop for Ends {
        fn drop(&mut self) {
            assert!(greenhack::in_context());
            assert_eq!(Arc::strong_count(&self.0), 1);
        }
    }
    let unused = Ends(Arc::new(()));
    let weak = Arc::downgrade(&unused.0);
    assert_eq!(Two { used: 1, unused }.run(weak).await, (1, 1));
}

// Traits.

trait Handler {
    fn handle(&self, request: u32) -> impl Future<Output = u32> + Send;
}

impl Handler for Counter {
    #[greenhack::entry]
    fn handle(&self, request: u32) -> u32 {
        later(self.count) + request
    }
}

#[allow(async_fn_in_trait)]
trait Service: Clone + Send + 'static {
    async fn call(self, request: u32) -> u32;

    fn offset(&self) -> u32;

    #[greenhack::entry]
    fn call_twice(&self, request: u32) -> u32 {
        let once = await_sync(self.clone().call(request));
        await_sync(self.clone().call(once)) + self.offset()
    }

    #[greenhack::entry]
    fn named() -> &'static str {
        later(std::any::type_name::<Self>())
    }
}

impl Service for Counter {
    #[greenhack::entry]
    fn call(self, request: u32) -> u32 {
        later(self.count) + request
    }

    fn offset(&self) -> u32 {
        100
    }
}

#[derive(Clone)]
struct Generic<T>(T);

impl<T: Clone + Display + Send + Sync + 'static> Generic<T> {
    #[greenhack::entry]
    fn show<U: Display + Send + 'static>(&self, other: U) -> String {
        later(format!("{}{other}", self.0))
    }
}

#[tokio::test]
async fn trait_methods_can_be_entries() {
    assert_eq!(counter(1).handle(2).await, 3);
    assert_eq!(counter(1).call(2).await, 3);
    assert_eq!(counter(1).call_twice(2).await, 104);
    assert!(Counter::named().await.ends_with("Counter"));
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_run_on_many_threads() {
    let run = async { Generic(1).show('!').await + &counter(1).by_reference(2).await.to_string() };
    assert_eq!(tokio::spawn(run).await.unwrap(), "1!3");
}
