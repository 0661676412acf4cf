//! [`with_ambient`]: a scope of plain code with a thread-local context of its
//! own.
#![forbid(unsafe_code)]

use std::panic::resume_unwind;
use std::thread;

use crate::engine::context::{Frame, Header, Place, current, with_none};
use crate::engine::mounts::{Ambient, Entry, FirstPanic};
use crate::ground::error::discard;

/// Runs `f` with `ambient` mounted.
///
/// In a run, `ambient` is unmounted whenever a wait in `f` suspends the run, and
/// mounted again when the task is polled next. So `f`, what it calls, and the
/// futures that it waits for find the context on their thread, and nobody else
/// does. Nested calls are mounted in their order, and unmounted in reverse.
///
/// It is for libraries that keep a context in a thread-local, and whose own
/// guard would be held across a wait. To give a whole run a context, call this
/// first in it. For values of your own, [`tokio::task_local!`] around a nested
/// run does the same without a trait.
///
/// Outside a run it mounts, calls `f` and unmounts. So a library can use it, and
/// be called by plain programs too.
///
/// `ambient` stays on its thread and need not be `Send`. Make it inside of `f`'s
/// run: what it is made of crosses to a worker with the closure, or by
/// [`carry`](crate::Builder::carry).
///
/// # Cancel safety
///
/// If the task is dropped while `f` waits, `ambient` is mounted for the time of
/// the unwinding: destructors in `f` find it, those outside of `f` don't.
///
/// # Panics
///
/// With a panic of `f` or of `ambient`, see [`Ambient`].
///
/// # Examples
///
/// A library whose scopes are guards: the context is attached at each poll.
///
/// ```
/// use greenhack::{Ambient, await_sync, with_ambient};
/// # mod library {
/// #     use std::cell::RefCell;
/// #     thread_local! {
/// #         static STACK: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
/// #     }
/// #     pub fn current() -> Option<u32> {
/// #         STACK.with_borrow(|stack| stack.last().copied())
/// #     }
/// #     pub fn attach(context: u32) -> Guard {
/// #         STACK.with_borrow_mut(|stack| stack.push(context));
/// #         Guard
/// #     }
/// #     pub struct Guard;
/// #     impl Drop for Guard {
/// #         fn drop(&mut self) {
/// #             STACK.with_borrow_mut(|stack| stack.pop());
/// #         }
/// #     }
/// # }
///
/// struct Attached {
///     context: u32,
///     guard: Option<library::Guard>,
/// }
///
/// impl Ambient for Attached {
///     fn mount(&mut self) {
///         self.guard = Some(library::attach(self.context));
///     }
///
///     fn unmount(&mut self) {
///         self.guard = None;
///     }
/// }
///
/// # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
/// let run = greenhack::run_sync(|| {
///     let outer = Attached { context: 1, guard: None };
///     with_ambient(outer, || {
///         await_sync(tokio::task::yield_now());
///         library::current()
///     })
/// });
/// assert_eq!(run.await, Some(1));
/// # });
/// ```
pub fn with_ambient<A, R>(ambient: A, f: impl FnOnce() -> R) -> R
where
    A: Ambient + 'static,
{
    let mut entry = Entry::new(Box::new(ambient));
    with_none(|| entry.mount());
    let frame = Frame::here();
    let _scope = match current(&frame) {
        Place::In(header) => {
            header.push_mount(entry);
            Scope::InRun(header)
        }
        _ => Scope::Outside(entry),
    };
    f()
}

/// Unmounts the context that was added last, at its end.
enum Scope<'a> {
    InRun(&'a Header),
    Outside(Entry),
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        let mut popped;
        let entry = match self {
            Scope::InRun(header) => {
                popped = header.pop_mount();
                popped.as_mut()
            }
            Scope::Outside(entry) => Some(entry),
        };
        let mut panics = FirstPanic::default();
        with_none(|| panics.catch(|| entry.map(Entry::unmount)));
        if let Some(payload) = panics.into_payload() {
            if thread::panicking() {
                discard(payload);
            } else {
                resume_unwind(payload);
            }
        }
    }
}
