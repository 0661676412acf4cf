//! What the tests share: a runtime, and where the servers are.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

pub mod smtp;

use std::env;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// A runtime on which whoever blocks blocks everybody.
pub fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A runtime whose runs hop to greenhack's workers.
pub fn many_threads() -> Runtime {
    Builder::new_multi_thread().enable_all().build().unwrap()
}

/// Ends a test that hangs.
pub async fn in_time<F: Future>(future: F) -> F::Output {
    let limit = Duration::from_secs(60);
    timeout(limit, future).await.expect("it hangs")
}

/// The address of a server, or `None` on a machine without it, where the tests
/// that need it are left out. In CI that is a failure.
pub fn server(name: &str) -> Option<String> {
    static SAID: Once = Once::new();
    let variable = format!("GREENHACK_TEST_{}", name.to_uppercase());
    let address = env::var(&variable).ok();
    assert!(
        address.is_some() || env::var_os("CI").is_none(),
        "{variable} is not set; run the tests by `ci/{name}.sh cargo test ..`"
    );
    if address.is_none() {
        // The harness holds back what `eprintln` says in a test that passes.
        SAID.call_once(|| {
            let _ = writeln!(
                stderr(),
                "\nNOT TESTED: the recipe that needs {name}, since {variable} is not set; \
                 try `ci/{name}.sh cargo test -p recipes`"
            );
        });
    }
    address
}

/// An SQLite file, for the time of a test.
pub struct File(PathBuf);

impl File {
    pub fn new(test: &str) -> File {
        let name = format!("greenhack-recipes-{test}-{}.sqlite", std::process::id());
        let file = File(env::temp_dir().join(name));
        file.remove();
        file
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn remove(&self) {
        for more in ["", "-journal", "-wal", "-shm"] {
            let mut path = self.0.clone().into_os_string();
            path.push(more);
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.remove();
    }
}
