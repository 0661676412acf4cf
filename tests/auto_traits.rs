//! The auto traits of the public types, which are part of the interface.

use std::cell::Cell;
use std::future::Ready;
use std::rc::Rc;

use greenhack::{Builder, Cancelled, LocalRun, NotAwaited, Run, workers};
use static_assertions::{assert_impl_all, assert_not_impl_any};

type SendFn = fn() -> u8;
type NotSendFn = (fn(), Rc<u8>);

// A run moves to the task that awaits it, with its closure and result.
assert_impl_all!(Run<SendFn, u8>: Send, Unpin);
assert_not_impl_any!(Run<SendFn, u8>: Sync);
// Its result may be anything that is `Send`, and need not be `Sync`.
assert_impl_all!(Run<SendFn, Cell<u8>>: Send);
assert_not_impl_any!(Run<NotSendFn, u8>: Send);
assert_not_impl_any!(Run<SendFn, Rc<u8>>: Send);

// A local run stays where it is, whatever it is made of.
assert_impl_all!(LocalRun<SendFn, u8>: Unpin);
assert_not_impl_any!(LocalRun<SendFn, u8>: Send, Sync);

// A run owns a stack which it can only unwind once: neither is a value.
assert_not_impl_any!(Run<SendFn, u8>: Clone);
assert_not_impl_any!(LocalRun<SendFn, u8>: Clone);

// What is refused is as good as what was passed in.
assert_impl_all!(NotAwaited<Ready<u8>>: Send, Sync, Unpin);
assert_not_impl_any!(NotAwaited<Rc<u8>>: Send, Sync);

assert_impl_all!(Builder: Send, Sync, Unpin);
assert_impl_all!(workers::Builder: Send, Sync, Unpin, Clone);
assert_impl_all!(Cancelled: Send, Sync, Unpin, Copy);

#[test]
fn the_auto_traits_are_as_they_are_pinned() {
    // The compiler has seen to it.
}
