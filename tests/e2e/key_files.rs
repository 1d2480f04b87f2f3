//! Making, reading and comparing keys.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;

use crate::support::pipe::{End, Key, Pipe, field, stdio};
use crate::support::process::{Ended, Process, after, run, run_with_input, spipe};
use crate::support::random::{Random, hex};
use crate::support::socket::{assert_echoes, connect, echo};

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
    assert_echoes(&mut connect(address), "hello");
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
    let mut command = stdio("127.0.0.1:9", Path::new("/dev/zero"));
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
    let of = |path: &Path| run(spipe().arg("fingerprint").arg(path)).succeeded().text();
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

/// Gives `path` to the user and group `nobody`, whose number is 65534. Without root's rights, asserts that this is refused, and
/// returns false.
fn give_to_nobody(path: &Path) -> bool {
    let given = std::os::unix::fs::chown(path, Some(65534), Some(65534));
    assert_eq!(given.is_ok(), geteuid().is_root(), "{given:?}");
    given.is_ok()
}

#[test]
fn a_key_of_another_user_is_refused() {
    let key = Key::new();
    if give_to_nobody(&key.path()) {
        let path = key.path().display().to_string();
        assert_refused(
            &key,
            &[&format!("{path} belongs to another user (uid 65534)"), &format!("type: chown 0 {path}  ")],
        );
        run(spipe().args(["fingerprint", "--insecure-key-permissions"]).arg(&path)).succeeded();
    }
}

#[test]
fn a_key_of_the_user_that_spipe_becomes_is_accepted_at_the_start_and_at_a_reload() {
    let key = Key::new();
    if give_to_nobody(&key.path()) && give_to_nobody(key.path().parent().expect("it is in a directory")) {
        let responder = End::responder(&key, echo()).args(&["-u", "nobody"]).start();
        responder.process.reload_successfully();
    }
}

#[test]
fn a_key_of_another_user_than_the_one_that_spipe_becomes_is_refused() {
    let key = Key::new();
    if give_to_nobody(&key.path()) {
        let mut command = End::responder(&key, echo()).args(&["-u", "daemon"]).command();
        run(&mut command).failed_with(1, &["belongs to another user (uid 65534)"]);
    }
}

/// A directory with one key.
fn directory_with_key() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    run(spipe().arg("keygen").arg(directory.path().join("a.key"))).succeeded();
    directory
}

#[test]
fn a_directory_that_others_can_write_to_is_refused_with_the_chmod_command() {
    let directory = directory_with_key();
    let path = directory.path();
    for mode in [0o777, 0o775, 0o702, 0o1777] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
        let refused = format!("others can put keys into the directory {} (mode {mode:04o})", path.display());
        let parts = [&*refused, &format!("type: chmod go-w {}  ", path.display())];
        run(spipe().arg("fingerprint").arg(path)).failed_with(1, &parts);
        run(&mut stdio("127.0.0.1:9", path)).failed_with(1, &parts);
        run(spipe().args(["fingerprint", "--insecure-key-permissions"]).arg(path)).succeeded();
    }
}

#[test]
fn a_directory_that_others_can_only_read_is_accepted() {
    let directory = directory_with_key();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    run(spipe().arg("fingerprint").arg(directory.path())).succeeded();
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let directory = directory_with_key();
    if give_to_nobody(directory.path()) {
        run(spipe().arg("fingerprint").arg(directory.path()))
            .failed_with(1, &["belongs to another user (uid 65534)"]);
    }
}

/// `command` as a member of the group 1234 and no other, where `keys` is a read-only mount as Kubernetes makes one of a secret: in
/// a directory of mode 3777, a link that leads to the key by way of another link. The key has `mode` and the group `group`.
///
/// Needs root's rights, as do mounts; without them, asserts that the mount is refused, and returns None.
fn with_mounted_key(command: &Command, keys: &Path, mode: &str, group: &str) -> Option<Command> {
    let keys = keys.display();
    let setup = format!(
        "set -e; mount -t tmpfs -o mode=1777 tmpfs {keys}; mkdir {keys}/..1; head -c 32 /dev/urandom >{keys}/..1/web.key; \
         chown 0:{group} {keys}/..1/web.key; chmod {mode} {keys}/..1/web.key; ln -s ..1 {keys}/..data; \
         ln -s ..data/web.key {keys}/web.key; chmod 3777 {keys}; mount -o remount,ro {keys};"
    );
    let mut mounted = Command::new("unshare");
    mounted.args(["--mount", "setpriv", "--regid", "1234", "--groups", "1234"]);
    let command = after(&setup, command);
    mounted.arg(command.get_program()).args(command.get_args());
    if geteuid().is_root() {
        return Some(mounted);
    }
    run(&mut mounted).failed_with_last_line(1, &["unshare"]);
    None
}

fn fingerprint_of_mounted(mode: &str, group: &str) -> Option<Ended> {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let mut command = spipe();
    command.arg("fingerprint").arg(keys.path());
    Some(run(&mut with_mounted_key(&command, keys.path(), mode, group)?))
}

#[test]
fn a_mounted_key_that_a_group_of_ours_can_read_is_accepted() {
    if let Some(ended) = fingerprint_of_mounted("0440", "1234") {
        assert!(ended.succeeded().text().ends_with("  web.key"));
    }
}

#[test]
fn a_mounted_key_that_another_group_can_read_is_refused() {
    if let Some(ended) = fingerprint_of_mounted("0440", "4321") {
        ended.failed_with(
            1,
            &[
                "web.key can be read by others (mode 0440)",
                "a mount that is read-only",
                "group that spipe is in",
            ],
        );
    }
}

#[test]
fn a_mounted_key_that_everybody_can_read_is_refused_without_the_chmod_command() {
    if let Some(ended) = fingerprint_of_mounted("0444", "1234") {
        assert!(!ended.stderr.contains("chmod"), "{}", ended.stderr);
        ended.failed_with(
            1,
            &["can be read by others (mode 0444)", "mount it with mode 0400", "--insecure-key-permissions"],
        );
    }
}

#[test]
fn a_key_that_a_group_of_ours_can_read_is_refused_where_chmod_helps() {
    let key = Key::new();
    key.set_mode(0o440);
    assert_refused(&key, &["(mode 0440); type: chmod 600"]);
}

#[test]
fn a_mounted_key_is_read_again_by_a_process_that_has_locked_itself_in() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let mut command = spipe();
    command.args(["-d", "-s", "127.0.0.1:0", "-t", "127.0.0.1:9", "-k"]).arg(keys.path());
    if let Some(mut mounted) = with_mounted_key(&command, keys.path(), "0440", "1234") {
        let process = Process::start(&mut mounted);
        process.await_line(&["listening"]);
        process.reload_successfully();
    }
}

#[test]
fn one_key_twice_is_refused_with_both_files() {
    let directory = directory_with_key();
    let [first, second] = ["a.key", "b.key"].map(|name| directory.path().join(name));
    std::fs::copy(&first, &second).expect("it can be copied");
    let (first, second) = (first.display(), second.display());
    let refused = format!("the keys {first} and {second} have one fingerprint, ");
    run(&mut stdio("127.0.0.1:9", directory.path())).failed_with(1, &[&refused, "leave one out"]);
    let refused = format!("the keys {first} and {first} have one fingerprint, ");
    let mut command = stdio("127.0.0.1:9", Path::new(&first.to_string()));
    run(command.args(["-k", &first.to_string()])).failed_with(1, &[&refused]);
}

/// Two keys that were searched for because their fingerprints agree: of 2^16 keys, one expects such a pair.
const ALIKE: [&[u8]; 2] = [b"key number 00026836 of the collision", b"key number 00084939 of the collision"];

#[test]
fn two_keys_of_one_fingerprint_are_refused_with_both_files() {
    let [first, second] = ALIKE.map(Key::of);
    let mut command = stdio("127.0.0.1:9", &first.path());
    run(command.arg("-k").arg(second.path())).failed_with(
        1,
        &[
            "have one fingerprint, 12f5-b647",
            &first.path().display().to_string(),
            &second.path().display().to_string(),
        ],
    );
}

#[test]
fn pipes_share_a_key_but_not_the_fingerprint_of_two_keys() {
    let [first, second] = ALIKE.map(Key::of);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let check = |keys: [&Key; 2]| {
        let pipe = |(number, key): (usize, &Key)| {
            let path = key.path().display().to_string();
            format!(
                "[[pipe]]\nmode = \"decrypt\"\nsource = \"127.0.0.1:{}\"\ntarget = \"[::1]:9\"\nkey = \"{path}\"\n",
                number + 1
            )
        };
        let file = directory.path().join("pipes.toml");
        let pipes: String = keys.into_iter().enumerate().map(pipe).collect();
        std::fs::write(&file, pipes).expect("the file can be written");
        run(spipe().arg("check").arg(file))
    };
    check([&first, &first]).succeeded();
    check([&first, &second]).failed_with(
        1,
        &[
            "pipes.toml:10: ",
            "differ and have one fingerprint, 12f5-b647",
            &second.path().display().to_string(),
        ],
    );
}

#[test]
fn both_ends_log_the_file_of_the_key() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let keys = directory.path().join("web.keys");
    std::fs::create_dir(&keys).expect("a new directory");
    for name in ["a.key", "b.key"] {
        run(spipe().arg("keygen").arg(keys.join(name))).succeeded();
    }
    let start = |args: &[&str]| {
        let mut command = spipe();
        let process = Process::start(command.args(args).current_dir(directory.path()));
        let line = process.await_line(&["listening"]);
        let port = field(&line, "source").rsplit_once(':').expect("a port").1.to_owned();
        (process, line, format!("127.0.0.1:{port}"))
    };
    let target = echo().to_string();
    let (responder, line, address) = start(&["-d", "-s", "127.0.0.1:0", "-t", &target, "-k", "web.keys"]);
    assert_eq!(field(&line, "key_file"), "web.keys/a.key,web.keys/b.key");
    let (initiator, line, address) =
        start(&["-e", "-s", "127.0.0.1:0", "-t", &address, "-k", "web.keys/b.key"]);
    assert_eq!(field(&line, "key_file"), "web.keys/b.key");
    let mut client = connect(address.parse().expect("an address"));
    assert_echoes(&mut client, "hello");
    drop(client);
    for end in [&initiator, &responder] {
        assert_eq!(field(&end.await_line(&["closed"]), "key_file"), "web.keys/b.key");
    }
}
