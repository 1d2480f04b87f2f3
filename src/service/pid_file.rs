//! The file that says which process this is (`-p`).

use std::fs::{File, Metadata, remove_file};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use thiserror::Error;
use tracing::warn;

/// More than any number takes, and enough to tell a number from another file.
const CONTENT_MAX: usize = 32;

/// Why there is no such file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PidFileError {
    /// The operating system says no.
    #[error("cannot write the pid file {path}: {source}", path = .path.display())]
    Refused {
        /// Its name.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A mistyped name must not cost a file.
    #[error("{path} is not a pid file, and is left as it is; choose another name for -p", path = .0.display())]
    NotAPidFile(PathBuf),
    /// Two processes under one name could not be told apart.
    #[error("the pid file {path} belongs to a running process; stop that or choose another name for -p", path = .0.display())]
    InUse(PathBuf),
}

/// A file with our process id, which is locked for as long as this lives. Dropping it takes the file away, unless another
/// has taken its place, or it has another process's id by then.
pub struct PidFile {
    path: PathBuf,
    /// Not open for writing: a process that someone has broken into would write other processes' ids there, for root's scripts
    /// to stop, or code to be mapped.
    file: File,
    /// What the file says again if we do not come to serve.
    before: Option<Before>,
}

/// The process that serves until we do.
struct Before {
    content: Vec<u8>,
    writer: File,
}

impl PidFile {
    /// Writes the id of this process, so after the last fork. A file that a dead process left behind is taken over, and so is that
    /// of the process which has handed over its `lock`; until [`keep`](Self::keep), the latter gets it back. `/dev/null` is how
    /// scripts say that there is to be none.
    ///
    /// # Errors
    /// [`PidFileError`].
    pub fn create(path: &Path, lock: Option<OwnedFd>) -> Result<Option<Self>, PidFileError> {
        let refused = |source| PidFileError::Refused { path: path.to_owned(), source };
        // In a directory where others may write, a link could lead anywhere; and a named pipe would be waited at. Scripts of other
        // users read the file.
        let open = |flags| {
            let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::from(0o644))
                .map(File::from)
                .map_err(|error| refused(error.into()))
        };
        let mut file = open(OFlags::RDONLY | OFlags::CREATE)?;
        let metadata = file.metadata().map_err(refused)?;
        if is_null_device(&metadata) {
            return Ok(None);
        }
        if !metadata.is_file() {
            return Err(PidFileError::NotAPidFile(path.to_owned()));
        }
        let lock = lock
            .map(File::from)
            .filter(|lock| lock.metadata().is_ok_and(|theirs| identity(&theirs) == identity(&metadata)));
        let is_theirs = lock.is_some();
        // A lock belongs to what was opened, and so to all who have a descriptor of that.
        if let Some(lock) = lock {
            file = lock;
        }
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => PidFileError::InUse(path.to_owned()),
            _ => refused(error.into()),
        })?;
        (&file).seek(SeekFrom::Start(0)).map_err(refused)?;
        let mut content = Vec::new();
        (&file).take(CONTENT_MAX as u64).read_to_end(&mut content).map_err(refused)?;
        if !is_pid_file(&content) {
            return Err(PidFileError::NotAPidFile(path.to_owned()));
        }
        // In the background, relative paths will lead elsewhere.
        let path = std::path::absolute(path).map_err(refused)?;
        let mut writer = open(OFlags::WRONLY)?;
        if identity(&writer.metadata().map_err(refused)?) != identity(&metadata) {
            // Another process has put its own there meanwhile.
            return Err(PidFileError::InUse(path));
        }
        writer
            .set_len(0)
            .and_then(|()| writer.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .map_err(refused)?;
        let before = is_theirs.then_some(Before { content, writer });
        Ok(Some(Self { path, file, before }))
    }

    /// Keeps the file for good: we serve, and no longer who had it before.
    pub fn keep(&mut self) {
        self.before = None;
    }

    /// What the process that takes over from us has the lock by.
    ///
    /// # Errors
    /// The operating system's.
    pub fn lock(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    fn is_ours(&self) -> io::Result<bool> {
        let mut content = [0; CONTENT_MAX];
        let length = self.file.read_at(&mut content, 0)?;
        let is_in_place =
            identity(&self.file.metadata()?) == identity(&std::fs::symlink_metadata(&self.path)?);
        Ok(is_in_place && process_id(&content[..length]) == Some(std::process::id()))
    }
}

impl Before {
    /// Writes what was there. The file may have become longer than it was, and a process that is locked in cannot cut it: blank lines
    /// do no harm.
    fn restore(&mut self) -> io::Result<()> {
        let length = usize::try_from(self.writer.metadata()?.len()).unwrap_or_default();
        self.content.resize(self.content.len().max(length), b'\n');
        self.writer.seek(SeekFrom::Start(0))?;
        self.writer.write_all(&self.content)
    }
}

/// Device and inode, which name a file for good.
fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// `/dev/null`, which has the same numbers on every Linux.
fn is_null_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == rustix::fs::makedev(1, 3)
}

fn is_pid_file(content: &[u8]) -> bool {
    content.trim_ascii().is_empty() || process_id(content).is_some()
}

fn process_id(content: &[u8]) -> Option<u32> {
    str::from_utf8(content.trim_ascii()).ok()?.parse().ok()
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Some(before) = &mut self.before {
            if let Err(error) = before.restore() {
                warn!(path = %self.path.display(), %error, "cannot give the pid file back to the process that serves");
            }
            return;
        }
        // Removed or replaced by another program, or taken over: then it is no longer ours.
        if !matches!(self.is_ours(), Ok(true)) {
            return;
        }
        if let Err(error) = remove_file(&self.path) {
            // It names a process that has ended; the next start takes it over.
            warn!(
                path = %self.path.display(), %error,
                "cannot remove the pid file; put it in a directory that the user of spipe may write to"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_our_id_while_it_lives_and_is_gone_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let file = PidFile::create(&path, None).unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        for stale in ["", "4194304\n", "  1\n"] {
            std::fs::write(&path, stale).unwrap();
            let _file = PidFile::create(&path, None).unwrap().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        }
    }

    #[test]
    fn another_file_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwd");
        for precious in ["root:x:0:0", "12345678901234567890123456789012345678901234567890", "12 34", "-1"] {
            std::fs::write(&path, precious).unwrap();
            assert!(matches!(PidFile::create(&path, None), Err(PidFileError::NotAPidFile(_))), "{precious}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), precious);
        }
    }

    #[test]
    fn a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (directory.path().join("pid"), directory.path().join("elsewhere"));
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(matches!(PidFile::create(&path, None), Err(PidFileError::Refused { .. })));
        assert!(!elsewhere.exists());
    }

    #[test]
    fn a_directory_or_a_named_pipe_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RWXU).unwrap();
        assert!(matches!(PidFile::create(&path, None), Err(PidFileError::NotAPidFile(_))));
        assert!(matches!(PidFile::create(directory.path(), None), Err(PidFileError::Refused { .. })));
    }

    #[test]
    fn one_of_a_running_process_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let _first = PidFile::create(&path, None).unwrap().unwrap();
        assert!(matches!(PidFile::create(&path, None), Err(PidFileError::InUse(_))));
    }

    #[test]
    fn one_that_took_our_place_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("pid"), directory.path().join("other"));
        let file = PidFile::create(&path, None).unwrap().unwrap();
        std::fs::write(&other, "1\n").unwrap();
        std::fs::rename(&other, &path).unwrap();
        drop(file);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n");
    }

    #[test]
    fn the_null_device_is_no_pid_file_and_no_error() {
        assert!(PidFile::create(Path::new("/dev/null"), None).unwrap().is_none());
        assert!(matches!(PidFile::create(Path::new("/dev/zero"), None), Err(PidFileError::NotAPidFile(_))));
    }

    #[test]
    fn one_that_is_handed_over_has_our_id_and_stays_locked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let before = left_by_another(&path);
        let mut file = PidFile::create(&path, Some(before.lock().unwrap())).unwrap().unwrap();
        file.keep();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        // The one before is another process, and so it has another id.
        std::fs::write(&path, "1\n").unwrap();
        drop(before);
        assert!(matches!(PidFile::create(&path, None), Err(PidFileError::InUse(_))));
    }

    #[test]
    fn one_that_was_handed_over_to_a_process_that_failed_is_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let before = left_by_another(&path);
        drop(PidFile::create(&path, Some(before.lock().unwrap())).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), "1");
        assert!(matches!(PidFile::create(&path, None), Err(PidFileError::InUse(_))));
    }

    #[test]
    fn one_that_has_another_process_id_by_now_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        drop(left_by_another(&path));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n");
    }

    #[test]
    fn the_lock_of_another_file_is_not_taken_for_ours() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("pid"), directory.path().join("other"));
        let (_ours, other) = (left_by_another(&path), left_by_another(&other));
        let lock = other.lock().unwrap();
        assert!(matches!(PidFile::create(&path, Some(lock)), Err(PidFileError::InUse(_))));
    }

    /// A file as another process, with the id 1, would hold it.
    fn left_by_another(path: &Path) -> PidFile {
        let file = PidFile::create(path, None).unwrap().unwrap();
        std::fs::write(path, "1\n").unwrap();
        file
    }
}
