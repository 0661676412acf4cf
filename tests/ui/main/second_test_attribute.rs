#[greenhack::test]
#[test]
fn works() {}

fn main() {}
