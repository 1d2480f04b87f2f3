//! The reader of packets in spiped's protocol, fed byte streams that are cut as the network code cuts them.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use spipe::proto::framing::{Open, Received, Seal};
use spipe::proto::key::Key;
use spipe::proto::spiped::packet::{Opener, PACKET, PAYLOAD_MAX};
use spipe_fuzz::spiped::{TEXT, established, packets};
use spipe_fuzz::{array, damage, key};

const SENT: [&[u8]; 3] = [b"PING\r\n", &[7; PAYLOAD_MAX], b"x"];

static HONEST: LazyLock<(Key, Vec<u8>)> = LazyLock::new(|| {
    let key = key();
    let mut sealer = established(&key).0.sealer;
    let wire = SENT.iter().flat_map(|payload| {
        let mut packet = [0; PACKET];
        packet[..payload.len()].copy_from_slice(payload);
        sealer.data(&mut packet, payload.len()).unwrap();
        packet
    });
    let wire = wire.collect();
    (key, wire)
});

fuzz_target!(|data: &[u8]| {
    let (key, wire) = &*HONEST;
    let sent = SENT.concat();
    let opener = || established(key).1.opener;

    // A stranger's bytes.
    let (read, is_whole) = read(opener(), data);
    assert!(sent.starts_with(&read) && (!is_whole || read.is_empty() || data == wire));

    // A key holder's stream, damaged.
    let mut damaged = wire.clone();
    damage(&mut damaged, data);
    let (read, is_whole) = self::read(opener(), &damaged);
    assert!(sent.starts_with(&read));
    assert_eq!(is_whole, damaged == *wire);

    // A key holder's packets with anything in them.
    let texts: Vec<[u8; TEXT]> = data.chunks(64).take(4).map(text).collect();
    let wire: Vec<u8> = packets(key, &texts).concat();
    let mut expected = (Vec::new(), true);
    for text in &texts {
        let length = u32::from_be_bytes(*text.last_chunk().unwrap()) as usize;
        if !(1..=PAYLOAD_MAX).contains(&length) {
            expected.1 = false;
            break;
        }
        expected.0.extend(&text[..length]);
    }
    assert_eq!(self::read(opener(), &wire), expected);
});

/// A text whose length is the first two bytes of `data`, or four of them if the first is 255.
fn text(data: &[u8]) -> [u8; TEXT] {
    let mut text = [0; TEXT];
    let payload: [u8; 64] = array(data);
    text[..64].copy_from_slice(&payload);
    let length = if data[0] == 255 { array(data) } else { [0, 0, payload[0] & 7, payload[1]] };
    text[PAYLOAD_MAX..].copy_from_slice(&length);
    text
}

/// What is read of a stream, and whether nothing was refused or cut short.
fn read(mut opener: Opener, mut wire: &[u8]) -> (Vec<u8>, bool) {
    let mut read = Vec::new();
    while !wire.is_empty() {
        let length = Opener::next_length(wire).unwrap().unwrap();
        let Some((packet, rest)) = wire.split_at_checked(length) else { return (read, false) };
        let mut packet = packet.to_vec();
        match opener.open(&mut packet) {
            Ok(Received::Data(payload)) => read.extend(&packet[payload]),
            Ok(other) => panic!("there is no such packet: {other:?}"),
            Err(_) => return (read, false),
        }
        wire = rest;
    }
    (read, true)
}
