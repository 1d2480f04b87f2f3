//! From one pipe's options to its [`Targets`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;
use vec1::Vec1;

use super::key_file::{self, KeyFileError, Permissions};
use super::options::{Mode, PipeOptions};
use super::plan::PlanError;
use crate::addr::{Interface, Outgoing, Proxy, Target};
use crate::upstream::{Check, Credentials, Exchange, NotCredentials, Route, Targets, TlsClient};

/// What is wrong with a file of `--via-auth`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// It cannot be read, or others can read it.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// Its content is something else. It is not shown.
    #[error("{path} is not usable: {source}", path = .path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: NotCredentials,
    },
}

/// A proxy, and what it is told.
pub(super) type Via = (Proxy, Option<Arc<Credentials>>);

/// The proxy before the targets, if there is one, and the file that its credentials come from. A relative path is `beside` the place
/// that names it.
///
/// # Errors
/// [`PlanError`].
pub(super) fn via(
    proxy: Option<&Proxy>,
    credentials_file: Option<&Path>,
    beside: &Path,
    permissions: Permissions,
) -> Result<(Option<Via>, Option<PathBuf>), PlanError> {
    match (proxy, credentials_file) {
        (None, None) => Ok((None, None)),
        (None, Some(_)) => Err(PlanError::contradiction(
            "via-auth",
            "--via-auth is for a proxy, and there is none without --via; add --via PROXY",
        )),
        (Some(proxy), None) => Ok((Some((proxy.clone(), None)), None)),
        (Some(proxy), Some(path)) => {
            let path = beside.join(path);
            let credentials = credentials(&path, permissions).map_err(PlanError::Credentials)?;
            Ok((Some((proxy.clone(), Some(Arc::new(credentials)))), Some(path)))
        }
    }
}

fn credentials(path: &Path, permissions: Permissions) -> Result<Credentials, CredentialsError> {
    let content = key_file::read_secret(path, permissions)?;
    Credentials::parse(&content).map_err(|source| CredentialsError::Content { path: path.to_owned(), source })
}

/// The targets of a pipe, connected to through `via`, those of TLS with `tls`, and how they are looked after.
///
/// # Errors
/// [`PlanError::Contradiction`].
pub(super) fn targets(
    options: &PipeOptions,
    via: Option<&Via>,
    tls: Option<&TlsClient>,
) -> Result<Targets, PlanError> {
    let routes = options.target.iter().map(|target| {
        let route = route(target.clone(), options.bind.clone(), options.interface, via)?;
        match tls {
            Some(client) => {
                route.with_tls(client).map_err(|error| PlanError::contradiction("target", error.to_string()))
            }
            None => Ok(route),
        }
    });
    let routes = Vec1::try_from_vec(routes.collect::<Result<_, _>>()?).map_err(|_| {
        PlanError::contradiction("target", "the target is missing; write where to connect to")
    })?;
    Targets::new(routes, options.balance, check(options)?)
        .map_err(|error| PlanError::contradiction("target", error.to_string()))
}

/// The way to `target`, from the outgoing address `bind` over `interface` and through `via`, where these are given.
///
/// # Errors
/// [`PlanError::Contradiction`].
pub(super) fn route(
    target: Target,
    bind: Option<Outgoing>,
    interface: Option<Interface>,
    via: Option<&Via>,
) -> Result<Route, PlanError> {
    let route =
        Route::new(target, bind).map_err(|error| PlanError::contradiction("bind", error.to_string()))?;
    let route = match interface {
        Some(interface) => {
            route.over(interface).map_err(|error| PlanError::contradiction("interface", error.to_string()))?
        }
        None => route,
    };
    match via {
        Some((proxy, credentials)) => route
            .through(proxy.clone(), credentials.clone())
            .map_err(|error| PlanError::contradiction("via", error.to_string())),
        None => Ok(route),
    }
}

fn check(options: &PipeOptions) -> Result<Option<Check>, PlanError> {
    let Some(every) = options.check else {
        let needs_check = [
            ("check-send", options.check_send.is_some()),
            ("check-expect", options.check_expect.is_some()),
            ("rise", options.rise.is_some()),
            ("fall", options.fall.is_some()),
            ("on-down", options.on_down.is_some()),
        ];
        let lonely = needs_check.into_iter().find_map(|(name, is_given)| is_given.then_some(name));
        return match lonely {
            Some(name) => Err(PlanError::contradiction(
                name,
                format!("--{name} is about checks, and there are none without --check; add --check SECONDS"),
            )),
            None => Ok(None),
        };
    };
    if options.mode().is_none() {
        return Err(PlanError::contradiction(
            "check",
            "--check is for a pipe that listens: with standard input and output, there is one connection; leave it out",
        ));
    }
    Ok(Some(Check {
        every: every.into(),
        rise: options.rise.map_or(Check::RISE, Into::into),
        fall: options.fall.map_or(Check::FALL, Into::into),
        exchange: exchange(options)?,
        on_down: options.on_down.unwrap_or_default(),
    }))
}

fn exchange(options: &PipeOptions) -> Result<Option<Exchange>, PlanError> {
    let (send, expect) = (options.check_send.clone(), options.check_expect.clone());
    let name = match (&send, &expect) {
        (None, None) => return Ok(None),
        (Some(_), None) => {
            return Err(PlanError::contradiction(
                "check-send",
                "--check-send without --check-expect finds out nothing; add what is to be in the answer",
            ));
        }
        (_, Some(expect)) if expect.0.is_empty() => {
            return Err(PlanError::contradiction(
                "check-expect",
                "--check-expect is empty, which any answer has in it; write what is to be in the answer",
            ));
        }
        (Some(_), Some(_)) => "check-send",
        (None, Some(_)) => "check-expect",
    };
    if let Some(Mode::Encrypt) = options.mode() {
        return Err(PlanError::contradiction(
            name,
            format!(
                "--{name} is for -d, which talks to the service; with -e, --check asks the other end whether its target can be \
                 reached"
            ),
        ));
    }
    let text = |text: Option<Escaped>| text.map(|text| text.0).unwrap_or_default();
    Ok(Some(Exchange { send: text(send), expect: text(expect) }))
}

/// Bytes, written as a text with escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Escaped(pub(super) Vec<u8>);

/// A text with an escape that has no meaning.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoSuchEscape;

impl fmt::Display for NoSuchEscape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(
            r"after a backslash, write r, n, t, 0, another backslash, or x and two hexadecimal digits",
        )
    }
}

impl std::error::Error for NoSuchEscape {}

impl FromStr for Escaped {
    type Err = NoSuchEscape;

    fn from_str(text: &str) -> Result<Self, NoSuchEscape> {
        let (mut bytes, mut rest) = (Vec::new(), text.bytes());
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'\\' => match rest.next() {
                    Some(b'r') => b'\r',
                    Some(b'n') => b'\n',
                    Some(b't') => b'\t',
                    Some(b'0') => 0,
                    Some(b'\\') => b'\\',
                    Some(b'x') => {
                        let mut digit = || char::from(rest.next()?).to_digit(16);
                        let (high, low) = (digit().ok_or(NoSuchEscape)?, digit().ok_or(NoSuchEscape)?);
                        u8::try_from(high * 16 + low).expect("two digits are a byte")
                    }
                    _ => return Err(NoSuchEscape),
                },
                byte => byte,
            });
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_bytes() {
        let text = r"PING\r\n\t\\\0\x7f\xFFä";
        assert_eq!(text.parse(), Ok(Escaped(b"PING\r\n\t\\\0\x7f\xff\xc3\xa4".to_vec())));
        assert_eq!("".parse(), Ok(Escaped(Vec::new())));
    }

    #[test]
    fn escapes_without_a_meaning_are_refused() {
        for text in [r"\", r"a\", r"\q", r"\x", r"\x1", r"\xg0", r"\x0g", r"\R"] {
            assert_eq!(text.parse::<Escaped>(), Err(NoSuchEscape), "{text}");
        }
    }
}
