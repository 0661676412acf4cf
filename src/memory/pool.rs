//! A per-thread pool of guarded stacks.
//!
//! This file is the seam of the memory: the engine calls [`take`] and
//! [`give`] and knows nothing else. Stacks that are free wait in a list of
//! their thread, last in, first out, so that the next run gets the one whose
//! pages are warm. A stack that a suspended run still occupies when it is
//! leaked never comes back.
//!
//! Stacks come in three sizes, each from a [slab](super::slab). Larger ones have
//! a mapping each.
//!
//! A thread has some free stacks at hand. The others wait on a
//! [shelf](super::shelf), where they give their memory back when they are not needed.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::mem::{self, ManuallyDrop};

use super::limit;
use super::shelf::Shelf;
use super::slab::{self, Slab};
use crate::ground::switch::Stack;

/// The size of a stack unless a run asks for another: 1 MiB of lazily
/// committed memory.
pub(crate) const DEFAULT_SIZE: usize = 1024 * 1024;

/// The sizes of the stacks in slabs. Sizes between are rounded up, which costs
/// addresses, not memory. (Unwinding alone takes about 10 KiB of a stack.)
const CLASSES: [usize; 3] = [64 * 1024, 256 * 1024, DEFAULT_SIZE];

/// More is an error: no address space holds many of these.
const LARGEST: usize = match usize::BITS {
    64 => 1 << 40,
    bits => 1 << (bits - 2),
};

/// Every so often a stack is given back, those go to the shelf that were not needed.
const TIDY_EVERY: usize = 128;

/// How many stay at hand all the same. So there are never more than
/// `FEW + 2 * TIDY_EVERY`.
const FEW: usize = 32;

/// Every so often one goes that was, to be cooled, so that none keeps for ever what was
/// once used of it.
const ROTATE_EVERY: usize = 8 * TIDY_EVERY;

/// How many free stacks that are larger than any class a thread keeps.
const MOST_LARGE: usize = 256;

struct Pool {
    classes: [Class; CLASSES.len()],
    /// Free stacks larger than any class.
    large: Vec<Stack>,
}

/// Where the stacks of one size come from.
struct Class {
    slab: Slab,
    shelf: Shelf,
}

/// The stacks of one size that are free, and taken first.
struct Hand {
    stacks: Vec<Stack>,
    /// The fewest that there were since it was last tidied up, or filled.
    fewest: usize,
    given: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::new());

    /// It has no destructor, so that nobody needs to ask whether it is still there. The
    /// pool is there before the first stack is in it, and empties it at its end.
    static HANDS: ManuallyDrop<[RefCell<Hand>; CLASSES.len()]> =
        const { ManuallyDrop::new([const { RefCell::new(Hand::EMPTY) }; CLASSES.len()]) };
}

impl Pool {
    fn new() -> Pool {
        Pool {
            classes: CLASSES.map(|size| Class {
                slab: Slab::new(size),
                shelf: Shelf::default(),
            }),
            large: Vec::new(),
        }
    }

    fn take(&mut self, class: usize) -> io::Result<Stack> {
        let Class { slab, shelf } = &mut self.classes[class];
        with_hand(class, |hand| {
            loop {
                if let Some(stack) = shelf.take(TIDY_EVERY, &mut hand.stacks) {
                    hand.fewest = hand.stacks.len();
                    return Ok(stack);
                }
                match slab.cut() {
                    // There is none to be had, but some are free.
                    Err(_) if shelf.wait() => {}
                    cut => return cut,
                }
            }
        })
    }

    fn give(&mut self, stack: Stack) {
        match class_of(stack.size()) {
            Some(class) => {
                let shelf = &self.classes[class].shelf;
                with_hand(class, |hand| hand.give(stack, shelf));
            }
            None if self.large.len() < MOST_LARGE => self.large.push(stack),
            None => end(stack),
        }
    }

    /// Unmaps what it has; where some of that is in use, the rest gives its memory back.
    fn end(&mut self) {
        for (index, class) in self.classes.iter_mut().enumerate() {
            with_hand(index, |hand| {
                let mut free = mem::take(&mut hand.stacks);
                free.append(&mut class.shelf.empty());
                hand.stacks = class.slab.end(free);
                hand.fewest = hand.stacks.len();
            });
        }
        self.large.drain(..).for_each(end);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.end();
        // What is left stays mapped, but nobody gets it any more. Nor is there room in
        // the hands for what is still given.
        let left = (0..CLASSES.len())
            .flat_map(|class| with_hand(class, |hand| mem::take(&mut hand.stacks)));
        left.for_each(|stack| limit::release(stack.size()));
    }
}

impl Hand {
    const EMPTY: Hand = Hand {
        stacks: Vec::new(),
        fewest: 0,
        given: 0,
    };

    #[inline]
    fn take(&mut self) -> Option<Stack> {
        let stack = self.stacks.pop();
        self.fewest = self.fewest.min(self.stacks.len());
        stack
    }

    /// Takes the stack, if there is nothing else to do.
    #[inline]
    fn try_give(&mut self, stack: Stack) -> Result<(), Stack> {
        let given = self.given.wrapping_add(1);
        if self.stacks.len() == self.stacks.capacity() || given % TIDY_EVERY == 0 {
            return Err(stack);
        }
        self.given = given;
        self.stacks.push(stack);
        Ok(())
    }

    fn give(&mut self, stack: Stack, shelf: &Shelf) {
        self.stacks.push(stack);
        self.given = self.given.wrapping_add(1);
        if self.given % TIDY_EVERY == 0 {
            self.tidy_up(shelf);
        }
    }

    /// Puts on the shelf what is too much, those first that have waited longest.
    fn tidy_up(&mut self, shelf: &Shelf) {
        if self.given % ROTATE_EVERY == 0 {
            let index = self.given / ROTATE_EVERY % self.stacks.len();
            let stack = self.stacks.swap_remove(index);
            shelf.put_worn(stack);
        }
        let too_many = self.fewest.saturating_sub(FEW);
        if too_many > 0 {
            shelf.put(self.stacks.drain(..too_many));
        }
        self.fewest = self.stacks.len();
    }
}

fn with_hand<R>(class: usize, f: impl FnOnce(&mut Hand) -> R) -> R {
    HANDS.with(|hands| f(&mut hands[class].borrow_mut()))
}

/// The same without an unwind, which the callers would need to clean up after.
#[inline(always)]
fn try_with_hand<R>(class: usize, f: impl FnOnce(&mut Hand) -> R) -> Option<R> {
    let try_with = |hands: &ManuallyDrop<[RefCell<Hand>; CLASSES.len()]>| {
        Some(f(&mut *hands[class].try_borrow_mut().ok()?))
    };
    HANDS.try_with(try_with).ok().flatten()
}

/// Which class has stacks of this size.
#[inline]
fn class_of(size: usize) -> Option<usize> {
    CLASSES.iter().position(|&class| size <= class)
}

/// Takes a stack of `size` bytes, rounded up. Calls `first` if there is none at hand, and
/// so before this thread has its first.
///
/// # Errors
///
/// The system's, if it has no memory or no mapping left for the stack, and
/// `InvalidInput` for a size that cannot be meant.
#[inline]
pub(crate) fn take(size: usize, first: fn()) -> io::Result<Stack> {
    let at_hand = class_of(size).and_then(|class| try_with_hand(class, Hand::take));
    match at_hand.flatten() {
        Some(stack) => Ok(stack),
        None => take_another(size, first),
    }
}

#[cold]
fn take_another(size: usize, first: fn()) -> io::Result<Stack> {
    first();
    let taken = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        loop {
            let taken = match class_of(size) {
                Some(class) => pool.take(class),
                None => take_large(&mut pool.large, size),
            };
            if taken.is_ok() || size > LARGEST {
                return taken;
            }
            // Those that are free and of another size make room.
            match pool.large.pop() {
                Some(stack) => end(stack),
                None => return taken,
            }
        }
    });
    // While the thread's locals are destroyed, a stack has its own mapping.
    taken.unwrap_or_else(|_| map(class_of(size).map_or(size, |class| CLASSES[class])))
}

const RAISE_IT: &str =
    "raise it: `sysctl -w vm.max_map_count=1048576` is enough for 131,000 stacks";

/// Says that there is no stack, and what to do.
#[cold]
pub(crate) fn complaint(size: usize, whom: &str, error: &io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(_) => "see `vm.max_map_count`, or set a smaller `stack_size`",
        // The others name the limit that they are of.
        None if error.kind() == io::ErrorKind::QuotaExceeded => RAISE_IT,
        None => "set a smaller `stack_size`",
    };
    format!("no stack of {size} bytes for {whom}: {error}; {remedy}")
}

fn take_large(free: &mut Vec<Stack>, size: usize) -> io::Result<Stack> {
    match free.iter().rposition(|stack| stack.size() == size) {
        Some(index) => Ok(free.swap_remove(index)),
        None => map(size),
    }
}

/// Makes a stack in a mapping of its own.
fn map(size: usize) -> io::Result<Stack> {
    if size > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a stack of {size} bytes is larger than any machine can map"),
        ));
    }
    limit::claim(size)?;
    Stack::new(size).inspect_err(|_| limit::release(size))
}

/// Gives back a stack on which nothing runs any more.
pub(crate) fn give(stack: Stack) {
    let mut stack = ManuallyDrop::new(Some(stack));
    if let Some(class) = stack.as_ref().and_then(|stack| class_of(stack.size())) {
        try_with_hand(class, |hand| {
            if let Some(taken) = stack.take() {
                *stack = hand.try_give(taken).err();
            }
        });
    }
    if let Some(stack) = stack.take() {
        give_to_pool(stack);
    }
}

#[cold]
#[inline(never)]
fn give_to_pool(stack: Stack) {
    let mut stack = Some(stack);
    let _ = POOL.try_with(|pool| {
        if let Some(stack) = stack.take() {
            pool.borrow_mut().give(stack);
        }
    });
    // While the thread's locals are destroyed, nobody takes it.
    if let Some(stack) = stack {
        end(stack);
    }
}

/// Gives back what this thread has, which is about to end. That happens in any case, but
/// when nobody can know.
pub(crate) fn end_all() {
    let _ = POOL.try_with(|pool| pool.borrow_mut().end());
}

/// Ends a stack that nobody gets any more, on whatever thread. Its mapping is freed, if
/// it has one. If it is in a slab its slot is lost, and only its memory comes back.
#[cold]
pub(crate) fn end(stack: Stack) {
    limit::release(stack.size());
    if stack.has_mapping() {
        drop(stack);
    } else {
        slab::cool(stack);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    const KIB: usize = 1024;

    fn take(size: usize) -> io::Result<Stack> {
        super::take(size, || {})
    }

    /// How many stacks of a size are free here: at hand, and on the shelf.
    fn free(size: usize) -> (usize, usize) {
        let class = class_of(size).unwrap();
        let (warm, cold) = POOL.with_borrow(|pool| pool.classes[class].shelf.count());
        (with_hand(class, |hand| hand.stacks.len()), warm + cold)
    }

    fn take_many(count: usize) -> Vec<Stack> {
        (0..count).map(|_| take(0).unwrap()).collect()
    }

    #[test]
    fn a_stack_is_used_again() {
        let stack = take(DEFAULT_SIZE).unwrap();
        assert_eq!(free(DEFAULT_SIZE), (0, 0));
        give(stack);
        assert_eq!(free(DEFAULT_SIZE), (1, 0));
        let stack = take(DEFAULT_SIZE).unwrap();
        assert_eq!((stack.size(), free(DEFAULT_SIZE)), (DEFAULT_SIZE, (0, 0)));
    }

    #[test]
    fn sizes_are_rounded_up_and_kept_apart() {
        assert_eq!(take(0).unwrap().size(), 64 * KIB);
        assert_eq!(take(64 * KIB + 1).unwrap().size(), 256 * KIB);
        give(take(64 * KIB).unwrap());
        let large = take(DEFAULT_SIZE - 1).unwrap();
        assert_eq!((large.size(), free(64 * KIB)), (DEFAULT_SIZE, (1, 0)));
        give(large);
        assert_eq!(free(DEFAULT_SIZE), (1, 0));
    }

    #[test]
    fn a_large_stack_has_the_size_that_was_asked_for() {
        let size = 3 * DEFAULT_SIZE;
        give(take(size).unwrap());
        assert_eq!(take(size).unwrap().size(), size);
        assert!(POOL.with_borrow(|pool| pool.large.is_empty()));
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert!(take(usize::MAX).is_err());
    }

    #[test]
    fn what_is_not_needed_goes_to_the_shelf() {
        let needed = 3;
        let at_first = FEW + needed + 8;
        take_many(at_first).into_iter().for_each(give);
        assert_eq!(free(0), (at_first, 0));
        // The first time to tidy up sees that all were needed, the second that few were.
        for _ in 0..2 * TIDY_EVERY {
            take_many(needed).into_iter().for_each(give);
        }
        assert_eq!(free(0), (FEW + needed, 8));
        // And it comes back when it is.
        let all = take_many(at_first);
        assert_eq!(free(0), (0, 0));
        all.into_iter().for_each(give);
    }

    #[test]
    fn one_that_is_needed_goes_to_the_shelf_at_times() {
        for _ in 0..ROTATE_EVERY {
            assert!(free(0).0 <= 1);
            give(take(0).unwrap());
        }
        assert_eq!(free(0).0, 0);
    }

    #[test]
    fn there_are_never_too_many_at_hand() {
        let most = FEW + 2 * TIDY_EVERY;
        let mut taken = take_many(4 * most);
        for stack in taken.drain(..2 * most) {
            give(stack);
            assert!(free(0).0 <= most);
        }
        // None at hand when it has just been tidied up, then many from the shelf at once.
        let given = with_hand(0, |hand| hand.given);
        for stack in taken.drain(..TIDY_EVERY - given % TIDY_EVERY) {
            give(stack);
        }
        taken.append(&mut take_many(free(0).0 + 1));
        for stack in taken {
            give(stack);
            assert!(free(0).0 <= most);
        }
    }

    #[test]
    fn a_pool_that_has_ended_keeps_what_is_in_a_slab_with_others_that_are_in_use() {
        let used = take_many(TIDY_EVERY);
        take_many(2 * TIDY_EVERY).into_iter().for_each(give);
        end_all();
        let has_slabs = cfg!(all(
            target_os = "linux",
            not(greenhack_threads),
            not(greenhack_valgrind)
        ));
        let left = if has_slabs { 2 * TIDY_EVERY } else { 0 };
        assert_eq!(free(0), (left, 0));
        used.into_iter().for_each(give);
        assert_eq!(free(0).0 + free(0).1, left + TIDY_EVERY);
        end_all();
        assert_eq!(free(0), (0, 0));
        give(take(0).unwrap());
        assert_eq!(free(0), (1, 0));
    }

    #[test]
    fn when_the_pool_has_gone_a_stack_has_its_own_mapping_and_nobody_keeps_it() {
        struct Last;
        impl Drop for Last {
            fn drop(&mut self) {
                assert!(POOL.try_with(|_| ()).is_err(), "the pool is still there");
                let left =
                    (0..CLASSES.len()).map(|class| with_hand(class, |hand| hand.stacks.len()));
                assert_eq!(left.sum::<usize>(), 0);
                let stack = take(0).unwrap();
                assert!(stack.has_mapping());
                give(stack);
                let room = with_hand(0, |hand| hand.stacks.capacity());
                assert_eq!(room, 0);
                DROPPED.store(true, Ordering::Relaxed);
            }
        }
        thread_local! {
            static LAST: Last = const { Last };
        }
        static DROPPED: AtomicBool = AtomicBool::new(false);

        let used = thread::spawn(|| {
            // What is made first is dropped last.
            LAST.with(|_| ());
            let used = take(0).unwrap();
            take_many(2 * TIDY_EVERY).into_iter().for_each(give);
            used
        });
        end(used.join().unwrap());
        assert!(DROPPED.load(Ordering::Relaxed));
    }
}
