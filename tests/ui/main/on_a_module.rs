#[greenhack::test]
mod tests {
    pub fn helper() {}
}

fn main() {
    tests::helper();
}
