//! Many at once: clients that all come back after an outage, strangers that connect without end, and key holders beyond the
//! limit. Every key holder is served.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use spipe::proto::cipher::{Cipher, Ciphers};
use spipe::proto::connection_info::ConnectionInfo;
use spipe::proto::features::Features;
use spipe::proto::handshake::Label;
use spipe::stream::Stream;
use spipe::tunnel::{Reuse, Terms, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UnixStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::pipe::{End, Key, Pipe};
use crate::support::relay::{Plan, Relay, Rule};
use crate::support::socket::{assert_echoes, echo};
use crate::support::{DEADLINE, poll_until};

/// Makes room for thousands of sockets in this process.
fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
}

/// For the clients and the target of a test, on one thread: the processors belong to spipe.
fn runtime() -> Runtime {
    allow_many_descriptors();
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the runtime starts")
}

fn listener() -> (TcpListener, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("descriptors are left");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port is free");
    let listener = socket.listen(4096).expect("the socket is bound");
    let address = listener.local_addr().expect("the socket is bound");
    (listener, address)
}

/// Echoes for ever. Must be spawned; dropping its task ends all its connections.
async fn echo_all(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let (mut stream, _) = listener.accept().await.expect("descriptors are left");
        connections.spawn(async move {
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// One client: sends a byte, awaits it back, and stays for a moment, as a client of a pool would.
async fn ask(address: SocketAddr) -> io::Result<()> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"x").await?;
    stream.read_exact(&mut [0]).await?;
    sleep(Duration::from_millis(200)).await;
    Ok(())
}

/// Has `count` clients connect to each of `addresses` at once, and asserts that all are served.
async fn assert_all_are_served(addresses: &[SocketAddr], count: usize) {
    let mut clients = JoinSet::new();
    for &address in addresses {
        for _ in 0..count {
            clients.spawn(ask(address));
        }
    }
    let mut outcomes = BTreeMap::<String, usize>::new();
    while let Some(outcome) = clients.join_next().await {
        let outcome = outcome.expect("a client does not panic").map_err(|error| error.to_string());
        *outcomes.entry(outcome.map_or_else(|error| error, |()| "served".to_owned())).or_default() += 1;
    }
    assert_eq!(outcomes, BTreeMap::from([("served".to_owned(), addresses.len() * count)]));
}

#[test]
fn five_thousand_clients_that_come_back_at_once_are_all_served() {
    let runtime = runtime();
    runtime.block_on(async {
        let (listener, target) = listener();
        tokio::spawn(echo_all(listener));
        let pipe = Pipe::to(target).args(&["-n", "2000"]).start();
        assert_all_are_served(&[pipe.initiator.address()], 5_000).await;
    });
}

#[test]
fn six_hundred_clients_of_six_initiators_that_come_back_at_once_are_all_served() {
    let runtime = runtime();
    runtime.block_on(async {
        let (listener, target) = listener();
        tokio::spawn(echo_all(listener));
        let key = Key::new();
        // The limits are the default, 100 each.
        let responder = End::responder(&key, target).start();
        let initiators: Vec<_> = (0..6).map(|_| End::initiator(&key, responder.address()).start()).collect();
        let addresses: Vec<_> = initiators.iter().map(End::address).collect();
        assert_all_are_served(&addresses, 100).await;
    });
}

#[test]
fn with_few_descriptors_clients_wait_and_none_is_reset() {
    let runtime = runtime();
    runtime.block_on(async {
        let (listener, target) = listener();
        tokio::spawn(echo_all(listener));
        let key = Key::new();
        let responder = End::responder(&key, target).descriptors(64).args(&["-o", "60"]).start();
        let initiator = End::initiator(&key, responder.address()).descriptors(64).args(&["-o", "60"]).start();
        for end in [&responder, &initiator] {
            end.await_line(&[
                "WARN -n asks for more connections than there may be open files for",
                "wanted=100",
            ]);
        }
        assert_all_are_served(&[initiator.address()], 300).await;
    });
}

#[test]
fn a_limit_that_fits_is_no_warning() {
    let responder = End::responder(&Key::new(), "127.0.0.1:9").descriptors(1024).start();
    assert!(!responder.process.log().contains("-n asks"), "{}", responder.process.log());
}

/// Strangers that connect and say nothing, from some sources in turn, so many a second in all.
struct Flood {
    stop: Arc<AtomicBool>,
    connected: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// How many a flood holds open at a time: many more than there are places for.
    const OPEN: usize = 4_000;

    fn start(to: SocketAddr, sources: Vec<Ipv4Addr>, rate: u32) -> Self {
        allow_many_descriptors();
        let (stop, connected) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        // One thread, which is enough for a connection each 20 µs, leaves a processor to spipe.
        let thread = thread::spawn({
            let (stop, connected) = (Arc::clone(&stop), Arc::clone(&connected));
            move || {
                let (mut open, start) = (VecDeque::new(), Instant::now());
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Ok(socket) = silent(to, sources[number as usize % sources.len()]) {
                        open.push_back(socket);
                        connected.fetch_add(1, Ordering::Relaxed);
                    }
                    if open.len() > Self::OPEN {
                        open.pop_front();
                    }
                    let due = start + Duration::from_secs(1) * number / rate;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            }
        });
        Self { stop, connected, thread: Some(thread) }
    }

    /// Waits until it is in full swing.
    fn await_connections(&self, count: usize) {
        poll_until("strangers connect", || (self.connected.load(Ordering::Relaxed) >= count).then_some(()));
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A connection on which nothing is ever sent. Its end is a reset, which leaves nothing behind in the kernel.
fn silent(to: SocketAddr, from: Ipv4Addr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(115) => Err(error),
        _ => Ok(socket),
    }
}

/// Asserts that a client at a round trip of 200 ms gets in 20 of 20 times while strangers flood a responder with so many
/// descriptors: so few that all its places for silent connections are taken anew before the client's first message comes.
fn assert_gets_in(descriptors: u32, sources: Vec<Ipv4Addr>, rate: u32) {
    let (key, far) = (Key::new(), Rule::Delay(Duration::from_millis(100)));
    let responder = End::responder(&key, echo()).descriptors(descriptors).start();
    let relay = Relay::start_every(responder.address(), Plan { forth: far, back: far });
    let initiator = End::initiator(&key, relay.address()).start();
    let flood = Flood::start(responder.address(), sources, rate);
    flood.await_connections(Flood::OPEN);
    let start = (Instant::now(), flood.connected.load(Ordering::Relaxed));
    for round in 0..20 {
        assert_echoes(&mut initiator.connect(), &format!("round {round}"));
    }
    let strangers = flood.connected.load(Ordering::Relaxed) - start.1;
    println!("{strangers} strangers in {:?}", start.0.elapsed());
}

#[test]
fn a_key_holder_gets_in_while_one_source_floods_the_responder() {
    // 250 places: 13 ms of the flood.
    assert_gets_in(1024, vec![Ipv4Addr::new(127, 7, 7, 7)], 20_000);
}

#[test]
fn a_key_holder_gets_in_while_sources_of_many_networks_flood_the_responder() {
    // 406 places: more than there are networks, and 81 ms of the flood.
    assert_gets_in(1650, (1..=250).map(|network| Ipv4Addr::new(127, 7, network, 7)).collect(), 5_000);
}

/// A peer that holds the key and stays, whether it is served or not, until this is dropped.
struct Holder(Tunnel);

impl Holder {
    /// Proves the key. Nothing says so: to the responder, the key is proved by what comes after message 2.
    async fn connect(to: SocketAddr, key: Arc<spipe::proto::key::Key>) -> Self {
        let wire = Stream::Tcp(tokio::net::TcpStream::connect(to).await.expect("the responder listens"));
        let terms =
            Terms { label: Label::default(), ciphers: Ciphers::only(Cipher::Aes256Gcm), reuse: Reuse::Off };
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let mut tunnel =
            Tunnel::initiate(wire, &key, &terms, Features::NONE, &ConnectionInfo::default(), deadline).await;
        if let Ok(Tunnel { wire, seal, .. }) = &mut tunnel {
            let (mut client, _far) = UnixStream::pair()
                .map(|(near, far)| (Stream::Unix(near), far))
                .expect("descriptors are left");
            // Open is sealed already, and is written when the client has said nothing.
            let (mut client, mut wire) = (client.split().0, wire.split().1);
            let _for_ever =
                timeout(Duration::ZERO, poll_fn(|context| seal.poll(context, &mut client, &mut wire))).await;
        }
        Self(tunnel.expect("the key is right"))
    }

    /// Waits for a byte of its target.
    async fn await_byte(self) -> Self {
        let Stream::Tcp(wire) = &self.0.wire else { unreachable!("it has connected over TCP") };
        wire.peek(&mut [0]).await.expect("the responder runs");
        self
    }
}

#[test]
fn ten_places_and_three_thousand_key_holders_take_little_memory_and_few_connections_to_the_target() {
    runtime().block_on(async {
        let (target, key) = (listener(), Key::new());
        let responder = End::responder(&key, target.1).args(&["-n", "10", "-o", "600"]).start();
        let bytes = std::fs::read(key.path()).expect("the key file is there");
        let shared = Arc::new(spipe::proto::key::Key::from_bytes(&bytes).expect("it is long enough"));
        let mut connecting = JoinSet::new();
        for _ in 0..3_000 {
            connecting.spawn(Holder::connect(responder.address(), Arc::clone(&shared)));
        }
        let mut served = Vec::new();
        for _ in 0..10 {
            served.push(timeout(DEADLINE, target.0.accept()).await.expect("in time").expect("a connection"));
        }
        // Those that are served, and those that wait; the others are in the kernel's queue.
        let mut holders = Vec::new();
        while let Ok(Some(holder)) = timeout(Duration::from_secs(2), connecting.join_next()).await {
            holders.push(holder.expect("it connects"));
        }
        println!("{} have proved the key: {} KiB", holders.len(), responder.process.peak_resident_kib());
        assert!(responder.process.peak_resident_kib() < 64 * 1024);
        let dialed =
            async |target: &TcpListener| timeout(Duration::from_millis(300), target.accept()).await.is_ok();
        assert!(!dialed(&target.0).await, "more are connected on than -n allows");

        // Those that wait are gone, and then those that are served.
        for (stream, _) in &mut served {
            stream.write_all(b"x").await.expect("the responder runs");
        }
        let mut waiting: JoinSet<_> = holders.into_iter().map(Holder::await_byte).collect();
        let mut carried = Vec::new();
        for _ in 0..10 {
            carried.push(waiting.join_next().await.expect("ten are served").expect("it waits"));
        }
        connecting.shutdown().await;
        waiting.shutdown().await;
        responder.await_line(&["refused", "the other side went away"]);
        assert!(!dialed(&target.0).await, "a peer that was gone is connected on");
        drop(carried);
        responder.process.await_lines(10, " closed ");
        drop(served);
        // One that comes later is served, and none of those that went was dialed for.
        let initiator = End::initiator(&key, responder.address()).start();
        let _client = initiator.connect();
        timeout(DEADLINE, target.0.accept()).await.expect("in time").expect("a connection");
        assert!(!dialed(&target.0).await, "a peer that was gone is connected on");
    });
}
