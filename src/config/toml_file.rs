//! The configuration file: TOML, with one `[[pipe]]` table a pipe, a `[[key]]` table for each key of which there is something to
//! say, and what concerns the whole process before them.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, ValueDeserializer};

use super::keys::KeyOptions;
use super::options::{PipeOptions, ServiceOptions};
use super::plan::PlanError;

/// What is wrong with a configuration file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no TOML, or says what means nothing.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What is wrong there.
        message: String,
    },
    /// It says what cannot be.
    #[error("{place}: {source}")]
    Plan {
        /// Where.
        place: Place,
        /// What is wrong there.
        source: PlanError,
    },
    /// There is nothing to do.
    #[error("{path} has no pipe; add a [[pipe]] table with mode, source, target and key", path = .0.display())]
    NoPipe(PathBuf),
}

/// A line of a file.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// From 1.
    line: usize,
}

/// As compilers write it, so that editors jump there.
impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.path.display(), self.line)
    }
}

/// What a file says, before it is known whether that can be.
pub(super) struct File {
    pub(super) service: ServiceOptions,
    /// At least one.
    pub(super) pipes: Vec<Table<PipeOptions>>,
    pub(super) keys: Vec<Table<KeyOptions>>,
}

/// One `[[pipe]]` or `[[key]]`.
pub(super) struct Table<O> {
    pub(super) options: O,
    path: PathBuf,
    line: usize,
    /// Where the table says what.
    lines: Vec<(String, usize)>,
}

impl<O> Table<O> {
    /// The line at which it begins.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// What `error` is when it is told where in the file its cause is: at the option, or at the table that lacks it.
    pub(super) fn blame(&self, error: PlanError) -> FileError {
        let said = self.lines.iter().find(|(key, _)| key == error.option());
        let line = said.map_or(self.line, |(_, line)| *line);
        FileError::Plan { place: Place { path: self.path.clone(), line }, source: error }
    }
}

/// Reads and parses the file at `path`.
///
/// # Errors
/// [`FileError`], but for what only a plan shows.
pub(super) fn read(path: &Path) -> Result<File, FileError> {
    let content =
        std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    let line_ends: Vec<_> = content.match_indices('\n').map(|(end, _)| end).collect();
    let text = Text { path, line_ends: &line_ends };
    let document = DeTable::parse(&content).map_err(|error| text.wrong(&error, ""))?;
    let (span, mut document) = (document.span(), document.into_inner());
    let pipes = text.list(document.remove("pipe"), "a pipe is a table of a list; write [[pipe]]")?;
    let keys = text.list(
        document.remove("key"),
        "a rule for a key is a table of a list, [[key]]; what belongs to a pipe goes below a [[pipe]]",
    )?;
    let defaults = match document.remove("defaults").map(|defaults| (defaults.span(), defaults.into_inner()))
    {
        None => DeTable::new(),
        Some((_, DeValue::Table(defaults))) => defaults,
        Some((span, _)) => {
            return Err(text.error(Some(span), "what pipes have in common is one table; write [defaults]"));
        }
    };
    let mut service = ServiceOptions::deserialize(Deserializer::from(Spanned::new(span, document)))
        .map_err(|error| text.wrong(&error, "; what belongs to a pipe goes below a [[pipe]]"))?;
    // As with keys, a relative path is beside the file that names it.
    let beside = path.parent().unwrap_or(Path::new("/"));
    service.pid_file = service.pid_file.map(|file| beside.join(file));
    service.hand_over = service.hand_over.map(|path| beside.join(path));
    service.state_directory = service.state_directory.map(|directory| beside.join(directory));
    let pipes = pipes
        .into_iter()
        .map(|pipe| {
            let pipe = with_defaults(pipe, &defaults);
            text.table::<PipeOptions>(pipe, "; what concerns the whole process goes above all pipes")
        })
        .collect::<Result<Vec<_>, _>>()?;
    let keys = keys.into_iter().map(|key| text.table::<KeyOptions>(key, "")).collect::<Result<_, _>>()?;
    if pipes.is_empty() {
        return Err(FileError::NoPipe(path.to_owned()));
    }
    Ok(File { service, pipes, keys })
}

/// The table of a pipe, with what it does not say itself. What is wrong with a default is found at the first pipe that takes it, and
/// told of with the default's line.
fn with_defaults<'v>(pipe: Spanned<DeValue<'v>>, defaults: &DeTable<'v>) -> Spanned<DeValue<'v>> {
    let (span, mut pipe) = (pipe.span(), pipe.into_inner());
    if let DeValue::Table(own) = &mut pipe {
        for (name, value) in defaults {
            if !own.contains_key(name) {
                own.insert(name.clone(), value.clone());
            }
        }
    }
    Spanned::new(span, pipe)
}

/// A file's text, in which places can be found.
#[derive(Clone, Copy)]
struct Text<'t> {
    path: &'t Path,
    /// Where lines end, in bytes from the start. To count them for each option would take minutes for 20,000 pipes.
    line_ends: &'t [usize],
}

impl Text<'_> {
    /// The tables of a list that may be left out; `otherwise` is what is wrong if it is something else.
    fn list<'v>(
        self,
        value: Option<Spanned<DeValue<'v>>>,
        otherwise: &str,
    ) -> Result<Vec<Spanned<DeValue<'v>>>, FileError> {
        match value.map(|value| (value.span(), value.into_inner())) {
            None => Ok(Vec::new()),
            Some((_, DeValue::Array(tables))) => Ok(tables.into_iter().collect()),
            Some((span, _)) => Err(self.error(Some(span), otherwise)),
        }
    }

    /// A table of a list, with `hint` if it has a name that has no meaning there.
    fn table<O: DeserializeOwned>(
        self,
        table: Spanned<DeValue<'_>>,
        hint: &str,
    ) -> Result<Table<O>, FileError> {
        let lines = match table.get_ref() {
            DeValue::Table(keys) => {
                keys.keys().map(|key| (key.get_ref().to_string(), self.line(&key.span()))).collect()
            }
            _ => Vec::new(),
        };
        let line = self.line(&table.span());
        let options =
            O::deserialize(ValueDeserializer::from(table)).map_err(|error| self.wrong(&error, hint))?;
        Ok(Table { options, path: self.path.to_owned(), line, lines })
    }

    /// `error` in one line, with `hint` if it is about a name that has no meaning where it is.
    fn wrong(self, error: &toml::de::Error, hint: &str) -> FileError {
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        let hint = if message.starts_with("unknown field") { hint } else { "" };
        self.error(error.span(), &format!("{message}{hint}"))
    }

    fn error(self, span: Option<Range<usize>>, message: &str) -> FileError {
        let line = self.line(&span.unwrap_or_default());
        FileError::Syntax { place: Place { path: self.path.to_owned(), line }, message: message.to_owned() }
    }

    fn line(self, span: &Range<usize>) -> usize {
        1 + self.line_ends.partition_point(|&end| end < span.start)
    }
}
