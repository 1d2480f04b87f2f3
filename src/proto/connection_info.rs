//! What the initiator tells about a connection in its *Open* frame (PROTOCOL.md, section 5.2): a list of
//! type-length-value fields, so that later versions can say more and older ones pass it over.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// Field type: the address that the client connected from.
const CLIENT: u8 = 1;
/// Field type: the connection is a probe. Empty.
const PROBE: u8 = 2;
/// Bytes in front of a field's value: its type, then its length as 16 bits in network order.
const FIELD_HEADER: usize = 3;

/// Why the fields of an *Open* frame cannot be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MalformedOpen {
    /// A field is longer than the frame.
    #[error("a field of Open is cut short")]
    CutShort,
    /// The client's address has no length that an address has.
    #[error("the client address in Open is malformed")]
    ClientAddress,
    /// The field that makes a connection a probe carries nothing.
    #[error("the probe field in Open is not empty")]
    Probe,
}

/// What the responder learns of a connection before it dials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Where the client connected from, when it came over TCP: for the responder's log.
    pub client: Option<SocketAddr>,
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
}

impl ConnectionInfo {
    /// Writes the fields to the front of `buffer`; gives the number of bytes, at most 24.
    ///
    /// # Panics
    /// When `buffer` is shorter than that.
    pub fn encode(&self, buffer: &mut [u8]) -> usize {
        let client = match self.client {
            None => 0,
            Some(SocketAddr::V4(client)) => {
                put(CLIENT, &[&client.ip().octets(), &client.port().to_be_bytes()], buffer)
            }
            Some(SocketAddr::V6(client)) => {
                put(CLIENT, &[&client.ip().octets(), &client.port().to_be_bytes()], buffer)
            }
        };
        client
            + match self.purpose {
                Purpose::Carry => 0,
                Purpose::Probe => put(PROBE, &[], &mut buffer[client..]),
            }
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
                CLIENT => info.client = Some(address(value).ok_or(MalformedOpen::ClientAddress)?),
                PROBE if value.is_empty() => info.purpose = Purpose::Probe,
                PROBE => return Err(MalformedOpen::Probe),
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
    let length = u16::try_from(end - FIELD_HEADER).expect("a field's value is a few bytes");
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
        let info = ConnectionInfo { client: Some(client.parse().unwrap()), purpose: Purpose::Carry };
        let length = info.encode(&mut buffer);
        buffer[..length].to_vec()
    }

    #[test]
    fn a_probe_is_told_apart_with_and_without_a_client() {
        for client in [None, Some("[2001:db8::7]:1".parse().unwrap())] {
            let info = ConnectionInfo { client, purpose: Purpose::Probe };
            let mut buffer = [0; 24];
            let length = info.encode(&mut buffer);
            assert_eq!(ConnectionInfo::decode(&buffer[..length]), Ok(info));
        }
    }

    #[test]
    fn a_probe_that_carries_something_is_refused() {
        assert_eq!(ConnectionInfo::decode(&[PROBE, 0, 1, 0]), Err(MalformedOpen::Probe));
    }

    #[test]
    fn addresses_of_both_families_come_back() {
        for client in ["192.0.2.7:50123", "[2001:db8::7]:1"] {
            let info = ConnectionInfo::decode(&encoded(client)).unwrap();
            assert_eq!(info.client.unwrap().to_string(), client);
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
    }
}
