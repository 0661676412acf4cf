//! The messages of the macros, mistake by mistake.
//!
//! `TRYBUILD=overwrite` blesses them; then read the difference.

#[test]
fn every_mistake_is_reported_where_it_is() {
    let tests = trybuild::TestCases::new();
    tests.compile_fail("tests/ui/entry/*.rs");
    tests.compile_fail("tests/ui/exempt/*.rs");
    tests.compile_fail("tests/ui/main/*.rs");
}
