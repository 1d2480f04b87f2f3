//! The pumps: all bytes arrive in order in both directions, and how a connection ends.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use spipe::proto::cipher::Cipher;
use spipe::proto::frame::{
    AbortReason, FRAME_MAX, FrameError, HEADER, Misbehaviour, Opener, PAYLOAD_MAX, Sealer,
};
use spipe::proto::framing::{EndOfStream, Open, Received};
use spipe::pump::buffer::BATCH;
use spipe::pump::{self, FRAMES_PER_TURN, OpenPump, PumpError, SealPump};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};

use crate::support::{End, establish};

/// A client, two established ends, and a target. Each stream between them buffers `capacity` bytes.
struct Line {
    client: DuplexStream,
    service: DuplexStream,
    near: Side,
    far: Side,
}

struct Side {
    local: DuplexStream,
    wire: DuplexStream,
    end: End,
}

impl Side {
    async fn run(self) -> Result<(), PumpError> {
        let (mut seal, mut open) = self.end.pumps();
        pump::run(&mut seal, &mut open, split(self.local), split(self.wire), pump::unwatched).await
    }
}

async fn line(capacity: usize, cipher: Cipher) -> Line {
    let (mut near_wire, mut far_wire) = duplex(capacity);
    let (near, far) = establish(&mut near_wire, &mut far_wire, cipher).await;
    let (client, near_local) = duplex(capacity);
    let (service, far_local) = duplex(capacity);
    Line {
        client,
        service,
        near: Side { local: near_local, wire: near_wire, end: near },
        far: Side { local: far_local, wire: far_wire, end: far },
    }
}

fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Writes all of `bytes` and half-closes, while reading to the end.
async fn exchange(stream: impl AsyncRead + AsyncWrite, bytes: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = split(stream);
    let mut received = Vec::new();
    let write = async {
        writer.write_all(bytes).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(reader.read_to_end(&mut received), write);
    read.unwrap();
    received
}

#[tokio::test]
async fn bytes_cross_in_both_directions_at_once_in_pieces_of_any_size() {
    for (capacity, length) in
        [(1, 2_000), (8, 20_000), (1_000, 300_000), (FRAME_MAX, 3_000_000), (1 << 20, 5_000_000)]
    {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let Line { client, service, near, far } = line(capacity, cipher).await;
            let (question, answer) = (random(1, length), random(2, length + 7));
            let (near, far, at_client, at_service) =
                tokio::join!(near.run(), far.run(), exchange(client, &question), exchange(service, &answer));
            assert!(near.is_ok() && far.is_ok());
            assert!(at_service == question, "{capacity} {cipher}: to the target");
            assert!(at_client == answer, "{capacity} {cipher}: to the client");
        }
    }
}

#[tokio::test]
async fn empty_streams_end_cleanly() {
    let Line { client, service, near, far } = line(8, Cipher::Aes256Gcm).await;
    let (near, far, at_client, at_service) =
        tokio::join!(near.run(), far.run(), exchange(client, &[]), exchange(service, &[]));
    assert!(near.is_ok() && far.is_ok() && at_client.is_empty() && at_service.is_empty());
}

#[tokio::test]
async fn a_half_closed_client_still_receives_a_late_answer() {
    let Line { client, mut service, near, far } = line(8, Cipher::Aes256Gcm).await;
    let answer = random(3, 50_000);
    let serve = async {
        let mut question = Vec::new();
        service.read_to_end(&mut question).await.unwrap();
        // The answer begins only after the client's end of stream.
        service.write_all(&answer).await.unwrap();
        service.shutdown().await.unwrap();
        question
    };
    let (near, far, at_client, question) =
        tokio::join!(near.run(), far.run(), exchange(client, b"question"), serve);
    assert!(near.is_ok() && far.is_ok());
    assert_eq!(question, b"question");
    assert!(at_client == answer);
}

#[tokio::test]
async fn a_half_closed_target_still_receives_late_bytes_of_the_client() {
    let Line { mut client, service, near, far } = line(8, Cipher::Aes256Gcm).await;
    let question = random(4, 50_000);
    let talk = async {
        let mut greeting = Vec::new();
        client.read_to_end(&mut greeting).await.unwrap();
        client.write_all(&question).await.unwrap();
        client.shutdown().await.unwrap();
        greeting
    };
    let (near, far, greeting, at_service) =
        tokio::join!(near.run(), far.run(), talk, exchange(service, b"220 hello"));
    assert!(near.is_ok() && far.is_ok());
    assert_eq!(greeting, b"220 hello");
    assert!(at_service == question);
}

/// Runs the far side on a wire that delivers `frames` and then ends. Returns the bytes that the target received, and
/// the result of the pump.
async fn receive(far: End, frames: &[u8]) -> (Vec<u8>, Result<(), PumpError>) {
    let (service, local) = duplex(1 << 20);
    let (mut wire, far_wire) = duplex(1 << 20);
    wire.write_all(frames).await.unwrap();
    drop(wire);
    let (mut seal, mut open) = far.pumps();
    let result = pump::run(&mut seal, &mut open, split(local), split(far_wire), pump::unwatched).await;
    let mut got = Vec::new();
    // The target does not end its own direction, like a client that waits for an answer.
    let (mut reader, _writer) = split(service);
    drop((seal, open));
    reader.read_to_end(&mut got).await.unwrap();
    (got, result)
}

async fn ends() -> (End, End) {
    let (near, far) = duplex(8);
    establish(near, far, Cipher::Aes256Gcm).await
}

fn data(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut slot = vec![0; FRAME_MAX];
    slot[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    let length = sealer.data(&mut slot, payload.len()).unwrap();
    slot.truncate(length);
    slot
}

fn end(sealer: Sealer) -> Vec<u8> {
    let mut slot = vec![0; FRAME_MAX];
    let (length, _spent) = sealer.end(&mut slot).unwrap();
    slot.truncate(length);
    slot
}

#[tokio::test]
async fn a_wire_that_ends_without_an_end_frame_is_a_truncation_at_every_byte() {
    let total = {
        let (mut near, _) = ends().await;
        data(&mut near.sealer, b"hello").len()
    };
    for cut in 0..=total {
        let (mut near, far) = ends().await;
        let frame = data(&mut near.sealer, b"hello");
        let (got, result) = receive(far, &frame[..cut]).await;
        assert!(matches!(result, Err(PumpError::Truncated)), "after {cut} bytes: {result:?}");
        assert_eq!(got, if cut == total { &b"hello"[..] } else { b"" });
    }
}

#[tokio::test]
async fn a_peer_that_vanishes_after_its_end_frame_is_noticed_while_this_side_is_silent() {
    let (near, far) = ends().await;
    let (_, result) = receive(far, &end(near.sealer)).await;
    assert!(matches!(result, Err(PumpError::Abandoned)), "{result:?}");
}

#[tokio::test]
async fn bytes_after_an_end_frame_are_refused() {
    let (near, far) = ends().await;
    let frames = [end(near.sealer), vec![0]].concat();
    let (_, result) = receive(far, &frames).await;
    assert!(
        matches!(result, Err(PumpError::Frame(FrameError::Misbehaved(Misbehaviour::BytesAfterEnd)))),
        "{result:?}"
    );
}

#[tokio::test]
async fn an_altered_frame_is_refused_and_no_later_frame_is_opened() {
    let (mut near, far) = ends().await;
    let mut altered = data(&mut near.sealer, b"first");
    altered[10] ^= 1;
    let frames = [altered, data(&mut near.sealer, b"second"), end(near.sealer)].concat();
    let (got, result) = receive(far, &frames).await;
    assert!(matches!(result, Err(PumpError::Frame(FrameError::Forged))), "{result:?}");
    assert!(got.is_empty());
}

#[tokio::test]
async fn an_impossible_length_is_refused() {
    for header in [[0, 0], [0, 16], [0xff, 0xff]] {
        let (_near, far) = ends().await;
        let (_, result) = receive(far, &header).await;
        assert!(matches!(result, Err(PumpError::Frame(FrameError::Length(_)))), "{header:?}: {result:?}");
    }
}

#[tokio::test]
async fn empty_data_frames_do_not_end_the_stream() {
    let (mut near, far) = ends().await;
    let frames =
        [data(&mut near.sealer, b""), data(&mut near.sealer, b"a"), data(&mut near.sealer, b"")].concat();
    let (got, result) = receive(far, &frames).await;
    assert!(matches!(result, Err(PumpError::Truncated)), "{result:?}");
    assert_eq!(got, b"a");
}

#[tokio::test]
async fn thousands_of_small_frames_arrive_in_order() {
    let (mut near, far) = ends().await;
    let sent: Vec<u8> = (0..5_000_u32).flat_map(u32::to_be_bytes).collect();
    let mut frames: Vec<u8> = sent.chunks(4).flat_map(|payload| data(&mut near.sealer, payload)).collect();
    frames.extend(data(&mut near.sealer, &vec![9; 60_000]));
    let (got, _) = receive(far, &frames).await;
    assert!(got[..sent.len()] == sent && got.len() == sent.len() + 60_000);
}

#[tokio::test]
async fn an_abort_follows_the_sealed_frames_and_carries_its_reason() {
    let (near, far) = ends().await;
    let (mut client, near_local) = duplex(1 << 20);
    let (wire, far_wire) = duplex(1 << 20);
    client.write_all(b"last words").await.unwrap();

    let mut seal = SealPump::new(near.sealer);
    let (mut reader, _writer) = split(near_local);
    std::future::poll_fn(|context| seal.poll_fill(context, &mut reader)).await.unwrap();
    let (_wire_reader, mut wire_writer) = split(wire);
    seal.abort(AbortReason::TargetUnreachable, &mut wire_writer).await.unwrap();

    let (mut service, far_local) = duplex(1 << 20);
    let (mut seal, mut open) = far.pumps();
    let result = pump::run(&mut seal, &mut open, split(far_local), split(far_wire), pump::unwatched).await;
    assert!(matches!(result, Err(PumpError::Aborted(AbortReason::TargetUnreachable))), "{result:?}");
    let mut got = [0; 10];
    service.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"last words");
}

#[tokio::test]
async fn an_abort_in_the_middle_of_a_frame_finishes_the_frame_first() {
    let (near, far) = ends().await;
    let (mut client, near_local) = duplex(1 << 20);
    let (wire, mut far_wire) = duplex(8);
    client.write_all(b"more than eight bytes").await.unwrap();

    let mut seal = SealPump::new(near.sealer);
    let (mut reader, _writer) = split(near_local);
    let (_wire_reader, mut wire_writer) = split(wire);
    // The wire accepts eight bytes and then makes the pump wait in the middle of its frame.
    let polled = std::future::poll_fn(|context| {
        Poll::Ready(seal.poll(context, &mut reader, &mut wire_writer).is_pending())
    });
    assert!(polled.await);

    let mut frames = Vec::new();
    let abort = async {
        seal.abort(AbortReason::Reset, &mut wire_writer).await.unwrap();
        wire_writer.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(far_wire.read_to_end(&mut frames), abort);
    read.unwrap();
    let (got, result) = receive(far, &frames).await;
    assert!(matches!(result, Err(PumpError::Aborted(AbortReason::Reset))), "{result:?}");
    assert_eq!(got, b"more than eight bytes");
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer() {
    let Line { client, service, near, far } = line(8, Cipher::Aes256Gcm).await;
    let pumps = tokio::spawn(async move { tokio::join!(near.run(), far.run()) });
    let (_client_reader, mut writer) = split(client);
    let mut accepted = 0;
    // The writer is stuck long before the time limit: once all buffers are full, no task can make progress.
    let stuck = async {
        loop {
            accepted += writer.write(&[7; 4096]).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(std::time::Duration::from_secs(1), stuck).await.is_err());
    // One batch on each side of the wire, and the bytes in the four small streams.
    assert!(accepted < 2 * BATCH, "{accepted} bytes were taken from the writer");
    drop(service);
    pumps.abort();
}

/// Polls `work` once, and gives whether it waits for something, and whether it asks for another turn right after that.
async fn one_turn(mut work: impl FnMut(&mut Context<'_>) -> Poll<Result<(), PumpError>>) -> (bool, bool) {
    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let flag = Arc::new(Flag(AtomicBool::new(false)));
    let waits = work(&mut Context::from_waker(&Arc::clone(&flag).into())).is_pending();
    let asks_at_once = flag.0.load(Ordering::SeqCst);
    // What yields is woken after the runtime has looked for events.
    tokio::task::yield_now().await;
    let asks = flag.0.load(Ordering::SeqCst);
    assert!(!asks_at_once, "a task that wakes itself keeps the runtime from looking for events");
    (waits, asks)
}

/// Counts the frames that it opens.
struct Counting<'c>(Opener, &'c Cell<usize>);

impl Open for Counting<'_> {
    const FRAME_MAX: usize = Opener::FRAME_MAX;
    const END_OF_STREAM: EndOfStream = Opener::END_OF_STREAM;

    fn next_length(unread: &[u8]) -> Result<Option<usize>, FrameError> {
        Opener::next_length(unread)
    }

    fn open(&mut self, frame: &mut [u8]) -> Result<Received, FrameError> {
        self.1.set(self.1.get() + 1);
        self.0.open(frame)
    }
}

/// Carries `frames` from a wire that has all of them to a local side with room for all of them. Gives the frames of each turn.
async fn frames_opened_by_turn(end: End, frames: &[u8]) -> Vec<usize> {
    let (mut peer, mut wire) = duplex(frames.len());
    peer.write_all(frames).await.unwrap();
    let (_service, mut local) = duplex(frames.len());
    let opened = Cell::new(0);
    let mut pump = OpenPump::new(Counting(end.opener, &opened), end.inbox);
    let mut turns = Vec::new();
    loop {
        let turn = one_turn(|context| pump.poll(context, &mut wire, &mut local)).await;
        turns.push(opened.take());
        match turn {
            (true, true) => {}
            (true, false) => return turns,
            (false, _) => panic!("the stream has no end"),
        }
    }
}

#[tokio::test]
async fn a_turn_opens_a_few_of_many_empty_frames() {
    let (mut near, far) = ends().await;
    let count = 27_000;
    let frames: Vec<u8> = (0..count).flat_map(|_| data(&mut near.sealer, b"")).collect();
    let turns = frames_opened_by_turn(far, &frames).await;
    assert_eq!(turns.iter().max(), Some(&FRAMES_PER_TURN));
    assert_eq!(turns.iter().sum::<usize>(), count);
}

#[tokio::test]
async fn a_turn_opens_a_few_of_many_full_frames() {
    let (mut near, far) = ends().await;
    let payload = vec![7; PAYLOAD_MAX];
    let frames: Vec<u8> =
        (0..3 * FRAMES_PER_TURN + 2).flat_map(|_| data(&mut near.sealer, &payload)).collect();
    let turns = frames_opened_by_turn(far, &frames).await;
    assert_eq!(turns, [FRAMES_PER_TURN, FRAMES_PER_TURN, FRAMES_PER_TURN, 2]);
}

#[tokio::test]
async fn a_turn_seals_a_few_frames_of_a_local_side_that_has_many() {
    let (near, _far) = ends().await;
    let length = (3 * FRAMES_PER_TURN + 2) * PAYLOAD_MAX;
    let (mut client, mut local) = duplex(length);
    client.write_all(&vec![7; length]).await.unwrap();
    let (_peer, mut wire) = duplex(2 * length);
    let mut pump = SealPump::new(near.sealer);
    let mut turns = 0;
    // tokio may end a turn before: here, each frame is a read and a write.
    while pump.bytes() < length as u64 {
        let before = pump.bytes();
        let more = one_turn(|context| pump.poll(context, &mut local, &mut wire)).await;
        assert!((1..=(FRAMES_PER_TURN * PAYLOAD_MAX) as u64).contains(&(pump.bytes() - before)));
        assert_eq!(more, (true, pump.bytes() < length as u64));
        turns += 1;
    }
    assert!(turns > 3);
}

#[tokio::test]
async fn a_turn_without_work_asks_for_no_other() {
    let (near, _far) = ends().await;
    let (_client, mut local) = duplex(8);
    let (_peer, mut wire) = duplex(8);
    let (mut seal, mut open) = near.pumps();
    let turn = one_turn(|context| seal.poll(context, &mut local, &mut wire)).await;
    assert_eq!(turn, (true, false));
    let turn = one_turn(|context| open.poll(context, &mut wire, &mut local)).await;
    assert_eq!(turn, (true, false));
}
