//! A global allocator that counts, and looks at the stacks of its thread, whenever it is
//! called.

#![cfg(all(panic = "unwind", not(greenhack_threads)))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;

use futures::poll;
use greenhack::dump::{State, this_thread};
use greenhack::{await_sync, builder, in_context, run_sync, run_sync_local};
use tokio::runtime::LocalRuntime;
use tokio::sync::Notify;
use tokio::task::yield_now;

struct Looks;

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static LOOKS: Cell<usize> = const { Cell::new(0) };
    static LOOKS_IN_RUNS: Cell<usize> = const { Cell::new(0) };
}

impl Looks {
    fn look() {
        // Not while it looks.
        if IS_ON.replace(false) {
            let thread = this_thread();
            let stacks = thread.stacks().unwrap();
            assert_eq!(stacks.len(), 2);
            assert!(stacks.iter().all(|stack| stack.state() == State::Waiting));
            LOOKS.set(LOOKS.get() + 1);
            LOOKS_IN_RUNS.set(LOOKS_IN_RUNS.get() + usize::from(in_context()));
            drop(thread);
            IS_ON.set(true);
        }
    }
}

// SAFETY: the memory is the system's.
unsafe impl GlobalAlloc for Looks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        Looks::look();
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Looks::look();
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Looks = Looks;

#[test]
fn an_allocator_that_looks_is_never_called_on_a_stack_that_is_looked_at() {
    LocalRuntime::new().unwrap().block_on(async {
        let notify = Rc::new(Notify::new());
        let run = |name: &str| {
            let notify = notify.clone();
            let named = builder().name(name.to_owned());
            named.run_sync_local(move || await_sync(notify.notified()))
        };
        let (mut soup, mut stew) = (run("soup"), run("stew"));
        assert!(poll!(&mut soup).is_pending());
        assert!(poll!(&mut stew).is_pending());

        IS_ON.set(true);
        let thread = this_thread();
        IS_ON.set(false);
        assert!(LOOKS.get() > 2);
        assert_eq!(LOOKS_IN_RUNS.get(), 0);
        assert_eq!(thread.stacks().unwrap().len(), 2);
        notify.notify_waiters();
        soup.await;
        stew.await;
    });
}

#[test]
fn a_run_allocates_nothing() {
    LocalRuntime::new().unwrap().block_on(async {
        let mut counts = Vec::with_capacity(2);
        // The first stacks are made.
        for _ in 0..2 {
            let before = ALLOCATIONS.get();
            let small = builder().name("soup").stack_size(64 * 1024);
            let sum = small.run_sync_local(|| await_sync(run_sync_local(|| 1)) + 1);
            assert_eq!(sum.await, 2);
            run_sync(|| await_sync(yield_now())).await;
            counts.push(ALLOCATIONS.get() - before);
        }
        assert!(counts[0] > 0);
        assert_eq!(counts[1], 0);
    });
}
