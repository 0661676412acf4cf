#[greenhack::exempt]
async fn fetch() -> u8 {
    1
}

#[greenhack::exempt]
async fn fetch_two() -> u8 {
    fetch().await + fetch_async().await
}

fn main() {}
