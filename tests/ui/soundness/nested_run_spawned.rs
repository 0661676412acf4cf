//! A task goes on when the call of `nested` has returned.

fn main() {
    let text = String::from("borrowed");
    greenhack::nested(
        || text.len(),
        async |run| tokio::task::spawn_local(run).await.unwrap(),
    );
    greenhack::nested(
        || (),
        async |run| greenhack::run_sync_local(move || greenhack::await_sync(run)).await,
    );
}
