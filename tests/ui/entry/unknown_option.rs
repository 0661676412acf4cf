#[greenhack::entry(stacksize = 4096)]
fn handler() -> u32 {
    1
}

#[greenhack::entry("checkout")]
fn literal() {}

#[greenhack::entry(flavor = "multi_thread")]
fn of_main() {}

async fn caller() -> u32 {
    handler().await
}

fn main() {
    let _ = caller();
}
