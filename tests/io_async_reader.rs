//! `greenhack::io::AsyncReader`: a plain reader as `AsyncRead`.
#![cfg(all(feature = "io", panic = "unwind"))]

mod support;

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::pending;
use std::io::{self, ErrorKind, Read, Write};
use std::panic::panic_any;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures::FutureExt;
use greenhack::io::{AsyncReader, LocalAsyncReader, SyncIoBridge};
use greenhack::{await_sync, run_sync_local};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use support::{Fixture, Log, PLACES, Place, panic_of, signal};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, duplex};
use tokio::task::yield_now;

assert_impl_all!(AsyncReader: Send, Unpin, AsyncBufRead);
assert_impl_all!(LocalAsyncReader: Unpin, AsyncBufRead);
assert_not_impl_any!(LocalAsyncReader: Send, Sync);
assert_not_impl_any!(AsyncReader: Clone);

type AnyReader = Pin<Box<dyn AsyncBufRead>>;

/// A reader whose plain code runs in `place`.
fn reader_in<F, R>(place: Place, f: F) -> AnyReader
where
    F: FnOnce() -> R + Send + 'static,
    R: Read + 'static,
{
    match place {
        Place::Local => Box::pin(LocalAsyncReader::new(f)),
        Place::InPlace | Place::Worker => Box::pin(AsyncReader::new(f)),
    }
}

fn in_each_place<F: Future<Output = ()>>(test: impl Fn(Place) -> F) {
    for place in PLACES {
        eprintln!("-- {place:?}");
        Fixture::new(place).block_on(test(place));
    }
}

/// A plain reader that is a list of closures, one for each read.
struct Steps(VecDeque<Box<dyn FnOnce() -> io::Result<&'static str>>>);

impl Steps {
    fn new<const N: usize>(steps: [fn() -> io::Result<&'static str>; N]) -> Steps {
        Steps(steps.into_iter().map(|step| Box::new(step) as _).collect())
    }
}

impl Read for Steps {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(step) = self.0.pop_front() else {
            return Ok(0);
        };
        let bytes = step()?.as_bytes();
        buf[..bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    }
}

/// Waits at each read, and then gives a byte. Counts them. It isn't `Send`.
struct Counted {
    reads: Arc<AtomicUsize>,
    _guard: support::LogOnDrop,
    /// Given after the guard is dropped.
    _ended: support::Signal,
    _not_send: Rc<()>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        await_sync(yield_now());
        self.reads.fetch_add(1, Ordering::Relaxed);
        buf[0] = b'x';
        Ok(1)
    }
}

#[test]
fn a_decoder_over_a_socket_is_read_by_async_code() {
    in_each_place(|place| async move {
        let mut text = String::new();
        for number in 0..20_000_u32 {
            text.push_str(&number.wrapping_mul(0x9E37_79B9).to_string());
        }
        let mut zipped = GzEncoder::new(Vec::new(), Default::default());
        zipped.write_all(text.as_bytes()).unwrap();
        let zipped = zipped.finish().unwrap();

        let (near, mut far) = duplex(100);
        let mut reader = reader_in(place, || GzDecoder::new(SyncIoBridge::new(near)));
        let mut read = String::new();
        let (sent, received) = tokio::join!(
            async {
                far.write_all(&zipped).await?;
                far.shutdown().await
            },
            reader.read_to_string(&mut read),
        );
        sent.unwrap();
        assert_eq!(received.unwrap(), text.len());
        assert_eq!(read, text);
        // The end stays.
        assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);
    });
}

#[test]
fn pieces_come_as_they_are_read_and_are_lent() {
    in_each_place(|place| async move {
        let mut reader = reader_in(place, || {
            Steps::new([
                || Ok("so"),
                || Err(ErrorKind::Interrupted.into()),
                || {
                    await_sync(yield_now());
                    Ok("up\nri")
                },
                || Ok("ce"),
            ])
        });
        assert_eq!(reader.read(&mut []).await.unwrap(), 0);
        assert_eq!(reader.fill_buf().await.unwrap(), b"so");
        reader.consume(1);
        assert_eq!(reader.fill_buf().await.unwrap(), b"o");
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        assert_eq!(line, "oup\n");
        let mut byte = [0; 1];
        reader.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"r");
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"ice");
    });
}

#[test]
fn it_reads_one_chunk_ahead_and_is_suspended() {
    in_each_place(|place| async move {
        let log = Log::default();
        let reads = Arc::new(AtomicUsize::new(0));
        let (ended, end) = signal();
        let mut reader = reader_in(place, {
            let (reads, _guard) = (reads.clone(), log.on_drop("reader"));
            move || Counted {
                reads,
                _guard,
                _ended: ended,
                _not_send: Rc::new(()),
            }
        });
        yield_now().await;
        assert_eq!(reads.load(Ordering::Relaxed), 0);
        for taken in 1..=20 {
            reader.read_u8().await.unwrap();
            for _ in 0..9 {
                yield_now().await;
            }
            let ahead = reads.load(Ordering::Relaxed) - taken;
            assert!(ahead <= 1, "{ahead} ahead");
        }
        assert!(log.take().is_empty());
        drop(reader);
        // In place it has ended by now.
        if place == Place::Worker {
            end.wait().await;
        }
        assert_eq!(log.take(), ["reader"]);
    });
}

#[test]
fn dropping_it_drops_the_plain_reader_and_what_that_waits_for() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (ended, end) = signal();
        let (started, wait) = signal();
        let mut reader = reader_in(place, {
            let log = log.clone();
            move || {
                let guard = log.on_drop("future");
                let step = move || {
                    started.give();
                    await_sync(async move {
                        let _guard = guard;
                        pending().await
                    })
                };
                let _outer = (log.on_drop("reader"), ended);
                Held(Steps([Box::new(step) as _].into()), _outer)
            }
        });
        struct Held<T>(Steps, #[allow(dead_code, reason = "it is dropped")] T);
        impl<T> Read for Held<T> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.0.read(buf)
            }
        }
        tokio::select! { biased;
            _ = reader.read_u8() => unreachable!(),
            () = wait.wait() => {}
        }
        drop(reader);
        end.wait().await;
        assert_eq!(log.take(), ["future", "reader"]);
    });
}

#[test]
fn a_read_that_is_dropped_loses_nothing() {
    in_each_place(|place| async move {
        let (near, mut far) = duplex(8);
        let mut reader = reader_in(place, || SyncIoBridge::new(near));
        for byte in b"soup" {
            tokio::select! { biased;
                _ = reader.read_u8() => unreachable!(),
                () = yield_now() => {}
            }
            far.write_u8(*byte).await.unwrap();
            assert_eq!(reader.read_u8().await.unwrap(), *byte);
        }
    });
}

#[test]
fn after_an_error_all_reads_fail() {
    in_each_place(|place| async move {
        let mut reader = reader_in(place, || {
            Steps::new([
                || Ok("so"),
                || Err(io::Error::new(ErrorKind::InvalidData, "cut")),
                || unreachable!(),
            ])
        });
        let mut bytes = Vec::new();
        let error = reader.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!(
            (&*bytes, error.kind()),
            (&b"so"[..], ErrorKind::InvalidData)
        );
        for _ in 0..2 {
            let error = reader.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.to_string(), "the reader has failed before");
        }
    });
}

#[test]
fn a_panic_reaches_who_reads_and_all_reads_fail_after_it() {
    in_each_place(|place| async move {
        for in_closure in [true, false] {
            let mut reader = reader_in(place, move || {
                if in_closure {
                    panic_any(7_u8);
                }
                Steps::new([|| Ok("s"), || panic_any(7_u8)])
            });
            let mut bytes = Vec::new();
            let read = std::panic::AssertUnwindSafe(reader.read_to_end(&mut bytes));
            let payload = read.catch_unwind().await.unwrap_err();
            assert_eq!(payload.downcast_ref(), Some(&7_u8));
            assert_eq!(bytes.len(), usize::from(!in_closure));
            for _ in 0..2 {
                reader.read(&mut [0]).await.unwrap_err();
            }
        }
    });
}

#[test]
fn plain_code_reads_what_plain_code_reads() {
    in_each_place(|place| async move {
        let inner = AsyncReader::new(|| SyncIoBridge::new(&b"soup"[..]));
        let mut outer = reader_in(place, || SyncIoBridge::new(inner));
        let mut text = String::new();
        outer.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "soup");
        // And within a run.
        let run = run_sync_local(move || {
            let reader = LocalAsyncReader::new(|| &b"rice"[..]);
            let mut text = String::new();
            SyncIoBridge::new(reader).read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(run.await, "rice");
    });
}

#[test]
fn an_unpolled_one_drops_its_closure_only() {
    in_each_place(|place| async move {
        let log = Log::default();
        let guard = log.on_drop("closure");
        let reader = reader_in(place, move || {
            drop(guard);
            unreachable!("it was never polled");
            #[allow(unreachable_code, reason = "it has a type")]
            io::empty()
        });
        drop(reader);
        assert_eq!(log.take(), ["closure"]);
    });
}

#[test]
fn polled_outside_tokio_or_on_another_thread_it_says_so() {
    let mut local = LocalAsyncReader::new(|| &b"x"[..]);
    let (message, ..) = panic_of(|| {
        let _ = futures::executor::block_on(local.read_u8());
    });
    assert!(message.contains("outside a tokio runtime"), "{message}");

    let runtime = support::current_thread();
    let mut reader = AsyncReader::new(|| {
        Steps::new([
            || Ok("x"),
            || {
                await_sync(pending::<()>());
                Ok("")
            },
        ])
    });
    assert_eq!(runtime.block_on(reader.read_u8()).unwrap(), b'x');
    thread::spawn(move || {
        let other = support::current_thread();
        let (message, ..) = panic_of(|| {
            let _ = other.block_on(reader.read_u8());
        });
        assert!(message.contains("another thread"), "{message}");
        assert!(other.block_on(reader.read_u8()).is_err());
    })
    .join()
    .unwrap();
}

#[test]
fn a_forgotten_one_leaves_its_reader_suspended() {
    support::current_thread().block_on(async {
        let dropped = Rc::new(Cell::new(false));
        let mut reader = LocalAsyncReader::new({
            let dropped = dropped.clone();
            move || {
                let guard = support::on_drop(move || dropped.set(true));
                let step = move || {
                    let _guard = guard;
                    await_sync(pending())
                };
                Steps([Box::new(step) as _].into())
            }
        });
        tokio::select! { biased; _ = reader.read_u8() => {}, () = yield_now() => {} }
        std::mem::forget(reader);
        yield_now().await;
        assert!(!dropped.get());
    });
}
