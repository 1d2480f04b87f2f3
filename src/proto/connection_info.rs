//! What the initiator tells about a connection in its *Open* frame (PROTOCOL.md, section 5.2): a list of
//! type-length-value fields, so that later versions can say more and older ones pass it over.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::str::FromStr;

use thiserror::Error;

/// Field type: the address that the client connected from.
const CLIENT: u8 = 1;
/// Field type: the connection is a probe. Empty.
const PROBE: u8 = 2;
/// Field type: the address that the client connected to.
const REACHED: u8 = 3;
/// Field type: the connection's id.
const ID: u8 = 4;
/// Field type: what a proxy before the initiator has told besides addresses.
const PROXIED: u8 = 5;
/// Field type: the connection is a ping. Empty.
const PING: u8 = 6;
/// Field type: the connection is a spare. Empty.
const SPARE: u8 = 7;
/// Bytes in front of a field's value: its type, then its length as 16 bits in network order.
const FIELD_HEADER: usize = 3;

/// Why the fields of an *Open* frame cannot be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MalformedOpen {
    /// A field is longer than the frame.
    #[error("a field of Open is cut short")]
    CutShort,
    /// An address has no length that an address has.
    #[error("an address in Open is malformed")]
    Address,
    /// An id has a length of its own.
    #[error("the id in Open is malformed")]
    Id,
    /// The field that makes a connection a probe carries nothing.
    #[error("the probe field in Open is not empty")]
    Probe,
    /// The field that makes a connection a ping carries nothing.
    #[error("the ping field in Open is not empty")]
    Ping,
    /// The field that makes a connection a spare carries nothing.
    #[error("the spare field in Open is not empty")]
    Spare,
    /// A connection is for one thing.
    #[error("Open says that the connection is for two things: a probe, a ping, or a spare")]
    Purposes,
}

/// What both ends call a connection, in their logs: random, and no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId(pub [u8; 8]);

impl fmt::Display for ConnectionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// A text that is no [`ConnectionId`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the id of a connection has 16 hexadecimal digits")]
pub struct NotAConnectionId;

impl FromStr for ConnectionId {
    type Err = NotAConnectionId;

    fn from_str(text: &str) -> Result<Self, NotAConnectionId> {
        let is_hexadecimal = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_hexadecimal.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(|number| Self(number.to_be_bytes())).ok_or(NotAConnectionId)
    }
}

/// What the responder learns of a connection before it dials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Where the client connected from, when it came over TCP.
    pub client: Option<SocketAddr>,
    /// What the client connected to, when it came over TCP.
    pub reached: Option<SocketAddr>,
    /// What both ends call the connection. Older initiators do not say.
    pub id: Option<ConnectionId>,
    /// Fields of the PROXY protocol, as a proxy before the initiator has told them. At most [`Self::PROXIED_MAX`] bytes are sent.
    pub proxied: Vec<u8>,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To carry a client.
    #[default]
    Carry,
    /// To find out whether the target can be reached. Nothing is carried.
    Probe,
    /// To find out whether the responder answers, which sends back what it gets. No target has a part in it.
    Ping,
    /// To have a tunnel for a connection that comes later. Nothing is carried, and no target has a part in it.
    Spare,
}

impl Purpose {
    /// What a connection is for whose fields say `other` as well.
    fn and(self, other: Self) -> Result<Self, MalformedOpen> {
        if self == Self::Carry || self == other { Ok(other) } else { Err(MalformedOpen::Purposes) }
    }
}

impl ConnectionInfo {
    /// Bytes of [`Self::proxied`] that fit.
    pub const PROXIED_MAX: usize = 2 * 1024;
    /// Bytes of all fields: two addresses, an id, the mark of a probe or a ping, and what a proxy has told.
    pub const ENCODED_MAX: usize = 5 * FIELD_HEADER + 2 * 18 + 8 + Self::PROXIED_MAX;

    /// Writes the fields to the front of `buffer`; gives the number of bytes, at most [`Self::ENCODED_MAX`].
    ///
    /// # Panics
    /// When `buffer` is shorter than that.
    pub fn encode(&self, buffer: &mut [u8]) -> usize {
        let mut end = 0;
        let mut add = |kind, parts: &[&[u8]]| end += put(kind, parts, &mut buffer[end..]);
        for (kind, address) in [(CLIENT, self.client), (REACHED, self.reached)] {
            let Some(address) = address else { continue };
            let port = address.port().to_be_bytes();
            match address.ip() {
                IpAddr::V4(ip) => add(kind, &[&ip.octets(), &port]),
                IpAddr::V6(ip) => add(kind, &[&ip.octets(), &port]),
            }
        }
        if let Some(ConnectionId(id)) = self.id {
            add(ID, &[&id]);
        }
        if (1..=Self::PROXIED_MAX).contains(&self.proxied.len()) {
            add(PROXIED, &[&self.proxied]);
        }
        match self.purpose {
            Purpose::Carry => {}
            Purpose::Probe => add(PROBE, &[]),
            Purpose::Ping => add(PING, &[]),
            Purpose::Spare => add(SPARE, &[]),
        }
        end
    }

    /// Reads the fields of an *Open* frame.
    ///
    /// # Errors
    /// [`MalformedOpen`].
    pub fn decode(mut fields: &[u8]) -> Result<Self, MalformedOpen> {
        let mut info = Self::default();
        while let Some((&[kind, high, low], rest)) = fields.split_first_chunk::<FIELD_HEADER>() {
            let length = usize::from(u16::from_be_bytes([high, low]));
            let (value, rest) = rest.split_at_checked(length).ok_or(MalformedOpen::CutShort)?;
            match kind {
                CLIENT => info.client = Some(address(value).ok_or(MalformedOpen::Address)?),
                REACHED => info.reached = Some(address(value).ok_or(MalformedOpen::Address)?),
                ID => info.id = Some(ConnectionId(value.try_into().map_err(|_| MalformedOpen::Id)?)),
                // More than is sent is somebody's joke: it would be kept.
                PROXIED if length <= Self::PROXIED_MAX => info.proxied = value.to_vec(),
                PROBE if value.is_empty() => info.purpose = info.purpose.and(Purpose::Probe)?,
                PROBE => return Err(MalformedOpen::Probe),
                PING if value.is_empty() => info.purpose = info.purpose.and(Purpose::Ping)?,
                PING => return Err(MalformedOpen::Ping),
                SPARE if value.is_empty() => info.purpose = info.purpose.and(Purpose::Spare)?,
                SPARE => return Err(MalformedOpen::Spare),
                _ => {}
            }
            fields = rest;
        }
        if fields.is_empty() { Ok(info) } else { Err(MalformedOpen::CutShort) }
    }
}

/// Writes one field whose value is the concatenation of `parts`; gives its length.
fn put(kind: u8, parts: &[&[u8]], buffer: &mut [u8]) -> usize {
    let mut end = FIELD_HEADER;
    for part in parts {
        buffer[end..end + part.len()].copy_from_slice(part);
        end += part.len();
    }
    let length = u16::try_from(end - FIELD_HEADER).expect("a field's value is a few thousand bytes at most");
    buffer[0] = kind;
    buffer[1..FIELD_HEADER].copy_from_slice(&length.to_be_bytes());
    end
}

/// An address and a port, both in network order; the length tells which family it is.
fn address(value: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = value.split_last_chunk::<2>()?;
    let ip = match ip.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(client: &str) -> Vec<u8> {
        let mut buffer = [0; 32];
        let info = ConnectionInfo { client: Some(client.parse().unwrap()), ..ConnectionInfo::default() };
        let length = info.encode(&mut buffer);
        buffer[..length].to_vec()
    }

    #[test]
    fn probes_pings_and_spares_are_told_apart_with_and_without_a_client() {
        for purpose in [Purpose::Carry, Purpose::Probe, Purpose::Ping, Purpose::Spare] {
            for client in [None, Some("[2001:db8::7]:1".parse().unwrap())] {
                let info = ConnectionInfo { client, purpose, ..ConnectionInfo::default() };
                let mut buffer = [0; 24];
                let length = info.encode(&mut buffer);
                assert_eq!(ConnectionInfo::decode(&buffer[..length]), Ok(info));
            }
        }
    }

    #[test]
    fn a_probe_a_ping_or_a_spare_that_carries_something_is_refused() {
        assert_eq!(ConnectionInfo::decode(&[PROBE, 0, 1, 0]), Err(MalformedOpen::Probe));
        assert_eq!(ConnectionInfo::decode(&[PING, 0, 1, 0]), Err(MalformedOpen::Ping));
        assert_eq!(ConnectionInfo::decode(&[SPARE, 0, 1, 0]), Err(MalformedOpen::Spare));
    }

    #[test]
    fn a_connection_for_two_things_is_refused_in_either_order() {
        for fields in [[PROBE, 0, 0, PING, 0, 0], [PING, 0, 0, PROBE, 0, 0], [SPARE, 0, 0, PING, 0, 0]] {
            assert_eq!(ConnectionInfo::decode(&fields), Err(MalformedOpen::Purposes));
        }
    }

    #[test]
    fn a_purpose_that_is_said_twice_is_said() {
        for (field, purpose) in [(PROBE, Purpose::Probe), (PING, Purpose::Ping), (SPARE, Purpose::Spare)] {
            assert_eq!(ConnectionInfo::decode(&[field, 0, 0, field, 0, 0]).unwrap().purpose, purpose);
        }
    }

    #[test]
    fn addresses_of_both_families_come_back() {
        for client in ["192.0.2.7:50123", "[2001:db8::7]:1"] {
            let info = ConnectionInfo::decode(&encoded(client)).unwrap();
            assert_eq!(info.client.unwrap().to_string(), client);
        }
    }

    #[test]
    fn all_that_is_told_comes_back() {
        let mut buffer = [0; 128];
        let info = ConnectionInfo {
            client: Some("[2001:db8::7]:1".parse().unwrap()),
            reached: Some("[2001:db8::1]:443".parse().unwrap()),
            id: Some(ConnectionId([1, 2, 3, 4, 5, 6, 7, 8])),
            proxied: vec![1, 0, 2, 0x68, 0x32],
            purpose: Purpose::Probe,
        };
        let length = info.encode(&mut buffer);
        assert_eq!(ConnectionInfo::decode(&buffer[..length]), Ok(info));
    }

    #[test]
    fn more_than_a_proxy_may_tell_is_not_sent() {
        let proxied = vec![0; ConnectionInfo::PROXIED_MAX + 1];
        let info = ConnectionInfo { proxied, ..ConnectionInfo::default() };
        assert_eq!(info.encode(&mut []), 0);
    }

    #[test]
    fn an_id_has_eight_bytes() {
        for length in [0, 7, 9] {
            let field = [vec![ID, 0, length], vec![0; length.into()]].concat();
            assert_eq!(ConnectionInfo::decode(&field), Err(MalformedOpen::Id));
        }
        let id = ConnectionId([0, 0, 0, 0, 0, 0, 1, 0xff]);
        assert_eq!((id.to_string().as_str(), "00000000000001ff".parse()), ("00000000000001ff", Ok(id)));
        for text in ["", "1ff", "+0000000000001ff", "00000000000001fg", "00000000000001ff0"] {
            assert_eq!(text.parse::<ConnectionId>(), Err(NotAConnectionId), "{text}");
        }
    }

    #[test]
    fn no_fields_say_nothing() {
        assert_eq!(ConnectionInfo::decode(&[]), Ok(ConnectionInfo::default()));
        assert_eq!(ConnectionInfo::default().encode(&mut []), 0);
    }

    #[test]
    fn fields_of_later_versions_are_passed_over() {
        let mut fields = vec![99, 0, 3, 1, 2, 3];
        fields.extend(encoded("192.0.2.7:50123"));
        fields.extend([100, 0, 0]);
        assert_eq!(ConnectionInfo::decode(&fields).unwrap().client, Some("192.0.2.7:50123".parse().unwrap()));
    }

    #[test]
    fn every_truncation_is_refused() {
        let fields = encoded("[2001:db8::7]:1");
        for length in 1..fields.len() {
            assert!(ConnectionInfo::decode(&fields[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn an_address_of_a_wrong_length_is_refused() {
        assert!(ConnectionInfo::decode(&[CLIENT, 0, 5, 1, 2, 3, 4, 5]).is_err());
        assert!(ConnectionInfo::decode(&[CLIENT, 0, 0]).is_err());
        assert!(ConnectionInfo::decode(&[REACHED, 0, 0]).is_err());
    }
}
