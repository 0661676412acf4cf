//! With the feature `tracing` in a program that has no subscriber.
#![cfg(feature = "tracing")]

use std::env;
use std::process::Command;

use futures::poll;
use greenhack::{await_sync, builder, shield};
use tokio::runtime::Builder;

/// Set in a process that leaks a run.
const LEAKS: &str = "GREENHACK_TEST_LEAKS";

#[test]
fn a_leak_is_a_line_on_standard_error_where_there_is_no_subscriber() {
    if env::var_os(LEAKS).is_some() {
        let mut run = builder().name("soup").run_sync_local(|| {
            shield(|| await_sync(std::future::pending::<()>()));
        });
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { assert!(poll!(&mut run).is_pending()) });
        drop(runtime);
        // Nobody can drive what it still waits for.
        return drop(run);
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("a_leak_is_a_line_on_standard_error_where_there_is_no_subscriber")
        .env(LEAKS, "1")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let line = "greenhack: a suspended run was leaked: soup: ";
    assert!(said.lines().any(|other| other.starts_with(line)), "{said}");
}
