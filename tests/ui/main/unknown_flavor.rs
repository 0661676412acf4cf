#[greenhack::main(flavor = "multi-thread")]
fn main() {}

#[greenhack::main(flavor = local)]
pub fn not_a_literal() {}

#[greenhack::main(flavor)]
pub fn without_value() {}
