//! Programs that would be unsound, and do not compile.
//!
//! `TRYBUILD=overwrite` blesses the messages; then read the difference.

#[test]
fn every_known_way_to_break_soundness_is_refused() {
    trybuild::TestCases::new().compile_fail("soundness/*.rs");
}
