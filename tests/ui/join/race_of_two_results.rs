//! The closures of `race!` have one result.

fn main() {
    greenhack::race!(|| 1, || "two");
}
