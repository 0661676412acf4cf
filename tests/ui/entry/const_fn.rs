#[greenhack::entry]
const fn handler() -> u32 {
    1
}

async fn caller() -> u32 {
    handler().await
}

fn main() {
    let _ = caller();
}
