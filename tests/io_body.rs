//! `greenhack::io::body`: what plain code writes, as a stream.
#![cfg(all(feature = "io", panic = "unwind"))]

mod support;

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::io::{self, BufWriter, ErrorKind, IoSlice, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures::{Stream, StreamExt, TryStreamExt};
use greenhack::io::{
    BodyStream, BodyWriter, LocalBodyStream, StreamReader, body, body_local, is_cancelled,
};
use greenhack::{await_sync, leaked_runs, run_sync_local};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use support::{Fixture, Log, PLACES, Place, on_drop, panic_of, paused, signal};
use tokio::task::{coop, yield_now};

assert_impl_all!(BodyStream: Send, Unpin);
assert_impl_all!(BodyWriter: Send, Sync, Unpin, Write);
assert_impl_all!(LocalBodyStream: Unpin);
assert_not_impl_any!(LocalBodyStream: Send, Sync);
assert_not_impl_any!(BodyStream: Clone);

type AnyBody = Pin<Box<dyn Stream<Item = io::Result<Bytes>>>>;

/// A body whose plain code runs in `place`.
fn body_in<F>(place: Place, f: F) -> AnyBody
where
    F: FnOnce(&mut BodyWriter) -> io::Result<()> + Send + 'static,
{
    match place {
        Place::Local => Box::pin(body_local(f)),
        Place::InPlace | Place::Worker => Box::pin(body(f)),
    }
}

/// Runs `test` in a runtime for each place, as no other test does meanwhile.
fn in_each_place<F: Future<Output = ()>>(test: impl Fn(Place) -> F) {
    for place in PLACES {
        eprintln!("-- {place:?}");
        Fixture::new(place).block_on(test(place));
    }
}

/// The chunks and the error at the end.
async fn all(mut body: AnyBody) -> (Vec<Bytes>, Option<io::Error>) {
    let mut chunks = Vec::new();
    let error = loop {
        match body.next().await {
            Some(Ok(chunk)) => chunks.push(chunk),
            Some(Err(error)) => break Some(error),
            None => break None,
        }
    };
    // The end stays.
    assert!(body.next().await.is_none());
    (chunks, error)
}

#[test]
fn what_is_written_comes_in_chunks() {
    in_each_place(|place| async move {
        let body = body_in(place, |out| {
            out.flush()?;
            out.set_chunk_size(4);
            assert_eq!(out.write(b"012345")?, 4);
            out.write_all(b"45")?;
            assert_eq!(
                out.write_vectored(&[IoSlice::new(b"6"), IoSlice::new(b"789")])?,
                2
            );
            out.write_all(b"8")?;
            out.flush()?;
            await_sync(yield_now());
            out.set_chunk_size(0);
            out.write_all(b"ab")
        });
        let (chunks, error) = all(body).await;
        assert_eq!(chunks, ["0123", "4567", "8", "a", "b"]);
        assert!(error.is_none());
    });
}

#[test]
fn a_chunk_may_be_as_large_as_all_that_is_written() {
    in_each_place(|place| async move {
        let body = body_in(place, |out| {
            out.set_chunk_size(usize::MAX);
            (0..3).try_for_each(|_| out.write_all(&[7; 1024 * 1024]))?;
            out.flush()?;
            out.set_chunk_size(usize::MAX / 2);
            out.write_all(b"rest")
        });
        let (chunks, error) = all(body).await;
        let lengths: Vec<_> = chunks.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [3 * 1024 * 1024, 4]);
        assert!(error.is_none());
    });
}

#[test]
fn a_task_that_has_had_its_share_gets_the_last_chunk() {
    in_each_place(|place| async move {
        // At each point of tokio's budget, which is 128.
        for spent in 0..=128 {
            yield_now().await;
            let body = body_in(place, |out| out.write_all(b"soup"));
            poll_fn(|cx| {
                for _ in 0..spent {
                    if let Poll::Ready(unit) = coop::poll_proceed(cx) {
                        unit.made_progress();
                    }
                }
                Poll::Ready(())
            })
            .await;
            let (chunks, error) = all(body).await;
            assert_eq!(chunks, ["soup"], "when {spent} had been spent");
            assert!(error.is_none());
        }
    });
}

#[test]
fn nothing_written_is_an_empty_body() {
    in_each_place(|place| async move {
        let (chunks, error) = all(body_in(place, |_| Ok(()))).await;
        assert!(chunks.is_empty() && error.is_none());
    });
}

#[test]
fn axum_takes_it_as_a_body() {
    in_each_place(|place| async move {
        if place == Place::Local {
            return;
        }
        let body = Body::from_stream(body(|out| {
            let mut out = GzEncoder::new(out, Default::default());
            for number in 0..100_000 {
                writeln!(out, "{number}")?;
            }
            out.finish().map(drop)
        }));
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        let mut text = String::new();
        GzDecoder::new(&*bytes).read_to_string(&mut text).unwrap();
        assert!(text.lines().map(str::parse).eq((0..100_000).map(Ok)));
    });
}

#[test]
fn it_does_not_run_before_it_is_polled() {
    in_each_place(|place| async move {
        let log = Log::default();
        let body = body_in(place, {
            let guard = log.on_drop("closure");
            let log = log.clone();
            move |_| {
                let _guard = guard;
                log.add("runs");
                Ok(())
            }
        });
        yield_now().await;
        assert!(log.take().is_empty());
        drop(body);
        assert_eq!(log.take(), ["closure"]);
    });
}

#[test]
fn a_slow_reader_suspends_the_writer() {
    in_each_place(|place| async move {
        let written = Arc::new(AtomicUsize::new(0));
        let mut body = body_in(place, {
            let written = written.clone();
            move |out| {
                out.set_chunk_size(10);
                for _ in 0..1000 {
                    out.write_all(&[0])?;
                    written.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        for taken in 1..=97 {
            assert_eq!(body.next().await.unwrap().unwrap().len(), 10);
            // One chunk waits in the channel, one in the writer.
            let ahead = written.load(Ordering::Relaxed) - 10 * taken;
            assert!(ahead <= 20, "{ahead} bytes ahead");
            if place != Place::Worker {
                // It runs only when it is polled with nothing to give.
                let before = written.load(Ordering::Relaxed);
                yield_now().await;
                assert_eq!(written.load(Ordering::Relaxed), before);
            }
        }
        let rest: Vec<_> = body.try_collect().await.unwrap();
        assert_eq!((rest.len(), written.load(Ordering::Relaxed)), (3, 1000));
    });
}

#[test]
fn an_error_comes_after_the_chunks_and_instead_of_the_end() {
    in_each_place(|place| async move {
        let body = body_in(place, |out| {
            out.write_all(b"soup")?;
            out.flush()?;
            out.write_all(b"never a chunk")?;
            Err(io::Error::new(ErrorKind::NotFound, "no rice"))
        });
        let (chunks, error) = all(body).await;
        assert_eq!(chunks, ["soup"]);
        let error = error.unwrap();
        assert_eq!(
            (error.kind(), &*error.to_string()),
            (ErrorKind::NotFound, "no rice")
        );
    });
}

#[test]
fn a_panic_ends_it_with_an_error_that_has_the_message() {
    in_each_place(|place| async move {
        let panics: [(fn(), &str); 3] = [
            (|| panic!("no rice"), "no rice"),
            (|| panic!("no {}", "rice"), "no rice"),
            (|| panic_any(7), "no message"),
        ];
        for (panic, message) in panics {
            for suspend in [false, true] {
                let body = body_in(place, move |out| {
                    // The encoder writes its trailer when the panic drops it.
                    let mut out = GzEncoder::new(out, Default::default());
                    out.write_all(b"soup")?;
                    out.flush()?;
                    out.get_mut().flush()?;
                    if suspend {
                        await_sync(yield_now());
                    }
                    panic();
                    Ok(())
                });
                let (chunks, error) = all(body).await;
                assert!(!chunks.is_empty());
                let error = error.unwrap();
                assert_eq!(
                    error.to_string(),
                    format!("the plain code that writes the body panicked: {message}")
                );
            }
        }
    });
}

#[test]
fn a_panic_whose_payload_panics_is_an_error_too() {
    in_each_place(|place| async move {
        let body = body_in(place, |_| panic_any(on_drop(|| panic!("in the payload"))));
        let (chunks, error) = all(body).await;
        assert!(chunks.is_empty());
        assert!(error.unwrap().to_string().ends_with("panicked: no message"));
    });
}

#[test]
fn a_panic_while_the_reader_is_slow_does_not_abort() {
    in_each_place(|place| async move {
        let body = body_in(place, |out| {
            out.set_chunk_size(1);
            let mut out = BufWriter::new(out);
            out.write_all(b"written by a destructor")?;
            panic!("no rice");
        });
        let (chunks, error) = all(body).await;
        assert_eq!(chunks.concat(), b"written by a destructor"[..22]);
        assert!(error.is_some());
    });
}

#[test]
fn dropping_the_stream_ends_the_writer() {
    in_each_place(|place| async move {
        for waits_to_write in [true, false] {
            let log = Log::default();
            let (ended, end) = signal();
            let mut body = body_in(place, {
                let log = log.clone();
                move |out| {
                    let _ended = ended;
                    let _outer = log.on_drop("outer");
                    out.write_all(b"soup")?;
                    out.flush()?;
                    loop {
                        if !waits_to_write {
                            break;
                        }
                        out.write_all(b"rice")?;
                        out.flush()?;
                    }
                    await_sync(pending::<()>());
                    log.add("unreachable");
                    Ok(())
                }
            });
            assert_eq!(body.next().await.unwrap().unwrap(), "soup");
            drop(body);
            // In place it has ended by now.
            if place == Place::Worker {
                end.wait().await;
            }
            assert_eq!(log.take(), ["outer"]);
        }
    });
}

#[test]
fn what_is_written_when_the_stream_is_dropped_fails_at_once() {
    in_each_place(|place| async move {
        let (ended, end) = signal();
        let kinds = Arc::new(Mutex::new(Vec::new()));
        let mut body = body_in(place, {
            let kinds = kinds.clone();
            move |out| {
                let _ended = ended;
                out.set_chunk_size(1);
                out.write_all(b"so")?;
                // Gone before the reader of the second chunk is.
                let out = Rc::new(std::cell::RefCell::new(out));
                let _guard = support::on_drop({
                    let out = out.clone();
                    move || {
                        let error = out.borrow_mut().write_all(b"xyz").unwrap_err();
                        kinds.lock().unwrap().push(error.kind());
                    }
                });
                await_sync(pending::<()>());
                Ok(())
            }
        });
        assert_eq!(body.next().await.unwrap().unwrap(), "s");
        drop(body);
        if place == Place::Worker {
            end.wait().await;
        }
        assert_eq!(*kinds.lock().unwrap(), [ErrorKind::BrokenPipe]);
    });
}

#[test]
fn an_encoder_over_it_is_dropped_at_once_with_the_stream() {
    let runtime = paused();
    runtime.block_on(async {
        let leaked = leaked_runs();
        let log = Log::default();
        let mut body = body({
            let log = log.clone();
            move |out| {
                let _outer = log.on_drop("outer");
                let mut out = GzEncoder::new(out, Default::default());
                loop {
                    // It doesn't compress well, so it fills the chunks.
                    let noise: Vec<u8> = (0..9999_u32)
                        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
                        .collect();
                    out.write_all(&noise)?;
                }
            }
        });
        body.next().await.unwrap().unwrap();
        drop(body);
        assert_eq!(log.take(), ["outer"]);
        // Nor does a reaper go on with anything.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(leaked_runs(), leaked);
    });
}

#[test]
fn a_cancelled_write_is_an_error_by_choice() {
    in_each_place(|place| async move {
        let (ended, end) = signal();
        let seen = Arc::new(Mutex::new(None));
        let mut body = body_in(place, {
            let seen = seen.clone();
            move |out| {
                let _ended = ended;
                out.cancel_as_error().set_chunk_size(1);
                let error = out.write_all(&[0; 9]).unwrap_err();
                let told = is_cancelled(&error) || error.kind() == ErrorKind::BrokenPipe;
                *seen.lock().unwrap() = Some(told);
                Err(error)
            }
        });
        body.next().await.unwrap().unwrap();
        drop(body);
        end.wait().await;
        assert_eq!(*seen.lock().unwrap(), Some(true));
    });
}

#[test]
fn a_part_that_panics_and_is_caught_leaves_the_body_whole() {
    in_each_place(|place| async move {
        let body = body_in(place, |out| {
            out.set_chunk_size(1);
            let part = catch_unwind(AssertUnwindSafe(|| {
                let mut part = BufWriter::new(&mut *out);
                part.write_all(b"part, ").unwrap();
                // `BufWriter` writes it in the unwind, which waits here.
                panic!("in the part");
            }));
            assert!(part.is_err());
            out.write_all(b"end")
        });
        let (chunks, error) = all(body).await;
        assert_eq!(chunks.concat(), b"part, end");
        assert!(error.is_none());
    });
}

#[test]
fn plain_code_reads_one_body_and_makes_another() {
    in_each_place(|place| async move {
        // Each is polled by the one after it.
        let first = body(|out| out.write_all(&[1; 20_000]));
        let second = body(move |out| {
            let mut reader = StreamReader::new(first);
            io::copy(&mut reader, out).map(drop)
        });
        let third = body_in(place, move |out| {
            io::copy(&mut StreamReader::new(second), out).map(drop)
        });
        let (chunks, error) = all(third).await;
        assert!(error.is_none());
        assert_eq!(chunks.concat(), [1; 20_000]);
    });
}

#[test]
fn a_writer_in_a_nested_run_or_another_thread_waits_too() {
    in_each_place(|place| async move {
        let body = body_in(place, |out| {
            out.set_chunk_size(1);
            await_sync(run_sync_local(|| await_sync(yield_now())));
            std::thread::scope(|scope| {
                // One chunk has room, so the thread need not wait for us.
                scope.spawn(|| out.write_all(b"ab").unwrap());
            });
            out.write_all(b"c")
        });
        let (chunks, error) = all(body).await;
        assert_eq!(chunks, ["a", "b", "c"]);
        assert!(error.is_none());
    });
}

#[test]
fn a_write_in_async_code_panics_at_its_line() {
    support::current_thread().block_on(async {
        let line = Rc::new(Cell::new((String::new(), 0, String::new())));
        let body = body_local({
            let line = line.clone();
            move |out| {
                out.write_all(b"soup")?;
                await_sync(async {
                    line.set(panic_of(|| out.flush().unwrap()));
                });
                Ok(())
            }
        });
        let here = line!() - 5;
        let chunks: Vec<_> = body.try_collect().await.unwrap();
        assert_eq!(chunks, ["soup"]);
        let (message, at, file) = line.take();
        assert!(message.contains("polled by `await_sync`"), "{message}");
        assert_eq!((at, &*file), (here, file!()));
    });
}

#[test]
fn polled_outside_tokio_it_says_so_and_never_ends_well() {
    let mut body = body_local(|out| out.write_all(b"soup"));
    let (message, ..) = panic_of(|| {
        let _ = futures::executor::block_on(body.next());
    });
    assert!(message.contains("outside a tokio runtime"), "{message}");
    support::current_thread().block_on(async {
        assert!(body.next().await.unwrap().is_err());
        assert!(body.next().await.is_none());
    });
}

#[test]
fn a_forgotten_stream_leaves_the_writer_suspended() {
    in_each_place(|place| async move {
        let log = Log::default();
        let mut body = body_in(place, {
            let log = log.clone();
            move |out| {
                let _outer = log.on_drop("outer");
                out.set_chunk_size(1);
                out.write_all(b"soup")
            }
        });
        let chunk = poll_fn(|cx| match body.poll_next_unpin(cx) {
            Poll::Ready(chunk) => Poll::Ready(chunk.unwrap().unwrap()),
            Poll::Pending => Poll::Pending,
        });
        assert_eq!(chunk.await, "s");
        std::mem::forget(body);
        for _ in 0..9 {
            yield_now().await;
        }
        assert!(log.take().is_empty());
    });
}

#[test]
fn a_stream_dropped_on_another_thread_unwinds_on_its_own() {
    let runtime = support::current_thread();
    let log = Log::default();
    let (ended, end) = signal();
    let thread = std::thread::current().id();
    runtime.block_on(async {
        let mut body = body({
            let log = log.clone();
            move |out| {
                let _ended = ended;
                let _guard = support::on_drop(|| {
                    assert_eq!(std::thread::current().id(), thread);
                    log.add("unwound");
                });
                out.set_chunk_size(1);
                out.write_all(b"soup")
            }
        });
        assert_eq!(body.next().await.unwrap().unwrap(), "s");
        std::thread::spawn(move || drop(body)).join().unwrap();
        end.wait().await;
    });
    assert_eq!(log.take(), ["unwound"]);
}
