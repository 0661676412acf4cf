//! The stack of a run must not be unwound on another thread.

fn main() {
    let run = greenhack::run_sync_local(|| 1);
    std::thread::spawn(move || drop(run));
}
