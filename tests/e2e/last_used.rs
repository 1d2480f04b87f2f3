//! When each key was last used: kept across restarts, told before a key is removed, and lost without harm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;

use crate::support::pipe::{End, Key, field, stdio};
use crate::support::poll_until;
use crate::support::process::{after, run, spipe};
use crate::support::site::{Site, fingerprint};
use crate::support::socket::{assert_echoes, echo};

/// A host with the keys `used` and `idle`, and a directory for state.
struct Host(Site);

impl Host {
    fn new() -> Self {
        let site = Site::new();
        for name in ["keys/used.key", "keys/idle.key"] {
            site.add_key(name);
        }
        fs::create_dir(site.path("state")).expect("a new directory");
        Self(site)
    }

    fn state(&self) -> PathBuf {
        self.0.path("state")
    }

    fn file(&self) -> PathBuf {
        self.0.path("state/last-used")
    }

    fn fingerprint(&self, name: &str) -> String {
        fingerprint(&self.0.path(&format!("keys/{name}.key")))
    }

    /// A responder that accepts both keys.
    fn command(&self) -> Command {
        let mut command = spipe();
        command.args(["-d", "-s", "127.0.0.1:0", "-t", &echo().to_string(), "-k"]).arg(self.0.path("keys"));
        command
    }

    fn start(&self) -> End {
        End::started_by(self.command().arg("--state-directory").arg(self.state()))
    }

    /// Uses the key `used` for one connection.
    fn use_key(&self, responder: &End) {
        let key = Key::of(&fs::read(self.0.path("keys/used.key")).expect("the file can be read"));
        let initiator = End::initiator(&key, responder.address()).start();
        assert_echoes(&mut initiator.connect(), "hello");
        responder.await_line(&[" closed "]);
    }

    /// What `spipe fingerprint` says of both keys: the idle one first.
    fn fingerprints(&self) -> [String; 2] {
        let mut command = spipe();
        command.arg("fingerprint").arg(self.0.path("keys")).arg("--state-directory").arg(self.state());
        let text = run(&mut command).succeeded().text();
        let lines: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
        lines.try_into().expect("two lines")
    }
}

fn stop(mut end: End) -> String {
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    end.process.log()
}

fn days_ago(days: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(24 * days)
}

#[test]
fn fingerprint_tells_when_each_key_was_last_used() {
    let host = Host::new();
    let responder = host.start();
    host.use_key(&responder);
    stop(responder);
    let [idle, used] = host.fingerprints();
    assert_eq!(idle, format!("{}  idle.key  no use known", host.fingerprint("idle")));
    let beginning = format!("{}  used.key  last used 2", host.fingerprint("used"));
    assert!(used.starts_with(&beginning) && used.ends_with(", less than a minute ago"), "{used}");
}

#[test]
fn the_file_has_fingerprints_and_times_and_nothing_else() {
    let host = Host::new();
    let responder = host.start();
    host.use_key(&responder);
    stop(responder);
    let content = fs::read_to_string(host.file()).expect("the file is there");
    let (key, time) = content.trim_end().split_once(' ').expect("one line of two words");
    assert_eq!(key, host.fingerprint("used"));
    assert!(time.parse::<Timestamp>().is_ok(), "{content}");
    assert_eq!(fs::read_dir(host.state()).expect("the directory is there").count(), 1);
}

#[test]
fn what_is_known_survives_restarts_without_use() {
    let host = Host::new();
    let responder = host.start();
    host.use_key(&responder);
    stop(responder);
    let before = fs::read_to_string(host.file()).expect("the file is there");
    for _ in 0..3 {
        stop(host.start());
    }
    assert_eq!(fs::read_to_string(host.file()).expect("the file is there"), before);
}

#[test]
fn a_connection_that_runs_counts_as_use_until_the_end() {
    let host = Host::new();
    let key = Key::of(&fs::read(host.0.path("keys/used.key")).expect("the file can be read"));
    fs::write(host.file(), format!("{} {}\n", host.fingerprint("used"), days_ago(30))).expect("our own file");
    let mut command = host.command();
    command.arg("--state-directory").arg(host.state()).args(["--drain-timeout", "0"]);
    let responder = End::started_by(&mut command);
    let initiator = End::initiator(&key, responder.address()).start();
    let mut client = initiator.connect();
    assert_echoes(&mut client, "hello");
    stop(responder);
    assert!(host.fingerprints()[1].ends_with(", less than a minute ago"), "{:?}", host.fingerprints());
}

#[test]
fn a_process_that_is_killed_leaves_a_state_that_the_next_one_can_use() {
    let host = Host::new();
    let responder = host.start();
    host.use_key(&responder);
    responder.process.kill();
    let responder = host.start();
    host.use_key(&responder);
    let log = stop(responder);
    assert!(!log.contains(" WARN "), "{log}");
    assert!(host.fingerprints()[1].contains("last used"));
}

#[test]
fn a_key_that_nobody_has_used_for_days_is_told_at_the_start_and_at_a_reload() {
    let host = Host::new();
    let [idle, used] = ["idle", "used"].map(|name| host.fingerprint(name));
    fs::write(host.file(), format!("{idle} {}\n{used} {}\n", days_ago(9), days_ago(2)))
        .expect("our own file");
    let responder = host.start();
    let line = responder.await_line(&["nobody has used this key for 9 days"]);
    assert_eq!(field(&line, "key"), idle);
    assert!(field(&line, "key_file").ends_with("keys/idle.key"), "{line}");
    responder.process.reload_successfully();
    responder.process.await_lines(2, "nobody has used this key for 9 days");
    assert!(
        !responder.process.log().contains(&format!("key={used} key_file")),
        "{}",
        responder.process.log()
    );
}

#[test]
fn the_directory_of_systemd_is_used_where_no_other_is_named() {
    let host = Host::new();
    let list = format!("{}:/nonexistent", host.state().display());
    stop(End::started_by(host.command().env("STATE_DIRECTORY", list)));
    assert!(host.file().exists());
}

#[test]
fn a_relative_directory_is_beside_the_file_that_names_it() {
    let host = Host::new();
    let pipe = host.0.decrypt("door", echo()).replace("test.key", "keys");
    host.0.configure(format!("state-directory = \"state\"\n{pipe}"));
    stop(End::started_by(host.0.command().current_dir("/")));
    assert!(host.file().exists());
}

// ── what is not there, not right, or full ──

#[test]
fn a_directory_that_does_not_exist_prevents_the_start() {
    let host = Host::new();
    fs::remove_dir(host.state()).expect("it is empty");
    let mut command = host.command();
    run(command.arg("--state-directory").arg(host.state())).failed_with_last_line(
        1,
        &["the state directory ", "/state cannot be used: No such file or directory"],
    );
    fs::write(host.state(), "").expect("a free name");
    run(&mut command)
        .failed_with_last_line(1, &["the state directory ", "/state cannot be used: not a directory"]);
}

#[test]
fn a_file_that_is_damaged_is_one_warning_and_a_fresh_start() {
    for damage in [&b"nonsense\n"[..], b"\xff\xfe", b"7f3a-19c2 2026-11-2"] {
        let host = Host::new();
        fs::write(host.file(), damage).expect("our own file");
        let responder = host.start();
        responder.await_line(&[" WARN ", "when keys were last used is not known"]);
        host.use_key(&responder);
        let log = stop(responder);
        assert_eq!(log.matches(" WARN ").count(), 1, "{log}");
        assert!(host.fingerprints()[1].contains("last used"));
    }
}

#[test]
fn fingerprint_does_not_guess_what_a_damaged_file_says() {
    let host = Host::new();
    fs::write(host.file(), "nonsense").expect("our own file");
    let mut command = spipe();
    command.arg("fingerprint").arg(host.0.path("keys")).arg("--state-directory").arg(host.state());
    run(&mut command).failed_with(1, &["cannot read when keys were last used", "not what spipe has written"]);
}

#[test]
fn a_directory_that_vanishes_is_one_warning_and_holds_up_nothing() {
    let host = Host::new();
    let responder = host.start();
    poll_until("the file is written", || host.file().exists().then_some(()));
    fs::remove_dir_all(host.state()).expect("it can be removed");
    host.use_key(&responder);
    let log = stop(responder);
    assert_eq!(log.matches("cannot write when keys were last used").count(), 1, "{log}");
}

#[test]
fn a_named_pipe_in_the_place_of_the_file_is_not_waited_at() {
    let host = Host::new();
    let pipe = host.state().join("last-used.new");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo can be run").success());
    let responder = host.start();
    responder.await_line(&["cannot write when keys were last used"]);
    host.use_key(&responder);
    stop(responder);
}

/// `command` where `state` is a file system that `content` has filled, as the file in it. Needs root's rights, as do mounts; without
/// them, asserts that the mount is refused, and returns None.
fn on_a_full_disk(command: &Command, state: &Path, content: &str) -> Option<Command> {
    let state = state.display();
    let setup =
        format!("set -e; mount -t tmpfs -o size=4k tmpfs {state}; echo '{content}' >{state}/last-used;");
    let mut mounted = Command::new("unshare");
    let inner = after(&setup, command);
    mounted.arg("--mount").arg(inner.get_program()).args(inner.get_args());
    if rustix::process::geteuid().is_root() {
        return Some(mounted);
    }
    assert_ne!(run(&mut mounted).code, Some(0));
    None
}

#[test]
fn a_full_disk_is_one_warning_and_keeps_what_it_has_and_holds_up_nothing() {
    let host = Host::new();
    let mut command = host.command();
    command.arg("--state-directory").arg(host.state());
    let content = format!("{} 2020-02-01T00:00:00Z", host.fingerprint("used"));
    let Some(mut command) = on_a_full_disk(&command, &host.state(), &content) else { return };
    let responder = End::started_by(&mut command);
    responder.await_line(&["cannot write when keys were last used", "No space left on device"]);
    for _ in 0..5 {
        host.use_key(&responder);
    }
    let file = format!("/proc/{}/root{}", responder.process.pid(), host.file().display());
    assert_eq!(fs::read_to_string(file).expect("it is as it was").trim_end(), content);
    let log = stop(responder);
    assert_eq!(log.matches("cannot write when keys were last used").count(), 1, "{log}");
}

#[test]
fn one_connection_of_standard_input_keeps_no_state() {
    let key = Key::new();
    let mut command = stdio("127.0.0.1:9", &key.path());
    run(command.args(["--state-directory", "/tmp"]))
        .failed_with(2, &["--state-directory is for a pipe that listens"]);
}
