#![deny(deprecated)]

#[greenhack::exempt]
#[deprecated = "it is old"]
async fn fetch() {}

fn main() {
    fetch();
    let _ = fetch_async();
}
