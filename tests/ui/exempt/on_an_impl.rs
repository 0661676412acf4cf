struct Client;

#[greenhack::exempt]
impl Client {
    async fn fetch(&self) {}
}

fn main() {
    let _ = Client.fetch();
}
