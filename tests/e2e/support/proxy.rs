//! Real proxies on free ports: squid and microsocks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use super::process::{Process, run};
use super::redis::free_port;
use super::{DEADLINE, poll_until};

/// A squid that lets everybody CONNECT to any port, who has the password if there is one.
pub(crate) struct Squid {
    process: Process,
    pub(crate) port: u16,
    directory: TempDir,
}

impl Squid {
    pub(crate) fn start() -> Self {
        Self::start_with("http_access allow all")
    }

    /// One that asks for this user and password.
    pub(crate) fn start_for(user: &str, password: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let hashed = run(Command::new("openssl").args(["passwd", "-apr1", password])).succeeded().text();
        let users = directory.path().join("users");
        fs::write(&users, format!("{user}:{hashed}\n")).expect("the file can be written");
        fs::set_permissions(&users, fs::Permissions::from_mode(0o644)).expect("it is ours");
        let rules = format!(
            "auth_param basic program /usr/lib/squid/basic_ncsa_auth {}\n\
             acl known proxy_auth REQUIRED\nhttp_access allow known\nhttp_access deny all",
            users.display()
        );
        Self::start_in(directory, free_port(), &rules)
    }

    /// One with these rules.
    pub(crate) fn start_with(rules: &str) -> Self {
        Self::start_on(free_port(), rules)
    }

    /// The same on this port.
    pub(crate) fn start_on(port: u16, rules: &str) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary directory"), port, rules)
    }

    fn start_in(directory: TempDir, port: u16, rules: &str) -> Self {
        // squid becomes another user.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let configuration = format!(
            "http_port 127.0.0.1:{port}\n{rules}\ncache deny all\n\
             access_log stdio:{}\ncache_log {}\npid_filename none\ncoredump_dir {}\npinger_enable off\nshutdown_lifetime 0 seconds\n",
            path("access.log"),
            path("cache.log"),
            directory.path().display(),
        );
        fs::write(path("squid.conf"), configuration).expect("the file can be written");
        // In the foreground, and one process, whose helpers end with it.
        let mut command = Command::new("/usr/sbin/squid");
        command.args(["--foreground", "-N", "-n", &format!("t{port}"), "-f", &path("squid.conf")]);
        let process = Process::start(&mut command);
        poll_until("squid listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        Self { process, port, directory }
    }

    /// The tunnels that have ended, as squid logs them.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default()
    }

    pub(crate) fn kill(&self) {
        kill_process(self.process.pid(), Signal::KILL).expect("it runs");
        let start = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            assert!(start.elapsed() < DEADLINE, "squid does not die");
        }
    }
}

/// A SOCKS 5 server, which asks for a password if there is one.
pub(crate) struct Socks {
    _process: Process,
    pub(crate) port: u16,
}

impl Socks {
    pub(crate) fn start(user: Option<(&str, &str)>) -> Self {
        let port = free_port();
        let mut command = Command::new("microsocks");
        command.args(["-i", "127.0.0.1", "-p", &port.to_string()]);
        if let Some((user, password)) = user {
            command.args(["-u", user, "-P", password]);
        }
        let process = Process::start(&mut command);
        poll_until("microsocks listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        Self { _process: process, port }
    }
}
