#[greenhack::exempt(async = fetch)]
async fn fetch() {}

fn main() {
    fetch();
    let _ = fetch_async();
}
