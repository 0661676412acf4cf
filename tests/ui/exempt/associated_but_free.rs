#[greenhack::exempt(associated)]
async fn fetch() {}

fn main() {
    fetch();
}
