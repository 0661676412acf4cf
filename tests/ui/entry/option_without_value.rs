#[greenhack::entry(name)]
fn name() {}

#[greenhack::entry(name =)]
fn name_is() {}

#[greenhack::entry(stack_size, local)]
fn stack_size() {}

#[greenhack::entry(stack_size = , local)]
fn stack_size_is() {}

#[greenhack::entry(crate)]
fn krate() {}

#[greenhack::entry(carry)]
fn carry() {}

fn main() {}
