//! spiped's protocol through the same pumps. All packets have one size, and no packet opens, ends or aborts a stream: its end is the
//! end of the underlying stream, and its failure is a reset.

use std::task::Poll;

use spipe::proto::frame::{AbortReason, FrameError};
use spipe::proto::framing::{Open, Received, Seal};
use spipe::proto::spiped::group::Half;
use spipe::proto::spiped::handshake::{Crossed, End, Established, ForwardSecrecy};
use spipe::proto::spiped::packet::{PACKET, PAYLOAD_MAX as PAYLOAD};
use spipe::pump::{self, Inbox, OpenPump, PumpError, SealPump, Told};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};

use crate::support::key;

/// Both ends after the handshake; always the same.
fn established() -> [Established; 2] {
    let key = key();
    let [initiator, responder] = [(End::Initiator, [1, 2]), (End::Responder, [2, 1])]
        .map(|(end, [our, peers])| Crossed::new(&key, end, &[our; 32], &[peers; 32]));
    let proofs = [&initiator, &responder].map(|end| end.prove(&Half::none()));
    let verify = |end: Crossed<'_>, proof| {
        let verified = end.verify(proof, ForwardSecrecy::Offered).expect("both ends hold the key");
        let shared = Half::none().agree(&verified.theirs());
        verified.finish(&shared)
    };
    [verify(initiator, &proofs[1]), verify(responder, &proofs[0])]
}

async fn run(
    local: (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>),
    wire: DuplexStream,
    Established { sealer, opener }: Established,
) -> Result<(), PumpError> {
    let (mut seal, mut open) = (SealPump::new(sealer), OpenPump::new(opener, Inbox::new()));
    pump::run(&mut seal, &mut open, local, split(wire), pump::unwatched).await
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i % 251).expect("a value below 251")).collect()
}

fn packets(text: &[u8]) -> Vec<u8> {
    let [Established { mut sealer, .. }, _] = established();
    let seal = |payload: &[u8]| {
        let mut slot = [0; PACKET];
        slot[..payload.len()].copy_from_slice(payload);
        sealer.data(&mut slot, payload.len()).expect("numbers are left");
        slot
    };
    text.chunks(PAYLOAD).flat_map(seal).collect()
}

/// Runs a responder's pumps on a wire that delivers `wire` and then ends. The other direction has already ended. Returns the bytes
/// that the local side received, and the result of the pump.
async fn receive(wire: &[u8]) -> (Vec<u8>, Result<(), PumpError>) {
    let (mut service, local) = duplex(1 << 16);
    service.shutdown().await.expect("the socket is open");
    let (mut far, near) = duplex(1 << 16);
    far.write_all(wire).await.expect("the buffer has room");
    far.shutdown().await.expect("the socket is open");
    let [_, responder] = established();
    let result = run(split(local), near, responder).await;
    let mut got = Vec::new();
    service.read_to_end(&mut got).await.expect("the stream can be read");
    (got, result)
}

#[tokio::test]
async fn bytes_cross_in_both_directions_at_once_in_pieces_of_any_size() {
    for (capacity, length) in [(1, 500), (8, 5_000), (PACKET, 200_000), (1 << 20, 1_500_000)] {
        let (client, near_local) = duplex(capacity);
        let (near_wire, far_wire) = duplex(capacity);
        let (far_local, service) = duplex(capacity);
        let (question, answer) = (bytes(length), bytes(length + 7));
        let [initiator, responder] = established();
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
            run(split(near_local), near_wire, initiator),
            run(split(far_local), far_wire, responder),
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
    let [initiator, responder] = established();
    let (near, far, answer, question) = tokio::join!(
        run(split(near_local), near_wire, initiator),
        run(split(far_local), far_wire, responder),
        talk,
        serve
    );
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
    let [Established { sealer, .. }, _] = established();
    let mut seal = SealPump::new(sealer);
    let (mut reader, _writer) = split(local);
    std::future::poll_fn(|context| seal.poll_fill(context, &mut reader)).await.unwrap();
    let (_wire_reader, mut wire_writer) = split(wire);
    let mut got = [0; PACKET];
    let (told, read) =
        tokio::join!(seal.abort(AbortReason::Reset, &mut wire_writer), far.read_exact(&mut got));
    read.unwrap();
    assert_eq!(told.unwrap(), Told::Impossible, "the caller must reset the wire");
    let [_, Established { mut opener, .. }] = established();
    assert_eq!(opener.open(&mut got), Ok(Received::Data(0..10)));
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
