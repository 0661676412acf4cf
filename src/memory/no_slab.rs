//! Where there are no slabs: a mapping for each stack, from corosensei.
#![forbid(unsafe_code)]

use std::io;

use super::limit;
use crate::ground::switch::Stack;

/// Stacks of one size on one thread.
pub(crate) struct Slab {
    size: usize,
}

impl Slab {
    pub(crate) fn new(size: usize) -> Slab {
        Slab { size }
    }

    pub(crate) fn cut(&mut self) -> io::Result<Stack> {
        limit::claim(self.size)?;
        Stack::new(self.size).inspect_err(|_| limit::release(self.size))
    }

    /// Unmaps what is free.
    pub(crate) fn end(&mut self, free: Vec<Stack>) -> Vec<Stack> {
        limit::release(free.len() * self.size);
        drop(free);
        Vec::new()
    }
}

/// Gives the memory of a stack back that is free, and its addresses.
pub(crate) fn cool(stack: Stack) -> Option<Stack> {
    limit::release(stack.size());
    drop(stack);
    None
}
