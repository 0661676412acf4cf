#[greenhack::entry(name = 1, colour = "red", local, local)]
const async fn handler(name: &str, list: Option<u8>) -> &str {
    let _ = list;
    name
}

fn main() {}
