//! A scope would let closures borrow what ends before it, if its lifetimes could be shortened.

use greenhack::Scope;

fn spawn<'scope, 'env: 'scope, 'short>(s: &'scope Scope<'scope, 'env>, text: &'short str) {
    let s: &'short Scope<'short, 'short> = s;
    s.spawn(move || text.len());
}

fn main() {
    greenhack::scope(|s| {
        let text = String::from("borrowed");
        spawn(s, &text);
    });
}
