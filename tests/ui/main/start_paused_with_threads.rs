#[greenhack::test(flavor = "multi_thread", start_paused = true)]
fn works() {}

#[greenhack::test(start_paused)]
fn without_value() {}

#[greenhack::test(start_paused = 1)]
fn number() {}

fn main() {}
