#[greenhack::exempt]
async extern "C" fn fetch() {}

fn main() {
    fetch();
}
