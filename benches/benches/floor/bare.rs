//! The least that a bridge can be: a stack, and the switch to it and back.
//!
//! It is unsound, and fit for nothing but this bench. A wait in the wrong place corrupts
//! what is suspended; a panic, or the drop of a run that waits, ends the process.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::marker::PhantomPinned;
use std::pin::{Pin, pin};
use std::ptr;
use std::task::{Context, Poll};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use tokio::runtime::{self, Handle, worker_index};
use tokio::task;

type Switch<T> = Coroutine<(), (), T, DefaultStack>;

thread_local! {
    /// What the coroutine that runs shares with its parent.
    static CURRENT: Cell<*const Shared> = const { Cell::new(ptr::null()) };
    /// Stacks that are free.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

struct Shared {
    yielder: Cell<*const Yielder<(), ()>>,
    context: Cell<*mut Context<'static>>,
    pending: Cell<Option<*mut dyn Pollable>>,
}

/// Plain code as a future. With `LOOKS` it looks at what tokio says of the thread, at
/// the beginning of a poll and where the code waits, as often as greenhack does.
pub(crate) struct Bare<F, T, const LOOKS: bool> {
    f: Option<F>,
    switch: Option<Switch<T>>,
    shared: Shared,
    spot: Option<Spot>,
    _pinned: PhantomPinned,
}

// SAFETY: the bench polls it on one thread.
unsafe impl<F, T, const LOOKS: bool> Send for Bare<F, T, LOOKS> {}

impl<F: FnOnce() -> T + 'static, T: 'static, const LOOKS: bool> Bare<F, T, LOOKS> {
    pub(crate) fn new(f: F) -> Self {
        Bare {
            f: Some(f),
            switch: None,
            shared: Shared {
                yielder: Cell::new(ptr::null()),
                context: Cell::new(ptr::null_mut()),
                pending: Cell::new(None),
            },
            spot: None,
            _pinned: PhantomPinned,
        }
    }

    #[inline(never)]
    fn start(&mut self, f: F) {
        let stack = STACKS.with_borrow_mut(Vec::pop);
        let stack = stack.unwrap_or_else(|| DefaultStack::new(64 * 1024).expect("memory"));
        let shared: *const Shared = &raw const self.shared;
        self.switch = Some(Switch::with_stack(stack, move |yielder, ()| {
            // SAFETY: it is pinned, and lives until this ends.
            unsafe { &*shared }.yielder.set(yielder);
            f()
        }));
        self.spot = LOOKS.then(Spot::here);
    }
}

impl<F: FnOnce() -> T + 'static, T: 'static, const LOOKS: bool> Future for Bare<F, T, LOOKS> {
    type Output = T;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // SAFETY: nothing is moved out of it.
        let this = unsafe { self.get_unchecked_mut() };
        if let Some(f) = this.f.take() {
            this.start(f);
        } else if let Some(spot) = &this.spot {
            assert!(spot.is_same_task());
        }
        this.shared.context.set(ptr::from_mut(cx).cast());
        let switch = this.switch.as_mut().expect("it has started");
        loop {
            if let Some(pending) = this.shared.pending.get() {
                // SAFETY: it lies in the frame that waits.
                let pending = unsafe { &mut *pending };
                // SAFETY: it is not moved before it is ready.
                if unsafe { Pin::new_unchecked(pending) }.poll(cx).is_pending() {
                    assert!(this.spot.as_ref().is_none_or(Spot::is_here));
                    return Poll::Pending;
                }
                this.shared.pending.set(None);
            }
            let outer = CURRENT.replace(&raw const this.shared);
            let result = switch.resume(());
            CURRENT.set(outer);
            match result {
                CoroutineResult::Return(output) => {
                    let stack = this.switch.take().map(Switch::into_stack);
                    STACKS.with_borrow_mut(|stacks| stacks.extend(stack));
                    return Poll::Ready(output);
                }
                CoroutineResult::Yield(()) if this.shared.pending.get().is_none() => {
                    return Poll::Pending;
                }
                CoroutineResult::Yield(()) => {}
            }
        }
    }
}

/// Waits, and polls the future on the coroutine's own stack.
#[inline(always)]
pub(crate) fn wait_here<F: Future>(future: F) -> F::Output {
    // SAFETY: the bench calls this on the stack of a `Bare`.
    let shared = unsafe { &*CURRENT.get() };
    let mut future = pin!(future);
    loop {
        // SAFETY: it is that of the poll that has resumed this.
        let context = unsafe { &mut *shared.context.get() };
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return output;
        }
        // SAFETY: the coroutine has set it.
        unsafe { &*shared.yielder.get() }.suspend(());
    }
}

/// Waits, and lets the parent poll the future on its stack, as greenhack does.
#[inline(always)]
pub(crate) fn wait_at_parent<F: Future>(future: F) -> F::Output {
    // SAFETY: the bench calls this on the stack of a `Bare`.
    let shared = unsafe { &*CURRENT.get() };
    let mut slot = Slot::Waiting(future);
    let pending: *mut (dyn Pollable + '_) = &raw mut slot;
    // SAFETY: only the lifetime changes, and this frame waits meanwhile.
    let pending: *mut (dyn Pollable + 'static) = unsafe { std::mem::transmute(pending) };
    shared.pending.set(Some(pending));
    // SAFETY: the coroutine has set it.
    unsafe { &*shared.yielder.get() }.suspend(());
    match slot {
        Slot::Ready(output) => output,
        Slot::Waiting(_) => unreachable!("resumed before it is ready"),
    }
}

trait Pollable {
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()>;
}

enum Slot<F: Future> {
    Waiting(F),
    Ready(F::Output),
}

impl<F: Future> Pollable for Slot<F> {
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: the future is not moved, but dropped in its place.
        let this = unsafe { self.get_unchecked_mut() };
        if let Slot::Waiting(future) = this {
            // SAFETY: as above.
            match unsafe { Pin::new_unchecked(future) }.poll(cx) {
                Poll::Ready(output) => *this = Slot::Ready(output),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}

/// What tokio says of a place.
#[derive(PartialEq, Eq)]
struct Spot {
    task: Option<task::Id>,
    worker: Option<usize>,
    runtime: Option<runtime::Id>,
}

impl Spot {
    fn here() -> Spot {
        Spot {
            task: task::try_id(),
            worker: worker_index(),
            runtime: Handle::try_current().ok().map(|handle| handle.id()),
        }
    }

    fn is_same_task(&self) -> bool {
        self.task == task::try_id() && self.worker == worker_index()
    }

    fn is_here(&self) -> bool {
        *self == Spot::here()
    }
}
