//! The whole thing once, on every flavour of runtime.

use std::time::Duration;

use greenhack::{await_sync, run_sync, run_sync_local};
use tokio::runtime::Builder;
use tokio::time::sleep;

fn deep(levels: u32) -> u32 {
    if levels == 0 {
        await_sync(async {
            sleep(Duration::from_millis(1)).await;
            7
        })
    } else {
        deep(levels - 1)
    }
}

#[test]
fn smoke_in_place() {
    let rt = Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(rt.block_on(run_sync_local(|| deep(10))), 7);
    assert_eq!(rt.block_on(run_sync(|| deep(10))), 7);
}

#[test]
fn smoke_on_a_worker() {
    let rt = Builder::new_multi_thread().enable_all().build().unwrap();
    assert_eq!(rt.block_on(run_sync(|| deep(10))), 7);
    assert_eq!(
        rt.block_on(async { tokio::spawn(run_sync(|| deep(10))).await.unwrap() }),
        7
    );
    assert_eq!(rt.block_on(run_sync_local(|| deep(10))), 7);
}

#[test]
fn smoke_on_a_plain_thread() {
    let _guard = greenhack::enter_runtime();
    assert_eq!(deep(10), 7);
}
