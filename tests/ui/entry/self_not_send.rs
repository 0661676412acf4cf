use std::rc::Rc;

#[derive(Clone)]
struct Service(Rc<u32>);

impl Service {
    #[greenhack::entry]
    fn by_value(self) -> u32 {
        *self.0
    }

    #[greenhack::entry]
    fn by_reference(&self) -> u32 {
        *self.0
    }

    #[greenhack::entry]
    fn by_rc(self: Rc<Self>) -> u32 {
        *self.0
    }
}

fn main() {}
