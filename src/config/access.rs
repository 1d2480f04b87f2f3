//! From `--allow`, `--deny` and `--trust-proxy` to [`Access`] and [`TrustedProxies`].

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

use crate::gate::{Access, TrustedProxies};

/// What marks the name of a file among networks.
const FILE: &str = "file:";

/// An element of a list of networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// A network, or a single address.
    Network(IpNet),
    /// A file with one network a line.
    File(PathBuf),
}

/// A text that is no [`Listed`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no network; write an address, a network such as 192.0.2.0/24, or file:PATH")]
pub(crate) struct NotANetwork(String);

impl FromStr for Listed {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        match text.strip_prefix(FILE) {
            Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => network(text).map(Self::Network).ok_or_else(|| NotANetwork(text.to_owned())),
        }
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(formatter),
            Self::File(path) => write!(formatter, "{FILE}{}", path.display()),
        }
    }
}

fn network(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    // Bits behind the prefix mean nothing.
    text.parse::<IpNet>().ok().or_else(address).map(|network| network.trunc())
}

/// Why a list of networks cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ListFileError {
    /// The file cannot be read.
    #[error("cannot read the list {path}: {source}", path = .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is no network.
    #[error("{path}:{line}: '{text}' is no network; write an address or a network such as 192.0.2.0/24", path = .path.display())]
    Line {
        /// Of which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
}

/// Which addresses may connect by both lists, and the files that this comes from. Relative paths are `beside` the place that
/// names them.
///
/// # Errors
/// [`ListFileError`], with the option whose file it is.
pub(super) fn access(
    allow: Option<&[Listed]>,
    deny: &[Listed],
    beside: &Path,
) -> Result<(Access, Vec<PathBuf>), (&'static str, ListFileError)> {
    let mut files = Vec::new();
    let mut read = |list: &[Listed]| read_list(list, beside, &mut files);
    let allow = allow.map(&mut read).transpose().map_err(|error| ("allow", error))?;
    let deny = read(deny).map_err(|error| ("deny", error))?;
    Ok((Access::new(allow, deny), files))
}

/// The proxies of `--trust-proxy`, and the files that this comes from.
///
/// # Errors
/// [`ListFileError`].
pub(super) fn proxies(
    list: &[Listed],
    beside: &Path,
) -> Result<(TrustedProxies, Vec<PathBuf>), ListFileError> {
    let mut files = Vec::new();
    let networks = read_list(list, beside, &mut files)?;
    Ok((TrustedProxies::new(networks), files))
}

/// The networks of a list, and of its files.
fn read_list(list: &[Listed], beside: &Path, files: &mut Vec<PathBuf>) -> Result<Vec<IpNet>, ListFileError> {
    let mut networks = Vec::new();
    for listed in list {
        match listed {
            Listed::Network(network) => networks.push(*network),
            Listed::File(path) => {
                let path = beside.join(path);
                networks.extend(read_file(&path)?);
                files.push(path);
            }
        }
    }
    Ok(networks)
}

/// The networks of a file: one a line, with comments from `#` to the end of the line.
fn read_file(path: &Path) -> Result<Vec<IpNet>, ListFileError> {
    let content = std::fs::read_to_string(path)
        .map_err(|source| ListFileError::Read { path: path.to_owned(), source })?;
    let lines = content.lines().enumerate().map(|(number, line)| {
        let text = line.split('#').next().unwrap_or_default().trim();
        let wrong = || ListFileError::Line { path: path.to_owned(), line: number + 1, text: text.to_owned() };
        if text.is_empty() { Ok(None) } else { network(text).ok_or_else(wrong).map(Some) }
    });
    lines.filter_map(Result::transpose).collect()
}
