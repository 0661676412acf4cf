//! A per-thread pool of guarded stacks.
//!
//! This file is the seam of the memory: the engine calls [`take`] and
//! [`give`] and knows nothing else. Stacks that are free wait in a list of
//! their thread, last in, first out, so that the next run gets the one whose
//! pages are warm. A stack that a suspended run still occupies when it is
//! leaked never comes back.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io;

use crate::ground::switch::Stack;

/// The size of a stack unless a run asks for another: 1 MiB of lazily
/// committed memory.
pub(crate) const DEFAULT_SIZE: usize = 1024 * 1024;

/// Less is rounded up to this. Unwinding alone takes about 10 KiB.
pub(crate) const SMALLEST: usize = 32 * 1024;

/// More is an error: no address space holds many of these.
const LARGEST: usize = 1 << 40;

/// How many free stacks a thread keeps. The rest goes back to the system.
const KEPT: usize = 256;

thread_local! {
    static FREE: RefCell<Vec<Stack>> = const { RefCell::new(Vec::new()) };
}

/// Takes a stack of `size` bytes, rounded up.
///
/// # Errors
///
/// The system's, if it has no memory or no mapping left for the stack, and
/// `InvalidInput` for a size that cannot be meant.
#[inline]
pub(crate) fn take(size: usize) -> io::Result<Stack> {
    let size = size.max(SMALLEST);
    let pooled = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        // Nearly always the last one fits: sizes seldom differ.
        match free.last() {
            Some(stack) if stack.size() == size => free.pop(),
            _ => {
                let index = free.iter().rposition(|stack| stack.size() == size)?;
                Some(free.swap_remove(index))
            }
        }
    });
    match pooled {
        Ok(Some(stack)) => Ok(stack),
        _ => allocate(size),
    }
}

#[cold]
fn allocate(size: usize) -> io::Result<Stack> {
    if size > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a stack of {size} bytes is larger than any machine can map"),
        ));
    }
    Stack::new(size)
}

/// Gives back a stack on which nothing runs any more.
#[inline]
pub(crate) fn give(stack: Stack) {
    // While the thread's locals are destroyed, the stack is just unmapped.
    let _ = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        if free.len() < KEPT {
            free.push(stack);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free() -> usize {
        FREE.with(|free| free.borrow().len())
    }

    #[test]
    fn a_stack_is_used_again() {
        let stack = take(DEFAULT_SIZE).unwrap();
        assert_eq!(free(), 0);
        give(stack);
        assert_eq!(free(), 1);
        let stack = take(DEFAULT_SIZE).unwrap();
        assert_eq!((stack.size(), free()), (DEFAULT_SIZE, 0));
    }

    #[test]
    fn sizes_are_kept_apart() {
        give(take(64 * 1024).unwrap());
        let large = take(128 * 1024).unwrap();
        assert_eq!((large.size(), free()), (128 * 1024, 1));
        give(large);
        assert_eq!(take(64 * 1024).unwrap().size(), 64 * 1024);
        assert_eq!(free(), 1);
    }

    #[test]
    fn a_tiny_size_is_rounded_up() {
        assert_eq!(take(0).unwrap().size(), SMALLEST);
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert!(take(usize::MAX).is_err());
    }

    #[test]
    fn a_thread_keeps_a_bounded_number() {
        let stacks: Vec<_> = (0..KEPT + 8).map(|_| take(SMALLEST).unwrap()).collect();
        stacks.into_iter().for_each(give);
        assert_eq!(free(), KEPT);
    }
}
