//! A local run can be forgotten, and what it borrows would be gone.

fn main() {
    let text = String::from("borrowed");
    let run = greenhack::run_sync_local(|| text.len());
    std::mem::forget(run);
}
