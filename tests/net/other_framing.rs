//! Another wire protocol through the same pumps. All packets have one small size, and no frame opens, ends or aborts
//! a stream: its end is the end of the underlying stream, and its failure is a reset.

use std::task::Poll;

use spipe::proto::frame::{AbortReason, Exhausted, FrameError};
use spipe::proto::framing::{EndOfStream, Ending, Open, Received, Seal, Slot};
use spipe::pump::{self, Inbox, OpenPump, PumpError, SealPump, Told};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};

/// The size of a packet: payload and fill, the payload's length, and a checksum.
const PACKET: usize = 34;
const PAYLOAD: usize = 31;

/// A checksum. It protects nothing, but shows that a packet was altered.
fn sum(text: &[u8]) -> [u8; 2] {
    text.iter().fold(7_u16, |sum, &byte| sum.rotate_left(3) ^ u16::from(byte)).to_be_bytes()
}

struct Sealer;

impl Seal for Sealer {
    const SLOT: Slot = Slot { size: PACKET, head: 0, tail: PACKET - PAYLOAD };

    fn data(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, Exhausted> {
        slot[payload..PAYLOAD].fill(0);
        slot[PAYLOAD] = u8::try_from(payload).expect("the payload fits into a packet");
        let sum = sum(&slot[..=PAYLOAD]);
        slot[PAYLOAD + 1..PACKET].copy_from_slice(&sum);
        Ok(PACKET)
    }

    fn end(self, _slot: &mut [u8]) -> Result<Ending, Exhausted> {
        Ok(Ending::HalfClose)
    }

    fn abort(self, _reason: AbortReason, _slot: &mut [u8]) -> Result<Option<usize>, Exhausted> {
        Ok(None)
    }
}

struct Opener;

impl Open for Opener {
    const FRAME_MAX: usize = PACKET;
    const END_OF_STREAM: EndOfStream = EndOfStream::End;

    fn next_length(_unread: &[u8]) -> Result<Option<usize>, FrameError> {
        Ok(Some(PACKET))
    }

    fn open(&mut self, frame: &mut [u8]) -> Result<Received, FrameError> {
        let payload = usize::from(frame[PAYLOAD]);
        if payload > PAYLOAD || sum(&frame[..=PAYLOAD]) != frame[PAYLOAD + 1..] {
            return Err(FrameError::Forged);
        }
        Ok(Received::Data(0..payload))
    }
}

async fn run(
    local: (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>),
    wire: DuplexStream,
) -> Result<(), PumpError> {
    let (mut seal, mut open) = (SealPump::new(Sealer), OpenPump::new(Opener, Inbox::new()));
    pump::run(&mut seal, &mut open, local, split(wire), pump::unwatched).await
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i % 251).expect("a value below 251")).collect()
}

fn packets(text: &[u8]) -> Vec<u8> {
    let seal = |payload: &[u8]| {
        let mut slot = [0; PACKET];
        slot[..payload.len()].copy_from_slice(payload);
        Sealer.data(&mut slot, payload.len()).expect("this sealer has no limit");
        slot
    };
    text.chunks(PAYLOAD).flat_map(seal).collect()
}

/// Runs a pump on a wire that delivers `wire` and then ends. The other direction has already ended. Returns the bytes
/// that the local side received, and the result of the pump.
async fn receive(wire: &[u8]) -> (Vec<u8>, Result<(), PumpError>) {
    let (mut service, local) = duplex(1 << 16);
    service.shutdown().await.expect("the socket is open");
    let (mut far, near) = duplex(1 << 16);
    far.write_all(wire).await.expect("the buffer has room");
    far.shutdown().await.expect("the socket is open");
    let result = run(split(local), near).await;
    let mut got = Vec::new();
    service.read_to_end(&mut got).await.expect("the stream can be read");
    (got, result)
}

#[tokio::test]
async fn bytes_cross_in_both_directions_at_once_in_pieces_of_any_size() {
    for (capacity, length) in [(1, 500), (8, 5_000), (PACKET, 20_000), (1 << 20, 1_500_000)] {
        let (client, near_local) = duplex(capacity);
        let (near_wire, far_wire) = duplex(capacity);
        let (far_local, service) = duplex(capacity);
        let (question, answer) = (bytes(length), bytes(length + 7));
        let exchange = async |stream: DuplexStream, bytes: &[u8]| {
            let (mut reader, mut writer) = split(stream);
            let mut got = Vec::new();
            let write = async {
                writer.write_all(bytes).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(reader.read_to_end(&mut got), write);
            read.unwrap();
            got
        };
        let (near, far, at_client, at_service) = tokio::join!(
            run(split(near_local), near_wire),
            run(split(far_local), far_wire),
            exchange(client, &question),
            exchange(service, &answer)
        );
        assert!(near.is_ok() && far.is_ok(), "{capacity}: {near:?} {far:?}");
        assert!(at_service == question && at_client == answer, "{capacity}");
    }
}

#[tokio::test]
async fn a_half_closed_client_still_receives_a_late_answer() {
    let (mut client, near_local) = duplex(8);
    let (near_wire, far_wire) = duplex(8);
    let (far_local, mut service) = duplex(8);
    let talk = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let serve = async {
        let mut question = Vec::new();
        service.read_to_end(&mut question).await.unwrap();
        // The answer begins only after the client's end of stream.
        service.write_all(&bytes(1000)).await.unwrap();
        service.shutdown().await.unwrap();
        question
    };
    let (near, far, answer, question) =
        tokio::join!(run(split(near_local), near_wire), run(split(far_local), far_wire), talk, serve);
    assert!(near.is_ok() && far.is_ok(), "{near:?} {far:?}");
    assert_eq!(question, b"question");
    assert_eq!(answer, bytes(1000));
}

#[tokio::test]
async fn an_end_between_packets_is_clean_and_an_end_inside_a_packet_is_a_truncation() {
    let text = bytes(3 * PAYLOAD);
    let wire = packets(&text);
    for cut in 0..=wire.len() {
        let (got, result) = receive(&wire[..cut]).await;
        if cut % PACKET == 0 {
            assert!(result.is_ok(), "after {cut} bytes: {result:?}");
        } else {
            assert!(matches!(result, Err(PumpError::Truncated)), "after {cut} bytes: {result:?}");
        }
        assert_eq!(got, text[..cut / PACKET * PAYLOAD], "after {cut} bytes");
    }
}

#[tokio::test]
async fn an_altered_packet_is_refused_and_no_later_packet_is_opened() {
    let mut wire = packets(&bytes(2 * PAYLOAD));
    wire[PACKET - 1] ^= 1;
    let (got, result) = receive(&wire).await;
    assert!(matches!(result, Err(PumpError::Frame(FrameError::Forged))), "{result:?}");
    assert_eq!(got, b"");
}

#[tokio::test]
async fn an_abort_writes_the_sealed_packets_and_requires_a_reset() {
    let (mut client, local) = duplex(1 << 10);
    let (wire, mut far) = duplex(8);
    client.write_all(b"last words").await.unwrap();
    let mut seal = SealPump::new(Sealer);
    let (mut reader, _writer) = split(local);
    std::future::poll_fn(|context| seal.poll_fill(context, &mut reader)).await.unwrap();
    let (_wire_reader, mut wire_writer) = split(wire);
    let mut got = [0; PACKET];
    let (told, read) =
        tokio::join!(seal.abort(AbortReason::Reset, &mut wire_writer), far.read_exact(&mut got));
    read.unwrap();
    assert_eq!(told.unwrap(), Told::Impossible, "the caller must reset the wire");
    assert_eq!(&got[..10], b"last words");
    // The wire is not half-closed: a half-close would be an end.
    let pending = std::future::poll_fn(|context| {
        let mut room = [0; 1];
        let mut buffer = tokio::io::ReadBuf::new(&mut room);
        let read = tokio::io::AsyncRead::poll_read(std::pin::Pin::new(&mut far), context, &mut buffer);
        Poll::Ready(read.is_pending())
    });
    assert!(pending.await);
}
