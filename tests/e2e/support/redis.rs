//! A real Redis on a free port.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::poll_until;
use super::process::{Ended, Process, run};
use super::socket::Port;

/// A `redis-server` without persistence, unless its options say otherwise.
pub(crate) struct Redis {
    process: Process,
    rest: Killed,
}

/// What is left of a `redis-server` that was killed: its port, its options, and what it has on disk.
pub(crate) struct Killed {
    port: Port,
    directory: TempDir,
    args: Vec<String>,
}

impl Redis {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(args: &[&str]) -> Self {
        Self::start_listening(|port| vec!["--port".into(), port], args)
    }

    /// One that speaks TLS only, with these options for it.
    pub(crate) fn start_with_tls(args: &[[&str; 2]]) -> Self {
        let listen = |port| vec!["--port".into(), "0".into(), "--tls-port".into(), port];
        Self::start_listening(listen, args.as_flattened())
    }

    fn start_listening(listen: impl Fn(String) -> Vec<String>, args: &[&str]) -> Self {
        // Redis cannot let the system choose its port.
        let port = Port::reserve();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut options = listen(port.number().to_string());
        options.extend(args.iter().map(ToString::to_string));
        let killed = Killed { port, directory, args: options };
        // CONFIG REWRITE needs a file.
        killed.configure("");
        killed.start()
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(self) -> Killed {
        self.process.kill();
        self.rest
    }

    pub(crate) fn address(&self) -> String {
        self.rest.port.address().to_string()
    }

    pub(crate) fn port(&self) -> String {
        self.rest.port.number().to_string()
    }

    /// Makes it a replica of `master`, and waits until it has its data.
    pub(crate) fn replicate(&self, master: &Self) {
        self.ask(&["REPLICAOF", "127.0.0.1", &master.port()]);
        self.await_master();
    }

    /// Waits until it is in step with the master that it is a replica of.
    pub(crate) fn await_master(&self) {
        poll_until("the replica is in step", || {
            self.ask(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
        });
    }

    /// Makes it a master.
    pub(crate) fn promote(&self) {
        self.ask(&["REPLICAOF", "NO", "ONE"]);
    }

    /// Runs `redis-cli` on it directly.
    #[track_caller]
    pub(crate) fn ask(&self, args: &[&str]) -> String {
        cli(&self.port(), args).succeeded().text()
    }

    /// How many connections it has had so far, including the one for this question.
    pub(crate) fn connections_received(&self) -> u64 {
        let stats = self.ask(&["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.and_then(|number| number.trim().parse().ok()).expect("Redis counts its connections")
    }
}

impl Killed {
    /// Adds a line to its `redis.conf`.
    pub(crate) fn configure(&self, line: &str) {
        let file = OpenOptions::new().create(true).append(true).open(self.file());
        file.and_then(|mut file| writeln!(file, "{line}")).expect("the file can be written");
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("redis.conf")
    }

    /// Starts it on its port, and waits until it has read what it has on disk.
    pub(crate) fn start(self) -> Redis {
        let mut command = Command::new("redis-server");
        command
            .arg(self.file())
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            // Otherwise a replica waits five seconds for other replicas.
            .args(["--repl-diskless-sync-delay", "0"])
            .arg("--dir")
            .arg(self.directory.path())
            .args(&self.args);
        let process = Process::start(&mut command);
        process.await_line(&["Ready to accept connections"]);
        Redis { process, rest: self }
    }
}

/// Runs `redis-cli` on a port of this host.
pub(crate) fn cli(port: &str, args: &[&str]) -> Ended {
    run(command(port).args(args))
}

/// `redis-cli` on a port of this host.
pub(crate) fn command(port: &str) -> Command {
    let mut command = Command::new("redis-cli");
    command.args(["-h", "127.0.0.1", "-p", port]);
    command
}

/// A free port, for programs that cannot listen on port 0 and report the port that they got.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("the socket is bound").port()
}
