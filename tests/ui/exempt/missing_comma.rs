#[greenhack::exempt(async = later crate = greenhack)]
async fn fetch() {}

fn main() {
    fetch();
    let _ = later();
}
