//! The cases, in terms of any [`Side`].

use std::future::{poll_fn, ready};
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Side, Work};
use greenhack_benches::{Held, Once, Race};

/// A case that is measured in rounds.
#[derive(Clone, Copy, Debug)]
pub enum Case {
    /// A future that is ready.
    Ready,
    /// A future that is pending once, in so many tasks.
    Pending(u64),
    /// The same, and each poll takes 20 KB of stack.
    Hungry(u64),
    /// 16 functions deep, with so many waits in the innermost.
    Deep(u64),
    /// Runs that wait once, from start to end, so many at a time.
    Runs(u64),
}

/// All of them: the name, how often a round does it, and what it is.
pub const CASES: [(&str, u64, Case); 9] = [
    ("ready", 200_000, Case::Ready),
    ("pending once, 64 tasks", 64_000, Case::Pending(64)),
    (
        "pending once, 10,000 tasks",
        2_000_000,
        Case::Pending(10_000),
    ),
    ("20 KB a poll, 64 tasks", 64_000, Case::Hungry(64)),
    ("20 KB a poll, 10,000 tasks", 400_000, Case::Hungry(10_000)),
    ("16 deep, 1 wait", 20_000, Case::Deep(1)),
    ("16 deep, 16 waits", 4_000, Case::Deep(16)),
    ("runs, one by one", 10_240, Case::Runs(1)),
    ("runs, 256 at a time", 10_240, Case::Runs(256)),
];

impl Case {
    /// Does it `n` times, and says how long that took.
    pub fn measure<S: Side>(self, n: u64) -> Duration {
        match self {
            Case::Ready => S::drive(async move { S::spawn(Ready(n)).await }),
            Case::Pending(tasks) => race::<S, false>(tasks, n / tasks),
            Case::Hungry(tasks) => race::<S, true>(tasks, n / tasks),
            Case::Deep(waits) => S::drive(async move { S::spawn(Deep { n, waits }).await }),
            Case::Runs(1) => S::drive(async move {
                let begin = Instant::now();
                for _ in 0..n {
                    black_box(S::spawn(WaitsOnce).await);
                }
                begin.elapsed()
            }),
            Case::Runs(batch) => S::drive(async move {
                let mut ends = Vec::new();
                let begin = Instant::now();
                for _ in 0..n / batch {
                    ends.extend((0..batch).map(|_| S::spawn(WaitsOnce)));
                    for end in ends.drain(..) {
                        black_box(end.await);
                    }
                }
                begin.elapsed()
            }),
        }
    }
}

#[derive(Clone)]
struct Ready(u64);

impl Work for Ready {
    type Output = Duration;

    fn plain<S: Side>(self, handle: S::Handle) -> Duration {
        let begin = Instant::now();
        for i in 0..self.0 {
            black_box(S::wait(handle, ready(black_box(i))));
        }
        begin.elapsed()
    }

    async fn native(self) -> Duration {
        let begin = Instant::now();
        for i in 0..self.0 {
            black_box(ready(black_box(i)).await);
        }
        begin.elapsed()
    }
}

#[derive(Clone)]
struct WaitsOnce;

impl Work for WaitsOnce {
    type Output = u64;

    fn plain<S: Side>(self, handle: S::Handle) -> u64 {
        S::wait(handle, Once::default())
    }

    async fn native(self) -> u64 {
        Once::default().await
    }
}

/// As a future of TLS below HTTP below something else may be: it needs 20 KB of stack
/// in each poll, and none in between.
fn hungry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    #[inline(never)]
    fn below<T>(f: impl FnOnce() -> T) -> T {
        let frames = black_box([1_u8; 20_000]);
        let output = f();
        black_box(&frames);
        output
    }
    async move {
        let mut future = pin!(future);
        poll_fn(|cx| below(|| future.as_mut().poll(cx))).await
    }
}

/// Waits again and again, in a race.
#[derive(Clone)]
struct Waits<const HUNGRY: bool> {
    race: Arc<Race>,
    waits: u64,
}

impl<const HUNGRY: bool> Work for Waits<HUNGRY> {
    type Output = ();

    fn plain<S: Side>(self, handle: S::Handle) {
        S::wait(handle, self.race.ready());
        for _ in 0..self.waits {
            if HUNGRY {
                black_box(S::wait(handle, hungry(Once::default())));
            } else {
                black_box(S::wait(handle, Once::default()));
            }
        }
        S::wait(handle, self.race.done());
    }

    async fn native(self) {
        self.race.ready().await;
        for _ in 0..self.waits {
            if HUNGRY {
                black_box(hungry(Once::default()).await);
            } else {
                black_box(Once::default().await);
            }
        }
        self.race.done().await;
    }
}

fn race<S: Side, const HUNGRY: bool>(tasks: u64, waits: u64) -> Duration {
    S::drive(async move {
        let race = Race::new(tasks);
        let work = Waits::<HUNGRY> {
            race: race.clone(),
            waits,
        };
        let ends: Vec<_> = (0..tasks).map(|_| S::spawn(work.clone())).collect();
        let time = race.run().await;
        for end in ends {
            end.await;
        }
        time
    })
}

/// Calls that go 16 functions deep.
#[derive(Clone)]
struct Deep {
    n: u64,
    waits: u64,
}

impl Work for Deep {
    type Output = Duration;

    fn plain<S: Side>(self, handle: S::Handle) -> Duration {
        let begin = Instant::now();
        for _ in 0..self.n {
            black_box(plain::a::<S>(handle, black_box(self.waits)));
        }
        begin.elapsed()
    }

    async fn native(self) -> Duration {
        let begin = Instant::now();
        for _ in 0..self.n {
            black_box(native::a(black_box(self.waits)).await);
        }
        begin.elapsed()
    }

    fn boxed(self) -> Pin<Box<dyn Future<Output = Duration> + Send>> {
        Box::pin(async move {
            let begin = Instant::now();
            for _ in 0..self.n {
                black_box(boxed(16, black_box(self.waits)).await);
            }
            begin.elapsed()
        })
    }
}

/// Declares functions that call one another, and whose last one waits.
macro_rules! chain {
    (@plain $n:ident $next:ident $($rest:ident)*) => {
        #[inline(never)]
        pub(super) fn $n<S: Side>(handle: S::Handle, waits: u64) -> u64 {
            $next::<S>(handle, waits) + 1
        }
        chain!(@plain $next $($rest)*);
    };
    (@plain $n:ident) => {
        #[inline(never)]
        pub(super) fn $n<S: Side>(handle: S::Handle, waits: u64) -> u64 {
            (0..waits).map(|_| S::wait(handle, Once::default())).sum()
        }
    };
    (@native $n:ident $next:ident $($rest:ident)*) => {
        pub(super) async fn $n(waits: u64) -> u64 {
            $next(waits).await + 1
        }
        chain!(@native $next $($rest)*);
    };
    (@native $n:ident) => {
        pub(super) async fn $n(waits: u64) -> u64 {
            let mut sum = 0;
            for _ in 0..waits {
                sum += Once::default().await;
            }
            sum
        }
    };
}

mod plain {
    use super::{Once, Side};
    chain!(@plain a b c d e f g h i j k l m n o p);
}

mod native {
    use super::Once;
    chain!(@native a b c d e f g h i j k l m n o p);
}

fn boxed(levels: u64, waits: u64) -> Pin<Box<dyn Future<Output = u64> + Send>> {
    Box::pin(async move {
        if levels > 1 {
            return boxed(levels - 1, waits).await + 1;
        }
        let mut sum = 0;
        for _ in 0..waits {
            sum += Once::default().await;
        }
        sum
    })
}

/// Waits in a race, once.
#[derive(Clone)]
struct Passes {
    race: Arc<Race>,
    is_hungry: bool,
}

impl Passes {
    async fn pass(self) {
        self.race.ready().await;
    }
}

impl Work for Passes {
    type Output = ();

    fn plain<S: Side>(self, handle: S::Handle) {
        if self.is_hungry {
            S::wait(handle, hungry(self.pass()));
        } else {
            S::wait(handle, self.pass());
        }
    }

    async fn native(self) {
        if self.is_hungry {
            hungry(self.pass()).await;
        } else {
            self.pass().await;
        }
    }
}

/// Suspends `count` tasks at once: microseconds to make one, KiB that one holds, KiB of
/// page tables, mappings of all, microseconds to resume and end one.
pub(crate) fn suspend<S: Side>(count: usize, is_hungry: bool) -> [f64; 5] {
    S::drive(async move {
        // What a runtime makes for itself is not what a run holds.
        S::spawn(WaitsOnce).await;
        let before = Held::now();
        let race = Race::new(count as u64);
        let work = Passes {
            race: race.clone(),
            is_hungry,
        };
        let begin = Instant::now();
        let tasks: Vec<_> = (0..count).map(|_| S::spawn(work.clone())).collect();
        race.all_ready().await;
        let made = begin.elapsed();
        let held = Held::now();
        let begin = Instant::now();
        race.open();
        for task in tasks {
            task.await;
        }
        let ended = begin.elapsed();
        let each = |kib: usize, before: usize| kib.saturating_sub(before) as f64 / count as f64;
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
        [
            micros(made),
            each(held.resident, before.resident),
            each(held.tables, before.tables),
            held.mappings.saturating_sub(before.mappings) as f64,
            micros(ended),
        ]
    })
}
