#[greenhack::entry]
trait Handler {
    fn handle(&self) {}
}

impl Handler for () {}

fn main() {
    ().handle();
}
