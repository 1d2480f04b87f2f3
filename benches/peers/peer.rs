//! The peers: what each is called, what it does and leaves out, and what it takes.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::work::Work;

pub(crate) const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// What may lie between a client and a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    Direct,
    NginxPlain,
    NginxPlainLargeBuffers,
    Spipe,
    /// With tunnels that are ready before clients come, where that makes a difference.
    SpipeWithSpares,
    /// Another build of spipe, for a comparison with an earlier one.
    #[value(skip)]
    Other,
    Spiped,
    /// spipe at the near end, spiped at the far one.
    SpipeToSpiped,
    /// The other way round.
    SpipedToSpipe,
    /// spipe at both ends, with spiped's protocol between them.
    SpipedProtocol,
    Stunnel,
    Haproxy,
    HaproxyLargeBuffers,
    NginxTls,
    NginxTlsLargeBuffers,
    /// The benchmark's own relay of tokio and rustls.
    TokioRustls,
    Ssh,
    Shadowsocks,
}

impl Peer {
    pub(crate) const ALL: [Self; 18] = [
        Self::Direct,
        Self::NginxPlain,
        Self::NginxPlainLargeBuffers,
        Self::Spipe,
        Self::SpipeWithSpares,
        Self::Other,
        Self::Spiped,
        Self::SpipeToSpiped,
        Self::SpipedToSpipe,
        Self::SpipedProtocol,
        Self::Stunnel,
        Self::Haproxy,
        Self::HaproxyLargeBuffers,
        Self::NginxTls,
        Self::NginxTlsLargeBuffers,
        Self::TokioRustls,
        Self::Ssh,
        Self::Shadowsocks,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::NginxPlain => "nginx stream, plain",
            Self::NginxPlainLargeBuffers => "nginx stream, plain, 64 KiB",
            Self::Spipe => "spipe",
            Self::SpipeWithSpares => "spipe --spares 64",
            Self::Other => "spipe, other build",
            Self::Spiped => "spiped",
            Self::SpipeToSpiped => "spipe -e, spiped -d",
            Self::SpipedToSpipe => "spiped -e, spipe -d",
            Self::SpipedProtocol => "spipe, spiped's protocol",
            Self::Stunnel => "stunnel PSK",
            Self::Haproxy => "HAProxy TLS",
            Self::HaproxyLargeBuffers => "HAProxy TLS, 64 KiB",
            Self::NginxTls => "nginx stream TLS",
            Self::NginxTlsLargeBuffers => "nginx stream TLS, 64 KiB",
            Self::TokioRustls => "tokio-rustls",
            Self::Ssh => "ssh -L",
            Self::Shadowsocks => "shadowsocks-rust",
        }
    }

    pub(crate) fn is_encrypted(self) -> bool {
        !matches!(self, Self::Direct | Self::NginxPlain | Self::NginxPlainLargeBuffers)
    }

    /// Whether there is anything to be learned from it at this work.
    pub(crate) fn takes_part_in(self, work: Work) -> bool {
        self != Self::SpipeWithSpares || work == Work::Distant
    }

    /// Whether spipe is to be measured by it.
    pub(crate) fn is_rival(self) -> bool {
        self.is_encrypted()
            && !matches!(
                self,
                Self::Spipe
                    | Self::SpipeWithSpares
                    | Self::Other
                    | Self::SpipeToSpiped
                    | Self::SpipedToSpipe
                    | Self::SpipedProtocol
            )
    }

    /// What it leaves out of what the other encrypted peers do for this work.
    pub(crate) fn does_less_at(self, work: Work) -> Option<&'static str> {
        match (self, work) {
            (Self::Ssh, Work::Connect) => Some("all over one connection"),
            (Self::Shadowsocks, _) => Some("no forward secrecy"),
            _ => None,
        }
    }

    /// Programs or files, each with the Debian package that brings it.
    pub(crate) fn needs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Direct
            | Self::Spipe
            | Self::SpipeWithSpares
            | Self::Other
            | Self::SpipedProtocol
            | Self::TokioRustls
            | Self::Shadowsocks => &[],
            Self::NginxPlain | Self::NginxPlainLargeBuffers | Self::NginxTls | Self::NginxTlsLargeBuffers => {
                &[("nginx", "nginx"), (NGINX_STREAM, "libnginx-mod-stream")]
            }
            Self::Spiped | Self::SpipeToSpiped | Self::SpipedToSpipe => &[("spiped", "spiped")],
            Self::Stunnel => &[("stunnel", "stunnel4")],
            Self::Haproxy | Self::HaproxyLargeBuffers => &[("haproxy", "haproxy")],
            Self::Ssh => &[("ssh", "openssh-client"), ("sshd", "openssh-server")],
        }
    }

    /// What prints its version.
    pub(crate) fn version_command(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Direct
            | Self::Spipe
            | Self::SpipeWithSpares
            | Self::Other
            | Self::SpipedProtocol
            | Self::TokioRustls => None,
            Self::NginxPlain | Self::NginxPlainLargeBuffers | Self::NginxTls | Self::NginxTlsLargeBuffers => {
                Some(("nginx", "-v"))
            }
            Self::Spiped | Self::SpipeToSpiped | Self::SpipedToSpipe => Some(("spiped", "-v")),
            Self::Stunnel => Some(("stunnel", "-version")),
            Self::Haproxy | Self::HaproxyLargeBuffers => Some(("haproxy", "-v")),
            Self::Ssh => Some(("ssh", "-V")),
            Self::Shadowsocks => Some(("ssserver", "--version")),
        }
    }
}
