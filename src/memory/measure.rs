//! How much runs use of their stacks.
//!
//! The stack of a run that is measured has a [gauge](super::gauge), which is read when the
//! run has ended. What it tells is kept for the whole process, by name.

use std::cell::Cell;
use std::cmp::Reverse;
use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::gauge::Gauge;

/// So many are kept. Names can be made at run time, without end.
const MOST_KEPT: usize = 1024;

/// One in so many is measured, or none.
static EVERY: AtomicU32 = AtomicU32::new(0);

static USES: Mutex<Vec<StackUse>> = Mutex::new(Vec::new());

thread_local! {
    /// How many have been started here, while some were measured.
    static STARTED: Cell<u32> = const { Cell::new(0) };
}

/// Measures from now on how much of their stacks runs use: every `every`-th of those that
/// a thread starts. 0, the default, measures none.
///
/// [`stack_use`] tells what was found, by which to choose a
/// [`stack_size`](crate::Builder::stack_size) for each kind of run.
///
/// A run that is measured finds no memory on its stack, as if it were the first there, and
/// the system is asked before it and after it, which takes longer than a short run does.
/// Measure all in a test, and one of a hundred or of a thousand in a service that is busy.
/// The others don't notice.
///
/// Closures of [`join`](fn@crate::join), [`scope`](crate::scope) and their like are measured
/// as well, and count among what a thread starts. They have stacks of their own, of the
/// size that the run has which calls them.
///
/// # Platform-specific behavior
///
/// On other systems than Linux nothing is measured. On Linux nothing is where
/// `/proc/self/pagemap` can't be read (`/proc` is not mounted, or the process has changed
/// its user, which makes it "not dumpable"), nor where memory is locked by `mlockall`.
///
/// # Examples
///
/// ```
/// use greenhack::{builder, measure_stacks, stack_use};
///
/// // In a test, or while a service is under load:
/// measure_stacks(1);
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// builder().name("greet").run_sync(|| "hello".to_owned()).await;
/// # });
/// measure_stacks(0);
///
/// for one in stack_use() {
///     println!(
///         "{}: {} of {} bytes in {} runs",
///         one.name(), one.most(), one.stack_size(), one.runs(),
///     );
/// }
/// # #[cfg(target_os = "linux")]
/// assert!(stack_use().iter().any(|one| one.name() == "greet" && one.most() < 64 * 1024));
/// ```
pub fn measure_stacks(every: u32) {
    EVERY.store(every, Ordering::Relaxed);
}

/// Returns how much of their stacks the runs have used that were
/// [measured](measure_stacks), those first that have used most.
///
/// There is one [`StackUse`] for each name of runs and each size of their stacks. A run
/// counts when it has ended, in whatever way; one that was leaked or forgotten never does.
///
/// 1,024 of them are kept. Where names are made at run time and there are more, those stay
/// that have used most.
///
/// # Examples
///
/// ```
/// use greenhack::{builder, measure_stacks, stack_use};
///
/// fn depth(text: &str) -> usize {
///     let _scratch = std::hint::black_box([0_u8; 1024]);
///     text.strip_prefix('(').map_or(0, |rest| 1 + depth(rest))
/// }
///
/// measure_stacks(1);
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let parse = builder().name("parse").run_sync(|| depth(&"(".repeat(100)));
/// assert_eq!(parse.await, 100);
/// # });
/// # #[cfg(target_os = "linux")]
/// # {
/// let uses = stack_use();
/// let parse = uses.iter().find(|one| one.name() == "parse").unwrap();
/// assert!(parse.most() > 100 * 1024 && parse.most() < parse.stack_size());
/// # }
/// ```
pub fn stack_use() -> Vec<StackUse> {
    let mut uses = uses().clone();
    uses.sort_by(|one, other| {
        let key = |one: &StackUse| (Reverse(one.most), one.stack_size);
        key(one)
            .cmp(&key(other))
            .then_with(|| one.name.cmp(&other.name))
    });
    uses
}

/// How much of their stacks the runs of one name have used, from [`stack_use`].
///
/// # Examples
///
/// See [`stack_use`].
#[derive(Clone, Debug)]
pub struct StackUse {
    name: Box<str>,
    stack_size: usize,
    most: usize,
    runs: u64,
}

impl StackUse {
    /// Returns the [`name`](crate::Builder::name) of the runs.
    ///
    /// A closure of a scope goes by the name of the run that it is a part of. Where a plain
    /// thread has called the scope, it is `a plain thread`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the size of their stacks, in bytes: what was asked for, rounded up.
    pub fn stack_size(&self) -> usize {
        self.stack_size
    }

    /// Returns how many bytes that run has used which has used most.
    ///
    /// It is counted from the top of the stack, where up to 2.5 KiB are ours, in whole
    /// pages of the system. Futures that the run awaits don't count: they are polled on the
    /// stack of the thread. Nor does what did not happen: leave 10 KiB for an unwind, unless
    /// there was a panic or a cancellation among what was measured, at the deepest place.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Returns how many were measured, runs and closures of scopes.
    pub fn runs(&self) -> u64 {
        self.runs
    }
}

fn uses() -> MutexGuard<'static, Vec<StackUse>> {
    USES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds what one has used.
fn add(uses: &mut Vec<StackUse>, new: StackUse) {
    let is_same = |one: &&mut StackUse| one.stack_size == new.stack_size && one.name == new.name;
    if let Some(one) = uses.iter_mut().find(is_same) {
        one.most = one.most.max(new.most);
        one.runs += new.runs;
    } else if uses.len() < MOST_KEPT {
        uses.push(new);
    } else if let Some(least) = uses.iter_mut().min_by_key(|one| one.most) {
        if least.most < new.most {
            *least = new;
        }
    }
}

/// Whether some of what is started is measured.
#[inline]
pub(crate) fn is_on() -> bool {
    EVERY.load(Ordering::Relaxed) > 0
}

/// Measures what is about to run on a stack of `size` bytes under this name, if it is its
/// turn.
///
/// # Safety
///
/// - `attic` must be an address in the attic of the stack.
/// - Nothing may have run on it since it was taken from the pool.
#[cold]
pub(crate) unsafe fn begin(attic: usize, size: usize, name: &str) -> Option<Measured> {
    let every = EVERY.load(Ordering::Relaxed);
    let started = STARTED.get().wrapping_add(1);
    STARTED.set(started);
    // It is 0 if it was switched off meanwhile.
    if started.checked_rem(every) != Some(0) {
        return None;
    }
    // SAFETY: the caller's.
    let gauge = unsafe { Gauge::new(attic, size) }?;
    let name = name.into();
    Some(Measured(Box::new(Measure { gauge, name })))
}

/// A stack that is measured. When this is dropped, it is told how much was used: after
/// what ran has ended, and before anything else does there.
#[derive(Debug)]
pub(crate) struct Measured(Box<Measure>);

#[derive(Debug)]
struct Measure {
    gauge: Gauge,
    name: Box<str>,
}

impl Drop for Measured {
    #[cold]
    fn drop(&mut self) {
        let Measure { gauge, name } = &mut *self.0;
        if let Some(most) = gauge.used() {
            let new = StackUse {
                name: mem::take(name),
                stack_size: gauge.size(),
                most,
                runs: 1,
            };
            add(&mut uses(), new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &'static str, stack_size: usize, most: usize) -> StackUse {
        StackUse {
            name: name.into(),
            stack_size,
            most,
            runs: 1,
        }
    }

    #[test]
    fn the_most_of_a_name_and_a_size_is_kept() {
        let mut uses = Vec::new();
        for new in [
            one("a", 10, 1),
            one("a", 10, 3),
            one("b", 10, 2),
            one("a", 20, 1),
            one("a", 10, 2),
        ] {
            add(&mut uses, new);
        }
        let kept = uses.iter();
        let kept = kept.map(|one| (one.name(), one.stack_size(), one.most(), one.runs()));
        let kept: Vec<_> = kept.collect();
        assert_eq!(kept, [("a", 10, 3, 3), ("b", 10, 2, 1), ("a", 20, 1, 1)]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "it compares millions of names")]
    fn names_without_end_make_room_for_those_that_have_used_more() {
        let mut uses = Vec::new();
        let most = |number| number * 7 % 4099;
        for number in 0..3 * MOST_KEPT {
            let name = number.to_string().into();
            let new = one("", 10, most(number));
            add(&mut uses, StackUse { name, ..new });
        }
        let mut kept: Vec<usize> = uses.iter().map(StackUse::most).collect();
        let mut all: Vec<usize> = (0..3 * MOST_KEPT).map(most).collect();
        kept.sort();
        all.sort();
        assert_eq!(kept, all[2 * MOST_KEPT..]);
        // One that is kept is not in its own way.
        let again = uses[0].clone();
        add(&mut uses, again);
        assert_eq!(uses[0].runs, 2);
    }
}
