//! The messages of the macros, mistake by mistake.
//!
//! `TRYBUILD=overwrite` blesses them; then read the difference.

#[test]
fn every_mistake_is_reported_where_it_is() {
    let tests = trybuild::TestCases::new();
    tests.compile_fail("entry/*.rs");
    tests.compile_fail("exempt/*.rs");
    tests.compile_fail("join/*.rs");
    tests.compile_fail("main/*.rs");
}
