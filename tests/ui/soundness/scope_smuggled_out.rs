//! Outside of its call, a scope would start closures that nobody waits for.

fn main() {
    let mut kept = None;
    greenhack::scope(|s| kept = Some(s));
    kept.unwrap().spawn(|| ());
}
