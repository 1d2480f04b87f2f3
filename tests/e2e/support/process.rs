//! Child processes that cannot outlive their test. Tests can wait for single lines of their output.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::{DEADLINE, poll_until};

/// The Debian package of each program that is not on every system.
const PACKAGES: [(&str, &str); 23] = [
    ("buildah", "buildah"),
    ("chromium", "chromium fonts-dejavu-core"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("redis-benchmark", "redis-tools"),
    ("/usr/sbin/sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("script", "bsdutils"),
    ("stty", "coreutils"),
    ("prlimit", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("ip", "iproute2"),
    ("/usr/sbin/dnsmasq", "dnsmasq-base"),
    ("systemd-socket-activate", "systemd"),
    ("mandoc", "mandoc"),
    ("spiped", "spiped"),
    ("fish", "fish"),
    ("zsh", "zsh"),
];

/// The binary under test.
pub(crate) fn spipe() -> Command {
    Command::new(env!("CARGO_BIN_EXE_spipe"))
}

/// `command`, executed by a shell that first runs `setup`. The shell's `$$` is the process id of the command.
pub(crate) fn after(setup: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{setup} exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args());
    shell
}

/// Starts `command`. If the program is missing, panics with the name of the package to install.
fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| {
        let program = command.get_program().to_string_lossy().into_owned();
        if error.kind() == std::io::ErrorKind::NotFound {
            name_package(&program);
        }
        panic!("cannot start {program}: {error}")
    })
}

/// Panics with the name of the package to install if `program` is missing: for a program that a shell starts.
pub(crate) fn require(program: &str) {
    let path = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&path).any(|directory| directory.join(program).exists()) {
        name_package(program);
        panic!("this test needs {program}, which is not in PATH");
    }
}

fn name_package(program: &str) {
    if let Some((_, package)) = PACKAGES.iter().find(|(name, _)| *name == program) {
        panic!("this test needs {program}; type: apt-get install {package}");
    }
}

/// The lines that a process has written so far to its standard output and error.
#[derive(Default)]
struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    /// Streams that are still open.
    open: usize,
}

impl Lines {
    fn follow(self: &Arc<Self>, stream: impl Read + Send + 'static) {
        self.change(|state| state.open += 1);
        let lines = Arc::clone(self);
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                lines.change(|state| state.lines.push(text));
                line.clear();
            }
            lines.change(|state| state.open -= 1);
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until `found` returns a value. Returns `None` when all streams have ended or the time is up.
    fn wait_for<T>(&self, mut found: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let start = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = DEADLINE.saturating_sub(start.elapsed());
            if let Some(found) = found(&state) {
                return Some(found);
            }
            if state.open == 0 || left.is_zero() {
                return None;
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A process in the background. It is killed when dropped, so a test that panics leaves no process behind.
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Arc<Lines>,
}

impl Process {
    /// Starts `command` with empty standard input, and records all its output.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_piped(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// Starts `command`, and records those of its output streams that are piped.
    pub(crate) fn start_piped(command: &mut Command) -> Self {
        let mut child = spawn(command);
        let lines = Arc::new(Lines::default());
        if let Some(stdout) = child.stdout.take() {
            lines.follow(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            lines.follow(stderr);
        }
        Self { name: format!("{command:?}"), child, lines }
    }

    /// Waits for a line with all of `parts` in it.
    pub(crate) fn await_line(&self, parts: &[&str]) -> String {
        let matches = |line: &&String| parts.iter().all(|part| line.contains(part));
        self.lines
            .wait_for(|state| state.lines.iter().find(matches).cloned())
            .unwrap_or_else(|| panic!("no line with {parts:?} from {}:\n{}", self.name, self.log()))
    }

    /// Waits for a line with `part` in it. Returns false if the process ended without one.
    pub(crate) fn has_line_before_exit(&self, part: &str) -> bool {
        self.lines
            .wait_for(|state| state.lines.iter().any(|line| line.contains(part)).then_some(()))
            .is_some()
    }

    /// Waits for `count` lines with `part` in them.
    pub(crate) fn await_lines(&self, count: usize, part: &str) -> Vec<String> {
        self.lines
            .wait_for(|state| {
                let found: Vec<_> = state.lines.iter().filter(|line| line.contains(part)).cloned().collect();
                (found.len() >= count).then_some(found)
            })
            .unwrap_or_else(|| panic!("no {count} lines with '{part}' from {}:\n{}", self.name, self.log()))
    }

    /// All lines so far.
    pub(crate) fn log(&self) -> String {
        self.lines.state.lock().unwrap_or_else(PoisonError::into_inner).lines.join("\n")
    }

    /// Its standard input, which must be piped; the test decides when to close it.
    pub(crate) fn take_input(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("standard input is piped and taken only once")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process exists until it is waited for");
    }

    /// Sends SIGHUP and waits until the reload has ended. Returns the log line about it.
    pub(crate) fn reload(&self) -> String {
        let before = self.log().matches("reloaded: ").count();
        self.signal(Signal::HUP);
        self.await_lines(before + 1, "reloaded: ").swap_remove(before)
    }

    /// Reloads, and asserts that the reload succeeds.
    #[track_caller]
    pub(crate) fn reload_successfully(&self) {
        let line = self.reload();
        assert!(line.contains("INFO reloaded: "), "{line}");
    }

    /// Reloads, and asserts that the reload fails with a line that has all of `parts`.
    #[track_caller]
    pub(crate) fn fail_to_reload(&self, parts: &[&str]) {
        let line = self.reload();
        for part in [&["ERROR not reloaded: what was in force stays in force"], parts].concat() {
            assert!(line.contains(part), "no '{part}' in: {line}");
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("the process can be killed");
        self.child.wait().expect("the process ends");
    }

    /// Waits until all recorded streams have ended.
    pub(crate) fn await_end_of_output(&self) {
        assert!(self.output_ends(), "{} does not end:\n{}", self.name, self.log());
    }

    /// Waits until all recorded streams have ended, also those that its own children have inherited. Returns false if
    /// they do not in time.
    pub(crate) fn output_ends(&self) -> bool {
        self.lines.wait_for(|state| (state.open == 0).then_some(())).is_some()
    }

    /// Waits until it has ended by itself; panics if it does not.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        // The output ends shortly before the process, or long before it if the process closes its streams.
        self.await_end_of_output();
        poll_until("the process ends", || self.child.try_wait().expect("the process is a child"))
    }

    /// Its resident memory now, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// The most resident memory that it has had, in KiB.
    pub(crate) fn peak_resident_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process runs");
        let line = status.lines().find(|line| line.starts_with(field)).expect("/proc has this field");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // On the thread of the test, so that cargo shows it with the failure.
            println!("--- {}\n{}", self.name, self.log());
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    /// Its standard output as text, without the final newline.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Asserts that it failed with `code` and exactly one line, which has all of `parts`.
    #[track_caller]
    pub(crate) fn failed_with(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "one line, not:\n{}", self.stderr);
        self.failed_with_last_line(code, parts);
    }

    /// The same, but log lines may come before that line.
    #[track_caller]
    pub(crate) fn failed_with_last_line(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let line = self.stderr.lines().last().unwrap_or_default();
        assert!(line.starts_with("spipe: "), "{}", self.stderr);
        for part in parts {
            assert!(line.contains(part), "no '{part}' in: {}", self.stderr);
        }
    }

    /// Asserts that it succeeded.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{} {}", self.text(), self.stderr);
        self
    }
}

/// Runs `command` to its end; panics if it does not end in time.
pub(crate) fn run(command: &mut Command) -> Ended {
    run_with_input(command, Vec::new())
}

/// The same, with `input` on its standard input.
pub(crate) fn run_with_input(command: &mut Command, input: Vec<u8>) -> Ended {
    let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let pid = Pid::from_child(&child);
    let mut stdin = child.stdin.take().expect("the stream is piped");
    // A command may leave some of its input unread.
    thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(DEADLINE) else {
        let _ = kill_process(pid, Signal::KILL);
        panic!("{command:?} does not end");
    };
    let output = output.expect("the process can be waited for");
    Ended {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
