//! The coroutines that live on this thread.
//!
//! The runs are counted, so that a worker can wait for those that will end, and
//! knows of those that won't: suspended stacks may lend references to the
//! thread's locals, and so a thread with such stacks must not end.
//!
//! All are in a list, so that one can look at them. It goes through their own blocks, which
//! makes it nearly free: those at its head have just been made, and are in the cache.
//!
//! # Invariants
//!
//! - A1 What is in the list of a thread is a [`Resident`] of a coroutine that was made on
//!   this thread and has not ended. It stays where it is.
//! - A2 Only this thread touches the list.

use std::cell::Cell;
use std::ptr;

use super::account::Account;
use super::context::Kind;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static LEAKED: Cell<usize> = const { Cell::new(0) };
    static NEWEST: Cell<*const Resident> = const { Cell::new(ptr::null()) };
}

/// Asks a coroutine, of whatever type, for an account.
pub(crate) type Ask = unsafe fn(*const Resident) -> Account;

/// The place of a coroutine in the list of its thread.
pub(crate) struct Resident {
    newer: Cell<*const Resident>,
    older: Cell<*const Resident>,
    ask: Ask,
}

impl Resident {
    /// The place of what is made next, for [`arrive`].
    #[inline]
    pub(crate) fn new(ask: Ask) -> Resident {
        Resident {
            newer: Cell::new(ptr::null()),
            older: Cell::new(NEWEST.get()),
            ask,
        }
    }

    /// Takes the coroutine off the list, which has ended.
    #[inline]
    pub(crate) fn leave(&self, kind: Kind) {
        if !is_listed(kind) {
            return;
        }
        let (newer, older) = (self.newer.get(), self.older.get());
        // SAFETY: neighbours are in the list (A1).
        match unsafe { newer.as_ref() } {
            Some(newer) => newer.older.set(older),
            None => NEWEST.set(older),
        }
        // SAFETY: as above.
        if let Some(older) = unsafe { older.as_ref() } {
            older.newer.set(newer);
        }
        if kind == Kind::Run {
            LIVE.set(LIVE.get() - 1);
        }
    }
}

/// The stand-in for the switch makes the children of a scope on the thread of their
/// caller's coroutine, and ends them on that of the task.
fn is_listed(kind: Kind) -> bool {
    !cfg!(greenhack_threads) || kind == Kind::Run
}

/// Puts a coroutine on the list that was just made on this thread.
///
/// # Safety
///
/// - The resident must stay where it is until it has [left](Resident::leave), and for ever
///   if it does not.
/// - The pointer must be one that its `ask` can be called with.
#[inline]
pub(crate) unsafe fn arrive(resident: *const Resident, kind: Kind) {
    if !is_listed(kind) {
        return;
    }
    // SAFETY: the caller's; it is there.
    let this = unsafe { &*resident };
    NEWEST.set(resident);
    // SAFETY: it is in the list (A1).
    if let Some(older) = unsafe { this.older.get().as_ref() } {
        older.newer.set(resident);
    }
    if kind == Kind::Run {
        LIVE.set(LIVE.get() + 1);
    }
}

/// The accounts of the coroutines of this thread, oldest first.
pub(crate) fn accounts() -> Vec<Account> {
    let mut accounts = Vec::new();
    let mut next = NEWEST.get();
    // SAFETY: it is in the list (A1), which nobody changes meanwhile: a coroutine that is
    // asked runs no code but ours.
    while let Some(resident) = unsafe { next.as_ref() } {
        // SAFETY: `next` came from `arrive`, with the `ask` for the block that it is in.
        accounts.push(unsafe { (resident.ask)(next) });
        next = resident.older.get();
    }
    // That calls code of others, which may end some of them.
    accounts.iter_mut().for_each(Account::name_spans);
    accounts.reverse();
    accounts
}

/// A coroutine of this thread was leaked: it lives for ever.
pub(crate) fn leaked() {
    LEAKED.set(LEAKED.get() + 1);
}

/// How many runs are suspended here, leaked and forgotten ones too.
pub(crate) fn suspended() -> usize {
    LIVE.get()
}

/// Whether some will still end, if they are polled.
pub(crate) fn some_will_end() -> bool {
    LIVE.get() > LEAKED.get()
}
