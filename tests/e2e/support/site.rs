//! The configuration directory of a host: a file of pipes, keys, and Unix-domain sockets, which need no free port.

use std::fmt::Display;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::process::{Process, run, spipe};
use super::socket::connect_unix;

/// The directory, with the configuration `pipes.toml` in it.
pub(crate) struct Site(TempDir);

impl Site {
    /// An empty directory.
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    /// A directory with the key `test.key`.
    pub(crate) fn with_key() -> Self {
        let site = Self::new();
        site.add_key("test.key");
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Makes a key, and returns its fingerprint.
    pub(crate) fn add_key(&self, name: &str) -> String {
        std::fs::create_dir_all(self.path(name).parent().expect("the path has a parent"))
            .expect("the directory can be created");
        run(spipe().arg("keygen").arg(self.path(name))).succeeded();
        fingerprint(&self.path(name))
    }

    /// The configuration file.
    pub(crate) fn file(&self) -> PathBuf {
        self.path("pipes.toml")
    }

    pub(crate) fn configure(&self, text: impl AsRef<[u8]>) {
        std::fs::write(self.file(), text).expect("the file can be written");
    }

    /// `spipe run` of the configuration.
    pub(crate) fn command(&self) -> Command {
        let mut command = spipe();
        command.arg("run").arg(self.file());
        command
    }

    /// Serves the configuration `text`. When this returns, all its sockets listen.
    pub(crate) fn serve(&self, text: impl AsRef<[u8]>) -> Process {
        self.configure(text);
        let process = Process::start(&mut self.command());
        process.await_line(&["listening"]);
        process
    }

    /// A pipe that accepts plain connections at the socket `NAME.sock`.
    pub(crate) fn encrypt(&self, name: &str, target: impl Display) -> String {
        self.pipe("encrypt", name, target)
    }

    /// A pipe that accepts sealed connections at the socket `NAME.sock`.
    pub(crate) fn decrypt(&self, name: &str, target: impl Display) -> String {
        self.pipe("decrypt", name, target)
    }

    fn pipe(&self, mode: &str, name: &str, target: impl Display) -> String {
        let source = self.socket(name);
        format!(
            "[[pipe]]\nname = \"{name}\"\nmode = \"{mode}\"\nsource = \"{source}\"\ntarget = \"{target}\"\nkey = \"test.key\"\n"
        )
    }

    /// Both ends of a pipe to `target`; clients connect to the socket `NAME.sock`.
    pub(crate) fn both_ends(&self, name: &str, target: impl Display) -> String {
        let sealed = format!("{name}-sealed");
        self.encrypt(name, self.socket(&sealed)) + &self.decrypt(&sealed, target)
    }

    /// The path at which the pipe NAME accepts connections.
    pub(crate) fn socket(&self, name: &str) -> String {
        self.name(&format!("{name}.sock"))
    }

    pub(crate) fn connect(&self, name: &str) -> UnixStream {
        self.try_connect(name).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn try_connect(&self, name: &str) -> io::Result<UnixStream> {
        connect_unix(Path::new(&self.socket(name)))
    }
}

/// The fingerprint that `spipe fingerprint` prints for a key.
pub(crate) fn fingerprint(key: &Path) -> String {
    run(spipe().arg("fingerprint").arg(key)).succeeded().text()
}
