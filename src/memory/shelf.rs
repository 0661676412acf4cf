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
//! The thread is started by the first shelf that is full, and ends when there is nothing
//! left that is warm.
//!
//! # Invariants
//!
//! - K1 A stack of a shelf is on it, or in the hands of the cooler, which brings back what
//!   it can: a shelf that is emptied waits for that. So its owner gets all of them.
#![forbid(unsafe_code)]

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::slab;
use crate::ground::switch::Stack;

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
    /// How many of them, the first, have been there since the last round.
    idle: usize,
    /// Without memory.
    cold: Vec<Stack>,
    /// How many the cooler has.
    away: usize,
    /// The cooler knows of this shelf.
    is_known: bool,
}

impl Shelf {
    /// Takes up to `most` stacks that are warm, or a cold one.
    pub(crate) fn take(&self, most: usize, at_hand: &mut Vec<Stack>) -> Option<Stack> {
        let mut stacks = self.0.lock();
        let left = stacks.warm.len().saturating_sub(most);
        at_hand.extend(stacks.warm.drain(left..));
        stacks.idle = stacks.idle.min(left);
        at_hand.pop().or_else(|| stacks.cold.pop())
    }

    /// Puts stacks on it that are warm.
    pub(crate) fn put(&self, more: impl Iterator<Item = Stack>) {
        let mut stacks = self.0.lock();
        stacks.warm.extend(more);
        if stacks.warm.len() < FULL || mem::replace(&mut stacks.is_known, true) {
            return;
        }
        drop(stacks);
        if !call_cooler(&self.0) {
            self.0.next_round();
            self.0.next_round();
            self.0.lock().is_known = false;
        }
    }

    /// Takes all.
    pub(crate) fn empty(&self) -> Vec<Stack> {
        let stacks = self.0.lock();
        let is_away = |stacks: &mut Stacks| stacks.away > 0;
        let waited = self.0.brought.wait_while(stacks, is_away);
        let mut stacks = waited.unwrap_or_else(PoisonError::into_inner);
        let mut all = mem::take(&mut stacks.warm);
        all.append(&mut stacks.cold);
        stacks.idle = 0;
        all
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

    /// Cools what has been idle since the last round.
    fn next_round(&self) {
        loop {
            let mut stacks = self.lock();
            let count = stacks.idle.min(HANDFUL);
            if count == 0 {
                stacks.idle = stacks.warm.len();
                return;
            }
            stacks.idle -= count;
            stacks.away = count;
            let handful: Vec<Stack> = stacks.warm.drain(..count).collect();
            // The owner goes on meanwhile.
            drop(stacks);
            let cooled: Vec<Stack> = handful.into_iter().filter_map(slab::cool).collect();
            let mut stacks = self.lock();
            stacks.cold.extend(cooled);
            stacks.away = 0;
            drop(stacks);
            self.brought.notify_all();
        }
    }

    /// Whether there is something left to cool. If not, the cooler forgets the shelf.
    fn is_warm(&self) -> bool {
        let mut stacks = self.lock();
        stacks.is_known = !stacks.warm.is_empty();
        stacks.is_known
    }
}

struct Cooler {
    shelves: Vec<Arc<Shared>>,
    is_running: bool,
}

/// It is locked before a shelf is, never after.
static COOLER: Mutex<Cooler> = Mutex::new(Cooler {
    shelves: Vec::new(),
    is_running: false,
});

fn cooler() -> MutexGuard<'static, Cooler> {
    COOLER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the cooler of a shelf. Returns whether it will come.
#[cold]
fn call_cooler(shelf: &Arc<Shared>) -> bool {
    let mut cooler = cooler();
    if !cooler.is_running {
        let thread = thread::Builder::new().name("greenhack-cooler".to_owned());
        cooler.is_running = thread.spawn(cool).is_ok();
    }
    if cooler.is_running {
        cooler.shelves.push(shelf.clone());
    }
    cooler.is_running
}

/// The life of the cooler.
fn cool() {
    loop {
        thread::sleep(ROUND);
        let shelves = cooler().shelves.clone();
        shelves.iter().for_each(|shelf| shelf.next_round());
        let mut cooler = cooler();
        cooler.shelves.retain(|shelf| shelf.is_warm());
        if cooler.shelves.is_empty() {
            cooler.is_running = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 64 * 1024;

    /// What becomes of a stack that is cooled: where there are no slabs, it is gone.
    const STAYS: bool = cfg!(all(
        target_os = "linux",
        not(greenhack_threads),
        not(greenhack_valgrind)
    ));

    fn cold(count: usize) -> usize {
        if STAYS { count } else { 0 }
    }

    /// A shelf with so many stacks, which are left to the system.
    fn shelf(count: usize) -> Shelf {
        let mut slab = slab::Slab::new(SIZE);
        let shelf = Shelf::default();
        shelf.put((0..count).map(|_| slab.cut().unwrap()));
        shelf
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
    fn cold_stacks_are_taken_last() {
        let shelf = shelf(1);
        shelf.0.next_round();
        shelf.0.next_round();
        let stack = shelf.take(1, &mut Vec::new());
        assert_eq!(stack.is_some(), STAYS);
        shelf.put(slab::Slab::new(SIZE).cut().into_iter());
        assert!(shelf.take(1, &mut Vec::new()).is_some());
    }

    #[test]
    fn the_cooler_comes_to_a_shelf_that_is_full() {
        let shelf = shelf(FULL);
        let is_warm = |stacks: &mut Stacks| !stacks.warm.is_empty() || stacks.away > 0;
        let waited = shelf.0.brought.wait_while(shelf.0.lock(), is_warm);
        drop(waited.unwrap());
        assert_eq!(shelf.count(), (0, cold(FULL)));
    }

    #[test]
    fn a_shelf_is_emptied_when_the_cooler_has_brought_all_back() {
        let shelf = shelf(2);
        let mut stacks = shelf.0.lock();
        let in_hand = stacks.warm.pop();
        stacks.away = 1;
        drop(stacks);
        thread::scope(|scope| {
            let emptied = scope.spawn(|| shelf.empty().len());
            let mut stacks = shelf.0.lock();
            stacks.cold.extend(in_hand);
            stacks.away = 0;
            drop(stacks);
            shelf.0.brought.notify_all();
            assert_eq!(emptied.join().unwrap(), 2);
        });
    }
}
