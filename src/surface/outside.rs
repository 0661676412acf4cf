//! Waiting where there is no run: on a thread that may block.
#![forbid(unsafe_code)]

use std::future::Future;
use std::sync::OnceLock;
use std::thread;

use tokio::runtime::{Builder, EnterGuard, Handle};

use crate::ground::ambient::{Blocking, may_block, thread_has_blocked};
use crate::ground::error::Refusal;

/// Where a thread outside a run blocks.
pub(crate) fn runtime() -> Result<Handle, Refusal> {
    match may_block() {
        Blocking::On(handle) => Ok(handle),
        Blocking::Nothing => Ok(process_runtime().clone()),
        Blocking::No(refusal) => Err(refusal),
    }
}

/// Blocks this thread until `future` is ready.
#[track_caller]
pub(crate) fn block_on<F: Future>(handle: &Handle, future: F) -> F::Output {
    let output = handle.block_on(future);
    thread_has_blocked();
    output
}

/// The runtime for threads without one, driven by a thread of its own.
pub(crate) fn process_runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("the system gives no poll or timer for the runtime of plain threads");
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name("greenhack-runtime".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))
            .expect("the system gives no thread for the runtime of plain threads");
        handle
    })
}

/// Enters the runtime of threads that have none, and starts it if need be.
///
/// [`await_sync`](crate::await_sync) on a plain thread needs no preparation.
/// But what is constructed outside a future, such as `tokio::time::sleep(..)`
/// or a `TcpStream` from std, asks for a runtime when it is constructed. Hold
/// this guard while you do; once at the start of `main` or of a test will do.
///
/// The runtime belongs to the process: one thread drives it until the process
/// ends.
///
/// # Panics
///
/// If the runtime can't start because the system gives no thread, and if
/// guards of one thread are dropped in another order than the reverse of their
/// making.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use greenhack::await_sync;
///
/// let _guard = greenhack::enter_runtime();
/// let sleep = tokio::time::sleep(Duration::from_millis(1));
/// await_sync(sleep);
/// assert!(!greenhack::in_context());
/// ```
#[must_use = "the runtime is entered as long as the guard lives"]
pub fn enter_runtime() -> EnterGuard<'static> {
    process_runtime().enter()
}
