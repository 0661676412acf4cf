//! The sides made of corosensei 0.2. Its symbols are those of the 0.3 that greenhack is
//! made of, so that both don't link into one binary.
#![allow(clippy::disallowed_types, reason = "it is the corosensei of others")]

use std::future::poll_fn;
use std::pin::pin;

use awaiter_trait::Awaiter as _;
use awaiter_trait::Coroutine as _;
use awaiter_trait::r#dyn::DynAwaiter;
use corosensei::stack::DefaultStack;
use corosensei_awaiter_trait::Stacc;
use greenhack_peers::{Side, Work, answer};
use tokio::runtime::LocalRuntime;
use tokio::task::spawn_local;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let side = arguments.next().expect("a side");
    let case = arguments.next().expect("a case");
    match side.as_str() {
        "ruloom" => answer::<Ruloom>(&case),
        "corosensei-awaiter-trait" => answer::<AwaiterTrait>(&case),
        _ => panic!("no such side"),
    }
}

const STACK: usize = 64 * 1024;

thread_local! {
    static LOCAL: LocalRuntime = LocalRuntime::new().unwrap();
}

/// `to_future` in a local task, and `await_future` in it, as its documentation has it.
/// Its stacks are of 1 MiB.
struct Ruloom;

impl Side for Ruloom {
    type Handle = ();

    #[inline(always)]
    fn wait<F: Future>((): (), future: F) -> F::Output {
        ruloom::await_future(future)
    }

    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static {
        let task = spawn_local(ruloom::to_future(|| work.plain::<Self>(())));
        async { task.await.unwrap() }
    }

    fn drive<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
        LOCAL.with(|local| local.block_on(future))
    }
}

/// `Coroutine::exec` in a local task, and `Awaiter::await` in it.
///
/// It suspends before it polls a future for the first time, and polls with the waker of
/// the poll before, which is none at first: in a task it is never woken. So that there is
/// something to measure, the task wakes itself after each poll.
struct AwaiterTrait;

#[derive(Clone, Copy)]
struct OnAwaiter(*const (dyn DynAwaiter + 'static));

impl Side for AwaiterTrait {
    type Handle = OnAwaiter;

    #[inline(always)]
    fn wait<F: Future>(handle: OnAwaiter, future: F) -> F::Output {
        // SAFETY: it is there while the closure runs that has got it, which is as long
        // as the work that has the handle.
        let awaiter = unsafe { &*handle.0 };
        awaiter.r#await(pin!(future))
    }

    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static {
        let task = spawn_local(async {
            let via = || DefaultStack::new(STACK).unwrap();
            let coroutine = Stacc { via: &via };
            let mut run = pin!(coroutine.exec(|awaiter| {
                let awaiter: *const (dyn DynAwaiter + '_) = awaiter;
                // SAFETY: it only forgets a lifetime, see `wait`.
                let awaiter = unsafe {
                    std::mem::transmute::<
                        *const (dyn DynAwaiter + '_),
                        *const (dyn DynAwaiter + 'static),
                    >(awaiter)
                };
                work.plain::<Self>(OnAwaiter(awaiter))
            }));
            poll_fn(|cx| {
                let poll = run.as_mut().poll(cx);
                if poll.is_pending() {
                    cx.waker().wake_by_ref();
                }
                poll
            })
            .await
        });
        async { task.await.unwrap() }
    }

    fn drive<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
        LOCAL.with(|local| local.block_on(future))
    }
}
