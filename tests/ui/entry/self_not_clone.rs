struct Service;

impl Service {
    #[greenhack::entry]
    fn call(&self) -> u32 {
        1
    }
}

fn main() {
    let _ = Service.call();
}
