#[greenhack::test]
fn works(first: u32, second: u32) {
    let _ = (first, second);
}

fn main() {}
