//! What is said when the stack of a coroutine overflows, before the process ends.
//!
//! A guard below the stack makes that a fault. std knows the guards of its threads only.

use std::fmt::Write;
use std::ptr;
use std::sync::Once;

use super::context::{Frame, Header, Place, current};
use crate::ground::sys::{self, LARGEST_GUARD, Message};

/// A stack with a mapping of its own may end a page lower than it must.
const LARGEST_PAGE: usize = 64 * 1024;

/// A header is in the topmost page of its stack, that much below the end at most.
const TOPMOST: usize = 4096;

/// Sees to it that overflows are explained from now on.
#[cold]
pub(crate) fn watch() {
    static WATCH: Once = Once::new();
    // SAFETY: `explain` reads a thread-local without a destructor, and of the header that it
    // points to the name and the size, which nobody changes. It formats them into the
    // message.
    WATCH.call_once(|| unsafe { sys::explain_faults(explain) });
}

fn explain(address: usize, message: &mut Message) {
    if let Place::In(header) = current(&Frame::here()) {
        if is_in_guard(header, address) {
            // As much of a name as leaves room for the rest.
            let _ = writeln!(
                message,
                "greenhack: {}`{:.200}` has overflowed its stack of {} bytes; set a larger \
                 `stack_size`, or call what needs so much with `greenhack::on_thread_stack`",
                header.kind().prefix(),
                header.name(),
                header.stack_size(),
            );
        }
    }
}

/// Whether an address that has faulted is below the stack of a coroutine.
fn is_in_guard(header: &Header, address: usize) -> bool {
    let size = header.stack_size();
    let nearest = size.saturating_sub(TOPMOST);
    let below = ptr::from_ref(header).addr().saturating_sub(address);
    let farthest = size.saturating_add(LARGEST_PAGE + LARGEST_GUARD);
    (nearest..farthest).contains(&below)
}
