#[greenhack::exempt]
async fn main() {}
