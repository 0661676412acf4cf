//! `join!` and `race!`: closures of which each has a type of its own.
#![forbid(unsafe_code)]

use super::nursery;
use super::scope::{Output, ended, required};

/// Suspends until closures have ended that run at once, and returns their results as a
/// tuple.
///
/// As the function [`join()`](crate::join()), for up to twelve closures. More are for
/// [`join_all`](crate::join_all) or [`scope`](crate::scope()).
///
/// # Cancel safety
///
/// As [`join()`](crate::join()).
///
/// # Panics
///
/// As [`join()`](crate::join()).
///
/// # Examples
///
/// ```
/// use greenhack::{await_sync, join};
/// use tokio::task::yield_now;
///
/// fn price(dish: &str) -> usize {
///     await_sync(yield_now());
///     dish.len()
/// }
///
/// let dishes = vec!["soup", "stew"];
/// let (price, is_open, table) = join!(
///     || dishes.iter().map(|dish| price(dish)).sum::<usize>(),
///     || true,
///     || await_sync(async { "at the window" }),
/// );
/// assert_eq!((price, is_open, table), (8, true, "at the window"));
/// ```
#[macro_export]
macro_rules! join {
    ($($closure:expr),+ $(,)?) => {
        $crate::__private::join(($($crate::__private::boxed($closure),)+))
    };
}

/// Suspends until the first of some closures has ended that run at once, and returns its
/// result.
///
/// As the function [`race()`](crate::race()), for closures that have their result in
/// common, but not their type.
///
/// # Cancel safety
///
/// As [`join()`](crate::join()).
///
/// # Panics
///
/// As [`race()`](crate::race()).
///
/// # Examples
///
/// ```
/// use std::future::pending;
/// use greenhack::{await_sync, race};
///
/// let dish = String::from("soup");
/// let answer = race!(
///     || await_sync(pending()),
///     || format!("{dish} is ready"),
///     || await_sync(async { "closed".to_owned() }),
/// );
/// assert_eq!(answer, "soup is ready");
/// ```
#[macro_export]
macro_rules! race {
    ($($closure:expr),+ $(,)?) => {
        $crate::race([$($crate::__private::boxed($closure)),+])
    };
}

/// What [`join!`](crate::join!) calls.
#[track_caller]
pub fn join<'env, T: Closures<'env>>(closures: T) -> T::Outputs {
    closures.join()
}

type Boxed<'env, R> = Box<dyn FnOnce() -> R + 'env>;

/// Makes all closures of one result be of one type, and what is no closure an error of the
/// compiler that says only that.
pub fn boxed<'env, R>(closure: impl FnOnce() -> R + 'env) -> Boxed<'env, R> {
    Box::new(closure)
}

/// Tuples of closures.
#[diagnostic::on_unimplemented(
    message = "`join!` takes up to twelve closures",
    label = "more than twelve",
    note = "use `greenhack::join_all` or `greenhack::scope`"
)]
pub trait Closures<'env> {
    type Outputs;

    fn join(self) -> Self::Outputs;
}

macro_rules! closures {
    ($($R:ident $f:ident $output:ident),+) => {
        #[diagnostic::do_not_recommend]
        impl<'env, $($R: 'env),+> Closures<'env> for ($(Boxed<'env, $R>,)+) {
            type Outputs = ($($R,)+);

            #[track_caller]
            fn join(self) -> Self::Outputs {
                let ($($f,)+) = self;
                $(let $output = Output::new();)+
                nursery::run("join!", |scope| {
                    $(
                        let fill = $output.clone();
                        scope.add(move || required(&scope.nursery, $f, &fill));
                    )+
                    None
                });
                ($(ended(&$output),)+)
            }
        }
    };
}

closures!(A a ra);
closures!(A a ra, B b rb);
closures!(A a ra, B b rb, C c rc);
closures!(A a ra, B b rb, C c rc, D d rd);
closures!(A a ra, B b rb, C c rc, D d rd, E e re);
closures!(A a ra, B b rb, C c rc, D d rd, E e re, F f rf);
closures!(A a ra, B b rb, C c rc, D d rd, E e re, F f rf, G g rg);
closures!(A a ra, B b rb, C c rc, D d rd, E e re, F f rf, G g rg, H h rh);
closures!(A a ra, B b rb, C c rc, D d rd, E e re, F f rf, G g rg, H h rh, I i ri);
closures!(A a ra, B b rb, C c rc, D d rd, E e re, F f rf, G g rg, H h rh, I i ri, J j rj);
closures!(A a ra, B b rb, C c rc, D d rd, E e re, F f rf, G g rg, H h rh, I i ri, J j rj, K k rk);
closures!(A a ra, B b rb, C c rc, D d rd, E e re, F f rf, G g rg, H h rh, I i ri, J j rj, K k rk, L l rl);
