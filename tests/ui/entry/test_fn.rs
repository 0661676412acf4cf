#[greenhack::entry]
#[test]
fn works() {}

#[greenhack::entry]
#[tokio::test]
fn works_too() {}

fn main() {}
