use std::fmt::Display;

#[greenhack::entry]
fn generic<T: Display + 'static>(item: T) -> String {
    item.to_string()
}

#[greenhack::entry]
fn opaque(item: impl Display + 'static) -> String {
    item.to_string()
}

fn main() {}
