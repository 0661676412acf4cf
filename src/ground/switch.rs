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

#[cfg(not(greenhack_threads))]
#[allow(clippy::disallowed_types, reason = "this is the file that may")]
mod native {
    use std::io;
    use std::mem::ManuallyDrop;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use corosensei::stack::{DefaultStack, Stack as _, StackPointer};
    use corosensei::{Coroutine, CoroutineResult};

    /// A guarded stack. It is two words, because it is moved a lot.
    pub(crate) struct Stack {
        /// Where the stack begins, which each resume asks for.
        base: StackPointer,
        memory: Box<Memory>,
    }

    struct Memory {
        pages: DefaultStack,
        size: usize,
    }

    /// Stacks are whole pages, so what lies at the top of each would fall into
    /// the same few sets of the cache. They begin at different lines instead.
    const STAGGERS: usize = 16;
    const STAGGER: usize = 192;

    impl Stack {
        pub(crate) fn new(size: usize) -> io::Result<Stack> {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let stagger = NEXT.fetch_add(1, Ordering::Relaxed) % STAGGERS * STAGGER;
            let pages = DefaultStack::new(size.saturating_add(stagger))?;
            let base = pages.base().get() - stagger;
            Ok(Stack {
                base: StackPointer::new(base).expect("memory lies above its own size"),
                memory: Box::new(Memory { pages, size }),
            })
        }

        /// The size that was asked for, in bytes.
        pub(crate) fn size(&self) -> usize {
            self.memory.size
        }
    }

    // SAFETY: `DefaultStack` keeps the contract (a guard page, at least the
    // minimum size, aligned bounds). The stagger is a multiple of the alignment,
    // and was added to the size.
    unsafe impl corosensei::stack::Stack for Stack {
        #[inline]
        fn base(&self) -> StackPointer {
            self.base
        }

        #[inline]
        fn limit(&self) -> StackPointer {
            self.memory.pages.limit()
        }

        #[cfg(windows)]
        fn teb_fields(&self) -> corosensei::stack::StackTebFields {
            self.memory.pages.teb_fields()
        }

        #[cfg(windows)]
        fn update_teb_fields(&mut self, stack_limit: usize, guaranteed_stack_bytes: usize) {
            self.memory
                .pages
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

        /// Takes the stack of a switch whose closure has ended.
        #[inline]
        pub(crate) fn into_stack(self) -> Stack {
            assert!(self.coroutine.done(), "the coroutine has not ended");
            let mut this = ManuallyDrop::new(self);
            // SAFETY: `this` is never used again, nor dropped.
            let coroutine = unsafe { ManuallyDrop::take(&mut this.coroutine) };
            coroutine.into_stack()
        }
    }

    impl<T> Drop for Switch<T> {
        /// Leaks the stack of a closure that is suspended, or never ran.
        fn drop(&mut self) {
            if self.coroutine.done() {
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
