//! The version, in all places that tell it.

use std::fs;
use std::path::Path;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("the file is in the tree")
}

#[test]
fn the_newest_version_in_the_list_of_changes_is_this_one_and_has_a_date() {
    let changes = file("CHANGELOG.md");
    let mut headings = changes.lines().filter_map(|line| line.strip_prefix("## "));
    assert_eq!(headings.next(), Some("[Unreleased]"));
    let (version, date) = headings.next().and_then(|heading| heading.split_once(" - ")).expect("a version");
    assert_eq!(version, format!("[{VERSION}]"));
    date.parse::<jiff::civil::Date>().expect(date);
}

#[test]
fn the_lock_file_of_the_fuzz_targets_has_this_version() {
    assert!(file("fuzz/Cargo.lock").contains(&format!("name = \"spipe\"\nversion = \"{VERSION}\"\n")));
}
