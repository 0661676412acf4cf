//! Blocking work that borrows from its run, which may be cancelled meanwhile.

fn main() {
    let local = String::new();
    greenhack::block(|| local.len());
}
