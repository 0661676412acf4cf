#[greenhack::exempt(crate = "greenhack")]
async fn fetch() {}

fn main() {
    fetch();
}
