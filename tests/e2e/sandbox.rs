//! The processes are sandboxed and still work. `tests/sandbox` shows what a sandboxed process cannot do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::pipe::{End, Key, Pipe, field, stdio};
use crate::support::process::{Process, spipe};
use crate::support::socket::{assert_echoes, connect, connect_unix, echo};

/// For each thread of `process`: whether it has a seccomp filter, and whether `no_new_privs` is set.
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
fn assert_sandboxed(process: &Process) {
    let line = process.await_line(&["sandboxed"]);
    assert!(
        field(&line, "landlock").starts_with("abi") && field(&line, "seccomp") == "on",
        "these tests need a kernel with landlock and seccomp, enabled: {line}"
    );
    let threads = threads(process);
    assert!(!threads.is_empty() && threads.iter().all(|thread| *thread == (true, true)), "{threads:?}");
}

#[test]
fn every_thread_of_both_ends_is_sandboxed() {
    let pipe = Pipe::to(echo()).start();
    // With a connection, all kinds of threads exist.
    assert_echoes(&mut pipe.connect(), "sandboxed");
    assert_sandboxed(&pipe.initiator.process);
    assert_sandboxed(&pipe.responder.process);
}

#[test]
fn no_sandbox_restricts_nothing_and_logs_a_warning() {
    let end = End::initiator(&Key::new(), "127.0.0.1:9").args(&["--no-sandbox"]).start();
    end.await_line(&["WARN", "--no-sandbox"]);
    let threads = threads(&end.process);
    assert!(!threads.is_empty() && threads.iter().all(|thread| *thread == (false, false)), "{threads:?}");
}

#[test]
fn a_pipe_on_standard_input_and_output_is_sandboxed() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let mut command = stdio(responder.address().to_string(), &key.path());
    command.arg("--verbose").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = Process::start_piped(&mut command);
    responder.await_line(&["listening"]);
    assert_sandboxed(&process);
}

#[test]
fn a_target_with_a_host_name_is_reached() {
    let target = format!("localhost:{}", echo().port());
    let pipe = Pipe::to(target).start();
    assert_echoes(&mut pipe.connect(), "by name");
    assert_sandboxed(&pipe.responder.process);
}

/// Replaces the key at `path`, as `mv` does.
fn replace(path: &Path, with: &Key) {
    let new = path.with_extension("new");
    fs::copy(with.path(), &new).expect("the file can be copied");
    fs::rename(new, path).expect("the file can be renamed");
}

#[test]
fn a_replaced_key_is_read_at_a_reload() {
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

/// Starts a process, replaces its key with a link to another directory, and reloads.
fn reload_with_a_key_elsewhere(args: &[&str]) -> (End, [Key; 2]) {
    let (key, another) = (Key::new(), Key::new());
    let end = End::initiator(&key, "127.0.0.1:9").args(args).start();
    fs::remove_file(key.path()).expect("the file can be removed");
    symlink(another.path(), key.path()).expect("the name is free");
    end.process.signal(Signal::HUP);
    (end, [key, another])
}

#[test]
fn a_key_in_another_directory_cannot_be_read() {
    let (end, _keys) = reload_with_a_key_elsewhere(&[]);
    end.await_line(&["ERROR", "not reloaded", "Permission denied", "sandbox"]);
}

#[test]
fn without_the_sandbox_a_key_in_another_directory_is_read() {
    let (end, _keys) = reload_with_a_key_elsewhere(&["--no-sandbox"]);
    end.await_line(&["reloaded"]);
}

/// A configuration file in a separate directory.
struct Configuration {
    directory: tempfile::TempDir,
    key: Key,
}

impl Configuration {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory"), key: Key::new() }
    }

    /// Replaces the file, as an editor does, with one that has an initiator for each source and target.
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
fn a_reload_can_add_new_ports_and_sockets() {
    let configuration = Configuration::new();
    let responder = End::responder(&configuration.key, echo()).start();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    let old = path("old").display().to_string();
    configuration.write(&[(&old, "127.0.0.1:9")]);
    let process = configuration.run();
    process.await_line(&["listening"]);
    assert_sandboxed(&process);
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
fn a_reload_cannot_add_a_socket_in_another_directory() {
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
