//! Going into the background (--daemon).

use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::manager::Manager;
use crate::support::pipe::{End, Key};
use crate::support::poll_until;
use crate::support::process::{Ended, run, run_with_input, spipe};
use crate::support::site::Site;
use crate::support::socket::{Service, assert_echoes, assert_ends, echo};

/// The background process. It is killed when dropped, so a test that panics leaves no process behind.
struct Background {
    pid: Pid,
    site: Site,
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.runs() {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

impl Background {
    /// The process that wrote the pid file of `site`; `ended` is the command that started it.
    #[track_caller]
    fn of(site: Site, ended: Ended) -> Self {
        ended.succeeded();
        let pid = std::fs::read_to_string(site.path("pid")).expect("the process has written its pid file");
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).expect("a process id");
        Self { pid, site }
    }

    /// Both ends of the pipe `a` to an echo target.
    fn start() -> Self {
        let site = Site::with_key();
        site.configure(site.both_ends("a", echo()));
        let ended = run(daemon(&mut site.command(), &site));
        Self::of(site, ended)
    }

    fn proc(&self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.pid).into()
    }

    /// The fields of /proc/PID/stat from the third on (proc_pid_stat(5)).
    fn stat(&self) -> Option<Vec<String>> {
        let stat = std::fs::read_to_string(self.proc("stat")).ok()?;
        Some(stat.rsplit_once(')')?.1.split_whitespace().map(ToOwned::to_owned).collect())
    }

    /// Whether the process runs. A zombie does not: the process that inherits it may be slow to reap it.
    fn runs(&self) -> bool {
        self.stat().is_some_and(|stat| stat[0] != "Z" && stat[0] != "X")
    }

    /// Stops it, and waits until it is gone.
    fn stop(&self) {
        kill_process(self.pid, Signal::TERM).expect("the process runs");
        poll_until("the process in the background ends", || (!self.runs()).then_some(()));
    }
}

/// `command` in the background, with a pid file in `site`.
fn daemon<'c>(command: &'c mut Command, site: &Site) -> &'c mut Command {
    command.arg("--daemon").arg("-p").arg(site.path("pid"))
}

#[test]
fn the_command_returns_when_the_pipe_is_ready() {
    // Several times, since it may succeed once by chance.
    for _ in 0..10 {
        let background = Background::start();
        assert_echoes(&mut background.site.connect("a"), "at once");
    }
}

#[test]
fn the_command_prints_nothing_to_standard_output() {
    let site = Site::with_key();
    site.configure(site.encrypt("a", "127.0.0.1:9"));
    let ended = run(daemon(&mut site.command(), &site));
    assert!(ended.stdout.is_empty(), "{ended:?}");
    // The log does not appear here.
    assert!(!ended.stderr.contains("listening"), "{ended:?}");
    let _background = Background::of(site, ended);
}

#[test]
fn the_pid_file_has_the_id_of_the_background_process() {
    let background = Background::start();
    let arguments = std::fs::read_to_string(background.proc("cmdline")).expect("the process runs");
    assert!(arguments.contains("spipe\0run\0"), "{arguments}");
    assert_eq!(std::fs::read_to_string(background.proc("comm")).expect("the process runs"), "spipe\n");
}

#[test]
fn the_process_has_its_own_session_and_no_terminal() {
    let background = Background::start();
    let stat = background.stat().expect("the process runs");
    let (group, session, terminal) = (&stat[2], &stat[3], &stat[4]);
    assert_eq!((group, session), (&background.pid.to_string(), &background.pid.to_string()));
    assert_eq!(terminal, "0");
}

#[test]
fn the_process_leaves_its_directory_and_standard_streams() {
    let background = Background::start();
    if !rustix::process::geteuid().is_root() {
        // The process is not dumpable, so other processes of the same user cannot read these links (proc_pid_cwd(5)).
        return;
    }
    assert_eq!(std::fs::read_link(background.proc("cwd")).expect("the process runs"), PathBuf::from("/"));
    for stream in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(
            std::fs::read_link(background.proc(stream)).expect("the process runs"),
            PathBuf::from("/dev/null")
        );
    }
}

#[test]
fn sigterm_lets_connections_finish_and_removes_pid_file_and_socket() {
    let background = Background::start();
    let mut client = background.site.connect("a");
    assert_echoes(&mut client, "before");
    kill_process(background.pid, Signal::TERM).expect("the process runs");
    poll_until("it stops listening", || background.site.try_connect("a").is_err().then_some(()));
    assert_echoes(&mut client, "after");
    client.shutdown(std::net::Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut client);
    poll_until("it ends", || (!background.runs()).then_some(()));
    assert!(!background.site.path("pid").exists());
    assert!(!background.site.path("a.sock").exists());
}

#[test]
fn a_pid_file_with_a_relative_name_is_removed_too() {
    let site = Site::with_key();
    site.configure(site.encrypt("a", "127.0.0.1:9"));
    let ended = run(site.command().args(["--daemon", "-p", "pid"]).current_dir(site.path("")));
    let background = Background::of(site, ended);
    background.stop();
    assert!(!background.site.path("pid").exists());
}

/// Asserts that `command` does not go into the background: it fails with `code`, and its last line has all of
/// `parts`.
#[track_caller]
fn assert_stays(command: &mut Command, code: i32, parts: &[&str]) {
    let site = Site::new();
    let ended = run(daemon(command, &site));
    if site.path("pid").exists() {
        let _ended_with_the_test = Background::of(site, ended);
        panic!("it is in the background");
    }
    ended.failed_with_last_line(code, parts);
}

#[test]
fn a_port_in_use_is_reported_to_the_caller() {
    let (key, taken) = (Key::new(), Service::start());
    let end = End::initiator(&key, "127.0.0.1:9").source(taken.address());
    assert_stays(&mut end.command(), 1, &["cannot listen on", "in use"]);
}

#[test]
fn an_invalid_key_is_reported_to_the_caller() {
    let key = Key::of(b"short");
    assert_stays(&mut End::initiator(&key, "127.0.0.1:9").command(), 1, &["at least 32 bytes"]);
}

#[test]
fn an_invalid_configuration_is_reported_to_the_caller() {
    let site = Site::with_key();
    site.configure("[[pipe]]\n");
    assert_stays(&mut site.command(), 1, &["pipes.toml:1: missing field `target`"]);
}

#[test]
fn an_unknown_user_is_reported_to_the_caller() {
    let key = Key::new();
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-u", "no-such-user"]);
    assert_stays(&mut end.command(), 1, &["there is no user 'no-such-user'"]);
}

#[test]
fn a_file_in_the_place_of_the_socket_is_reported_to_the_caller() {
    let (site, key) = (Site::new(), Key::new());
    std::fs::write(site.path("plain"), "precious").expect("the file can be written");
    let end = End::initiator(&key, "127.0.0.1:9").source(site.name("plain"));
    assert_stays(&mut end.command(), 1, &["a file that is not a socket has this name"]);
}

#[test]
fn a_usage_error_is_reported_to_the_caller() {
    let key = Key::new();
    let end = End::initiator(&key, "127.0.0.1:9").args(&["--label", &"x".repeat(256)]);
    assert_stays(&mut end.command(), 2, &["a label is at most 255 bytes"]);
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-b", "/a.sock"]);
    assert_stays(&mut end.command(), 2, &["cannot be reached from"]);
}

#[test]
fn foreground_and_background_exclude_each_other() {
    let key = Key::new();
    for flag in ["-F", "--foreground"] {
        let end = End::initiator(&key, "127.0.0.1:9").args(&[flag]);
        assert_stays(&mut end.command(), 2, &["cannot be used with"]);
    }
}

#[test]
fn a_pid_file_in_use_is_reported_to_the_caller() {
    let background = Background::start();
    let key = Key::new();
    let mut second = End::initiator(&key, "127.0.0.1:9").command();
    run(daemon(&mut second, &background.site)).failed_with_last_line(1, &["belongs to a running process"]);
    assert_echoes(&mut background.site.connect("a"), "the first still serves");
}

#[test]
fn a_key_on_standard_input_is_read() {
    let site = Site::with_key();
    site.configure(site.both_ends("a", echo()).replace("\"test.key\"", "\"-\""));
    let key = std::fs::read(site.path("test.key")).expect("the file can be read");
    let ended = run_with_input(daemon(&mut site.command(), &site), key);
    let background = Background::of(site, ended);
    assert_echoes(&mut background.site.connect("a"), "hello");
}

#[test]
fn a_configuration_can_request_the_background() {
    let site = Site::with_key();
    site.configure("daemon = true\npid-file = \"pid\"\n".to_owned() + &site.both_ends("a", echo()));
    let ended = run(&mut site.command());
    let background = Background::of(site, ended);
    assert_echoes(&mut background.site.connect("a"), "hello");
}

#[test]
fn relative_paths_of_a_configuration_and_its_keys_still_work_at_a_reload() {
    let site = Site::with_key();
    site.configure(site.both_ends("a", echo()));
    let manager = Manager::start();
    let mut command = spipe();
    command.args(["run", "pipes.toml", "--daemon", "-p", "pid"]);
    let ended = run(command.current_dir(site.path("")).env("NOTIFY_SOCKET", manager.address()));
    let background = Background::of(site, ended);
    manager.await_line("READY=1");
    let site = &background.site;
    site.configure(site.both_ends("a", echo()) + &site.both_ends("b", echo()));
    kill_process(background.pid, Signal::HUP).expect("the process runs");
    manager.await_line("RELOADING=1");
    assert!(manager.await_line("READY=1").contains(&"STATUS=4 pipes, no connections".to_owned()));
    assert_echoes(&mut site.connect("b"), "from the new state");
}

#[test]
fn a_relative_path_of_a_key_still_works_at_a_reload() {
    let (site, manager) = (Site::with_key(), Manager::start());
    let mut command = spipe();
    command.args([
        "-e",
        "-s",
        &site.socket("a"),
        "-t",
        "127.0.0.1:9",
        "-k",
        "test.key",
        "--daemon",
        "-p",
        "pid",
    ]);
    let ended = run(command.current_dir(site.path("")).env("NOTIFY_SOCKET", manager.address()));
    let background = Background::of(site, ended);
    manager.await_line("READY=1");
    kill_process(background.pid, Signal::HUP).expect("the process runs");
    manager.await_line("RELOADING=1");
    assert!(manager.await_line("READY=1").contains(&"STATUS=1 pipe, no connections".to_owned()));
}
