//! Tests of the slab on a system that makes no guard markers, and on this one, and of
//! stacks outside of it: each in a process of its own, since guards, mappings and what
//! stacks take are counted for the process.

use std::cell::Cell;
use std::env;
use std::fs;
use std::hint::black_box;
use std::io;
use std::iter;
use std::os::unix::process::ExitStatusExt;
use std::panic;
use std::process::{Command, Output};
use std::rc::Rc;
use std::thread;

use tokio::runtime::LocalRuntime;
use tokio::sync::Semaphore;
use tokio::task::{spawn_local, yield_now};

use super::pool;
use crate::ground::switch::{ATTIC, Stack};
use crate::ground::sys::{has_guard_markers, most_mappings, old_kernel};
use crate::{await_sync, builder, measure_stacks, stack_use};

const KIB: usize = 1024;
const SIZE: usize = 64 * KIB;
const MANY: usize = 20_000;

/// The variable that tells the child what it is.
const CHILD: &str = "GREENHACK_OLD_KERNEL_CHILD";

/// Runs this test again in a process of its own, where this calls `f` and ends the
/// process. In the parent it returns what became of the child.
fn in_child(name: &str, f: impl FnOnce()) -> Output {
    if env::var_os(CHILD).is_some_and(|child| child == name) {
        f();
        std::process::exit(0);
    }
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg(format!("memory::old_kernel_tests::{name}"))
        .env(CHILD, name)
        .output()
        .unwrap()
}

#[track_caller]
fn succeeds(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{errors}", output.status);
}

/// The child reached the line before its end, which is a fault.
#[track_caller]
fn faults(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("so far, so good"), "{output:?}");
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}");
}

fn take(size: usize) -> io::Result<Stack> {
    pool::take(size, || {})
}

/// How many mappings this process has.
fn mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().count()
}

/// How many bytes that can be written to this process has mapped.
fn mapped() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let lines = maps.lines().filter(|line| line.contains(" rw-p "));
    let sizes = lines.map(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let (end, _) = rest.split_once(' ').unwrap();
        let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
        end - start
    });
    sizes.sum()
}

/// Writes to its lowest byte, and to its highest but one line.
fn touch(stack: &Stack) {
    for address in [stack.lowest(), stack.lowest() + stack.size() - 64] {
        // SAFETY: both lie within a stack on which nothing runs, and which stays
        // mapped while it is borrowed.
        unsafe { (address as *mut u8).write_volatile(1) };
    }
}

/// Touches the topmost page of the guard of one of several stacks.
fn overrun_one_of_several() {
    let stacks: Vec<Stack> = (0..3).map(|_| take(SIZE).unwrap()).collect();
    stacks.iter().for_each(touch);
    println!("so far, so good");
    let below = stacks[1].lowest() - 1;
    // SAFETY: it is the guard's, where no object lives; the write ends the process.
    unsafe { (below as *mut u8).write_volatile(1) };
}

#[test]
fn overflow_meets_a_marker() {
    if !has_guard_markers() {
        eprintln!("left out: this system knows no guard markers");
        return;
    }
    faults(&in_child("overflow_meets_a_marker", overrun_one_of_several));
}

#[test]
fn overflow_meets_a_protected_guard_on_an_old_kernel() {
    let output = in_child("overflow_meets_a_protected_guard_on_an_old_kernel", || {
        old_kernel::pretend();
        overrun_one_of_several();
    });
    faults(&output);
}

#[test]
fn overflow_meets_a_protected_guard_where_any_advice_is_taken_and_none_followed() {
    let name = "overflow_meets_a_protected_guard_where_any_advice_is_taken_and_none_followed";
    let output = in_child(name, || {
        old_kernel::pretend_to_take_any_advice();
        overrun_one_of_several();
    });
    faults(&output);
}

#[test]
fn overflow_meets_a_protected_guard_where_all_advice_is_refused() {
    let name = "overflow_meets_a_protected_guard_where_all_advice_is_refused";
    let output = in_child(name, || {
        old_kernel::refuse_advice(libc::EPERM);
        overrun_one_of_several();
    });
    faults(&output);
}

#[test]
fn overflow_of_a_run_on_an_old_kernel_ends_the_process() {
    fn dive(depth: u64) -> u64 {
        let frame = black_box([depth; 16]);
        if depth == u64::MAX {
            return 0;
        }
        dive(depth + 1) + frame[3]
    }
    let name = "overflow_of_a_run_on_an_old_kernel_ends_the_process";
    let output = in_child(name, || {
        old_kernel::pretend();
        LocalRuntime::new().unwrap().block_on(async {
            let run = builder().stack_size(SIZE).run_sync_local(|| {
                println!("so far, so good");
                dive(0)
            });
            run.await
        });
    });
    faults(&output);
}

/// A guard of `mprotect` splits a mapping: two more.
fn most_stacks() -> usize {
    most_mappings() / 4 / 2
}

#[test]
fn an_old_kernel_keeps_three_quarters_of_its_mappings() {
    let name = "an_old_kernel_keeps_three_quarters_of_its_mappings";
    let output = in_child(name, || {
        old_kernel::pretend();
        let before = mappings();
        let (stacks, errors): (Vec<_>, Vec<_>) =
            (0..MANY).map(|_| take(SIZE)).partition(Result::is_ok);
        assert!(!has_guard_markers(), "the system has refused");
        let stacks: Vec<Stack> = stacks.into_iter().map(Result::unwrap).collect();
        assert_eq!(stacks.len(), most_stacks().min(MANY));
        assert_eq!(errors.len(), MANY - stacks.len());
        for error in errors {
            let error = error.err().unwrap();
            assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded);
            assert!(error.to_string().contains("vm.max_map_count"), "{error}");
        }
        stacks.iter().for_each(touch);
        // Beside the guards and what is between, a few chunks and the lists.
        assert!(mappings() - before <= 2 * stacks.len() + 64);
        assert!(mappings() - before >= 2 * stacks.len());
        // What others ask for they still get.
        let others: Vec<_> = (0..100).map(|_| vec![1_u8; 1 << 20]).collect();
        assert!(others.iter().all(|other| black_box(other)[5] == 1));
        stacks.into_iter().for_each(pool::give);
        // A stack that has come back needs no further guard.
        assert!(take(SIZE).is_ok());
    });
    succeeds(&output);
}

#[test]
fn when_an_old_kernel_has_no_guards_left_runs_say_so() {
    let name = "when_an_old_kernel_has_no_guards_left_runs_say_so";
    let output = in_child(name, || {
        old_kernel::pretend();
        // It is said 12,000 times.
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let text = info.payload().downcast_ref::<String>();
            if !text.is_some_and(|text| text.starts_with("no stack")) {
                hook(info);
            }
        }));
        LocalRuntime::new().unwrap().block_on(async {
            let gate = Rc::new(Semaphore::new(0));
            let waiting = Rc::new(Cell::new(0));
            let runs: Vec<_> = (0..MANY)
                .map(|_| {
                    let (gate, waiting) = (gate.clone(), waiting.clone());
                    let run = builder()
                        .stack_size(SIZE)
                        .name("guest")
                        .run_sync_local(move || {
                            waiting.set(waiting.get() + 1);
                            await_sync(gate.acquire()).unwrap().forget();
                        });
                    spawn_local(run)
                })
                .collect();
            let most = most_stacks().min(MANY);
            let failed = || runs.iter().filter(|run| run.is_finished()).count();
            while waiting.get() + failed() < MANY {
                yield_now().await;
            }
            assert_eq!((waiting.get(), failed()), (most, MANY - most));
            gate.add_permits(most);
            let mut ended = 0;
            for run in runs {
                match run.await {
                    Ok(()) => ended += 1,
                    Err(error) => {
                        let payload = error.into_panic();
                        let text = payload.downcast_ref::<String>().unwrap();
                        assert!(text.starts_with("no stack of 65536 bytes for `guest`: "));
                        assert!(text.contains("raise it"), "{text}");
                        assert!(!text.contains("`stack_size`"), "{text}");
                    }
                }
            }
            assert_eq!(ended, most);
            // The next ones have stacks again.
            assert_eq!(builder().stack_size(SIZE).run_sync_local(|| 7).await, 7);
        });
        assert_eq!(crate::leaked_runs(), 0);
    });
    succeeds(&output);
}

#[test]
fn guards_are_given_back_with_their_thread_on_an_old_kernel() {
    let name = "guards_are_given_back_with_their_thread_on_an_old_kernel";
    let output = in_child(name, || {
        old_kernel::pretend();
        for _ in 0..3 {
            let thread = thread::spawn(|| {
                let stacks: Vec<_> = (0..most_stacks()).map(|_| take(SIZE).unwrap()).collect();
                assert!(take(SIZE).is_err());
                stacks.into_iter().for_each(pool::give);
            });
            thread.join().unwrap();
        }
    });
    succeeds(&output);
}

#[test]
fn large_stacks_leave_mappings_to_others_on_an_old_kernel() {
    let name = "large_stacks_leave_mappings_to_others_on_an_old_kernel";
    let output = in_child(name, || {
        old_kernel::pretend();
        let before = mappings();
        let take = || take(48 * SIZE).ok();
        // What is unmapped counts no longer.
        for _ in 0..2 {
            let stacks: Vec<Stack> = iter::from_fn(take).take(MANY).collect();
            assert_eq!(stacks.len(), most_stacks().min(MANY));
            assert!(mappings() - before <= 2 * stacks.len() + 64);
        }
    });
    succeeds(&output);
}

#[test]
fn markers_need_no_mappings() {
    if !has_guard_markers() {
        eprintln!("left out: this system knows no guard markers");
        return;
    }
    let output = in_child("markers_need_no_mappings", || {
        for (size, count) in [
            (SIZE, MANY),
            (4 * SIZE, MANY),
            (16 * SIZE, MANY),
            (48 * SIZE, MANY),
        ] {
            let before = mappings();
            let stacks: Vec<_> = (0..count).map(|_| take(size).unwrap()).collect();
            stacks.iter().for_each(touch);
            // 9 chunks, of which some may lie side by side, the heap, and the thread that
            // cools what is given, for which a sanitizer takes some of its own. With a
            // mapping for each stack there were thousands.
            let few = || mappings() < before + 64;
            assert!(few(), "{} of {before}", mappings());
            stacks.into_iter().for_each(pool::give);
            assert!(few(), "{} of {before}", mappings());
        }
    });
    succeeds(&output);
}

#[test]
fn a_stack_with_a_mapping_of_its_own_is_unmapped_wherever_it_is_dropped() {
    let name = "a_stack_with_a_mapping_of_its_own_is_unmapped_wherever_it_is_dropped";
    let output = in_child(name, || {
        let before = mapped();
        let stacks = || -> Vec<_> { (0..100).map(|_| Stack::new(SIZE).unwrap()).collect() };
        let (here, elsewhere) = (stacks(), stacks());
        assert!(mapped() > before + 200 * SIZE);
        for stack in here.iter().chain(&elsewhere) {
            // SAFETY: the attic is that of a stack on which nothing runs.
            unsafe { stack.attic().write_bytes(0xff, ATTIC) };
        }
        drop(here);
        thread::spawn(|| drop(elsewhere)).join().unwrap();
        // The heap may have grown, and so may that of the thread.
        assert!(mapped() < before + 100 * SIZE);
    });
    succeeds(&output);
}

#[test]
fn a_stack_that_no_pool_takes_counts_no_longer() {
    const LARGE: usize = 48 * SIZE;

    /// Gives a stack back when the pool of its thread is gone.
    #[derive(Default)]
    struct Late(Cell<Option<Stack>>);

    impl Drop for Late {
        fn drop(&mut self) {
            pool::give(self.0.take().unwrap());
            // What is taken and given now counts as well.
            assert!(take(LARGE + 1).is_err());
            pool::give(take(LARGE).unwrap());
            assert!(take(usize::MAX).is_err());
            let small = take(0).unwrap();
            assert_eq!(small.size(), SIZE);
            pool::give(small);
        }
    }

    thread_local! {
        static LATE: Late = Late::default();
    }

    let output = in_child("a_stack_that_no_pool_takes_counts_no_longer", || {
        crate::limit_stack_memory(LARGE);
        for size in [LARGE, SIZE] {
            for _ in 0..LARGE / size {
                let stack = take(size).unwrap();
                thread::spawn(|| pool::end(stack)).join().unwrap();
            }
            for _ in 0..LARGE / size {
                // Made before the pool, and destroyed after it.
                let keep = move || LATE.with(|late| late.0.set(Some(take(size).unwrap())));
                thread::spawn(keep).join().unwrap();
            }
        }
        assert!(take(LARGE).is_ok());
    });
    succeeds(&output);
}

#[test]
fn overflow_of_a_large_stack_meets_a_guard_of_many_pages() {
    let name = "overflow_of_a_large_stack_meets_a_guard_of_many_pages";
    let output = in_child(name, || {
        // They lie side by side.
        let stacks = [(); 3].map(|()| take(48 * SIZE).unwrap());
        let lowest = |stack: &Stack| stack.attic() as usize - stack.size();
        let highest = stacks.iter().map(lowest).max().unwrap();
        println!("so far, so good");
        // SAFETY: it is the guard's, where no object lives; the write ends the process.
        unsafe { ((highest - 60 * KIB) as *mut u8).write_volatile(1) };
    });
    faults(&output);
}

#[test]
fn no_stack_has_huge_pages() {
    if !fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap() {
        eprintln!("left out: this system knows no huge pages");
        return;
    }
    let output = in_child("no_stack_has_huge_pages", || {
        let stacks = [SIZE, 48 * SIZE].map(|size| take(size).unwrap());
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        for stack in &stacks {
            let flags = flags_at(&maps, stack.attic() as usize);
            assert!(flags.split(' ').any(|flag| flag == "nh"), "{flags}");
        }
    });
    succeeds(&output);
}

/// What the system says of the mapping of an address.
fn flags_at(maps: &str, address: usize) -> &str {
    let mut lines = maps.lines().skip_while(|line| {
        let range = line.split_once(' ').map_or("", |(range, _)| range);
        let ends = range.split_once('-').map(|ends| {
            let [start, end] = [ends.0, ends.1].map(|end| usize::from_str_radix(end, 16).ok());
            start <= Some(address) && Some(address) < end
        });
        ends != Some(true)
    });
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags: "));
    flags.expect("the stack is mapped")
}

/// Measures runs of these names, one after the other, on the same stack. Returns those of
/// which it was told how much they have used.
fn measure(names: &[&'static str]) -> Vec<String> {
    measure_stacks(1);
    LocalRuntime::new().unwrap().block_on(async {
        for &name in names {
            let run = builder().stack_size(SIZE).name(name);
            // More than a page, so that one below the topmost is touched.
            let used = run.run_sync_local(|| black_box([1_u8; 8 * KIB])[KIB]).await;
            assert_eq!(used, 1);
        }
    });
    stack_use()
        .iter()
        .map(|one| one.name().to_owned())
        .collect()
}

#[test]
fn nothing_is_measured_where_all_advice_is_refused() {
    let name = "nothing_is_measured_where_all_advice_is_refused";
    let output = in_child(name, || {
        old_kernel::refuse_advice(libc::EPERM);
        assert!(measure(&["one", "other"]).is_empty());
    });
    succeeds(&output);
}

// The sanitizer has large locals elsewhere.
#[cfg(not(greenhack_sanitizer))]
#[test]
fn what_was_used_before_is_not_measured_where_any_advice_is_taken_and_none_followed() {
    let name = "what_was_used_before_is_not_measured_where_any_advice_is_taken_and_none_followed";
    let output = in_child(name, || {
        // No error.
        old_kernel::refuse_advice(0);
        assert_eq!(measure(&["new", "used"]), ["new"]);
    });
    succeeds(&output);
}

// The sanitizer lets nobody lock memory.
#[cfg(not(greenhack_sanitizer))]
#[test]
fn nothing_is_measured_in_locked_memory() {
    let name = "nothing_is_measured_in_locked_memory";
    let output = in_child(name, || {
        // SAFETY: it changes nothing but where memory is.
        let locked = unsafe { libc::mlockall(libc::MCL_FUTURE) };
        if locked != 0 || take(SIZE).is_err() {
            eprintln!("left out: this process may not lock its memory");
            return;
        }
        assert!(measure(&["one", "other"]).is_empty());
    });
    succeeds(&output);
}
