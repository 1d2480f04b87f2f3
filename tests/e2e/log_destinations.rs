//! The destinations and formats of log lines: JSON, the journal, syslog.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::pipe::{End, Key, stdio};
use crate::support::process::{Process, after, run};
use crate::support::site::Site;
use crate::support::socket::{assert_echoes, connect, connect_unix, echo};
use crate::support::{DEADLINE, poll_until};

// ── JSON ──

/// The line of `process` with the message `message`, as JSON.
#[track_caller]
fn json(process: &Process, message: &str) -> Value {
    let line = process.await_line(&[&format!("\"message\":\"{message}\"")]);
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn each_json_line_is_an_object_with_the_values_as_fields() {
    let key = Key::new();
    let args = ["--log-format", "json", "--name", "front \"door\"\\"];
    let responder = Process::start(&mut End::responder(&key, echo()).args(&args).command());
    let line = json(&responder, "listening");
    let address: SocketAddr =
        line["source"].as_str().expect("a string").replace(['[', ']'], "").parse().expect("an address");
    assert_eq!((&line["role"], &line["version"]), (&"decrypt".into(), &env!("CARGO_PKG_VERSION").into()));
    let initiator = End::initiator(&key, address).start();
    let mut client = initiator.connect();
    assert_echoes(&mut client, "hello");
    drop(client);
    let line = json(&responder, "closed");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["pipe"], "front \"door\"\\");
    assert_eq!((&line["to_target"], &line["from_target"]), (&5.into(), &5.into()));
    assert_eq!(line["reason"], "finished");
    assert!(line["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{line}");
    for name in ["timestamp", "peer", "client", "target", "key", "cipher"] {
        assert!(line[name].is_string(), "no {name} in {line}");
    }
    for line in responder.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string() && line["message"].is_string());
    }
}

#[test]
fn an_error_in_json_is_one_object_with_the_reason() {
    let key = Key::new();
    let nobody = key.path().with_extension("nobody");
    let initiator =
        Process::start(&mut End::initiator(&key, nobody.display()).args(&["--log-format", "json"]).command());
    let source = json(&initiator, "listening")["source"].as_str().expect("a string").replace(['[', ']'], "");
    drop(connect(source.parse().expect("an address")));
    let line = json(&initiator, "failed");
    assert_eq!(line["level"], "WARN");
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("cannot connect to")), "{line}");
}

#[test]
fn an_error_at_start_up_is_plain_text() {
    let key = Key::of(b"short");
    let end = End::initiator(&key, "127.0.0.1:9").args(&["--log-format", "json"]);
    run(&mut end.command()).failed_with(1, &["at least 32 bytes"]);
}

// ── the journal ──

/// Starts `command` with a JOURNAL_STREAM that matches its standard error.
fn in_the_journal(command: &Command) -> Process {
    let process = Process::start(&mut after("JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr)", command));
    process.await_line(&["listening"]);
    process
}

#[test]
fn a_journal_line_has_a_level_prefix_and_no_time() {
    let key = Key::new();
    let nobody = key.path().with_extension("nobody");
    let process = in_the_journal(&End::initiator(&key, nobody.display()).args(&["--verbose"]).command());
    let line = process.await_line(&["listening"]);
    assert!(line.starts_with("<6>listening version="), "{line}");
    let source = crate::support::pipe::field(&line, "source").replace(['[', ']'], "");
    drop(connect(source.parse().expect("an address")));
    let line = process.await_line(&["failed"]);
    assert!(line.starts_with("<4>failed client="), "{line}");
    std::fs::remove_file(key.path()).expect("the file can be removed");
    process.signal(Signal::HUP);
    let line = process.await_line(&["not reloaded"]);
    assert!(line.starts_with("<3>not reloaded: "), "{line}");
}

#[test]
fn a_json_line_in_the_journal_has_a_level_prefix() {
    let key = Key::new();
    let process =
        in_the_journal(&End::initiator(&key, "127.0.0.1:9").args(&["--log-format", "json"]).command());
    let line = process.await_line(&["listening"]);
    let object: Value =
        serde_json::from_str(line.strip_prefix("<6>").expect("a level prefix")).expect("valid JSON");
    assert_eq!(object["message"], "listening");
}

#[test]
fn a_journal_stream_other_than_standard_error_is_ignored() {
    let key = Key::new();
    for stream in ["", "1:1", "nonsense"] {
        let end = End::initiator(&key, "127.0.0.1:9");
        let process = Process::start(end.command().env("JOURNAL_STREAM", stream));
        let line = process.await_line(&["listening"]);
        assert!(line.contains("  INFO listening"), "{line}");
    }
}

// ── syslog ──

/// A host with its own /dev, and a log daemon on it, played by the test.
struct Host {
    site: Site,
    daemon: UnixDatagram,
}

impl Host {
    fn new() -> Self {
        let site = Site::with_key();
        std::fs::create_dir(site.path("dev")).expect("the directory can be created");
        std::fs::write(site.path("dev/null"), "").expect("the file can be written");
        let daemon = UnixDatagram::bind(site.path("dev/log")).expect("the name is free");
        daemon.set_read_timeout(Some(DEADLINE)).expect("the socket is open");
        Self { site, daemon }
    }

    /// `command`, run on this host.
    fn command(&self, command: &Command) -> Command {
        let dev = self.site.name("dev");
        let mounted = after(
            &format!("mount --bind /dev/null {dev}/null && mount --rbind {dev} /dev || exit 99;"),
            command,
        );
        let mut unshared = Command::new("unshare");
        unshared.args(["--map-root-user", "--mount"]).arg(mounted.get_program()).args(mounted.get_args());
        unshared
    }

    /// The next line with `part` that the daemon receives.
    #[track_caller]
    fn await_line(&self, part: &str) -> String {
        loop {
            let mut line = vec![0; 4096];
            let length = self.daemon.recv(&mut line).unwrap_or_else(|error| panic!("no {part}: {error}"));
            let line = String::from_utf8_lossy(&line[..length]).into_owned();
            if line.contains(part) {
                return line;
            }
        }
    }
}

#[test]
fn a_syslog_line_has_level_name_and_process_id() {
    let host = Host::new();
    let site = &host.site;
    // Nothing listens at this name.
    site.configure("syslog = true\n".to_owned() + &site.encrypt("a", site.socket("nobody")));
    let process = Process::start(&mut host.command(&site.command()));
    // The facility "daemon" is 3. The number is 3 × 8 plus the level, here 5 (notice).
    let line = host.await_line("listening");
    assert!(line.starts_with("<29>"), "{line}");
    assert!(line.contains(&format!(" spipe[{}]: listening pipe=\"a\" ", process.pid())), "{line}");
    drop(site.connect("a"));
    let line = host.await_line("failed");
    assert!(line.starts_with("<28>"), "{line}");
    assert_eq!(process.log(), "", "nothing is written to standard error");
}

#[test]
fn syslog_can_be_chosen_on_the_command_line() {
    let host = Host::new();
    host.site.configure(host.site.encrypt("a", "127.0.0.1:9"));
    let _process = Process::start(&mut host.command(host.site.command().arg("--syslog")));
    host.await_line("listening");
}

#[test]
fn a_json_line_in_syslog_is_an_object() {
    let host = Host::new();
    host.site.configure(host.site.encrypt("a", "127.0.0.1:9"));
    let mut command = host.site.command();
    let _process = Process::start(&mut host.command(command.args(["--syslog", "--log-format", "json"])));
    let line = host.await_line("listening");
    let object = line.split_once("]: ").expect("the syslog header").1;
    let object: Value = serde_json::from_str(object.trim_end_matches(['\0', '\n'])).expect("valid JSON");
    assert_eq!(object["pipe"], "a");
}

#[test]
fn a_background_process_logs_to_syslog() {
    let host = Host::new();
    let site = &host.site;
    site.configure(site.both_ends("a", echo()));
    let mut command = site.command();
    let ended = run(&mut host.command(command.arg("--daemon").arg("-p").arg(site.path("pid"))));
    let pid = std::fs::read_to_string(site.path("pid"));
    ended.succeeded();
    let pid: i32 = pid.expect("the pid file exists").trim().parse().expect("a number");
    let stop = Stop(rustix::process::Pid::from_raw(pid).expect("a process id"));
    let line = host.await_line("listening");
    assert!(line.contains(&format!(" spipe[{pid}]: ")), "{line}");
    assert_echoes(&mut connect_unix(&site.path("a.sock")).expect("the socket listens"), "hello");
    host.await_line("closed");
    drop(stop);
    host.await_line("stopped");
    poll_until("the pid file is gone", || (!site.path("pid").exists()).then_some(()));
}

/// Stops a background process when the test ends.
struct Stop(rustix::process::Pid);

impl Drop for Stop {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, Signal::TERM);
    }
}

#[test]
fn without_a_log_daemon_an_error_is_printed_and_the_pipe_serves() {
    let host = Host::new();
    let site = &host.site;
    std::fs::remove_file(site.path("dev/log")).expect("the file can be removed");
    site.configure("syslog = true\n".to_owned() + &site.both_ends("a", echo()));
    let process = Process::start(&mut host.command(&site.command()));
    process.await_line(&["spipe: no log daemon listens at /dev/log"]);
    assert_echoes(&mut poll_until("it listens", || site.try_connect("a").ok()), "hello");
}

#[test]
fn a_restarted_log_daemon_is_used_again() {
    let mut host = Host::new();
    host.site.configure("syslog = true\n".to_owned() + &host.site.both_ends("a", echo()));
    let process = Process::start(&mut host.command(&host.site.command()));
    host.await_line("listening");
    let new = UnixDatagram::bind(host.site.path("dev/new")).expect("the name is free");
    new.set_read_timeout(Some(DEADLINE)).expect("the socket is open");
    std::fs::rename(host.site.path("dev/new"), host.site.path("dev/log")).expect("the file can be renamed");
    host.daemon = new;
    // Several connections, since syslog(3) loses the line that it was sending.
    for _ in 0..3 {
        assert_echoes(&mut host.site.connect("a"), "hello");
    }
    process.signal(Signal::TERM);
    host.await_line("stopped");
}

#[test]
fn a_pipe_on_standard_input_and_output_may_use_syslog() {
    let host = Host::new();
    let mut command = stdio(host.site.socket("nobody"), &host.site.path("test.key"));
    let ended = run(&mut host.command(command.arg("--syslog")));
    // The error goes to standard error as well.
    ended.failed_with(1, &["cannot connect to"]);
}

/// A time zone 5 hours and 30 minutes ahead of UTC, as a file (tzfile(5)): one type of local time and no transitions.
fn half_past_zone() -> Vec<u8> {
    let counts = [0_u32, 0, 0, 0, 1, 4].map(u32::to_be_bytes).concat();
    let offset = (5 * 3600 + 30 * 60_i32).to_be_bytes();
    [&b"TZif"[..], &[0; 16], &counts, &offset, &[0, 0], b"TST\0"].concat()
}

#[test]
fn a_pipe_on_standard_input_and_output_writes_local_time_to_syslog() {
    let host = Host::new();
    std::fs::write(host.site.path("zone"), half_past_zone()).expect("the file can be written");
    let mut command = stdio(host.site.socket("nobody"), &host.site.path("test.key"));
    let in_zone = after(
        &format!("mount --bind {} /etc/localtime || exit 99;", host.site.name("zone")),
        command.args(["--syslog", "--verbose"]),
    );
    // syslog(3) reads the zone with its first line, and nothing is logged before the sandbox is closed.
    run(&mut host.command(&in_zone)).failed_with(1, &["cannot connect to"]);
    // <28>Nov 25 15:02:03 spipe[1]: failed …
    let line = host.await_line("failed");
    let minute = |time: &str| -> i64 {
        let (hours, minutes) = time.split_once(':').expect("a time of day");
        60 * hours.parse::<i64>().expect("a number") + minutes.parse::<i64>().expect("a number")
    };
    let logged =
        minute(line.split_whitespace().nth(2).and_then(|time| time.rsplit_once(':')).expect("a time").0);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("it is after 1970").as_secs();
    let utc = i64::try_from(now / 60 % (24 * 60)).expect("it is small");
    let ahead = (logged - utc).rem_euclid(24 * 60);
    // A minute or two may pass between the line and this.
    assert!((325..=330).contains(&ahead), "{ahead} minutes ahead of UTC: {line}");
}

// ── values that would break a line ──

#[test]
fn a_file_name_with_a_line_break_cannot_forge_a_line() {
    let (site, key) = (Site::new(), Key::new());
    let source = site.path("plain\n2026-01-01T00:00:00Z ERROR forged");
    let initiator = End::initiator(&key, "127.0.0.1:9").source(source.display());
    let mut process = Process::start(&mut initiator.command());
    process.await_line(&["listening", "plain\\n2026-01-01T00:00:00Z ERROR forged"]);
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    assert!(!process.log().lines().any(|line| line.starts_with("2026-01-01")), "{}", process.log());
}

#[test]
fn an_error_about_a_file_name_with_an_escape_sequence_is_one_plain_line() {
    let mut command = stdio("127.0.0.1:9", std::path::Path::new("/no/such\n\u{1b}[31mkey"));
    run(&mut command).failed_with(1, &["cannot read the key /no/such\\n\\u{1b}[31mkey"]);
}

// ── a log that is not read ──

/// Sends a line through `connect`'s pipe and back, `count` times.
fn assert_serves<S: Read + Write>(count: usize, connect: impl Fn() -> S) {
    for _ in 0..count {
        assert_echoes(&mut connect(), "hello");
    }
}

#[test]
fn a_log_that_is_not_read_holds_up_neither_connections_nor_the_end() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let address = SocketAddr::from(([127, 77, 0, 2], crate::support::redis::free_port()));
    let (mut unread, log) = std::io::pipe().expect("descriptors are left");
    let mut command = End::initiator(&key, responder.address()).source(address).command();
    let mut initiator = Process::start_piped(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log));
    // The command keeps its end of the pipe open.
    drop(command);
    poll_until("it listens", || crate::support::socket::try_connect(address).ok());
    // Each connection is a line of some 200 bytes: many more than the pipe's 64 KiB and the queue hold.
    assert_serves(3000, || connect(address));
    initiator.signal(Signal::TERM);
    let mut log = String::new();
    assert_eq!(initiator.wait().code(), Some(0), "it ends although the log is full");
    unread.read_to_string(&mut log).expect("the pipe is open");
    assert!(log.matches(" closed ").count() < 3000, "some lines were lost");
}

#[test]
fn lines_that_were_lost_are_counted_in_the_log_once_it_is_read_again() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let address = SocketAddr::from(([127, 77, 0, 3], crate::support::redis::free_port()));
    let (mut unread, log) = std::io::pipe().expect("descriptors are left");
    let mut command = End::initiator(&key, responder.address()).source(address).command();
    let mut initiator = Process::start_piped(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log));
    drop(command);
    poll_until("it listens", || crate::support::socket::try_connect(address).ok());
    assert_serves(3000, || connect(address));
    let reading = std::thread::spawn(move || {
        let mut log = String::new();
        unread.read_to_string(&mut log).map(|_| log)
    });
    // There is room again. Each further line gives the count of those lost before it.
    assert_serves(10, || connect(address));
    initiator.signal(Signal::TERM);
    assert_eq!(initiator.wait().code(), Some(0));
    let log = reading.join().expect("the thread reads").expect("the log is text");
    let lost: usize = log
        .lines()
        .filter(|line| line.contains("log lines were lost"))
        .map(|line| crate::support::pipe::field(line, "lines").parse::<usize>().expect("a number"))
        .sum();
    let written = log.lines().filter(|line| line.contains(" closed ")).count();
    // One more connection is the one that found out that it listens.
    assert!(lost > 0 && (3010..=3011).contains(&(lost + written)), "{lost} lost, {written} written");
}

#[test]
fn a_log_daemon_that_reads_nothing_holds_up_neither_connections_nor_the_end() {
    let host = Host::new();
    let site = &host.site;
    site.configure("syslog = true\n".to_owned() + &site.both_ends("a", echo()));
    let mut process = Process::start(&mut host.command(&site.command()));
    poll_until("it listens", || site.try_connect("a").ok());
    // A datagram socket holds about ten lines.
    assert_serves(1000, || site.connect("a"));
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "it ends although the log is full");
}
