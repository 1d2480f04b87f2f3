//! What steps with secrets leave on the stack: nothing. Read through `/proc/self/mem`, since the stack below a frame is out of
//! reach of safe code.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;

use spipe::proto::cipher::{Cipher, Ciphers};
use spipe::proto::connection_info::ConnectionInfo;
use spipe::proto::frame::PAYLOAD_MAX;
use spipe::proto::framing::{Open, Seal};
use spipe::proto::handshake::{Initiator, Label, Responder};
use spipe::proto::key::Key;
use spipe::proto::spiped::group::{Half, Public};
use spipe::proto::spiped::handshake::{Crossed, End, ForwardSecrecy};
use spipe::proto::spiped::packet::PACKET;
use spipe::proto::stack::wiped;

use crate::second;
use crate::support::{
    CIPHERS, Connection, KEY_FILE, OTHER_KEY_FILE, REKEY_AFTER, Second, connect, data_frame, end_frame,
    frame_key, initiator_randomness, key, open_frame, other_key, psk, rekeyed, responder_randomness, start,
};

/// More stack than any step takes.
const DEPTH: usize = 512 * 1024;

/// More than the search takes.
const SEARCH: usize = 4 * 1024;
/// Bytes other than zero that a wipe has below what it wipes: the address to return to, and registers.
const FRAME_OF_A_WIPE: usize = 128;

/// Does `work` on a stack of zeros, and gives what is on that stack then, below the frame of this function.
fn left_by<T: Send>(work: impl FnOnce() -> T + Send) -> (Vec<u8>, T) {
    let run = || {
        let (mut stack, memory) = (vec![0; DEPTH], File::open("/proc/self/mem").unwrap());
        let frame = 0_u8;
        let top = (&raw const frame).addr() as u64;
        wiped::<DEPTH, _>(|| ());
        let done = below_the_search(work);
        memory.read_exact_at(&mut stack, top - DEPTH as u64).unwrap();
        (stack, done)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(2 * DEPTH);
        thread.spawn_scoped(scope, run).unwrap().join().unwrap()
    })
}

/// Does `work` so deep that the search does not overwrite what it leaves.
#[inline(never)]
fn below_the_search<T>(work: impl FnOnce() -> T) -> T {
    let room = [0_u8; SEARCH];
    std::hint::black_box(&room);
    let done = work();
    std::hint::black_box(&room);
    done
}

/// Asserts that `work` leaves no piece of `secrets`, and that it took no more stack than it wiped.
#[track_caller]
fn assert_leaves_none<T: Send>(secrets: &[[u8; 32]], work: impl FnOnce() -> T + Send) -> T {
    let (stack, done) = left_by(work);
    for (number, secret) in secrets.iter().enumerate() {
        for piece in secret.as_chunks::<8>().0 {
            assert!(!stack.windows(8).any(|window| window == piece), "a piece of secret {number}");
        }
    }
    let left = stack[..DEPTH - 2 * SEARCH].iter().filter(|byte| **byte != 0).count();
    assert!(left < FRAME_OF_A_WIPE, "{left} bytes are left: it takes more stack than is wiped");
    done
}

/// The secrets of the handshake of these seeds.
fn secrets(cipher: Cipher, ours: u8, theirs: u8) -> Vec<[u8; 32]> {
    let (ours, theirs) = (initiator_randomness(ours), responder_randomness(theirs));
    let code = [cipher as u8];
    let keys = Second::new(&KEY_FILE, "", (&ours, &theirs), &code, &code);
    let seeds = ours.kem.as_chunks().0;
    [
        keys.psk,
        keys.to_responder,
        keys.to_initiator,
        keys.shared_x25519,
        keys.shared_kem,
        ours.x25519,
        theirs.x25519,
        theirs.kem,
    ]
    .into_iter()
    .chain(seeds.iter().copied())
    .chain([keys.to_responder, keys.to_initiator].map(|secret| frame_key(cipher, &secret)))
    .collect()
}

#[test]
fn the_search_finds_what_a_function_leaves() {
    const SECRET: [u8; 32] = *b"a secret that is left on a stack";

    #[inline(never)]
    fn leave() {
        std::hint::black_box(SECRET);
    }

    let (stack, ()) = left_by(leave);
    assert!(stack.windows(SECRET.len()).any(|window| window == SECRET));
}

#[test]
fn the_steps_of_a_handshake_leave_nothing() {
    for cipher in CIPHERS {
        let (key, label, ciphers) = (key(), Label::default(), Ciphers::only(cipher));
        let (ours, theirs) = (initiator_randomness(1), responder_randomness(1));
        let secrets = secrets(cipher, 1, 1);
        let (initiator, message_1) =
            assert_leaves_none(&secrets, || Initiator::start(&key, &label, ciphers, &ours));
        let responder = assert_leaves_none(&secrets, || Responder::read(&message_1, &[&key], &label));
        let responder = responder.unwrap();
        let (message_2, responder) = assert_leaves_none(&secrets, || responder.reply(ciphers, &theirs));
        assert!(responder.is_ok());
        let initiator = assert_leaves_none(&secrets, || initiator.finish(&message_2));
        assert!(initiator.is_ok());
    }
}

#[test]
fn a_key_that_does_not_open_message_1_leaves_nothing() {
    let (_, message_1) = start(1);
    let other = other_key();
    let secrets = [psk(OTHER_KEY_FILE)];
    let refused =
        assert_leaves_none(&secrets, || Responder::read(&message_1, &[&other], &Label::default()).err());
    assert!(refused.is_some());
}

/// Ciphers have code of their own for small and for large frames.
const SIZES: [usize; 6] = [1, 16, 100, 300, 1_000, PAYLOAD_MAX];

#[test]
fn frames_leave_nothing_and_a_rekey_neither() {
    for cipher in CIPHERS {
        let Connection { initiator, responder_reads, keys, .. } = connect(cipher, 1);
        let chain = (0..2).map(|times| rekeyed(keys.to_responder, times));
        let secrets: Vec<_> = chain.flat_map(|secret| [secret, frame_key(cipher, &secret)]).collect();
        let info = ConnectionInfo::default();
        let (mut sealer, mut frame) = assert_leaves_none(&secrets, || open_frame(initiator, &info));
        let (mut opener, _) = assert_leaves_none(&secrets, || responder_reads.open(&mut frame)).unwrap();
        for size in SIZES {
            let payload = vec![7; size];
            let mut frame = assert_leaves_none(&secrets, || data_frame(&mut sealer, &payload));
            assert_leaves_none(&secrets, || opener.open(&mut frame)).unwrap();
        }
        for _ in 1 + SIZES.len() as u64..REKEY_AFTER {
            opener.open(&mut data_frame(&mut sealer, b"data")).unwrap();
        }
        let mut frame = assert_leaves_none(&secrets, || data_frame(&mut sealer, b"data"));
        assert_leaves_none(&secrets, || opener.open(&mut frame)).unwrap();
        let mut frame = assert_leaves_none(&secrets, || end_frame(sealer));
        assert_leaves_none(&secrets, || opener.open(&mut frame)).unwrap();
    }
}

#[test]
fn a_key_file_leaves_nothing() {
    let secrets = [KEY_FILE, psk(&KEY_FILE)];
    assert_leaves_none(&secrets, || Key::from_bytes(&KEY_FILE).unwrap());
}

/// The secrets of a handshake of spiped's protocol with these halves and nonces.
fn spiped_secrets(ours: [u8; 32], theirs: [u8; 32], nonces: &[u8]) -> Vec<[u8; 32]> {
    let shared = Half::new(&ours).agree(&Public::read(Half::new(&theirs).public()).unwrap());
    let key = second::sha256(&KEY_FILE);
    let macs = second::pbkdf2(&key, nonces, 64);
    let packets = second::pbkdf2(&key, &[nonces, &**shared].concat(), 128);
    // The exponent is kept as a number, whose bytes are in the processor's order.
    let numbers = [ours, theirs].map(|mut half| {
        half.reverse();
        half
    });
    let keys = [&macs[..], &packets].concat();
    let states = keys.as_chunks().0.iter().flat_map(second::hmac_states);
    let pieces = [&shared[..], &keys].concat();
    let pieces = pieces.as_chunks().0.iter().copied().chain(states);
    [ours, theirs, key].into_iter().chain(numbers).chain(pieces).collect()
}

fn counting(from: u8) -> [u8; 32] {
    std::array::from_fn(|at| from + u8::try_from(at).unwrap())
}

#[test]
fn the_steps_of_spipeds_handshake_and_its_packets_leave_nothing() {
    let (ours, theirs) = (counting(7), counting(99));
    let (key, nonces) = (key(), [[1; 32], [2; 32]]);
    let secrets = spiped_secrets(ours, theirs, nonces.as_flattened());
    let half = assert_leaves_none(&secrets, || Half::new(&ours));
    let other = Half::new(&theirs);
    let crossed = assert_leaves_none(&secrets, || Crossed::new(&key, End::Initiator, &nonces[0], &nonces[1]));
    let proof = assert_leaves_none(&secrets, || crossed.prove(&half));
    let responder = Crossed::new(&key, End::Responder, &nonces[1], &nonces[0]);
    let responder = responder.verify(&proof, ForwardSecrecy::Offered).unwrap();
    let answer = responder.prove(&other);
    let crossed = assert_leaves_none(&secrets, || crossed.verify(&answer, ForwardSecrecy::Offered)).unwrap();
    let peers = crossed.theirs();
    let shared = assert_leaves_none(&secrets, || half.agree(&peers));
    let mut initiator = assert_leaves_none(&secrets, || crossed.finish(&shared));
    let shared = other.agree(&responder.theirs());
    let mut responder = responder.finish(&shared);
    let mut packet = [7; PACKET];
    assert_leaves_none(&secrets, || initiator.sealer.data(&mut packet, 100)).unwrap();
    assert_leaves_none(&secrets, || responder.opener.open(&mut packet)).unwrap();
}
