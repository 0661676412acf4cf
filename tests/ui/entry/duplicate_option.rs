#[greenhack::entry(local, name = "one", name = "two", local)]
fn handler() {}

fn main() {
    let _ = handler();
}
