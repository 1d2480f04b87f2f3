//! Address syntax, the same for `--source`, `--target` and `--bind`. No socket is touched here, and of the system only the names of
//! services are asked for: a port is a number from here on.
//!
//! | written | means |
//! |---|---|
//! | `[1.2.3.4]:80`, `1.2.3.4:80`, `[::1]:80` | an IP address and a port |
//! | `host:http`, `[::1]:http` | a service's name for its port |
//! | `[host]:80`, `host:80` | a name, resolved when it is used |
//! | `/path/to.sock`, `unix:/path/to.sock` | a Unix-domain socket |
//! | `@name` | a Unix-domain socket in Linux's abstract namespace |
//! | `[]:80`, `*:80` | every address of both families (only to listen on) |
//! | `systemd`, `systemd:name` | the sockets that the service manager has passed, or those of that name (only to listen on) |

mod service;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use arrayvec::ArrayString;
use thiserror::Error;
use vec1::Vec1;

/// The longest name a Unix-domain socket can have: `sun_path` is 108 bytes and one is the terminator (unix(7)).
const UNIX_NAME_MAX: usize = 107;

/// What is wrong with an address, with what to write instead.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressError {
    /// Nothing at all.
    #[error("an address cannot be empty; write host:port, [ip]:port, /path/to.sock or @name")]
    Empty,
    /// No `:port`.
    #[error("the port is missing; write host:port")]
    NoPort,
    /// Neither a number from 1 to 65535 (or 0, to listen) nor a possible name of a service.
    #[error("'{0}' is not a port; write a number from 1 to 65535")]
    Port(String),
    /// A name that the system's database of services does not have, with TCP.
    #[error("this system knows no TCP service '{0}' (/etc/services); write the number of its port")]
    Service(String),
    /// Colons without brackets.
    #[error("'{0}' has several colons; an IPv6 address goes in brackets, as in [::1]:80")]
    Brackets(String),
    /// `[` without `]`, or something other than `:port` behind it.
    #[error("'[' needs a ']' and then ':port' behind it")]
    Unclosed,
    /// Neither an IP address nor a possible host name.
    #[error("'{0}' is neither an IP address nor a host name")]
    Host(String),
    /// `[]:80` or `*:80` where there is nothing to listen on.
    #[error("'every address' is a place to listen on, not one to connect to or from; name a host")]
    Every,
    /// TLS where nobody can listen in.
    #[error("TLS is for TCP; write the name of a Unix-domain socket without a scheme")]
    TlsOverUnix,
    /// A proxy that is none.
    #[error("a proxy is written socks5://host:port or http://host:port")]
    NoProxy,
    /// A secret on a command line, or in a configuration.
    #[error(
        "a proxy's user and password do not belong here; put USER:PASSWORD into a file, and name it by --via-auth"
    )]
    ProxyCredentials,
    /// An empty or over-long Unix-domain socket name.
    #[error("a Unix-domain socket's name is from 1 to {UNIX_NAME_MAX} bytes, and this one is {0}")]
    UnixName(usize),
    /// What `FileDescriptorName=` of a socket unit cannot be.
    #[error(
        "'{0}' is not the name of a passed socket; write systemd:NAME with the FileDescriptorName= of the .socket unit"
    )]
    SocketName(String),
}

/// One place on a network or in a file system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A host name and a port.
    Name {
        /// What to look up.
        host: String,
        /// The port on whatever it resolves to.
        port: u16,
    },
    /// A Unix-domain socket.
    Unix(UnixName),
}

impl Endpoint {
    /// An IP address or a name has one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Ip(address) => Some(address.port()),
            Self::Name { port, .. } => Some(*port),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(formatter, "[{}]:{}", address.ip(), address.port()),
            Self::Name { host, port } => write!(formatter, "[{host}]:{port}"),
            Self::Unix(name) => name.fmt(formatter),
        }
    }
}

/// A Unix-domain socket's name. One that starts with a zero byte is in the abstract namespace, as in `sun_path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnixName(PathBuf);

impl UnixName {
    fn new(name: Vec<u8>) -> Result<Self, AddressError> {
        match name.len() {
            1..=UNIX_NAME_MAX if name != [0] => Ok(Self(OsString::from_vec(name).into())),
            length => Err(AddressError::UnixName(length.min(name.len() - usize::from(name == [0])))),
        }
    }

    /// The name that a socket has.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) fn of(address: &socket2::SockAddr) -> Result<Self, AddressError> {
        let name = match (address.as_pathname(), address.as_abstract_namespace()) {
            (Some(path), _) => path.as_os_str().as_bytes().to_vec(),
            (None, Some(name)) => [&[0], name].concat(),
            (None, None) => Vec::new(),
        };
        Self::new(name)
    }

    /// As tokio takes it, abstract names included.
    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }

    /// The file to look after; an abstract name has none.
    pub(crate) fn file(&self) -> Option<&Path> {
        let abstract_name = self.0.as_os_str().as_bytes().starts_with(&[0]);
        (!abstract_name).then_some(&self.0)
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_os_str().as_bytes() {
            [0, name @ ..] => write!(formatter, "@{}", String::from_utf8_lossy(name)),
            _ => write!(formatter, "{}", self.0.display()),
        }
    }
}

/// Where to connect to.
///
/// ```
/// use spipe::addr::Target;
///
/// let target: Target = "redis.example.org:6379".parse().unwrap();
/// assert_eq!(target.to_string(), "[redis.example.org]:6379");
///
/// let mistake = "::1:6379".parse::<Target>().unwrap_err();
/// assert_eq!(
///     mistake.to_string(),
///     "'::1:6379' has several colons; an IPv6 address goes in brackets, as in [::1]:80"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    scheme: Scheme,
    endpoint: Endpoint,
}

/// What is spoken with a target, besides what the client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Nothing.
    Plain,
    /// TLS, at once.
    Tls,
    /// TLS, which PostgreSQL is asked for first.
    PostgresTls,
}

impl Scheme {
    /// Each that is written, and how.
    const WRITTEN: [(Self, &str); 2] = [(Self::Tls, "tls://"), (Self::PostgresTls, "postgres+tls://")];
}

impl Target {
    /// The place.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What is spoken there.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }
}

impl FromStr for Target {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (scheme, address) = strip_prefix(&Scheme::WRITTEN, text).unwrap_or((Scheme::Plain, text));
        match parse(address, Port::Required)? {
            Parsed::One(endpoint) if endpoint.port() == Some(0) => Err(AddressError::Port("0".into())),
            Parsed::One(Endpoint::Unix(_)) if scheme != Scheme::Plain => Err(AddressError::TlsOverUnix),
            Parsed::One(endpoint) => Ok(Self { scheme, endpoint }),
            Parsed::Every(_) => Err(AddressError::Every),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", prefix(&Scheme::WRITTEN, &self.scheme), self.endpoint)
    }
}

/// A proxy on the way to targets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    protocol: ProxyProtocol,
    endpoint: Endpoint,
}

/// What is spoken with a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// SOCKS 5 (RFC 1928).
    Socks5,
    /// HTTP's CONNECT (RFC 9110, section 9.3.6).
    Http,
}

impl ProxyProtocol {
    /// Each, and how it is written.
    const WRITTEN: [(Self, &str); 2] = [(Self::Socks5, "socks5://"), (Self::Http, "http://")];
}

impl Proxy {
    /// The place: an IP address or a name.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What is spoken there.
    pub fn protocol(&self) -> ProxyProtocol {
        self.protocol
    }
}

impl FromStr for Proxy {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some((protocol, address)) = strip_prefix(&ProxyProtocol::WRITTEN, text) else {
            return Err(AddressError::NoProxy);
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        if address.contains('@') {
            return Err(AddressError::ProxyCredentials);
        }
        match parse(address, Port::Required)? {
            Parsed::One(endpoint) if endpoint.port() == Some(0) => Err(AddressError::Port("0".into())),
            Parsed::One(Endpoint::Unix(_)) => Err(AddressError::NoProxy),
            Parsed::One(endpoint) => Ok(Self { protocol, endpoint }),
            Parsed::Every(_) => Err(AddressError::Every),
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", prefix(&ProxyProtocol::WRITTEN, &self.protocol), self.endpoint)
    }
}

/// Where to listen. Port 0 lets the system choose; the log says which it chose.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// One place; a name may stand for several.
    At(Endpoint),
    /// This port on every address of both families.
    Every {
        /// The port.
        port: u16,
    },
    /// What the service manager has passed: all of it, or what has this name.
    Passed(Option<SocketName>),
}

/// `FileDescriptorName=` of a socket unit: printable, and without a colon (systemd.socket(5)).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketName(String);

impl SocketName {
    /// As it was passed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SocketName {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b':';
        if (1..=255).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(AddressError::SocketName(text.to_owned()))
        }
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Before an address, for what has been passed. A host of this name can be written in brackets.
const PASSED: &str = "systemd";

impl FromStr for Source {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix(PASSED).map(|rest| rest.strip_prefix(':').ok_or(rest)) {
            Some(Ok(name)) => return Ok(Self::Passed(Some(name.parse()?))),
            Some(Err("")) => return Ok(Self::Passed(None)),
            Some(Err(_)) | None => {}
        }
        Ok(match parse(text, Port::Required)? {
            Parsed::One(endpoint) => Self::At(endpoint),
            Parsed::Every(port) => Self::Every { port },
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(endpoint) => endpoint.fmt(formatter),
            Self::Every { port } => write!(formatter, "[]:{port}"),
            Self::Passed(None) => formatter.write_str(PASSED),
            Self::Passed(Some(name)) => write!(formatter, "{PASSED}:{name}"),
        }
    }
}

/// The sources of one pipe: at least one, each once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sources(Vec1<Source>);

/// Why some sources cannot be those of one pipe.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourcesError {
    /// There is none.
    #[error("the source is missing; write where to accept connections")]
    None,
    /// The same one, more than once.
    #[error("{0} is a source twice; once is enough")]
    Twice(Source),
}

impl Sources {
    /// Checks that `sources` can be those of one pipe.
    ///
    /// # Errors
    /// [`SourcesError`].
    pub fn new(sources: Vec<Source>) -> Result<Self, SourcesError> {
        let mut seen = HashSet::new();
        if let Some(twice) = sources.iter().find(|source| !seen.insert(*source)) {
            return Err(SourcesError::Twice(twice.clone()));
        }
        Vec1::try_from_vec(sources).map(Self).map_err(|_| SourcesError::None)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.0.iter()
    }

    /// Whether `source` is one of them.
    pub fn contains(&self, source: &Source) -> bool {
        self.0.contains(source)
    }
}

impl From<Source> for Sources {
    fn from(source: Source) -> Self {
        Self(Vec1::new(source))
    }
}

/// For people: `[127.0.0.1]:80 and /run/x.sock`.
impl fmt::Display for Sources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, source) in self.iter().enumerate() {
            write!(formatter, "{}{source}", if place == 0 { "" } else { " and " })?;
        }
        Ok(())
    }
}

/// What a pipe is called in the log: a text of one line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(String);

/// The name of a network interface, such as `wg0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface(ArrayString<15>);

/// A text that no interface can have as its name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no name of a network interface; write one that 'ip link' shows, such as eth0")]
pub struct NotAnInterface(String);

impl Interface {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Interface {
    type Err = NotAnInterface;

    fn from_str(text: &str) -> Result<Self, NotAnInterface> {
        // dev_valid_name() in Linux, and what a line of the log can have.
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:".contains(&byte));
        let name = ArrayString::from(text).ok();
        name.filter(|_| is_plain && !["", ".", ".."].contains(&text))
            .map(Self)
            .ok_or_else(|| NotAnInterface(text.to_owned()))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A text that cannot be a [`Name`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a name is a text of one line, from 1 to {max} bytes, without control characters", max = Name::MAX)]
pub struct NotAName;

impl Name {
    /// The most bytes that a name may have.
    pub const MAX: usize = 255;

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        if (1..=Self::MAX).contains(&text.len()) && !text.contains(char::is_control) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAName)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Where to connect from. Port 0, the default, lets the system choose one a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outgoing(Endpoint);

impl Outgoing {
    /// The place.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0
    }
}

impl FromStr for Outgoing {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match parse(text, Port::Optional)? {
            Parsed::One(endpoint) => Ok(Self(endpoint)),
            Parsed::Every(_) => Err(AddressError::Every),
        }
    }
}

impl fmt::Display for Outgoing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Required,
    Optional,
}

enum Parsed {
    One(Endpoint),
    Every(u16),
}

/// What the prefix of `text` stands for by the table `written`, and what is behind it.
fn strip_prefix<'t, T: Copy>(written: &[(T, &str)], text: &'t str) -> Option<(T, &'t str)> {
    written.iter().find_map(|(value, prefix)| Some((*value, text.strip_prefix(prefix)?)))
}

/// The prefix that stands for `value` by the table `written`; empty, if it is not written.
fn prefix<'w, T: PartialEq>(written: &[(T, &'w str)], value: &T) -> &'w str {
    written.iter().find(|(other, _)| other == value).map_or("", |(_, prefix)| prefix)
}

fn parse(text: &str, port_is: Port) -> Result<Parsed, AddressError> {
    if text.is_empty() {
        return Err(AddressError::Empty);
    }
    // Other programs write it so; a port does not begin with a slash.
    let text = text.strip_prefix("unix:").filter(|path| path.starts_with('/')).unwrap_or(text);
    if text.starts_with('/') {
        return Ok(Parsed::One(Endpoint::Unix(UnixName::new(text.into())?)));
    }
    if let Some(name) = text.strip_prefix('@') {
        let name = [&[0], name.as_bytes()].concat();
        return Ok(Parsed::One(Endpoint::Unix(UnixName::new(name)?)));
    }
    let (host, port) = split(text)?;
    let port = match (port, port_is) {
        (Some(port), _) => parse_port(port)?,
        (None, Port::Optional) => 0,
        (None, Port::Required) => return Err(AddressError::NoPort),
    };
    if host.is_empty() || host == "*" {
        return Ok(Parsed::Every(port));
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Parsed::One(Endpoint::Ip(SocketAddr::new(ip, port))));
    }
    if is_host_name(host) {
        Ok(Parsed::One(Endpoint::Name { host: host.to_owned(), port }))
    } else {
        Err(AddressError::Host(host.to_owned()))
    }
}

/// Splits `[host]:port`, `host:port`, `[host]` and `host`.
fn split(text: &str) -> Result<(&str, Option<&str>), AddressError> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(AddressError::Unclosed)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(AddressError::Unclosed),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        // Two colons are an IPv6 address, and "::1:80" could mean two things.
        Some((_, rest)) if rest.contains(':') => Err(AddressError::Brackets(text.to_owned())),
        Some(("", _)) => Err(AddressError::Host(String::new())),
        Some((host, port)) => Ok((host, Some(port))),
    }
}

fn parse_port(text: &str) -> Result<u16, AddressError> {
    if service::is_name(text) {
        return service::port(text).ok_or_else(|| AddressError::Service(text.to_owned()));
    }
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| AddressError::Port(text.to_owned()))
}

/// Whether the resolver may see it: host-name characters, or an IPv6 address with a scope (`fe80::1%eth0`), which only
/// the resolver can read. Numbers and dots alone are a mistyped IPv4 address, which the resolver would read as inet_aton(3)
/// does: "10.1" as 10.0.0.1, and "0x7f.1" as 127.0.0.1.
fn is_host_name(host: &str) -> bool {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if let Some((ip, scope)) = host.split_once('%') {
        // As long as the name of an interface may be (IFNAMSIZ).
        return ip.parse::<Ipv6Addr>().is_ok() && (1..16).contains(&scope.len()) && plain(scope);
    }
    host.len() <= 253 && !host.starts_with(['.', '-']) && plain(host) && !host.split('.').all(is_number)
}

/// Whether inet_aton(3) takes it for a part of an address: decimal, octal, or hexadecimal.
fn is_number(text: &str) -> bool {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => text.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Result<String, AddressError> {
        text.parse::<Target>().map(|target| target.to_string())
    }

    #[test]
    fn every_form_of_the_table_is_read() {
        for (text, canonical) in [
            ("[1.2.3.4]:80", "[1.2.3.4]:80"),
            ("1.2.3.4:80", "[1.2.3.4]:80"),
            ("[::1]:80", "[::1]:80"),
            ("host:80", "[host]:80"),
            ("[host]:80", "[host]:80"),
            ("0x7f.example:80", "[0x7f.example]:80"),
            ("db-1.example.org:65535", "[db-1.example.org]:65535"),
            ("[fe80::1%eth0]:80", "[fe80::1%eth0]:80"),
            ("/run/redis.sock", "/run/redis.sock"),
            ("@redis", "@redis"),
        ] {
            assert_eq!(target(text), Ok(canonical.to_owned()));
        }
    }

    #[test]
    fn every_address_is_for_listening_only() {
        for text in ["[]:80", "*:80"] {
            assert_eq!(text.parse(), Ok(Source::Every { port: 80 }));
            assert_eq!(target(text), Err(AddressError::Every));
            assert_eq!(text.parse::<Outgoing>(), Err(AddressError::Every));
        }
    }

    #[test]
    fn what_the_service_manager_passes_is_for_listening_only() {
        let source = |text: &str| text.parse::<Source>();
        assert_eq!(source("systemd"), Ok(Source::Passed(None)));
        for name in ["redis", "80", "spipe-redis.socket", "a b"] {
            let named = source(&format!("systemd:{name}")).unwrap();
            assert_eq!(named, Source::Passed(Some(SocketName(name.to_owned()))));
            assert_eq!(named.to_string(), format!("systemd:{name}"));
        }
        assert_eq!(target("systemd"), Err(AddressError::NoPort));
    }

    #[test]
    fn what_no_socket_unit_can_be_called_is_refused() {
        for name in ["", "a:b", "a\nb", "ü", &"x".repeat(256)] {
            let parsed = format!("systemd:{name}").parse::<Source>();
            assert_eq!(parsed, Err(AddressError::SocketName(name.to_owned())));
        }
    }

    #[test]
    fn hosts_whose_names_begin_like_passed_sockets_are_hosts() {
        for (text, canonical) in
            [("systemd.example:80", "[systemd.example]:80"), ("[systemd]:80", "[systemd]:80")]
        {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn an_outgoing_address_needs_no_port() {
        for (text, canonical) in [
            ("192.0.2.1", "[192.0.2.1]:0"),
            ("[::1]", "[::1]:0"),
            ("host", "[host]:0"),
            ("[::1]:99", "[::1]:99"),
        ] {
            assert_eq!(text.parse::<Outgoing>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn a_missing_port_is_refused() {
        for text in ["host", "[::1]", "1.2.3.4"] {
            assert_eq!(target(text), Err(AddressError::NoPort));
        }
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for port in ["", "65536", "-1", "+80", "8 0", "ht tp", "http/tcp", "r\u{e9}dis", &"x".repeat(65)] {
            assert_eq!(target(&format!("host:{port}")), Err(AddressError::Port(port.to_owned())));
        }
    }

    #[test]
    fn a_service_name_stands_for_its_port() {
        for (text, canonical) in [
            ("host:http", "[host]:80"),
            ("[::1]:https", "[::1]:443"),
            ("1.2.3.4:domain", "[1.2.3.4]:53"),
            ("tls://host:https", "tls://[host]:443"),
        ] {
            assert_eq!(target(text), Ok(canonical.to_owned()));
        }
        assert_eq!("*:http".parse(), Ok(Source::Every { port: 80 }));
        assert_eq!("host:http".parse::<Outgoing>().unwrap().to_string(), "[host]:80");
        assert_eq!("socks5://host:http".parse::<Proxy>().unwrap().to_string(), "socks5://[host]:80");
    }

    #[test]
    fn a_service_that_the_system_does_not_know_is_refused() {
        for name in ["no-such-service", "0x50", "80tcp", "HTTP", &"x".repeat(64)] {
            assert_eq!(target(&format!("host:{name}")), Err(AddressError::Service(name.to_owned())));
        }
    }

    #[test]
    fn port_0_is_for_listening_only() {
        assert!("127.0.0.1:0".parse::<Source>().is_ok());
        assert_eq!(target("127.0.0.1:0"), Err(AddressError::Port("0".into())));
    }

    #[test]
    fn an_ipv6_address_without_brackets_is_refused() {
        assert_eq!(target("::1:80"), Err(AddressError::Brackets("::1:80".into())));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "[1.2.3]:80",
            "1.2.3.4.5:80",
            "256.1.1.1:80",
            "[::1::2]:80",
            "ho st:80",
            "-host:80",
            ":80",
            "2.0.1.7%5[]:80",
            "0x7f.1:80",
            "0X7F000001:80",
            "0x7f.0.0.0x1:80",
            "[::1%]:80",
        ] {
            assert!(matches!(target(text), Err(AddressError::Host(_))), "{text}");
        }
    }

    #[test]
    fn broken_brackets_are_refused() {
        for text in ["[::1", "[::1]80", "[host]x:80"] {
            assert_eq!(target(text), Err(AddressError::Unclosed), "{text}");
        }
    }

    #[test]
    fn unix_names_that_no_socket_can_have_are_refused() {
        assert_eq!(target("@"), Err(AddressError::UnixName(0)));
        assert_eq!(target(&format!("/{}", "x".repeat(107))), Err(AddressError::UnixName(108)));
        assert!(target(&format!("/{}", "x".repeat(106))).is_ok());
    }

    #[test]
    fn a_pipe_has_at_least_one_source_and_each_once() {
        let source = |text: &str| text.parse::<Source>().unwrap();
        assert_eq!(Sources::new(Vec::new()), Err(SourcesError::None));
        let twice = Sources::new(vec![source("*:1"), source("[::1]:2"), source("[]:1")]);
        assert_eq!(twice, Err(SourcesError::Twice(source("[]:1"))));
        let two = Sources::new(vec![source("*:1"), source("[::1]:2")]).unwrap();
        assert_eq!(two.to_string(), "[]:1 and [::1]:2");
    }

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for text in ["", ".", "..", "a/b", "eth0:1", "a b", "sixteen-bytes-16", "a\n"] {
            assert_eq!(text.parse::<Interface>(), Err(NotAnInterface(text.to_owned())), "{text:?}");
        }
        for text in ["lo", "wg0", "eth0.100", "br-0123456789ab"] {
            assert_eq!(text.parse::<Interface>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_name_that_would_break_a_line_of_the_log_is_refused() {
        for text in ["", "a\nb", "a\rb", "\u{1b}[2J", "\u{85}", &"x".repeat(256)] {
            assert_eq!(text.parse::<Name>(), Err(NotAName), "{text:?}");
        }
        for text in ["redis", "Redis, primary", "\u{e9}t\u{e9}", &"x".repeat(255)] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
    }
}
