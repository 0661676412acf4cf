#![cfg(panic = "unwind")]
#[path = "soundness/child.rs"]
mod child;
mod support;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use child::{assert_success, in_child};
use greenhack::{await_in_drop, await_sync, leaked_runs, no_suspend, run_sync, run_sync_local};
use support::{current_thread, on_drop};
use tokio::runtime::{Builder, Handle};
use tokio::task::{block_in_place, yield_now};
use tokio::time::sleep;

type AnyRun = Pin<Box<dyn Future<Output = ()>>>;

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

// 1
#[test]
fn a01_tls_lent_to_scoped_thread() {
    static DROPPED: AtomicBool = AtomicBool::new(false);
    struct Data(AtomicUsize);
    impl Drop for Data {
        fn drop(&mut self) {
            DROPPED.store(true, SeqCst);
        }
    }
    thread_local! { static DATA: Data = const { Data(AtomicUsize::new(0)) }; }
    let (tell, told) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let owner = thread::spawn(move || {
        current_thread().block_on(async {
            let mut run = run_sync_local(move || {
                DATA.with(|data| {
                    thread::scope(|s| {
                        s.spawn(|| {
                            let _ = gone.lock().unwrap().recv();
                            tell.send(DROPPED.load(SeqCst)).unwrap();
                            data.0.load(SeqCst);
                        });
                        await_sync(pending::<()>());
                    })
                })
            });
            assert!(poll_once(&mut run).await.is_pending());
            std::mem::forget(run);
        });
    });
    owner.join().unwrap();
    go.send(()).unwrap();
    assert!(
        !told.recv().unwrap(),
        "the scoped thread holds a reference to dropped data"
    );
}

// 2
#[test]
fn a02_tls_order() {
    static USED: AtomicBool = AtomicBool::new(false);
    struct Data(Cell<bool>);
    impl Drop for Data {
        fn drop(&mut self) {
            self.0.set(true);
            DEAD.store(true, SeqCst)
        }
    }
    static DEAD: AtomicBool = AtomicBool::new(false);
    thread_local! {
        static SLOT: RefCell<Option<AnyRun>> = const { RefCell::new(None) };
        static DATA: Data = const { Data(Cell::new(false)) };
    }
    thread::spawn(move || {
        let rt = current_thread();
        rt.block_on(run_sync_local(|| ())); // makes the mark
        SLOT.with(|_| ());
        rt.block_on(async {
            let mut run: AnyRun = Box::pin(run_sync_local(|| {
                DATA.with(|data| {
                    let _guard = on_drop(|| {
                        USED.store(DEAD.load(SeqCst), SeqCst);
                        let _ = &data;
                    });
                    await_sync(pending::<()>());
                })
            }));
            assert!(poll_once(&mut run).await.is_pending());
            SLOT.set(Some(run));
        });
    })
    .join()
    .unwrap();
    assert!(
        !USED.load(SeqCst),
        "a destructor on the stack had a reference to dropped data"
    );
}

// 3
#[test]
fn a03_nested_block_on() {
    let out = in_child("a03_nested_block_on", || {
        let rt = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut run: AnyRun = Box::pin(run_sync_local(|| {
            block_in_place(|| {
                Handle::current().block_on(async {
                    await_sync(pending::<()>());
                })
            })
        }));
        let r = catch_unwind(AssertUnwindSafe(|| {
            rt.block_on(async {
                eprintln!("pending {}", poll_once(&mut run).await.is_pending());
            })
        }));
        eprintln!("{:?}", r.is_err());
        let r = catch_unwind(AssertUnwindSafe(|| rt.block_on(async {})));
        eprintln!("{:?}", r.is_err());
        drop(run);
    });
    eprintln!("{}", String::from_utf8_lossy(&out.stderr));
    assert_success(&out);
}

// 4 release
#[test]
fn a04_wake_in_shutdown() {
    struct W(tokio::runtime::Id);
    impl Wake for W {
        fn wake(self: Arc<Self>) {
            if greenhack::in_context() {
                let r = catch_unwind(|| {
                    await_sync(async {
                        yield_now().await;
                        yield_now().await;
                    })
                });
                eprintln!("wait in wake: {}", r.is_ok());
            }
        }
    }
    let rt = current_thread();
    let mut run: AnyRun = Box::pin(run_sync_local(|| {
        let inner = current_thread();
        let mut task = inner.spawn(pending::<()>());
        let waker = Waker::from(Arc::new(W(inner.handle().id())));
        assert!(
            Pin::new(&mut task)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        inner.shutdown_background();
    }));
    rt.block_on(async {
        eprintln!("{:?}", poll_once(&mut run).await.is_pending());
    });
    fn deep(n: u32) -> u32 {
        if n == 0 {
            0
        } else {
            std::hint::black_box(deep(n - 1)) + 1
        }
    }
    deep(1000);
    rt.block_on(async {
        run.await;
        tokio::spawn(async {}).await.unwrap();
    });
}

// 5
#[test]
fn a05_seventeen_unwinds() {
    let out = in_child("a05_seventeen_unwinds", || {
        fn unwinding(depth: u32) {
            if depth == 0 {
                return await_sync(pending());
            }
            let r = catch_unwind(|| {
                let _g = on_drop(|| unwinding(depth - 1));
                resume_unwind(Box::new(()));
            });
            drop(r);
        }
        let rt = current_thread();
        rt.block_on(async {
            let run = greenhack::builder().cleanup_budget(Duration::ZERO);
            let mut run = run.run_sync_local(|| unwinding(20));
            assert!(poll_once(&mut run).await.is_pending());
            eprintln!("panicking {}", thread::panicking());
            drop(run);
            yield_now().await;
        });
    });
    eprintln!("{}", String::from_utf8_lossy(&out.stderr));
    assert_success(&out);
}

struct Resource;
impl Drop for Resource {
    fn drop(&mut self) {
        await_in_drop(yield_now());
    }
}

// 6
#[test]
fn a06_await_in_drop_no_suspend() {
    let rt = current_thread();
    let r = rt.block_on(run_sync_local(|| {
        catch_unwind(|| no_suspend(|| drop(Resource))).is_ok()
    }));
    assert!(r);
}
#[test]
fn a06b_await_in_drop_bip() {
    let rt = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let r = rt.block_on(run_sync_local(|| {
        catch_unwind(|| block_in_place(|| drop(Resource))).is_ok()
    }));
    assert!(r);
}
#[test]
fn a06c_await_in_drop_abort() {
    let out = in_child("a06c_await_in_drop_abort", || {
        let rt = current_thread();
        rt.block_on(async {
            let mut run = run_sync_local(|| {
                let _g = on_drop(|| no_suspend(|| drop(Resource)));
                await_sync(pending::<()>())
            });
            assert!(poll_once(&mut run).await.is_pending());
        });
    });
    assert_success(&out);
}

// 7
#[test]
fn a07_hook_on_drop() {
    let out = in_child("a07_hook_on_drop", || {
        std::panic::set_hook(Box::new(|info| {
            eprintln!("HOOK {info}");
            std::process::exit(77)
        }));
        let rt = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        rt.block_on(async {
            let mut run = run_sync_local(|| {
                let _g = Resource;
                await_sync(pending::<()>())
            });
            assert!(poll_once(&mut run).await.is_pending());
        });
    });
    eprintln!("{}", String::from_utf8_lossy(&out.stderr));
    assert_success(&out);
}

// 8
#[test]
fn a08_tls_dtor_parker() {
    let out = in_child("a08_tls_dtor_parker", || {
        thread_local! { static K: Resource = const { Resource }; }
        thread::spawn(|| {
            let _ = Handle::try_current();
            K.with(|_| ());
            await_sync(async {});
        })
        .join()
        .unwrap();
    });
    eprintln!("{}", String::from_utf8_lossy(&out.stderr));
    assert_success(&out);
}

// 9
#[test]
fn a09_unconstrained_root() {
    let rt = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let err = rt.block_on(tokio::task::unconstrained(async {
        greenhack::try_await_sync(async { 7 }).unwrap_err()
    }));
    assert!(err.is_async_code());
}

// 10
#[test]
fn a10_other_runtime_entered_on_worker() {
    let other = current_thread();
    let handle = other.handle().clone();
    let rt = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let r = rt.block_on(async {
        tokio::spawn(async move {
            let mut run = run_sync(|| {
                await_sync(yield_now());
                thread::current().name().unwrap_or("").to_owned()
            });
            poll_fn(move |cx| {
                let _g = handle.enter();
                Pin::new(&mut run).poll(cx)
            })
            .await
        })
        .await
        .unwrap()
    });
    assert!(r.starts_with("greenhack-"), "{r}");
}

// 11
#[test]
fn a11_reaper_wakes_after_foreign_drive() {
    static ENDED: AtomicBool = AtomicBool::new(false);
    let rt = Arc::new(current_thread());
    let mut run = rt.block_on(async {
        let mut run = run_sync(|| {
            let _g = on_drop(|| ENDED.store(true, SeqCst));
            await_sync(pending::<()>())
        });
        assert!(poll_once(&mut run).await.is_pending());
        run
    });
    let other = rt.clone();
    thread::spawn(move || {
        let _ = &mut run;
        drop(run);
        other.block_on(async {
            for _ in 0..10 {
                yield_now().await
            }
        });
    })
    .join()
    .unwrap();
    rt.block_on(async {
        for _ in 0..10 {
            yield_now().await
        }
    });
    assert!(ENDED.load(SeqCst));
}

// 12
#[test]
fn a12_spawned_on_worker_shutdown() {
    let out = in_child("a12_spawned_on_worker_shutdown", || {
        static ENDED: AtomicBool = AtomicBool::new(false);
        let rt = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        rt.block_on(async {
            run_sync(|| {
                let (tx, rx) = tokio::sync::oneshot::channel::<()>();
                tokio::spawn(run_sync(move || {
                    let _g = on_drop(|| {
                        await_sync(sleep(Duration::from_millis(20)));
                        ENDED.store(true, SeqCst)
                    });
                    drop(tx);
                    await_sync(pending::<()>())
                }));
                let _ = await_sync(rx);
            })
            .await;
            greenhack::workers::shutdown(Duration::from_secs(10)).await;
            assert_eq!(leaked_runs(), 0);
            assert!(ENDED.load(SeqCst));
        });
    });
    eprintln!("{}", String::from_utf8_lossy(&out.stderr));
    assert_success(&out);
}

// 13
#[test]
fn a13_small_stack_panic() {
    let out = in_child("a13_small_stack_panic", || {
        unsafe { std::env::set_var("RUST_BACKTRACE", "1") };
        let rt = current_thread();
        rt.block_on(async {
            let r = tokio::spawn(
                greenhack::builder()
                    .stack_size(0)
                    .run_sync(|| panic!("on a small stack")),
            )
            .await;
            assert!(r.unwrap_err().is_panic());
        });
    });
    eprintln!("{}", String::from_utf8_lossy(&out.stderr));
    assert_success(&out);
}

// 17
#[test]
fn a17_deep() {
    fn nest(n: u32) -> u32 {
        if n == 0 {
            await_sync(yield_now());
            return 0;
        }
        let run: Pin<Box<dyn Future<Output = u32>>> = Box::pin(
            greenhack::builder()
                .stack_size(64 * 1024)
                .run_sync_local(move || nest(n - 1)),
        );
        await_sync(run) + 1
    }
    for n in [100, 300, 1000, 2000] {
        eprintln!("{n}");
        assert_eq!(
            current_thread().block_on(run_sync_local(move || nest(n))),
            n
        );
    }
}

// 18
#[test]
fn a18_no_timer_hook() {
    static HOOKS: AtomicUsize = AtomicUsize::new(0);
    let out = in_child("a18_no_timer_hook", || {
        std::panic::set_hook(Box::new(|_| {
            HOOKS.fetch_add(1, SeqCst);
        }));
        let rt = Builder::new_current_thread().build().unwrap();
        rt.block_on(async {
            let mut run = run_sync_local(|| {
                let _g = on_drop(|| {
                    for _ in 0..5 {
                        await_sync(yield_now())
                    }
                });
                await_sync(pending::<()>())
            });
            assert!(poll_once(&mut run).await.is_pending());
            drop(run);
            for _ in 0..20 {
                yield_now().await
            }
        });
        eprintln!("hooks {}", HOOKS.load(SeqCst));
        assert_eq!(HOOKS.load(SeqCst), 0);
    });
    eprintln!("{}", String::from_utf8_lossy(&out.stderr));
    assert_success(&out);
}

// 19
#[test]
fn a19_futures_executor_on_stack() {
    let rt = current_thread();
    rt.block_on(async {
        let mut a =
            run_sync_local(|| futures::executor::block_on(async { await_sync(yield_now()) }));
        let r = catch_unwind(AssertUnwindSafe(|| {
            Pin::new(&mut a).poll(&mut Context::from_waker(Waker::noop()))
        }));
        eprintln!("{:?}", r.is_ok());
        futures::executor::block_on(async {});
    });
}

// 2b: a run resumed in a TLS destructor
#[test]
fn a20_tls_resumed() {
    static USED: AtomicBool = AtomicBool::new(false);
    static DEAD: AtomicBool = AtomicBool::new(false);
    struct Data;
    impl Drop for Data {
        fn drop(&mut self) {
            DEAD.store(true, SeqCst)
        }
    }
    struct Holder(RefCell<Option<(tokio::runtime::Runtime, AnyRun)>>);
    impl Drop for Holder {
        fn drop(&mut self) {
            let (rt, run) = self.0.take().unwrap();
            rt.block_on(run);
        }
    }
    thread_local! {
        static SLOT: Holder = const { Holder(RefCell::new(None)) };
        static DATA: Data = const { Data };
    }
    thread::spawn(move || {
        let rt = current_thread();
        rt.block_on(async {}); // tokio's locals first
        SLOT.with(|_| ());
        let mut run: AnyRun = Box::pin(run_sync_local(|| {
            DATA.with(|_data| {
                await_sync(yield_now());
                USED.store(DEAD.load(SeqCst), SeqCst);
            })
        }));
        rt.block_on(async { assert!(poll_once(&mut run).await.is_pending()) });
        SLOT.with(|slot| *slot.0.borrow_mut() = Some((rt, run)));
    })
    .join()
    .unwrap();
    assert!(
        !USED.load(SeqCst),
        "resumed code had a reference to dropped data"
    );
}
