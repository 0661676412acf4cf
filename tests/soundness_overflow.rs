//! A stack that overflows: the process ends, and says which one it was. Each test is a
//! child process. (AddressSanitizer explains faults by itself.)
#![cfg(all(target_os = "linux", not(greenhack_threads), not(greenhack_sanitizer)))]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "they are one call")]

#[path = "soundness/help.rs"]
mod help;

use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::ptr;

use greenhack::{await_sync, builder, join, on_thread_stack, run_sync_local};
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
    let expected = format!(
        "greenhack: `{name}` has overflowed its stack of {size} bytes; set a larger \
         `stack_size`, or call what needs so much with `greenhack::on_thread_stack`"
    );
    assert_eq!(explanation(child), Some(expected));
}

#[test]
fn an_overflow_names_the_run_its_stack_and_the_setting() {
    let child = in_child(
        "an_overflow_names_the_run_its_stack_and_the_setting",
        || {
            LocalRuntime::new().unwrap().block_on(async {
                let run = builder().name("soup").stack_size(64 * KIB);
                run.run_sync_local(|| {
                    await_sync(yield_now());
                    dive(0)
                })
                .await
            });
        },
    );
    says(&child, "soup", 64 * KIB);
}

#[test]
fn an_overflow_of_a_run_with_a_long_name_says_what_to_set() {
    let name = "an_overflow_of_a_run_with_a_long_name_says_what_to_set";
    let child = in_child(name, || {
        LocalRuntime::new().unwrap().block_on(async {
            let run = builder().name("soup ".repeat(200)).stack_size(64 * KIB);
            run.run_sync_local(|| dive(0)).await
        });
    });
    says(&child, &"soup ".repeat(40), 64 * KIB);
}

#[test]
fn an_overflow_on_a_worker_is_explained() {
    let child = in_child("an_overflow_on_a_worker_is_explained", || {
        multi_thread().block_on(builder().name("stew").run_sync(|| dive(0)));
    });
    says(&child, "stew", KIB * KIB);
}

#[test]
fn an_overflow_of_a_stack_with_its_own_mapping_is_explained() {
    let child = in_child(
        "an_overflow_of_a_stack_with_its_own_mapping_is_explained",
        || {
            LocalRuntime::new().unwrap().block_on(async {
                let run = builder().name("feast").stack_size(2 * KIB * KIB);
                run.run_sync_local(|| dive(0)).await
            });
        },
    );
    says(&child, "feast", 2 * KIB * KIB);
}

#[test]
fn an_overflow_in_a_closure_of_a_scope_is_explained() {
    let child = in_child("an_overflow_in_a_closure_of_a_scope_is_explained", || {
        LocalRuntime::new().unwrap().block_on(async {
            let run = builder().name("menu").stack_size(256 * KIB);
            run.run_sync_local(|| join(|| dive(0), || 1)).await
        });
    });
    says(&child, "a closure of a scope", 256 * KIB);
}

#[test]
fn an_overflow_of_the_threads_stack_is_stds() {
    let child = in_child("an_overflow_of_the_threads_stack_is_stds", || {
        LocalRuntime::new()
            .unwrap()
            .block_on(run_sync_local(|| on_thread_stack(|| dive(0))));
    });
    assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{child:?}");
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(errors.contains("has overflowed its stack"), "{errors}");
    assert!(!errors.contains("greenhack:"), "{errors}");
}

#[test]
fn a_fault_elsewhere_is_not_explained() {
    let child = in_child("a_fault_elsewhere_is_not_explained", || {
        LocalRuntime::new().unwrap().block_on(run_sync_local(|| {
            // SAFETY: nothing is there; the process ends.
            unsafe { ptr::without_provenance_mut::<u8>(64).write_volatile(1) };
        }));
    });
    assert_eq!(explanation(&child), None);
}

#[test]
fn a_signal_that_was_sent_ends_the_process() {
    let child = in_child("a_signal_that_was_sent_ends_the_process", || {
        // SAFETY: no handler is replaced that anybody needs.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        LocalRuntime::new().unwrap().block_on(run_sync_local(|| {
            // SAFETY: the process ends.
            unsafe { libc::raise(libc::SIGSEGV) };
        }));
    });
    assert_eq!(explanation(&child), None);
}

#[test]
fn a_handler_that_was_there_before_gets_the_fault() {
    extern "C" fn before(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: it is a fault, by the test; `_exit` may be called in handlers.
        unsafe { libc::_exit(if (*info).si_addr().is_null() { 1 } else { 42 }) };
    }
    let child = in_child("a_handler_that_was_there_before_gets_the_fault", || {
        // SAFETY: all zeros is an action without flags or a mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = before as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature that the flags promise.
        unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, ptr::null_mut()) };
        LocalRuntime::new().unwrap().block_on(async {
            let run = builder().name("soup").stack_size(64 * KIB);
            run.run_sync_local(|| dive(0)).await
        });
    });
    assert_eq!(child.status.code(), Some(42), "{child:?}");
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(
        errors.contains("greenhack: `soup` has overflowed"),
        "{errors}"
    );
}
