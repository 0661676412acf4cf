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
//! A thread keeps some free stacks as they are. What is above that gives its
//! memory back when it becomes free, and keeps its addresses; on the workers, who
//! have the time to do it when they are idle, see [`tick`].
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::io;
use std::mem;

use super::limit;
use super::slab::Slab;
use crate::ground::switch::Stack;

/// The size of a stack unless a run asks for another: 1 MiB of lazily
/// committed memory.
pub(crate) const DEFAULT_SIZE: usize = 1024 * 1024;

/// The sizes of the stacks in slabs. Sizes between are rounded up, which costs
/// addresses, not memory. (Unwinding alone takes about 10 KiB of a stack.)
const CLASSES: [usize; 3] = [64 * 1024, 256 * 1024, DEFAULT_SIZE];

/// More is an error: no address space holds many of these.
const LARGEST: usize = 1 << 40;

/// How many free stacks of a size a thread keeps as they are.
const KEPT: usize = 256;

/// How much of a free stack is kept as it is, whatever was used of it.
const WATERMARK: usize = 16 * 1024;

/// Every so often a stack is given back, one that waits is trimmed to the
/// [`WATERMARK`].
const TRIM_EVERY: usize = 64;

/// How many stacks a [`tick`] looks at.
const MOST_AT_A_TICK: usize = 256;

struct Pool {
    classes: [Class; CLASSES.len()],
    /// Free stacks larger than any class.
    large: Vec<Stack>,
}

/// The stacks of one size.
struct Class {
    slab: Slab,
    /// Free, with what memory they have.
    warm: Vec<Stack>,
    /// Free, and without memory.
    cold: Vec<Stack>,
    given: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::new());
    /// Whether somebody calls [`tick`] on this thread.
    static TICKS: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    fn new() -> Pool {
        Pool {
            classes: CLASSES.map(|size| Class {
                slab: Slab::new(size),
                warm: Vec::new(),
                cold: Vec::new(),
                given: 0,
            }),
            large: Vec::new(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for class in &mut self.classes {
            let mut free = mem::take(&mut class.warm);
            free.append(&mut class.cold);
            class.slab.end(free);
        }
        self.large.drain(..).for_each(end_large);
    }
}

impl Class {
    fn take_cold(&mut self) -> io::Result<Stack> {
        match self.cold.pop() {
            Some(stack) => Ok(stack),
            None => self.slab.cut(),
        }
    }

    #[inline]
    fn give(&mut self, stack: Stack) {
        if self.warm.len() >= KEPT && !TICKS.get() {
            let cold = self.slab.cool(stack);
            self.cold.extend(cold);
            return;
        }
        self.warm.push(stack);
        self.given = self.given.wrapping_add(1);
        if self.given % TRIM_EVERY == 0 {
            self.trim();
        }
    }

    /// Trims one of the stacks that wait.
    #[cold]
    fn trim(&mut self) {
        let index = self.given / TRIM_EVERY % self.warm.len();
        self.slab.trim(&mut self.warm[index], WATERMARK);
    }

    /// Cools some of what is more than `kept`, those that have waited longest.
    fn cool_down(&mut self) {
        let more = self.warm.len().saturating_sub(KEPT).min(MOST_AT_A_TICK);
        for stack in self.warm.drain(..more) {
            self.cold.extend(self.slab.cool(stack));
        }
    }
}

/// Which class has stacks of this size.
#[inline]
fn class_of(size: usize) -> Option<usize> {
    CLASSES.iter().position(|&class| size <= class)
}

/// Takes a stack of `size` bytes, rounded up.
///
/// # Errors
///
/// The system's, if it has no memory or no mapping left for the stack, and
/// `InvalidInput` for a size that cannot be meant.
#[inline]
pub(crate) fn take(size: usize) -> io::Result<Stack> {
    let warm = class_of(size).and_then(|class| {
        let pop = |pool: &RefCell<Pool>| pool.borrow_mut().classes[class].warm.pop();
        POOL.try_with(pop).ok().flatten()
    });
    match warm {
        Some(stack) => Ok(stack),
        None => take_cold(size),
    }
}

#[cold]
fn take_cold(size: usize) -> io::Result<Stack> {
    let taken = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        match class_of(size) {
            Some(class) => pool.classes[class].take_cold(),
            None => take_large(&mut pool.large, size),
        }
    });
    // While the thread's locals are destroyed, a stack has its own mapping.
    taken.unwrap_or_else(|_| Stack::new(size))
}

/// Says that there is no stack, and what to do.
#[cold]
pub(crate) fn complaint(size: usize, whom: &str, error: &io::Error) -> String {
    let limits = match error.raw_os_error() {
        Some(_) => "see `vm.max_map_count`, or ",
        // It names the limit that it is of.
        None => "",
    };
    format!("no stack of {size} bytes for {whom}: {error}; {limits}set a smaller `stack_size`")
}

fn take_large(free: &mut Vec<Stack>, size: usize) -> io::Result<Stack> {
    if size > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a stack of {size} bytes is larger than any machine can map"),
        ));
    }
    match free.iter().rposition(|stack| stack.size() == size) {
        Some(index) => Ok(free.swap_remove(index)),
        None => {
            limit::claim(size)?;
            Stack::new(size).inspect_err(|_| limit::release(size))
        }
    }
}

fn end_large(stack: Stack) {
    limit::release(stack.size());
    drop(stack);
}

/// Gives back a stack on which nothing runs any more.
#[inline]
pub(crate) fn give(stack: Stack) {
    // While the thread's locals are destroyed, the stack is just dropped.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        match class_of(stack.size()) {
            Some(class) => pool.classes[class].give(stack),
            None if pool.large.len() < KEPT => pool.large.push(stack),
            None => end_large(stack),
        }
    });
}

/// Promises that [`tick`] is called now and then on this thread.
pub(crate) fn will_tick() {
    TICKS.set(true);
}

/// Whether free stacks hold memory that a [`tick`] would give back.
pub(crate) fn has_surplus() -> bool {
    let surplus = |pool: &RefCell<Pool>| {
        let pool = pool.borrow();
        pool.classes.iter().any(|class| class.warm.len() > KEPT)
    };
    POOL.try_with(surplus).unwrap_or(false)
}

/// Gives back the memory of some free stacks, for a thread that is idle.
pub(crate) fn tick() {
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        pool.classes.iter_mut().for_each(Class::cool_down);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    /// How many stacks of a size are free here, with memory and without.
    fn free(size: usize) -> (usize, usize) {
        POOL.with_borrow(|pool| {
            let class = &pool.classes[class_of(size).unwrap()];
            (class.warm.len(), class.cold.len())
        })
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
    fn what_is_more_than_a_thread_keeps_gives_its_memory_back() {
        take_many(KEPT + 8).into_iter().for_each(give);
        let (warm, cold) = free(0);
        assert_eq!(warm, KEPT);
        assert!(cold == 8 || cfg!(not(target_os = "linux")) || cfg!(greenhack_threads));
        let again = take_many(KEPT + 8);
        assert_eq!(free(0), (0, 0));
        again.into_iter().for_each(give);
    }

    #[test]
    fn a_thread_that_ticks_gives_memory_back_when_it_is_idle() {
        will_tick();
        take_many(KEPT + 8).into_iter().for_each(give);
        assert_eq!(free(0).0, KEPT + 8);
        assert!(has_surplus());
        tick();
        assert_eq!(free(0).0, KEPT);
        assert!(!has_surplus());
    }
}
