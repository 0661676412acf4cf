//! What the tests of soundness share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::env;
use std::ffi::OsString;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::process::{Command, Output};
use std::task::Poll;

use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

/// A run that can be kept in a `static` or a field.
pub(crate) type AnyRun = Pin<Box<dyn Future<Output = ()>>>;

/// Polls `future` in this task, once.
pub(crate) async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

/// A value that awaits when it is dropped, if it can.
pub(crate) struct Resource;

impl Drop for Resource {
    fn drop(&mut self) {
        greenhack::await_in_drop(yield_now());
    }
}

pub(crate) fn multi_thread() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("the system gives a runtime")
}

/// Lets the other tasks of this thread go on until they have to wait.
pub(crate) async fn settle() {
    for _ in 0..32 {
        yield_now().await;
    }
}

/// The variable that tells the child what it is.
const CHILD: &str = "GREENHACK_SOUNDNESS_CHILD";

/// Runs the test `name` again in a process of its own, where this calls `f`
/// and ends the process. In the parent it returns what became of the child.
pub(crate) fn in_child(name: &str, f: impl FnOnce()) -> Output {
    if env::var_os(CHILD).is_some_and(|child| child == name) {
        f();
        std::process::exit(0);
    }
    again(name).output().expect("the test starts again")
}

/// The command that runs the test `name` as its own child.
pub(crate) fn again(name: &str) -> Command {
    let path = env::current_exe().expect("the test has a path");
    // What runs the programs of another processor, with its arguments.
    let runner = env::var("GREENHACK_TEST_RUNNER").unwrap_or_default();
    let runner = runner.split_whitespace().map(OsString::from);
    let mut words = runner.chain([path.into_os_string()]);
    let mut command = Command::new(words.next().expect("the path is one"));
    command
        .args(words)
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(CHILD, name)
        .env("RUST_BACKTRACE", "0");
    command
}

/// Runs the test `name` in a process of its own, which must end well.
#[track_caller]
pub(crate) fn succeeds_in_child(name: &str, f: impl FnOnce()) {
    let output = in_child(name, f);
    assert!(
        output.status.success(),
        "{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
}
