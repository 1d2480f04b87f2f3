//! Taking over from the process that serves, without a gap (`--hand-over`).
//!
//! ```text
//!  the process that serves                          the one that takes over
//!                            ◀── which sources ───  has read its configuration and keys
//!  sockets, the pid file's lock, older processes ─▶
//!                                                   listens at the rest, locks itself in
//!                            ◀── ready ───────────
//!  accepts no more           ─── go ─────────────▶  accepts
//!  lets connections finish   ◀── stop, revoke ────  is told to stop, loses a key, or ends
//! ```
//!
//! The queue of a socket belongs to all who have the socket, so a client that waits in it is accepted by whoever comes next. Until
//! "ready", the process that serves goes on, whatever becomes of the other.
//!
//! All of it is lines of text over a Unix-domain socket, since two versions of spipe talk here; descriptors come beside their lines.

mod links;
mod predecessor;
mod succession;
mod wire;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::links::{Predecessors, Successor, Word};
pub use self::predecessor::{Handed, Heir, Place, Predecessor, Ready, answers, ask};
pub use self::succession::{Busy, Offer, Request, Succession};
pub use self::wire::Wanted;

/// Why this process cannot take over from the one that serves. That one goes on then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HandOverError {
    /// Something that is no socket has the name.
    #[error("--hand-over {}: a file that is not a socket has this name; choose another or remove it", .0.display())]
    NotASocket(PathBuf),
    /// The operating system says no.
    #[error("--hand-over {path}: cannot {doing}: {source}", path = .path.display())]
    Refused {
        /// `--hand-over`
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What it says.
        source: io::Error,
    },
    /// It hangs.
    #[error(
        "--hand-over {path}: process {pid}, which serves so far, has not answered in {} seconds; end it (kill -KILL {pid}) and start again",
        wire::PATIENCE.as_secs(), path = .path.display()
    )]
    Silent {
        /// `--hand-over`
        path: PathBuf,
        /// Who listens there.
        pid: i32,
    },
    /// One at a time.
    #[error("--hand-over {path}: process {by} is just taking over; wait until it has, or end it", path = .path.display())]
    Busy {
        /// `--hand-over`
        path: PathBuf,
        /// The other one.
        by: String,
    },
    /// It belongs to somebody else.
    #[error("--hand-over {path}: process {pid} belongs to another user; start this one as the same user (-u) or as root", path = .path.display())]
    Denied {
        /// `--hand-over`
        path: PathBuf,
        /// Who listens there.
        pid: i32,
    },
    /// It is another program.
    #[error(
        "--hand-over {path}: process {pid} says something else than this version of spipe understands; stop it first, or choose another path",
        path = .path.display()
    )]
    Foreign {
        /// `--hand-over`
        path: PathBuf,
        /// Who listens there.
        pid: i32,
    },
}

impl HandOverError {
    fn refused(path: &Path, doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Refused { path: path.to_owned(), doing, source }
    }
}
