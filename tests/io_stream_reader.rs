//! `greenhack::io::StreamReader`: a request body as `Read` and `BufRead`.
#![cfg(all(feature = "io", panic = "unwind"))]

mod support;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io::{self, BufRead, Cursor, ErrorKind, IoSliceMut, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use greenhack::io::{StreamReader, is_cancelled};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use support::{Log, in_each_place, panic_of, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

type Received = ReceiverStream<io::Result<Bytes>>;

assert_impl_all!(StreamReader<Received, Bytes>: Send, Unpin, BufRead);
assert_not_impl_any!(StreamReader<Received, Rc<u8>>: Send);
assert_not_impl_any!(StreamReader<Received, Bytes>: Clone);

/// A stream that gives what it holds, each after a wait, and counts its polls.
struct Chunks<E> {
    items: VecDeque<Option<Result<Bytes, E>>>,
    waits: bool,
    polls: usize,
}

fn chunks<E>(items: impl IntoIterator<Item = Result<&'static str, E>>) -> Chunks<E> {
    Chunks {
        items: items
            .into_iter()
            .map(|item| Some(item.map(|text| Bytes::from_static(text.as_bytes()))))
            .collect(),
        waits: true,
        polls: 0,
    }
}

impl<E> Unpin for Chunks<E> {}

impl<E> Stream for Chunks<E> {
    type Item = Result<Bytes, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.polls += 1;
        if std::mem::replace(&mut self.waits, false) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.waits = true;
        // A stream that goes on after its end.
        Poll::Ready(self.items.pop_front().unwrap_or(None))
    }
}

#[test]
fn chunks_are_lent_and_empty_ones_passed_over() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let soup = Bytes::from_static(b"soup");
            let place_in_memory = soup.as_ptr();
            let items = [
                Bytes::new(),
                soup,
                Bytes::new(),
                Bytes::from_static(b"rice"),
            ];
            let mut reader = StreamReader::new(stream::iter(items.map(Ok::<_, Infallible>)));
            assert_eq!(reader.fill_buf().unwrap(), b"soup");
            assert_eq!(reader.fill_buf().unwrap().as_ptr(), place_in_memory);
            reader.consume(0);
            reader.consume(3);
            assert_eq!(reader.fill_buf().unwrap(), b"p");
            reader.consume(1);
            assert_eq!(reader.fill_buf().unwrap(), b"rice");
        });
        run.await.unwrap();
    });
}

#[test]
fn each_way_to_read_waits_for_all_that_it_needs() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let new = || StreamReader::new(chunks(["ab", "", "c\nd", "e"].map(Ok::<_, &str>)));
            let mut exact = [0; 4];
            let mut reader = new();
            reader.read_exact(&mut exact).unwrap();
            assert_eq!(&exact, b"abc\n");
            let error = reader.read_exact(&mut exact).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);

            let mut bytes = b"> ".to_vec();
            assert_eq!(new().read_to_end(&mut bytes).unwrap(), 6);
            assert_eq!(bytes, b"> abc\nde");
            let mut text = "> ".to_owned();
            assert_eq!(new().read_to_string(&mut text).unwrap(), 6);
            assert_eq!(text, "> abc\nde");
            let lines: Vec<_> = new().lines().map(Result::unwrap).collect();
            assert_eq!(lines, ["abc", "de"]);
            let mut text = String::new();
            new().take(4).read_to_string(&mut text).unwrap();
            assert_eq!(text, "abc\n");

            let mut reader = new();
            assert_eq!(reader.read(&mut []).unwrap(), 0);
            assert_eq!(reader.read_vectored(&mut []).unwrap(), 0);
            assert_eq!(reader.get_ref().polls, 0);
            let (mut a, mut b) = ([0; 1], [0; 9]);
            let mut bufs = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
            assert_eq!(reader.read_vectored(&mut bufs).unwrap(), 2);
            assert_eq!((a[0], b[0]), (b'a', b'b'));
        });
        run.await.unwrap();
    });
}

#[test]
fn the_end_stays_and_the_stream_is_not_asked_again() {
    let mut reader = StreamReader::new(chunks([Ok::<_, &str>("soup")]));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let polls = reader.get_ref().polls;
    reader
        .get_mut()
        .items
        .push_back(Some(Ok(Bytes::from_static(b"more"))));
    assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(reader.fill_buf().unwrap(), b"");
    assert_eq!(reader.get_ref().polls, polls);
    assert_eq!(text, "soup");
}

#[test]
fn after_an_error_all_calls_fail() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let cut = io::Error::new(ErrorKind::Interrupted, "cut");
            let mut reader = StreamReader::new(chunks([Ok("so"), Err(cut), Ok("up")]));
            let mut text = String::new();
            // With its kind the loops of std would try again.
            let error = reader.read_to_string(&mut text).unwrap_err();
            let polls = reader.get_ref().polls;
            assert_eq!((&*text, error.kind()), ("so", ErrorKind::Other));
            assert_eq!(error.to_string(), "cut");
            for _ in 0..2 {
                let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Other);
                assert_eq!(error.to_string(), "the stream has failed before");
            }
            assert_eq!(reader.get_ref().polls, polls);
        });
        run.await.unwrap();
    });
}

#[derive(Debug)]
struct Mine;

impl fmt::Display for Mine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mine")
    }
}

impl std::error::Error for Mine {}

#[test]
fn an_error_of_any_type_is_within_that_of_io() {
    fn error<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E) -> io::Error {
        StreamReader::new(chunks([Err(error)]))
            .read(&mut [0])
            .unwrap_err()
    }
    assert!(error(Mine).get_ref().unwrap().is::<Mine>());
    assert_eq!(error("text").to_string(), "text");
    assert_eq!(error(axum::Error::new(Mine)).to_string(), "mine");
    // That of io stays what it is.
    let reset = io::Error::from(ErrorKind::ConnectionReset);
    assert_eq!(error(reset).kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_stream_comes_back_with_what_was_not_read() {
    let mut reader = StreamReader::new(chunks(["soup", "rice"].map(Ok::<_, &str>)));
    reader.read_exact(&mut [0; 3]).unwrap();
    let (stream, chunk) = reader.into_inner_with_chunk();
    assert_eq!(chunk.unwrap(), "p");
    let mut reader = StreamReader::new(stream);
    reader.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(reader.into_inner_with_chunk().1, None);
    assert_eq!(
        StreamReader::new(chunks([Ok::<_, &str>("x")]))
            .into_inner()
            .polls,
        0
    );
}

#[test]
fn streams_that_are_not_unpin_and_chunks_of_other_types_are_read() {
    let once = stream::once(async { Ok::<_, Infallible>(Cursor::new(vec![1, 2])) });
    let mut bytes = Vec::new();
    StreamReader::new(pin!(once))
        .read_to_end(&mut bytes)
        .unwrap();
    assert_eq!(bytes, [1, 2]);
    let parts = VecDeque::from(vec![3, 4]);
    let mut reader = StreamReader::new(stream::iter([Ok::<_, Infallible>(parts)]));
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);
}

#[test]
fn a_cancelled_read_unwinds_and_drops_the_stream() {
    in_each_place(|place| async move {
        let log = Log::default();
        let (started, wait) = signal();
        let (ended, end) = signal();
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(1);
        let run = place.spawn({
            let log = log.clone();
            move || {
                let _ended = ended;
                let _outer = log.on_drop("outer");
                let mut reader = StreamReader::new(ReceiverStream::new(receiver));
                started.give();
                let _ = reader.read(&mut [0]);
                log.add("unreachable");
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert!(sender.is_closed());
        assert_eq!(log.take(), ["outer"]);
    });
}

#[test]
fn a_cancelled_read_is_an_error_by_choice_and_does_not_end_the_stream() {
    in_each_place(|place| async move {
        let (started, wait) = signal();
        let (ended, end) = signal();
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(1);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let run = place.spawn({
            let seen = seen.clone();
            move || {
                let _ended = ended;
                let stream = ReceiverStream::new(receiver);
                let mut reader = StreamReader::new(stream).cancel_as_error();
                started.give();
                for _ in 0..2 {
                    let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
                    seen.lock().unwrap().push(is_cancelled(&error));
                }
                drop(reader);
            }
        });
        wait.wait().await;
        run.abort();
        end.wait().await;
        assert_eq!(*seen.lock().unwrap(), [true, true]);
        assert!(sender.is_closed());
    });
}

#[test]
fn a_panic_of_the_stream_resumes_at_the_call_and_can_be_caught() {
    in_each_place(|place| async move {
        let run = place.spawn(|| {
            let items = stream::iter(0..3).map(|number| {
                assert_ne!(number, 1, "the stream panics");
                Ok::<_, &str>(Bytes::from_static(b"x"))
            });
            let mut reader = StreamReader::new(items);
            let mut bytes = [0; 2];
            let read = catch_unwind(AssertUnwindSafe(|| reader.read_exact(&mut bytes)));
            read.unwrap_err();
            reader.read(&mut bytes).unwrap()
        });
        assert_eq!(run.await.unwrap(), 1);
    });
}

#[test]
fn on_a_plain_thread_it_blocks_and_in_async_code_it_panics_at_the_line() {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(1);
    let writer = thread::spawn(move || {
        for text in ["so", "up"] {
            sender
                .blocking_send(Ok(Bytes::from_static(text.as_bytes())))
                .unwrap();
        }
    });
    let mut reader = StreamReader::new(ReceiverStream::new(receiver));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "soup");
    writer.join().unwrap();

    type Call = fn(&mut StreamReader<Chunks<&str>, Bytes>) -> u32;
    #[rustfmt::skip]
    let calls: [Call; 4] = [
        |r| (r.read(&mut [0]).is_ok(), line!()).1,
        |r| (r.read_vectored(&mut [IoSliceMut::new(&mut [0])]).is_ok(), line!()).1,
        |r| (r.read_to_end(&mut Vec::new()).is_ok(), line!()).1,
        |r| (r.fill_buf().is_ok(), line!()).1,
    ];
    let new = || StreamReader::new(chunks([Ok("x")]));
    // The lines of the calls are learnt where they don't panic.
    let lines = calls.map(|call| call(&mut new()));
    support::current_thread().block_on(async {
        for (call, line) in calls.into_iter().zip(lines) {
            let mut reader = new();
            let (message, at, file) = panic_of(|| {
                call(&mut reader);
            });
            assert!(message.contains("async code"), "{message}");
            assert_eq!((at, &*file), (line, file!()));
            assert_eq!(reader.get_ref().polls, 0);
        }
    });
}

#[test]
fn more_consumed_than_was_lent_panics() {
    let mut reader = StreamReader::new(chunks([Ok::<_, &str>("x")]));
    let (message, ..) = panic_of(|| reader.consume(1));
    assert!(message.contains("`consume`"), "{message}");
}
