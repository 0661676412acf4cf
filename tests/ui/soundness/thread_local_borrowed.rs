//! A run may outlive the borrow of a thread local.

thread_local! {
    static NAME: String = String::from("name");
}

fn main() {
    NAME.with(|name| greenhack::run_sync_local(|| name.len()));
}
