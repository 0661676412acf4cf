//! `#[greenhack::main]` and `#[greenhack::test]`.
#![deny(warnings)]

use std::rc::Rc;
use std::time::Duration;

use greenhack::await_sync;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::{Instant, sleep};

#[greenhack::test]
fn smoke() {
    assert_eq!(await_sync(async { 1 }), 1);
}

mod program {
    use super::*;

    #[greenhack::main]
    pub(super) fn main() -> Result<u32, String> {
        let flavor = Handle::current().runtime_flavor();
        assert_eq!(flavor, RuntimeFlavor::CurrentThread);
        await_sync(sleep(Duration::from_millis(1)));
        let number = "7".parse::<u32>().map_err(|error| error.to_string())?;
        if number == 7 {
            return Ok(number);
        }
        Err("unreachable".to_owned())
    }

    #[greenhack::main(stack_size = 256 * 1024, crate = ::greenhack)]
    /// Runs on a stack of another size.
    pub(super) fn with_options() -> Rc<u8> {
        let local = Rc::new(1);
        await_sync(tokio::task::spawn_local(async move { local })).unwrap()
    }

    #[cfg(feature = "rt-multi-thread")]
    #[greenhack::main(flavor = "multi_thread", worker_threads = 1 + 1)]
    pub(super) fn on_many_threads() -> usize {
        let flavor = Handle::current().runtime_flavor();
        assert_eq!(flavor, RuntimeFlavor::MultiThread);
        await_sync(tokio::spawn(async {
            Handle::current().metrics().num_workers()
        }))
        .unwrap()
    }

    #[greenhack::main(flavor = "current_thread")]
    pub(super) fn unit() {}

    #[greenhack::main(stack_size = usize::MAX)]
    pub(super) fn without_a_stack() {}
}

#[test]
fn main_returns_what_its_body_returns() {
    assert_eq!(program::main(), Ok(7));
    assert_eq!(*program::with_options(), 1);
    program::unit();
}

#[test]
fn the_stack_size_of_main_is_that_of_its_run() {
    let caught = std::panic::catch_unwind(program::without_a_stack);
    let payload = caught.unwrap_err();
    let message = payload.downcast_ref::<String>().unwrap();
    let expected = format!("no stack of {} bytes for `without_a_stack`: ", usize::MAX);
    assert!(message.starts_with(&expected), "{message}");
}

#[cfg(feature = "rt-multi-thread")]
#[test]
fn main_can_have_many_threads() {
    assert_eq!(program::on_many_threads(), 2);
}

#[greenhack::test(start_paused = true)]
fn paused_time_passes_at_once() {
    let start = Instant::now();
    let clock = std::time::Instant::now();
    await_sync(sleep(Duration::from_secs(3600)));
    assert_eq!(start.elapsed(), Duration::from_secs(3600));
    assert!(clock.elapsed() < Duration::from_secs(600));
}

#[greenhack::test(start_paused = false, stack_size = 128 * 1024)]
fn a_test_can_have_options() {
    await_sync(sleep(Duration::from_millis(1)));
}

#[greenhack::test(stack_size = usize::MAX)]
#[should_panic(expected = "bytes for `the_stack_size_of_a_test_is_that_of_its_run`: ")]
fn the_stack_size_of_a_test_is_that_of_its_run() {
    unreachable!("there is no such stack");
}

#[greenhack::test]
fn a_test_can_return_a_result() -> Result<(), std::num::ParseIntError> {
    let number: u32 = await_sync(async { "7" }).parse()?;
    assert_eq!(number, 7);
    Ok(())
}

#[greenhack::test]
#[should_panic(expected = "from the body")]
fn should_panic_below_is_kept() {
    await_sync(sleep(Duration::ZERO));
    panic!("from the body");
}

#[should_panic(expected = "from the body")]
#[greenhack::test]
fn should_panic_above_is_kept() {
    panic!("from the body");
}

#[greenhack::test]
#[ignore = "shows that `#[ignore]` is kept"]
fn ignore_is_kept() {
    panic!("not ignored");
}

#[greenhack::test]
fn a_test_can_spawn_local_tasks() {
    let local = Rc::new(1);
    let task = tokio::task::spawn_local(async move { *local });
    assert_eq!(await_sync(task).unwrap(), 1);
}

#[cfg(feature = "rt-multi-thread")]
#[greenhack::test(flavor = "multi_thread", worker_threads = 2)]
fn a_test_can_have_many_threads() {
    let workers = Handle::current().metrics().num_workers();
    assert_eq!(workers, 2);
    assert_eq!(await_sync(tokio::spawn(async { 1 })).unwrap(), 1);
}
