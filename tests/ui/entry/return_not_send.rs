use std::rc::Rc;

#[greenhack::entry]
fn handler(id: u32) -> Rc<u32> {
    Rc::new(id)
}

#[greenhack::entry]
fn opaque(id: u32) -> impl Clone {
    Rc::new(id)
}

fn main() {}
