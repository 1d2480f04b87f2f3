//! From the `--tls-*` options to a [`TlsClient`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pem_rfc7468::Decoder;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;
use zeroize::Zeroizing;

use super::key_file::{self, KeyFileError, Permissions};
use super::options::{Mode, PipeOptions};
use super::plan::PlanError;
use crate::addr::{Scheme, Target};
use crate::proto::stack::{self, wiped};
use crate::stream::tls::BareEnd;
use crate::upstream::{Authorities, Certificate, ClientIdentity, NoAuthority, PrivateKey, TlsClient, Trust};

/// What is wrong with a file that TLS needs.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsFileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no certificate.
    #[error("{path} has no certificate in PEM form, which begins with -----BEGIN CERTIFICATE-----", path = .0.display())]
    NoCertificate(PathBuf),
    /// It has certificates, none of which is usable.
    #[error("{path}: {source}", path = .path.display())]
    NoAuthority {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: NoAuthority,
    },
    /// The system has no authorities that could be read.
    #[error("the system has no certificates of authorities that can be read{reason}; install ca-certificates, or name a file with --tls-ca",
        reason = .0.as_ref().map(|error| format!(" ({error})")).unwrap_or_default())]
    NoSystem(#[source] Option<io::Error>),
    /// The private key cannot be read.
    #[error(transparent)]
    Secret(#[from] KeyFileError),
    /// It is no private key.
    #[error("{path} has no private key in PEM form, which begins with -----BEGIN PRIVATE KEY-----", path = .0.display())]
    NoKey(PathBuf),
    /// There is a private key, and nobody to ask for its passphrase.
    #[error("the private key {path} needs a passphrase; type: openssl pkey -in {path} -out NEW.key  (and keep that as safe)", path = .0.display())]
    Encrypted(PathBuf),
    /// The private key is not usable, or not that of the certificate.
    #[error("the private key {path} is not usable with that certificate: {reason}", path = .path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Makes clients of TLS, again and again.
#[derive(Default)]
pub(super) struct TlsPlanner {
    /// Read once: the sandbox keeps what is theirs out of reach later.
    system: Option<Authorities>,
}

impl TlsPlanner {
    /// What TLS targets are connected to with, if there are any, and the files that this comes from. Relative paths are `beside` the
    /// place that names them.
    ///
    /// # Errors
    /// [`PlanError`].
    pub(super) fn client(
        &mut self,
        options: &PipeOptions,
        beside: &Path,
        permissions: Permissions,
    ) -> Result<Option<(TlsClient, Vec<PathBuf>)>, PlanError> {
        let Some(target) = options.target.iter().find(|target| target.scheme() != Scheme::Plain) else {
            return match given(options).next() {
                None => Ok(None),
                Some(name) => Err(PlanError::contradiction(
                    name,
                    format!(
                        "--{name} is about TLS, and no target speaks it; write tls:// before the target, or leave it out"
                    ),
                )),
            };
        };
        if !matches!(options.mode(), Some(Mode::Decrypt)) {
            return Err(not_for_spipe(target));
        }
        let mut files = Vec::new();
        let mut file = |path: &Path| {
            files.push(beside.join(path));
            beside.join(path)
        };
        let authorities = match (&*options.tls_ca, options.tls_insecure) {
            ([], true) => None,
            ([], false) => Some(self.system()?),
            (paths @ [first, ..], false) => {
                let certificates: Result<Vec<_>, _> =
                    paths.iter().map(|path| certificates(&file(path))).collect();
                let certificates =
                    certificates.map_err(|source| PlanError::Tls { option: "tls-ca", source })?;
                Some(Authorities::new(certificates.into_iter().flatten()).map_err(|source| {
                    PlanError::Tls {
                        option: "tls-ca",
                        source: TlsFileError::NoAuthority { path: beside.join(first), source },
                    }
                })?)
            }
            (_, true) => {
                return Err(PlanError::contradiction(
                    "tls-insecure",
                    "--tls-ca says whose certificates count, and --tls-insecure that none is looked at; leave one of them out",
                ));
            }
        };
        let identity = match (&options.tls_cert, &options.tls_key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(identity(&file(certificate), &file(key), permissions)?),
            (Some(_), None) => {
                return Err(PlanError::contradiction(
                    "tls-cert",
                    "--tls-cert needs the private key of the certificate; add --tls-key FILE",
                ));
            }
            (None, Some(_)) => {
                return Err(PlanError::contradiction(
                    "tls-key",
                    "--tls-key needs the certificate that it is for; add --tls-cert FILE",
                ));
            }
        };
        let trust = Trust {
            authorities,
            pins: options.tls_pin.clone(),
            identity,
            server_name: options.tls_server_name.clone(),
            bare_end: if options.tls_ignore_unexpected_eof { BareEnd::IsEnd } else { BareEnd::IsTruncation },
        };
        Ok(Some((TlsClient::new(trust), files)))
    }

    fn system(&mut self) -> Result<Authorities, PlanError> {
        if let Some(system) = &self.system {
            return Ok(system.clone());
        }
        let found = rustls_native_certs::load_native_certs();
        let authorities = Authorities::new(found.certs).map_err(|NoAuthority| {
            let error = found.errors.into_iter().find_map(|error| match error.kind {
                rustls_native_certs::ErrorKind::Io { inner, .. } => Some(inner),
                _ => None,
            });
            PlanError::Tls { option: "target", source: TlsFileError::NoSystem(error) }
        })?;
        Ok(self.system.insert(authorities).clone())
    }
}

/// A target of TLS where another spipe is to be.
pub(super) fn not_for_spipe(target: &Target) -> PlanError {
    PlanError::contradiction(
        "target",
        format!(
            "{target}: TLS is for the service behind -d; without -d, the target is another spipe: write it plainly"
        ),
    )
}

/// The options about TLS that are given, by their long names.
fn given(options: &PipeOptions) -> impl Iterator<Item = &'static str> {
    let given = [
        ("tls-ca", !options.tls_ca.is_empty()),
        ("tls-server-name", options.tls_server_name.is_some()),
        ("tls-cert", options.tls_cert.is_some()),
        ("tls-key", options.tls_key.is_some()),
        ("tls-pin", !options.tls_pin.is_empty()),
        ("tls-insecure", options.tls_insecure),
        ("tls-ignore-unexpected-eof", options.tls_ignore_unexpected_eof),
    ];
    given.into_iter().filter_map(|(name, is_given)| is_given.then_some(name))
}

/// The certificates of a file: one or more.
fn certificates(path: &Path) -> Result<Vec<Certificate>, TlsFileError> {
    let content = fs::read(path).map_err(|source| TlsFileError::Read { path: path.to_owned(), source })?;
    match Certificate::pem_slice_iter(&content).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsFileError::NoCertificate(path.to_owned())),
    }
}

fn identity(certificate: &Path, key: &Path, permissions: Permissions) -> Result<ClientIdentity, PlanError> {
    let chain = certificates(certificate).map_err(|source| PlanError::Tls { option: "tls-cert", source })?;
    wiped::<{ stack::ASYMMETRIC }, _>(|| {
        let pem = key_file::read_secret(key, permissions)?;
        let private_key = private_key(key, &pem)?;
        ClientIdentity::new(chain, &private_key)
            .map_err(|error| TlsFileError::Key { path: key.to_owned(), reason: error.to_string() })
    })
    .map_err(|source| PlanError::Tls { option: "tls-key", source })
}

/// The private key in `pem`, which may have certificates besides.
fn private_key(path: &Path, pem: &[u8]) -> Result<Zeroizing<PrivateKey>, TlsFileError> {
    type Wrap = fn(Vec<u8>) -> PrivateKey;
    const KINDS: [(&str, Wrap); 3] = [
        ("PRIVATE KEY", |der| PrivateKey::Pkcs8(der.into())),
        ("EC PRIVATE KEY", |der| PrivateKey::Sec1(der.into())),
        ("RSA PRIVATE KEY", |der| PrivateKey::Pkcs1(der.into())),
    ];
    for (label, wrap) in KINDS {
        let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
        let Some(start) = find(pem, &begin) else { continue };
        let Some(length) = find(&pem[start..], &end) else { continue };
        let section = &pem[start..start + length + end.len()];
        // As OpenSSL encrypts these two: with headers before the key.
        if find(section, "ENCRYPTED").is_some() {
            return Err(TlsFileError::Encrypted(path.to_owned()));
        }
        let unusable = |error: pem_rfc7468::Error| TlsFileError::Key {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let mut decoder = Decoder::new_detect_wrap(section).map_err(unusable)?;
        let mut der = Zeroizing::new(vec![0; decoder.remaining_len()]);
        decoder.decode(&mut der).map_err(unusable)?;
        return Ok(Zeroizing::new(wrap(std::mem::take(&mut *der))));
    }
    Err(match find(pem, "-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        Some(_) => TlsFileError::Encrypted(path.to_owned()),
        None => TlsFileError::NoKey(path.to_owned()),
    })
}

fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}
