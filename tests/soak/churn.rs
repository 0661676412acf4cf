//! Runs that wait, nest, panic and are cancelled, as the dice want it.

use std::env;
use std::fs;
use std::future::{pending, poll_fn};
use std::hint::black_box;
use std::panic::{self, AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Fixture, Place};
use greenhack::{
    Builder, Cancelled, await_in_drop, await_or_cancelled, await_sync, builder, join, leaked_runs,
    limit_stack_memory, map_concurrent, nested, race, run_sync_local, scope, shield, time,
};
use tokio::runtime::LocalRuntime;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_local, yield_now};

const KIB: usize = 1024;

/// Dice: the generator splitmix64.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// Dice for somebody else.
    fn child(&mut self) -> Dice {
        Dice(self.number())
    }
}

/// What has happened.
#[derive(Default)]
struct Counts {
    runs: AtomicU64,
    acts: AtomicU64,
    ended: AtomicU64,
    panicked: AtomicU64,
    cancelled: AtomicU64,
    dropped: AtomicU64,
    caught: AtomicU64,
    timeouts: AtomicU64,
    cleanups: AtomicU64,
    /// Values that are on some stack, or in some future.
    live: AtomicU64,
}

/// A value that is counted while it lives.
struct Token(Arc<Counts>);

impl Token {
    fn new(counts: &Arc<Counts>) -> Token {
        counts.live.fetch_add(1, Relaxed);
        Token(counts.clone())
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Relaxed);
    }
}

/// A value whose destructor waits, however the scope is left.
struct Cleanup {
    token: Token,
    yields: u64,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        for _ in 0..self.yields {
            await_in_drop(yield_now());
        }
        self.token.0.cleanups.fetch_add(1, Relaxed);
    }
}

/// The payload of a panic that is meant.
struct Meant(#[allow(dead_code, reason = "it is dropped with the payload")] Token);

/// Plain code as the dice want it.
fn act(dice: &mut Dice, depth: u64, counts: &Arc<Counts>) -> u64 {
    counts.acts.fetch_add(1, Relaxed);
    let token = Token::new(counts);
    let below = |mut dice: Dice| act(&mut dice, depth + 1, counts);
    // What nests is rarer the deeper it is.
    let faces = if depth < 3 { 20 } else { 8 };
    let sum = match dice.below(faces) {
        0 => await_sync(async { 1 }),
        1 => {
            await_sync(yield_now());
            1
        }
        2 => {
            for _ in 0..dice.below(8) {
                await_sync(yield_now());
            }
            1
        }
        3 => {
            time::sleep(Duration::from_millis(dice.below(2)));
            1
        }
        4 => dive(dice.below(64), counts),
        5 => {
            let cleanup = Cleanup {
                token: Token::new(counts),
                yields: dice.below(4),
            };
            await_sync(yield_now());
            drop(cleanup);
            1
        }
        6 => {
            let (inner, payload) = (counts.clone(), Token::new(counts));
            let is_future = dice.below(2) == 0;
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let _cleanup = Cleanup {
                    token: Token::new(&inner),
                    yields: 1,
                };
                if is_future {
                    await_sync(async {
                        yield_now().await;
                        panic_any(Meant(payload))
                    })
                } else {
                    await_sync(yield_now());
                    panic_any(Meant(payload))
                }
            }));
            meant(counts, caught)
        }
        7 => match await_or_cancelled(yield_now()) {
            Ok(()) => 1,
            Err(cancelled) => resume_unwind(Box::new(cancelled)),
        },
        8 => {
            let (mut a, mut b) = (dice.child(), dice.child());
            let (a, b) = join(
                || act(&mut a, depth + 1, counts),
                || act(&mut b, depth + 1, counts),
            );
            a + b
        }
        9 => {
            let all = (0..dice.below(4)).map(|_| dice.child());
            let all: Vec<Dice> = all.collect();
            map_concurrent(2, all, below).into_iter().sum()
        }
        10 => {
            let all: Vec<Dice> = (0..3).map(|_| dice.child()).collect();
            race(all.into_iter().map(|dice| move || below(dice)))
        }
        11 => {
            let (one, other) = (dice.child(), dice.child());
            scope(|scope| {
                let ended = scope.spawn(move || below(one));
                let aborted = scope.spawn(move || {
                    let _cleanup = Cleanup {
                        token: Token::new(counts),
                        yields: 2,
                    };
                    below(other);
                    await_sync(pending::<()>());
                });
                await_sync(yield_now());
                aborted.abort();
                let _ = aborted.join();
                ended
                    .join()
                    .unwrap_or_else(|payload| resume_unwind(payload))
            })
        }
        12 => {
            let dice = dice.child();
            shield(|| below(dice))
        }
        13 | 14 => {
            let (dice, limit) = (dice.child(), Duration::from_millis(dice.below(3)));
            let waits_for_ever = limit.as_millis() == 1;
            let timed = time::timeout(limit, || {
                let sum = below(dice);
                if waits_for_ever {
                    await_sync(pending::<()>());
                }
                sum
            });
            timed.unwrap_or_else(|_| {
                counts.timeouts.fetch_add(1, Relaxed);
                1
            })
        }
        15 | 16 => {
            let (mut dice, counts) = (dice.child(), counts.clone());
            let size = sizes(&mut dice);
            let run = size.run_sync_local(move || act(&mut dice, depth + 1, &counts));
            await_sync(run)
        }
        17 => {
            let dice = dice.child();
            nested(|| below(dice), async |run| run.await)
        }
        18 => {
            let dice = dice.child();
            let caught = catch_unwind(AssertUnwindSafe(|| below(dice)));
            meant(counts, caught)
        }
        // A nested run that is dropped while it is suspended.
        _ => {
            let (mut dice, inner) = (dice.child(), counts.clone());
            let mut run = Box::pin(run_sync_local(move || {
                act(&mut dice, depth + 1, &inner);
                await_sync(pending::<()>());
            }));
            await_sync(poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx).is_ready())));
            drop(run);
            1
        }
    };
    // A panic that nobody on the way may catch.
    if dice.below(40) == 0 {
        panic_any(Meant(token));
    }
    sum
}

/// Lets what is not meant pass, as code should that catches panics.
fn meant(counts: &Counts, caught: Result<u64, Box<dyn std::any::Any + Send>>) -> u64 {
    caught.unwrap_or_else(|payload| {
        if !payload.is::<Meant>() {
            resume_unwind(payload);
        }
        counts.caught.fetch_add(1, Relaxed);
        1
    })
}

/// Uses some of the stack, and waits there.
#[inline(never)]
fn dive(depth: u64, counts: &Arc<Counts>) -> u64 {
    let used = black_box([depth as u8; 256]);
    if depth == 0 {
        let _token = Token::new(counts);
        await_sync(yield_now());
        return 1;
    }
    let sum = dive(depth - 1, counts);
    black_box(&used);
    sum
}

/// A stack of a size that the code above fits in, and the classes differ by.
fn sizes(dice: &mut Dice) -> Builder {
    let size = match dice.below(32) {
        0 => 2048,
        1..12 => 1024,
        _ => 256,
    };
    builder().stack_size(size * KIB)
}

/// How many runs there are at a time.
const AT_ONCE: usize = 200;

/// Starts so many runs in `place`, lets the dice decide how they end, and waits until
/// nothing is left of them.
async fn churn(place: Place, mut dice: Dice, counts: &Arc<Counts>) {
    let mut runs: Vec<(JoinHandle<u64>, u64)> = Vec::new();
    for _ in 0..AT_ONCE {
        counts.runs.fetch_add(1, Relaxed);
        let (mut own, inner) = (dice.child(), counts.clone());
        let token = Token::new(counts);
        let closure = move || {
            let _token = token;
            act(&mut own, 0, &inner)
        };
        match dice.below(16) {
            // It is never polled.
            0 => {
                drop(sizes(&mut dice).run_sync(closure));
                counts.dropped.fetch_add(1, Relaxed);
            }
            // It is polled once, or twice, and dropped in this very task.
            fate @ (1 | 2) if place != Place::Worker => {
                let mut run = Box::pin(sizes(&mut dice).run_sync_local(closure));
                let polled = poll_times(fate, run.as_mut(), counts).await;
                // A panic of the cleanup leaves by the drop, as from any value.
                let dropped = catch_unwind(AssertUnwindSafe(|| drop(run)));
                if let Err(payload) = dropped {
                    assert!(payload.is::<Meant>(), "a panic that nobody meant");
                }
                if !polled {
                    counts.dropped.fetch_add(1, Relaxed);
                }
            }
            // It is aborted after some turns, unless it ends before.
            3..7 => {
                let run = place.spawn_with(sizes(&mut dice), closure);
                runs.push((run, dice.below(12)));
            }
            _ => runs.push((place.spawn_with(sizes(&mut dice), closure), u64::MAX)),
        }
    }
    for turn in 0..12 {
        let due = runs.iter().filter(|(_, abort)| *abort == turn);
        due.for_each(|(run, _)| run.abort());
        yield_now().await;
    }
    for (run, _) in runs {
        match run.await {
            Ok(_) => counts.ended.fetch_add(1, Relaxed),
            Err(error) if error.is_cancelled() => counts.cancelled.fetch_add(1, Relaxed),
            Err(error) => {
                let payload = error.into_panic();
                assert!(payload.is::<Meant>(), "a panic that nobody meant");
                counts.panicked.fetch_add(1, Relaxed)
            }
        };
    }
    // Some are still cleaning up, on this thread or on another.
    let begin = Instant::now();
    while counts.live.load(Relaxed) > 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "something stays");
        yield_now().await;
    }
}

/// Polls a run so many times; whether it has ended.
async fn poll_times<F: Future>(
    times: u64,
    mut run: std::pin::Pin<&mut F>,
    counts: &Counts,
) -> bool {
    for _ in 0..times {
        let caught = poll_fn(|cx| {
            let poll = AssertUnwindSafe(|| run.as_mut().poll(cx).is_ready());
            Poll::Ready(catch_unwind(poll))
        });
        match caught.await {
            Ok(false) => {}
            Ok(true) => {
                counts.ended.fetch_add(1, Relaxed);
                return true;
            }
            Err(payload) => {
                assert!(payload.is::<Meant>(), "a panic that nobody meant");
                counts.panicked.fetch_add(1, Relaxed);
                return true;
            }
        }
        yield_now().await;
    }
    false
}

/// Runs on a thread that ends, and with it its stacks.
fn on_a_thread(mut dice: Dice, counts: &Arc<Counts>) {
    let counts = counts.clone();
    let thread = thread::spawn(move || {
        LocalRuntime::new().unwrap().block_on(async {
            for _ in 0..20 {
                counts.runs.fetch_add(1, Relaxed);
                let inner = counts.clone();
                let run = sizes(&mut dice).run_sync_local(move || dive(7, &inner));
                assert_eq!(spawn_local(run).await.unwrap(), 1);
                counts.ended.fetch_add(1, Relaxed);
            }
        });
    });
    thread.join().unwrap();
}

/// What this process holds: pages in memory, and mappings.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    pages: u64,
    mappings: u64,
}

impl Held {
    fn now() -> Held {
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        Held {
            pages: pages.split(' ').nth(1).unwrap().parse().unwrap(),
            mappings: maps.lines().count() as u64,
        }
    }

    fn most(self, other: Held) -> Held {
        Held {
            pages: self.pages.max(other.pages),
            mappings: self.mappings.max(other.mappings),
        }
    }
}

/// How long a soak is.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "the short one has epochs, the long one a time")]
pub(crate) enum Length {
    Epochs(u64),
    Time(Duration),
}

/// Suspends so many runs at once, each on a stack of its own, and lets them end.
async fn fill(place: Place, size: usize, count: usize) {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::new(AtomicU64::new(0));
    let runs: Vec<_> = (0..count)
        .map(|_| {
            let (gate, waiting) = (gate.clone(), waiting.clone());
            let run = builder().stack_size(size * KIB);
            place.spawn_with(run, move || {
                dive((size as u64 / 4).min(64), &Arc::default());
                waiting.fetch_add(1, Relaxed);
                await_sync(gate.acquire()).unwrap().forget();
            })
        })
        .collect();
    let failed = || runs.iter().filter(|run| run.is_finished()).count();
    while (waiting.load(Relaxed) as usize) + failed() < count {
        yield_now().await;
    }
    assert_eq!(failed(), 0, "there are not enough stacks of {size} KiB");
    gate.add_permits(count);
    for run in runs {
        run.await.unwrap();
    }
}

/// The sizes of stacks, in KiB, and how many of each there are on a thread from the
/// beginning: more than are used at a time, and as many as a thread keeps of the largest.
const STACKS: [(usize, usize); 4] = [(64, 600), (256, 600), (1024, 600), (2048, 256)];

/// Churns, and asserts that it leaves nothing behind.
pub(crate) fn soak(length: Length) {
    let seed = env::var("GREENHACK_SOAK_SEED").ok();
    let seed = seed.map_or(0x6772_6565_6e68_6163, |seed| seed.parse().unwrap());
    eprintln!("the seed is {seed}");
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let payload = info.payload();
        if !payload.is::<Meant>() && !payload.is::<Cancelled>() {
            hook(info);
        }
    }));
    let mut dice = Dice(seed);
    let counts = Arc::new(Counts::default());
    let fixtures = [Place::InPlace, Place::Local, Place::Worker].map(Fixture::new);
    for fixture in &fixtures {
        for (size, count) in STACKS {
            fixture.block_on(fill(fixture.place, size, count));
        }
    }
    let (mut warm, mut last) = (Held::default(), Held::default());
    let (begin, mut epoch) = (Instant::now(), 0);
    let done = |epoch: u64| match length {
        Length::Epochs(epochs) => epoch as f64 / epochs as f64,
        Length::Time(limit) => begin.elapsed().as_secs_f64() / limit.as_secs_f64(),
    };
    while done(epoch) < 1.0 {
        for fixture in &fixtures {
            let dice = dice.child();
            fixture.block_on(churn(fixture.place, dice, &counts));
        }
        on_a_thread(dice.child(), &counts);
        assert_eq!(leaked_runs(), 0);
        assert_eq!(counts.live.load(Relaxed), 0);
        // It is warm after a third. What counts is the last third.
        let held = Held::now();
        match done(epoch) {
            0.0..0.34 => warm = warm.most(held),
            0.67.. => last = last.most(held),
            _ => {}
        }
        epoch += 1;
        if epoch % 500 == 0 {
            let runs = counts.runs.load(Relaxed);
            eprintln!("{:?}: {runs} runs, {held:?}", begin.elapsed());
        }
    }
    // All stacks have come back: there are as many as at the beginning, without a new one.
    // (Those of the workers are not evenly distributed.)
    limit_stack_memory(0);
    for (size, count) in STACKS {
        fixtures[0].block_on(fill(Place::InPlace, size, count));
    }
    limit_stack_memory(usize::MAX);
    let get = |count: &AtomicU64| count.load(Relaxed);
    eprintln!(
        "{} runs in {:?}: {} ended, {} panicked, {} aborted, {} dropped; in them {} acts, {} \
         panics caught, {} timeouts, {} destructors that waited; warm {warm:?}, last {last:?}",
        get(&counts.runs),
        begin.elapsed(),
        get(&counts.ended),
        get(&counts.panicked),
        get(&counts.cancelled),
        get(&counts.dropped),
        get(&counts.acts),
        get(&counts.caught),
        get(&counts.timeouts),
        get(&counts.cleanups),
    );
    let all = [
        &counts.ended,
        &counts.panicked,
        &counts.cancelled,
        &counts.dropped,
    ];
    assert_eq!(all.map(get).iter().sum::<u64>(), get(&counts.runs));
    // Each way to end was taken.
    assert!(all.map(get).iter().all(|&count| count > 0));
    assert!(get(&counts.caught) > 0 && get(&counts.timeouts) > 0);
    assert!(
        last.pages as f64 <= 1.02 * warm.pages as f64,
        "resident memory grows: {warm:?}, then {last:?}"
    );
    // A thread of the allocator or of the pool may come late.
    assert!(
        last.mappings <= warm.mappings + 4,
        "{warm:?}, then {last:?}"
    );
}
