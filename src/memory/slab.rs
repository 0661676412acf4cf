//! Stacks out of few large mappings.
//!
//! A mapping per stack ends at 32,000 of them: a stack and its guard are two
//! entries in the system's list, which allows 65,530. A [`Slab`] reserves
//! addresses for many at once, and cuts them into slots. Guards are markers in
//! the page tables, which need no entry, where the system has them (Linux 6.13).
//!
//! ```text
//!   a chunk of a slab: one mapping
//!   ├─ guard ─┬───── stack ──────┬─ guard ─┬───── stack ──────┬─ ...
//!             ◀ grows downwards ─┤         ◀ grows downwards ─┤
//!             limit           base (staggered, see `switch`)
//! ```
//!
//! Addresses are nearly free; memory comes with the first touch of each page.
//!
//! # Invariants
//!
//! - P1 A slot is cut once. Its stack is then in use, or free: at hand for this thread, on
//!   its [shelf](super::shelf), or in the hands of the cooler. A stack that is leaked
//!   never comes back, and its slot is never used again.
//! - P2 A chunk is unmapped only when the stacks of all slots that were ever cut
//!   from the slab are free and collected, at the end of the thread.

use std::io;
use std::mem;

use super::limit;
use crate::ground::switch::Stack;
use crate::ground::sys::{self, LARGEST_GUARD, Mapping};

/// Stacks of one size on one thread.
pub(crate) struct Slab {
    /// The usable size of a stack, in bytes.
    size: usize,
    guard: usize,
    chunks: Vec<Chunk>,
}

struct Chunk {
    mapping: Mapping,
    slots: usize,
    /// How many slots have been cut.
    cut: usize,
}

/// The slots of the first chunk. Each further one has twice as many.
const FIRST_CHUNK: usize = 64;

/// No chunk has more. A million stacks are then in 36 chunks.
const LARGEST_CHUNK: usize = 32 * 1024;

/// A small stack keeps a small guard, so that its page tables stay small.
const SMALLEST_GUARD: usize = 16 * 1024;

impl Slab {
    pub(crate) fn new(size: usize) -> Slab {
        let page = sys::page();
        Slab {
            size: size.next_multiple_of(page),
            guard: (size / 16)
                .clamp(SMALLEST_GUARD, LARGEST_GUARD)
                .next_multiple_of(page),
            chunks: Vec::new(),
        }
    }

    /// Cuts a slot that was never used.
    ///
    /// # Errors
    ///
    /// The system's, if it has no addresses or no guard for it; and that of the
    /// [limit](super::limit).
    pub(crate) fn cut(&mut self) -> io::Result<Stack> {
        limit::claim(self.size)?;
        self.cut_claimed()
            .inspect_err(|_| limit::release(self.size))
    }

    fn cut_claimed(&mut self) -> io::Result<Stack> {
        let slot = self.guard + self.size;
        let is_full = |chunk: &Chunk| chunk.cut == chunk.slots;
        if self.chunks.last().is_none_or(is_full) {
            let chunk = self.reserve(slot)?;
            self.chunks.push(chunk);
        }
        let chunk = self.chunks.last_mut().expect("there is one with a slot");
        let offset = chunk.cut * slot;
        chunk.mapping.guard(offset, self.guard)?;
        chunk.cut += 1;
        let limit = chunk.mapping.start() + offset + self.guard;
        // SAFETY: the slot is cut once (P1), has a guard below, and stays mapped
        // while its stack is in use or leaked (P2).
        Ok(unsafe { Stack::over(limit, self.size) })
    }

    /// Makes a chunk that is larger than the last, or as large as can be.
    #[cold]
    fn reserve(&self, slot: usize) -> io::Result<Chunk> {
        let last = self.chunks.last();
        let slots = last.map_or(FIRST_CHUNK, |last| 2 * last.slots);
        let mut slots = slots.min(LARGEST_CHUNK);
        loop {
            match Mapping::new(slots * slot) {
                Ok(mapping) => {
                    return Ok(Chunk {
                        mapping,
                        slots,
                        cut: 0,
                    });
                }
                // The system may limit addresses, or count them as memory.
                Err(_) if slots > 1 => slots /= 2,
                Err(error) => return Err(error),
            }
        }
    }

    /// How many slots have been cut.
    fn cuts(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.cut).sum()
    }

    /// Unmaps all, if `free` holds every stack that was ever cut (P2). If not, they give
    /// their memory back and are returned.
    pub(crate) fn end(&mut self, free: Vec<Stack>) -> Vec<Stack> {
        if free.len() != self.cuts() {
            return free.into_iter().filter_map(cool).collect();
        }
        limit::release(free.len() * self.size);
        // They have nothing to free, and their memory need not be looked at.
        free.into_iter().for_each(mem::forget);
        for chunk in self.chunks.drain(..) {
            // SAFETY: all stacks of the slab are gone (P1).
            unsafe { chunk.mapping.unmap() };
        }
        Vec::new()
    }
}

/// Gives the memory of a stack back that is free, and keeps its addresses.
pub(crate) fn cool(stack: Stack) -> Option<Stack> {
    // SAFETY: whoever has a `Stack` that is not in use has its memory for himself, and
    // its slot stays mapped meanwhile (P1, P2).
    unsafe { sys::discard(stack.lowest(), stack.size()) };
    Some(stack)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    /// The mappings of this process that lie within the chunks.
    fn mappings(slab: &Slab) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let starts = maps.lines().filter_map(|line| {
            let (start, _) = line.split_once('-')?;
            usize::from_str_radix(start, 16).ok()
        });
        let slot = slab.guard + slab.size;
        starts
            .filter(|start| {
                slab.chunks.iter().any(|chunk| {
                    let first = chunk.mapping.start();
                    (first..first + chunk.slots * slot).contains(start)
                })
            })
            .count()
    }

    #[test]
    fn slots_do_not_overlap_and_have_their_size() {
        let mut slab = Slab::new(64 * KIB);
        let stacks: Vec<Stack> = (0..200).map(|_| slab.cut().unwrap()).collect();
        let mut limits: Vec<usize> = stacks.iter().map(Stack::lowest).collect();
        limits.sort();
        assert!(limits.windows(2).all(|two| two[1] - two[0] >= 80 * KIB));
        assert!(stacks.iter().all(|stack| stack.size() == 64 * KIB));
        assert_eq!((slab.chunks.len(), slab.cuts()), (3, 200));
        slab.end(stacks);
        assert!(slab.chunks.is_empty());
    }

    #[test]
    fn a_slab_with_a_stack_that_is_not_back_stays_mapped() {
        let mut slab = Slab::new(64 * KIB);
        let used = slab.cut().unwrap();
        let free = slab.cut().unwrap();
        let free = slab.end(vec![free]);
        assert_eq!((slab.chunks.len(), free.len()), (1, 1));
        let used = slab.end(vec![used]);
        assert_eq!(slab.chunks.len(), 1, "its other stack is not free for sure");
        slab.end(free.into_iter().chain(used).collect());
        assert!(slab.chunks.is_empty());
    }

    #[test]
    fn a_slab_that_stays_mapped_gives_back_the_memory_of_what_is_free() {
        let mut slab = Slab::new(64 * KIB);
        let (used, free) = (slab.cut().unwrap(), slab.cut().unwrap());
        let attics = [used.attic(), free.attic()];
        for attic in attics {
            // SAFETY: nothing runs on either stack.
            unsafe { attic.write(1) };
        }
        let free = slab.end(vec![free]);
        // SAFETY: as above, and both are mapped.
        assert_eq!(attics.map(|attic| unsafe { attic.read() }), [1, 0]);
        slab.end(free.into_iter().chain([used]).collect());
    }

    #[test]
    fn a_stack_that_is_cooled_reads_as_zeros_and_is_as_good_as_new() {
        let mut slab = Slab::new(64 * KIB);
        let stack = slab.cut().unwrap();
        let (attic, lowest) = (stack.attic(), stack.lowest());
        // SAFETY: nothing runs on the stack.
        unsafe { attic.write(1) };
        let stack = cool(stack).unwrap();
        assert_eq!((stack.attic(), stack.lowest()), (attic, lowest));
        // SAFETY: as above.
        assert_eq!(unsafe { attic.read() }, 0);
        slab.end(vec![stack]);
    }

    #[test]
    fn many_stacks_take_few_mappings() {
        let mut slab = Slab::new(64 * KIB);
        let stacks: Vec<Stack> = (0..10_000).map(|_| slab.cut().unwrap()).collect();
        let chunks = slab.chunks.len();
        assert_eq!(chunks, 8);
        // Each guard is a mapping where the system knows no markers.
        if sys::has_guard_markers() {
            assert!(mappings(&slab) <= chunks);
        }
        slab.end(stacks);
    }
}
