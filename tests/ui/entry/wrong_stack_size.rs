#[greenhack::entry(stack_size = "64k")]
fn text() {}

#[greenhack::entry(stack_size = 0)]
fn zero() {}

#[greenhack::entry(stack_size(4096))]
fn list() {}

const SIZE: u32 = 1 << 20;

#[greenhack::entry(stack_size = SIZE)]
fn wrong_type() {}

fn main() {}
