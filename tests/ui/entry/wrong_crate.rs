#[greenhack::entry(crate = "greenhack")]
fn literal() {}

fn main() {}
