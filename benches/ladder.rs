//! The ladder: what each layer adds to the one below it.
//!
//! ```text
//!  cipher ─▶ frame ─▶ pump over memory ─▶ whole pipe over loopback     (and the handshake, by itself)
//! ```
//!
//! The last two rungs have a twin without a cipher: the same pumps with frames that are only copied past. The difference
//! between the twins is what the cipher costs; what the twin costs is what moving bytes costs.
//!
//! `cargo bench --bench ladder`, or with the name of a rung behind it.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aegis::aegis256x4::Aegis256X4;
use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use spipe::addr::Endpoint;
use spipe::listen::Passed;
use spipe::pipe::{self, Pipes, Spec, Specs};
use spipe::proto::cipher::{AesSupport, Cipher, Ciphers};
use spipe::proto::connection_info::ConnectionInfo;
use spipe::proto::frame::{
    AbortReason, Exhausted, FRAME_MAX, FrameError, HEADER, OVERHEAD, Opener, PAYLOAD_MAX, Sealer,
};
use spipe::proto::framing::{EndOfStream, Ending, Open, Received, Seal, Slot};
use spipe::proto::handshake::{Initiator, InitiatorRandomness, Label, Responder, ResponderRandomness};
use spipe::proto::key::Key;
use spipe::pump::{self, Inbox, OpenPump, SealPump};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use vec1::vec1;

/// What one measured run carries.
const BULK: usize = 64 << 20;
/// Bytes of a text: a small message, a quarter of a frame, and a full one.
const SIZES: [usize; 3] = [64, 16 << 10, PAYLOAD_MAX];
const CIPHERS: [Cipher; 3] = [Cipher::Aegis256X4, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];

fn key() -> Key {
    Key::from_bytes(&[1; 32]).expect("32 bytes are a key")
}

/// A handshake between two values in memory, and the ends past *Open*.
fn establish(cipher: Cipher) -> ((Sealer, Opener), (Sealer, Opener)) {
    let (label, ciphers) = (Label::default(), Ciphers::only(cipher));
    let (initiator, message_1) =
        Initiator::start(&key(), &label, ciphers, &InitiatorRandomness { x25519: [2; 32], kem: [3; 64] });
    let responder = Responder::read(&message_1, &[key()], &label).expect("the keys agree");
    let (message_2, far) = responder.reply(ciphers, &ResponderRandomness { x25519: [4; 32], kem: [5; 32] });
    let far = far.expect("the ciphers agree");
    let near = initiator.finish(&message_2).expect("the keys agree");
    let mut frame = vec![0; FRAME_MAX];
    let (sealer, length) = near.sealer.open(&ConnectionInfo::default(), &mut frame);
    let (opener, _) = far.opener.open(&mut frame[..length]).expect("it is the first frame");
    ((sealer, near.opener), (far.sealer, opener))
}

/// Rung 1: the bare cipher, in place.
fn cipher(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cipher");
    for size in SIZES {
        let mut text = vec![0; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("aegis256x4/{size}"), |bencher| {
            bencher.iter(|| {
                Aegis256X4::<16>::new(&[7; 32], &[0; 32]).encrypt_in_place(black_box(&mut text), &[])
            });
        });
    }
    for (name, algorithm) in
        [("aes256gcm", &aead::AES_256_GCM), ("chacha20poly1305", &aead::CHACHA20_POLY1305)]
    {
        for size in SIZES {
            let key = LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32]).expect("32 bytes"));
            let mut text = vec![0; size];
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(format!("{name}/{size}"), |bencher| {
                bencher.iter(|| {
                    let nonce = Nonce::assume_unique_for_key([0; 12]);
                    key.seal_in_place_separate_tag(nonce, Aad::empty(), black_box(&mut text))
                });
            });
        }
    }
}

/// Rung 2: a frame, sealed and opened again.
fn frame(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    for cipher in CIPHERS {
        for size in SIZES {
            let ((mut sealer, _), (_, mut opener)) = establish(cipher);
            let mut slot = vec![0; FRAME_MAX];
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(format!("{cipher}/{size}"), |bencher| {
                bencher.iter(|| {
                    let length = sealer.data(&mut slot, size).expect("nonces are left");
                    opener.open(&mut slot[..length]).expect("it is the next frame")
                });
            });
        }
    }
}

/// Frames of the same shape with nothing sealed: the twin without a cipher.
struct NoCipher;

impl NoCipher {
    fn frame(slot: &mut [u8], payload: usize, kind: u8) -> usize {
        let length = payload + OVERHEAD;
        let header = u16::try_from(length - HEADER).expect("a frame's length fits");
        slot[..HEADER].copy_from_slice(&header.to_be_bytes());
        slot[HEADER + payload] = kind;
        length
    }
}

impl Seal for NoCipher {
    const SLOT: Slot = Sealer::SLOT;
    type Spent = ();

    fn data(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, Exhausted> {
        Ok(Self::frame(slot, payload, 2))
    }

    fn end(self, slot: &mut [u8]) -> Result<(Ending, ()), Exhausted> {
        Ok((Ending::Frame(Self::frame(slot, 0, 3)), ()))
    }

    fn abort(self, _reason: AbortReason, _slot: &mut [u8]) -> Result<Option<usize>, Exhausted> {
        Ok(None)
    }
}

impl Open for NoCipher {
    const FRAME_MAX: usize = FRAME_MAX;
    const END_OF_STREAM: EndOfStream = EndOfStream::Truncation;

    fn next_length(unread: &[u8]) -> Result<Option<usize>, FrameError> {
        Opener::next_length(unread)
    }

    fn open(&mut self, frame: &mut [u8]) -> Result<Received, FrameError> {
        let payload = frame.len() - OVERHEAD;
        Ok(if frame[HEADER + payload] == 3 {
            Received::End
        } else {
            Received::Data(HEADER..HEADER + payload)
        })
    }
}

/// Rung 3: both pumps over memory, [`BULK`] from client to service.
fn pump_over_memory(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("pump");
    group.throughput(Throughput::Bytes(BULK as u64)).sample_size(10);
    group.bench_function("no cipher", |bencher| {
        bencher.to_async(&runtime).iter(|| over_memory((NoCipher, NoCipher), (NoCipher, NoCipher)));
    });
    for cipher in CIPHERS {
        group.bench_function(cipher.to_string(), |bencher| {
            bencher.to_async(&runtime).iter(|| {
                let (near, far) = establish(cipher);
                over_memory(near, far)
            });
        });
    }
}

async fn over_memory<S: Seal, O: Open>(near: (S, O), far: (S, O)) {
    let (client, near_local) = duplex(1 << 20);
    let (near_wire, far_wire) = duplex(1 << 20);
    let (far_local, service) = duplex(1 << 20);
    let run = async |(sealer, opener): (S, O), local, wire| {
        let (mut seal, mut open) = (SealPump::new(sealer), OpenPump::new(opener, Inbox::new()));
        pump::run(&mut seal, &mut open, split(local), split(wire), pump::unwatched)
            .await
            .expect("nothing fails in memory");
    };
    tokio::join!(
        run(near, near_local, near_wire),
        run(far, far_local, far_wire),
        push(client),
        swallow(service)
    );
}

/// Sends [`BULK`] and waits for the other side to have it all.
async fn push(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let chunk = vec![7; 256 << 10];
    for _ in 0..BULK / chunk.len() {
        stream.write_all(&chunk).await.expect("the service reads");
    }
    stream.shutdown().await.expect("the service reads");
    let _ = stream.read(&mut [0]).await;
}

async fn swallow(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let mut buffer = vec![0; 256 << 10];
    while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

/// Rung 4: everything, over loopback TCP.
fn loopback(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let _guard = runtime.enter();
    let service = runtime.block_on(serve(swallow));
    let mut group = criterion.benchmark_group("loopback");
    group.throughput(Throughput::Bytes(BULK as u64)).sample_size(10).measurement_time(Duration::from_secs(8));
    group.bench_function("direct", |bencher| {
        bencher.iter_custom(|times| runtime.block_on(push_often(service, times)));
    });

    let far = runtime.block_on(serve(move |wire| relay(service, wire, Side::Far)));
    let near = runtime.block_on(serve(move |local| relay(far, local, Side::Near)));
    group.bench_function("no cipher", |bencher| {
        bencher.iter_custom(|times| runtime.block_on(push_often(near, times)));
    });

    for cipher in CIPHERS {
        let _entered = runtime.enter();
        let (key, ciphers) = (Arc::new(key()), Ciphers::only(cipher));
        let port = || "127.0.0.1:0".parse().expect("an address");
        let target = |address: SocketAddr| address.to_string().parse().expect("an address");
        let (far, _responder) =
            start(Spec::responder(port(), target(service), vec1![Arc::clone(&key)], ciphers));
        let (near, _initiator) = start(Spec::initiator(port(), target(far), key, ciphers));
        group.bench_function(format!("spipe {cipher}"), |bencher| {
            bencher.iter_custom(|times| runtime.block_on(push_often(near, times)));
        });
    }
}

async fn push_often(address: SocketAddr, times: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..times {
        push(TcpStream::connect(address).await.expect("it listens")).await;
    }
    start.elapsed()
}

/// A listener that does the same with every connection.
async fn serve<F: Future<Output = ()> + Send + 'static>(
    work: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(work(stream));
        }
    });
    address
}

#[derive(Clone, Copy)]
enum Side {
    Near,
    Far,
}

/// One end of the twin without a cipher: the product's pumps between two sockets.
async fn relay(next: SocketAddr, accepted: TcpStream, side: Side) {
    let dialed = TcpStream::connect(next).await.expect("it listens");
    let (local, wire) = match side {
        Side::Near => (accepted, dialed),
        Side::Far => (dialed, accepted),
    };
    let (mut local, mut wire) = (spipe::stream::Stream::Tcp(local), spipe::stream::Stream::Tcp(wire));
    let (mut seal, mut open) = (SealPump::new(NoCipher), OpenPump::new(NoCipher, Inbox::new()));
    pump::run(&mut seal, &mut open, local.split(), wire.split(), pump::unwatched)
        .await
        .expect("nothing fails on loopback");
}

fn start(spec: Spec) -> (SocketAddr, Pipes) {
    let specs = Specs::new(vec![spec]).expect("its target is elsewhere");
    let listening = pipe::listen(specs, &mut Passed::default()).expect("a port");
    let Some(&Endpoint::Ip(address)) = listening.places().next() else {
        unreachable!("it is an IP address");
    };
    (address, listening.register().expect("a runtime is here").start(Arc::default()))
}

/// Beside the ladder: what a connection costs before its first byte.
fn handshake(criterion: &mut Criterion) {
    criterion.bench_function("handshake, both ends", |bencher| bencher.iter(|| establish(Cipher::Aes256Gcm)));
}

/// What a responder with 100 keys does with a message 1 before it knows whose it is.
fn key_search(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("key search, 100 keys");
    let keys: Vec<_> =
        (0..100).map(|byte| Key::from_bytes(&[byte; 40]).expect("40 bytes are a key")).collect();
    let (label, stranger) = (Label::default(), key());
    for (name, key) in [("none fits", &stranger), ("the first fits", &keys[0]), ("the last fits", &keys[99])]
    {
        let randomness = InitiatorRandomness { x25519: [2; 32], kem: [3; 64] };
        let (_, message) = Initiator::start(key, &label, Ciphers::auto(AesSupport::GcmAndAegis), &randomness);
        group.bench_function(name, |bencher| {
            bencher.iter(|| Responder::read(black_box(&message), &keys, &label).is_ok());
        });
    }
}

criterion_group!(ladder, cipher, frame, pump_over_memory, loopback, handshake, key_search);
criterion_main!(ladder);
