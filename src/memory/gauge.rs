//! How deep a stack was used.
//!
//! Its memory goes back to the system before anything runs on it. Afterwards the pages
//! that have memory again are those that were touched:
//!
//! ```text
//!   ┌ guard ┬──────────── given back ────────────┬ topmost page ┐
//!           │  none    none    lowest  touched   │  in use      │
//!           ◀ lowest           ◀──────────── used ─────────────▶ top
//! ```
//!
//! So it is told in whole pages, and never less than was used. What is on the stack is
//! not looked at. The topmost page, in which stacks begin, is left as it is: above the
//! base it is in use, and it counts in any case.

use crate::ground::sys;

/// A stack that had no memory below its topmost page.
#[derive(Debug)]
pub(super) struct Gauge {
    lowest: usize,
    top: usize,
    size: usize,
}

impl Gauge {
    /// Sets the gauge of a stack of `size` bytes to zero, if that can be done, and be seen.
    ///
    /// # Safety
    ///
    /// - `attic` must be an address in the attic of the stack.
    /// - Nothing may have run on it since it was taken from the pool.
    pub(super) unsafe fn new(attic: usize, size: usize) -> Option<Gauge> {
        let page = sys::page();
        let topmost = attic / page * page;
        let top = topmost + page;
        // One with a mapping of its own may have a page more. Who has used that has used
        // all the others.
        let lowest = top - size.next_multiple_of(page);
        // SAFETY: these are whole pages of the stack. What has not run is all in the
        // topmost page, closure and links: `switch` sees to that.
        let is_given_back = unsafe { sys::discard(lowest, topmost - lowest) };
        // There are systems that take the advice, and do not follow it.
        let is_blank = || sys::lowest_touched(lowest, topmost).ok() == Some(topmost);
        (is_given_back && is_blank()).then_some(Gauge { lowest, top, size })
    }

    /// The size of the stack, in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The bytes that were used since, from the top of the stack, or `None` if the system
    /// doesn't tell.
    pub(super) fn used(&self) -> Option<usize> {
        let lowest = sys::lowest_touched(self.lowest, self.top).ok()?;
        // The topmost page was touched for sure.
        let is_told = lowest < self.top;
        is_told.then(|| (self.top - lowest).min(self.size))
    }
}
