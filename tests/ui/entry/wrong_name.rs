const NAME: &str = "checkout";

#[greenhack::entry(name = 5)]
fn number() {}

#[greenhack::entry(name = NAME)]
fn constant() {}

#[greenhack::entry(name = "")]
fn empty() {}

#[greenhack::entry(name("checkout"))]
fn list() {}

fn main() {
    let _ = NAME;
}
