tokio::task_local! {
    static USER: String;
}

static NOT_A_KEY: u32 = 1;

#[greenhack::entry(carry())]
fn empty() {}

#[greenhack::entry(carry = USER)]
fn equals() {}

#[greenhack::entry(carry("USER"))]
fn literal() {}

#[greenhack::entry(carry(&USER))]
fn reference() {}

#[greenhack::entry(carry(USER NOT_A_KEY))]
fn without_comma() {}

#[greenhack::entry(carry(NOT_A_KEY))]
fn not_a_key() {}

fn main() {}
