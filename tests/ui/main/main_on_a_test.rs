#[greenhack::main]
#[test]
fn works() {}

fn main() {}
