#[greenhack::entry]
pub extern "C" fn callback(code: u32) -> u32 {
    code
}

async fn caller() -> u32 {
    callback(1).await
}

fn main() {
    let _ = caller();
}
