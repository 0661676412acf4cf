use std::borrow::Cow;
use std::fmt::Display;
use std::path::Path;

struct Config;

struct View<'a>(&'a str);

#[greenhack::entry]
fn text(name: &str) -> usize {
    name.len()
}

#[greenhack::entry]
fn several<'a>(
    bytes: &[u8],
    path: &'a Path,
    config: &Config,
    list: &mut Vec<u8>,
    shown: &dyn Display,
    shared: &impl Display,
) {
    let _ = (bytes, path, config, list, shown, shared);
}

#[greenhack::entry]
fn nested(
    name: Option<&str>,
    cow: Cow<'_, str>,
    (first, _): (&str, u8),
    boxed: Box<dyn Display + '_>,
) -> bool {
    name.is_some() || cow.is_empty() || first.is_empty() || boxed.to_string().is_empty()
}

#[greenhack::entry]
fn named<'a>(view: View<'a>) -> usize {
    view.0.len()
}

fn main() {
    let name = String::new();
    let _ = text(&name);
}
