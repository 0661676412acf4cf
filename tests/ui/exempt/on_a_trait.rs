#[greenhack::exempt]
trait Client {
    async fn fetch(&self);
}

fn main() {}
