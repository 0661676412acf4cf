//! A nested run outside of its call would speak of a closure that is gone.

fn main() {
    let mut kept = None;
    greenhack::nested(|| 1, async |run| kept = Some(run));
    greenhack::nested(|| 1, async |run| run);
}
