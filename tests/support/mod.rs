//! What the tests share: the places where a run can live, and a log.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::panic::{self, PanicHookInfo};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, RwLock};

use tokio::runtime::{Builder, LocalRuntime, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Where a run lives.
#[allow(clippy::enum_variant_names, reason = "`InPlace` is the word")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `run_sync` as a task of a current-thread runtime.
    InPlace,
    /// `run_sync_local` as a local task.
    Local,
    /// `run_sync` as a task of a multi-thread runtime.
    Worker,
}

pub const PLACES: [Place; 3] = [Place::InPlace, Place::Local, Place::Worker];

/// A runtime on which runs live in `place`.
pub struct Fixture {
    pub place: Place,
    runtime: AnyRuntime,
}

enum AnyRuntime {
    Tokio(Runtime),
    Local(LocalRuntime),
}

impl Fixture {
    pub fn new(place: Place) -> Fixture {
        let runtime = match place {
            Place::InPlace => AnyRuntime::Tokio(current_thread()),
            Place::Local => AnyRuntime::Local(
                Builder::new_current_thread()
                    .enable_all()
                    .build_local(Default::default())
                    .unwrap(),
            ),
            Place::Worker => AnyRuntime::Tokio(
                Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap(),
            ),
        };
        Fixture { place, runtime }
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match &self.runtime {
            AnyRuntime::Tokio(runtime) => runtime.block_on(future),
            AnyRuntime::Local(runtime) => runtime.block_on(future),
        }
    }
}

impl Place {
    /// Spawns `f` as a run in this place; called on the fixture's runtime.
    pub fn spawn<T: Send + 'static>(self, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        self.spawn_with(greenhack::builder(), f)
    }

    pub fn spawn_with<T: Send + 'static>(
        self,
        builder: greenhack::Builder,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        match self {
            Place::InPlace | Place::Worker => tokio::spawn(builder.run_sync(f)),
            Place::Local => tokio::task::spawn_local(builder.run_sync_local(f)),
        }
    }
}

/// Runs `test` on a runtime of each place.
pub fn in_each_place<F: Future<Output = ()>>(test: impl Fn(Place) -> F) {
    for place in PLACES {
        eprintln!("-- {place:?}");
        Fixture::new(place).block_on(test(place));
    }
}

/// Runs `f` in a run of each place, and on a plain thread.
pub fn everywhere(f: impl Fn() + Clone + Send + 'static) {
    in_each_place(|place| {
        let f = f.clone();
        async move { place.spawn(f).await.unwrap() }
    });
    std::thread::spawn(f).join().unwrap();
}

pub fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// One whose clock stands still, and jumps to the next timer when there is nothing to do.
pub fn paused() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

/// What happened, in order.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// A guard that logs `what` when it is dropped.
    pub fn on_drop(&self, what: &'static str) -> LogOnDrop {
        LogOnDrop(self.clone(), what)
    }
}

pub struct LogOnDrop(Log, &'static str);

impl Drop for LogOnDrop {
    fn drop(&mut self) {
        self.0.add(self.1);
    }
}

/// Runs a closure when it is dropped.
pub struct OnDrop<F: FnOnce()>(Option<F>);

pub fn on_drop<F: FnOnce()>(f: F) -> OnDrop<F> {
    OnDrop(Some(f))
}

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(f) = self.0.take() {
            f();
        }
    }
}

/// A signal that is given when the sender is dropped.
pub fn signal() -> (Signal, Signalled) {
    let (sender, receiver) = oneshot::channel();
    (Signal(sender), Signalled(receiver))
}

/// Gives the signal when it is dropped.
pub struct Signal(oneshot::Sender<()>);

impl Signal {
    pub fn give(self) {
        drop(self.0);
    }
}

pub struct Signalled(oneshot::Receiver<()>);

impl Signalled {
    pub async fn wait(self) {
        let _ = self.0.await;
    }

    pub fn is_given(&mut self) -> bool {
        !matches!(self.0.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }
}

/// Counts the runs that are leaked from now on. Tests that do so take turns: the process
/// has one count.
pub fn count_leaks() -> Leaks {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Leaks {
        before: greenhack::leaked_runs(),
        _turn: turn,
    }
}

pub struct Leaks {
    before: u64,
    _turn: MutexGuard<'static, ()>,
}

impl Leaks {
    pub fn count(&self) -> u64 {
        greenhack::leaked_runs() - self.before
    }
}

/// The text of a panic's payload.
pub fn text(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string()))
        .unwrap_or_else(|| "no text".to_owned())
}

type PanicHook = Box<dyn Fn(&PanicHookInfo<'_>) -> bool + Send + Sync>;

/// Calls `f` for each panic, before the panic hook, which does not run if `f` returns
/// false. A second hook that is set while tests run would miss panics, or lose another.
pub fn see_panics(f: impl Fn(&PanicHookInfo<'_>) -> bool + Send + Sync + 'static) {
    static HOOKS: RwLock<Vec<PanicHook>> = RwLock::new(Vec::new());
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let outer = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if HOOKS.read().unwrap().iter().all(|hook| hook(info)) {
                outer(info);
            }
        }));
    });
    HOOKS.write().unwrap().push(Box::new(f));
}

/// Runs `f` and returns the message and the line of its panic.
pub fn panic_of(f: impl FnOnce()) -> (String, u32, String) {
    thread_local! {
        static LAST: std::cell::RefCell<Option<(u32, String)>> = const { std::cell::RefCell::new(None) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        see_panics(|info| {
            let location = info.location().unwrap();
            LAST.with_borrow_mut(|last| *last = Some((location.line(), location.file().into())));
            true
        });
    });
    let payload = panic::catch_unwind(panic::AssertUnwindSafe(f)).unwrap_err();
    let (line, file) = LAST.take().expect("the hook ran");
    (text(&*payload), line, file)
}
