use std::fmt::Display;

#[greenhack::entry]
fn generic<T: Display + Send>(item: T) -> String {
    item.to_string()
}

#[greenhack::entry]
fn opaque(item: impl Display + Send) -> String {
    item.to_string()
}

#[greenhack::entry(local)]
fn two<T: Display, U: Display>(items: Vec<T>, other: U) -> String {
    items[0].to_string() + &other.to_string()
}

fn main() {}
