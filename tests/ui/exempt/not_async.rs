#[greenhack::exempt]
fn fetch(key: u8) -> u8 {
    key
}

fn main() {
    fetch(1);
    let _ = fetch_async(1);
}
