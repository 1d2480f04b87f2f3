//! Making, reading and comparing keys.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::pipe::{End, Key, Pipe, field, stdio};
use crate::support::process::{Ended, Process, run, run_with_input, spipe};
use crate::support::random::{Random, hex};
use crate::support::socket::{assert_echoes, echo};

fn fingerprint(key: &Key) -> String {
    run(spipe().arg("fingerprint").arg(key.path())).succeeded().text()
}

#[test]
fn keygen_writes_32_bytes_that_only_the_owner_can_read() {
    let key = Key::new();
    let metadata = std::fs::metadata(key.path()).expect("the file exists");
    assert_eq!(metadata.len(), 32);
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
}

#[test]
fn keygen_makes_the_file_private_with_any_umask() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("test.key");
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0 && exec \"$0\" keygen \"$1\""]).arg(spipe().get_program()).arg(&path);
    run(&mut shell).succeeded();
    let mode = std::fs::metadata(&path).expect("the file exists").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn keygen_makes_another_key_each_time() {
    let read = |key: Key| std::fs::read(key.path()).expect("the file can be read");
    assert_ne!(read(Key::new()), read(Key::new()));
}

#[test]
fn keygen_prints_the_fingerprint() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("test.key");
    let said = run(spipe().arg("keygen").arg(&path)).succeeded().text();
    let fingerprint = run(spipe().arg("fingerprint").arg(&path)).succeeded().text();
    assert!(said.ends_with(&format!("fingerprint {fingerprint}")), "{said}");
}

#[test]
fn keygen_never_overwrites_a_file() {
    let key = Key::of(b"an existing file of more than 32 bytes");
    run(spipe().arg("keygen").arg(key.path())).failed_with(1, &["exists already", "left as it is"]);
    let content = std::fs::read(key.path()).expect("the file exists");
    assert_eq!(content, b"an existing file of more than 32 bytes");
}

#[test]
fn keygen_does_not_write_through_a_dangling_link() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (link, behind) = (directory.path().join("link"), directory.path().join("behind"));
    std::os::unix::fs::symlink(&behind, &link).expect("the link can be created");
    run(spipe().arg("keygen").arg(&link)).failed_with(1, &["exists already"]);
    assert!(!behind.exists());
}

#[test]
fn keygen_without_a_file_writes_the_key_to_a_pipe() {
    let ended = run(spipe().arg("keygen")).succeeded();
    assert_eq!(ended.stdout.len(), 32);
    let key = Key::of(&ended.stdout);
    assert!(ended.stderr.contains(&fingerprint(&key)), "{}", ended.stderr);
}

/// Runs `spipe ARGUMENTS` with a terminal as all of its standard streams.
fn on_a_terminal(arguments: &str) -> Ended {
    let command = format!("{} {arguments}", spipe().get_program().to_string_lossy());
    run(Command::new("script").args(["--quiet", "--return", "--command", &command, "/dev/null"]))
}

#[test]
fn keygen_without_a_file_refuses_an_output_where_the_key_would_be_lost() {
    for output in [">/dev/null", ">&-"] {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec \"$0\" keygen {output}")]).arg(spipe().get_program());
        run(&mut shell).failed_with(1, &["standard output is closed or /dev/null", "spipe keygen FILE"]);
    }
}

#[test]
fn keygen_without_a_file_refuses_a_terminal() {
    let ended = on_a_terminal("keygen");
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.text(), "spipe: a key does not belong on a terminal; name a file: spipe keygen FILE");
}

#[test]
fn a_key_is_not_read_from_a_terminal() {
    let ended = on_a_terminal("fingerprint -");
    assert_eq!(ended.code, Some(1));
    assert!(ended.text().contains("standard input is a terminal"), "{}", ended.text());
}

#[test]
fn copies_of_a_key_have_one_fingerprint_and_different_keys_have_different_ones() {
    let key = Key::new();
    let copy = Key::of(&std::fs::read(key.path()).expect("the file can be read"));
    assert_eq!(fingerprint(&key), fingerprint(&copy));
    assert_ne!(fingerprint(&key), fingerprint(&Key::new()));
}

#[test]
fn a_fingerprint_is_short_and_reveals_no_part_of_the_key() {
    let bytes = Random::bytes(6, 32);
    let fingerprint = fingerprint(&Key::of(&bytes));
    assert!(fingerprint.len() <= 20 && !fingerprint.contains(' '), "{fingerprint}");
    let digits = fingerprint.replace('-', "");
    let hex = hex(&bytes);
    assert!(!hex.contains(&digits[..4]), "{fingerprint} {hex}");
}

#[test]
fn a_key_on_standard_input_has_the_same_fingerprint() {
    let key = Key::new();
    let bytes = std::fs::read(key.path()).expect("the file can be read");
    let ended = run_with_input(spipe().args(["fingerprint", "-"]), bytes).succeeded();
    assert_eq!(ended.text(), fingerprint(&key));
}

#[test]
fn both_ends_log_the_fingerprint() {
    let pipe = Pipe::to(echo()).start();
    for end in [&pipe.initiator, &pipe.responder] {
        assert_eq!(field(&end.await_line(&["listening"]), "key"), fingerprint(&pipe.key));
    }
}

#[test]
fn a_key_is_read_from_standard_input() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let mut command = spipe();
    command.args(["-e", "-s", "127.0.0.1:0", "-t", &responder.address().to_string(), "-k", "-"]);
    command.stdin(std::fs::File::open(key.path()).expect("the file can be read"));
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let initiator = Process::start_piped(&mut command);
    let line = initiator.await_line(&["listening"]);
    let port = field(&line, "source").rsplit_once(':').expect("a port").1.to_owned();
    let address = format!("127.0.0.1:{port}").parse().expect("an address");
    assert_echoes(&mut crate::support::socket::connect(address), "hello");
}

#[test]
fn a_key_made_by_dd_works() {
    let key = Key::of(&[0; 32]);
    let mut dd = Command::new("dd");
    run(dd.args(["if=/dev/urandom", "bs=32", "count=1"]).arg(format!("of={}", key.path().display())))
        .succeeded();
    assert_eq!(std::fs::metadata(key.path()).expect("the file exists").len(), 32);
    let pipe = Pipe::to(echo()).start_with(key);
    assert_echoes(&mut pipe.connect(), "hello");
}

#[test]
fn every_byte_of_a_long_key_file_counts() {
    let mut bytes = Random::bytes(7, 100_000);
    let key = Key::of(&bytes);
    bytes[99_999] ^= 1;
    assert_ne!(fingerprint(&key), fingerprint(&Key::of(&bytes)));
}

/// Asserts that `key` is refused before a connection is made. Nothing listens at the target.
#[track_caller]
fn assert_refused(key: &Key, parts: &[&str]) {
    run(&mut stdio("127.0.0.1:9", &key.path())).failed_with(1, parts);
    run(&mut End::initiator(key, "127.0.0.1:9").command()).failed_with(1, parts);
}

#[test]
fn a_short_key_is_refused() {
    assert_refused(&Key::of(&[1; 31]), &["a key is at least 32 bytes, and this one is 31", "spipe keygen"]);
}

#[test]
fn an_empty_key_is_refused() {
    assert_refused(&Key::of(b""), &["at least 32 bytes"]);
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_chmod_command() {
    for mode in [0o640, 0o604, 0o660, 0o644] {
        let key = Key::new();
        key.set_mode(mode);
        let path = key.path().display().to_string();
        assert_refused(&key, &[&format!("(mode {mode:04o}); type: chmod 600 {path}  ")]);
        run(spipe().arg("fingerprint").arg(&path)).failed_with(1, &[&format!("chmod 600 {path}  ")]);
    }
}

#[test]
fn a_key_that_others_can_read_works_with_the_override() {
    let key = Key::new();
    key.set_mode(0o644);
    run(spipe().args(["fingerprint", "--insecure-key-permissions"]).arg(key.path())).succeeded();
    let pipe = Pipe::to(echo()).args(&["--insecure-key-permissions"]).start_with(key);
    assert_echoes(&mut pipe.connect(), "hello");
}

#[test]
fn a_read_only_key_works() {
    let key = Key::new();
    key.set_mode(0o400);
    let pipe = Pipe::to(echo()).start_with(key);
    assert_echoes(&mut pipe.connect(), "hello");
}

#[test]
fn a_missing_key_is_refused_with_the_keygen_command() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let missing = directory.path().join("missing.key");
    run(&mut stdio("127.0.0.1:9", &missing))
        .failed_with(1, &["cannot read the key", "missing.key", "spipe keygen"]);
}

#[test]
fn a_device_is_refused_as_a_key() {
    let mut command = stdio("127.0.0.1:9", std::path::Path::new("/dev/zero"));
    run(command.arg("--insecure-key-permissions")).failed_with(1, &["is a device"]);
}

#[test]
fn a_directory_without_keys_is_refused_with_the_keygen_command() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("README"), [7; 32]).expect("the file can be written");
    let mut command = stdio("127.0.0.1:9", directory.path());
    run(&mut command).failed_with(1, &["has no key", "*.key", "spipe keygen"]);
}

#[test]
fn the_fingerprints_of_a_directory_are_sorted_by_file_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name| directory.path().join(name);
    for name in ["b.key", "a.key", "c.key.old"] {
        run(spipe().arg("keygen").arg(path(name))).succeeded();
    }
    let of = |path: &std::path::Path| run(spipe().arg("fingerprint").arg(path)).succeeded().text();
    let expected = format!("{}  a.key\n{}  b.key", of(&path("a.key")), of(&path("b.key")));
    assert_eq!(of(directory.path()), expected);
}

#[test]
fn an_invalid_key_in_a_directory_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    run(spipe().arg("keygen").arg(directory.path().join("good.key"))).succeeded();
    let short = directory.path().join("short.key");
    run(spipe().arg("keygen").arg(&short)).succeeded();
    std::fs::write(&short, "short").expect("the file can be written");
    run(&mut stdio("127.0.0.1:9", directory.path())).failed_with(1, &["short.key", "at least 32 bytes"]);
}

/// Runs `spipe fingerprint` on a key with `mode` in the directory of systemd's credentials.
fn fingerprint_of_credential(mode: u32) -> Ended {
    let key = Key::new();
    key.set_mode(mode);
    let directory = key.path();
    let directory = directory.parent().expect("the path has a parent");
    run(spipe().arg("fingerprint").arg(key.path()).env("CREDENTIALS_DIRECTORY", directory))
}

#[test]
fn a_credential_that_its_group_can_read_is_accepted() {
    fingerprint_of_credential(0o440).succeeded();
}

#[test]
fn a_credential_that_others_can_read_is_refused() {
    fingerprint_of_credential(0o444).failed_with(1, &["can be read by others (mode 0444)"]);
}

#[test]
fn a_key_outside_the_credentials_directory_is_still_refused() {
    let (key, elsewhere) = (Key::new(), tempfile::tempdir().expect("a temporary directory"));
    key.set_mode(0o440);
    let ended =
        run(spipe().arg("fingerprint").arg(key.path()).env("CREDENTIALS_DIRECTORY", elsewhere.path()));
    ended.failed_with(1, &["can be read by others (mode 0440)"]);
}

#[test]
fn a_key_of_equal_bytes_is_refused() {
    for bytes in [vec![0; 32], vec![b'x'; 5000]] {
        assert_refused(&Key::of(&bytes), &["all its bytes are the same", "spipe keygen"]);
    }
}
