//! Who may connect to a Unix-domain source: what its file says.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fstat, open};
use thiserror::Error;

/// What the files of a pipe's Unix-domain sources get: pure data. What is left out is what the system gives to a new file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketPermissions {
    /// `--socket-mode`.
    pub mode: Option<SocketMode>,
    /// `--socket-owner`.
    pub owner: Option<SocketOwner>,
}

/// Permissions as chmod(1) takes them in digits, at most 777.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// For nobody but the owner.
    pub const OWNER: Self = Self(0o600);
}

/// A text that is no mode of a socket.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no mode of a socket; write it in octal digits as for chmod, such as 660")]
pub struct NotASocketMode(String);

impl FromStr for SocketMode {
    type Err = NotASocketMode;

    fn from_str(text: &str) -> Result<Self, NotASocketMode> {
        // u32 would take a sign as well. Short ones are mistakes more often than modes.
        let is_octal =
            (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
        mode.map(Self).ok_or_else(|| NotASocketMode(text.to_owned()))
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:03o}", self.0)
    }
}

/// A user, a group, or both, that exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOwner {
    /// As it was written.
    pub name: String,
    /// None leaves it as it is.
    pub uid: Option<u32>,
    /// None leaves it as it is.
    pub gid: Option<u32>,
}

/// Why a socket's file does not have its permissions.
#[derive(Debug, Error)]
#[error("cannot {doing}: {source}{}", hint(source))]
pub struct PermissionsError {
    doing: String,
    source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; only root gives files away, and others only to a group of their own"
        }
        // Of the filter of system calls.
        io::ErrorKind::Unsupported => {
            "; no pipe had --socket-mode or --socket-owner at the start, so this process is locked in without (sandbox): restart it"
        }
        _ => "",
    }
}

impl SocketPermissions {
    /// Gives them to the socket at `path`. For a new one, to be called between bind(2) and listen(2): so long, nobody can connect,
    /// whatever the file says.
    ///
    /// # Errors
    /// [`PermissionsError`].
    pub(super) fn give_to(&self, path: &Path) -> Result<(), PermissionsError> {
        if *self == Self::default() {
            return Ok(());
        }
        let cannot = |doing: &dyn fmt::Display| {
            let doing = doing.to_string();
            move |source: io::Error| PermissionsError { doing, source }
        };
        // Not by its path: somebody else who may write to the directory could put a link to another file there.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            open(path, flags, Mode::empty()).map_err(|error| cannot(&"open its file")(error.into()))?;
        let stat = fstat(&file).map_err(|error| cannot(&"look at its file")(error.into()))?;
        if !FileType::from_raw_mode(stat.st_mode).is_socket() {
            let replaced = io::Error::other("another file has taken its place");
            return Err(cannot(&"open its file")(replaced));
        }
        // The mode first, for that needs no rights as long as the file is ours.
        if let Some(mode) = self.mode {
            // Such a descriptor is good for nothing else than to name the file.
            let name = format!("/proc/self/fd/{}", file.as_raw_fd());
            chmodat(CWD, name, Mode::from_raw_mode(mode.0), AtFlags::empty()).map_err(|error| {
                cannot(&format_args!("give its file the mode {mode} (--socket-mode)"))(error.into())
            })?;
        }
        if let Some(SocketOwner { name, uid, gid }) = &self.owner {
            chownat(&file, "", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH).map_err(
                |error| cannot(&format_args!("give its file to {name} (--socket-owner)"))(error.into()),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_as_chmod_has_them() {
        for (text, mode) in [("660", 0o660), ("0600", 0o600), ("777", 0o777), ("000", 0)] {
            assert_eq!(text.parse(), Ok(SocketMode(mode)));
        }
        for text in ["", "66", "888", "1777", "+660", "-660", "0o660", "rw-rw----", "00660", " 660"] {
            assert_eq!(text.parse::<SocketMode>(), Err(NotASocketMode(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn another_file_in_the_place_of_the_socket_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let before = std::fs::metadata(&file).unwrap().permissions();
        let permissions = SocketPermissions { mode: Some(SocketMode(0o777)), owner: None };
        for place in [&file, &link] {
            let error = permissions.give_to(place).unwrap_err();
            assert!(error.to_string().contains("another file has taken its place"), "{error}");
        }
        assert_eq!(std::fs::metadata(&file).unwrap().permissions(), before);
    }
}
