trait Service {
    #[greenhack::entry]
    fn call(&self, request: String) -> String;
}

struct Echo;

impl Service for Echo {
    async fn call(&self, request: String) -> String {
        request
    }
}

fn main() {
    let _ = Echo.call(String::new());
}
