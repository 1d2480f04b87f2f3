//! What pipes there are to be, from the words of a command line or a file to [`Specs`] that cannot be half-valid.
//!
//! ```text
//!  command line ─▶ PipeOptions ──┐
//!                                ├─▶ Plan, with its keys ─┬─▶ pipe
//!  file.toml ─┬──▶ PipeOptions ──┘                        │
//!             └──▶ KeyOptions ────────────────────────────┘
//! ```
//!
//! The command line is a configuration with one pipe: the options are one type, which clap reads and serde reads, so
//! names and defaults are the same in both.

mod access;
pub(crate) mod key_file;
mod keys;
pub(crate) mod options;
pub(crate) mod plan;
mod targets;
mod text;
mod tls;
mod toml_file;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use self::options::{PipeOptions, ServiceOptions};
use self::plan::{Keys, PlanError, Planner};
use self::toml_file::{File, FileError};
use crate::connection::Common;
use crate::pipe::Specs;
use crate::proto::key::Key;

/// Where a configuration comes from, and comes from again at a reload.
pub(crate) enum Origin {
    /// The command line: what it says stays, but keys are read again. Beside it, the working directory of its time.
    CommandLine(Box<PipeOptions>, PathBuf),
    /// A file, by its absolute path: the working directory may change.
    File(PathBuf),
}

/// What a configuration says, before any key is read.
pub(crate) struct Parsed {
    /// Of the whole process.
    pub(crate) service: ServiceOptions,
    pipes: ParsedPipes,
}

enum ParsedPipes {
    CommandLine(Box<PipeOptions>, PathBuf),
    File(PathBuf, Box<File>),
}

/// Why there is no valid configuration.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read, or is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// The command line's options make no pipe.
    #[error(transparent)]
    CommandLine(#[from] PlanError),
}

/// All that a configuration says of its pipes, valid and with keys.
pub(crate) struct Configuration {
    pub(crate) specs: Specs,
    /// Where the keys are, for what keeps the process from reading anything else.
    pub(crate) key_files: Vec<PathBuf>,
}

impl Origin {
    /// Reads and parses, once.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn parse(&self) -> Result<Parsed, ConfigError> {
        match self {
            Self::CommandLine(options, directory) => {
                let pipes = ParsedPipes::CommandLine(options.clone(), directory.clone());
                Ok(Parsed { service: ServiceOptions::default(), pipes })
            }
            Self::File(path) => {
                let file = toml_file::read(path)?;
                Ok(Parsed {
                    service: file.service.clone(),
                    pipes: ParsedPipes::File(path.clone(), Box::new(file)),
                })
            }
        }
    }
}

impl Parsed {
    /// Reads the keys, and checks that all goes together.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn plan(self, planner: &mut Planner) -> Result<Configuration, ConfigError> {
        match self.pipes {
            ParsedPipes::CommandLine(options, directory) => {
                let (spec, key_files) = planner.spec(*options, &directory)?;
                let specs = Specs::new(vec![spec]).map_err(|conflict| PlanError::from(conflict.source))?;
                Ok(Configuration { specs, key_files })
            }
            ParsedPipes::File(path, file) => {
                let File { pipes, keys, .. } = *file;
                let beside = path.parent().unwrap_or(Path::new("/"));
                let (mut specs, mut key_files) = (Vec::with_capacity(pipes.len()), Vec::new());
                for pipe in &pipes {
                    let planned = planner.spec(pipe.options.clone(), beside);
                    let (spec, files) = planned.map_err(|error| pipe.blame(error))?;
                    specs.push(spec);
                    key_files.extend(files);
                }
                key_files.extend(keys::apply(&keys, &mut specs, beside)?);
                let specs = Specs::new(specs).map_err(|conflict| match pipes.get(conflict.number) {
                    Some(pipe) => pipe.blame(conflict.source.into()),
                    None => FileError::NoPipe(path.clone()),
                })?;
                Ok(Configuration { specs, key_files })
            }
        }
    }
}

/// The pipe of standard input and output: what its one connection needs, and the key that it proves.
///
/// # Errors
/// [`PlanError`].
pub(crate) fn stdio_pipe(
    options: PipeOptions,
    planner: &mut Planner,
) -> Result<(Common, Arc<Key>), PlanError> {
    // Its key is read once, so the place where it was is of no use later.
    let (common, Keys { keys, .. }) = planner.common(options, Path::new(""))?;
    Ok((common, keys.split_off_first().0))
}
