//! A stack that overflows: the process ends, and says which one it was. Each test is a
//! child process. (AddressSanitizer explains faults by itself.)
#![cfg(all(
    target_os = "linux",
    panic = "unwind",
    not(greenhack_threads),
    not(greenhack_sanitizer)
))]

#[path = "soundness/help.rs"]
mod help;

use std::borrow::Cow;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::panic::resume_unwind;
use std::process::Output;
use std::ptr;

use greenhack::{await_sync, builder, join, on_thread_stack};
use help::{in_child, multi_thread};
use tokio::runtime::LocalRuntime;
use tokio::task::yield_now;

const KIB: usize = 1024;

/// Recurses for ever.
fn dive(depth: u64) -> u64 {
    let frame = black_box([depth; 16]);
    if depth == u64::MAX {
        return 0;
    }
    dive(depth + 1) + frame[3]
}

/// The line of the crate, if the child has ended by a fault.
#[track_caller]
fn explanation(child: &Output) -> Option<String> {
    assert_eq!(child.status.signal(), Some(libc::SIGSEGV), "{child:?}");
    let errors = String::from_utf8_lossy(&child.stderr);
    let mut lines = errors.lines().filter(|line| line.contains("greenhack:"));
    let line = lines.next().map(str::to_owned);
    assert_eq!(lines.next(), None, "said once");
    line
}

#[track_caller]
fn says(child: &Output, name: &str, size: usize) {
    says_of(child, &format!("`{name}`"), size);
}

fn says_of(child: &Output, whom: &str, size: usize) {
    let expected = format!(
        "greenhack: {whom} has overflowed its stack of {size} bytes; set a larger \
         `stack_size`, or call what needs so much with `greenhack::on_thread_stack`"
    );
    assert_eq!(explanation(child), Some(expected));
}

/// Runs `f` on a stack of its own, in place.
fn run(name: impl Into<Cow<'static, str>>, size: usize, f: impl FnOnce() + 'static) {
    let run = builder().name(name).stack_size(size).run_sync_local(f);
    LocalRuntime::new().unwrap().block_on(run);
}

fn overflow() {
    dive(0);
}

#[test]
fn an_overflow_names_the_run_its_stack_and_the_setting() {
    let name = "an_overflow_names_the_run_its_stack_and_the_setting";
    let child = in_child(name, || {
        run("soup", 64 * KIB, || {
            await_sync(yield_now());
            overflow();
        });
    });
    says(&child, "soup", 64 * KIB);
}

#[test]
fn an_overflow_of_a_run_with_a_long_name_says_what_to_set() {
    let name = "an_overflow_of_a_run_with_a_long_name_says_what_to_set";
    let child = in_child(name, || run("soup ".repeat(200), 64 * KIB, overflow));
    says(&child, &"soup ".repeat(40), 64 * KIB);
}

#[test]
fn an_overflow_on_a_worker_is_explained() {
    let child = in_child("an_overflow_on_a_worker_is_explained", || {
        multi_thread().block_on(builder().name("stew").run_sync(overflow));
    });
    says(&child, "stew", KIB * KIB);
}

#[test]
fn an_overflow_of_a_stack_with_its_own_mapping_is_explained() {
    let name = "an_overflow_of_a_stack_with_its_own_mapping_is_explained";
    let child = in_child(name, || run("feast", 2 * KIB * KIB, overflow));
    says(&child, "feast", 2 * KIB * KIB);
}

#[test]
fn an_overflow_in_a_closure_of_a_scope_is_explained() {
    let child = in_child("an_overflow_in_a_closure_of_a_scope_is_explained", || {
        run("menu", 256 * KIB, || _ = join(overflow, || 1));
    });
    says_of(&child, "a closure of `menu`", 256 * KIB);
}

#[test]
fn an_overflow_in_a_run_that_is_awaited_by_another_names_the_inner_one() {
    let name = "an_overflow_in_a_run_that_is_awaited_by_another_names_the_inner_one";
    let child = in_child(name, || {
        run("menu", 256 * KIB, || {
            let inner = builder().name("soup").stack_size(64 * KIB);
            await_sync(inner.run_sync_local(overflow));
        });
    });
    says(&child, "soup", 64 * KIB);
}

#[test]
fn an_overflow_in_a_destructor_of_an_unwind_is_explained() {
    struct Overflows;

    impl Drop for Overflows {
        fn drop(&mut self) {
            overflow();
        }
    }

    let name = "an_overflow_in_a_destructor_of_an_unwind_is_explained";
    let child = in_child(name, || {
        run("soup", 64 * KIB, || {
            let _overflows = Overflows;
            resume_unwind(Box::new("a panic"));
        });
    });
    says(&child, "soup", 64 * KIB);
}

#[test]
fn an_overflow_of_the_threads_stack_is_stds() {
    let child = in_child("an_overflow_of_the_threads_stack_is_stds", || {
        run("soup", 64 * KIB, || on_thread_stack(overflow));
    });
    assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{child:?}");
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(errors.contains("has overflowed its stack"), "{errors}");
    assert!(!errors.contains("greenhack:"), "{errors}");
}

#[test]
fn a_fault_elsewhere_is_not_explained() {
    let child = in_child("a_fault_elsewhere_is_not_explained", || {
        run("soup", 64 * KIB, || {
            // SAFETY: nothing is there; the process ends.
            unsafe { ptr::without_provenance_mut::<u8>(64).write_volatile(1) };
        });
    });
    assert_eq!(explanation(&child), None);
}

fn send_a_fault() {
    // SAFETY: the tests that call it know what becomes of it.
    unsafe { libc::raise(libc::SIGSEGV) };
}

/// Sets what becomes of a fault, before there is a run.
fn set(handler: libc::sighandler_t, flags: libc::c_int) {
    // SAFETY: all zeros is an action without flags or a mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the handlers below have the signatures that their flags promise.
    unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, ptr::null_mut()) };
}

#[test]
fn a_fault_that_somebody_sends_ends_the_process_as_before() {
    let child = in_child(
        "a_fault_that_somebody_sends_ends_the_process_as_before",
        || {
            set(libc::SIG_DFL, 0);
            run("soup", 64 * KIB, send_a_fault);
        },
    );
    assert_eq!(explanation(&child), None);
}

#[test]
fn a_fault_that_somebody_sends_is_ignored_as_before() {
    let child = in_child("a_fault_that_somebody_sends_is_ignored_as_before", || {
        set(libc::SIG_IGN, 0);
        run("soup", 64 * KIB, || (0..2).for_each(|_| send_a_fault()));
    });
    assert!(child.status.success(), "{child:?}");
}

#[test]
fn an_overflow_where_faults_are_ignored_ends_the_process() {
    let name = "an_overflow_where_faults_are_ignored_ends_the_process";
    let child = in_child(name, || {
        set(libc::SIG_IGN, 0);
        run("soup", 64 * KIB, overflow);
    });
    says(&child, "soup", 64 * KIB);
}

/// The child has ended in a handler of its own, and the overflow was explained before.
#[track_caller]
fn passed_on(child: &Output) {
    assert_eq!(child.status.code(), Some(42), "{child:?}");
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(
        errors.contains("greenhack: `soup` has overflowed"),
        "{errors}"
    );
}

#[test]
fn a_handler_that_was_there_before_gets_the_fault() {
    extern "C" fn before(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: the system, and so greenhack, hands over what it knows.
        let is_fault = unsafe { (*info).si_code } > 0;
        let knows_all = is_fault && signal == libc::SIGSEGV && !context.is_null();
        // SAFETY: it may be called in handlers.
        unsafe { libc::_exit(if knows_all { 42 } else { 1 }) };
    }
    let child = in_child("a_handler_that_was_there_before_gets_the_fault", || {
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        set(before as *const () as usize, flags);
        run("soup", 64 * KIB, overflow);
    });
    passed_on(&child);
}

#[test]
fn a_handler_without_information_gets_the_fault() {
    extern "C" fn before(signal: libc::c_int) {
        // SAFETY: it may be called in handlers.
        unsafe { libc::_exit(if signal == libc::SIGSEGV { 42 } else { 1 }) };
    }
    let child = in_child("a_handler_without_information_gets_the_fault", || {
        set(before as *const () as usize, libc::SA_ONSTACK);
        run("soup", 64 * KIB, overflow);
    });
    passed_on(&child);
}
