#[greenhack::exempt]
async unsafe fn fetch() {}

fn main() {
    fetch();
    let _ = fetch_async();
}
