//! Free stacks that a thread does not need at hand.
//!
//! To give the memory of a stack back takes the system microseconds, and to get it again
//! takes longer still. So no run does either where it can be helped: what a thread has
//! too much of it puts on a shelf, as it is, and a thread of ours cools what nobody has
//! taken from there for a whole round.
//!
//! ```text
//!   at hand ──── too many ────▶ warm ──── idle for a round ────▶ cold
//!           ◀─── none left ────      ◀────── none left ────────
//! ```
//!
//! A stack that is used again and again is never idle. So now and then one comes as worn,
//! and is cooled in any case.
//!
//! The thread is started when there are many warm ones, or one that is worn, and ends when
//! no shelf has anything left to cool.
//!
//! # Invariants
//!
//! - K1 A stack of a shelf is on it, or in the hands of the cooler, which brings it back
//!   cold; where there are no slabs, it unmaps it. A shelf that is emptied waits for that,
//!   a second at most; what is not back then keeps its slab mapped (P2).
//! - K2 No more are idle than are warm: who takes warm ones says so before the lock is
//!   free again.
#![forbid(unsafe_code)]

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{self, Arc, PoisonError};
use std::thread;
use std::time::Duration;

use super::slab;
use crate::ground::error::discard;
use crate::ground::switch::Stack;
use crate::ground::sync::{Condvar, Mutex, MutexGuard};
use crate::ground::sys;

/// So many are worth a thread.
const FULL: usize = 64;

/// What has not been taken for so long, or for twice as long, is cooled.
const ROUND: Duration = if cfg!(test) {
    Duration::from_millis(10)
} else {
    Duration::from_secs(1)
};

/// The cooler has so many in its hands at most.
const HANDFUL: usize = 64;

/// How long it may take to cool a handful. It takes longer if the thread is no more: in a
/// child that was forked, or in a process that ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// The shelf of one thread, for stacks of one size.
#[derive(Default)]
pub(crate) struct Shelf(Arc<Shared>);

#[derive(Default)]
struct Shared {
    stacks: Mutex<Stacks>,
    /// Told when the cooler has brought some back.
    brought: Condvar,
}

#[derive(Default)]
struct Stacks {
    /// Last in, first out.
    warm: Vec<Stack>,
    /// How many of them, the first, have been there since the last round (K2).
    idle: usize,
    /// To be cooled by the next round, and taken only if there is no other.
    worn: Vec<Stack>,
    cold: Vec<Stack>,
    /// The cooler has some in its hands.
    are_away: bool,
    /// The cooler knows of this shelf.
    is_known: bool,
}

impl Shelf {
    /// Takes up to `most` stacks that are warm, or another one.
    pub(crate) fn take(&self, most: usize, at_hand: &mut Vec<Stack>) -> Option<Stack> {
        let mut stacks = self.0.lock();
        let left = stacks.warm.len().saturating_sub(most);
        at_hand.extend(stacks.warm.drain(left..));
        stacks.idle = stacks.idle.min(left);
        let stack = at_hand.pop().or_else(|| stacks.cold.pop());
        stack.or_else(|| stacks.worn.pop())
    }

    /// Puts stacks on it that may soon be needed again.
    pub(crate) fn put(&self, more: impl Iterator<Item = Stack>) {
        let mut stacks = self.0.lock();
        stacks.warm.extend(more);
        if stacks.warm.len() >= FULL {
            self.call_cooler(stacks);
        }
    }

    /// Puts a stack on it that is to give its memory back.
    pub(crate) fn put_worn(&self, stack: Stack) {
        let mut stacks = self.0.lock();
        stacks.worn.push(stack);
        self.call_cooler(stacks);
    }

    /// Waits for what the cooler has in its hands. Returns whether that was something, and
    /// is back.
    #[cold]
    pub(crate) fn wait(&self) -> bool {
        let stacks = self.0.lock();
        stacks.are_away && !self.0.wait_for_cooler(stacks).are_away
    }

    /// Takes all.
    pub(crate) fn empty(&self) -> Vec<Stack> {
        let mut stacks = self.0.lock();
        let mut all = mem::take(&mut stacks.warm);
        stacks.idle = 0;
        all.append(&mut stacks.worn);
        // It finds no more to take, and brings back what it has.
        let mut stacks = self.0.wait_for_cooler(stacks);
        all.append(&mut stacks.cold);
        all
    }

    fn call_cooler(&self, mut stacks: MutexGuard<'_, Stacks>) {
        if mem::replace(&mut stacks.is_known, true) {
            return;
        }
        drop(stacks);
        if !come_to(&self.0) {
            self.0.cool_all();
        }
    }

    /// How many are warm, and how many cold.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        let stacks = self.0.lock();
        (stacks.warm.len(), stacks.cold.len())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stacks> {
        self.stacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_cooler<'a>(&self, mut stacks: MutexGuard<'a, Stacks>) -> MutexGuard<'a, Stacks> {
        while stacks.are_away {
            let waited = self.brought.wait_timeout(stacks, PATIENCE);
            let (again, limit) = waited.unwrap_or_else(PoisonError::into_inner);
            stacks = again;
            if limit.timed_out() {
                break;
            }
        }
        stacks
    }

    /// Cools what is worn, and what has been idle since the last round.
    fn next_round(&self) {
        loop {
            let mut stacks = self.lock();
            let rest = stacks.worn.len().saturating_sub(HANDFUL);
            let mut handful = stacks.worn.split_off(rest);
            let idle = stacks.idle;
            let left = idle.saturating_sub(HANDFUL - handful.len());
            handful.extend(stacks.warm.drain(left..idle));
            stacks.idle = left;
            if handful.is_empty() {
                stacks.idle = stacks.warm.len();
                return;
            }
            stacks.are_away = true;
            // The owner goes on meanwhile.
            drop(stacks);
            let cooled: Vec<Stack> = handful.into_iter().filter_map(slab::cool).collect();
            let mut stacks = self.lock();
            stacks.cold.extend(cooled);
            stacks.are_away = false;
            drop(stacks);
            self.brought.notify_all();
        }
    }

    /// Sees to it that the cooler can come again after a round that has panicked. What it
    /// had in its hands is lost.
    #[cold]
    fn recover(&self) {
        let mut stacks = self.lock();
        stacks.idle = 0;
        stacks.are_away = false;
        drop(stacks);
        self.brought.notify_all();
    }

    /// Does without the cooler.
    #[cold]
    fn cool_all(&self) {
        self.next_round();
        self.next_round();
        self.lock().is_known = false;
    }

    /// Whether there is something left to cool. If not, the cooler forgets the shelf.
    fn is_warm(&self) -> bool {
        let mut stacks = self.lock();
        stacks.is_known = !stacks.warm.is_empty() || !stacks.worn.is_empty();
        stacks.is_known
    }
}

/// The shelves that the cooler knows. It runs while there are some.
///
/// This is locked before a shelf is, never after.
static KNOWN: sync::Mutex<Vec<Arc<Shared>>> = sync::Mutex::new(Vec::new());

fn known() -> sync::MutexGuard<'static, Vec<Arc<Shared>>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the cooler of a shelf. Returns whether it will come.
#[cold]
fn come_to(shelf: &Arc<Shared>) -> bool {
    let mut known = known();
    if known.is_empty() {
        let thread = thread::Builder::new().name("greenhack-cool".to_owned());
        if thread.spawn(cool).is_err() {
            return false;
        }
    }
    known.push(shelf.clone());
    true
}

/// The life of the cooler.
fn cool() {
    // It may have been started by a worker that is kept on a core. If it can't leave, it
    // does its work there.
    let _ = sys::leave_core();
    loop {
        thread::sleep(ROUND);
        let shelves = known().clone();
        for shelf in &shelves {
            // That would be a bug of ours. It must not keep the memory of other threads
            // for ever, nor those who end waiting.
            let round = catch_unwind(AssertUnwindSafe(|| shelf.next_round()));
            if let Err(payload) = round {
                discard(payload);
                shelf.recover();
            }
        }
        let mut known = known();
        known.retain(|shelf| shelf.is_warm());
        if known.is_empty() {
            return;
        }
    }
}

#[cfg(all(test, not(greenhack_loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    const SIZE: usize = 64 * 1024;

    /// So many where a stack that is cooled stays, and none where it is gone.
    fn cold(count: usize) -> usize {
        let has_slabs = cfg!(all(
            target_os = "linux",
            not(greenhack_threads),
            not(greenhack_valgrind)
        ));
        if has_slabs { count } else { 0 }
    }

    fn stacks(count: usize) -> Vec<Stack> {
        // The slab is left to the system.
        let mut slab = slab::Slab::new(SIZE);
        (0..count).map(|_| slab.cut().unwrap()).collect()
    }

    fn shelf(count: usize) -> Shelf {
        let shelf = Shelf::default();
        shelf.put(stacks(count).into_iter());
        shelf
    }

    /// Waits until the cooler has no more to do on a shelf.
    fn until_cold(shelf: &Shelf) {
        let limit = Duration::from_secs(60);
        let mut stacks = shelf.0.lock();
        while !stacks.warm.is_empty() || !stacks.worn.is_empty() || stacks.are_away {
            let waited = shelf.0.brought.wait_timeout(stacks, limit);
            let (again, limit) = waited.unwrap_or_else(PoisonError::into_inner);
            assert!(!limit.timed_out(), "the cooler has not come");
            stacks = again;
        }
    }

    /// Takes one in hand as the cooler does, and brings it back only after it was seen
    /// that `f` waits for that. The round ends before `f` has the shelf again.
    fn waits_for_the_cooler<R: Send>(shelf: &Shelf, f: impl FnOnce(&Shelf) -> R + Send) -> R {
        let mut stacks = shelf.0.lock();
        let in_hand = stacks.warm.pop();
        stacks.are_away = true;
        drop(stacks);
        thread::scope(|scope| {
            let (sender, result) = channel();
            scope.spawn(move || sender.send(f(shelf)));
            let early = result.recv_timeout(Duration::from_millis(20));
            assert!(matches!(early, Err(RecvTimeoutError::Timeout)));
            let mut stacks = shelf.0.lock();
            stacks.cold.extend(in_hand);
            stacks.are_away = false;
            stacks.idle = stacks.warm.len();
            drop(stacks);
            shelf.0.brought.notify_all();
            result.recv().unwrap()
        })
    }

    #[test]
    fn what_is_taken_within_a_round_stays_warm() {
        let shelf = shelf(10);
        shelf.0.next_round();
        assert_eq!(shelf.count(), (10, 0));
        let mut taken = Vec::new();
        let one = shelf.take(4, &mut taken);
        assert_eq!((taken.len(), shelf.count()), (3, (6, 0)));
        shelf.put(taken.into_iter().chain(one));
        shelf.0.next_round();
        assert_eq!(shelf.count(), (4, cold(6)));
        shelf.0.next_round();
        assert_eq!(shelf.count(), (0, cold(10)));
    }

    #[test]
    fn cold_stacks_are_taken_after_those_that_are_warm() {
        let shelf = shelf(1);
        shelf.0.cool_all();
        shelf.put(stacks(1).into_iter());
        assert!(shelf.take(1, &mut Vec::new()).is_some());
        assert_eq!(shelf.count(), (0, cold(1)));
        assert_eq!(shelf.take(1, &mut Vec::new()).iter().count(), cold(1));
    }

    #[test]
    fn the_cooler_comes_to_a_shelf_that_is_full() {
        let shelf = shelf(FULL);
        until_cold(&shelf);
        assert_eq!(shelf.count(), (0, cold(FULL)));
    }

    #[test]
    fn the_cooler_comes_to_one_stack_that_is_worn_and_cools_what_is_idle_beside_it() {
        let shelf = shelf(FULL - 1);
        shelf.put_worn(stacks(1).remove(0));
        until_cold(&shelf);
        assert_eq!(shelf.count(), (0, cold(FULL)));
    }

    #[test]
    fn the_cooler_comes_again_after_a_round_that_has_panicked() {
        let (broken, sound) = (shelf(FULL - 1), shelf(FULL - 1));
        // More than there are, which K2 rules out.
        broken.0.lock().idle = 2 * FULL;
        for shelf in [&broken, &sound] {
            shelf.put(stacks(1).into_iter());
            until_cold(shelf);
            assert_eq!(shelf.count(), (0, cold(FULL)));
        }
    }

    #[test]
    fn without_a_cooler_all_is_cooled_at_once() {
        let shelf = shelf(FULL - 1);
        shelf.0.lock().worn.append(&mut stacks(HANDFUL + 1));
        shelf.0.cool_all();
        assert_eq!(shelf.count(), (0, cold(FULL + HANDFUL)));
    }

    #[test]
    fn a_shelf_is_emptied_when_the_cooler_has_brought_all_back() {
        let shelf = shelf(2);
        let all = waits_for_the_cooler(&shelf, Shelf::empty);
        assert_eq!(all.len(), 2);
        shelf.0.next_round();
        assert_eq!(shelf.count(), (0, 0));
    }

    #[test]
    fn who_needs_what_the_cooler_has_can_wait_for_it() {
        let shelf = shelf(1);
        assert!(!shelf.wait());
        assert!(waits_for_the_cooler(&shelf, Shelf::wait));
        assert!(shelf.take(1, &mut Vec::new()).is_some());
    }
}

#[cfg(all(test, greenhack_loom))]
mod loom_tests {
    use super::*;
    use loom::thread;

    /// A thread takes, puts and ends while the cooler is at its shelf: all comes back to
    /// it, and the cooler finds nothing where nothing is.
    #[test]
    fn no_stack_is_lost() {
        const COUNT: usize = 3;
        let mut slab = slab::Slab::new(64 * 1024);
        let stacks = (0..COUNT).map(|_| slab.cut().unwrap()).collect();
        let free: sync::Mutex<Vec<Stack>> = sync::Mutex::new(stacks);
        loom::model(move || {
            let mut stacks = mem::take(&mut *free.lock().unwrap());
            let shelf = Shelf::default();
            shelf.0.lock().is_known = true;
            shelf.put_worn(stacks.remove(0));
            shelf.put(stacks.into_iter());
            let cooler = {
                let shared = shelf.0.clone();
                thread::spawn(move || (0..2).for_each(|_| shared.next_round()))
            };
            let mut taken = Vec::new();
            let one = shelf.take(1, &mut taken);
            shelf.put(taken.into_iter().chain(one));
            let all = shelf.empty();
            assert_eq!(all.len(), COUNT);
            cooler.join().unwrap();
            assert_eq!(shelf.empty().len(), 0);
            *free.lock().unwrap() = all;
        });
    }
}
