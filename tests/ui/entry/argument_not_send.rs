use std::rc::Rc;

#[greenhack::entry]
fn handler(id: u32, list: Rc<Vec<u8>>) -> usize {
    list.len() + id as usize
}

#[greenhack::entry]
fn pattern((first, _): (Rc<u8>, u8)) -> u8 {
    *first
}

#[greenhack::entry]
fn unused(_: Rc<u8>) {}

fn main() {}
