#![deny(unused_must_use)]

#[greenhack::exempt]
#[must_use = "it was expensive"]
async fn fetch() -> u8 {
    1
}

fn main() {
    fetch();
}
