//! A future that is given back is given back once.

fn main() {
    let refused = greenhack::try_await_sync(async { 1 }).unwrap_err();
    let first = refused.into_inner();
    let second = refused.into_inner();
    drop((first, second));
}
