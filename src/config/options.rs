//! The options, for clap and serde alike: one name, one default, one explanation.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, ValueEnum};
use serde::Deserialize;
use tracing::level_filters::LevelFilter;

use super::access::Listed;
use super::key_file::KeySource;
use super::targets::Escaped;
use super::text;
use crate::addr::{Interface, Name, Outgoing, Proxy, Source, Target};
use crate::connection::{Common, Limits};
use crate::gate::{Access, Quota, Rules, TrustedProxies};
use crate::listen::SocketMode;
use crate::names::{Family, Lookup};
use crate::proto::handshake::Label;
use crate::proxy_header::Version;
use crate::service::log::{Destination, Format};
use crate::service::privileges::UserName;
use crate::service::sandbox::Confinement;
use crate::service::supervisor::Policy;
use crate::status::{self, StatusUser};
use crate::stream::Keepalive;
use crate::upstream::{Balance, CertificateName, Check, Pin, Running};

/// What one pipe is made of.
///
/// `-e`, `-d` and the options that are there for spiped's sake belong to the command line; a file has `mode` for the first
/// two.
#[expect(clippy::struct_excessive_bools, reason = "this is what is read; it goes no further than `config`")]
#[derive(clap::Args, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[command(group = ArgGroup::new("mode").args(["encrypt", "decrypt"]).multiple(false))]
pub(crate) struct PipeOptions {
    /// Encrypt: accept plain connections, and seal them to the target. With neither -e nor -d, standard input and output
    /// are sealed to the target
    #[arg(short, long, requires = "source")]
    #[serde(skip)]
    encrypt: bool,

    /// Decrypt: accept sealed connections, and open them to the target
    #[arg(short, long, requires = "source")]
    #[serde(skip)]
    decrypt: bool,

    #[arg(skip)]
    #[serde(default, deserialize_with = "text::optional")]
    mode: Option<Mode>,

    /// Where to accept connections; may be given several times. systemd or systemd:NAME takes passed sockets
    #[arg(short, long, requires = "mode")]
    #[serde(default, deserialize_with = "text::one_or_more")]
    pub(crate) source: Vec<Source>,

    /// The permissions of the files of Unix-domain sources, as for chmod, such as 660 [default: what the umask leaves]
    #[arg(long, value_name = "MODE", requires = "source")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) socket_mode: Option<SocketMode>,

    /// Whose they are, as for chown
    #[arg(long, value_name = "USER[:GROUP]", requires = "source")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) socket_owner: Option<UserName>,

    /// Where to connect to. May be given several times: a target that fails is passed over. With -d, tls://HOST:PORT speaks TLS,
    /// and postgres+tls://HOST:PORT asks PostgreSQL for it
    #[arg(short, long, required = true)]
    #[serde(deserialize_with = "text::one_or_more")]
    pub(crate) target: Vec<Target>,

    /// The key file, the same on both ends: 32 bytes or more; - reads standard input. Given several times, or as a
    /// directory of *.key files: -d accepts any of them, and the rest uses the first
    #[arg(short, long, required = true)]
    #[serde(deserialize_with = "text::one_or_more")]
    pub(crate) key: Vec<KeySource>,

    /// What to call the pipe in the log
    #[arg(long, value_name = "TEXT")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) name: Option<Name>,

    /// The most connections at a time; 0 for no limit
    #[arg(short = 'n', long, value_name = "MAX", default_value_t = default_max_connections())]
    #[serde(default = "default_max_connections")]
    pub(crate) max_connections: usize,

    /// The most connections at a time that are shaking hands. The next ones wait with -e; with -d, a stranger makes room
    #[arg(long, value_name = "MAX", requires = "source")]
    #[serde(default)]
    pub(crate) max_handshakes: Option<NonZero<usize>>,

    /// Only clients of these addresses may connect: an address, a network such as 192.0.2.0/24, or file:PATH with one a line.
    /// May be given several times
    #[arg(long, value_name = "NETWORK", requires = "source")]
    #[serde(default, deserialize_with = "text::optional_list")]
    pub(crate) allow: Option<Vec<Listed>>,

    /// Clients of these addresses may not connect, whatever --allow says
    #[arg(long, value_name = "NETWORK", requires = "source")]
    #[serde(default, deserialize_with = "text::one_or_more")]
    pub(crate) deny: Vec<Listed>,

    /// Connections come from proxies or load balancers, which say first who is behind them (the PROXY protocol, v1 or v2): these are
    /// the clients of -e, and the peers of -d
    #[arg(long, requires = "source", requires = "trust_proxy")]
    #[serde(default)]
    pub(crate) accept_proxy: bool,

    /// Where these proxies are: an address, a network, or file:PATH. May be given several times
    #[arg(long, value_name = "NETWORK", requires = "accept_proxy")]
    #[serde(default, deserialize_with = "text::one_or_more")]
    pub(crate) trust_proxy: Vec<Listed>,

    /// With -d, tell the target first who the client is, by the PROXY protocol: v1 or v2
    #[arg(long, value_name = "VERSION")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) send_proxy: Option<Version>,

    /// Have a handshake for each connection. By default, a tunnel whose connection has ended well carries others, for two minutes
    /// after its handshake, if both ends can do that
    #[arg(long)]
    #[serde(default)]
    pub(crate) no_reuse: bool,

    /// With -e, the number of tunnels that are ready for clients to come, so that the first of a burst take one round trip, too. Each
    /// is an idle connection to the other end, made anew every two minutes. By default, there are as many as recent bursts needed
    #[arg(long, value_name = "COUNT", requires = "source")]
    #[serde(default)]
    pub(crate) spares: Option<usize>,

    /// The most connections at a time of one IPv4 address or IPv6 /64
    #[arg(long, value_name = "MAX", requires = "source")]
    #[serde(default)]
    pub(crate) max_per_source: Option<NonZero<u32>>,

    /// The most new connections a second of one IPv4 address or IPv6 /64
    #[arg(long, value_name = "MAX", requires = "source")]
    #[serde(default)]
    pub(crate) rate_per_source: Option<NonZero<u32>>,

    /// How long connecting and the handshake may take together: 0.1 to 86400, such as 2.5
    #[arg(short = 'o', long, value_name = "SECONDS", default_value_t = default_timeout())]
    #[serde(default = "default_timeout")]
    pub(crate) timeout: FineSeconds,

    /// Which of several targets a connection gets: failover, the first that is up; round-robin, one after the other; or
    /// least-connections
    #[arg(long, value_name = "HOW", default_value_t = Balance::default())]
    #[serde(default, deserialize_with = "text::one")]
    pub(crate) balance: Balance,

    /// Check each target this often, so that no client has to find out that it is down. With -e, the other end is asked
    /// whether its target can be reached
    #[arg(long, value_name = "SECONDS")]
    #[serde(default)]
    pub(crate) check: Option<Seconds<1, 3_600>>,

    /// What a check says to a target of -d, such as 'PING\r\n'
    #[arg(long, value_name = "TEXT")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) check_send: Option<Escaped>,

    /// What the answer to a check is to have in it, such as '+PONG' or 'role:master'. It is waited for until the target ends its
    /// answer, or -o has passed
    #[arg(long, value_name = "TEXT")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) check_expect: Option<Escaped>,

    #[arg(long, value_name = "COUNT", help = format!(
        "How many checks in a row have to succeed to bring a target up [default: {}]", Check::RISE
    ))]
    #[serde(default)]
    pub(crate) rise: Option<Count>,

    #[arg(long, value_name = "COUNT", help = format!(
        "How many checks in a row have to fail to bring a target down [default: {}]", Check::FALL
    ))]
    #[serde(default)]
    pub(crate) fall: Option<Count>,

    #[arg(long, value_name = "WHAT", help = format!(
        "What becomes of the connections to a target that checks find down: keep or reset [default: {}]", Running::default()
    ))]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) on_down: Option<Running>,

    /// The address to connect from; the port is optional
    #[arg(short, long, value_name = "ADDR")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) bind: Option<Outgoing>,

    /// The network interface to connect over, whatever the routes say, such as wg0
    #[arg(long, value_name = "NAME")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) interface: Option<Interface>,

    /// Connect to targets through a proxy, which resolves their names: socks5://HOST:PORT, or http://HOST:PORT for CONNECT
    #[arg(long, value_name = "PROXY")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) via: Option<Proxy>,

    /// A file with USER:PASSWORD for the proxy. It must be as private as a key
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    pub(crate) via_auth: Option<PathBuf>,

    /// Whose certificates a tls:// target may have, instead of the system's authorities: a file of PEM certificates. May be
    /// given several times
    #[arg(long, value_name = "FILE")]
    #[serde(default, deserialize_with = "text::one_or_more")]
    pub(crate) tls_ca: Vec<PathBuf>,

    /// The name that the certificate is to be for, if that is not the target's host
    #[arg(long, value_name = "NAME")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) tls_server_name: Option<CertificateName>,

    /// Our own certificate, for a tls:// target that asks for one: a PEM file, with those that lead to its authority
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The private key of that certificate: a PEM file without a passphrase
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    pub(crate) tls_key: Option<PathBuf>,

    /// The key that a tls:// target is to have, whoever certifies it: sha256/ and the digest in Base64. May be given several
    /// times
    #[arg(long, value_name = "PIN")]
    #[serde(default, deserialize_with = "text::one_or_more")]
    pub(crate) tls_pin: Vec<Pin>,

    /// Do not look at the certificate of a tls:// target. Whoever is between here and there can read and change everything,
    /// unless there is a --tls-pin
    #[arg(long)]
    #[serde(default)]
    pub(crate) tls_insecure: bool,

    /// Take it as the end of the stream when a tls:// target closes the connection without saying that it is complete
    /// (close_notify). Somebody who cuts the connection looks the same
    #[arg(long)]
    #[serde(default)]
    pub(crate) tls_ignore_unexpected_eof: bool,

    #[arg(short = 'r', long, value_name = "SECONDS", conflicts_with = "resolve_once", help = format!(
        "How often to look the names of targets up again, and of --bind: 0.1 to 86400, such as 0.5; a connection uses the last \
         answer [default: {}]",
        Lookup::INTERVAL.as_secs()
    ))]
    #[serde(default)]
    pub(crate) resolve_interval: Option<FineSeconds>,

    /// Never look a name up again once it has resolved
    #[arg(short = 'R', long)]
    #[serde(default)]
    pub(crate) resolve_once: bool,

    /// Which addresses of a name to try first: ipv4 or ipv6
    #[arg(long, value_name = "FAMILY")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) prefer: Option<Family>,

    /// Start although the name of a source does not resolve yet, and listen there once it does
    #[arg(short = 'D', long, requires = "source")]
    #[serde(default)]
    pub(crate) wait_for_names: bool,

    /// How long a TCP connection may leave unanswered what was sent to it, before it counts as dead
    #[arg(long, value_name = "SECONDS", default_value_t = default_dead_after())]
    #[serde(default = "default_dead_after")]
    pub(crate) dead_after: DeadAfter,

    /// End a connection that carries no byte in either direction for this long. Bytes that wait for a reader who has stalled do
    /// not count [default: never]
    #[arg(long, value_name = "SECONDS")]
    #[serde(default)]
    pub(crate) idle_timeout: Option<TimeLimit>,

    /// The same for a connection of which one direction has ended; it takes the place of --idle-timeout then [default: as before]
    #[arg(long, value_name = "SECONDS")]
    #[serde(default)]
    pub(crate) half_close_timeout: Option<TimeLimit>,

    /// End a connection at this age, whatever it carries. Each gets 90 to 100 % of it, at random, so that those that began together do
    /// not end together [default: never]
    #[arg(long, value_name = "SECONDS")]
    #[serde(default)]
    pub(crate) max_lifetime: Option<TimeLimit>,

    /// Probe a TCP connection that has been idle for this long, so that middleboxes on the way keep it. A dead one is noticed half of
    /// --dead-after later [default: half of --dead-after]
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_keepalive")]
    #[serde(default)]
    pub(crate) keepalive: Option<Seconds<1, 32_767>>,

    /// Do not probe idle connections with TCP keep-alive
    #[arg(short = 'j', long)]
    #[serde(default)]
    pub(crate) no_keepalive: bool,

    /// What the other end speaks: spipe, or spiped for Tarsnap's spiped, which cannot promise all that spipe does
    /// (docs/SPIPED.md)
    #[arg(long, value_enum, default_value_t = ProtocolChoice::Spipe, value_name = "PROTOCOL")]
    #[serde(default)]
    pub(crate) protocol: ProtocolChoice,

    /// A text that both ends must share besides the key; it tells apart pipes that share a key
    #[arg(long, value_name = "TEXT")]
    #[serde(default, deserialize_with = "text::optional")]
    pub(crate) label: Option<Label>,

    /// The cipher for the data. auto takes the fastest one that both processors have instructions for
    #[arg(long, value_enum, default_value_t = CipherChoice::Auto, value_name = "CIPHER")]
    #[serde(default)]
    pub(crate) cipher: CipherChoice,

    /// Accept a key file that others can read or own, and a directory of keys that others can write to
    #[arg(long)]
    #[serde(default)]
    pub(crate) insecure_key_permissions: bool,

    /// Stay in the foreground, as spipe does without --daemon (accepted for spiped's sake)
    #[arg(short = 'F', long, conflicts_with = "daemon")]
    #[serde(skip)]
    _foreground: bool,

    /// Require forward secrecy, as spipe always does. With --protocol spiped, refuse another end that has it turned off (-f there)
    #[arg(short = 'g', long)]
    #[serde(default)]
    pub(crate) forward_secrecy: bool,

    /// With --protocol spiped, do without forward secrecy, as -f of spiped does: whoever finds the key one day can read what was
    /// recorded. Refused otherwise
    #[arg(short = 'f', long)]
    #[serde(default)]
    pub(crate) no_forward_secrecy: bool,
}

impl PipeOptions {
    /// The long names of the visible options that a file does not have: the fields above that serde skips.
    pub(crate) const NOT_IN_A_FILE: [&str; 3] = ["encrypt", "decrypt", "foreground"];

    /// None for a pipe of standard input and output.
    pub(crate) fn mode(&self) -> Option<Mode> {
        match (self.mode, self.encrypt, self.decrypt) {
            (Some(mode), ..) => Some(mode),
            (None, true, _) => Some(Mode::Encrypt),
            (None, _, true) => Some(Mode::Decrypt),
            (None, false, false) => None,
        }
    }

    /// Which connections the pipe admits, by where they come from and besides.
    pub(super) fn rules(&self, access: Access, proxies: Option<TrustedProxies>) -> Rules {
        let per_source = Quota { connections: self.max_per_source, rate: self.rate_per_source };
        let (max_connections, max_handshakes) = (NonZero::new(self.max_connections), self.max_handshakes);
        Rules { max_connections, max_handshakes, access, per_source, proxies, ..Rules::default() }
    }

    /// How long a connection may go on.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            idle: self.idle_timeout.map(Into::into),
            half_closed: self.half_close_timeout.map(Into::into),
            lifetime: self.max_lifetime.map(Into::into),
        }
    }
}

fn default_max_connections() -> usize {
    Rules::MAX_CONNECTIONS
}

/// `-e` and `-d`, as a file has them.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    Encrypt,
    Decrypt,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "encrypt" => Ok(Self::Encrypt),
            "decrypt" => Ok(Self::Decrypt),
            _ => Err(format!("'{text}' is no mode; write encrypt or decrypt")),
        }
    }
}

/// Whole seconds, from `MIN` to `MAX`: for the times of people and of services, and for keep-alive, which the kernel counts so.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
pub(crate) struct Seconds<const MIN: u64, const MAX: u64>(u64);

/// How long a connection may go on, up to a year.
pub(crate) type TimeLimit = Seconds<1, 31_536_000>;

/// `--dead-after`, up to an hour. Keep-alive counts in seconds, and a limit in which a network cannot recover from a lost packet is
/// none; TCP itself gives up after a quarter of an hour.
pub(crate) type DeadAfter = Seconds<5, 3_600>;

fn default_timeout() -> FineSeconds {
    FineSeconds(Common::TIMEOUT)
}

fn default_dead_after() -> DeadAfter {
    Seconds(Keepalive::DEAD_AFTER.as_secs())
}

impl<const MIN: u64, const MAX: u64> From<Seconds<MIN, MAX>> for Duration {
    fn from(seconds: Seconds<MIN, MAX>) -> Self {
        Self::from_secs(seconds.0)
    }
}

impl<const MIN: u64, const MAX: u64> TryFrom<u64> for Seconds<MIN, MAX> {
    type Error = String;

    fn try_from(seconds: u64) -> Result<Self, String> {
        if (MIN..=MAX).contains(&seconds) { Ok(Self(seconds)) } else { Err(Self::not_in_range()) }
    }
}

impl<const MIN: u64, const MAX: u64> Seconds<MIN, MAX> {
    fn not_in_range() -> String {
        format!("write a whole number of seconds from {MIN} to {MAX}")
    }
}

impl<const MIN: u64, const MAX: u64> std::str::FromStr for Seconds<MIN, MAX> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<u64>().map_err(|_| Self::not_in_range())?.try_into()
    }
}

impl<const MIN: u64, const MAX: u64> std::fmt::Display for Seconds<MIN, MAX> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Seconds and fractions of a second, from a tenth to a day: for `-o` and `-r`, which spiped takes so. What two hosts say to each
/// other need not take a second; in less than a tenth, a handshake over a long way does not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FineSeconds(Duration);

impl FineSeconds {
    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(86_400);

    /// The one that is nearest to `time`.
    pub(crate) fn nearest(time: Duration) -> Self {
        Self(time.clamp(Self::MIN, Self::MAX))
    }

    fn new(time: Option<Duration>) -> Result<Self, String> {
        time.filter(|time| (Self::MIN..=Self::MAX).contains(time)).map(Self).ok_or_else(|| {
            let [min, max] = [Self::MIN, Self::MAX].map(|limit| limit.as_secs_f64());
            format!("write a number of seconds from {min} to {max}, such as 2.5")
        })
    }
}

impl From<FineSeconds> for Duration {
    fn from(seconds: FineSeconds) -> Self {
        seconds.0
    }
}

impl std::str::FromStr for FineSeconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // f64 reads signs, exponents, "inf" and "nan" too.
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let seconds = text.parse().ok().filter(|_| is_plain);
        Self::new(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
    }
}

impl std::fmt::Display for FineSeconds {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_secs_f64().fmt(formatter)
    }
}

impl<'de> Deserialize<'de> for FineSeconds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FineSecondsVisitor)
    }
}

/// TOML tells integers from floats; here they mean the same.
struct FineSecondsVisitor;

impl serde::de::Visitor<'_> for FineSecondsVisitor {
    type Value = FineSeconds;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a number of seconds")
    }

    fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<FineSeconds, E> {
        FineSeconds::new(u64::try_from(seconds).ok().map(Duration::from_secs)).map_err(E::custom)
    }

    fn visit_f64<E: serde::de::Error>(self, seconds: f64) -> Result<FineSeconds, E> {
        FineSeconds::new(Duration::try_from_secs_f64(seconds).ok()).map_err(E::custom)
    }
}

/// A number of checks, from 1 to 100.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "u32")]
pub(crate) struct Count(NonZero<u32>);

impl From<Count> for NonZero<u32> {
    fn from(count: Count) -> Self {
        count.0
    }
}

impl TryFrom<u32> for Count {
    type Error = &'static str;

    fn try_from(count: u32) -> Result<Self, Self::Error> {
        NonZero::new(count)
            .filter(|count| count.get() <= 100)
            .map(Self)
            .ok_or("write a whole number from 1 to 100")
    }
}

impl std::str::FromStr for Count {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<u32>().unwrap_or_default().try_into()
    }
}

/// `--protocol`.
#[derive(Clone, Copy, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProtocolChoice {
    #[default]
    Spipe,
    Spiped,
}

/// `--cipher`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CipherChoice {
    #[default]
    Auto,
    Aegis256x4,
    Aes256gcm,
    Chacha20poly1305,
}

/// What `spipe ping` is to find out. What a pipe has as well means the same.
#[derive(clap::Args)]
pub(crate) struct PingOptions {
    /// Where the other end listens: the target of -e
    #[arg(short, long)]
    pub(crate) target: Target,

    /// The key file, the same as at the other end; of a directory of *.key files, the first. - reads standard input
    #[arg(short, long)]
    pub(crate) key: KeySource,

    /// Have the other end connect to its target as well. The target gets no byte
    #[arg(long)]
    pub(crate) through: bool,

    /// How many round trips to measure, over one connection
    #[arg(short, long, value_name = "N", default_value_t = Trips(NonZero::<u32>::MIN))]
    pub(crate) count: Trips,

    #[arg(short, long, value_name = "SECONDS", default_value_t = Pause::default(), help = format!(
        "The time from one round trip to the next: 0 to {}, such as 0.2", Pause::MAX.as_secs()
    ))]
    pub(crate) interval: Pause,

    /// How long looking up, connecting and the handshake may take together, and each later step: 0.1 to 86400, such as 2.5
    #[arg(short = 'o', long, value_name = "SECONDS", default_value_t = default_timeout())]
    pub(crate) timeout: FineSeconds,

    /// What the other end speaks: spipe, or spiped, by which it can be known only whether the other end holds the key
    #[arg(long, value_enum, default_value_t = ProtocolChoice::Spipe, value_name = "PROTOCOL")]
    pub(crate) protocol: ProtocolChoice,

    /// The text that both ends share besides the key
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<Label>,

    /// The cipher for the data
    #[arg(long, value_enum, default_value_t = CipherChoice::Auto, value_name = "CIPHER")]
    pub(crate) cipher: CipherChoice,

    /// The address to connect from; the port is optional
    #[arg(short, long, value_name = "ADDR")]
    pub(crate) bind: Option<Outgoing>,

    /// The network interface to connect over, whatever the routes say
    #[arg(long, value_name = "NAME")]
    pub(crate) interface: Option<Interface>,

    /// Connect through a proxy: socks5://HOST:PORT, or http://HOST:PORT for CONNECT
    #[arg(long, value_name = "PROXY")]
    pub(crate) via: Option<Proxy>,

    /// A file with USER:PASSWORD for the proxy
    #[arg(long, value_name = "FILE")]
    pub(crate) via_auth: Option<PathBuf>,

    /// Which addresses of a name to try first: ipv4 or ipv6
    #[arg(long, value_name = "FAMILY")]
    pub(crate) prefer: Option<Family>,

    /// Accept a key file that others can read or own, and a directory of keys that others can write to
    #[arg(long)]
    pub(crate) insecure_key_permissions: bool,
}

/// A number of round trips.
#[derive(Clone, Copy)]
pub(crate) struct Trips(pub(crate) NonZero<u32>);

impl std::str::FromStr for Trips {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| "write a whole number from 1 on")
    }
}

impl std::fmt::Display for Trips {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The time between two round trips.
#[derive(Clone, Copy)]
pub(crate) struct Pause(pub(crate) Duration);

impl Pause {
    /// The other end gives up a ping that says nothing for five seconds.
    const MAX: Duration = Duration::from_secs(3);
}

/// As ping(8) has it.
impl Default for Pause {
    fn default() -> Self {
        Self(Duration::from_secs(1))
    }
}

impl std::str::FromStr for Pause {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let pause = seconds.filter(|seconds| *seconds <= Self::MAX).map(Self);
        pause.ok_or_else(|| format!("write a number of seconds from 0 to {}", Self::MAX.as_secs()))
    }
}

impl std::fmt::Display for Pause {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_secs_f64().fmt(formatter)
    }
}

/// Seconds of `--drain-timeout` by default. No default of clap's, since what the command line leaves out, a file may say.
const DRAIN_TIMEOUT: u32 = 60;

/// What the whole process does, however many pipes it has.
#[expect(
    clippy::struct_excessive_bools,
    reason = "this is what is read; each becomes a type where it is used"
)]
#[derive(clap::Args, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct ServiceOptions {
    /// Log warnings and errors only
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Log more
    #[arg(long)]
    pub(crate) verbose: bool,

    /// text for people, json for programs
    #[arg(long, value_name = "FORMAT")]
    #[serde(deserialize_with = "text::optional")]
    pub(crate) log_format: Option<Format>,

    /// Log to syslog
    #[arg(long)]
    pub(crate) syslog: bool,

    /// Go into the background once all sockets listen; logs to syslog
    #[arg(long)]
    pub(crate) daemon: bool,

    /// Write the process id to this file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Become this user, once all sockets listen
    #[arg(short, long, value_name = "USER[:GROUP]")]
    #[serde(deserialize_with = "text::optional")]
    pub(crate) user: Option<UserName>,

    #[arg(long, value_name = "SECONDS", help = format!(
        "How long connections may go on after SIGTERM, before they are reset; 0 for not at all [default: {DRAIN_TIMEOUT}]"
    ))]
    pub(crate) drain_timeout: Option<u32>,

    #[arg(long, value_name = "WHAT", help = format!(
        "What becomes of running connections when a reload takes their key away, or it expires: keep or reset [default: {}]",
        Running::default()
    ))]
    #[serde(deserialize_with = "text::optional")]
    pub(crate) on_revoke: Option<Running>,

    /// Serve the status there: a page for people at /, /status as JSON, /metrics for Prometheus, /livez and /readyz. May be given
    /// several times
    #[arg(long, value_name = "ADDR")]
    #[serde(deserialize_with = "text::one_or_more")]
    pub(crate) status: Vec<Source>,

    /// Who may read it: USER:HASH, with what 'openssl passwd -6' prints as HASH
    #[arg(long, value_name = "USER:HASH")]
    #[serde(deserialize_with = "text::optional")]
    pub(crate) status_user: Option<StatusUser>,

    /// Let everybody read it who can connect, also from other hosts
    #[arg(long)]
    pub(crate) status_public: bool,

    /// Say at /readyz that the process is ready only if each pipe has a target that is up
    #[arg(long)]
    pub(crate) ready_needs_target: bool,

    /// Obey 'spipe top', 'spipe reload', 'spipe close' and 'spipe drain' at this socket, which only its owner may use
    #[arg(long, value_name = "PATH")]
    #[serde(deserialize_with = "text::optional")]
    pub(crate) control: Option<Source>,

    /// Take over from the process that serves at this socket, if there is one, and hand over to the next one: no connection is
    /// refused or ended
    #[arg(long, value_name = "PATH")]
    pub(crate) hand_over: Option<PathBuf>,

    /// Keep in this directory when each key was last used; without it, in the one of systemd's StateDirectory=, if there is one
    #[arg(long, value_name = "DIR")]
    pub(crate) state_directory: Option<PathBuf>,

    /// Do not lock the process in: for finding out whether that is what breaks something
    #[arg(long)]
    pub(crate) no_sandbox: bool,
}

impl ServiceOptions {
    /// What the command line says, and what `file` says where that is silent.
    pub(crate) fn or(self, file: Self) -> Self {
        Self {
            quiet: self.quiet || (file.quiet && !self.verbose),
            verbose: self.verbose || (file.verbose && !self.quiet),
            log_format: self.log_format.or(file.log_format),
            syslog: self.syslog || file.syslog,
            daemon: self.daemon || file.daemon,
            pid_file: self.pid_file.or(file.pid_file),
            user: self.user.or(file.user),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            on_revoke: self.on_revoke.or(file.on_revoke),
            status: if self.status.is_empty() { file.status } else { self.status },
            status_user: self.status_user.or(file.status_user),
            status_public: self.status_public || file.status_public,
            ready_needs_target: self.ready_needs_target || file.ready_needs_target,
            control: self.control.or(file.control),
            hand_over: self.hand_over.or(file.hand_over),
            state_directory: self.state_directory.or(file.state_directory),
            no_sandbox: self.no_sandbox || file.no_sandbox,
        }
    }

    pub(crate) fn log_level(&self, otherwise: LevelFilter) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (_, true) => LevelFilter::DEBUG,
            (true, _) => otherwise.min(LevelFilter::WARN),
            (false, false) => otherwise,
        }
    }

    /// What a reload may change of the process.
    pub(crate) fn policy(&self) -> Policy {
        let drain_timeout = Duration::from_secs(self.drain_timeout.unwrap_or(DRAIN_TIMEOUT).into());
        Policy { drain_timeout, on_revoke: self.on_revoke.unwrap_or_default() }
    }

    /// Where the status is to be served.
    ///
    /// # Errors
    /// [`status::PlanError`].
    pub(crate) fn status(&self) -> Result<status::Plan, status::PlanError> {
        status::Plan::new(
            self.status.clone(),
            self.status_user.clone(),
            self.status_public,
            self.control.clone(),
            self.ready_needs_target,
        )
    }

    /// Whether both are the same as far as a reload may change nothing.
    pub(crate) fn is_settled_as(&self, other: &Self) -> bool {
        let Self { drain_timeout, on_revoke, .. } = *self;
        Self { drain_timeout, on_revoke, ..other.clone() } == *self
    }

    pub(crate) fn confinement(&self) -> Confinement {
        if self.no_sandbox { Confinement::Off } else { Confinement::On }
    }

    pub(crate) fn log_destination(&self) -> Destination {
        // In the background there is no standard error.
        if self.syslog || self.daemon { Destination::Syslog } else { Destination::stderr() }
    }

    /// The options that only a process that stays has a use for.
    pub(crate) fn asks_for_a_service(&self) -> Option<&'static str> {
        [
            (self.daemon, "--daemon"),
            (self.pid_file.is_some(), "-p"),
            (self.user.is_some(), "-u"),
            (self.drain_timeout.is_some(), "--drain-timeout"),
            (self.on_revoke.is_some(), "--on-revoke"),
            (!self.status.is_empty(), "--status"),
            (self.status_user.is_some(), "--status-user"),
            (self.status_public, "--status-public"),
            (self.ready_needs_target, "--ready-needs-target"),
            (self.control.is_some(), "--control"),
            (self.hand_over.is_some(), "--hand-over"),
            (self.state_directory.is_some(), "--state-directory"),
        ]
        .into_iter()
        .find_map(|(asked, name)| asked.then_some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the line of a file writes it.
    fn in_a_file(value: &str) -> Result<FineSeconds, String> {
        #[derive(Deserialize)]
        struct Line {
            timeout: FineSeconds,
        }
        let line = toml::from_str::<Line>(&format!("timeout = {value}"));
        line.map(|line| line.timeout).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn fine_seconds_are_the_same_on_the_command_line_and_in_a_file() {
        for (text, milliseconds) in
            [("0.1", 100), ("0.5", 500), ("1", 1_000), ("2.5", 2_500), ("5.0", 5_000), ("86400", 86_400_000)]
        {
            let expected = Ok(FineSeconds(Duration::from_millis(milliseconds)));
            assert_eq!((text.parse(), in_a_file(text)), (expected.clone(), expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_within_the_range_of_fine_seconds_is_refused_with_the_range() {
        let refused = Err("write a number of seconds from 0.1 to 86400, such as 2.5".to_owned());
        for text in [
            "0",
            "0.0",
            "0.0001",
            "0.000000001",
            "0.099",
            "-1",
            "-0.5",
            "86400.5",
            "86401",
            "1e300",
            "1e-9",
            "inf",
            "nan",
            "+inf",
            "-inf",
        ] {
            assert_eq!((text.parse(), in_a_file(text)), (refused.clone(), refused.clone()), "{text}");
        }
    }

    #[test]
    fn what_is_no_plain_decimal_number_is_refused_on_the_command_line() {
        for text in [
            "",
            ".",
            "1e1",
            "5E-1",
            "+1",
            "1.2.3",
            "0,5",
            " 1",
            "1 ",
            "1s",
            "0x10",
            "infinity",
            "NaN",
            &"9".repeat(400),
        ] {
            assert!(text.parse::<FineSeconds>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused_in_a_file_with_what_was_expected() {
        for value in ["\"0.5\"", "true", "[1]"] {
            let error = in_a_file(value).unwrap_err();
            assert!(error.ends_with("expected a number of seconds"), "{error}");
        }
    }

    #[test]
    fn fine_seconds_are_shown_as_they_are_written() {
        for text in ["0.1", "0.5", "5", "86400"] {
            assert_eq!(text.parse::<FineSeconds>().unwrap().to_string(), text);
        }
    }
}
