//! TLS to a target: whom to trust, and the handshake.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use base64ct::{Base64, Encoding};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
// The library that seals the frames as well.
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::proto::digest::sha256;
use crate::stream::tls::{BareEnd, Shared, Tls};

/// A certificate of a server or of its authority.
pub type Certificate = CertificateDer<'static>;
/// A private key. It shows nothing of itself, and whoever has it wipes it.
pub type PrivateKey = PrivateKeyDer<'static>;

/// Which servers are trusted, and how this end identifies itself to them.
pub struct Trust {
    /// Whose certificates count; none, if no certificate is looked at (`--tls-insecure`).
    pub authorities: Option<Authorities>,
    /// If there are any, the server's key has to be one of these.
    pub pins: Vec<Pin>,
    /// Who we are, if servers are to know.
    pub identity: Option<ClientIdentity>,
    /// The name that certificates are to be for, if that is not the target's host.
    pub server_name: Option<CertificateName>,
    /// What it means when the server ends its stream without a word.
    pub bare_end: BareEnd,
}

/// Certificate authorities: one or more.
#[derive(Clone)]
pub struct Authorities(Arc<RootCertStore>);

/// There is no certificate of an authority that could be used.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no usable certificate of an authority")]
pub struct NoAuthority;

impl Authorities {
    /// Those that have these certificates. Some of a system's are not usable, since they are too old for today's rules.
    ///
    /// # Errors
    /// [`NoAuthority`], when none is usable.
    pub fn new(certificates: impl IntoIterator<Item = Certificate>) -> Result<Self, NoAuthority> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        if roots.is_empty() { Err(NoAuthority) } else { Ok(Self(Arc::new(roots))) }
    }
}

/// A certificate of ours with its private key.
pub struct ClientIdentity(Arc<CertifiedKey>);

impl ClientIdentity {
    /// From a certificate with those that lead from it to an authority, and its key, which is not needed any more then.
    ///
    /// # Errors
    /// When the key is of no known kind, or does not belong to the certificate.
    pub fn new(chain: Vec<Certificate>, key: &PrivateKey) -> Result<Self, rustls::Error> {
        let identity = CertifiedKey::new(chain, provider::sign::any_supported_type(key)?);
        match identity.keys_match() {
            // Of a key that cannot tell.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(Self(Arc::new(identity)))
            }
            Err(error) => Err(error),
        }
    }
}

/// A name that a certificate can be for: of a host, or an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateName(ServerName<'static>);

impl FromStr for CertificateName {
    type Err = InvalidDnsNameError;

    fn from_str(text: &str) -> Result<Self, InvalidDnsNameError> {
        ServerName::try_from(text.to_owned()).map(Self)
    }
}

impl From<IpAddr> for CertificateName {
    fn from(address: IpAddr) -> Self {
        Self(address.into())
    }
}

/// The SHA-256 digest of a server's public key (SubjectPublicKeyInfo), as RFC 7469 and curl have it.
#[derive(Clone, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// A text that is no [`Pin`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no pin; write sha256/ and the digest of the server's public key in Base64")]
pub struct NotAPin(String);

/// What marks a digest of SHA-256.
const SHA256: &str = "sha256/";

impl Pin {
    fn of(certificate: &Certificate) -> Result<Self, rustls::Error> {
        let key = ParsedCertificate::try_from(certificate)?;
        Ok(Self(sha256(key.subject_public_key_info().as_ref())))
    }
}

impl FromStr for Pin {
    type Err = NotAPin;

    fn from_str(text: &str) -> Result<Self, NotAPin> {
        let digest = text.strip_prefix(SHA256).and_then(|text| Base64::decode_vec(text).ok());
        digest.and_then(|digest| digest.try_into().ok()).map(Self).ok_or_else(|| NotAPin(text.to_owned()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SHA256}{}", Base64::encode_string(&self.0))
    }
}

/// How connections to TLS targets are set up.
#[derive(Clone)]
pub struct TlsClient {
    connector: TlsConnector,
    server_name: Option<CertificateName>,
    bare_end: BareEnd,
    verifies: bool,
}

/// Only what it looks like from outside: it holds a private key.
impl fmt::Debug for TlsClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TlsClient").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl TlsClient {
    /// A client that trusts as `trust` says.
    pub fn new(trust: Trust) -> Self {
        let Trust { authorities, pins, identity, server_name, bare_end } = trust;
        let provider = Arc::new(provider::default_provider());
        let verifies = authorities.is_some() || !pins.is_empty();
        let chain = authorities.map(|Authorities(roots)| {
            let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
            builder.build().expect("there are authorities, and no revocation lists")
        });
        let verifier = Verifier { chain, pins, provider: Arc::clone(&provider) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has ciphers for them")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match identity {
            Some(ClientIdentity(identity)) => {
                config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
            None => config.with_no_client_auth(),
        };
        Self { connector: TlsConnector::from(Arc::new(config)), server_name, bare_end, verifies }
    }

    /// Whether it finds out if it talks to the right server.
    pub fn verifies(&self) -> bool {
        self.verifies
    }

    /// Shakes hands over `socket`, which leads to `host`, until `deadline`.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) async fn connect(
        &self,
        socket: TcpStream,
        start: Start,
        host: &CertificateName,
        deadline: Instant,
    ) -> Result<Tls, TlsError> {
        timeout_at(deadline, self.shake_hands(socket, start, host)).await.unwrap_or(Err(TlsError::TimedOut))
    }

    async fn shake_hands(
        &self,
        mut socket: TcpStream,
        start: Start,
        host: &CertificateName,
    ) -> Result<Tls, TlsError> {
        if start == Start::Postgres {
            ask_postgres(&mut socket).await?;
        }
        let socket = Arc::new(socket);
        let CertificateName(name) = self.server_name.as_ref().unwrap_or(host).clone();
        let session = self.connector.connect(name, Shared::new(Arc::clone(&socket))).await;
        let session = session.map_err(|error| {
            let of_tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()).cloned();
            of_tls.map_or_else(|| TlsError::Broken(error), TlsError::Refused)
        })?;
        Ok(Tls::new(socket, session, self.bare_end))
    }
}

/// How TLS begins on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// At once.
    AtOnce,
    /// When PostgreSQL has been asked for it.
    Postgres,
}

/// `SSLRequest`, its length included (PostgreSQL's documentation, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Asks PostgreSQL to go on with TLS. Its answer is one byte, and no more is read: bytes that somebody has put behind it would
/// have to be a part of the handshake (CVE-2021-23222 is about clients that keep them).
async fn ask_postgres(socket: &mut TcpStream) -> Result<(), TlsError> {
    socket.write_all(&SSL_REQUEST).await.map_err(TlsError::Broken)?;
    let mut answer = [0];
    socket.read_exact(&mut answer).await.map_err(TlsError::Broken)?;
    match answer {
        [b'S'] => Ok(()),
        [b'N'] => Err(TlsError::PostgresWithoutTls),
        _ => Err(TlsError::NotPostgres),
    }
}

/// Why there is no TLS on a connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// This end does not trust the server, or that one refuses this end, or does not speak TLS.
    #[error("{0}{hint}", hint = hint(.0))]
    Refused(#[source] rustls::Error),
    /// The connection broke during the handshake.
    #[error("the connection broke during the TLS handshake ({0}); does the target speak TLS?")]
    Broken(#[source] io::Error),
    /// The time limit came first.
    #[error("connected, but the TLS handshake did not end in time (-o); does the target speak TLS?")]
    TimedOut,
    /// PostgreSQL has TLS turned off.
    #[error("PostgreSQL does not offer TLS; set ssl = on there, or leave out postgres+tls://")]
    PostgresWithoutTls,
    /// Whatever it is.
    #[error("the target did not answer as PostgreSQL does when it is asked for TLS")]
    NotPostgres,
}

/// What to do about it.
fn hint(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            // The second, of an authority that has the same name as its own, and another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "; name the file of its authority with --tls-ca"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "; give the name that it is for with --tls-server-name"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "; renew it there, or set the clock here"
            }
            // webpki's own kind of error, which is not to be had.
            CertificateError::Other(error) if format!("{error:?}").contains("CaUsedAsEndEntity") => {
                "; the server uses the certificate of an authority as its own: make it another one, or pin its key with \
                 --tls-pin and leave the chain alone with --tls-insecure"
            }
            _ => "",
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown,
        ) => "; if the target asks for a certificate of ours, give a right one with --tls-cert and --tls-key",
        rustls::Error::InvalidMessage(_) => "; the target does not speak TLS there",
        _ => "",
    }
}

/// Verifies certificates as rustls does, or not at all, and pins besides.
#[derive(Debug)]
struct Verifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    pins: Vec<Pin>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(chain) = &self.chain {
            chain.verify_server_cert(certificate, intermediates, name, ocsp, now)?;
        }
        if !self.pins.is_empty() {
            let pin = Pin::of(&certificate.clone().into_owned())?;
            if !self.pins.contains(&pin) {
                return Err(rustls::Error::General(format!("its key is {pin}, which is none of --tls-pin")));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_comes_back_as_it_was_written() {
        let text = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        assert_eq!(text.parse::<Pin>().unwrap().to_string(), text);
    }

    #[test]
    fn what_is_no_digest_of_sha256_is_no_pin() {
        for text in ["", "sha256/", "sha256/AAEC", "sha1/AAECAwQFBgcICQoLDA0ODxAREhM=", "sha256/!", "AAEC"] {
            assert!(text.parse::<Pin>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_certificate_makes_no_authority() {
        assert_eq!(Authorities::new([]).err(), Some(NoAuthority));
        assert_eq!(Authorities::new([Certificate::from(vec![0; 64])]).err(), Some(NoAuthority));
    }
}
