//! The stand-in for the stack switch: a thread for each coroutine.
//!
//! Miri interprets programs and cannot switch stacks. With `--cfg
//! greenhack_threads` a [`Switch`] runs its closure on a thread of its own, and
//! parent and coroutine pass the turn to each other: only one of them ever
//! runs. What they share is then seen by Miri as in the real thing: who holds
//! which reference, and what is read after what was written.
//!
//! ```text
//!   parent               turn                coroutine's thread
//!   ──────               ────                ──────────────────
//!   new                  Parent              waits for its turn
//!   resume ──────────▶   Coroutine  ───────▶ runs
//!   goes on   ◀───────   Parent     ◀─────── suspend
//!   resume ──────────▶   Coroutine  ───────▶ runs on, ends
//!   joins it  ◀───────   Over       ◀───────
//! ```
//!
//! It differs from the real thing in what belongs to a thread. The coroutine
//! has thread locals of its own, so it does not see tokio's context, and a
//! count of unwinds of its own. A closure that is suspended when its switch is
//! dropped leaks its thread, which waits for its turn for ever.
//!
//! # Invariants
//!
//! - W1 The parent runs user code only while the turn is not `Coroutine`, the
//!   thread only while it is. The turn is handed over under a lock, so that
//!   whatever one side has written happens before what the other side reads.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::ATTIC;

/// The size of a stack, for the thread that will be the coroutine.
pub(crate) struct Stack {
    size: usize,
    attic: NonNull<Attic>,
}

/// As aligned as the base of a stack.
#[repr(align(16))]
struct Attic(#[allow(dead_code, reason = "it is room")] [MaybeUninit<u8>; ATTIC]);

// SAFETY: it owns its attic, which nobody has borrowed.
unsafe impl Send for Stack {}

impl Stack {
    pub(crate) fn new(size: usize) -> io::Result<Stack> {
        let attic = Box::new(Attic([MaybeUninit::uninit(); ATTIC]));
        Ok(Stack {
            size,
            attic: NonNull::from(Box::leak(attic)),
        })
    }

    /// The [`ATTIC`] bytes that belong to whoever owns the stack, or what runs on
    /// it.
    pub(crate) fn attic(&self) -> *mut u8 {
        self.attic.as_ptr().cast()
    }

    /// Whether it has a mapping of its own: it has what stands for that.
    pub(crate) fn has_mapping(&self) -> bool {
        true
    }

    /// The size that was asked for, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: `new` has leaked it, and whoever drops the stack has nothing in
        // it any more.
        drop(unsafe { Box::from_raw(self.attic.as_ptr()) });
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Before the first resume, and after each suspension.
    Parent,
    /// From a resume on.
    Coroutine,
    /// The closure has ended. Stays.
    Over,
}

/// What parent and coroutine hand to and fro.
struct Baton {
    turn: Mutex<Turn>,
    passed: Condvar,
}

impl Baton {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, to: Turn) {
        *self.lock() = to;
        self.passed.notify_one();
    }

    /// Waits until the turn is no longer `turn`, and returns whose it is.
    fn wait_while(&self, turn: Turn) -> Turn {
        let guard = self.passed.wait_while(self.lock(), |now| *now == turn);
        *guard.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way back to the parent, seen from the coroutine.
pub(crate) struct Yielder {
    baton: Arc<Baton>,
}

impl Yielder {
    /// Goes to the parent and returns when it resumes this coroutine.
    pub(crate) fn suspend(&self) {
        self.baton.pass(Turn::Parent);
        self.baton.wait_while(Turn::Parent);
    }
}

impl Drop for Yielder {
    /// The last that the thread does, also if the closure unwinds.
    fn drop(&mut self) {
        self.baton.pass(Turn::Over);
    }
}

/// A value that goes to the thread of a coroutine, or comes back from it.
struct Carried<V>(V);

// SAFETY: a coroutine and its parent are one thread in the real thing. Here
// they take turns (W1), so that nothing is ever used by two threads at once.
unsafe impl<V> Send for Carried<V> {}

impl<V> Carried<V> {
    /// Takes the value; a closure that calls this captures the whole.
    fn into_inner(self) -> V {
        self.0
    }
}

/// A closure that runs on a thread of its own.
pub(crate) struct Switch<T> {
    stack: Stack,
    baton: Arc<Baton>,
    /// `None` when the closure has ended.
    thread: Option<JoinHandle<Carried<T>>>,
}

impl<T> Switch<T> {
    /// Puts `f` on a thread, to run at the first [`resume`](Self::resume).
    ///
    /// # Safety
    ///
    /// - `f` must not unwind.
    /// - What `f` and `T` borrow must live as long as the switch, and for
    ///   ever if the switch is dropped or forgotten while it is suspended.
    pub(crate) unsafe fn new<F>(stack: Stack, f: F) -> Switch<T>
    where
        F: FnOnce(&Yielder) -> T,
    {
        let baton = Arc::new(Baton {
            turn: Mutex::new(Turn::Parent),
            passed: Condvar::new(),
        });
        let yielder = Yielder {
            baton: baton.clone(),
        };
        let f = Carried(f);
        let root = move || {
            yielder.baton.wait_while(Turn::Parent);
            let f = f.into_inner();
            Carried(f(&yielder))
        };
        let builder = Builder::new()
            .name("greenhack-coroutine".to_owned())
            .stack_size(stack.size);
        // SAFETY: the caller keeps what `f` and `T` borrow alive until the
        // closure has ended, and for ever if it never does.
        let thread = unsafe { builder.spawn_unchecked(root) };
        Switch {
            stack,
            baton,
            thread: Some(thread.expect("the system gives no thread for a coroutine")),
        }
    }

    /// Runs the closure until it suspends (`None`) or ends.
    pub(crate) fn resume(&mut self) -> Option<T> {
        assert!(self.thread.is_some(), "resumed after its end");
        self.baton.pass(Turn::Coroutine);
        if self.baton.wait_while(Turn::Coroutine) == Turn::Parent {
            return None;
        }
        let thread = self.thread.take()?;
        let value = thread.join().expect("the closure of a switch has unwound");
        Some(value.into_inner())
    }

    /// Whether the closure can be resumed: it has not ended.
    pub(crate) fn can_resume(&self) -> bool {
        self.thread.is_some()
    }

    /// Takes the stack of a switch whose closure has ended.
    pub(crate) fn into_stack(self) -> Stack {
        assert!(!self.can_resume(), "the coroutine has not ended");
        self.stack
    }
}
