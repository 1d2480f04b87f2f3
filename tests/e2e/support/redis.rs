//! A real Redis on a free port.

use std::net::TcpListener;
use std::process::Command;

use tempfile::TempDir;

use super::poll_until;
use super::process::{Ended, Process, run};

/// A `redis-server` without persistence.
pub(crate) struct Redis {
    _process: Process,
    port: u16,
    _directory: TempDir,
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
        // Redis cannot let the system choose its port, so it gets one that was free a moment ago. Another process may
        // take that port first.
        for _ in 0..10 {
            let port = free_port();
            let directory = tempfile::tempdir().expect("a temporary directory");
            let mut command = Command::new("redis-server");
            command
                .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
                .args(listen(port.to_string()))
                // Otherwise a replica waits five seconds for other replicas.
                .args(["--repl-diskless-sync-delay", "0"])
                .arg("--dir")
                .arg(directory.path())
                .args(args);
            let process = Process::start(&mut command);
            if process.has_line_before_exit("Ready to accept connections") {
                return Self { _process: process, port, _directory: directory };
            }
        }
        panic!("redis-server finds no free port in ten attempts");
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Makes it a replica of `master`, and waits until it has its data.
    pub(crate) fn replicate(&self, master: &Self) {
        self.ask(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
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
        cli(&self.port.to_string(), args).succeeded().text()
    }

    /// How many connections it has had so far, including the one for this question.
    pub(crate) fn connections_received(&self) -> u64 {
        let stats = self.ask(&["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.and_then(|number| number.trim().parse().ok()).expect("Redis counts its connections")
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
