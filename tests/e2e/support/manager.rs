//! A service manager played by the test: it receives the notifications of the process.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use tempfile::TempDir;

use super::DEADLINE;

pub(crate) struct Manager {
    mailbox: UnixDatagram,
    address: String,
    /// The directory of the socket, if the socket is a file.
    _directory: Option<TempDir>,
}

impl Manager {
    /// A manager that listens at a path.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("notify");
        let mailbox = UnixDatagram::bind(&path).expect("the name is free");
        Self::of(mailbox, path.display().to_string(), Some(directory))
    }

    /// A manager that listens at an abstract name.
    pub(crate) fn start_abstract() -> Self {
        // The directory is removed when this returns, but its name is still unique.
        let unique = tempfile::tempdir().expect("a temporary directory");
        let name = unique.path().display().to_string();
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let mailbox = UnixDatagram::bind_addr(&address).expect("the name is free");
        Self::of(mailbox, format!("@{name}"), None)
    }

    fn of(mailbox: UnixDatagram, address: String, directory: Option<TempDir>) -> Self {
        mailbox.set_read_timeout(Some(DEADLINE)).expect("the socket is open");
        Self { mailbox, address, _directory: directory }
    }

    /// The value for `NOTIFY_SOCKET`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The next message, line by line.
    #[track_caller]
    pub(crate) fn next_message(&self) -> Vec<String> {
        let mut message = vec![0; 4096];
        let length = self.mailbox.recv(&mut message).expect("a message arrives in time");
        String::from_utf8_lossy(&message[..length]).lines().map(ToOwned::to_owned).collect()
    }

    /// The next message that has the line `wanted`; earlier messages are skipped.
    #[track_caller]
    pub(crate) fn await_line(&self, wanted: &str) -> Vec<String> {
        let start = std::time::Instant::now();
        loop {
            let message = self.next_message();
            if message.iter().any(|line| line == wanted) {
                return message;
            }
            assert!(start.elapsed() < DEADLINE, "no message with {wanted}");
        }
    }

    /// The lines of all messages that have arrived and have not been read yet.
    pub(crate) fn remaining_lines(&self) -> Vec<String> {
        self.mailbox.set_nonblocking(true).expect("the socket is open");
        let mut lines = Vec::new();
        let mut message = vec![0; 4096];
        while let Ok(length) = self.mailbox.recv(&mut message) {
            lines.extend(String::from_utf8_lossy(&message[..length]).lines().map(ToOwned::to_owned));
        }
        self.mailbox.set_nonblocking(false).expect("the socket is open");
        lines
    }

    /// Removes the socket file, so that no process can send a message.
    pub(crate) fn remove_socket(&self) {
        std::fs::remove_file(Path::new(&self.address)).expect("the file can be removed");
    }
}
