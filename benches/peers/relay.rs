//! A relay of tokio and rustls with nothing around it: what a program that is written for one purpose costs.
//!
//! The benchmark runs itself as this peer: `peers near …` takes plain connections and makes one of TLS of each,
//! `peers far …` does the opposite.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::error::Result;
use crate::secrets::NAME;

/// Bytes for each direction of a connection.
const BUFFER: usize = 64 << 10;

/// One end of the relay.
#[derive(Subcommand)]
pub(crate) enum End {
    /// Takes plain connections
    #[command(hide = true)]
    Near { source: SocketAddr, target: SocketAddr, certificate: PathBuf },
    /// Takes connections with TLS
    #[command(hide = true)]
    Far { source: SocketAddr, target: SocketAddr, certificate: PathBuf, private_key: PathBuf },
}

/// The side on which an end has TLS.
#[derive(Clone)]
enum Tls {
    Target(TlsConnector),
    Source(TlsAcceptor),
}

impl End {
    /// Relays until it is killed.
    pub(crate) fn run(&self) -> Result<Infallible> {
        let (Self::Near { source, target, .. } | Self::Far { source, target, .. }) = *self;
        let tls = self.tls()?;
        Runtime::new()?.block_on(async {
            let listener = TcpListener::bind(source).await?;
            loop {
                let (client, _) = listener.accept().await?;
                // What goes wrong with a connection shows at its client.
                tokio::spawn(carry(tls.clone(), client, target));
            }
        })
    }

    /// TLS 1.3 with rustls's defaults, which include the resumption of sessions.
    fn tls(&self) -> Result<Tls> {
        let provider = Arc::new(default_provider());
        match self {
            Self::Near { certificate, .. } => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(certificate)?)?;
                let config = ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&TLS13])?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                Ok(Tls::Target(Arc::new(config).into()))
            }
            Self::Far { certificate, private_key, .. } => {
                let chain = vec![CertificateDer::from_pem_file(certificate)?];
                let config = ServerConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&TLS13])?
                    .with_no_client_auth()
                    .with_single_cert(chain, PrivateKeyDer::from_pem_file(private_key)?)?;
                Ok(Tls::Source(Arc::new(config).into()))
            }
        }
    }
}

async fn carry(tls: Tls, client: TcpStream, target: SocketAddr) -> Result<()> {
    client.set_nodelay(true)?;
    match tls {
        Tls::Target(connector) => {
            let name = ServerName::try_from(NAME)?;
            let target = connector.connect(name, connect(target).await?).await?;
            join(client, target).await
        }
        Tls::Source(acceptor) => {
            let client = acceptor.accept(client).await?;
            join(client, connect(target).await?).await
        }
    }
}

async fn connect(target: SocketAddr) -> Result<TcpStream> {
    let target = TcpStream::connect(target).await?;
    target.set_nodelay(true)?;
    Ok(target)
}

async fn join(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut target: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<()> {
    copy_bidirectional_with_sizes(&mut client, &mut target, BUFFER, BUFFER).await?;
    Ok(())
}
