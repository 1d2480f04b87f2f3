//! The header of the PROXY protocol, which tells a service the client behind a proxy: bytes in, bytes out.
//!
//! The format is HAProxy's (`doc/proxy-protocol.txt` of its sources, "the specification" below). The crate proxy-header reads and
//! writes the addresses; here is how many bytes a header has, what is skipped, and the checksum.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crc::{CRC_32_ISCSI, Crc};
use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader, Tlv};
use thiserror::Error;

/// What a header of version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, the version and command, the family, and the length of the rest.
const FIXED: usize = SIGNATURE.len() + 4;
/// What a header of version 1 begins with.
const WORD: &[u8; 6] = b"PROXY ";
/// Bytes of a header of version 1, with its end of line (the specification, section 2.1).
const V1_MAX: usize = 107;
/// Bytes of a header of version 2 that are read: client certificates, which some load balancers put into it, have a few thousand.
const V2_MAX: usize = 16 * 1024;
/// Bytes of what is passed on besides addresses.
const PASSED_ON_MAX: usize = 2 * 1024;

/// Version 2's byte for version and command, where a proxy speaks for itself, and for a client.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// Version 2's family of connections without addresses.
const UNSPECIFIED: u8 = 0;

/// Types of fields that are passed on: ALPN, the host name that the client asked for (SNI), the connection's id, TLS, and those that
/// name a private endpoint at AWS, Azure and Google Cloud.
const KNOWN: [u8; 7] = [0x01, 0x02, UNIQUE_ID, 0x20, 0xea, 0xee, 0xe0];
const CRC32C: u8 = 0x03;
const UNIQUE_ID: u8 = 0x05;

/// The fields of our own, from the range that is left to applications: the fingerprint of the key that the connection has, and the
/// key's name.
pub const KEY_FINGERPRINT: u8 = 0xe5;
/// See [`KEY_FINGERPRINT`].
pub const KEY_NAME: u8 = 0xe6;

/// What a proxy tells of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Where the client connected from and to. None if the proxy speaks for itself, or does not know.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// Fields of version 2, as they came: each a type, a length of two bytes and a value.
    pub fields: Vec<u8>,
}

impl Told {
    /// What the next one is told of the fields: those that are known, as far as they fit.
    pub fn passed_on(&self) -> Vec<u8> {
        let (mut fields, mut known) = (Fields(&self.fields), Vec::new());
        while let Ok(Some((kind, field))) = fields.next() {
            if KNOWN.contains(&kind) && known.len() + field.len() <= PASSED_ON_MAX {
                known.extend_from_slice(field);
            }
        }
        known
    }
}

/// One line for each field, for people.
impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addresses {
            Some((from, to)) => {
                let address = |address: SocketAddr| format!("[{}]:{}", address.ip(), address.port());
                writeln!(formatter, "client {}, which connected to {}", address(from), address(to))?;
            }
            None => writeln!(formatter, "no address: the proxy speaks for itself, or does not know")?,
        }
        let mut fields = Fields(&self.fields);
        while let Ok(Some((kind, field))) = fields.next() {
            let value = field[Fields::HEADER..].escape_ascii();
            match name(kind) {
                Some(name) => writeln!(formatter, "{name}: {value}")?,
                None => writeln!(formatter, "field 0x{kind:02x}: {value}")?,
            }
        }
        Ok(())
    }
}

/// What a field is called.
fn name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0x01 => "application protocol (ALPN)",
        0x02 => "host name that the client asked for",
        CRC32C => "checksum",
        UNIQUE_ID => "unique id",
        0x20 => "TLS",
        0x30 => "network namespace",
        0xe0 => "Google Cloud",
        KEY_FINGERPRINT => "fingerprint of the key",
        KEY_NAME => "name of the key",
        0xea => "AWS",
        0xee => "Azure",
        _ => return None,
    })
}

/// Bytes that are no header.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformed {
    /// They begin as no header does.
    #[error("it does not begin with a PROXY header")]
    Missing,
    /// They begin as one, and do not go on so.
    #[error("its PROXY header is malformed")]
    Header,
    /// It is longer than headers are.
    #[error("its PROXY header is too long")]
    TooLong,
    /// Its checksum is wrong.
    #[error("the checksum of its PROXY header is wrong")]
    Checksum,
}

/// How many more bytes belong to the header that begins with `bytes`, at least; 0 if it is complete. No byte behind a header is
/// counted.
///
/// # Errors
/// [`Malformed`].
pub fn missing(bytes: &[u8]) -> Result<usize, Malformed> {
    let begins_as = |beginning: &[u8]| bytes.iter().zip(beginning).all(|(byte, expected)| byte == expected);
    if begins_as(WORD) && !bytes.is_empty() {
        return match bytes {
            [.., b'\r', b'\n'] => Ok(0),
            _ if bytes.len() >= V1_MAX => Err(Malformed::TooLong),
            [.., b'\n'] => Err(Malformed::Header),
            [.., b'\r'] => Ok(1),
            // The shortest one is "PROXY UNKNOWN", and an end of line.
            _ => Ok((WORD.len() + 9).saturating_sub(bytes.len()).max(2)),
        };
    }
    if !begins_as(SIGNATURE) {
        return Err(Malformed::Missing);
    }
    match bytes.get(FIXED - 2..FIXED) {
        // As many as both versions have.
        None if bytes.len() < SIGNATURE.len() => Ok(SIGNATURE.len() - bytes.len()),
        None => Ok(FIXED - bytes.len()),
        Some(length) => {
            let length = FIXED + usize::from(u16::from_be_bytes([length[0], length[1]]));
            if length > V2_MAX { Err(Malformed::TooLong) } else { Ok(length.saturating_sub(bytes.len())) }
        }
    }
}

/// Reads a header that is complete.
///
/// # Errors
/// [`Malformed`].
pub fn parse(header: &[u8]) -> Result<Told, Malformed> {
    if header.starts_with(SIGNATURE) && header.get(SIGNATURE.len()) == Some(&LOCAL) {
        // The specification, section 2.2: whatever is in it, it does not count.
        return Ok(Told::default());
    }
    let config = ParseConfig { include_tlvs: true, allow_v1: true, allow_v2: true };
    let (parsed, length) = ProxyHeader::parse(header, config).map_err(|_| Malformed::Header)?;
    if length != header.len() {
        return Err(Malformed::Header);
    }
    let addresses = parsed.proxied_address().map(|address| (address.source, address.destination));
    let told = Told { addresses, fields: fields_of(header).to_vec() };
    let mut fields = Fields(&told.fields);
    while let Some((kind, field)) = fields.next()? {
        if kind == CRC32C {
            let value = &field[Fields::HEADER..];
            check(header, header.len() - fields.0.len() - value.len(), value)?;
        }
    }
    Ok(told)
}

/// What is behind the addresses of a header of version 2.
fn fields_of(header: &[u8]) -> &[u8] {
    if !header.starts_with(SIGNATURE) {
        return &[];
    }
    let addresses = match header[SIGNATURE.len() + 1] >> 4 {
        1 => 2 * (4 + 2),
        2 => 2 * (16 + 2),
        3 => 2 * 108,
        _ => 0,
    };
    header.get(FIXED + addresses..).unwrap_or_default()
}

/// Fields, one after the other, each a type, a length of two bytes and a value.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    const HEADER: usize = 3;

    /// The type of the next one, and the whole of it.
    fn next(&mut self) -> Result<Option<(u8, &'a [u8])>, Malformed> {
        let &[kind, high, low, ..] = self.0 else {
            return if self.0.is_empty() { Ok(None) } else { Err(Malformed::Header) };
        };
        let length = Self::HEADER + usize::from(u16::from_be_bytes([high, low]));
        let (field, rest) = self.0.split_at_checked(length).ok_or(Malformed::Header)?;
        self.0 = rest;
        Ok(Some((kind, field)))
    }
}

/// Checks the checksum whose value is at `place` (the specification, section 2.2.3).
fn check(header: &[u8], place: usize, value: &[u8]) -> Result<(), Malformed> {
    let value = <[u8; 4]>::try_from(value).map_err(|_| Malformed::Header)?;
    let crc = Crc::<u32>::new(&CRC_32_ISCSI);
    let mut digest = crc.digest();
    digest.update(&header[..place]);
    digest.update(&[0; 4]);
    digest.update(&header[place + 4..]);
    if digest.finalize() == u32::from_be_bytes(value) { Ok(()) } else { Err(Malformed::Checksum) }
}

/// Which form of header to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One line of text, with addresses and nothing else.
    V1,
    /// Binary, with fields.
    V2,
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            _ => Err(format!("'{text}' is no version of the PROXY protocol; write v1 or v2")),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

impl Version {
    /// A header that tells a service of a client as `told`, with a unique id, unless there is one already, and fields of our own. Version
    /// 1 has the addresses only.
    pub fn encode(self, told: &Told, unique_id: &[u8], own: &[(u8, &[u8])]) -> Vec<u8> {
        let addresses = told.addresses.and_then(|(from, to)| same_family(from, to));
        let address = addresses.map(|(from, to)| ProxiedAddress::stream(from, to));
        let mut header = Vec::new();
        match self {
            Self::V1 => {
                ProxyHeader::with_tlvs(address, [])
                    .encode_v1(&mut header)
                    .expect("it has two addresses of TCP");
            }
            Self::V2 => {
                let mut tlvs = Vec::new();
                let (mut fields, mut has_id) = (Fields(&told.fields), false);
                while let Ok(Some((kind, field))) = fields.next() {
                    // A peer may have written anything there, such as another key's name.
                    if KNOWN.contains(&kind) {
                        has_id |= kind == UNIQUE_ID;
                        tlvs.push(Tlv::Custom(kind, field[Fields::HEADER..].into()));
                    }
                }
                if !has_id {
                    tlvs.push(Tlv::UniqueId(unique_id.into()));
                }
                tlvs.extend(own.iter().map(|(kind, value)| Tlv::Custom(*kind, (*value).into())));
                ProxyHeader::with_tlvs(address, tlvs)
                    .encode_v2(&mut header)
                    .expect("the addresses are of one family, and the fields have a few thousand bytes");
                if addresses.is_none() {
                    // A client without an address, such as one of a Unix-domain socket, is a client and not a check. The crate has one
                    // form for both.
                    header[SIGNATURE.len()..][..2].copy_from_slice(&[PROXY, UNSPECIFIED]);
                }
            }
        }
        header
    }

    /// A header that says that we speak for ourselves.
    pub fn encode_local(self) -> Vec<u8> {
        let mut header = Vec::new();
        let local = ProxyHeader::with_local();
        match self {
            Self::V1 => local.encode_v1(&mut header),
            Self::V2 => local.encode_v2(&mut header),
        }
        .expect("it has neither addresses nor fields");
        header
    }
}

/// Both addresses in one family: a socket for IPv6 has its IPv4 clients in a form of IPv6.
fn same_family(from: SocketAddr, to: SocketAddr) -> Option<(SocketAddr, SocketAddr)> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (from, to) = (canonical(from), canonical(to));
    (from.is_ipv4() == to.is_ipv4()).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 2 for a client of IPv4, with these fields.
    fn v2(fields: &[u8]) -> Vec<u8> {
        let mut header =
            [&SIGNATURE[..], &[PROXY, 0x11, 0, 0], &[192, 0, 2, 7, 192, 0, 2, 1, 0x30, 0x39, 1, 187]]
                .concat();
        header.extend_from_slice(fields);
        set_length(&mut header);
        header
    }

    fn set_length(header: &mut [u8]) {
        let length = u16::try_from(header.len() - FIXED).unwrap();
        header[FIXED - 2..FIXED].copy_from_slice(&length.to_be_bytes());
    }

    fn client() -> (SocketAddr, SocketAddr) {
        ("192.0.2.7:12345".parse().unwrap(), "192.0.2.1:443".parse().unwrap())
    }

    const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 443\r\n";

    /// Reads as a connection does, which has more behind the header. Gives how many bytes it took.
    fn read(stream: &[u8]) -> Result<(Told, usize), Malformed> {
        let mut length = 0;
        loop {
            match missing(&stream[..length])? {
                0 => return Ok((parse(&stream[..length])?, length)),
                more => length += more,
            }
            assert!(length <= stream.len(), "it wants {length} bytes of {}", stream.len());
        }
    }

    #[test]
    fn both_versions_are_read_to_their_last_byte_and_no_further() {
        for header in [V1.to_vec(), v2(&[]), v2(&[4, 0, 2, 0, 0])] {
            let (told, length) = read(&[&header, &b"HELO"[..]].concat()).unwrap();
            assert_eq!((told.addresses, length), (Some(client()), header.len()));
        }
        let v6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 443\r\n";
        let (told, _) = read(v6).unwrap();
        assert_eq!(told.addresses.unwrap().0, "[2001:db8::7]:12345".parse().unwrap());
    }

    #[test]
    fn a_header_may_come_byte_by_byte() {
        for header in [V1.to_vec(), v2(&[4, 0, 2, 0, 0]), b"PROXY UNKNOWN\r\n".to_vec()] {
            for length in 0..header.len() {
                let more = missing(&header[..length]).unwrap();
                assert!((1..=header.len() - length).contains(&more), "{more} behind {length}");
            }
            assert_eq!(missing(&header), Ok(0));
        }
    }

    #[test]
    fn what_a_proxy_says_for_itself_is_skipped_as_a_whole() {
        let mut local = [&SIGNATURE[..], &[LOCAL, 0xff, 0, 5], b"what?"].concat();
        assert_eq!(read(&local), Ok((Told::default(), local.len())));
        local[FIXED - 1] = 0;
        assert_eq!(read(&local), Ok((Told::default(), FIXED)));
        for unknown in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"] {
            assert_eq!(read(unknown), Ok((Told::default(), unknown.len())));
        }
    }

    #[test]
    fn known_fields_are_passed_on_and_others_are_not() {
        let known = [&[1, 0, 2, b'h', b'2'][..], &[5, 0, 1, 9], &[0xea, 0, 1, 1]].concat();
        let others = [&[4, 0, 1, 0][..], &[0x30, 0, 1, b'n'], &[0xf0, 0, 0]].concat();
        let (told, _) = read(&v2(&[&known[..], &others].concat())).unwrap();
        assert_eq!(told.passed_on(), known);
    }

    #[test]
    fn more_fields_than_may_be_passed_on_are_left_out() {
        let long = |kind: u8| [&[kind, 4, 0][..], &[7; 1024]].concat();
        let (told, _) = read(&v2(&[long(1), long(2), vec![5, 0, 1, 9]].concat())).unwrap();
        assert_eq!(told.passed_on(), [long(1), vec![5, 0, 1, 9]].concat());
    }

    #[test]
    fn a_checksum_has_to_be_right() {
        let header = v2(&[&[5, 0, 1, 9][..], &[CRC32C, 0, 4, 0, 0, 0, 0], &[4, 0, 0]].concat());
        assert_eq!(read(&header), Err(Malformed::Checksum));
        let mut right = header;
        let sum = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&right).to_be_bytes();
        let place = right.len() - 3 - 4;
        right[place..][..4].copy_from_slice(&sum);
        assert_eq!(read(&right).unwrap().0.addresses, Some(client()));
        right[FIXED] ^= 1;
        assert_eq!(read(&right), Err(Malformed::Checksum));
    }

    #[test]
    fn what_is_no_header_is_refused_at_its_first_wrong_byte() {
        for (bytes, error) in [
            (&b"G"[..], Malformed::Missing),
            (b"PROXZ", Malformed::Missing),
            (b"\r\n\r\n\0\r\nQUIT!", Malformed::Missing),
            (b"PROXY TCP4 1.2.3.4\n", Malformed::Header),
        ] {
            assert_eq!(missing(bytes), Err(error), "{bytes:?}");
        }
        let endless = [b"PROXY TCP6 ".to_vec(), vec![b'f'; V1_MAX]].concat();
        assert_eq!(missing(&endless), Err(Malformed::TooLong));
        let mut long = v2(&[]);
        long[FIXED - 2..FIXED].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(missing(&long), Err(Malformed::TooLong));
    }

    #[test]
    fn a_header_that_contradicts_itself_is_refused() {
        for header in [
            &b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n"[..],
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1 70000\r\n",
            b"PROXY TCP9 192.0.2.7 192.0.2.1 1 2\r\n",
            b"PROXY  TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
        ] {
            assert!(read(header).is_err(), "{}", header.escape_ascii());
        }
        // A field that goes beyond the header, an address that is cut short, an unknown command and family.
        assert_eq!(read(&v2(&[1, 0, 9, 0])), Err(Malformed::Header));
        let mut short = v2(&[]);
        short.truncate(FIXED + 11);
        set_length(&mut short);
        assert_eq!(read(&short), Err(Malformed::Header));
        for (place, byte) in [(12, 0x22), (12, 0x11), (13, 0x41)] {
            let mut header = v2(&[]);
            header[place] = byte;
            assert_eq!(read(&header), Err(Malformed::Header));
        }
    }

    #[test]
    fn what_is_sent_is_read_again() {
        let told = Told { addresses: Some(client()), fields: vec![1, 0, 2, b'h', b'2'] };
        let header = Version::V2.encode(&told, b"id", &[(KEY_NAME, b"web1")]);
        let (read_again, length) = read(&header).unwrap();
        assert_eq!((read_again.addresses, length), (Some(client()), header.len()));
        assert_eq!(read_again.passed_on(), [1, 0, 2, b'h', b'2', UNIQUE_ID, 0, 2, b'i', b'd']);
        assert!(header.ends_with(&[KEY_NAME, 0, 4, b'w', b'e', b'b', b'1']));
        assert_eq!(Version::V1.encode(&told, b"id", &[]), V1);
    }

    #[test]
    fn an_id_that_a_load_balancer_gave_stays() {
        let told = Told { addresses: Some(client()), fields: vec![UNIQUE_ID, 0, 1, 7] };
        assert_eq!(read(&Version::V2.encode(&told, b"id", &[])).unwrap().0.fields, told.fields);
    }

    #[test]
    fn what_a_peer_says_of_its_key_is_not_sent() {
        let fields = [&[KEY_NAME, 0, 5][..], b"other", &[CRC32C, 0, 4, 0, 0, 0, 0]].concat();
        let header = Version::V2.encode(&Told { addresses: None, fields }, b"id", &[(KEY_NAME, b"web1")]);
        let expected = [&[UNIQUE_ID, 0, 2][..], b"id", &[KEY_NAME, 0, 4], b"web1"].concat();
        assert_eq!(header[FIXED..], expected);
    }

    #[test]
    fn a_client_without_an_address_is_no_check() {
        let header = Version::V2.encode(&Told::default(), b"id", &[]);
        assert_eq!(header[12..16], [PROXY, UNSPECIFIED, 0, 5]);
        assert_eq!(Version::V1.encode(&Told::default(), b"id", &[]), b"PROXY UNKNOWN\r\n");
        assert_eq!(Version::V2.encode_local()[12..], [LOCAL, UNSPECIFIED, 0, 0]);
    }

    #[test]
    fn what_is_told_is_shown_line_by_line_and_escaped() {
        let told = Told { addresses: Some(client()), fields: vec![1, 0, 2, b'h', b'2', 0xf0, 0, 1, 7] };
        let lines = "client [192.0.2.7]:12345, which connected to [192.0.2.1]:443\napplication protocol (ALPN): h2\n\
                     field 0xf0: \\x07\n";
        assert_eq!(told.to_string(), lines);
        assert!(Told::default().to_string().starts_with("no address"));
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_socket_is_an_ipv4_client() {
        let mapped = |text: &str| text.parse().unwrap();
        let addresses = Some((mapped("[::ffff:192.0.2.7]:12345"), mapped("[::ffff:192.0.2.1]:443")));
        assert_eq!(Version::V1.encode(&Told { addresses, fields: Vec::new() }, b"", &[]), V1);
    }
}
