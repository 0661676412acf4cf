//! Two closures that run at once can't both change what they borrow.

fn main() {
    let mut cooked = 0;
    greenhack::join(|| cooked += 1, || cooked += 1);
}
