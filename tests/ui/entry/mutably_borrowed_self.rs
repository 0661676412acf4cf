use std::pin::Pin;

struct Counter(u32);

impl Counter {
    #[greenhack::entry]
    fn count(&mut self) -> u32 {
        self.0 += 1;
        self.0
    }

    #[greenhack::entry]
    fn typed(self: &mut Self) -> u32 {
        self.0
    }

    #[greenhack::entry]
    fn pinned(self: Pin<&mut Self>) -> u32 {
        self.0
    }
}

fn main() {
    let _ = Counter(0).count();
    let _ = Counter(0).typed();
}
