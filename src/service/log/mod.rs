//! Where log lines go, and in which form.

pub mod writer;

use std::borrow::Cow;
use std::env;
use std::io::{self, Write};
use std::mem::ManuallyDrop;

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use self::writer::Line;

/// `--log-format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: a time, a level, what happened, and `name=value` for the rest.
    #[default]
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// A text that names no [`Format`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no log format; write text or json")]
pub struct NotAFormat(String);

impl std::str::FromStr for Format {
    type Err = NotAFormat;

    fn from_str(text: &str) -> Result<Self, NotAFormat> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(NotAFormat(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard error, whatever that is.
    Stderr,
    /// Standard error, which is the journal's.
    Journal,
    /// syslog(3), as the facility "daemon".
    Syslog,
}

impl Destination {
    /// Standard error, and whether the journal reads it.
    pub fn stderr() -> Self {
        let stream = env::var("JOURNAL_STREAM").unwrap_or_default();
        // systemd.exec(5): the device and the inode of the stream. Our standard error may have become another since.
        let is_journal = rustix::fs::fstat(io::stderr())
            .is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino));
        if is_journal { Self::Journal } else { Self::Stderr }
    }
}

/// Starts the log, once for the process.
///
/// A log that cannot be written to never holds up or ends a connection: its lines are lost, and nothing else.
pub fn start(level: LevelFilter, format: Format, destination: Destination) {
    let writer = match destination {
        Destination::Stderr => BoxMakeWriter::new(|| Line::new(io::stderr())),
        Destination::Journal => BoxMakeWriter::new(Journal),
        Destination::Syslog => match syslog() {
            Some(syslog) => BoxMakeWriter::new(Syslog(syslog)),
            None => unreachable!("the log is started once"),
        },
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .with_writer(writer)
        // A full disk under the log must not end connections: reporting the failure would panic.
        .log_internal_errors(false);
    match (format, destination) {
        (Format::Text, Destination::Stderr) => log.init(),
        // These keep the time and the level of each line themselves.
        (Format::Text, Destination::Journal | Destination::Syslog) => {
            log.without_time().with_level(false).init();
        }
        // A program that reads this finds the same object wherever it went.
        (Format::Json, _) => {
            log.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
        }
    }
}

/// `text` as one line, whatever is in it: control characters are written as in `\n` and `\u{1b}`. Names of files can have any, and
/// one with a line break could forge a line of the log, or one with an escape sequence change what a terminal shows.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
    Cow::Owned(text.chars().map(escape).collect())
}

/// Whether a log daemon is there now. syslog(3) says nothing when it is not, and takes up with one that comes later.
pub fn has_syslog_daemon() -> bool {
    std::fs::metadata("/dev/log").is_ok()
}

/// syslog(3) of the C library, which finds the daemon again after it was restarted.
fn syslog() -> Option<syslog_tracing::Syslog> {
    use syslog_tracing::{Facility, Options, Syslog};
    // The connection is made now: later this process may not be allowed to.
    Syslog::new(c"spipe", Options::LOG_PID | Options::LOG_NDELAY, Facility::Daemon)
}

/// syslog(3), each line with its level.
struct Syslog(syslog_tracing::Syslog);

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line::new(SyslogLine::new(self.0.make_writer()))
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line::new(SyslogLine::new(self.0.make_writer_for(metadata)))
    }
}

/// A line that is not sent when it is dropped unwritten: dropping the crate's writer calls syslog(3), which waits for the daemon.
struct SyslogLine(ManuallyDrop<syslog_tracing::SyslogWriter>);

impl SyslogLine {
    fn new(writer: syslog_tracing::SyslogWriter) -> Self {
        // It owns nothing that would leak.
        Self(ManuallyDrop::new(writer))
    }
}

impl Write for SyslogLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The stream that the journal reads, where `<N>` before a line is its level (sd-daemon(3)).
///
/// The journal's own protocol would make each value a field of its own, but it needs another socket, which would have to
/// stay open to a sandboxed process, and it would go past what `StandardError=` of the unit says.
struct Journal;

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line::new(JournalStream(Level::INFO))
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line::new(JournalStream(*metadata.level()))
    }
}

struct JournalStream(Level);

impl Write for JournalStream {
    /// The whole line at once, so that no other process's comes between.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let priority = priority(self.0).to_string();
        io::stderr().write_all(&[b"<", priority.as_bytes(), b">", line].concat())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The level in syslog(3)'s numbers. "notice" is left out: what spipe has to say is news, a warning or an error.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_leave_the_line() {
        assert_eq!(one_line("a\nb\r\u{1b}[2J\u{85}\0\u{7f}"), "a\\nb\\r\\u{1b}[2J\\u{85}\\u{0}\\u{7f}");
    }

    #[test]
    fn other_text_stays_as_it_is() {
        assert!(matches!(one_line("/run/\u{e9}t\u{e9} \\n \"x\""), Cow::Borrowed(_)));
    }
}
