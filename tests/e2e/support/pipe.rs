//! The two ends of a pipe, as processes.

use std::ffi::OsStr;
use std::fmt::Display;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::process::{Process, run, spipe};
use super::relay::{Plan, Relay};
use super::socket;

/// A new key file, made by `spipe keygen`.
pub(crate) struct Key {
    directory: TempDir,
}

impl Key {
    pub(crate) fn new() -> Self {
        let key = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        run(spipe().arg("keygen").arg(key.path())).succeeded();
        key
    }

    /// A key file with this content that only its owner can read.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let key = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        std::fs::write(key.path(), bytes).expect("the file can be written");
        key.set_mode(0o600);
        key
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("test.key")
    }

    pub(crate) fn set_mode(&self, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(self.path(), std::fs::Permissions::from_mode(mode))
            .expect("the mode can be changed");
    }
}

/// One `spipe` process that listens.
pub(crate) struct End {
    pub(crate) process: Process,
    source: String,
}

impl End {
    /// `-e`, on a port that the system chooses.
    pub(crate) fn initiator(key: &Key, target: impl Display) -> EndBuilder {
        EndBuilder::new("-e", key, target.to_string())
    }

    /// `-d`, on a port that the system chooses.
    pub(crate) fn responder(key: &Key, target: impl Display) -> EndBuilder {
        EndBuilder::new("-d", key, target.to_string())
    }

    /// Starts `command`, and waits until it listens.
    pub(crate) fn started_by(command: &mut Command) -> Self {
        let process = Process::start(command);
        let line = process.await_line(&["listening"]);
        Self { source: field(&line, "source").to_owned(), process }
    }

    /// The source address that it logs.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The source as an IP address and a port.
    pub(crate) fn address(&self) -> SocketAddr {
        let port = self.source.rsplit_once(':').expect("the source has a port").1;
        format!("127.0.0.1:{port}").parse().expect("a port")
    }

    pub(crate) fn port(&self) -> String {
        self.address().port().to_string()
    }

    /// Connects to it over TCP.
    pub(crate) fn connect(&self) -> TcpStream {
        socket::connect(self.address())
    }

    /// Asserts that a client that connects is reset and receives no byte.
    #[track_caller]
    pub(crate) fn assert_resets_a_client(&self) {
        if let Some(mut client) = self.connect_unless_reset() {
            assert_eq!(socket::assert_reset(&mut client), b"");
        }
    }

    /// Connects to it. Returns `None` if the connection was reset before connect(2) returned, which happens on a busy
    /// machine.
    pub(crate) fn connect_unless_reset(&self) -> Option<TcpStream> {
        match socket::try_connect(self.address()) {
            Ok(client) => Some(client),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{}: {error}", self.source),
        }
    }

    /// Waits for a log line with all of `parts`.
    pub(crate) fn await_line(&self, parts: &[&str]) -> String {
        self.process.await_line(parts)
    }
}

/// The command line of an [`End`].
pub(crate) struct EndBuilder {
    mode: &'static str,
    source: String,
    target: String,
    key: PathBuf,
    args: Vec<String>,
    descriptors: Option<u32>,
}

impl EndBuilder {
    fn new(mode: &'static str, key: &Key, target: String) -> Self {
        let source = "127.0.0.1:0".to_owned();
        Self { mode, source, target, key: key.path(), args: Vec::new(), descriptors: None }
    }

    pub(crate) fn source(mut self, source: impl Display) -> Self {
        self.source = source.to_string();
        self
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Runs it with this limit on file descriptors.
    pub(crate) fn descriptors(mut self, limit: u32) -> Self {
        self.descriptors = Some(limit);
        self
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = match self.descriptors {
            None => spipe(),
            Some(limit) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={limit}:{limit}")).arg(spipe().get_program());
                command
            }
        };
        command
            .args([self.mode, "-s", &self.source, "-t", &self.target, "-k"])
            .arg(&self.key)
            .args(&self.args);
        command
    }

    /// Starts it, and waits until it listens.
    pub(crate) fn start(self) -> End {
        End::started_by(&mut self.command())
    }
}

/// A whole pipe: `initiator ══ (relay ══) responder ── target`.
pub(crate) struct Pipe {
    pub(crate) initiator: End,
    pub(crate) relay: Option<Relay>,
    pub(crate) responder: End,
    pub(crate) key: Key,
}

impl Pipe {
    /// A pipe to `target`, not yet started.
    pub(crate) fn to(target: impl Display) -> PipeBuilder {
        PipeBuilder {
            target: target.to_string(),
            both: Vec::new(),
            initiator: Vec::new(),
            responder: Vec::new(),
            relay: None,
        }
    }

    /// Connects a client to the pipe.
    pub(crate) fn connect(&self) -> TcpStream {
        self.initiator.connect()
    }
}

/// The options of a [`Pipe`].
pub(crate) struct PipeBuilder {
    target: String,
    both: Vec<String>,
    initiator: Vec<String>,
    responder: Vec<String>,
    relay: Option<Plan>,
}

impl PipeBuilder {
    pub(crate) fn label(self, label: &str) -> Self {
        self.args(&["--label", label])
    }

    /// Arguments for both ends.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.both.extend(args.iter().map(ToString::to_string));
        self
    }

    pub(crate) fn initiator_args(mut self, args: &[&str]) -> Self {
        self.initiator.extend(args.iter().map(ToString::to_string));
        self
    }

    pub(crate) fn responder_args(mut self, args: &[&str]) -> Self {
        self.responder.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Puts a relay between the ends, which follows `plan` on its first connection.
    pub(crate) fn through(mut self, plan: Plan) -> Self {
        self.relay = Some(plan);
        self
    }

    pub(crate) fn start(self) -> Pipe {
        self.start_with(Key::new())
    }

    pub(crate) fn start_with(mut self, key: Key) -> Pipe {
        self.initiator.extend(self.both.iter().cloned());
        self.responder.extend(self.both);
        let mut responder = End::responder(&key, self.target);
        responder.args = self.responder;
        let responder = responder.start();
        let relay = self.relay.map(|plan| Relay::start(responder.address(), plan));
        let sealed = relay.as_ref().map_or_else(|| responder.address(), Relay::address);
        let mut initiator = End::initiator(&key, sealed);
        initiator.args = self.initiator;
        Pipe { initiator: initiator.start(), relay, responder, key }
    }
}

/// `spipe -t TARGET -k KEY`: standard input and output take the place of the client.
pub(crate) fn stdio(target: impl AsRef<OsStr>, key: &Path) -> Command {
    let mut command = spipe();
    command.arg("-t").arg(target).arg("-k").arg(key);
    command
}

/// The value of `name=value` or `name="value"` in a log line.
#[track_caller]
pub(crate) fn field<'l>(line: &'l str, name: &str) -> &'l str {
    let start = line.find(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name} in: {line}"));
    let value = &line[start + name.len() + 2..];
    match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default(),
        None => value.split(' ').next().unwrap_or_default(),
    }
}
