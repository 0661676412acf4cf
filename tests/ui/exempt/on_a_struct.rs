#[greenhack::exempt]
struct Client;

fn main() {
    let _ = Client;
}
