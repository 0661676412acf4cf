//! How much runs use of their stacks: each test in a process of its own, which measures.
#![cfg(all(target_os = "linux", not(greenhack_sanitizer), not(greenhack_valgrind)))]

#[path = "soundness/help.rs"]
mod help;
mod support;

use std::future::pending;
use std::hint::black_box;
use std::mem::forget;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use greenhack::{StackUse, await_sync, builder, join, leaked_runs, measure_stacks, stack_use};
use help::{Resource, multi_thread, poll_once, settle, succeeds_in_child};
use support::{Fixture, PLACES};
use tokio::runtime::LocalRuntime;
use tokio::sync::oneshot;
use tokio::task::{spawn_local, yield_now};

const KIB: usize = 1024;
const SIZE: usize = 64 * KIB;

/// More than a run uses that does nothing, and than is beside the frames of `deep`.
const LITTLE: usize = 16 * KIB;

/// Where the stack is.
#[inline(never)]
fn here() -> usize {
    let local = 0_u8;
    black_box(&raw const local).addr()
}

/// Calls `f` so many bytes further down the stack, with frames of less than a page between.
fn deep<R>(bytes: usize, f: impl FnOnce() -> R) -> R {
    #[inline(never)]
    fn down_to<R>(address: usize, f: impl FnOnce() -> R) -> R {
        let frame = black_box([1_u8; 256]);
        let output = if here() > address {
            down_to(address, f)
        } else {
            f()
        };
        black_box(frame);
        output
    }
    down_to(here() - bytes, f)
}

/// Awaits a run of this name, with a small stack.
async fn run<T: 'static>(name: &'static str, f: impl FnOnce() -> T + 'static) -> T {
    let run = builder().name(name).stack_size(SIZE);
    run.run_sync_local(f).await
}

fn find(name: &str) -> Option<StackUse> {
    let mut found = stack_use().into_iter().filter(|one| one.name() == name);
    let first = found.next();
    assert!(found.next().is_none(), "`{name}` is there twice");
    first
}

fn most(name: &str) -> usize {
    find(name).map_or(0, |one| one.most())
}

fn runs_of(name: &str) -> u64 {
    find(name).map_or(0, |one| one.runs())
}

/// Awaits `test` in a process of its own, in which every run is measured.
#[track_caller]
fn measured(name: &str, test: impl AsyncFnOnce()) {
    succeeds_in_child(name, || {
        measure_stacks(1);
        LocalRuntime::new().unwrap().block_on(test());
    });
}

#[test]
fn nothing_is_measured_unless_it_is_asked_for() {
    let name = "nothing_is_measured_unless_it_is_asked_for";
    succeeds_in_child(name, || {
        LocalRuntime::new().unwrap().block_on(async {
            run("before", || ()).await;
            measure_stacks(1);
            measure_stacks(0);
            run("after", || ()).await;
        });
        assert!(stack_use().is_empty());
    });
}

#[test]
fn a_run_is_told_by_the_pages_that_it_has_used_wherever_it_runs() {
    let name = "a_run_is_told_by_the_pages_that_it_has_used_wherever_it_runs";
    succeeds_in_child(name, || {
        measure_stacks(1);
        for place in PLACES {
            // In a slab, and in a mapping of its own.
            for (size, bytes) in [
                (256 * KIB, 50 * KIB),
                (1024 * KIB, 900 * KIB),
                (5000 * KIB, 4 << 20),
            ] {
                let name = format!("{place:?} {bytes}");
                Fixture::new(place).block_on(async {
                    let settings = builder().name(name.clone()).stack_size(size);
                    let run = place.spawn_with(settings, move || deep(bytes, || ()));
                    run.await.unwrap();
                });
                let told = find(&name).unwrap();
                assert!(told.most() > bytes, "{told:?}, {bytes}");
                assert!(told.most() < bytes + LITTLE, "{told:?}, {bytes}");
                assert_eq!((told.stack_size(), told.runs()), (size, 1));
            }
        }
    });
}

#[test]
fn a_run_is_told_in_the_block_on_of_a_runtime_with_many_threads() {
    let name = "a_run_is_told_in_the_block_on_of_a_runtime_with_many_threads";
    succeeds_in_child(name, || {
        measure_stacks(1);
        multi_thread().block_on(run("deep", || {
            await_sync(yield_now());
            deep(30 * KIB, || ());
        }));
        assert!((30 * KIB..30 * KIB + LITTLE).contains(&most("deep")));
    });
}

#[test]
fn a_shallow_run_on_a_stack_that_was_used_to_its_last_page_is_told_as_shallow() {
    let name = "a_shallow_run_on_a_stack_that_was_used_to_its_last_page_is_told_as_shallow";
    measured(name, async || {
        for (size, name) in [(SIZE, "small"), (3000 * KIB, "large")] {
            let run = |name, bytes| {
                let run = builder().name(name).stack_size(size);
                run.run_sync_local(move || deep(bytes, || ()))
            };
            // The last page is met before the guard, as frames are smaller.
            let mut bytes = size - LITTLE;
            while most(name) < size {
                run(name, bytes).await;
                bytes += KIB;
            }
            // The only stack that is free.
            let shallow = format!("after {name}");
            run(shallow.clone().leak(), 0).await;
            assert!(most(&shallow) < LITTLE, "{:?}", find(&shallow));
            assert_eq!(most(name), size);
        }
    });
}

#[test]
fn names_and_sizes_are_apart_and_the_deepest_comes_first() {
    let name = "names_and_sizes_are_apart_and_the_deepest_comes_first";
    measured(name, async || {
        for (name, size, kib) in [
            ("one", 64, 0),
            ("other", 256, 70),
            ("one", 256, 40),
            // Sizes are rounded up.
            ("other", 200, 50),
            ("one", 64, 20),
            ("one", 64, 0),
        ] {
            let run = builder().name(name).stack_size(size * KIB);
            run.run_sync_local(move || deep(kib * KIB, || ())).await;
        }
        let uses = stack_use();
        let told = uses
            .iter()
            .map(|one| (one.name(), one.stack_size() / KIB, one.runs()));
        let told: Vec<_> = told.collect();
        assert_eq!(told, [("other", 256, 2), ("one", 256, 1), ("one", 64, 3)]);
        for (one, kib) in uses.iter().zip([70, 40, 20]) {
            assert!(one.most() > kib * KIB, "{uses:?}");
        }
    });
}

#[test]
fn of_the_runs_that_a_thread_starts_every_nth_is_measured() {
    let name = "of_the_runs_that_a_thread_starts_every_nth_is_measured";
    succeeds_in_child(name, || {
        measure_stacks(3);
        let on_a_thread = |name: &'static str| {
            thread::spawn(move || {
                LocalRuntime::new().unwrap().block_on(async {
                    for started in 0..20 {
                        assert_eq!(runs_of(name), started / 3);
                        run(name, || ()).await;
                    }
                });
            })
        };
        let threads = ["one", "other"].map(on_a_thread);
        threads.into_iter().for_each(|one| one.join().unwrap());
        assert_eq!((runs_of("one"), runs_of("other")), (6, 6));
    });
}

#[test]
fn what_counts_is_whether_it_was_on_when_the_run_started() {
    let name = "what_counts_is_whether_it_was_on_when_the_run_started";
    succeeds_in_child(name, || {
        LocalRuntime::new().unwrap().block_on(async {
            let waits = |name| {
                let (end, ended) = oneshot::channel::<()>();
                let run = run(name, || {
                    let _ = await_sync(ended);
                    deep(30 * KIB, || ());
                });
                (spawn_local(run), end)
            };
            let mut waiting = Vec::new();
            for (every, name) in [(0, "before"), (1, "while"), (0, "after")] {
                measure_stacks(every);
                waiting.push(waits(name));
                settle().await;
            }
            assert!(stack_use().is_empty(), "none has ended");
            for (every, (run, end)) in [1, 0, 1].into_iter().zip(waiting) {
                measure_stacks(every);
                drop(end);
                run.await.unwrap();
            }
        });
        assert_eq!(
            (runs_of("before"), runs_of("while"), runs_of("after")),
            (0, 1, 0)
        );
        assert!(most("while") > 30 * KIB);
    });
}

#[test]
fn runs_that_are_cancelled_or_panic_count_and_those_that_are_lost_do_not() {
    let name = "runs_that_are_cancelled_or_panic_count_and_those_that_are_lost_do_not";
    measured(name, async || {
        let waits = |name| {
            run(name, || {
                let _resource = Resource;
                deep(30 * KIB, || await_sync(pending::<()>()));
            })
        };
        let panics = run("panics", || deep(30 * KIB, || resume_unwind(Box::new(1))));
        assert!(spawn_local(panics).await.unwrap_err().is_panic());

        for name in ["cancelled", "forgotten"] {
            let mut run = Box::pin(waits(name));
            assert!(poll_once(&mut run).await.is_pending());
            if name == "forgotten" {
                forget(run);
            }
            // What is left of it is a task.
            settle().await;
        }
        struct Awaits;
        impl Drop for Awaits {
            fn drop(&mut self) {
                await_sync(pending::<()>());
            }
        }
        let leaked = builder().name("leaked").cleanup_budget(Duration::ZERO);
        let mut leaked = Box::pin(leaked.run_sync_local(|| {
            let _awaits = Awaits;
            await_sync(pending::<()>());
        }));
        assert!(poll_once(&mut leaked).await.is_pending());
        drop(leaked);
        while leaked_runs() == 0 {
            yield_now().await;
        }

        for name in ["panics", "cancelled"] {
            assert!(most(name) > 30 * KIB, "{name}");
            assert_eq!(runs_of(name), 1, "{name}");
        }
        assert_eq!((runs_of("forgotten"), runs_of("leaked")), (0, 0));
    });
}

#[test]
fn a_run_that_ends_with_its_thread_counts() {
    succeeds_in_child("a_run_that_ends_with_its_thread_counts", || {
        measure_stacks(1);
        for size in [SIZE, 3000 * KIB] {
            let on_a_thread = move || {
                let runtime = LocalRuntime::new().unwrap();
                let run = builder().name("late").stack_size(size);
                let run = run.run_sync_local(|| deep(30 * KIB, || await_sync(pending::<()>())));
                runtime.block_on(async {
                    spawn_local(run);
                    settle().await;
                });
                // It is cancelled with the runtime.
            };
            thread::spawn(on_a_thread).join().unwrap();
        }
        let uses = stack_use();
        assert_eq!(uses.len(), 2, "{uses:?}");
        assert!(uses.iter().all(|one| one.most() > 30 * KIB));
    });
}

#[test]
fn closures_of_a_scope_count_for_the_run_that_calls_it() {
    let name = "closures_of_a_scope_count_for_the_run_that_calls_it";
    measured(name, async || {
        let inner = || {
            join(|| deep(10 * KIB, || ()), || deep(20 * KIB, || ()));
        };
        run("outer", move || {
            join(|| deep(30 * KIB, || await_sync(yield_now())), inner);
        })
        .await;
        // The run, and its two closures; one of them has two more.
        assert_eq!((runs_of("outer"), stack_use().len()), (5, 1));
        assert!(most("outer") > 30 * KIB);
    });
}

/// Aligned more than a stack is, so that a closure with it leaves a gap.
#[derive(Clone, Copy, PartialEq)]
#[repr(align(256))]
struct Aligned([u8; 256]);

#[test]
fn a_closure_is_whole_wherever_its_stack_begins() {
    async fn are_whole<T: Copy + PartialEq + 'static>(name: &'static str, make: impl Fn(u8) -> T) {
        let run = |number| {
            let captured = black_box(make(number));
            spawn_local(run(name, move || black_box(captured)))
        };
        // Each has a stack of its own, of which there are sixteen kinds.
        let runs: Vec<_> = (0..64).map(run).collect();
        for (number, run) in (0..).zip(runs) {
            assert!(run.await.unwrap() == make(number), "{number}");
        }
        assert_eq!(runs_of(name), 64);
    }

    let name = "a_closure_is_whole_wherever_its_stack_begins";
    measured(name, async || {
        // As large as can be where it is not on the heap, or nearly.
        are_whole("large", |number| [number; 496]).await;
        are_whole("aligned", |number| Aligned([number; 256])).await;
    });
}

/// Fills a part of the stack, waits, and finds it as it was.
fn keeps(frames: u8, wait: &dyn Fn()) {
    let frame = black_box([frames; 256]);
    match frames {
        0 => wait(),
        _ => keeps(frames - 1, wait),
    }
    assert_eq!(black_box(frame), [frames; 256]);
}

#[test]
fn what_waits_keeps_its_stack_while_others_are_measured() {
    let on_a_thread = |index: usize| {
        let wait = |count| (0..count).for_each(|_| await_sync(yield_now()));
        let start = |round: usize| {
            // The other thread changes it as well.
            measure_stacks(round as u32 % 5);
            let frames = ((round * 7 + index) % 30) as u8;
            let size = [64, 256, 1024, 3000][round % 4] * KIB;
            let run = builder().name("keeps").stack_size(size);
            spawn_local(run.run_sync_local(move || keeps(frames, &|| wait(round % 16))))
        };
        LocalRuntime::new().unwrap().block_on(async {
            let mut runs = Vec::new();
            for round in 0..2000 {
                runs.push(start(round));
                yield_now().await;
            }
            for run in runs {
                run.await.unwrap();
            }
        });
    };
    let name = "what_waits_keeps_its_stack_while_others_are_measured";
    succeeds_in_child(name, || {
        let threads = [0, 1].map(|index| thread::spawn(move || on_a_thread(index)));
        threads.into_iter().for_each(|one| one.join().unwrap());
        let uses = stack_use();
        assert_eq!(uses.len(), 4, "{uses:?}");
        assert!(uses.iter().all(|one| one.most() < 64 * KIB), "{uses:?}");
    });
}
