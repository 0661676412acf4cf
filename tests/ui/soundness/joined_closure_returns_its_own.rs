//! What a closure owns is gone when its result is returned.

fn main() {
    greenhack::join(
        || {
            let text = String::from("owned");
            text.as_str()
        },
        || (),
    );
}
