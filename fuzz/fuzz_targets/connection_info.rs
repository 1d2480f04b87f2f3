//! The fields of *Open*: what a key holder may write there, and that what we write comes back.

#![no_main]

use core::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use spipe::proto::connection_info::ConnectionInfo;
use spipe_fuzz::array;

fuzz_target!(|data: &[u8]| {
    if let Ok(info) = ConnectionInfo::decode(data) {
        assert_eq!(encoded_and_decoded(&info), info);
        // Whatever else it says, a connection is for one thing.
        let probe_and_ping = [data, &[2, 0, 0, 6, 0, 0]].concat();
        assert!(ConnectionInfo::decode(&probe_and_ping).is_err());
    }

    // Any address at all, the IPv4-mapped ones too: they must not turn into another family.
    let (ip, port) = (array::<16>(data), u16::from_le_bytes(array(data.get(16..).unwrap_or_default())));
    for ip in [IpAddr::from(array::<4>(data)), IpAddr::from(ip)] {
        let info = ConnectionInfo { client: Some(SocketAddr::new(ip, port)), ..ConnectionInfo::default() };
        assert_eq!(encoded_and_decoded(&info), info);
    }
});

fn encoded_and_decoded(info: &ConnectionInfo) -> ConnectionInfo {
    // What `encode` promises to need at most.
    let mut buffer = [0xaa; ConnectionInfo::ENCODED_MAX];
    let length = info.encode(&mut buffer);
    ConnectionInfo::decode(&buffer[..length]).unwrap()
}
