//! Bodies and readers when the workers end: in a process of its own.
#![cfg(all(feature = "io", panic = "unwind"))]

mod support;

use std::future::pending;
use std::io::Write;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use greenhack::await_sync;
use greenhack::io::{AsyncReader, SyncIoBridge, body, is_cancelled};
use support::{Fixture, Place, panic_of};
use tokio::io::AsyncReadExt;

#[test]
fn what_the_end_of_the_workers_cuts_off_ends_with_an_error() {
    Fixture::new(Place::Worker).block_on(async {
        let mut stream = body(|out| {
            out.write_all(b"soup")?;
            out.flush()?;
            await_sync(pending::<()>());
            Ok(())
        });
        assert_eq!(stream.next().await.unwrap().unwrap(), "soup");
        let (near, _far) = tokio::io::duplex(8);
        let mut reader = AsyncReader::new(|| SyncIoBridge::new(near));
        assert!(reader.read_u8().now_or_never().is_none());

        greenhack::workers::shutdown(Duration::from_secs(60)).await;
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(is_cancelled(&error));
        assert!(stream.next().await.is_none());
        assert!(is_cancelled(&reader.read_u8().await.unwrap_err()));

        let mut late = body(|_| Ok(()));
        let (message, ..) = panic_of(|| drop(late.next().now_or_never()));
        assert!(message.contains("shutdown"), "{message}");
        assert!(late.next().await.unwrap().is_err());
    });
}
