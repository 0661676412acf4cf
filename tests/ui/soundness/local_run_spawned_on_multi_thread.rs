//! A local run must not be polled by a runtime that moves its tasks.

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        tokio::spawn(greenhack::run_sync_local(|| 1)).await.unwrap();
    });
}
