//! The stack switch: the only file that names corosensei.
//!
//! A [`Switch`] runs a closure on a stack of its own. [`Switch::resume`] goes
//! there, [`Yielder::suspend`] comes back; nothing else crosses. Values never
//! travel through the switch: parent and coroutine share memory instead, see
//! `coroutine`.
//!
//! corosensei is used without its `unwind` feature. It then has no way to
//! unwind a suspended stack, and no unwind may enter it: the closure must
//! catch every panic, and a suspended [`Switch`] is leaked, never unwound.
//! The first is a duty of the callers of [`Switch::new`], the second is kept
//! by the `Drop` below.
//!
//! With `--cfg greenhack_threads` (set for Miri, which cannot switch stacks)
//! the same interface is backed by one thread per coroutine and a strict
//! hand-over, so that the protocol above it can be checked.

/// How many bytes each stack has beside what runs on it, see [`Stack::attic`].
pub(crate) const ATTIC: usize = 512;

#[cfg(not(greenhack_threads))]
#[allow(clippy::disallowed_types, reason = "this is the file that may")]
mod native {
    use std::io;
    use std::mem::ManuallyDrop;
    use std::ptr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::ATTIC;
    #[cfg(all(target_os = "linux", not(greenhack_valgrind)))]
    use crate::ground::sys::Pages;
    #[cfg(not(all(target_os = "linux", not(greenhack_valgrind))))]
    use corosensei::stack::DefaultStack as Pages;
    use corosensei::stack::{Stack as _, StackPointer};
    use corosensei::{Coroutine, CoroutineResult};

    /// A guarded stack.
    ///
    /// It goes from hand to hand with every run, so it is two words, which stay in
    /// registers.
    pub(crate) struct Stack {
        /// Where the stack begins, which each resume asks for. The attic is above.
        base: StackPointer,
        size: usize,
    }

    /// The mapping of its own that a stack has, if it has one.
    ///
    /// It lies above the attic. Where memory was given back it reads as zeros, which
    /// is `None`.
    type OwnPages = Option<Box<Pages>>;

    /// Stacks are whole pages, so what lies at the top of each would fall into
    /// the same few sets of the cache. They begin at different lines instead, all
    /// of them high enough in the topmost page to leave room for small frames.
    const STAGGERS: usize = 16;
    const STAGGER: usize = 128;

    /// A stack does not begin with a line of the cache, so that the link to the
    /// parent below the base shares one with the first bytes of the attic.
    const OFF_LINE: usize = 64 - 16;

    /// No page is smaller.
    const SMALLEST_PAGE: usize = 4096;

    const _: () = {
        let most = (STAGGERS - 1) * STAGGER + OFF_LINE + ATTIC;
        // The closure, which may have to be aligned to its size, and more than corosensei
        // puts beside it.
        let before_it_runs = 2 * LARGEST_CLOSURE + 256;
        assert!(
            most + before_it_runs < SMALLEST_PAGE,
            "stacks begin in the topmost page, and what has not run is all in there"
        );
        assert!(
            size_of::<OwnPages>() <= OFF_LINE,
            "there is room above the attic"
        );
        // A stack is numbers, and goes to other threads with what they stand for.
        const fn is_send<T: Send>() {}
        is_send::<OwnPages>();
    };

    /// The next of the distances from the top at which stacks begin.
    fn stagger() -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % STAGGERS * STAGGER + OFF_LINE + ATTIC
    }

    impl Stack {
        /// A stack in a mapping of its own.
        pub(crate) fn new(size: usize) -> io::Result<Stack> {
            let stagger = stagger();
            let pages = Pages::new(size.saturating_add(stagger))?;
            let stack = Stack {
                base: pointer(pages.base().get() - stagger),
                size,
            };
            // SAFETY: the mapping is new, and begins `stagger` bytes higher.
            unsafe { stack.pages().write(Some(Box::new(pages))) };
            Ok(stack)
        }

        /// A stack of `size` bytes from `limit` on. The memory is not freed when
        /// this is dropped.
        ///
        /// # Safety
        ///
        /// - The memory must be mapped, and a guard below it, until this is
        ///   dropped, and for ever if this is leaked.
        /// - What is above the attic must read as zeros, and nobody else may use any
        ///   of it.
        /// - Both numbers must be multiples of the size of a page.
        #[cfg(all(target_os = "linux", not(greenhack_valgrind)))]
        pub(crate) unsafe fn over(limit: usize, size: usize) -> Stack {
            Stack {
                base: pointer(limit + size - stagger()),
                size,
            }
        }

        /// The size that was asked for, in bytes.
        #[inline]
        pub(crate) fn size(&self) -> usize {
            self.size
        }

        /// The [`ATTIC`] bytes above the stack. They belong to whoever owns the
        /// stack, or what runs on it.
        #[inline]
        pub(crate) fn attic(&self) -> *mut u8 {
            ptr::with_exposed_provenance_mut(self.base.get())
        }

        /// Whether it has a mapping of its own.
        pub(crate) fn has_mapping(&self) -> bool {
            // SAFETY: see `drop`. Nobody writes to it meanwhile.
            unsafe { &*self.pages() }.is_some()
        }

        /// Its lowest address.
        #[cfg(all(target_os = "linux", not(greenhack_valgrind)))]
        pub(crate) fn lowest(&self) -> usize {
            self.limit().get()
        }

        /// Where its mapping is kept, which nobody else looks at.
        fn pages(&self) -> *mut OwnPages {
            ptr::with_exposed_provenance_mut(self.base.get() + ATTIC)
        }
    }

    impl Drop for Stack {
        /// Frees the memory, if it has a mapping of its own.
        fn drop(&mut self) {
            // SAFETY: it was written by `new`, or is the zeros of `over`. It is read
            // once, here, and out of the mapping before that is freed.
            drop(unsafe { self.pages().read() });
        }
    }

    fn pointer(address: usize) -> StackPointer {
        StackPointer::new(address).expect("a stack is not at null")
    }

    // SAFETY: it is whole pages above a guard, and what is asked for is more than the
    // minimum.
    #[cfg(all(target_os = "linux", not(greenhack_valgrind)))]
    unsafe impl corosensei::stack::Stack for Pages {
        fn base(&self) -> StackPointer {
            pointer(self.top())
        }

        fn limit(&self) -> StackPointer {
            pointer(self.lowest())
        }
    }

    // SAFETY: `Pages` keeps the contract (a guard page, at least the minimum size,
    // aligned bounds), and the caller of `over` does. What is above the base is a
    // multiple of the alignment; it was added to the size, or leaves more than the
    // minimum of it.
    unsafe impl corosensei::stack::Stack for Stack {
        #[inline]
        fn base(&self) -> StackPointer {
            self.base
        }

        #[inline]
        fn limit(&self) -> StackPointer {
            // SAFETY: see `drop`. Nobody writes to it meanwhile.
            match unsafe { &*self.pages() } {
                Some(pages) => pages.limit(),
                None => {
                    let top = self.base.get().next_multiple_of(SMALLEST_PAGE);
                    pointer(top - self.size)
                }
            }
        }

        #[cfg(windows)]
        fn teb_fields(&self) -> corosensei::stack::StackTebFields {
            // SAFETY: as in `limit`.
            let pages = unsafe { &*self.pages() }.as_ref();
            pages.expect("there are no slabs on Windows").teb_fields()
        }

        #[cfg(windows)]
        fn update_teb_fields(&mut self, stack_limit: usize, guaranteed_stack_bytes: usize) {
            // SAFETY: as in `limit`, and this is borrowed mutably.
            let pages = unsafe { &mut *self.pages() }.as_mut();
            pages
                .expect("there are no slabs on Windows")
                .update_teb_fields(stack_limit, guaranteed_stack_bytes);
        }
    }

    /// The way back to the parent, seen from the coroutine.
    #[repr(transparent)]
    pub(crate) struct Yielder(corosensei::Yielder<(), ()>);

    impl Yielder {
        /// Goes to the parent and returns when it resumes this coroutine.
        #[inline(always)]
        pub(crate) fn suspend(&self) {
            self.0.suspend(());
        }
    }

    /// What is larger goes to the heap: corosensei refuses to move more than 1 KiB
    /// to a stack.
    const LARGEST_CLOSURE: usize = 512;

    /// A closure that runs on a stack of its own.
    pub(crate) struct Switch<T> {
        coroutine: ManuallyDrop<Coroutine<(), (), T, Stack>>,
    }

    impl<T> Switch<T> {
        /// Puts `f` on `stack`, to run at the first [`resume`](Self::resume).
        ///
        /// # Safety
        ///
        /// - `f` must not unwind.
        /// - What `f` and `T` borrow must live as long as the switch, and for
        ///   ever if the switch is dropped or forgotten while it is suspended.
        #[inline]
        pub(crate) unsafe fn new<F>(stack: Stack, f: F) -> Switch<T>
        where
            F: FnOnce(&Yielder) -> T,
        {
            if size_of::<F>() <= LARGEST_CLOSURE {
                // SAFETY: the caller's.
                return unsafe { Switch::with(stack, f) };
            }
            let f = Box::new(f);
            // SAFETY: the caller's, as the box adds nothing.
            unsafe { Switch::with(stack, move |yielder: &Yielder| f(yielder)) }
        }

        /// As [`new`](Self::new), of a closure that is small enough.
        #[inline]
        unsafe fn with<F>(stack: Stack, f: F) -> Switch<T>
        where
            F: FnOnce(&Yielder) -> T,
        {
            let root = move |yielder: &corosensei::Yielder<(), ()>, ()| {
                let yielder: *const corosensei::Yielder<(), ()> = yielder;
                // SAFETY: `Yielder` is a transparent wrapper of the type that
                // the pointer was made from.
                f(unsafe { &*yielder.cast::<Yielder>() })
            };
            // SAFETY: the caller keeps what `f` borrows alive.
            let coroutine = unsafe { Coroutine::with_stack_unchecked(stack, root) };
            Switch {
                coroutine: ManuallyDrop::new(coroutine),
            }
        }

        /// Runs the closure until it suspends (`None`) or ends.
        #[inline(always)]
        pub(crate) fn resume(&mut self) -> Option<T> {
            match self.coroutine.resume(()) {
                CoroutineResult::Yield(()) => None,
                CoroutineResult::Return(value) => Some(value),
            }
        }

        /// Whether the closure can be resumed: it has not ended, nor does it run.
        #[inline]
        pub(crate) fn can_resume(&self) -> bool {
            !self.coroutine.done()
        }

        /// Takes the stack of a switch whose closure has ended.
        #[inline]
        pub(crate) fn into_stack(self) -> Stack {
            let mut this = ManuallyDrop::new(self);
            assert!(!this.can_resume(), "the coroutine has not ended");
            // SAFETY: `this` is never used again, nor dropped.
            let coroutine = unsafe { ManuallyDrop::take(&mut this.coroutine) };
            coroutine.into_stack()
        }
    }

    impl<T> Drop for Switch<T> {
        /// Leaks the stack of a closure that is suspended, or never ran.
        fn drop(&mut self) {
            if !self.can_resume() {
                // SAFETY: dropped once, here. It has ended, so that there is
                // nothing to unwind.
                unsafe { ManuallyDrop::drop(&mut self.coroutine) };
            }
        }
    }
}

#[cfg(greenhack_threads)]
#[path = "switch_threads.rs"]
mod native;

pub(crate) use native::{Stack, Switch, Yielder};
