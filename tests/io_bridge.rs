//! `greenhack::io::SyncIoBridge`: plain I/O over tokio's.
#![cfg(all(feature = "io", panic = "unwind"))]

mod support;

use std::collections::VecDeque;
use std::error::Error;
use std::future::pending;
use std::io::{
    self, BufRead, BufReader, BufWriter, ErrorKind, IoSlice, IoSliceMut, Read, Seek, SeekFrom,
    Write,
};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use greenhack::io::{SyncIoBridge, is_cancelled};
use greenhack::{Cancelled, await_sync, builder, leaked_runs, no_suspend, run_sync_local, shield};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use support::{Log, in_each_place, panic_of, paused, signal};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncSeek, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;
use tokio::time::sleep;

assert_impl_all!(SyncIoBridge<DuplexStream>: Send, Sync, Unpin, Read, Write);
assert_not_impl_any!(SyncIoBridge<DuplexStream>: Clone, BufRead, Seek);
assert_impl_all!(SyncIoBridge<io::Cursor<Vec<u8>>>: Seek, BufRead);
assert_not_impl_any!(SyncIoBridge<Rc<u8>>: Send);

/// What a [`Source`] does when it is polled.
enum Step {
    Data(&'static [u8]),
    Wait,
    Fail(&'static str),
    Panic,
}
use Step::{Data, Fail, Panic, Wait};

/// A reader that does what it is told, and then ends.
struct Source {
    steps: VecDeque<Step>,
    polls: Arc<AtomicUsize>,
}

impl Source {
    fn new(steps: impl IntoIterator<Item = Step>) -> Source {
        Source {
            steps: steps.into_iter().collect(),
            polls: Arc::default(),
        }
    }
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        match self.steps.pop_front() {
            Some(Data(bytes)) => {
                let (now, later) = bytes.split_at(bytes.len().min(buf.remaining()));
                buf.put_slice(now);
                if !later.is_empty() {
                    self.steps.push_front(Data(later));
                }
                Poll::Ready(Ok(()))
            }
            Some(Wait) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Fail(message)) => Poll::Ready(Err(io::Error::other(message))),
            Some(Panic) => panic!("the source panics"),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[test]
fn two_runs_talk_over_a_narrow_pipe() {
    in_each_place(|place| async move {
        let (near, far) = duplex(3);
        let client = place.spawn(|| {
            let mut near = SyncIoBridge::new(near);
            near.write_all(b"a long question\n").unwrap();
            let mut answer = String::new();
            near.read_to_string(&mut answer).unwrap();
            answer
        });
        let server = place.spawn(|| {
            let mut far = BufReader::new(SyncIoBridge::new(far));
            let mut question = String::new();
            far.read_line(&mut question).unwrap();
            write!(far.get_mut(), "{}?", question.trim_end()).unwrap();
            far.get_mut().shutdown().unwrap();
        });
        assert_eq!(client.await.unwrap(), "a long question?");
        server.await.unwrap();
    });
}

#[test]
fn each_way_to_read_waits_for_all_that_it_needs() {
    in_each_place(|place| async move {
        let source = || {
            let steps = [
                Wait,
                Data(b"ab"),
                Wait,
                Wait,
                Data(b"c\nd"),
                Wait,
                Data(b"e"),
            ];
            SyncIoBridge::new(tokio::io::BufReader::new(Source::new(steps)))
        };
        let run = place.spawn(move || {
            let mut exact = [0; 4];
            let mut bridge = source();
            bridge.read_exact(&mut exact).unwrap();
            assert_eq!(&exact, b"abc\n");
            let error = bridge.read_exact(&mut exact).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);

            let mut bytes = b"> ".to_vec();
            assert_eq!(source().read_to_end(&mut bytes).unwrap(), 6);
            assert_eq!(bytes, b"> abc\nde");

            let mut text = "> ".to_owned();
            assert_eq!(source().read_to_string(&mut text).unwrap(), 6);
            assert_eq!(text, "> abc\nde");

            let mut bytes = b"> ".to_vec();
            assert_eq!(source().read_until(b'\n', &mut bytes).unwrap(), 4);
            assert_eq!(bytes, b"> abc\n");

            let lines: Vec<_> = source().lines().map(Result::unwrap).collect();
            assert_eq!(lines, ["abc", "de"]);

            let mut bridge = source();
            assert_eq!(bridge.fill_buf().unwrap(), b"ab");
            bridge.consume(1);
            assert_eq!(bridge.fill_buf().unwrap(), b"b");
            assert_eq!(bridge.read(&mut []).unwrap(), 0);
        });
        run.await.unwrap();
    });
}

#[test]
fn a_read_into_nothing_waits_for_nothing() {
    in_each_place(|place| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        let read = place.spawn(|| {
            let mut near = SyncIoBridge::new(near.unwrap());
            let nothing = no_suspend(|| near.read(&mut []));
            (
                nothing.unwrap(),
                no_suspend(|| near.read_exact(&mut [])).is_ok(),
            )
        });
        assert_eq!(read.await.unwrap(), (0, true));
        drop(far);
    });
}

#[test]
fn what_is_not_utf8_is_an_error_and_leaves_the_string() {
    let mut text = "> ".to_owned();
    let error = SyncIoBridge::new(&b"\xff"[..]).read_to_string(&mut text);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidData);
    assert_eq!(text, "> ");
    let mut bridge = SyncIoBridge::new(Source::new([Data(b"ab"), Fail("cut")]));
    let error = bridge.read_to_string(&mut text).unwrap_err();
    assert_eq!((error.to_string(), &*text), ("cut".to_owned(), "> ab"));
}

#[test]
fn a_vectored_read_fills_what_can_be_filled_without_a_wait() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let (mut a, mut b, mut c) = ([0; 2], [0; 3], [0; 4]);
            let steps = [
                Wait,
                Data(b"0123"),
                Data(b"45"),
                Data(b"678"),
                Wait,
                Data(b"9"),
            ];
            let mut bridge = SyncIoBridge::new(Source::new(steps));
            let mut read = |bridge: &mut SyncIoBridge<Source>| {
                let mut bufs = [
                    IoSliceMut::new(&mut []),
                    IoSliceMut::new(&mut a),
                    IoSliceMut::new(&mut b),
                    IoSliceMut::new(&mut c),
                ];
                bridge.read_vectored(&mut bufs).unwrap()
            };
            // 01 and 23; the short one ends it.
            assert_eq!(read(&mut bridge), 4);
            assert_eq!(bridge.as_ref().polls.load(Ordering::Relaxed), 3);
            // 45, 678, and then it would wait.
            assert_eq!(read(&mut bridge), 5);
            assert_eq!(read(&mut bridge), 1);
            assert_eq!(read(&mut bridge), 0);
            assert_eq!((&a, &b), (b"95", b"678"));
            assert_eq!(bridge.read_vectored(&mut []).unwrap(), 0);
        });
        run.await.unwrap();
    });
}

#[test]
fn an_error_behind_the_bytes_of_a_vectored_read_comes_next() {
    let (mut a, mut b) = ([0; 1], [0; 1]);
    let mut read = |bridge: &mut SyncIoBridge<Source>| {
        bridge.read_vectored(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)])
    };
    let mut bridge = SyncIoBridge::new(Source::new([Data(b"0"), Fail("cut"), Data(b"1")]));
    assert_eq!(read(&mut bridge).unwrap(), 1);
    let error = bridge.read(&mut [0]).unwrap_err();
    assert_eq!(error.to_string(), "cut");
    assert_eq!(bridge.read(&mut [0]).unwrap(), 1);
    let mut bridge = SyncIoBridge::new(Source::new([Fail("cut")]));
    assert_eq!(read(&mut bridge).unwrap_err().to_string(), "cut");
}

/// Counts its vectored writes.
#[derive(Default)]
struct Sink {
    written: Vec<u8>,
    vectored: usize,
}

impl AsyncWrite for Sink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.vectored += 1;
        for buf in bufs {
            self.written.extend_from_slice(buf);
        }
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_vectored_write_passes_through_as_one() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let mut bridge = SyncIoBridge::new(Sink::default());
            assert!(bridge.is_write_vectored());
            let bufs = [IoSlice::new(b"so"), IoSlice::new(b""), IoSlice::new(b"up")];
            assert_eq!(bridge.write_vectored(&bufs).unwrap(), 4);
            assert_eq!(bridge.as_mut().vectored, 1);
            assert_eq!(bridge.into_inner().written, b"soup");
            let (near, _far) = duplex(1);
            assert!(SyncIoBridge::new(near).is_write_vectored());
        });
        run.await.unwrap();
    });
}

#[test]
fn a_file_is_read_written_and_sought_in() {
    in_each_place(|place| async move {
        let path = format!("{}/sought-{place:?}", env!("CARGO_TARGET_TMPDIR"));
        let run = place.spawn(move || {
            let file = await_sync(
                tokio::fs::File::options()
                    .create(true)
                    .truncate(true)
                    .read(true)
                    .write(true)
                    .open(path),
            );
            let mut file = SyncIoBridge::new(file.unwrap());
            file.write_all(b"0123456789").unwrap();
            assert_eq!(file.stream_position().unwrap(), 10);
            assert_eq!(file.seek(SeekFrom::End(-3)).unwrap(), 7);
            file.write_all(b"x").unwrap();
            file.rewind().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "0123456x89");
            let error = file.seek(SeekFrom::Current(-11)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        });
        run.await.unwrap();
    });
}

#[test]
fn a_cancelled_read_unwinds_and_the_stream_is_dropped_first_to_last() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let (near, mut far) = duplex(8);
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _outer = log.on_drop("outer");
                let mut near = SyncIoBridge::new(near);
                let _inner = log.on_drop("inner");
                near.write_all(b"hello").unwrap();
                started.give();
                let _ = near.read(&mut [0]);
                log.add("unreachable");
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(log.take(), ["inner", "outer"]);
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
    });
}

#[test]
fn a_cancelled_read_is_an_error_by_choice_and_no_loop_of_std_tries_again() {
    in_each_place(|place| async move {
        let (started, wait) = signal();
        let (ended, end) = signal();
        let errors = Arc::new(Mutex::new(Vec::new()));
        let (near, _far) = duplex(8);
        let run = place.spawn({
            let errors = errors.clone();
            move || {
                let _ended = ended;
                let mut near = SyncIoBridge::new(near).cancel_as_error();
                let add = |error| errors.lock().unwrap().push(error);
                started.give();
                add(near.read(&mut [0]).unwrap_err());
                add(near.read_to_end(&mut Vec::new()).unwrap_err());
                add(near.read_to_string(&mut String::new()).unwrap_err());
                add(near.read_exact(&mut [0]).unwrap_err());
                add(io::copy(&mut near, &mut io::sink()).unwrap_err());
                add(near.write(&[0]).unwrap_err());
                add(near.write_all(&[0; 100]).unwrap_err());
                add(near.flush().unwrap_err());
                add(near.shutdown().unwrap_err());
                let mut near = BufReader::new(near);
                add(near.read_line(&mut String::new()).unwrap_err());
                add(near.read_until(0, &mut Vec::new()).unwrap_err());
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        let errors = errors.lock().unwrap();
        assert_eq!(errors.len(), 11);
        for error in &*errors {
            assert_eq!(error.kind(), ErrorKind::Other);
            assert!(error.source().unwrap().is::<Cancelled>());
            assert!(is_cancelled(error));
        }
        assert!(!is_cancelled(&io::Error::other("another")));
    });
}

/// Has two bytes to read and no more, takes no bytes, and stays where it is.
struct Stalled {
    unread: &'static [u8],
    /// Given when a call begins to wait for ever.
    waits: Option<support::Signal>,
}

impl Stalled {
    fn stall<T>(&mut self) -> Poll<io::Result<T>> {
        self.waits.take();
        Poll::Pending
    }
}

impl AsyncRead for Stalled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return self.stall();
        }
        buf.put_slice(std::mem::take(&mut self.unread));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stalled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stall()
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stall()
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stall()
    }
}

impl AsyncSeek for Stalled {
    fn start_seek(self: Pin<&mut Self>, _: SeekFrom) -> io::Result<()> {
        Ok(())
    }

    fn poll_complete(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        self.stall()
    }
}

/// What a call was to read into.
#[derive(Debug, PartialEq)]
struct Buffers {
    bytes: Vec<u8>,
    text: String,
}

impl Buffers {
    fn new(bytes: &str, text: &str) -> Buffers {
        Buffers {
            bytes: bytes.into(),
            text: text.into(),
        }
    }
}

#[test]
fn each_call_that_waits_is_cancelled_and_keeps_what_it_had_read() {
    type Bridge = SyncIoBridge<tokio::io::BufReader<Stalled>>;
    type Call = fn(&mut Bridge, &mut Buffers) -> io::Result<()>;
    // Each with what its buffers hold after an error.
    let calls: [(&str, Call, [&str; 2]); 9] = [
        (
            "fill_buf",
            |bridge, _| {
                bridge.consume(2);
                bridge.fill_buf().map(drop)
            },
            ["> ", "> "],
        ),
        (
            "read_until",
            |bridge, to| bridge.read_until(b'\n', &mut to.bytes).map(drop),
            ["> so", "> "],
        ),
        (
            "read_line",
            |bridge, to| bridge.read_line(&mut to.text).map(drop),
            ["> ", "> so"],
        ),
        (
            "read_to_end",
            |bridge, to| bridge.read_to_end(&mut to.bytes).map(drop),
            ["> so", "> "],
        ),
        (
            "read_to_string",
            |bridge, to| bridge.read_to_string(&mut to.text).map(drop),
            ["> ", "> so"],
        ),
        (
            "read_vectored",
            |bridge, to| {
                bridge.consume(2);
                let (one, two) = to.bytes.split_at_mut(1);
                let mut bufs = [IoSliceMut::new(one), IoSliceMut::new(two)];
                bridge.read_vectored(&mut bufs).map(drop)
            },
            ["> ", "> "],
        ),
        (
            "write_vectored",
            |bridge, _| {
                let bufs = [IoSlice::new(b"no"), IoSlice::new(b"ne")];
                bridge.write_vectored(&bufs).map(drop)
            },
            ["> ", "> "],
        ),
        ("flush", |bridge, _| bridge.flush(), ["> ", "> "]),
        (
            "seek",
            |bridge, _| bridge.seek(SeekFrom::Start(7)).map(drop),
            ["> ", "> "],
        ),
    ];
    in_each_place(|place| async move {
        for (name, call, [bytes, text]) in calls {
            for as_error in [false, true] {
                let (waits, wait) = signal();
                let (ended, end) = signal();
                let seen = Arc::new(Mutex::new(None));
                let run = place.spawn({
                    let seen = seen.clone();
                    move || {
                        let _ended = ended;
                        let source = Stalled {
                            unread: b"so",
                            waits: Some(waits),
                        };
                        let mut bridge = SyncIoBridge::new(tokio::io::BufReader::new(source));
                        if as_error {
                            bridge = bridge.cancel_as_error();
                        }
                        assert_eq!(bridge.fill_buf().unwrap(), b"so");
                        let mut to = Buffers::new("> ", "> ");
                        let outcome = catch_unwind(AssertUnwindSafe(|| call(&mut bridge, &mut to)));
                        let how = match &outcome {
                            Ok(Err(error)) if is_cancelled(error) => "an error",
                            Err(payload) if payload.is::<Cancelled>() => "an unwind",
                            _ => "neither",
                        };
                        *seen.lock().unwrap() = Some((how, to));
                        outcome.unwrap_or_else(|payload| resume_unwind(payload))
                    }
                });
                wait.wait().await;
                run.abort();
                end.wait().await;
                let (how, to) = seen.lock().unwrap().take().unwrap();
                if as_error {
                    let kept = Buffers::new(bytes, text);
                    assert_eq!((how, to), ("an error", kept), "{name}");
                } else {
                    // What it had read may be there or not.
                    assert_eq!(how, "an unwind", "{name}");
                    assert!(to.bytes.starts_with(b"> "), "{name}");
                    assert!(to.text.starts_with("> "), "{name}");
                }
            }
        }
    });
}

#[test]
fn a_buffer_that_a_cancellation_drops_is_written_to_a_slow_peer() {
    in_each_place(|place| async move {
        let (started, wait) = signal();
        let (near, mut far) = duplex(4);
        let run = place.spawn(move || {
            let mut near = BufWriter::new(SyncIoBridge::new(near));
            near.write_all(b"a long answer").unwrap();
            started.give();
            await_sync(pending::<()>());
        });
        wait.wait().await;
        run.abort();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "a long answer");
    });
}

#[test]
fn an_encoder_that_a_cancellation_drops_writes_its_trailer() {
    in_each_place(|place| async move {
        let (started, wait) = signal();
        // Room for the header of the format, but not for more.
        let (near, mut far) = duplex(12);
        let run = place.spawn(move || {
            let mut near = GzEncoder::new(SyncIoBridge::new(near), Default::default());
            near.write_all(b"the first half").unwrap();
            started.give();
            await_sync(pending::<()>());
        });
        wait.wait().await;
        run.abort();
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes).await.unwrap();
        let mut text = String::new();
        GzDecoder::new(&*bytes).read_to_string(&mut text).unwrap();
        assert_eq!(text, "the first half");
    });
}

#[test]
fn what_a_peer_does_not_take_in_time_is_given_up_and_all_unwinds() {
    let runtime = paused();
    runtime.block_on(async {
        for as_error in [false, true] {
            let log = Log::default();
            let leaked = leaked_runs();
            let (near, _far) = duplex(4);
            let run = builder().cleanup_budget(Duration::from_secs(5)).run_sync({
                let log = log.clone();
                move || {
                    let _outer = log.on_drop("outer");
                    let mut bridge = SyncIoBridge::new(near);
                    if as_error {
                        bridge = bridge.cancel_as_error();
                    }
                    let mut near = BufWriter::new(bridge);
                    near.write_all(b"a long answer").unwrap();
                    let _inner = log.on_drop("inner");
                    await_sync(pending::<()>());
                }
            });
            tokio::select! { biased; () = run => {}, () = yield_now() => {} }
            assert_eq!(log.take(), ["inner"]);
            sleep(Duration::from_secs(4)).await;
            assert!(log.take().is_empty());
            sleep(Duration::from_secs(2)).await;
            assert_eq!(log.take(), ["outer"]);
            assert_eq!(leaked_runs(), leaked);
        }
    });
}

#[test]
fn after_a_cancellation_as_an_error_a_buffer_is_lost() {
    in_each_place(|place| async move {
        let (started, wait) = signal();
        let (near, mut far) = duplex(4);
        let (source, _nothing) = duplex(4);
        let run = place.spawn(move || -> io::Result<()> {
            let mut near = BufWriter::new(SyncIoBridge::new(near).cancel_as_error());
            near.write_all(b"a long answer")?;
            started.give();
            SyncIoBridge::new(source)
                .cancel_as_error()
                .read_exact(&mut [0])
        });
        wait.wait().await;
        run.abort();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "");
    });
}

#[test]
fn in_a_shield_a_call_goes_on_and_fails_when_the_budget_is_over() {
    let runtime = paused();
    runtime.block_on(async {
        let log = Log::default();
        let (near, mut far) = duplex(4);
        let run = builder().cleanup_budget(Duration::from_secs(5)).run_sync({
            let log = log.clone();
            move || {
                shield(|| {
                    let mut near = SyncIoBridge::new(near).cancel_as_error();
                    near.read_exact(&mut [0]).unwrap();
                    log.add("read");
                    assert!(is_cancelled(&near.read_exact(&mut [0]).unwrap_err()));
                    log.add("failed");
                });
                log.add("unreachable");
            }
        });
        tokio::select! { biased; () = run => {}, () = yield_now() => {} }
        far.write_all(b"a").await.unwrap();
        sleep(Duration::from_secs(4)).await;
        assert_eq!(log.take(), ["read"]);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(log.take(), ["failed"]);
    });
}

#[test]
fn a_panic_of_the_source_resumes_at_the_call_and_can_be_caught() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let mut bridge = SyncIoBridge::new(Source::new([Wait, Panic, Data(b"on")]));
            catch_unwind(AssertUnwindSafe(|| bridge.read(&mut [0; 2]))).unwrap_err();
            let mut text = String::new();
            bridge.read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(run.await.unwrap(), "on");
    });
}

#[test]
fn a_run_nested_in_an_awaited_future_reads_too() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            await_sync(run_sync_local(|| {
                let mut byte = [0];
                SyncIoBridge::new(Source::new([Wait, Data(b"x")]))
                    .read_exact(&mut byte)
                    .unwrap();
                byte
            }))
        });
        assert_eq!(run.await.unwrap(), *b"x");
    });
}

#[test]
fn on_a_plain_thread_it_blocks() {
    let (near, far) = duplex(2);
    let writer = thread::spawn(|| SyncIoBridge::new(near).write_all(b"soup").unwrap());
    let mut text = String::new();
    SyncIoBridge::new(far).read_to_string(&mut text).unwrap();
    assert_eq!(text, "soup");
    writer.join().unwrap();
}

#[test]
fn in_async_code_each_call_panics_at_its_line() {
    support::current_thread().block_on(async {
        type Call = fn(&mut SyncIoBridge<io::Cursor<Vec<u8>>>) -> u32;
        let calls: [Call; 13] = [
            |b| (b.read(&mut [0]).is_ok(), line!()).1,
            |b| (b.read_vectored(&mut []).is_ok(), line!()).1,
            |b| (b.read_to_end(&mut Vec::new()).is_ok(), line!()).1,
            |b| (b.read_exact(&mut [0]).is_ok(), line!()).1,
            |b| (b.fill_buf().is_ok(), line!()).1,
            |b| (b.read_until(0, &mut Vec::new()).is_ok(), line!()).1,
            |b| (b.write(&[0]).is_ok(), line!()).1,
            |b| (b.write_vectored(&[]).is_ok(), line!()).1,
            |b| (b.write_all(&[0]).is_ok(), line!()).1,
            |b| (b.flush().is_ok(), line!()).1,
            |b| (b.shutdown().is_ok(), line!()).1,
            |b| (b.seek(SeekFrom::Start(0)).is_ok(), line!()).1,
            |b| (b.read_to_string(&mut String::new()).is_ok(), line!()).1,
        ];
        // The lines of the calls are learnt where they don't panic.
        let lines = thread::spawn(move || {
            calls.map(|call| call(&mut SyncIoBridge::new(io::Cursor::new(Vec::new()))))
        })
        .join()
        .unwrap();
        for (call, line) in calls.into_iter().zip(lines) {
            for as_error in [false, true] {
                let mut bridge = SyncIoBridge::new(io::Cursor::new(Vec::new()));
                if as_error {
                    bridge = bridge.cancel_as_error();
                }
                let (message, at, file) = panic_of(|| {
                    call(&mut bridge);
                });
                assert!(message.contains("async code"), "{message}");
                assert_eq!((at, &*file), (line, file!()));
            }
        }
    });
}

#[test]
fn a_buffer_that_a_panic_of_async_code_drops_is_given_up() {
    support::current_thread().block_on(async {
        let (near, mut far) = duplex(4);
        let task = tokio::spawn(async {
            let mut near = BufWriter::new(SyncIoBridge::new(near));
            near.write_all(b"soup").unwrap();
            yield_now().await;
            panic!("in async code");
        });
        assert!(task.await.unwrap_err().is_panic());
        // There was room for it, but nothing in async code can wait.
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "");
    });
}

#[test]
fn a_forgotten_run_leaves_its_peer_waiting() {
    support::current_thread().block_on(async {
        let (near, mut far) = duplex(4);
        let mut run = Box::pin(run_sync_local(|| {
            SyncIoBridge::new(near).read_exact(&mut [0]).unwrap();
        }));
        tokio::select! { biased; () = &mut run => {}, () = yield_now() => {} }
        std::mem::forget(run);
        far.write_all(b"x").await.unwrap();
        let waits = tokio::select! { biased; _ = far.read_u8() => false, () = yield_now() => true };
        assert!(waits);
    });
}
