#[greenhack::exempt(local, async = 1)]
const extern "C" fn fetch(key: &str) -> &str {
    key
}

fn main() {
    let key: &str = fetch("key");
    let _ = fetch_async(key);
}
