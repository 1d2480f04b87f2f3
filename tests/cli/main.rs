//! The complete output of the command: its help, mistakes of use, `spipe check`, and errors about keys.
//!
//! Each test compares with the snapshots in one `.trycmd` file of this directory: commands, each followed by its output.
//! After an intended change of the output, renew the snapshots, and read the difference before you commit it:
//!
//! ```text
//! TRYCMD=overwrite cargo test --test cli
//! ```
//!
//! The commands of `NAME.trycmd` run in the directory `NAME.in`, if there is one. The keys there are not secret. git does
//! not keep the permissions of files, so they need `insecure-key-permissions`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs the commands of `NAME.trycmd`, and asserts that their output is as in the file.
#[track_caller]
fn assert_snapshots(name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cli/{name}.trycmd"));
    let text = fs::read_to_string(&file).expect("it is in the tree");
    for command in text.lines().filter(|line| line.starts_with("$ ")) {
        // trycmd skips a command that it does not know, and reports no failure.
        assert!(command == "$ spipe" || command.starts_with("$ spipe "), "not spipe: {command}");
    }
    trycmd::TestCases::new()
        .register_bin("spipe", PathBuf::from(env!("CARGO_BIN_EXE_spipe")))
        // The output does not go to a terminal, so these two set the width and turn off colours.
        .env("COLUMNS", "80")
        .env("NO_COLOR", "1")
        // A command that should be refused, but is not, would run for ever.
        .timeout(Duration::from_secs(10))
        .case(file)
        .run();
}

#[test]
fn help() {
    assert_snapshots("help");
}

#[test]
fn mistakes_of_use() {
    assert_snapshots("mistakes");
}

#[test]
fn check() {
    assert_snapshots("check");
}

#[test]
fn keys() {
    assert_snapshots("keys");
}
