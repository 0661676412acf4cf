use std::borrow::Cow;

#[derive(Clone)]
struct Service {
    name: String,
}

impl Service {
    #[greenhack::entry]
    fn name(&self) -> &str {
        &self.name
    }

    #[greenhack::entry]
    fn cow(&self) -> Result<Cow<'_, str>, ()> {
        Ok(Cow::Borrowed(&self.name))
    }
}

fn main() {
    let service = Service { name: String::new() };
    let _ = service.name();
    let _ = service.cow();
}
