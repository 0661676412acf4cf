#[greenhack::exempt(async = one, async = two)]
async fn fetch() {}

fn main() {
    fetch();
    let _ = one();
}
