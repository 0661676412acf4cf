struct Client(u16);

impl Client {
    #[greenhack::exempt]
    async fn port(client: &Client) -> u16 {
        client.0
    }
}

fn main() {
    Client::port(&Client(80));
}
