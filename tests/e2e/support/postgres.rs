//! A real PostgreSQL on a free port.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::process::{Ended, Process, run};
use super::redis::free_port;
use super::tls::Certified;

/// What `postgres` may be called by password.
pub(crate) const PASSWORD: &str = "a password of tests";

/// Who may connect, and how: `libpq` does not take SCRAM from a server that speaks TLS when it does not do so itself.
const HOSTS: &str = "hostssl all plain 127.0.0.1/32 password\nhostssl all all 127.0.0.1/32 scram-sha-256\n";

/// A `postgres` that takes passwords, and only over TLS if it speaks that.
pub(crate) struct Postgres {
    _process: Process,
    port: u16,
    _directory: TempDir,
}

/// Debian has its programs in a directory of their version.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut programs: Vec<_> =
        versions.map(|version| version.expect("it can be read").path().join("bin").join(name)).collect();
    programs.sort();
    programs.into_iter().rfind(|program| program.exists()).expect("PostgreSQL's server is installed")
}

/// It refuses to run as root.
fn as_postgres(program: PathBuf) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(program);
    command
}

impl Postgres {
    /// With TLS by this certificate, or without.
    pub(crate) fn start(certified: Option<&Certified>) -> Self {
        for _ in 0..10 {
            if let Some(postgres) = Self::try_start(certified) {
                return postgres;
            }
        }
        panic!("postgres finds no free port in ten attempts");
    }

    fn try_start(certified: Option<&Certified>) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        let data = directory.path().join("data");
        let password = directory.path().join("password");
        fs::write(&password, PASSWORD).expect("the file can be written");
        run(as_postgres(program("initdb"))
            .args(["--no-sync", "--username=postgres", "--auth=scram-sha-256", "--pwfile"])
            .arg(&password)
            .arg("--pgdata")
            .arg(&data))
        .succeeded();
        let port = free_port();
        let mut command = as_postgres(program("postgres"));
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "fsync=off"]).args([
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
        ]);
        if let Some(certified) = certified {
            fs::write(data.join("pg_hba.conf"), HOSTS).expect("the file can be written");
            for (from, name) in
                [(&certified.certificate_file, "server.crt"), (&certified.key_file, "server.key")]
            {
                let to = data.join(name);
                fs::copy(from, &to).expect("the file can be copied");
                run(Command::new("chown").arg("postgres:postgres").arg(&to)).succeeded();
            }
            command.args(["-c", "ssl=on"]);
        }
        let process = Process::start(&mut command);
        if !process.has_line_before_exit("database system is ready to accept connections") {
            return None;
        }
        if certified.is_some() {
            let sql = format!("CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}'");
            psql(&port.to_string(), "user=postgres sslmode=require", &sql).succeeded();
        }
        Some(Self { _process: process, port, _directory: directory })
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// Runs `psql` with these parameters for a connection to a port of this host.
pub(crate) fn psql(port: &str, parameters: &str, sql: &str) -> Ended {
    let mut command = Command::new("psql");
    command
        .env("PGPASSWORD", PASSWORD)
        .arg(format!("host=127.0.0.1 port={port} dbname=postgres {parameters}"))
        .args(["--no-psqlrc", "--tuples-only", "--no-align", "-c", sql]);
    run(&mut command)
}
