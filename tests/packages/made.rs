//! The packages that `units/package` makes, from the program that is tested.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Makes a package of `kind` with further `options`, in a directory of its own.
#[track_caller]
pub(crate) fn package(kind: &str, options: &[&str]) -> (TempDir, PathBuf) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join(format!("spipe.{kind}"));
    let mut command = Command::new(root.join("units/package"));
    command.arg(kind).arg("--output").arg(&file).args(options);
    // An optimised build would take minutes.
    command.env("NO_BUILD", "1").env("PROFILE", "dev").env("CARGO_TARGET_DIR", target());
    command.env("DEBFULLNAME", "The spipe authors").env("DEBEMAIL", "spipe@packages.test");
    let output = command.output().expect("units/package can be started");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{log}", output.status);
    (directory, file)
}

/// cargo's directory, two above the program.
fn target() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_spipe")).parent().and_then(Path::parent).expect("target/debug/spipe")
}
