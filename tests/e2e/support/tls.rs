//! Certificates, and servers that speak TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};
use tempfile::TempDir;

use super::socket::Service;

/// A private authority, with files of what it has certified.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate, its key, and files of both.
pub(crate) struct Certified {
    certificate: rcgen::Certificate,
    key: KeyPair,
    pub(crate) certificate_file: String,
    pub(crate) key_file: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        // Authorities of one name could not be told apart before a signature is checked.
        let name = format!("authority {:02x?}", &key.public_key_raw()[1..5]);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let authority = Self { issuer, directory };
        write(&authority.path("ca.pem"), &authority.issuer.pem());
        authority
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The file with its certificate.
    pub(crate) fn file(&self) -> String {
        self.path("ca.pem").display().to_string()
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for `name`, a host or an IP address.
    pub(crate) fn certify(&self, name: &str) -> Certified {
        self.certify_until(name, 4096)
    }

    /// The same, until this year.
    pub(crate) fn certify_until(&self, name: &str, year: i32) -> Certified {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |kind: &str, content: &str| {
            let path = self.path(&format!("{name}-{year}.{kind}"));
            write(&path, content);
            path.display().to_string()
        };
        Certified {
            certificate_file: file("pem", &certificate.pem()),
            key_file: file("key", &key.serialize_pem()),
            certificate,
            key,
        }
    }
}

impl Certified {
    /// The key as PKCS #8 has it.
    pub(crate) fn key_der(&self) -> &[u8] {
        self.key.serialized_der()
    }

    fn config(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(self.key_der().to_vec().into());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("there are ciphers for it")
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.der().clone()], key)
            .expect("they belong together");
        Arc::new(config)
    }

    /// A server with this certificate on a free port, which serves each session with `serve`.
    pub(crate) fn serve(&self, serve: impl Fn(Session) + Send + Clone + 'static) -> SocketAddr {
        self.serve_with(&[&rustls::version::TLS13], serve)
    }

    /// The same for clients of these versions of TLS.
    pub(crate) fn serve_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        serve: impl Fn(Session) + Send + Clone + 'static,
    ) -> SocketAddr {
        let config = self.config(versions);
        Service::start().serve(move |socket| {
            let session = ServerConnection::new(Arc::clone(&config)).expect("the configuration is right");
            serve(Session(StreamOwned::new(session, socket)));
        })
    }
}

/// The server's side of a session.
pub(crate) struct Session(StreamOwned<ServerConnection, TcpStream>);

impl Session {
    /// Ends the stream as TLS wants it. The other direction goes on.
    pub(crate) fn end(&mut self) {
        self.0.conn.send_close_notify();
        let _ = self.0.flush();
        let _ = self.0.sock.shutdown(Shutdown::Write);
    }

    /// The socket under it.
    pub(crate) fn into_socket(self) -> TcpStream {
        self.0.into_parts().1
    }

    /// Sends back all bytes that it receives, and ends when the other side does.
    pub(crate) fn send_back(mut self) {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            match self.read(&mut bytes) {
                Ok(0) => return self.end(),
                Ok(count) => {
                    if self.write_all(&bytes[..count]).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }
}

impl Read for Session {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Session {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes a file that only its owner can read.
pub(crate) fn write(path: &Path, content: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, content).expect("the file can be written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
}
