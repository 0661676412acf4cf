#[greenhack::entry(local name = "checkout")]
fn handler() {}

#[greenhack::entry(name = "checkout" local)]
fn other() {}

fn main() {}
