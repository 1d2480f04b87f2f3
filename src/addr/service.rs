//! The names of services, which the system keeps a database of: services(5), or what nsswitch.conf(5) says instead.

use dns_lookup::{AddrInfoHints, getaddrinfo};

/// The longest name that is asked for. Names have at most 15 bytes since RFC 6335, and older ones some more.
const NAME_MAX: usize = 64;

/// Whether `text` can be the name of a service: with a letter in it (RFC 6335, section 5.1), since else it is a number; and of the
/// bytes that names are made of, such as those of `whois++` and `kerberos_master`.
pub(super) fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_+.".contains(&byte);
    text.len() <= NAME_MAX && text.bytes().all(plain) && text.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// The TCP port of the service `name`. None, if the system does not know it, or has no database.
pub(super) fn port(name: &str) -> Option<u16> {
    // Without a host, nothing but the service is looked up. IPv4 alone, since the C library would put two addresses in order,
    // for which it needs sockets.
    let (address, socktype, protocol) = (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    let hints = AddrInfoHints { flags: 0, address, socktype, protocol };
    let found = getaddrinfo(None, Some(name), Some(hints)).ok()?.next()?.ok()?;
    Some(found.sockaddr.port())
}
