//! How much the stacks of the process may take together.
//!
//! What counts is the size of each stack from when it is made until it is unmapped, or
//! nobody can get it any more, whether something runs on it or not: the most that it can
//! come to hold. On Linux that is when its thread ends.
//! It is counted where stacks are made, not where they are taken from a free
//! list.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The sizes of all stacks, added up.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Limits what the stacks of this process take together, in bytes.
///
/// There is no limit unless one is set. Where a run needs a stack beyond it, and its
/// thread has none that is free, the run panics and says so; runs that have their
/// stack go on. What has been made already stays, so set the limit before the first
/// run. A later call replaces it, and `usize::MAX` takes it away.
///
/// What counts is the size of a stack, which is the most that it can hold, and not the
/// memory that has been touched, which is often a page or two. A stack that is free
/// counts as well, on Linux until its thread ends: only runs of that thread get it. So
/// `stack_size` × the largest number of runs at once, thread by thread, is a limit that
/// is never met; a container that must not run out of memory sets less than it has.
///
/// It is a last line of defence. To refuse work in an orderly way, limit the number of
/// runs, with a [`Semaphore`](tokio::sync::Semaphore) for one.
///
/// # Examples
///
/// ```
/// use std::future::pending;
/// use greenhack::{await_sync, builder, limit_stack_memory};
/// use tokio::task::{spawn_local, yield_now};
///
/// # tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
/// const SIZE: usize = 64 * 1024;
/// limit_stack_memory(10 * SIZE);
/// let wait = || builder().stack_size(SIZE).run_sync_local(|| await_sync(pending::<()>()));
/// let waiting: Vec<_> = (0..10).map(|_| spawn_local(wait())).collect();
/// yield_now().await;
///
/// let one_too_many = spawn_local(wait()).await.unwrap_err();
/// assert!(one_too_many.is_panic());
/// assert!(waiting.iter().all(|run| !run.is_finished()));
/// # });
/// ```
pub fn limit_stack_memory(bytes: usize) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// Counts a stack that is to be made.
///
/// # Errors
///
/// If that would be more than the limit.
pub(crate) fn claim(bytes: usize) -> io::Result<()> {
    let limit = LIMIT.load(Ordering::Relaxed);
    let added = |held: usize| held.checked_add(bytes).filter(|&sum| sum <= limit);
    match HELD.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added) {
        Ok(_) => Ok(()),
        Err(held) => Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!(
                "the stacks of this process take {held} of the {limit} bytes that \
                 `greenhack::limit_stack_memory` allows"
            ),
        )),
    }
}

/// Counts stacks no longer that are gone.
pub(crate) fn release(bytes: usize) {
    HELD.fetch_sub(bytes, Ordering::Relaxed);
}
