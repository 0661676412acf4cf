//! Keeps `std::thread::panicking()` a property of the coroutine.
//!
//! std counts the unwinds in progress per thread. A coroutine that awaits in a
//! destructor, while it unwinds, leaves its thread in the middle of an unwind:
//! everyone else on the thread would see `panicking() == true`, locks would be
//! poisoned without reason, and a real panic would poison nothing. So the
//! engine takes the count away with the coroutine ([`hide`]) and brings it back
//! when the coroutine is resumed ([`show`]). It does the same with the count of
//! a parent that resumes a coroutine while it unwinds itself.
//!
//! There is no function that sets the count; but it is raised by starting an
//! unwind, and lowered by catching one. A [`Token`] is a small coroutine that
//! is suspended in the middle of an unwind:
//!
//! ```text
//!              arm: throw, suspend in a destructor     count + 1
//!   idle  ────────────────────────────────────────▶  armed
//!         ◀────────────────────────────────────────
//!              disarm: finish the unwind, catch        count - 1
//! ```
//!
//! To lower the count of a thread some token must have been armed before. The
//! first ones are armed on a helper thread that ends at once and whose own
//! count nobody looks at; afterwards every `show` arms as many as the next
//! `hide` needs.
//!
//! # Invariants
//!
//! - U1 A token's stack holds no reference into any thread's locals: the
//!   unwind is thrown in a frame of its own, and std looks the count up anew
//!   when it is caught. A token may therefore be armed on one thread and
//!   disarmed on another.
//! - U2 If std ever counts otherwise, `hide` sees that disarming a token does
//!   not lower the count and switches the mechanism off. Nothing else relies
//!   on it: it is about correct answers of `panicking()`, not about memory.
//!
//! It costs a few microseconds, and only where an await happens during an
//! unwind. Elsewhere it is a load and a branch per switch.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::report;
use super::switch::{Stack, Switch, Yielder};

/// Unwinds in progress that were taken from a thread's count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hidden(u32);

impl Hidden {
    pub(crate) const NONE: Hidden = Hidden(0);
}

/// Takes the unwinds in progress from this thread's count.
#[inline(always)]
pub(crate) fn hide() -> Hidden {
    // The stand-in runs each coroutine on its own thread, with its own count.
    if cfg!(greenhack_threads) || !thread::panicking() {
        return Hidden::NONE;
    }
    lower()
}

/// Gives back what [`hide`] took.
#[inline(always)]
pub(crate) fn show(hidden: Hidden) {
    if hidden.0 > 0 {
        raise(hidden.0);
    }
}

/// The depth of nested unwinds that is credible; more means that disarming a
/// token does not lower the count.
const DEEPEST: u32 = 1000;

/// How many tokens are armed at once when there are none.
const FIRST: usize = 16;

/// Unwinding needs room: std's and the unwinder's frames in a debug build take
/// about 10 KiB.
const TOKEN_STACK: usize = 64 * 1024;

static OFF: AtomicBool = AtomicBool::new(false);
static IDLE: Mutex<Vec<Token>> = Mutex::new(Vec::new());
static ARMED: Mutex<Vec<Token>> = Mutex::new(Vec::new());

struct Token(Switch<()>);

// SAFETY: a token is moved between threads while it is suspended. Nothing on
// its stack belongs to a thread (U1).
unsafe impl Send for Token {}

impl Token {
    fn new() -> Option<Token> {
        let stack = Stack::new(TOKEN_STACK).ok()?;
        // SAFETY: the closure catches all that it throws, owns all that it
        // uses, and is resumed before it can be dropped, by `arm`.
        Some(Token(unsafe { Switch::new(stack, token) }))
    }

    /// Throws and stops in the middle: the thread's count is one higher.
    fn arm(&mut self) {
        assert!(self.0.resume().is_none(), "a token never ends");
    }

    /// Finishes the unwind: the thread's count is one lower.
    fn disarm(&mut self) {
        assert!(self.0.resume().is_none(), "a token never ends");
    }
}

/// The life of a token, suspended armed and idle in turn.
fn token(yielder: &Yielder) {
    struct SuspendOnDrop<'a>(&'a Yielder);

    impl Drop for SuspendOnDrop<'_> {
        fn drop(&mut self) {
            self.0.suspend();
        }
    }

    /// Looks the thread's count up in a frame that the unwind leaves at once.
    #[inline(never)]
    fn throw() -> ! {
        resume_unwind(Box::new(()))
    }

    loop {
        let thrown = catch_unwind(AssertUnwindSafe(|| {
            let _armed = SuspendOnDrop(yielder);
            throw();
        }));
        drop(thrown);
        yielder.suspend();
    }
}

fn pop(list: &Mutex<Vec<Token>>) -> Option<Token> {
    list.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

fn push(list: &Mutex<Vec<Token>>, token: Token) {
    list.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(token);
}

#[cold]
fn lower() -> Hidden {
    lower_while(thread::panicking, || pop(&ARMED).or_else(more_tokens), &OFF)
}

/// Disarms tokens as long as the thread is `panicking`, or switches the mechanism
/// off.
fn lower_while(
    panicking: impl Fn() -> bool,
    armed_token: impl Fn() -> Option<Token>,
    off: &AtomicBool,
) -> Hidden {
    if off.load(Ordering::Relaxed) {
        return Hidden::NONE;
    }
    let mut lowered = 0;
    while panicking() {
        let Some(mut token) = armed_token() else {
            // A count that stays behind must not be taken for another
            // coroutine's, so that nobody hides from now on.
            off.store(true, Ordering::Relaxed);
            report::warn(
                "the system gives no thread or stack to keep panics apart",
                "`thread::panicking()` is not kept apart between coroutines",
            );
            break;
        };
        token.disarm();
        push(&IDLE, token);
        lowered += 1;
        if lowered > DEEPEST {
            off.store(true, Ordering::Relaxed);
            report::warn(
                "this standard library counts panics in an unknown way",
                "`thread::panicking()` is not kept apart between coroutines",
            );
            raise(lowered);
            return Hidden::NONE;
        }
    }
    Hidden(lowered)
}

#[cold]
fn raise(count: u32) {
    for _ in 0..count {
        // There is an idle token for each unwind that was hidden, so that a
        // new one is made only if another thread has it for a moment.
        let Some(mut token) = pop(&IDLE).or_else(Token::new) else {
            return;
        };
        token.arm();
        push(&ARMED, token);
    }
}

/// Arms tokens on a thread whose count nobody looks at. One is for the caller
/// alone: other threads may have taken the rest before it looks.
fn more_tokens() -> Option<Token> {
    let helper = thread::Builder::new()
        .name("greenhack-throw".to_owned())
        .spawn(|| {
            let mut tokens = (0..FIRST).map_while(|_| {
                let mut token = Token::new()?;
                token.arm();
                Some(token)
            });
            let first = tokens.next();
            tokens.for_each(|token| push(&ARMED, token));
            first
        })
        .ok()?;
    helper.join().ok()?
}

#[cfg(all(test, not(greenhack_threads), panic = "unwind"))]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Runs `f` in the middle of an unwind.
    fn while_unwinding(f: impl FnOnce()) {
        struct OnDrop<F: FnOnce()>(Option<F>);
        impl<F: FnOnce()> Drop for OnDrop<F> {
            fn drop(&mut self) {
                (self.0.take().unwrap())();
            }
        }
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _guard = OnDrop(Some(f));
            resume_unwind(Box::new("the unwind of the test"));
        }));
        assert!(caught.is_err());
    }

    #[test]
    fn hiding_lowers_and_showing_raises() {
        while_unwinding(|| {
            assert!(thread::panicking());
            let hidden = hide();
            assert_eq!(hidden, Hidden(1));
            assert!(!thread::panicking());
            show(hidden);
            assert!(thread::panicking());
        });
        assert!(!thread::panicking());
    }

    #[test]
    fn nested_unwinds_are_counted() {
        while_unwinding(|| {
            while_unwinding(|| {
                let hidden = hide();
                assert_eq!(hidden, Hidden(2));
                assert!(!thread::panicking());
                show(hidden);
            });
            assert!(thread::panicking());
        });
        assert!(!thread::panicking());
    }

    #[test]
    fn a_mutex_locked_while_hidden_is_not_poisoned() {
        let mutex = Mutex::new(0);
        while_unwinding(|| {
            let hidden = hide();
            *mutex.lock().unwrap() += 1;
            show(hidden);
        });
        assert_eq!(*mutex.lock().unwrap(), 1);
    }

    fn armed_token() -> Option<Token> {
        pop(&ARMED).or_else(more_tokens)
    }

    #[test]
    fn a_count_that_does_not_fall_switches_it_off_and_stays_as_it_was() {
        let off = AtomicBool::new(false);
        while_unwinding(|| {
            // As if std counted elsewhere.
            assert_eq!(lower_while(|| true, armed_token, &off), Hidden::NONE);
            assert!(off.load(Ordering::Relaxed));
            assert!(thread::panicking());
            // From now on nobody asks.
            let ask = || -> bool { unreachable!() };
            assert_eq!(lower_while(ask, armed_token, &off), Hidden::NONE);
        });
        assert!(!thread::panicking());
    }

    #[test]
    fn without_tokens_it_is_switched_off() {
        let off = AtomicBool::new(false);
        while_unwinding(|| {
            while_unwinding(|| {
                // There is one, for two unwinds.
                let one = Cell::new(armed_token());
                let hidden = lower_while(thread::panicking, || one.take(), &off);
                assert_eq!(hidden, Hidden(1));
                assert!(off.load(Ordering::Relaxed));
                assert!(thread::panicking());
                // What was hidden comes back.
                show(hidden);
            });
            assert!(thread::panicking());
        });
        assert!(!thread::panicking());
    }

    #[test]
    fn tokens_are_reused_on_other_threads() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                thread::spawn(|| {
                    for _ in 0..100 {
                        while_unwinding(|| {
                            let hidden = hide();
                            assert!(!thread::panicking());
                            show(hidden);
                        });
                        assert!(!thread::panicking());
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn threads_that_hide_at_once_do_not_take_each_others_tokens() {
        const THREADS: usize = 4;

        /// Holds `depth` unwinds hidden at the same time.
        fn hide_deeper(depth: usize) {
            while_unwinding(|| {
                let hidden = hide();
                assert_eq!(hidden, Hidden(1));
                assert!(!thread::panicking());
                if depth > 1 {
                    hide_deeper(depth - 1);
                }
                show(hidden);
            });
            assert!(!thread::panicking());
        }

        let start = std::sync::Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    hide_deeper(100);
                });
            }
        });
    }
}
