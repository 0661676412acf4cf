//! The README and the pages of `docs/` are read as files and as documentation of the
//! crate. Their links lead to files; there, `src/links.md` has them lead to items.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

const ITEMS: &str = include_str!("../src/links.md");
const INCLUDED: &str = concat!(
    include_str!("../src/lib.rs"),
    include_str!("../src/docs.rs")
);

/// The README and each page: where it is, and its text without blocks of code.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = vec![PathBuf::from("README.md")];
    for folder in ["docs", "docs/cookbook"] {
        let files = fs::read_dir(folder).unwrap();
        paths.extend(files.map(|file| file.unwrap().path()));
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    let page = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        // Every second part is a block.
        let text = text.split("```").step_by(2).collect();
        (path, text)
    };
    paths.into_iter().map(page).collect()
}

/// The definitions of links in `text`: what they are called, and where they lead.
fn definitions(text: &str) -> Vec<(&str, &str)> {
    let links = text.lines().filter_map(|line| line.strip_prefix('['));
    links.filter_map(|link| link.split_once("]: ")).collect()
}

fn names(text: &str) -> Vec<&str> {
    definitions(text)
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

/// Whether `text` has a heading that `#anchor` leads to.
fn has_heading(text: &str, anchor: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let mut anchors = headings.map(|line| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.replace(|c: char| !c.is_alphanumeric() && !" -_".contains(c), "");
        kept.replace(' ', "-")
    });
    anchors.any(|known| known == anchor)
}

#[test]
fn each_definition_leads_to_a_file_and_to_an_item() {
    for (path, text) in pages() {
        for (name, target) in definitions(&text) {
            if target.starts_with("https://") {
                continue;
            }
            let wrong = format!("{}: [{name}]: {target}", path.display());
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = path.parent().unwrap().join(file);
            assert!(file.is_file(), "{wrong}");
            if !anchor.is_empty() {
                assert!(
                    has_heading(&fs::read_to_string(file).unwrap(), anchor),
                    "{wrong}"
                );
            }
            assert!(names(ITEMS).contains(&name), "{wrong}");
        }
    }
}

#[test]
fn each_link_is_defined_beside_it() {
    for (path, text) in pages() {
        let names = names(&text);
        let is_defined = |name: &str| {
            assert!(names.contains(&name), "{}: [{name}]", path.display());
        };
        for (start, _) in text.match_indices("[`") {
            let (code, rest) = text[start + 1..].split_once("`]").unwrap();
            if !rest.starts_with('[') {
                is_defined(&format!("{code}`"));
            }
        }
        for part in text.split("][").skip(1) {
            is_defined(part.split_once(']').unwrap().0);
        }
        for part in text.split("](").skip(1) {
            let (target, _) = part.split_once(')').unwrap();
            let leads_somewhere = match target.split_once('#') {
                Some(("", anchor)) => has_heading(&text, anchor),
                // A picture, which follows the page in the documentation of the crate.
                _ => {
                    let picture = Path::new("../docs").join(target);
                    let is_included = format!("include_str!(\"{}\")", picture.display());
                    target.ends_with(".svg") && INCLUDED.contains(&is_included)
                }
            };
            assert!(
                leads_somewhere || target.starts_with("https://"),
                "{}: {target}",
                path.display()
            );
        }
    }
}

#[test]
fn items_are_defined_before_the_pages_that_link_to_them() {
    let included = INCLUDED.replace("#!", "#").replace("    ", "");
    let items = "#[cfg_attr(not(doctest), doc = include_str!(\"links.md\"))]\n";
    for (path, text) in pages() {
        let page = format!("#[doc = include_str!(\"../{}\")]", path.display());
        assert!(included.contains(&page), "{page}");
        let leads_to_files = |(_, target): &(_, &str)| !target.starts_with("https://");
        if definitions(&text).iter().any(leads_to_files) {
            assert!(included.contains(&(items.to_owned() + &page)), "{page}");
        }
    }
}

#[test]
fn each_item_is_linked_to() {
    let pages = pages();
    let linked: Vec<_> = pages.iter().flat_map(|(_, text)| names(text)).collect();
    for name in names(ITEMS) {
        assert!(linked.contains(&name), "{name}");
    }
}
