#[greenhack::main]
const fn main() {}

#[greenhack::test]
unsafe fn is_unsafe() {}

#[greenhack::test]
extern "C" fn is_extern() {}
