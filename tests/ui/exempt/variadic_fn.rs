#[greenhack::exempt]
async unsafe fn fetch(first: u8, ...) -> u8 {
    first
}

fn main() {
    unsafe { fetch(1) };
}
