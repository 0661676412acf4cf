//! Sixteen functions that call one another, the last of which waits.

use crate::Once;

/// Declares a module with the function `sixteen`, which is plain and waits so many times
/// by a function that is named by its full path.
#[macro_export]
macro_rules! sixteen_plain {
    (mod $module:ident, $wait:path) => {
        mod $module {
            $crate::sixteen_plain!(@chain $wait; a b c d e f g h i j k l m n o p);

            pub(super) fn sixteen(waits: u64) -> u64 {
                a(waits)
            }
        }
    };
    (@chain $wait:path; $n:ident $next:ident $($rest:ident)*) => {
        #[inline(never)]
        fn $n(waits: u64) -> u64 {
            $next(waits) + 1
        }
        $crate::sixteen_plain!(@chain $wait; $next $($rest)*);
    };
    (@chain $wait:path; $n:ident) => {
        #[inline(never)]
        fn $n(waits: u64) -> u64 {
            (0..waits).map(|_| $wait($crate::Once::default())).sum()
        }
    };
}

macro_rules! chain {
    ($n:ident $next:ident $($rest:ident)*) => {
        async fn $n(waits: u64) -> u64 {
            $next(waits).await + 1
        }
        chain!($next $($rest)*);
    };
    ($n:ident) => {
        async fn $n(waits: u64) -> u64 {
            let mut sum = 0;
            for _ in 0..waits {
                sum += Once::default().await;
            }
            sum
        }
    };
}

/// The same as async functions.
pub async fn sixteen_async(waits: u64) -> u64 {
    a(waits).await
}

chain!(a b c d e f g h i j k l m n o p);
