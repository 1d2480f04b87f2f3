//! What `cargo publish` would upload.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The most bytes of one file: pictures of the status page have most.
const FILE_MAX: u64 = 256 * 1024;

/// The paths in the crate.
fn paths() -> Vec<String> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["package", "--list", "--allow-dirty", "--offline"]);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("names in UTF-8").lines().map(ToOwned::to_owned).collect()
}

#[test]
fn the_crate_has_what_builds_and_explains_the_program_and_nothing_else() {
    let paths = paths();
    let top: BTreeSet<_> = paths.iter().filter_map(|path| path.split('/').next()).collect();
    let expected = [
        // cargo makes these two; the first only from a clean tree.
        ".cargo_vcs_info.json",
        "Cargo.toml.orig",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "SECURITY.md",
        "docs",
        "keys",
        "src",
        "units",
    ];
    let missing: Vec<_> = expected.iter().filter(|path| !top.contains(*path)).collect();
    assert!(missing.is_empty() || missing == [&".cargo_vcs_info.json"], "{missing:?}");
    assert_eq!(top.difference(&BTreeSet::from(expected)).collect::<Vec<_>>(), Vec::<&&str>::new());
}

#[test]
fn no_file_of_the_crate_is_large_and_none_is_a_key() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in paths() {
        // cargo makes those that are not in the tree.
        let size = fs::metadata(root.join(&path)).map_or(0, |metadata| metadata.len());
        assert!(size <= FILE_MAX, "{path} has {size} bytes");
        assert!(Path::new(&path).extension().is_none_or(|extension| extension != "key"), "{path}");
    }
}
