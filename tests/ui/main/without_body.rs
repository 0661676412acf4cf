#[greenhack::test]
fn nothing();

#[greenhack::main]
fn main();
