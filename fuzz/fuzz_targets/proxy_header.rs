//! The header of the PROXY protocol: whatever a proxy sends, no byte behind the header is read, and what is told on is read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spipe::proxy_header::{Told, Version, missing, parse};

fuzz_target!(|data: &[u8]| {
    let mut length = 0;
    loop {
        match missing(&data[..length]) {
            Ok(0) => break,
            Ok(more) if length + more <= data.len() => length += more,
            // Malformed, or not all of it is here.
            _ => return,
        }
    }
    let Ok(told) = parse(&data[..length]) else { return };
    let _for_people = told.to_string();
    let told = Told { addresses: told.addresses, fields: told.passed_on() };
    let sent = Version::V2.encode(&told, b"id", &[]);
    assert_eq!(missing(&sent), Ok(0));
    let again = parse(&sent).expect("what is sent is a header");
    assert!(again.fields.starts_with(&told.fields));
    // Addresses of two families are not sent.
    assert!(again.addresses.is_none() || told.addresses.is_some());
    let line = Version::V1.encode(&told, b"id", &[]);
    assert_eq!(missing(&line), Ok(0));
    parse(&line).expect("what is sent is a header");
});
