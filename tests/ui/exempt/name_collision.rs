#[greenhack::exempt]
async fn fetch() {}

async fn fetch_async() {}

struct Client;

impl Client {
    #[greenhack::exempt(async = send)]
    async fn post(&self) {}

    async fn send(&self) {}
}

fn main() {
    fetch();
}
