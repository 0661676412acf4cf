#[greenhack::entry]
fn main() {
    greenhack::await_sync(async {});
}
