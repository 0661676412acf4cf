struct Handler;

#[greenhack::entry(local)]
impl Handler {
    fn handle(&self) {}
}

fn main() {
    Handler.handle();
}
