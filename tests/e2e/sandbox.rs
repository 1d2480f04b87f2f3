//! The processes are locked in, and work all the same. `tests/sandbox` shows what a locked-in process cannot do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::pipe::{End, Key, Pipe, field, stdio};
use crate::support::process::{Process, spipe};
use crate::support::socket::{assert_echoes, connect, connect_unix, echo};

/// What the kernel says of each thread of `process`: its filters, and whether it can gain rights.
fn threads(process: &Process) -> Vec<(bool, bool)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("the process runs");
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.expect("the directory can be listed").path().join("status"));
            let status = status.expect("no thread ends");
            (status.contains("\nSeccomp:\t2\n"), status.contains("\nNoNewPrivs:\t1\n"))
        })
        .collect()
}

#[track_caller]
fn assert_locked_in(process: &Process) {
    let line = process.await_line(&["sandboxed"]);
    assert!(
        field(&line, "landlock").starts_with("abi") && field(&line, "seccomp") == "on",
        "these tests need a kernel with landlock and seccomp, enabled: {line}"
    );
    let threads = threads(process);
    assert!(!threads.is_empty() && threads.iter().all(|thread| *thread == (true, true)), "{threads:?}");
}

#[test]
fn every_thread_of_both_ends_is_locked_in() {
    let pipe = Pipe::to(echo()).start();
    // With a connection, all kinds of threads are there.
    assert_echoes(&mut pipe.connect(), "locked in");
    assert_locked_in(&pipe.initiator.process);
    assert_locked_in(&pipe.responder.process);
}

#[test]
fn no_sandbox_locks_nothing_and_says_so() {
    let end = End::initiator(&Key::new(), "127.0.0.1:9").args(&["--no-sandbox"]).start();
    end.await_line(&["WARN", "--no-sandbox"]);
    let threads = threads(&end.process);
    assert!(!threads.is_empty() && threads.iter().all(|thread| *thread == (false, false)), "{threads:?}");
}

#[test]
fn standard_input_and_output_are_locked_in() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let mut command = stdio(responder.address().to_string(), &key.path());
    command.arg("--verbose").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = Process::start_piped(&mut command);
    responder.await_line(&["listening"]);
    assert_locked_in(&process);
}

#[test]
fn a_service_by_name_is_reached() {
    let target = format!("localhost:{}", echo().port());
    let pipe = Pipe::to(target).start();
    assert_echoes(&mut pipe.connect(), "by name");
    assert_locked_in(&pipe.responder.process);
}

/// A key in the place of the one at `path`, as `mv` puts it there.
fn replace(path: &Path, with: &Key) {
    let new = path.with_extension("new");
    fs::copy(with.path(), &new).expect("the file can be copied");
    fs::rename(new, path).expect("the file can be renamed");
}

#[test]
fn a_key_that_was_replaced_is_read_at_a_reload() {
    let (pipe, another) = (Pipe::to(echo()).start(), Key::new());
    replace(&pipe.key.path(), &another);
    let fingerprint = |end: &End| {
        end.process.signal(Signal::HUP);
        end.await_line(&["reloaded"]);
        let lines = end.process.await_lines(2, "listening");
        field(&lines[1], "key").to_owned()
    };
    assert_eq!(fingerprint(&pipe.initiator), fingerprint(&pipe.responder));
    assert_echoes(&mut pipe.connect(), "another key");
}

/// Starts a process whose key then becomes a link to another directory, and has it reload.
fn reload_with_a_key_elsewhere(args: &[&str]) -> (End, [Key; 2]) {
    let (key, another) = (Key::new(), Key::new());
    let end = End::initiator(&key, "127.0.0.1:9").args(args).start();
    fs::remove_file(key.path()).expect("the file can be removed");
    symlink(another.path(), key.path()).expect("the name is free");
    end.process.signal(Signal::HUP);
    (end, [key, another])
}

#[test]
fn a_key_in_another_directory_is_out_of_reach() {
    let (end, _keys) = reload_with_a_key_elsewhere(&[]);
    end.await_line(&["ERROR", "not reloaded", "Permission denied", "sandbox"]);
}

#[test]
fn without_the_sandbox_that_key_is_read() {
    let (end, _keys) = reload_with_a_key_elsewhere(&["--no-sandbox"]);
    end.await_line(&["reloaded"]);
}

/// A file of pipes in a directory of its own.
struct Configuration {
    directory: tempfile::TempDir,
    key: Key,
}

impl Configuration {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory"), key: Key::new() }
    }

    /// Puts one in place, as an editor does, with pipes that seal from each source to each target.
    fn write(&self, pipes: &[(&str, &str)]) {
        let key = self.key.path();
        let table = |(source, target): &(&str, &str)| {
            let key = key.display();
            format!(
                "[[pipe]]\nmode = \"encrypt\"\nsource = \"{source}\"\ntarget = \"{target}\"\nkey = \"{key}\"\n"
            )
        };
        let new = self.directory.path().join("new");
        fs::write(&new, pipes.iter().map(table).collect::<String>()).expect("the file can be written");
        fs::rename(new, self.path()).expect("the file can be renamed");
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("pipes.toml")
    }

    fn run(&self) -> Process {
        Process::start(spipe().arg("run").arg(self.path()))
    }
}

#[test]
fn a_reload_brings_pipes_with_ports_and_sockets_that_nobody_knew() {
    let configuration = Configuration::new();
    let responder = End::responder(&configuration.key, echo()).start();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    let old = path("old").display().to_string();
    configuration.write(&[(&old, "127.0.0.1:9")]);
    let process = configuration.run();
    process.await_line(&["listening"]);
    assert_locked_in(&process);
    let target = format!("localhost:{}", responder.port());
    let new = path("new").display().to_string();
    configuration.write(&[("127.0.0.1:0", &target), (&new, &target)]);
    process.signal(Signal::HUP);
    process.await_line(&["reloaded"]);
    let line = process.await_line(&["listening", "source=[127.0.0.1]"]);
    let address = field(&line, "source").replace(['[', ']'], "").parse().expect("an address");
    assert_echoes(&mut connect(address), "a port");
    assert_echoes(&mut connect_unix(&path("new")).expect("the socket listens"), "a socket");
    assert!(!path("old").exists());
}

#[test]
fn a_reload_brings_no_socket_in_another_directory_and_leaves_the_rest() {
    let configuration = Configuration::new();
    let responder = End::responder(&configuration.key, echo()).start();
    let target = responder.address().to_string();
    configuration.write(&[("127.0.0.1:0", &target)]);
    let process = configuration.run();
    let line = process.await_line(&["listening"]);
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let socket = elsewhere.path().join("s");
    configuration.write(&[("127.0.0.1:0", &target), (&socket.display().to_string(), &target)]);
    process.signal(Signal::HUP);
    process.await_line(&["ERROR", "not reloaded", "Permission denied", "sandbox"]);
    assert!(!socket.exists());
    let address = field(&line, "source").replace(['[', ']'], "").parse().expect("an address");
    assert_echoes(&mut connect(address), "as before");
}
