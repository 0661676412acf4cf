#[greenhack::main(worker_threads = 4)]
fn main() {}

#[greenhack::main(flavor = "multi_thread", worker_threads = 0)]
pub fn zero() {}

#[greenhack::main(flavor = "multi_thread", worker_threads = "4")]
pub fn text() {}
