trait Store {
    async fn load(&self) -> u8;
}

struct Memory;

impl Store for Memory {
    #[greenhack::exempt]
    async fn load(&self) -> u8 {
        1
    }
}

fn main() {}
