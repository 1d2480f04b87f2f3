//! A service manager that the test plays: it hears what the process notifies.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use tempfile::TempDir;

use super::DEADLINE;

pub(crate) struct Manager {
    mailbox: UnixDatagram,
    address: String,
    /// Where the socket is, if it is a file.
    _directory: Option<TempDir>,
}

impl Manager {
    /// One at a path.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("notify");
        let mailbox = UnixDatagram::bind(&path).expect("the name is free");
        Self::of(mailbox, path.display().to_string(), Some(directory))
    }

    /// One with an abstract name.
    pub(crate) fn start_abstract() -> Self {
        // The directory is gone when this returns, but nobody else gets its name by chance.
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

    /// What goes into `NOTIFY_SOCKET`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The next message, line by line.
    #[track_caller]
    pub(crate) fn hear(&self) -> Vec<String> {
        let mut message = vec![0; 4096];
        let length = self.mailbox.recv(&mut message).expect("a message arrives in time");
        String::from_utf8_lossy(&message[..length]).lines().map(ToOwned::to_owned).collect()
    }

    /// The next message that has the line `wanted`; those before it are passed over.
    #[track_caller]
    pub(crate) fn await_line(&self, wanted: &str) -> Vec<String> {
        let start = std::time::Instant::now();
        loop {
            let message = self.hear();
            if message.iter().any(|line| line == wanted) {
                return message;
            }
            assert!(start.elapsed() < DEADLINE, "never told: {wanted}");
        }
    }

    /// Everything that has been told and not heard yet.
    pub(crate) fn rest(&self) -> Vec<String> {
        self.mailbox.set_nonblocking(true).expect("the socket is open");
        let mut rest = Vec::new();
        let mut message = vec![0; 4096];
        while let Ok(length) = self.mailbox.recv(&mut message) {
            rest.extend(String::from_utf8_lossy(&message[..length]).lines().map(ToOwned::to_owned));
        }
        self.mailbox.set_nonblocking(false).expect("the socket is open");
        rest
    }

    /// Takes its file away, so that nobody can tell it anything.
    pub(crate) fn vanish(&self) {
        std::fs::remove_file(Path::new(&self.address)).expect("the file can be removed");
    }
}
