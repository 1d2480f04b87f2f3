//! Peers with the key that keep the responder busy do not hold up the others.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use spipe::proto::cipher::{AesSupport, Ciphers};
use spipe::proto::connection_info::ConnectionInfo;
use spipe::proto::frame::{FRAME_MAX, Sealer};
use spipe::proto::handshake::{Initiator, InitiatorRandomness, Label, MESSAGE_2};
use spipe::proto::key;

use crate::support::pipe::Pipe;
use crate::support::random::Random;
use crate::support::socket::{assert_echoes, connect, echo};

const PEERS: usize = 8;
/// Empty frames that each of them sends.
const FRAMES: usize = 400_000;

/// An initiator that has opened a connection, with all that it is about to send.
struct Flood {
    wire: TcpStream,
    frames: Vec<u8>,
}

impl Flood {
    fn prepare(responder: SocketAddr, key: &key::Key, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let Ok(randomness) = InitiatorRandomness::draw(|secret| {
            random.fill(secret);
            Ok::<_, Infallible>(())
        });
        let (initiator, message) =
            Initiator::start(key, &Label::default(), Ciphers::auto(AesSupport::GcmAndAegis), &randomness);
        let mut wire = connect(responder);
        wire.write_all(&message).expect("the responder reads message 1");
        let mut answer = [0; MESSAGE_2];
        wire.read_exact(&mut answer).expect("the responder answers");
        let established = initiator.finish(&answer).expect("both ends hold the key");
        let mut slot = vec![0; FRAME_MAX];
        let (sealer, length) = established.sealer.open(&ConnectionInfo::default(), &mut slot);
        wire.write_all(&slot[..length]).expect("the responder reads Open");
        Self { wire, frames: empty_frames(sealer, slot) }
    }

    /// Sends all, and waits until the responder has read it: until the target's answer to the end.
    fn send(mut self) {
        self.wire.write_all(&self.frames).expect("the responder reads the frames");
        self.wire.read_exact(&mut [0]).expect("the target ends its direction");
    }
}

/// Empty frames, and then the end.
fn empty_frames(mut sealer: Sealer, mut slot: Vec<u8>) -> Vec<u8> {
    let mut frames = Vec::new();
    for _ in 0..FRAMES {
        let length = sealer.data(&mut slot, 0).expect("frame numbers are left");
        frames.extend_from_slice(&slot[..length]);
    }
    let (length, _spent) = sealer.end(&mut slot).expect("a frame number is left");
    frames.extend_from_slice(&slot[..length]);
    frames
}

#[test]
fn peers_that_send_empty_frames_do_not_hold_up_others() {
    let pipe = Pipe::to(echo()).start();
    let key = std::fs::read(pipe.key.path()).expect("the key can be read");
    let key = key::Key::from_bytes(&key).expect("it is a key");
    let floods: Vec<_> =
        (0..PEERS).map(|seed| Flood::prepare(pipe.responder.address(), &key, seed as u64)).collect();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "before the flood");

    let flooding = Arc::new(AtomicUsize::new(PEERS));
    for flood in floods {
        let flooding = Arc::clone(&flooding);
        thread::spawn(move || {
            flood.send();
            flooding.fetch_sub(1, Ordering::SeqCst);
        });
    }
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    while flooding.load(Ordering::SeqCst) > 0 {
        let before = Instant::now();
        assert_echoes(&mut client, "ping");
        longest = longest.max(before.elapsed());
    }
    // Compared with the flood itself, since the machine may be slow. Where a turn lasts as long as there are frames, a round trip
    // takes most of that time; it takes a hundredth where turns are short.
    let flood = start.elapsed();
    println!("the longest round trip of a flood of {flood:?} took {longest:?}");
    assert!(longest < flood / 4, "the longest round trip of a flood of {flood:?} took {longest:?}");
}
