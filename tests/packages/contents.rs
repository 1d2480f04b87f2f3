//! What is in the packages.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use crate::made::package;

/// The paths in Debian's package, without directories, and what lintian says of it.
static DEBIAN: LazyLock<(BTreeSet<String>, String)> = LazyLock::new(|| {
    let (_directory, file) = package("deb", &["--fast"]);
    let files = lines(Command::new("dpkg-deb").arg("--contents").arg(&file));
    let files = files.iter().filter(|line| !line.starts_with('d'));
    let path = |line: &String| {
        let path = line.split_whitespace().nth(5).expect("mode, owner, size, date, time, path");
        path.trim_start_matches('.').to_owned()
    };
    (files.map(path).collect(), lintian(&file))
});

static RPM: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let (_directory, file) = package("rpm", &[]);
    lines(Command::new("rpm").args(["--query", "--list", "--package"]).arg(&file)).into_iter().collect()
});

/// The lines that `command` prints.
#[track_caller]
fn lines(command: &mut Command) -> Vec<String> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(ToOwned::to_owned).collect()
}

/// The errors and warnings that lintian has for a package.
fn lintian(file: &Path) -> String {
    let output = Command::new("lintian")
        .args(["--allow-root", "--fail-on", "error,warning"])
        .arg(file)
        .output()
        .unwrap_or_else(|error| panic!("lintian: {error}; type: apt-get install lintian"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Those of `files` that are not documents, which come and go.
fn without_documents(files: &BTreeSet<String>) -> BTreeSet<&str> {
    files.iter().map(String::as_str).filter(|path| !path.starts_with("/usr/share/doc/spipe/")).collect()
}

#[test]
fn lintian_finds_nothing_wrong() {
    assert_eq!(DEBIAN.1, "");
}

#[test]
fn lintian_finds_what_is_wrong() {
    let (_directory, file) = package("deb", &["--fast", "--section", "nonsense"]);
    assert!(lintian(&file).contains("unknown-section nonsense"));
}

#[test]
fn the_debian_package_has_the_program_units_manual_pages_and_completions_and_nothing_in_etc() {
    let expected = [
        "/usr/bin/spipe",
        "/usr/bin/spiped",
        "/usr/libexec/spiped/spipe",
        "/usr/lib/systemd/system/spipe@.service",
        "/usr/lib/systemd/system/spipe@.socket",
        "/usr/lib/systemd/system/spiped-receive.service",
        "/usr/lib/systemd/system/spiped-send.service",
        "/usr/share/bash-completion/completions/spipe",
        "/usr/share/fish/vendor_completions.d/spipe.fish",
        "/usr/share/lintian/overrides/spipe",
        "/usr/share/man/man1/spipe.1.gz",
        "/usr/share/man/man1/spiped.1.gz",
        "/usr/share/man/man5/spipe.toml.5.gz",
        "/usr/share/zsh/vendor-completions/_spipe",
    ];
    assert_eq!(without_documents(&DEBIAN.0), BTreeSet::from(expected));
}

#[test]
fn both_packages_have_the_documents_the_changes_and_the_licences() {
    let guides = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guides")).expect("guides");
    let guides = guides.map(|entry| format!("docs/guides/{}", entry.expect("a guide").file_name().display()));
    let documents = ["README.md", "SECURITY.md", "docs/STATUS.md", "changelog.gz", "THIRD-PARTY.gz"];
    for document in documents.map(ToOwned::to_owned).into_iter().chain(guides) {
        let path = format!("/usr/share/doc/spipe/{document}");
        assert!(DEBIAN.0.contains(&path) && RPM.contains(&path), "{path}");
    }
    assert!(DEBIAN.0.contains("/usr/share/doc/spipe/copyright"));
    assert!(RPM.contains("/usr/share/licenses/spipe/LICENSE-MIT"));
}

#[test]
fn the_rpm_package_has_what_debians_has() {
    let (debian, rpm) = (without_documents(&DEBIAN.0), without_documents(&RPM));
    // What each has in its own way: the link is made by a script, and zsh looks elsewhere.
    let debian_only = [
        "/usr/bin/spiped",
        "/usr/libexec/spiped/spipe",
        "/usr/share/lintian/overrides/spipe",
        "/usr/share/zsh/vendor-completions/_spipe",
    ];
    let rpm_only = [
        "/usr/share/licenses/spipe/LICENSE-APACHE",
        "/usr/share/licenses/spipe/LICENSE-MIT",
        "/usr/share/zsh/site-functions/_spipe",
    ];
    assert_eq!(debian.difference(&rpm).copied().collect::<Vec<_>>(), debian_only);
    assert_eq!(rpm.difference(&debian).copied().collect::<Vec<_>>(), rpm_only);
}
