#[greenhack::exempt(local, asynchronous = fetch_later)]
async fn fetch() {}

fn main() {
    fetch();
}
