//! A coroutine at home: on one thread, polled by tokio.
//!
//! [`InPlace`] is what the futures of this crate hold once they have started.
//! It knows the thread and the runtime that it was started on, polls its
//! coroutine only there, and hands it to the [reaper](super::reaper) when it
//! is dropped before its end.

use std::mem::ManuallyDrop;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;

use super::builder::Config;
use super::reaper;
use crate::engine::coroutine::{Coroutine, Outcome};
use crate::ground::ambient::{self, Spot, ThreadToken};
use crate::memory::pool;

/// Where a coroutine belongs.
pub(crate) struct Home {
    pub(crate) thread: ThreadToken,
    pub(crate) handle: Handle,
    /// Whether the runtime keeps its tasks on its thread.
    pub(crate) single_threaded: bool,
    /// Where it was polled last.
    spot: Spot,
    pub(crate) budget: Duration,
}

impl Home {
    /// Settles where the caller is polled, or says why it cannot.
    fn here(handle: Handle, budget: Duration) -> Result<Home, &'static str> {
        let spot = Spot::here();
        let single_threaded = ambient::is_single_threaded(&handle, spot);
        if !single_threaded && !ambient::is_polled() {
            return Err(NOT_POLLED_BY_TOKIO);
        }
        // Makes the mark by which a drop sees that the thread is ending.
        ambient::thread_is_alive();
        Ok(Home {
            thread: ThreadToken::current(),
            handle,
            single_threaded,
            spot,
            budget,
        })
    }

    pub(crate) fn is_this_thread(&self) -> bool {
        self.thread == ThreadToken::current()
    }

    /// The spot of this poll, if it is one by the right kind of scheduler.
    ///
    /// In the poll of the task that was looked at last, it still is.
    #[inline]
    fn spot(&mut self) -> Result<Spot, &'static str> {
        let spot = Spot::here();
        if self.single_threaded {
            let same = spot.is_scheduled()
                && (spot.is_task_of(self.spot)
                    || Handle::try_current()
                        .is_ok_and(|handle| ambient::is_single_threaded(&handle, spot)));
            if same {
                self.spot = spot;
                return Ok(spot);
            }
        } else if ambient::is_polled() {
            return Ok(spot);
        }
        Err(NOT_POLLED_BY_TOKIO)
    }
}

const NOT_POLLED_BY_TOKIO: &str = "a run was polled outside a tokio task, where plain code could \
     block the thread unseen; `.await` it in a tokio task, or in the future of `block_on`";

const WRONG_THREAD: &str = "a run was polled on another thread than the one it has started on, \
     which its stack must not leave; `.await` it where it was polled first, or drive its runtime \
     from one thread";

/// A coroutine on the thread that it was started on.
pub(crate) struct InPlace<T: 'static> {
    coroutine: ManuallyDrop<Coroutine<T>>,
    home: ManuallyDrop<Home>,
    ended: bool,
}

// SAFETY: the coroutine is touched by `poll`, and by the reaper, which both
// compare the thread first (I2). What remains, moving and dropping `home`, may
// happen anywhere. A `T` is made and handed out on the coroutine's thread only.
unsafe impl<T> Send for InPlace<T> {}

impl<T: 'static> InPlace<T> {
    /// Makes a coroutine of `f`, to be polled in this very place.
    ///
    /// # Panics
    ///
    /// If no tokio scheduler polls the caller, or there is no stack.
    #[inline]
    pub(crate) fn new<F>(handle: Handle, config: Config, f: F) -> InPlace<T>
    where
        F: FnOnce() -> T + 'static,
    {
        let home = match Home::here(handle, config.budget) {
            Ok(home) => home,
            Err(message) => panic!("{message}"),
        };
        let stack = match pool::take(config.stack_size) {
            Ok(stack) => stack,
            Err(error) => panic!(
                "no stack of {} bytes for `{}`: {error}; \
                 see `vm.max_map_count`, or set a smaller `stack_size`",
                config.stack_size, config.name,
            ),
        };
        // SAFETY: `f` and `T` are `'static`.
        let coroutine = unsafe { Coroutine::new(stack, config.name, f) };
        InPlace {
            coroutine: ManuallyDrop::new(coroutine),
            home: ManuallyDrop::new(home),
            ended: false,
        }
    }

    /// Runs the coroutine until it ends or waits.
    ///
    /// # Panics
    ///
    /// If this is not its thread, or not the poll of a tokio scheduler.
    #[inline]
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        assert!(self.home.is_this_thread(), "{WRONG_THREAD}");
        let spot = match self.home.spot() {
            Ok(spot) => spot,
            Err(message) => panic!("{message}"),
        };
        let poll = self.coroutine.poll(cx, spot);
        self.ended = poll.is_ready();
        poll
    }

    /// Takes the two apart, to go on with the coroutine in another way.
    pub(crate) fn into_parts(self) -> (Coroutine<T>, Home) {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is neither used again nor dropped.
        let coroutine = unsafe { ManuallyDrop::take(&mut this.coroutine) };
        // SAFETY: as above.
        let home = unsafe { ManuallyDrop::take(&mut this.home) };
        (coroutine, home)
    }
}

impl<T: 'static> Drop for InPlace<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: taken once, here, in the drop.
        let coroutine = unsafe { ManuallyDrop::take(&mut self.coroutine) };
        // SAFETY: as above.
        let home = unsafe { ManuallyDrop::take(&mut self.home) };
        if self.ended {
            drop(coroutine);
        } else {
            reaper::abandon(coroutine, home);
        }
    }
}
