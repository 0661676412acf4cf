//! The auto traits of the public types, which are part of the interface.

use std::cell::Cell;
use std::future::Ready;
use std::rc::Rc;

use futures::stream::{FusedStream, Pending};
use greenhack::guard::{Exit, Guard, Teardown};
use greenhack::stream::{BlockingStream, Yielder, generate, generate_local, try_generate};
use greenhack::time::BlockingInterval;
use greenhack::{
    Builder, Cancelled, LocalRun, Nested, NotAwaited, Run, Scope, ScopedJoinHandle, StackUse,
    workers,
};
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

// Closures of a scope stay on its thread, and so do all that speak of them.
assert_not_impl_any!(Scope<'static, 'static>: Send, Sync, Clone);
assert_not_impl_any!(ScopedJoinHandle<'static, u8>: Send, Sync, Clone);
assert_not_impl_any!(Nested<'static, u8>: Send, Sync, Clone);
assert_impl_all!(Nested<'static, u8>: Unpin);

// What is refused is as good as what was passed in.
assert_impl_all!(NotAwaited<Ready<u8>>: Send, Sync, Unpin);
assert_not_impl_any!(NotAwaited<Rc<u8>>: Send, Sync);

assert_impl_all!(Builder: Send, Sync, Unpin);
assert_impl_all!(workers::Builder: Send, Sync, Unpin, Clone);
assert_impl_all!(workers::Metrics: Send, Sync, Unpin, Clone);
assert_impl_all!(StackUse: Send, Sync, Unpin, Clone);
assert_impl_all!(Cancelled: Send, Sync, Unpin, Copy);

// Iterators are as good as their streams, and never pinned.
assert_impl_all!(BlockingStream<Pending<u8>>: Send, Sync, Unpin);
assert_not_impl_any!(BlockingStream<Pending<Rc<u8>>>: Send);
assert_impl_all!(BlockingStream<std::marker::PhantomPinned>: Unpin);
assert_impl_all!(BlockingInterval: Send, Sync, Unpin);

#[cfg(feature = "axum")]
mod with_axum {
    use axum::Router;
    use greenhack::axum::{Connection, Connections, Distributor, Serve, WorkerListener};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    type App = Serve<TcpListener, Router, Router>;

    // A server moves to the task that awaits it. A shutdown signal need not be
    // `Sync`, and so the server is not.
    assert_impl_all!(App: Send, Unpin);
    assert_not_impl_any!(App: Sync, Clone);
    assert_not_impl_any!(Serve<TcpListener, Rc<u8>, Router>: Send);
    // The services of connections are made and stay on the workers.
    assert_impl_all!(Serve<TcpListener, Router, Rc<u8>>: Send);

    assert_impl_all!(Distributor<TcpListener>: Send, Sync, Unpin);
    assert_impl_all!(Connections<TcpListener>: Send, Sync, Unpin, Clone);
    assert_impl_all!(WorkerListener<TcpListener>: Send, Sync, Unpin);
    assert_not_impl_any!(WorkerListener<TcpListener>: Clone);
    assert_impl_all!(Connection<TcpStream>: Send, Sync, Unpin);
    #[cfg(target_os = "linux")]
    assert_impl_all!(greenhack::axum::ReusePort: Send, Sync, Unpin, Clone);
}

// An agent is shared, and so are its parts.
#[cfg(feature = "ureq")]
assert_impl_all!(greenhack::ureq::TcpConnector: Send, Sync, Unpin);
#[cfg(feature = "ureq")]
assert_impl_all!(greenhack::ureq::DefaultResolver: Send, Sync, Unpin);

// What yields stays on its stack.
assert_not_impl_any!(Yielder<u8>: Send, Sync, Clone);

struct Resource<T>(T);

impl<T, E> Teardown<E> for Resource<T> {
    async fn teardown(self, _: Exit<'_, E>) -> Result<(), E> {
        Ok(())
    }
}

// A guard is as good as its resource, whatever the error.
assert_impl_all!(Guard<Resource<u8>, Rc<u8>>: Send, Sync, Unpin);
assert_not_impl_any!(Guard<Resource<Rc<u8>>>: Send, Sync);
assert_not_impl_any!(Guard<Resource<u8>>: Clone);
assert_impl_all!(Exit<'static, u8>: Send, Sync, Unpin, Copy);
assert_not_impl_any!(Exit<'static, Rc<u8>>: Send, Sync);

#[test]
fn streams_of_generators_have_the_traits_that_their_signatures_promise() {
    fn is_send<S: FusedStream + Send + Unpin>(_: S) {}
    fn is_local<S: FusedStream + Unpin>(_: S) {}
    is_send(generate(|yielder| yielder.yield_(Cell::new(1))));
    is_send(try_generate(|_: &Yielder<u8>| Err(Cell::new(1))));
    let local = Rc::new(1);
    is_local(generate_local(move |yielder| yielder.yield_(local)));
}

#[test]
fn the_auto_traits_are_as_they_are_pinned() {
    // The compiler has seen to it.
}
