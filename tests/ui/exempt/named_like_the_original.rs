#[greenhack::exempt]
async fn fetch_async(key: u8) -> u8 {
    key
}

fn main() {
    fetch(1);
    let _ = fetch_async(1);
}
