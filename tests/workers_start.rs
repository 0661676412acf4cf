//! The settings of the workers, which belong to a process: one test each.

mod support;

use std::collections::HashSet;
use std::sync::{Arc, Barrier};
use std::thread;

use greenhack::{run_sync, workers};
use support::{Fixture, Place};

#[test]
fn the_workers_are_as_many_and_called_as_set() {
    workers::Builder::new()
        .threads(3)
        .thread_name("kitchen")
        .start()
        .unwrap();
    let again = workers::Builder::new().start().unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);

    Fixture::new(Place::Worker).block_on(async {
        // Three runs that block their threads until all three are there: each
        // needs a worker that is not stuck.
        let barrier = Arc::new(Barrier::new(3));
        let runs: Vec<_> = (0..3)
            .map(|_| {
                let barrier = barrier.clone();
                tokio::spawn(run_sync(move || {
                    barrier.wait();
                    thread::current().name().unwrap().to_owned()
                }))
            })
            .collect();
        let mut names = HashSet::new();
        for run in runs {
            names.insert(run.await.unwrap());
        }
        let expected = ["kitchen-0", "kitchen-1", "kitchen-2"];
        assert_eq!(names, expected.map(str::to_owned).into());
    });
}

/// Each runtime has some files of the system, of which there may be 64 here.
#[cfg(all(unix, panic = "unwind"))]
#[test]
fn workers_that_could_not_be_started_say_so_from_then_on() {
    const CHILD: &str = "GREENHACK_FEW_FILES";
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new("sh")
            .arg("-c")
            .arg("ulimit -n 64 && exec \"$0\" --exact --nocapture \"$1\"")
            .arg(std::env::current_exe().unwrap())
            .arg("workers_that_could_not_be_started_say_so_from_then_on")
            .env(CHILD, "yes")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let (away, in_place) = (Fixture::new(Place::Worker), support::current_thread());
    let first = workers::Builder::new().threads(100).start().unwrap_err();
    assert!(first.raw_os_error().is_some(), "{first}");

    let again = workers::Builder::new().threads(1).start().unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::Other);
    assert_eq!(
        again.to_string(),
        "the workers could not be started, and are not started again; \
         end the process when `start` fails"
    );

    let refused = away.block_on(async {
        let run = greenhack::builder().name("soup").run_sync(|| ());
        tokio::spawn(run).await.unwrap_err().into_panic()
    });
    assert_eq!(
        support::text(&*refused),
        "`soup` needs the workers, which could not be started; \
         end the process when `greenhack::workers::Builder::start` fails"
    );
    assert!(workers::metrics().live_per_worker().is_empty());
    assert_eq!(in_place.block_on(run_sync(|| 7)), 7);
}
