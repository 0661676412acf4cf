#[greenhack::entry(local = true)]
fn equals() {}

#[greenhack::entry(local(true))]
fn list() {}

fn main() {}
