#[greenhack::entry]
struct Handler;

fn main() {
    let _ = Handler;
}
