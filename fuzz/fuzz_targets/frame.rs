//! The readers of frames, fed byte streams that are cut by `frame_length` as the network code cuts them.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use spipe::proto::connection_info::ConnectionInfo;
use spipe::proto::frame::{First, HEADER, OVERHEAD, Opener, frame_length};
use spipe::proto::framing::Received;
use spipe_fuzz::{damage, frame, initiator, keys, responder};

/// The honest stream, the data in it, and the key that sealed it.
static HONEST: LazyLock<(Vec<u8>, Vec<u8>, [u8; 32])> = LazyLock::new(|| {
    let (wire, sent) = honest_stream();
    (wire, sent, keys().to_responder)
});

fuzz_target!(|data: &[u8]| {
    let (wire, sent, key) = &*HONEST;

    // A stranger's bytes. No input finds a tag by chance, so what opens can only come from the seeds.
    let read = read_first(responder().opener, data);
    assert!(sent.starts_with(&read.data) && (read.stop != Stop::Over || data == wire));

    // A key holder's stream, damaged: what is read is a beginning of what was sent, and complete only if untouched.
    let mut damaged = wire.clone();
    damage(&mut damaged, data);
    let read = read_first(responder().opener, &damaged);
    assert!(sent.starts_with(&read.data));
    assert_eq!(read.stop == Stop::Over, damaged == *wire);

    // A key holder's frames with anything in them, against the specification said again.
    let texts = texts(data);
    let wire: Vec<u8> = (0..).zip(&texts).flat_map(|(counter, text)| frame(key, counter, text)).collect();
    assert_eq!(read_first(responder().opener, &wire), expected(&texts));
});

/// What came of a stream.
#[derive(Debug, Default, PartialEq)]
struct Read {
    data: Vec<u8>,
    stop: Stop,
}

#[derive(Debug, Default, PartialEq)]
enum Stop {
    /// The bytes ran out.
    #[default]
    CutShort,
    /// *End* or *Abort*, and nothing behind it.
    Over,
    Refused,
}

fn read_first(opener: First<Opener>, wire: &[u8]) -> Read {
    let (mut frame, rest) = match next_frame(wire) {
        Ok(cut) => cut,
        Err(stop) => return Read { stop, ..Read::default() },
    };
    match opener.open(&mut frame) {
        Ok((opener, _)) => read_rest(opener, rest),
        Err(_) => Read { stop: Stop::Refused, ..Read::default() },
    }
}

fn read_rest(mut opener: Opener, mut wire: &[u8]) -> Read {
    let mut read = Read::default();
    while !wire.is_empty() {
        let (mut frame, rest) = match next_frame(wire) {
            Ok(cut) => cut,
            Err(stop) => return Read { stop, ..read },
        };
        read.stop = match opener.open(&mut frame) {
            Ok(Received::Data(range)) => {
                read.data.extend(&frame[range]);
                Stop::CutShort
            }
            Ok(Received::End | Received::Abort(_)) => Stop::Over,
            Err(_) => return Read { stop: Stop::Refused, ..read },
        };
        wire = rest;
    }
    read
}

fn next_frame(wire: &[u8]) -> Result<(Vec<u8>, &[u8]), Stop> {
    let header = *wire.first_chunk::<HEADER>().ok_or(Stop::CutShort)?;
    let length = frame_length(header).map_err(|_| Stop::Refused)?;
    let (frame, rest) = wire.split_at_checked(length).ok_or(Stop::CutShort)?;
    Ok((frame.to_vec(), rest))
}

/// A stream as spipe sends it, and the data in it. Its first two frames are those that seeds/make.py takes for seeds.
fn honest_stream() -> (Vec<u8>, Vec<u8>) {
    let mut slot = vec![0; 64 * 1024];
    let info =
        ConnectionInfo { client: Some("192.0.2.7:50123".parse().unwrap()), ..ConnectionInfo::default() };
    let (mut sealer, length) = initiator().sealer.open(&info, &mut slot);
    let mut wire = slot[..length].to_vec();
    let sent = b"PING\r\n";
    slot[HEADER..HEADER + sent.len()].copy_from_slice(sent);
    let length = sealer.data(&mut slot, sent.len()).unwrap();
    assert_eq!(length, sent.len() + OVERHEAD);
    wire.extend(&slot[..length]);
    let (length, _spent) = sealer.end(&mut slot).unwrap();
    wire.extend(&slot[..length]);
    (wire, sent.to_vec())
}

/// Cuts `data` into plaintexts: a byte of length, then as many bytes. None is empty, since no frame can be.
fn texts(mut data: &[u8]) -> Vec<&[u8]> {
    let mut texts = Vec::new();
    while let Some((&length, rest)) = data.split_first() {
        let (text, rest) = rest.split_at(usize::from(length).min(rest.len()));
        data = rest;
        if !text.is_empty() {
            texts.push(text);
        }
    }
    texts
}

/// PROTOCOL.md, section 5, on plaintexts alone.
fn expected(texts: &[&[u8]]) -> Read {
    let mut read = Read::default();
    for (number, text) in texts.iter().enumerate() {
        let Some(end) = text.iter().rposition(|&byte| byte != 0) else {
            return Read { stop: Stop::Refused, ..read };
        };
        let (payload, kind) = (&text[..end], text[end]);
        let lawful = match kind {
            1 => number == 0 && ConnectionInfo::decode(payload).is_ok(),
            2 => number != 0,
            3 => number != 0 && payload.is_empty(),
            4 => number != 0 && payload.len() == 1,
            _ => false,
        };
        if !lawful || read.stop == Stop::Over {
            return Read { stop: Stop::Refused, ..read };
        }
        match kind {
            2 => read.data.extend(payload),
            3 | 4 => read.stop = Stop::Over,
            _ => {}
        }
    }
    read
}
