#[greenhack::entry]
fn number() -> u32 {
    "one"
}

#[greenhack::entry]
fn nothing() {
    1
}

#[greenhack::entry]
fn missing(id: u32) -> u32 {
    id + 1;
}

fn main() {}
