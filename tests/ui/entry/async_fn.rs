#[greenhack::entry]
async fn handler(id: u32) -> u32 {
    std::future::ready(id).await
}

fn main() {
    let _ = handler(1);
}
