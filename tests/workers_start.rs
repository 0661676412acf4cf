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
