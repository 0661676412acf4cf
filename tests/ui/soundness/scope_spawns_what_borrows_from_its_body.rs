//! The body of a scope ends before what it spawns.

fn main() {
    greenhack::scope(|s| {
        let text = String::from("borrowed");
        s.spawn(|| text.len());
    });
}
