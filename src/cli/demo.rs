//! `spipe demo`: a whole pipe in one process, with a wiretap in the middle.
//!
//! ```text
//!  client ──▶ spipe -e ══▶ wiretap ══▶ spipe -d ──▶ service
//! ```

use std::fmt::Write as _;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::TryRng;
use rand::rngs::SysRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use vec1::Vec1;
use zeroize::Zeroizing;

use super::progress::Progress;
use crate::addr::{Endpoint, Source, Target};
use crate::listen::Passed;
use crate::pipe::{self, Pipes, Spec, Specs};
use crate::proto::cipher::Ciphers;
use crate::proto::handshake::MESSAGE_1;
use crate::proto::key::Key;
use crate::service::process::aes_support;
use crate::service::runtime::{self, Threads};

/// What the demo's client tells the built-in echo service.
const SECRET: &[u8] = b"The password is: correct horse battery staple\n";
/// What it asks a real service: Redis answers this with +PONG, and most others with an error, which serves as well.
const QUESTION: &[u8] = b"PING\r\n";

/// Steps that one has to wait for.
const STEPS: usize = 4;
/// No step should take anywhere near this long on one machine.
const STEP: Duration = Duration::from_secs(5);
/// How long a service may take to speak first, as SSH and SMTP do.
const GREETING: Duration = Duration::from_millis(300);
/// Round trips to take the median of.
const ROUND_TRIPS: usize = 1000;
/// How long to push bytes for the throughput.
const PUSH: Duration = Duration::from_secs(1);

/// Bytes a row of the two dumps, so that both fit side by side in 80 columns.
const ROW: usize = 8;
/// Rows to show.
const ROWS: usize = 8;

/// Runs the demonstration, with the built-in echo service or with a real one.
///
/// Errors are texts: they are for the person at the terminal.
pub(super) fn run(service: Option<Target>) -> Result<(), String> {
    let runtime = runtime::build(Threads::PerProcessor(None)).map_err(text)?;
    let shown = runtime.block_on(show(service));
    runtime.shutdown_background();
    shown
}

async fn show(service: Option<Target>) -> Result<(), String> {
    let mut bytes = Zeroizing::new([0; 32]);
    SysRng.try_fill_bytes(&mut *bytes).map_err(text)?;
    let key = Arc::new(Key::from_bytes(&*bytes).map_err(text)?);
    let echo = start_echo().await.map_err(text)?;
    let target = service.clone().unwrap_or_else(|| parse(echo));

    let (responder, _responding) = start_responder(target.clone(), &key)?;
    let (tap, recording) = start_wiretap(responder).await.map_err(text)?;
    let (initiator, _initiating) = start_initiator(parse(tap), &key)?;

    let fingerprint = key.fingerprint();
    let name = if service.is_some() { "your service" } else { "an echo service" };
    print(&format!(
        "\nA pipe in one process, with a throw-away key (fingerprint {fingerprint}):\n\n  \
         client ──plain──▶ spipe -e ══sealed══▶ spipe -d ──plain──▶ {name}\n\n  \
         spipe -e -s {initiator} -t {tap} -k …\n  \
         (a wiretap from {tap} to {responder})\n  \
         spipe -d -s {responder} -t {target} -k …\n\n"
    ))?;

    let conversation = converse(initiator, service.is_some()).await?;
    let wire = recording.lock().unwrap_or_else(PoisonError::into_inner).clone();
    print(&side_by_side(&conversation, wire.get(MESSAGE_1..).unwrap_or_default()))?;
    for part in [&conversation.sent, &conversation.received] {
        if !part.is_empty() && wire.windows(part.len()).any(|window| window == part.as_slice()) {
            return Err("plain text was seen on the wire; do not use this build, and report it".into());
        }
    }
    print(&format!(
        "  The wire carried {} bytes from client to service, handshake included; the plain text was not among them.\n\n",
        wire.len()
    ))?;

    // Without the wiretap, and always against the echo service, so that no real service is loaded.
    let (responder, _responding) = start_responder(parse(echo), &key)?;
    let (initiator, _initiating) = start_initiator(parse(responder), &key)?;
    let direct = step(2, "a direct round trip", round_trip(echo)).await?;
    let piped = step(3, "a round trip", round_trip(initiator)).await?;
    let throughput = step(4, "the throughput", throughput(initiator)).await?;
    print(&format!(
        "  Round trip of 64 bytes, median of {ROUND_TRIPS}: {:.0} µs through the pipe, {:.0} µs without.\n  \
         Throughput through the pipe: {throughput:.0} MB/s each way at the same time, client and service included.\n\n\
         Now for real. Make a key, and copy it to the other host over a channel you trust:\n    \
         spipe keygen redis.key\n\
         On the server's host, with Redis on its port 6379:\n    \
         spipe -d -s '[0.0.0.0]:6380' -t '[127.0.0.1]:6379' -k redis.key\n\
         On the client's host, and then redis-cli -p 8000:\n    \
         spipe -e -s '[127.0.0.1]:8000' -t '[server]:6380' -k redis.key\n",
        piped.as_secs_f64() * 1e6,
        direct.as_secs_f64() * 1e6,
    ))
}

/// A responder on a port of its own.
fn start_responder(target: Target, key: &Arc<Key>) -> Result<(SocketAddr, Pipes), String> {
    start(Spec::responder(any_port()?, target, Vec1::new(Arc::clone(key)), ciphers()))
}

/// An initiator on a port of its own.
fn start_initiator(target: Target, key: &Arc<Key>) -> Result<(SocketAddr, Pipes), String> {
    start(Spec::initiator(any_port()?, target, Arc::clone(key), ciphers()))
}

fn any_port() -> Result<Source, String> {
    "127.0.0.1:0".parse().map_err(text)
}

fn ciphers() -> Ciphers {
    Ciphers::auto(aes_support())
}

fn start(spec: Spec) -> Result<(SocketAddr, Pipes), String> {
    let specs = Specs::new(vec![spec]).map_err(text)?;
    let listening = pipe::listen(specs, &mut Passed::default()).map_err(text)?;
    let Some(&Endpoint::Ip(address)) = listening.places().next() else {
        return Err("cannot listen on 127.0.0.1".into());
    };
    Ok((address, listening.register().map_err(text)?.start(Arc::default())))
}

async fn start_echo() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let (mut reader, mut writer) = stream.split();
                let mut buffer = vec![0; 256 * 1024];
                while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                    if writer.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// Passes bytes on to `responder`, and keeps those that the initiator sends.
async fn start_wiretap(responder: SocketAddr) -> io::Result<(SocketAddr, Arc<Mutex<Vec<u8>>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let recording = Arc::new(Mutex::new(Vec::new()));
    let recorder = Arc::clone(&recording);
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await?;
        let mut far = TcpStream::connect(responder).await?;
        let ((mut near_reader, mut near_writer), (mut far_reader, mut far_writer)) =
            (near.split(), far.split());
        let forth = async {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = near_reader.read(&mut buffer).await?;
                recorder.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..count]);
                if count == 0 {
                    return far_writer.shutdown().await;
                }
                far_writer.write_all(&buffer[..count]).await?;
            }
        };
        let back = tokio::io::copy(&mut far_reader, &mut near_writer);
        tokio::try_join!(forth, back).map(|_| ())
    });
    Ok((address, recording))
}

struct Conversation {
    sent: Vec<u8>,
    received: Vec<u8>,
}

/// Says something to the service through the pipe, and listens.
async fn converse(through: SocketAddr, real: bool) -> Result<Conversation, String> {
    let mut client = TcpStream::connect(through).await.map_err(unreachable)?;
    let mut received = vec![0; 4096];
    let mut sent = Vec::new();
    let mut count = 0;
    if real && let Ok(greeting) = tokio::time::timeout(GREETING, client.read(&mut received)).await {
        count = greeting.map_err(unreachable)?;
    }
    if count == 0 {
        sent = if real { QUESTION } else { SECRET }.to_vec();
        client.write_all(&sent).await.map_err(unreachable)?;
        let answer = async { client.read(&mut received).await.map_err(unreachable) };
        count = step(1, "an answer", answer).await?;
    }
    if count == 0 {
        return Err("the service closed the connection without a word".into());
    }
    received.truncate(count);
    if !real && received != sent {
        return Err("what came back is not what was sent".into());
    }
    Ok(Conversation { sent, received })
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn unreachable(error: io::Error) -> String {
    format!("the service did not answer through the pipe ({error}); is it running?")
}

/// Median of [`ROUND_TRIPS`] exchanges of 64 bytes.
async fn round_trip(address: SocketAddr) -> io::Result<Duration> {
    let mut client = TcpStream::connect(address).await?;
    client.set_nodelay(true)?;
    let mut buffer = [7; 64];
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        client.write_all(&buffer).await?;
        client.read_exact(&mut buffer).await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[ROUND_TRIPS / 2])
}

/// MB/s that come back from the echo service while as much goes to it.
async fn throughput(address: SocketAddr) -> io::Result<f64> {
    let (mut reader, mut writer) = TcpStream::connect(address).await?.into_split();
    let start = Instant::now();
    let push = async {
        let chunk = vec![7; 256 * 1024];
        while start.elapsed() < PUSH {
            writer.write_all(&chunk).await?;
        }
        writer.shutdown().await
    };
    let pull = async {
        let mut buffer = vec![0; 256 * 1024];
        let mut total = 0;
        loop {
            match reader.read(&mut buffer).await? {
                0 => return Ok(total),
                count => total += count,
            }
        }
    };
    let ((), total) = tokio::try_join!(push, pull)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    Ok(total as f64 / start.elapsed().as_secs_f64() / 1e6)
}

async fn step<T, E: ToString>(
    number: usize,
    what: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    let mut progress = Progress::new();
    progress.show(&format!("{number} of {STEPS}: waiting for {what}"));
    match tokio::time::timeout(STEP, work).await {
        Ok(done) => done.map_err(|error| format!("{what}: {}", error.to_string())),
        Err(_) => Err(format!("{what} took longer than {} s", STEP.as_secs())),
    }
}

/// The two views of the same conversation.
fn side_by_side(conversation: &Conversation, wire: &[u8]) -> String {
    let mut page = format!("  {:36}  {}\n", "The client sees", "The wire carries (handshake left out)");
    let plain = [("sent", &conversation.sent), ("received", &conversation.received)];
    let mut left: Vec<String> = Vec::new();
    for (heading, bytes) in plain {
        if !bytes.is_empty() {
            left.push(format!("{heading}:"));
            left.extend(bytes.chunks(ROW).take(ROWS / 2).map(dump));
        }
    }
    let right: Vec<String> = wire.chunks(ROW).take(ROWS + 2).map(dump).collect();
    for row in 0..left.len().max(right.len()) {
        let cell = |column: &[String]| column.get(row).cloned().unwrap_or_default();
        let _ = writeln!(page, "  {:36}  {}", cell(&left), cell(&right));
    }
    page.push('\n');
    page
}

/// `48 65 6c 6c 6f …  Hello…`
fn dump(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let characters: String = bytes
        .iter()
        .map(|&byte| if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '.' })
        .collect();
    format!("{:width$}  {characters}", hex.join(" "), width = ROW * 3 - 1)
}

fn parse(address: SocketAddr) -> Target {
    address.to_string().parse().expect("a socket address is a target")
}

fn print(page: &str) -> Result<(), String> {
    io::stdout()
        .write_all(page.as_bytes())
        .map_err(|error| format!("cannot write to standard output: {error}"))
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn text(error: impl ToString) -> String {
    error.to_string()
}
