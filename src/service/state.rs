//! What a process leaves to the next one: when each key was last used. It is written now and then, by a thread of its own, and
//! lost without harm.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::fs::OFlags;
use thiserror::Error;
use tracing::{info, warn};

use crate::proto::key::Fingerprint;
use crate::stats::{LastUsed, Usage};

/// The file: a line for each key, with its fingerprint and a time.
const FILE: &str = "last-used";
/// What takes its place once it is whole.
const NEW: &str = "last-used.new";

/// How often it is written, if something has changed.
const EVERY: Duration = Duration::from_secs(5 * 60);

/// How long the last write may take: a disk that hangs does not keep the process.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why a directory is of no use.
#[derive(Debug, Error)]
#[error("the state directory {path} cannot be used: {source}", path = .path.display())]
pub struct StateError {
    path: PathBuf,
    source: io::Error,
}

/// A directory in which a process leaves its state.
#[derive(Debug)]
pub struct StateDirectory(PathBuf);

impl StateDirectory {
    /// The directory that is `named` (`--state-directory`), or else the one that systemd has made (`StateDirectory=`), if either is
    /// there.
    ///
    /// # Errors
    /// [`StateError`], if it is none.
    pub fn find(named: Option<&Path>) -> Result<Option<Self>, StateError> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => match env::var_os("STATE_DIRECTORY") {
                // Of several, the first.
                Some(paths) => env::split_paths(&paths).next().unwrap_or_default(),
                None => return Ok(None),
            },
        };
        let is_directory = fs::metadata(&path).and_then(|metadata| {
            if metadata.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
        });
        // In the background, a relative path will lead elsewhere.
        match is_directory.and_then(|()| std::path::absolute(&path)) {
            Ok(path) => Ok(Some(Self(path))),
            Err(source) => Err(StateError { path, source }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// When keys were last used. Nothing, where there is no such file yet.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn last_used(&self) -> io::Result<LastUsed> {
        let content = match fs::read_to_string(self.0.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LastUsed::new()),
            content => content?,
        };
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "it is not what spipe has written");
        let line = |line: &str| {
            let (key, time) = line.split_once(' ').ok_or_else(wrong)?;
            Ok((
                key.parse::<Fingerprint>().map_err(|_| wrong())?,
                time.parse::<Timestamp>().map_err(|_| wrong())?,
            ))
        };
        content.lines().map(line).collect()
    }

    /// The same for a process that starts: what cannot be read is a warning, and forgotten.
    pub fn last_used_or_nothing(&self) -> LastUsed {
        self.last_used().unwrap_or_else(|error| {
            let file = self.0.join(FILE);
            warn!(file = %file.display(), %error, "when keys were last used is not known from here on: the file cannot be read");
            LastUsed::new()
        })
    }

    /// Puts `content` in the place of what was there, all at once.
    fn write(&self, content: &str) -> io::Result<()> {
        let new = self.0.join(NEW);
        let mut options = OpenOptions::new();
        // Nothing in it is a secret. A link could lead anywhere, and a named pipe would be waited at.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o644).custom_flags(flags).open(&new)?;
        // Not fsync(2), which may take long: the file is renamed whole, and what is lost with the power is no harm.
        file.write_all(content.as_bytes())?;
        fs::rename(new, self.0.join(FILE))
    }
}

fn text(last_used: LastUsed) -> String {
    let sorted: BTreeMap<_, _> = last_used.into_iter().map(|(key, time)| (key.to_string(), time)).collect();
    let line = |(key, time): (String, Timestamp)| format!("{key} {}\n", to_the_second(time));
    sorted.into_iter().map(line).collect()
}

fn to_the_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Writes the state now and then, until it is finished.
pub struct Keeper {
    stop: mpsc::Sender<()>,
    done: mpsc::Receiver<()>,
}

impl Keeper {
    /// Starts to keep what `usage` says in `directory`.
    ///
    /// # Errors
    /// When there can be no thread for it.
    pub fn start(directory: StateDirectory, usage: Arc<Usage>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let keep = move || {
            let mut written = Written { directory, content: None, is_failing: false };
            loop {
                // At once, so that a directory that cannot be written to is told of at the start.
                written.update(usage.last_used());
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            written.update(usage.last_used());
            drop(finished);
        };
        thread::Builder::new().name("state".to_owned()).spawn(keep)?;
        Ok(Self { stop, done })
    }

    /// Writes for the last time.
    pub fn finish(self) {
        drop(self.stop);
        let _done_or_late = self.done.recv_timeout(LAST_WORDS);
    }
}

/// The file, as far as it could be written.
struct Written {
    directory: StateDirectory,
    /// None so far.
    content: Option<String>,
    is_failing: bool,
}

impl Written {
    /// `last_used`, and what another process has written meanwhile: one that has handed over to this one, or that this one has
    /// handed over to.
    fn with_those_of_others(&self, mut last_used: LastUsed) -> LastUsed {
        // What cannot be read is to be replaced.
        for (key, time) in self.directory.last_used().unwrap_or_default() {
            let known = last_used.entry(key).or_insert(time);
            *known = time.max(*known);
        }
        last_used
    }

    fn update(&mut self, last_used: LastUsed) {
        let content = text(last_used.clone());
        if self.content.as_ref() == Some(&content) {
            return;
        }
        let directory = self.directory.path().display();
        match self.directory.write(&text(self.with_those_of_others(last_used))) {
            Ok(()) => {
                if self.is_failing {
                    info!(%directory, "the state directory can be written to again");
                }
                (self.content, self.is_failing) = (Some(content), false);
            }
            // Once, and not every five minutes.
            Err(error) => {
                if !self.is_failing {
                    warn!(%directory, %error, "cannot write when keys were last used; trying again every five minutes");
                }
                (self.content, self.is_failing) = (None, true);
            }
        }
    }
}

/// A time that has passed, for people: `9 days`.
pub struct Ago(SignedDuration);

impl Ago {
    /// From `then` until now.
    pub fn since(then: Timestamp) -> Self {
        Self(then.duration_until(Timestamp::now()))
    }

    /// Whole days.
    pub fn days(&self) -> i64 {
        self.0.as_hours() / 24
    }
}

impl fmt::Display for Ago {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(self.days(), "day"), (self.0.as_hours(), "hour"), (self.0.as_mins(), "minute")];
        match units.into_iter().find(|(count, _)| *count > 0) {
            Some((1, unit)) => write!(formatter, "1 {unit}"),
            Some((count, unit)) => write!(formatter, "{count} {unit}s"),
            None => formatter.write_str("less than a minute"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::key::Key;

    fn directory() -> (tempfile::TempDir, StateDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::find(Some(directory.path())).unwrap().unwrap();
        (directory, state)
    }

    #[test]
    fn what_is_written_is_read_again_to_the_second() {
        let (_directory, state) = directory();
        assert!(state.last_used().unwrap().is_empty(), "there is no file yet");
        let key = Key::from_bytes(&[7; 32]).unwrap().fingerprint();
        let now = Timestamp::now();
        state.write(&text([(key, now)].into())).unwrap();
        assert_eq!(state.last_used().unwrap(), [(key, to_the_second(now))].into());
    }

    #[test]
    fn a_file_of_something_else_is_an_error_and_no_panic() {
        let (directory, state) = directory();
        for content in [&b"nonsense"[..], b"7f3a-19c2", b"7f3a-19c2 yesterday\n", b"\xff\xfe\0", b"\n\n"] {
            fs::write(directory.path().join(FILE), content).unwrap();
            assert!(state.last_used().is_err(), "{content:?}");
        }
    }

    #[test]
    fn a_link_in_the_place_of_the_new_file_is_not_followed() {
        let (directory, state) = directory();
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.path().join(NEW)).unwrap();
        assert!(state.write("new").is_err());
        assert_eq!(fs::read_to_string(elsewhere).unwrap(), "precious");
    }

    #[test]
    fn times_are_told_in_the_largest_unit_that_fits() {
        let ago = |seconds| Ago(SignedDuration::from_secs(seconds)).to_string();
        assert_eq!(
            [ago(9 * 86_400 + 5), ago(86_400), ago(7_200), ago(61), ago(59), ago(-5)],
            ["9 days", "1 day", "2 hours", "1 minute", "less than a minute", "less than a minute"]
        );
    }
}
