#[greenhack::exempt]
async fn fetch();

fn main() {}
