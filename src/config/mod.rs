//! What pipes there are to be, from the words of a command line or a file to [`Plan`]s that cannot be half-valid.
//!
//! ```text
//!  command line ─▶ PipeOptions ──┐
//!                                ├─▶ Plan, with its keys ─▶ pipe
//!  file.toml ────▶ PipeOptions ──┘
//! ```
//!
//! The command line is a configuration with one pipe: the options are one type, which clap reads and serde reads, so
//! names and defaults are the same in both.

pub(crate) mod key_file;
pub(crate) mod options;
pub(crate) mod plan;
mod text;
mod toml_file;

use std::path::{Path, PathBuf};

use thiserror::Error;

use self::options::{PipeOptions, ServiceOptions};
use self::plan::{PlanError, Planner};
use self::toml_file::{File, FileError};
use crate::connection::Pipe;
use crate::pipe::Plan;

/// Where a configuration comes from, and comes from again at a reload.
pub(crate) enum Origin {
    /// The command line: what it says stays, but keys are read again. Beside it, the working directory of its time.
    CommandLine(Box<PipeOptions>, PathBuf),
    /// A file, by its absolute path: the working directory may change.
    File(PathBuf),
}

impl Origin {
    /// What it says of the whole process. To be read before any key.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn service(&self) -> Result<ServiceOptions, ConfigError> {
        match self {
            Self::CommandLine(..) => Ok(ServiceOptions::default()),
            Self::File(path) => Ok(toml_file::read(path)?.service),
        }
    }
}

/// Why there is no valid configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read, or is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// The command line's options make no pipe.
    #[error(transparent)]
    CommandLine(#[from] PlanError),
}

/// All that a configuration says, valid and with keys.
pub(crate) struct Configuration {
    pub(crate) service: ServiceOptions,
    /// Never empty.
    pub(crate) pipes: Vec<Plan>,
    /// Where the keys are, for whoever keeps the process from reading anything else.
    pub(crate) key_files: Vec<PathBuf>,
}

impl Configuration {
    /// Reads `origin` and all keys.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn read(origin: &Origin, planner: &mut Planner) -> Result<Self, ConfigError> {
        let mut key_files = Vec::new();
        match origin {
            Origin::CommandLine(options, directory) => {
                let plan = planner.plan(*options.clone(), directory, &mut key_files)?;
                let plan = apart_from(&[], plan)?;
                Ok(Self { service: ServiceOptions::default(), pipes: vec![plan], key_files })
            }
            Origin::File(path) => {
                let File { service, pipes } = toml_file::read(path)?;
                let beside = path.parent().unwrap_or(Path::new("/"));
                let mut plans: Vec<Plan> = Vec::new();
                for pipe in pipes {
                    let plan = planner
                        .plan(pipe.options.clone(), beside, &mut key_files)
                        .and_then(|plan| apart_from(&plans, plan))
                        .map_err(|error| pipe.blame(error))?;
                    plans.push(plan);
                }
                Ok(Self { service, pipes: plans, key_files })
            }
        }
    }
}

/// One pipe of standard input and output.
///
/// # Errors
/// [`PlanError`].
pub(crate) fn stdio_pipe(options: PipeOptions, planner: &mut Planner) -> Result<Pipe, PlanError> {
    // Its key is read once, so nobody has to know where it was.
    planner.pipe(options, Path::new(""), &mut Vec::new())
}

/// `plan`, if it has each place once, and shares neither name nor place with one of `others`.
fn apart_from(others: &[Plan], plan: Plan) -> Result<Plan, PlanError> {
    for (place, source) in plan.sources.iter().enumerate() {
        if plan.sources[..place].contains(source) {
            let message = format!("{source} is a source twice; once is enough");
            return Err(PlanError::contradiction("source", message));
        }
        if others.iter().any(|other| other.sources.contains(source)) {
            let message = format!("{source} is the source of two pipes; give each its own");
            return Err(PlanError::contradiction("source", message));
        }
    }
    if let Some(name) = &plan.pipe.name
        && others.iter().any(|other| other.pipe.name.as_ref() == Some(name))
    {
        let message = format!("'{name}' is the name of two pipes; give each its own");
        return Err(PlanError::contradiction("name", message));
    }
    Ok(plan)
}
