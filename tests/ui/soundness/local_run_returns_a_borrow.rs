//! What a run returns must not borrow either.

fn lend<'a>(text: &'a str) -> impl Future<Output = &'a str> {
    greenhack::run_sync_local(move || text)
}

fn main() {
    lend("");
}
