//! The output of an awaited future must not borrow from what it drops.

fn main() {
    let borrowed: &str = greenhack::await_sync(async {
        let text = String::from("gone");
        text.as_str()
    });
    drop(borrowed);
}
