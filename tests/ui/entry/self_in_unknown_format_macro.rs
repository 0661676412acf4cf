use std::fmt;

macro_rules! shout {
    ($text:literal) => {
        format!($text).to_uppercase()
    };
}

#[derive(Clone)]
struct Service;

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("service")
    }
}

impl Service {
    #[greenhack::entry]
    fn call(&self) -> String {
        shout!("{self}")
    }
}

fn main() {}
