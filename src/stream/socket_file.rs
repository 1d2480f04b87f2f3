//! The files that Unix-domain sockets have: what is there already, and the owner that removes those that we made.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;

/// What has a name that a socket is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Nothing: the name is free.
    Nothing,
    /// A socket that nobody listens on, such as a killed process leaves behind.
    Stale,
    /// A socket that a process listens on.
    InUse,
    /// Something that is not a socket.
    OtherFile,
}

impl Existing {
    /// Looks at `file`.
    ///
    /// # Errors
    /// The operating system's, when it does not let us look.
    pub(crate) fn at(file: &Path) -> io::Result<Self> {
        match std::fs::symlink_metadata(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Nothing),
            Err(error) => return Err(error),
            Ok(metadata) if !metadata.file_type().is_socket() => return Ok(Self::OtherFile),
            Ok(_) => {}
        }
        // Only a connection attempt tells whether a process listens. A full queue (EAGAIN) is proof of one, too.
        let probe = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
            socket.connect(&SockAddr::unix(file)?)
        };
        match probe() {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Self::Stale),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            _ => Ok(Self::InUse),
        }
    }
}

/// The file of a socket that is ours to look after. Dropping it removes the file, unless another has taken its place.
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode, which name a file for good. None, once another process looks after it.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// The file at `path`, which a socket of ours has just made, or another process has left to us.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn own(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: Some(identity(path)?) })
    }

    /// Leaves the file where it is: another process looks after it from here on.
    pub(crate) fn leave(mut self) {
        self.identity = None;
    }

    /// Puts the file in the place of what `path` names, all at once.
    ///
    /// # Errors
    /// The operating system's; the file has its old name then.
    pub(crate) fn rename(&mut self, path: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, path)?;
        path.clone_into(&mut self.path);
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some()
            && identity(&self.path).ok() == self.identity
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
