#[greenhack::main(local, start_paused = true, threads = 4)]
fn main() {}

#[greenhack::test(name = "works")]
fn works() {}
