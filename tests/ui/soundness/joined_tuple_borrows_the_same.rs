//! What holds for `join` and `race` holds for the macros.

fn main() {
    let dish = greenhack::race!(
        || {
            let soup = String::from("soup");
            soup.as_str()
        },
        || "stew",
    );
    let mut dishes = vec![dish];
    greenhack::join!(|| dishes.push("salad"), || dishes.len());
}
