//! The sides that link together, each as a process: `sides greenhack "ready"`.

use std::cell::{Cell, RefCell};
use std::marker::PhantomPinned;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use greenhack_peers::{Side, Work, answer};
use may::coroutine;
use tokio::runtime::{Builder, Handle, LocalRuntime, Runtime};
use tokio::task::{block_in_place, spawn_blocking, spawn_local};
use wasmtime_internal_fiber::{Fiber, FiberStack, Suspend};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let side = arguments.next().expect("a side");
    let case = arguments.next().expect("a case");
    match side.as_str() {
        ".await" => answer::<Native>(&case),
        ".await, boxed" => answer::<Boxed>(&case),
        "greenhack" => answer::<Greenhack<64>>(&case),
        "greenhack, 1 MiB" => answer::<Greenhack<1024>>(&case),
        "stackful" => answer::<Stackful>(&case),
        "may" => answer::<May>(&case),
        "wasmtime's fiber" => answer::<Wasmtime>(&case),
        "spawn_blocking" => answer::<SpawnBlocking>(&case),
        "block_in_place" => answer::<BlockInPlace>(&case),
        _ => panic!("no such side"),
    }
}

/// The size of the stacks of all who can choose: that of greenhack's smallest.
const STACK: usize = 64 * 1024;

thread_local! {
    static LOCAL: LocalRuntime = LocalRuntime::new().unwrap();
}

fn drive_locally<F: Future>(future: F) -> F::Output {
    LOCAL.with(|local| local.block_on(future))
}

/// Async code.
struct Native;

impl Side for Native {
    type Handle = ();

    fn wait<F: Future>((): (), _future: F) -> F::Output {
        unreachable!("async code awaits")
    }

    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static {
        let task = spawn_local(work.native());
        async { task.await.unwrap() }
    }

    fn drive<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
        drive_locally(future)
    }
}

/// Async code that may recurse.
struct Boxed;

impl Side for Boxed {
    type Handle = ();

    fn wait<F: Future>((): (), _future: F) -> F::Output {
        unreachable!("async code awaits")
    }

    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static {
        let task = spawn_local(work.boxed());
        async { task.await.unwrap() }
    }

    fn drive<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
        drive_locally(future)
    }
}

/// `run_sync` in place.
struct Greenhack<const KIB: usize>;

impl<const KIB: usize> Side for Greenhack<KIB> {
    type Handle = ();

    #[inline(always)]
    fn wait<F: Future>((): (), future: F) -> F::Output {
        greenhack::await_sync(future)
    }

    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static {
        let run = greenhack::builder().stack_size(KIB * 1024);
        let task = tokio::spawn(run.run_sync(|| work.plain::<Self>(())));
        async { task.await.unwrap() }
    }

    fn drive<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
        drive_locally(future)
    }
}

/// `stackful` in a local task, and `wait` in it, as its documentation has it. Its stacks
/// are of 2 MiB.
struct Stackful;

impl Side for Stackful {
    type Handle = ();

    #[inline(always)]
    fn wait<F: Future>((): (), future: F) -> F::Output {
        stackful::wait(future)
    }

    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static {
        let task = spawn_local(stackful::stackful(|| work.plain::<Self>(())));
        async { task.await.unwrap() }
    }

    fn drive<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
        drive_locally(future)
    }
}

/// may has a scheduler of its own, and no futures. Its coroutines park and unpark as
/// threads do, so a future is waited for as a thread would: polled with a waker that
/// unparks. One that is woken while it is polled gets its next turn by `yield_now`,
/// which is what may has for that. On one thread, as the others are, which is not
/// pinned to a core.
struct May;

/// What a coroutine and its waker share.
struct Parking {
    coroutine: coroutine::Coroutine,
    state: AtomicU8,
}

const RUNNING: u8 = 0;
const WOKEN: u8 = 1;
const PARKED: u8 = 2;

impl Wake for Parking {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == PARKED {
            self.coroutine.unpark();
        }
    }
}

/// Waits on a coroutine of may.
fn park_on<F: Future>((parking, waker): &(Arc<Parking>, Waker), future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        let parked =
            parking
                .state
                .compare_exchange(RUNNING, PARKED, Ordering::AcqRel, Ordering::Acquire);
        if parked.is_ok() {
            while parking.state.load(Ordering::Acquire) == PARKED {
                coroutine::park();
            }
        } else {
            coroutine::yield_now();
        }
        parking.state.store(RUNNING, Ordering::Release);
    }
}

fn go<T: Send + 'static>(
    f: impl FnOnce(&(Arc<Parking>, Waker)) -> T + Send + 'static,
) -> coroutine::JoinHandle<T> {
    static CONFIGURED: LazyLock<()> = LazyLock::new(|| {
        may::config()
            .set_workers(1)
            .set_stack_size(STACK / size_of::<usize>())
            .set_worker_pin(false);
    });
    LazyLock::force(&CONFIGURED);
    may::go!(move || {
        let parking = Arc::new(Parking {
            coroutine: coroutine::current(),
            state: AtomicU8::new(RUNNING),
        });
        let waker = Waker::from(parking.clone());
        f(&(parking, waker))
    })
}

/// Where a coroutine has its [`Parking`], and the waker made of it: in its first frame.
#[derive(Clone, Copy)]
struct OnMay(*const (Arc<Parking>, Waker));

impl Side for May {
    type Handle = OnMay;

    #[inline(always)]
    fn wait<F: Future>(handle: OnMay, future: F) -> F::Output {
        // SAFETY: it is in the coroutine's first frame, which is there while the work
        // runs that has the handle.
        park_on(unsafe { &*handle.0 }, future)
    }

    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static {
        let task = go(|parking| work.plain::<Self>(OnMay(parking)));
        // The one who joins is a coroutine, which this parks.
        async { task.join().unwrap() }
    }

    fn drive<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
        go(|parking| park_on(parking, future)).join().unwrap()
    }
}

/// The fiber of wasmtime, driven as wasmtime drives it: the future of a task resumes the
/// fiber with the waker of its poll, futures are polled on the fiber, and stacks are used
/// again.
struct Wasmtime;

/// The waker of a poll.
type Resume = *const Waker;

/// The first frame of a fiber.
struct Frame {
    suspend: *mut Suspend<Resume, (), ()>,
    waker: Cell<Resume>,
}

#[derive(Clone, Copy)]
struct OnFiber(*const Frame);

/// A fiber as a future.
struct InFiber<W: Work> {
    work: Option<W>,
    fiber: Option<Fiber<'static, Resume, (), ()>>,
    /// Written on the fiber.
    output: Option<W::Output>,
    /// The fiber points to the output.
    _pinned: PhantomPinned,
}

thread_local! {
    static STACKS: RefCell<Vec<FiberStack>> = const { RefCell::new(Vec::new()) };
}

impl<W: Work> Future for InFiber<W> {
    type Output = W::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<W::Output> {
        // SAFETY: nothing is moved out of it that is pinned, which is the output while
        // there is a fiber.
        let this = unsafe { self.get_unchecked_mut() };
        if let Some(work) = this.work.take() {
            let output: *mut Option<W::Output> = &mut this.output;
            let stack = STACKS.with_borrow_mut(Vec::pop);
            let stack = stack.unwrap_or_else(|| FiberStack::new(STACK, false).unwrap());
            let run = move |waker, suspend: &mut Suspend<Resume, (), ()>| {
                let waker = Cell::new(waker);
                let done = work.plain::<Wasmtime>(OnFiber(&Frame { suspend, waker }));
                // SAFETY: the output is pinned, and nobody looks at it before the end.
                unsafe { output.write(Some(done)) };
            };
            this.fiber = Some(Fiber::new(stack, run).unwrap());
        }
        let fiber = this
            .fiber
            .as_ref()
            .expect("it was not polled after its end");
        if fiber.resume(cx.waker()).is_err() {
            return Poll::Pending;
        }
        let stack = this.fiber.take().map(Fiber::into_stack);
        STACKS.with_borrow_mut(|stacks| stacks.extend(stack));
        Poll::Ready(this.output.take().expect("the fiber wrote it"))
    }
}

impl Side for Wasmtime {
    type Handle = OnFiber;

    #[inline(always)]
    fn wait<F: Future>(handle: OnFiber, future: F) -> F::Output {
        // SAFETY: it is the first frame of the fiber, which is there while the work runs
        // that has the handle.
        let frame = unsafe { &*handle.0 };
        let mut future = pin!(future);
        loop {
            // SAFETY: the fiber runs in the poll that this is the waker of.
            let waker = unsafe { &*frame.waker.get() };
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(waker)) {
                return output;
            }
            // SAFETY: nobody else uses it, and it is there as long as the frame.
            let suspend = unsafe { &mut *frame.suspend };
            frame.waker.set(suspend.suspend(()));
        }
    }

    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static {
        let task = spawn_local(InFiber {
            work: Some(work),
            fiber: None,
            output: None,
            _pinned: PhantomPinned,
        });
        async { task.await.unwrap() }
    }

    fn drive<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
        drive_locally(future)
    }
}

/// tokio's own ways need threads: as many as wait at a time, where the default is 512.
static THREADS: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(12_000)
        // So that those of a round are gone when others have their turn.
        .thread_keep_alive(Duration::from_millis(50))
        .build()
        .unwrap()
});

/// The driver is a task, too, so that it meets the tasks on their threads.
fn drive_on_threads<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
    THREADS.block_on(async { tokio::spawn(future).await.unwrap() })
}

/// `spawn_blocking`, and `Handle::block_on` in it.
struct SpawnBlocking;

impl Side for SpawnBlocking {
    type Handle = ();

    #[inline(always)]
    fn wait<F: Future>((): (), future: F) -> F::Output {
        Handle::current().block_on(future)
    }

    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static {
        let task = spawn_blocking(|| work.plain::<Self>(()));
        async { task.await.unwrap() }
    }

    fn drive<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
        drive_on_threads(future)
    }
}

/// A task with `block_in_place`, and `Handle::block_on` in it.
struct BlockInPlace;

impl Side for BlockInPlace {
    type Handle = ();

    #[inline(always)]
    fn wait<F: Future>((): (), future: F) -> F::Output {
        Handle::current().block_on(future)
    }

    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static {
        let task = tokio::spawn(async { block_in_place(|| work.plain::<Self>(())) });
        async { task.await.unwrap() }
    }

    fn drive<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
        drive_on_threads(future)
    }
}
