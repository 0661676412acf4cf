//! The README is read as a file and as the documentation of the crate.
#![forbid(unsafe_code)]

use std::path::Path;

const README: &str = include_str!("../README.md");
const ITEMS: &str = include_str!("../src/links.md");
const LIB: &str = include_str!("../src/lib.rs");

/// The definitions of links in `text`: what they are called, and where they lead.
fn definitions(text: &str) -> Vec<(&str, &str)> {
    let links = text.lines().filter_map(|line| line.strip_prefix('['));
    links.filter_map(|link| link.split_once("]: ")).collect()
}

#[test]
fn each_link_of_the_readme_leads_to_a_file_and_to_an_item() {
    let (files, items) = (definitions(README), definitions(ITEMS));
    assert!(!files.is_empty());
    for (_, path) in &files {
        assert!(Path::new(path).is_file(), "{path}");
    }
    let names = |links: &[(&'static str, _)]| -> Vec<&str> {
        links.iter().map(|(name, _)| *name).collect()
    };
    assert_eq!(names(&files), names(&items));
    // Before the README, or else they don't count.
    assert!(LIB.find("links.md") < LIB.find("README.md"));
}

#[test]
fn each_item_that_the_readme_names_is_defined() {
    let names: Vec<_> = definitions(README)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let (text, _) = README.split_once("<!--").unwrap();
    for part in text.split("[`").skip(1) {
        let (code, rest) = part.split_once("`]").unwrap();
        let name = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']').unwrap().0.to_owned(),
            None => format!("`{code}`"),
        };
        assert!(names.contains(&&*name), "{name}");
    }
}
