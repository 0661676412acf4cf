struct Client;

impl Client {
    #[greenhack::exempt(associated = true)]
    async fn connect() -> Self {
        Client
    }
}

fn main() {
    Client::connect();
}
