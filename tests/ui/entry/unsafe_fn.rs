#[greenhack::entry]
unsafe fn handler(pointer: usize) -> u8 {
    unsafe { *(pointer as *const u8) }
}

fn main() {
    let _ = unsafe { handler(0) };
}
