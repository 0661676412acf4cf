//! A yielder on another thread, which would block that instead of the generator.

use greenhack::stream::generate;

fn main() {
    let _stream = generate(|yielder| {
        std::thread::scope(|scope| {
            scope.spawn(|| yielder.yield_(1));
        });
    });
}
