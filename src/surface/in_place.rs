//! A coroutine at home: on one thread, polled by tokio.
//!
//! [`InPlace`] is what the futures of this crate hold once they have started.
//! It knows the thread and the runtime that it was started on, polls its
//! coroutine only there, and hands it to the [reaper](super::reaper) when it
//! is dropped before its end.
//!
//! tokio polls a run in one of three ways:
//!
//! - In a single-threaded scheduler, which allows no `block_on` and no
//!   `block_in_place` below it.
//! - In a task of a `LocalSet`, which allows neither, too.
//! - In the future of a multi-thread runtime's `block_on`, or of
//!   `Handle::block_on`. There `block_in_place` is allowed, and in it another
//!   `block_on`; a stack that is suspended in either breaks tokio's books. So
//!   the run is polled in a `LocalSet` of its own.

use std::cell::{Cell, OnceCell};
use std::future::{Future, poll_fn};
use std::mem::ManuallyDrop;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::LocalSet;

use super::builder::{Config, DEFAULT_BUDGET, Settings};
use super::reaper;
use super::watch::{self, Watched};
use super::workers::{self, Resident};
use crate::engine::context::{Header, Kind, is_nested, throw_cancelled};
use crate::engine::coroutine::{Coroutine, Outcome};
use crate::engine::overflow;
use crate::ground::ambient::{self, Spot, ThreadToken};
use crate::ground::switch::Stack;
use crate::memory::measure::{self, Measured};
use crate::memory::pool;

/// What polls a coroutine, each in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheduler {
    /// A runtime that keeps its tasks on its thread.
    SingleThreaded,
    /// A `LocalSet`, as far as can be told.
    LocalSet,
    /// The `block_on` of a multi-thread runtime, or of a handle.
    BlockOn,
}

impl Scheduler {
    /// What polls the caller, if tokio does.
    #[inline]
    fn here(handle: &Handle, spot: Spot) -> Option<Scheduler> {
        if ambient::is_single_threaded(handle, spot) {
            Some(Scheduler::SingleThreaded)
        } else {
            Scheduler::of_other_runtimes(spot)
        }
    }

    #[cold]
    fn of_other_runtimes(spot: Spot) -> Option<Scheduler> {
        let scheduler = if spot.is_in_local_set() {
            Scheduler::LocalSet
        } else {
            Scheduler::BlockOn
        };
        ambient::is_polled().then_some(scheduler)
    }
}

/// Where a coroutine belongs.
pub(crate) struct Home {
    /// On a worker, from the first time that it is suspended.
    resident: Cell<Option<Resident>>,
    pub(crate) handle: Handle,
    /// What it was started by.
    pub(crate) scheduler: Scheduler,
    /// What it was told, if not the default.
    settings: Option<Box<Settings>>,
    /// What most runs don't have, so that they have one thing to look at. Only a poll
    /// clones it, for as long as it lasts.
    extras: OnceCell<Rc<Extras>>,
}

#[derive(Default)]
struct Extras {
    /// What the coroutine is polled in, if not directly. Only ever set where
    /// the future that owns this is not `Send`.
    local_set: Option<LocalSet>,
    /// Its stack is measured until it has ended.
    measured: OnceCell<Measured>,
}

impl Extras {
    #[cold]
    fn with_local_set() -> Rc<Extras> {
        Rc::new(Extras {
            local_set: Some(LocalSet::new()),
            measured: OnceCell::new(),
        })
    }
}

impl Home {
    /// How long its cleanup may await.
    pub(crate) fn budget(&self) -> Duration {
        self.settings
            .as_deref()
            .map_or(DEFAULT_BUDGET, |settings| settings.cleanup_budget)
    }

    /// Measures the stack of its coroutine, if that has its turn.
    ///
    /// # Safety
    ///
    /// The header must be that of the coroutine, which must not have run yet.
    #[cold]
    #[inline(never)]
    unsafe fn measure(&self, header: &Header) {
        // SAFETY: the caller's.
        if let Some(measured) = unsafe { header.measure() } {
            let _ = self.extras.get_or_init(Rc::default).measured.set(measured);
        }
    }

    /// Takes the run off the worker's list.
    pub(crate) fn leave(&self) {
        let resident = self.resident.take();
        drop(resident);
    }

    /// The spot of a poll that is not in the same task as the last, if it is one by
    /// the right kind of scheduler.
    #[cold]
    fn look_again(&self) -> Result<Spot, &'static str> {
        if !ambient::thread_is_alive() {
            return Err(THREAD_IS_ENDING);
        }
        // It may be another runtime, too.
        let handle = Handle::try_current().ok();
        let spot = Spot::in_runtime(handle.as_ref().map(Handle::id));
        let polled_as_before = match self.scheduler {
            Scheduler::SingleThreaded => {
                handle.is_some_and(|handle| ambient::is_single_threaded(&handle, spot))
            }
            Scheduler::LocalSet => spot.is_in_local_set() && ambient::is_polled(),
            Scheduler::BlockOn => !spot.is_in_local_set() && ambient::is_polled(),
        };
        if polled_as_before {
            Ok(spot)
        } else {
            Err(NOT_POLLED_BY_TOKIO)
        }
    }
}

const NOT_POLLED_BY_TOKIO: &str = "a run was polled outside a tokio task, where plain code could \
     block the thread unseen; `.await` it in a tokio task, or in the future of `block_on`";

const THREAD_IS_ENDING: &str = "a run was polled while its thread is ending, and the thread's \
     locals with it; `.await` it before";

const WRONG_THREAD: &str = "a run was polled on another thread than the one it has started on, \
     which its stack must not leave; `.await` it where it was polled first, or drive its runtime \
     from one thread";

/// What a run needs of the place that it starts at.
///
/// It is apart from [`InPlace::new`], and borrows, because it can unwind: what the run is
/// made of is moved after it, once, to where it will stay.
pub(crate) struct Site {
    stack: Stack,
    spot: Spot,
    thread: ThreadToken,
    scheduler: Scheduler,
    extras: OnceCell<Rc<Extras>>,
}

impl Site {
    /// Looks at this very place, which is `spot`, in the runtime of `handle`, and takes
    /// a stack.
    ///
    /// # Panics
    ///
    /// If no tokio scheduler polls the caller, or there is no stack.
    #[inline(always)]
    pub(crate) fn here(handle: &Handle, spot: Spot, config: &Config) -> Site {
        if must_end() {
            throw_cancelled();
        }
        let Some(scheduler) = Scheduler::here(handle, spot) else {
            refuse(NOT_POLLED_BY_TOKIO);
        };
        // The first call makes the mark by which the end of the thread is seen.
        if !ambient::thread_is_alive() {
            refuse(THREAD_IS_ENDING);
        }
        let thread = ThreadToken::current();
        let extras = match scheduler {
            Scheduler::BlockOn => OnceCell::from(Extras::with_local_set()),
            _ => OnceCell::new(),
        };
        let stack_size = config.stack_size;
        let stack = match pool::take(stack_size, overflow::watch) {
            Ok(stack) => stack,
            Err(error) => {
                let whom = format!("`{}`", config.name);
                panic!("{}", pool::complaint(stack_size, &whom, &error));
            }
        };
        Site {
            stack,
            spot,
            thread,
            scheduler,
            extras,
        }
    }
}

/// A coroutine on the thread that it was started on.
pub(crate) struct InPlace<T: 'static> {
    /// `None` when it has ended. What else drops it is `abandon`, and no drop glue
    /// that would look again.
    coroutine: ManuallyDrop<Option<Coroutine<T, Home>>>,
}

// SAFETY: the coroutine is touched by `poll`, and by the reaper, which both
// compare the thread first (I2). What remains, moving it and leaking it, may
// happen anywhere. There is a `local_set` only in a `LocalRun`, which is not
// `Send`, and between two polls nobody else has the `extras`. A `T` is made and
// handed out on the coroutine's thread only.
unsafe impl<T> Send for InPlace<T> {}

impl<T: 'static> InPlace<T> {
    /// Makes a coroutine of `f`, to be polled at `site`, by the runtime of `handle`.
    #[inline]
    pub(crate) fn new<F>(site: Site, handle: Handle, config: Config, f: F) -> InPlace<T>
    where
        F: FnOnce() -> T + 'static,
    {
        let Site {
            stack,
            spot,
            thread,
            scheduler,
            extras,
        } = site;
        let home = Home {
            resident: Cell::new(None),
            handle,
            scheduler,
            settings: config.settings,
            extras,
        };
        let is_direct = scheduler == Scheduler::SingleThreaded;
        let header = |size| Header::new(config.name, Kind::Run, size, spot, thread, is_direct);
        // SAFETY: `f` and `T` are `'static`.
        let coroutine = unsafe { Coroutine::new(stack, header, home, f) };
        if measure::is_on() {
            // SAFETY: the coroutine has just been made.
            unsafe { coroutine.owners().measure(coroutine.header()) };
        }
        InPlace {
            coroutine: ManuallyDrop::new(Some(coroutine)),
        }
    }

    /// Runs the coroutine until it ends or waits. `is_new` says that it was made for
    /// this very poll.
    ///
    /// # Panics
    ///
    /// If this is not its thread, or not the poll of a tokio scheduler; if the
    /// worker is closing; and if the coroutine can't go on.
    #[inline(always)]
    pub(crate) fn poll(&mut self, is_new: bool, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        let Some(coroutine) = &mut *self.coroutine else {
            refuse("a run was polled after its end");
        };
        let header = coroutine.header();
        if !is_new {
            if !coroutine.is_this_thread() {
                refuse(WRONG_THREAD);
            }
            // In a poll of the task that was looked at last, all is as it was; where
            // it is not, the coroutine can't stay suspended. But a runtime may be
            // driven to the last by a thread that ends.
            let keeps_its_tasks =
                header.is_direct() || coroutine.owners().scheduler == Scheduler::SingleThreaded;
            let is_as_it_was = keeps_its_tasks && header.spot().is_same_task();
            if !is_as_it_was || !ambient::thread_is_alive() {
                match coroutine.owners().look_again() {
                    Ok(spot) => header.set_spot(spot),
                    Err(message) => refuse(message),
                }
            }
            if must_end() {
                self.abandon();
                throw_cancelled();
            }
        }
        let poll = if header.is_direct() {
            coroutine.poll(cx)
        } else {
            poll_otherwise(coroutine, cx)
        };
        if poll.is_ready() {
            *self.coroutine = None;
        } else if coroutine.is_stuck() {
            self.get_stuck();
        } else {
            Resident::update(&coroutine.owners().resident, cx.waker());
        }
        poll
    }

    #[cold]
    fn get_stuck(&mut self) -> ! {
        let _changed = workers::Changed;
        if let Some(coroutine) = self.coroutine.take() {
            coroutine.leak(reaper::STUCK);
        }
        panic!(
            "a run was leaked: it awaited in a destructor, during an unwind, where it can't be \
             suspended; use `greenhack::await_in_drop` in destructors"
        );
    }

    /// Takes the coroutine, to go on with it in another way.
    pub(crate) fn into_coroutine(mut self) -> Option<Coroutine<T, Home>> {
        self.coroutine.take()
    }

    /// Cancels the run, if it has not ended.
    #[inline]
    fn abandon(&mut self) {
        if let Some(coroutine) = self.coroutine.take() {
            reaper::abandon(coroutine);
        }
    }
}

impl<T: 'static> Drop for InPlace<T> {
    #[inline]
    fn drop(&mut self) {
        self.abandon();
    }
}

#[cold]
#[inline(never)]
fn refuse(message: &str) -> ! {
    panic!("{message}");
}

/// Whether the worker that this is closes. A nested run ends with the outer one,
/// or is part of its cleanup.
#[inline]
fn must_end() -> bool {
    workers::is_closing() && !is_nested()
}

/// Polls a coroutine that a scheduler does not poll directly, or that is watched.
#[cold]
fn poll_otherwise<T>(coroutine: &mut Coroutine<T, Home>, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
    let watched = watch::is_on().then(|| watch::begin(coroutine.header().owned_name()));
    let extras = coroutine.owners().extras.get().cloned();
    let poll = match extras.as_ref().and_then(|extras| extras.local_set.as_ref()) {
        Some(local_set) => {
            let polled = poll_fn(|cx| coroutine.poll_at(Spot::here(), cx));
            pin!(local_set.run_until(polled)).poll(cx)
        }
        None => coroutine.poll(cx),
    };
    if let Some(took) = watched.and_then(Watched::end) {
        let account = poll.is_pending().then(|| coroutine.account());
        watch::report(coroutine.header().owned_name(), took, account);
    }
    poll
}
