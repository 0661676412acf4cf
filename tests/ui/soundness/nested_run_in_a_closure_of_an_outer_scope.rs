//! A closure of an outer scope outlives a call of `nested` in it.

fn main() {
    greenhack::scope(|s| {
        greenhack::nested(
            || (),
            async |run| {
                s.spawn(move || greenhack::await_sync(run));
            },
        );
    });
}
