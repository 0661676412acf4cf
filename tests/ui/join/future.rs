//! `join!` and `race!` take closures, not futures as tokio's do.

async fn price() -> u32 {
    4
}

fn main() {
    greenhack::join!(price(), || 1);
    greenhack::race!(price(), || 1);
}
