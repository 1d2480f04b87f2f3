//! Keys and certificates for the peers, made for one run.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::error::Result;
use crate::machine::command;
use crate::peer::Peer;
use crate::process::output;

/// What the certificate is for.
pub(crate) const NAME: &str = "far";

/// Files, where not said otherwise; those of peers that do not take part do not exist.
pub(crate) struct Secrets {
    /// Of spipe and spiped.
    pub(crate) key: PathBuf,
    /// Of stunnel.
    pub(crate) psk: PathBuf,
    /// Of the peers with TLS: ECDSA on P-256, self-signed, for [`NAME`].
    pub(crate) certificate: PathBuf,
    pub(crate) private_key: PathBuf,
    /// Both in one.
    pub(crate) chain: PathBuf,
    /// The host's and the user's alike.
    pub(crate) ssh_key: PathBuf,
    pub(crate) ssh_public_key: PathBuf,
    /// Of shadowsocks; not a file.
    pub(crate) password: String,
}

impl Secrets {
    pub(crate) fn make(peers: &[Peer], directory: &Path) -> Result<Self> {
        let mut random = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let mut hex = String::new();
        for byte in random {
            write!(hex, "{byte:02x}")?;
        }
        let path = |name| directory.join(name);
        let secrets = Self {
            key: path("key"),
            psk: path("psk"),
            certificate: path("certificate.pem"),
            private_key: path("private-key.pem"),
            chain: path("chain.pem"),
            ssh_key: path("ssh-key"),
            ssh_public_key: path("ssh-key.pub"),
            password: hex.clone(),
        };
        write_private(&secrets.key, &random)?;
        write_private(&secrets.psk, format!("near:{hex}\n").as_bytes())?;
        secrets.make_certificate()?;
        if peers.contains(&Peer::Ssh) {
            output(
                command("ssh-keygen")?.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&secrets.ssh_key),
            )?;
        }
        Ok(secrets)
    }

    fn make_certificate(&self) -> Result<()> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()])?;
        let (certificate, private_key) = (cert.pem(), signing_key.serialize_pem());
        fs::write(&self.certificate, &certificate)?;
        write_private(&self.private_key, private_key.as_bytes())?;
        write_private(&self.chain, [certificate, private_key].concat().as_bytes())
    }
}

fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)?;
    Ok(())
}
