//! From one pipe's options to its [`Plan`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::key_file::{self, KeyFileError, KeySource, Permissions};
use super::options::{CipherChoice, PipeOptions};
use crate::connection::Pipe;
use crate::pipe::Plan;
use crate::proto::cipher::{Cipher, Ciphers};
use crate::proto::key::Key;
use crate::stats::Usage;
use crate::stream::Keepalive;
use crate::upstream::Dialer;

/// Why options make no pipe.
#[derive(Debug, Error)]
pub enum PlanError {
    /// They do not go together, or not with what they are for.
    #[error("{message}")]
    Contradiction {
        /// The option to look at, by its long name.
        option: &'static str,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
}

impl PlanError {
    pub(super) fn contradiction(option: &'static str, message: impl Into<String>) -> Self {
        Self::Contradiction { option, message: message.into() }
    }

    /// What the operating system says, if it is that.
    pub(crate) fn system(&self) -> Option<&io::Error> {
        match self {
            Self::Key(KeyFileError::Read(_, error)) => Some(error),
            _ => None,
        }
    }

    /// The option to look at, by its long name.
    pub(super) fn option(&self) -> &'static str {
        match self {
            Self::Contradiction { option, .. } => option,
            Self::Key(_) => "key",
        }
    }
}

/// Makes plans, again and again.
#[derive(Default)]
pub(crate) struct Planner {
    /// Standard input gives its key once.
    stdin_key: Option<Arc<Key>>,
    /// Where all connections are counted, whatever became of the plan that they are of.
    usage: Arc<Usage>,
}

impl Planner {
    /// Where the connections of all plans are counted.
    pub(crate) fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// A pipe that listens, with its keys. Relative paths are `beside` the place that names them; the paths of the keys are
    /// added to `key_files`.
    ///
    /// # Errors
    /// [`PlanError`].
    pub(super) fn plan(
        &mut self,
        options: PipeOptions,
        beside: &Path,
        key_files: &mut Vec<PathBuf>,
    ) -> Result<Plan, PlanError> {
        let Some(role) = options.role() else {
            return Err(PlanError::contradiction(
                "mode",
                "the mode is missing; write mode = \"encrypt\" or mode = \"decrypt\"",
            ));
        };
        if options.source.is_empty() {
            return Err(PlanError::contradiction(
                "source",
                "the source is missing; write where to accept connections",
            ));
        }
        Ok(Plan {
            role,
            sources: options.source.clone(),
            max_connections: if options.max_connections == 0 { usize::MAX } else { options.max_connections },
            keepalive: keepalive(&options),
            pipe: self.pipe(options, beside, key_files)?,
        })
    }

    /// What is the same for a pipe that listens and for one of standard input and output.
    ///
    /// # Errors
    /// [`PlanError`].
    pub(super) fn pipe(
        &mut self,
        options: PipeOptions,
        beside: &Path,
        key_files: &mut Vec<PathBuf>,
    ) -> Result<Pipe, PlanError> {
        if options.no_forward_secrecy {
            return Err(PlanError::contradiction(
                "no-forward-secrecy",
                "-f: forward secrecy cannot be turned off, for without it a key that leaks one day opens all that was \
                 ever recorded; leave -f out",
            ));
        }
        let keepalive = keepalive(&options);
        let dialer = Dialer::new(options.target, options.bind, keepalive)
            .map_err(|error| PlanError::contradiction("bind", error.to_string()))?;
        if options.key.is_empty() {
            return Err(PlanError::contradiction("key", "the key is missing; write the name of a key file"));
        }
        let mut keys = Vec::new();
        for source in &options.key {
            match source {
                KeySource::Stdin => keys.push(self.stdin_key()?),
                KeySource::File(path) => {
                    let path = beside.join(path);
                    let permissions = Permissions::from(options.insecure_key_permissions);
                    let read = key_file::read_all(&path, permissions)?;
                    keys.extend(read.into_iter().map(|(_, key)| Arc::new(key)));
                    key_files.push(path);
                }
            }
        }
        Ok(Pipe {
            name: options.name,
            keys,
            label: options.label.unwrap_or_default(),
            ciphers: options.cipher.ciphers(),
            dialer,
            timeout: Duration::from_secs(options.timeout.seconds()),
            usage: Arc::clone(&self.usage),
        })
    }

    fn stdin_key(&mut self) -> Result<Arc<Key>, KeyFileError> {
        let key = match self.stdin_key.take() {
            Some(key) => key,
            None => Arc::new(key_file::read(&KeySource::Stdin, Permissions::Private)?),
        };
        Ok(Arc::clone(self.stdin_key.insert(key)))
    }
}

fn keepalive(options: &PipeOptions) -> Keepalive {
    if options.no_keepalive { Keepalive::Off } else { Keepalive::On }
}

impl CipherChoice {
    fn ciphers(self) -> Ciphers {
        match self {
            Self::Auto => Ciphers::auto(has_aes_instructions()),
            Self::Aes256gcm => Ciphers::only(Cipher::Aes256Gcm),
            Self::Chacha20poly1305 => Ciphers::only(Cipher::ChaCha20Poly1305),
        }
    }
}

/// Whether AES-256-GCM runs on instructions of its own here.
pub(crate) fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}
