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

#[greenhack::entry]
fn question(text: String) -> Result<u32, String> {
    Ok(text.parse::<u32>()?)
}

fn main() {}
