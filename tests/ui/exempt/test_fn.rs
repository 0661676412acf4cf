#[greenhack::exempt]
#[tokio::test]
async fn fetches() {}

fn main() {}
