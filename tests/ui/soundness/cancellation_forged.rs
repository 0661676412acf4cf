//! Only the crate cancels.

fn main() {
    std::panic::panic_any(greenhack::Cancelled(()));
}
