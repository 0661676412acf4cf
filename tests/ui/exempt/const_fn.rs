#[greenhack::exempt]
const async fn fetch() {}

fn main() {
    fetch();
}
