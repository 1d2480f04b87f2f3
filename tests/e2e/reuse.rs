//! One connection after another over one tunnel (PROTOCOL.md, section 5.7).

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use spipe::proto::cipher::Cipher;

use crate::support::DEADLINE;
use crate::support::peer::{ABORT, Begun, DATA, END, OPEN, Tunnel};
use crate::support::pipe::{End, Key, Pipe, field};
use crate::support::process::{Process, run};
use crate::support::random::Random;
use crate::support::socket::{
    Service, assert_echoes, assert_ends, assert_reads, assert_reset, connect, echo, reset,
};

/// The features "acknowledgement" and "reuse" (section 4.1).
const REUSE: u8 = 1 | 4;
/// Reasons of *Abort* (section 5.3).
const TARGET_UNREACHABLE: u8 = 2;
const IDLE: u8 = 6;

/// A client that says `words`, hears them again, and ends.
fn visit(address: SocketAddr, words: &str) {
    let mut client = connect(address);
    assert_echoes(&mut client, words);
    client.shutdown(Shutdown::Write).expect("the client is connected");
    assert_ends(&mut client);
}

/// Where the connections of a responder came from that have ended, in the order of their ends.
fn peers(responder: &Process, count: usize) -> Vec<String> {
    let lines = responder.await_lines(count, " closed ");
    lines.iter().map(|line| field(line, "peer").to_owned()).collect()
}

fn pipe(args: &[&str]) -> Pipe {
    Pipe::to(echo()).args(args).start()
}

#[test]
fn the_next_client_goes_over_the_tunnel_of_the_one_before() {
    let pipe = pipe(&[]);
    for words in ["first", "second", "third"] {
        visit(pipe.initiator.address(), words);
    }
    let peers = peers(&pipe.responder.process, 3);
    assert_eq!(HashSet::<_>::from_iter(&peers).len(), 1, "{peers:?}");
}

#[test]
fn each_connection_has_an_id_of_its_own_which_both_ends_log() {
    let pipe = pipe(&[]);
    for _ in 0..2 {
        visit(pipe.initiator.address(), "hello");
    }
    let ids = |end: &End| -> Vec<String> {
        let lines = end.process.await_lines(2, " closed ");
        lines.iter().map(|line| field(line, "id").to_owned()).collect()
    };
    let (at_initiator, at_responder) = (ids(&pipe.initiator), ids(&pipe.responder));
    assert_ne!(at_initiator[0], at_initiator[1]);
    assert_eq!(at_initiator, at_responder);
}

#[test]
fn each_connection_tells_its_own_client_to_the_service() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).responder_args(&["--send-proxy", "v1"]).start();
    for _ in 0..2 {
        let client: TcpStream = pipe.connect();
        let mut served = service.accept();
        let mut header = [0; 16];
        served.read_exact(&mut header).expect("the service is told");
        let mut line = header.to_vec();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            served.read_exact(&mut byte).expect("the header has an end");
            line.extend(byte);
        }
        let port = client.local_addr().expect("the client is connected").port().to_string();
        assert!(String::from_utf8_lossy(&line).contains(&port), "{line:?}");
        client.shutdown(Shutdown::Write).expect("the client is connected");
        served.shutdown(Shutdown::Write).expect("the service is connected");
        pipe.initiator.await_line(&["closed", &port]);
    }
}

#[test]
fn either_end_can_do_without() {
    for (initiator, responder) in [(&["--no-reuse"][..], &[][..]), (&[], &["--no-reuse"])] {
        let pipe = Pipe::to(echo()).initiator_args(initiator).responder_args(responder).start();
        for words in ["first", "second"] {
            visit(pipe.initiator.address(), words);
        }
        let peers = peers(&pipe.responder.process, 2);
        assert_ne!(peers[0], peers[1]);
    }
}

#[test]
fn a_tunnel_whose_connection_was_reset_is_not_used_again() {
    let pipe = pipe(&[]);
    let mut client = pipe.connect();
    assert_echoes(&mut client, "hello");
    reset(client);
    pipe.responder.await_line(&["closed"]);
    visit(pipe.initiator.address(), "hello");
    let peers = peers(&pipe.responder.process, 2);
    assert_ne!(peers[0], peers[1]);
}

#[test]
fn a_crowd_of_clients_finds_the_tunnels_of_the_crowd_before() {
    const CROWD: usize = 64;
    let pipe = pipe(&["-n", "200"]);
    for round in 0..3 {
        let mut clients: Vec<_> = (0..CROWD).map(|_| pipe.connect()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            assert_echoes(client, &format!("client {number} of round {round}"));
        }
        for client in &mut clients {
            client.shutdown(Shutdown::Write).expect("the client is connected");
            assert_ends(client);
        }
        // Each has left its tunnel when its end is logged.
        pipe.initiator.process.await_lines((round + 1) * CROWD, " closed ");
    }
    let peers = peers(&pipe.responder.process, 3 * CROWD);
    assert!(HashSet::<_>::from_iter(&peers).len() < 2 * CROWD, "most of them go over a tunnel that is there");
}

#[test]
fn every_byte_arrives_over_one_tunnel_after_another() {
    let pipe = pipe(&[]);
    for seed in 0..8 {
        let bytes = Random::bytes(seed, 3 << 20);
        let (mut client, sent) = (pipe.connect(), bytes.clone());
        let mut writer = client.try_clone().expect("descriptors are left");
        let writer = thread::spawn(move || {
            writer.write_all(&sent).expect("the pipe takes all bytes");
            writer.shutdown(Shutdown::Write).expect("the client is connected");
        });
        let mut back = Vec::new();
        client.read_to_end(&mut back).expect("the stream is complete");
        assert!(back == bytes);
        writer.join().expect("the client has sent all");
    }
}

#[test]
fn a_client_does_not_notice_that_the_responder_was_killed_before() {
    let key = Key::new();
    let mut responder = End::responder(&key, echo()).start();
    let address = responder.address();
    let initiator = End::initiator(&key, address).start();
    visit(initiator.address(), "before");
    responder.process.signal(Signal::KILL);
    responder.process.wait();
    let _responder = End::responder(&key, echo()).source(address).start();
    visit(initiator.address(), "after");
}

#[test]
fn a_client_does_not_notice_that_the_responder_was_stopped_before() {
    let key = Key::new();
    let mut responder = End::responder(&key, echo()).start();
    let address = responder.address();
    let initiator = End::initiator(&key, address).start();
    visit(initiator.address(), "before");
    responder.process.signal(Signal::TERM);
    assert_eq!(responder.process.wait().code(), Some(0), "an idle tunnel keeps no process");
    let _responder = End::responder(&key, echo()).source(address).start();
    visit(initiator.address(), "after");
}

#[test]
fn a_source_that_makes_connections_too_fast_does_so_over_its_tunnels_too() {
    let pipe = Pipe::to(echo()).responder_args(&["--rate-per-source", "3"]).start();
    let mut refused = 0;
    for _ in 0..8 {
        let mut client = pipe.connect();
        let _fails = client.write_all(b"hello");
        refused += usize::from(client.read(&mut [0; 5]).is_err());
    }
    assert!(refused > 0, "eight connections at once are more than three a second");
    pipe.responder.await_line(&["--rate-per-source"]);
}

/// A responder that the test plays, and an initiator with no other.
struct Played {
    service: Service,
    /// A reload reads it again.
    _key: Key,
    key_file: Vec<u8>,
    initiator: End,
    /// How many tunnels it has made that nobody had asked for.
    spares: Cell<usize>,
}

impl Played {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(args: &[&str]) -> Self {
        let (key, service) = (Key::new(), Service::start());
        let key_file = std::fs::read(key.path()).expect("the key can be read");
        let initiator = End::initiator(&key, service.address()).args(&["--verbose"]).args(args).start();
        Self { service, _key: key, key_file, initiator, spares: Cell::default() }
    }

    /// Takes message 1 of the initiator, which has a new client.
    fn begin(&self) -> Begun {
        let begun = Begun::read(self.service.accept(), &self.key_file);
        assert_eq!(begun.asked & REUSE, REUSE);
        begun
    }

    /// Shakes hands with the initiator, which has a new client, and takes its *Open*.
    fn accept(&self) -> Tunnel {
        grant(self.begin())
    }

    /// Carries one client to its end. The tunnel is idle then.
    fn idle(&self) -> Tunnel {
        let mut tunnel = self.ended();
        tunnel.renew();
        tunnel
    }

    /// The same, with the secrets of that connection.
    fn ended(&self) -> Tunnel {
        let mut client: TcpStream = self.initiator.connect();
        client.write_all(b"question").expect("the pipe accepts the bytes");
        client.shutdown(Shutdown::Write).expect("the client is connected");
        let mut tunnel = self.accept();
        assert_eq!(tunnel.receive(DATA), b"question");
        tunnel.receive(END);
        tunnel.send(DATA, b"answer");
        tunnel.send(END, b"");
        assert_reads(&mut client, "answer");
        assert_ends(&mut client);
        self.initiator.await_line(&["closed"]);
        tunnel
    }

    /// A client that has asked, and comes over an idle tunnel.
    fn ask_over_idle(&self) -> (Tunnel, TcpStream) {
        let mut tunnel = self.idle();
        let client = self.ask();
        tunnel.receive(OPEN);
        (tunnel, client)
    }

    /// A client that has asked already.
    fn ask(&self) -> TcpStream {
        let mut client: TcpStream = self.initiator.connect();
        client.write_all(b"INCR").expect("the pipe accepts the bytes");
        client
    }
}

/// Grants what was asked, takes *Open*, and says that the target stands.
fn grant(begun: Begun) -> Tunnel {
    let mut tunnel = begun.granting(REUSE).reply(Cipher::ChaCha20Poly1305);
    tunnel.receive(OPEN);
    tunnel.send(DATA, b"");
    tunnel
}

#[test]
fn a_tunnel_is_made_in_reserve_for_as_many_clients_as_there_were_at_a_time() {
    let played = Played::start();
    let mut first: TcpStream = played.initiator.connect();
    let mut one = played.accept();
    let second: TcpStream = played.initiator.connect();
    let other = played.accept();
    // One of the two tunnels stays.
    first.shutdown(Shutdown::Write).expect("the client is connected");
    one.receive(END);
    one.send(END, b"");
    assert_ends(&mut first);
    one.renew();
    reset(second);
    other.await_close();
    // Nobody asks for the other one.
    let spare = played.accept_spare();
    be_heard(&mut one);
    thread::sleep(BACK);
    // Whoever comes next needs no handshake.
    let mut clients = [played.ask(), played.ask()];
    let mut tunnels = [one, spare];
    answer_all(&mut tunnels, &mut clients);
}

impl Played {
    /// Takes a tunnel that nobody has asked for.
    fn accept_spare(&self) -> Tunnel {
        let mut spare = self.begin().granting(REUSE).reply(Cipher::ChaCha20Poly1305);
        be_heard(&mut spare);
        self.spares.set(self.spares.get() + 1);
        self.initiator.process.await_lines(self.spares.get(), "a spare tunnel");
        spare
    }
}

/// Longer than an initiator takes to read that it was answered, and less than until it asks again.
const BACK: Duration = Duration::from_millis(500);

/// Answers an initiator that has no client for `tunnel` so far.
fn be_heard(tunnel: &mut Tunnel) {
    assert_eq!(tunnel.receive(OPEN), [7, 0, 0], "the field that says so, and no other");
    tunnel.receive(END);
    tunnel.send(END, b"");
    tunnel.renew();
}

#[test]
fn a_client_that_comes_after_a_quiet_time_takes_one_round_trip_over_a_tunnel_that_is_ready() {
    let played = Played::with(&["--spares", "1"]);
    let (mut ready, start) = (played.accept_spare(), Instant::now());
    while start.elapsed() < QUIET {
        be_heard(&mut ready);
    }
    thread::sleep(BACK);
    let mut client = played.ask();
    ready.receive(OPEN);
    // Not held until the target stands.
    assert_eq!(ready.receive(DATA), b"INCR");
    ready.send(DATA, b"");
    ready.send(DATA, b"1");
    assert_reads(&mut client, "1");
}

#[test]
fn a_tunnel_that_is_ready_and_has_died_is_made_anew_before_a_client_comes() {
    let played = Played::with(&["--spares", "1", "-o", "1"]);
    let mut dead = played.accept_spare();
    dead.receive(OPEN);
    // No answer.
    let mut ready = played.accept_spare();
    dead.await_close();
    let mut client = played.ask();
    ready.receive(OPEN);
    ready.send(DATA, b"");
    answer(ready, &mut client);
}

#[test]
fn a_slow_responder_does_not_keep_new_tunnels_from_being_made() {
    const COUNT: usize = 4;
    /// For those that the client leaves, longer than a tunnel may be quiet: when the last one is heard of, the first one is to be again.
    const SLOW: Duration = Duration::from_secs(3);
    let played = Played::with(&["--spares", &COUNT.to_string(), "-o", "30"]);
    let ready: Vec<_> = (0..COUNT).map(|_| played.accept_spare()).collect();
    let (begun, has_begun) = mpsc::channel();
    for mut tunnel in ready {
        let begun = begun.clone();
        thread::spawn(move || {
            while !tunnel.is_at_end() && tunnel.receive(OPEN) == [7, 0, 0] {
                let _first_only = begun.send(());
                tunnel.receive(END);
                thread::sleep(SLOW);
                tunnel.send(END, b"");
                tunnel.renew();
            }
            // A client has it.
            tunnel.await_close();
        });
    }
    has_begun.recv_timeout(DEADLINE).expect("the initiator wants to hear of the responder");
    let _client = played.ask();
    let _next = played.accept_spare();
}

#[test]
fn the_log_tells_of_a_responder_that_has_come_to_keep_no_tunnels() {
    let played = Played::with(&["--spares", "1"]);
    let mut ready = played.accept_spare();
    ready.vanish();
    // A client finds that out.
    let mut client = played.ask();
    let mut tunnel = played.begin().granting(0).reply(Cipher::ChaCha20Poly1305);
    tunnel.receive(OPEN);
    answer(tunnel, &mut client);
    played.initiator.await_line(&["WARN", "no spare tunnels", "--no-reuse"]);
}

#[test]
fn tunnels_can_be_ready_before_the_first_client_comes() {
    let played = Played::with(&["--spares", "2"]);
    let mut ready = [played.accept_spare(), played.accept_spare()];
    let mut clients = [played.ask(), played.ask()];
    answer_all(&mut ready, &mut clients);
}

#[test]
fn tunnels_that_were_taken_are_made_anew() {
    let played = Played::with(&["--spares", "1"]);
    let mut ready = played.accept_spare();
    let _client = played.ask();
    ready.receive(OPEN);
    let _next = played.accept_spare();
}

#[test]
fn a_responder_that_keeps_no_tunnels_is_asked_for_one_once() {
    let played = Played::with(&["--spares", "3"]);
    played.begin().granting(0).reply(Cipher::ChaCha20Poly1305).await_close();
    played.initiator.await_line(&["WARN", "no spare tunnels", "--no-reuse"]);
    // Longer than from one look at the tunnels to the next.
    thread::sleep(Duration::from_secs(6));
    played.service.assert_no_connection();
    // It serves clients all the same.
    let mut client = played.ask();
    let mut tunnel = played.begin().granting(0).reply(Cipher::ChaCha20Poly1305);
    tunnel.receive(OPEN);
    answer(tunnel, &mut client);
}

#[test]
fn a_responder_that_gives_spare_tunnels_up_at_once_is_asked_after_longer_and_longer_pauses() {
    let played = Played::with(&["--spares", "1"]);
    let start = Instant::now();
    for _ in 0..3 {
        played.accept_spare().send(ABORT, &[IDLE]);
    }
    // Every five seconds, it would be asked after ten for the third time.
    assert!(start.elapsed() >= Duration::from_secs(14), "{:?}", start.elapsed());
}

#[test]
fn a_tunnel_is_too_old_after_two_minutes_and_the_next_one_is_ready_before() {
    let played = Played::with(&["--spares", "1"]);
    let (mut first, start) = (played.accept_spare(), Instant::now());
    let closed = thread::spawn(move || {
        while !first.is_at_end() {
            be_heard(&mut first);
        }
        start.elapsed()
    });
    thread::sleep(Duration::from_secs(100));
    played.service.assert_no_connection();
    let mut second = played.accept_spare();
    let ready = start.elapsed();
    while !closed.is_finished() {
        be_heard(&mut second);
    }
    let closed = closed.join().expect("it does not panic");
    assert!(ready < closed && closed >= Duration::from_secs(119), "{ready:?} {closed:?}");
    thread::sleep(BACK);
    let mut client = played.ask();
    second.receive(OPEN);
    second.send(DATA, b"");
    answer(second, &mut client);
}

#[test]
fn spare_tunnels_that_could_not_be_used_are_refused_with_the_reason() {
    let (key, address) = (Key::new(), SocketAddr::from(([127, 0, 0, 1], 9)));
    for (end, args, reason) in [
        (End::responder(&key, address), &[][..], "and -d waits for them; give it to the other end"),
        (End::initiator(&key, address), &["--no-reuse"], "and with --no-reuse no tunnel waits for a client"),
        (
            End::initiator(&key, address),
            &["--protocol", "spiped"],
            "and with --protocol spiped no tunnel can wait",
        ),
    ] {
        let ended = run(&mut end.args(&["--spares", "1"]).args(args).command());
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(reason), "{}", ended.stderr);
    }
}

#[test]
fn more_spare_tunnels_than_may_be_idle_are_a_warning() {
    let end = End::initiator(&Key::new(), Service::start().address()).args(&["--spares", "1025"]).start();
    end.await_line(&["WARN", "--spares asks for more tunnels than may be idle", "wanted=1025"]);
}

#[test]
fn a_tunnel_carries_a_thousand_connections() {
    const USES: usize = 1000;
    let pipe = pipe(&[]);
    for _ in 0..=USES {
        visit(pipe.initiator.address(), "hello");
    }
    let peers = peers(&pipe.responder.process, USES + 1);
    assert_eq!(HashSet::<_>::from_iter(&peers[..USES]).len(), 1);
    assert_ne!(peers[USES - 1], peers[USES]);
}

#[test]
fn a_spare_tunnel_connects_to_no_target() {
    let (key, service) = (Key::new(), Service::start());
    let responder = End::responder(&key, service.address()).args(&["--verbose"]).start();
    let initiator = End::initiator(&key, responder.address()).args(&["-n", "9"]).start();
    let mut crowd: Vec<_> = (0..3).map(|_| (initiator.connect(), service.accept())).collect();
    let (first, served) = crowd.remove(0);
    drop((first, served));
    for (client, _served) in crowd.drain(..) {
        reset(client);
    }
    responder.await_line(&["a spare tunnel", "kept"]);
    service.assert_no_connection();
    visit_service(initiator.address(), &service);
}

/// A client of a service that says nothing.
fn visit_service(address: SocketAddr, service: &Service) {
    let client = connect(address);
    let served = service.accept();
    drop((client, served));
}

/// Answers the clients that come over `tunnels`, whichever of them each has.
fn answer_all(tunnels: &mut [Tunnel], clients: &mut [TcpStream]) {
    for tunnel in tunnels {
        tunnel.receive(OPEN);
        tunnel.send(DATA, b"");
        assert_eq!(tunnel.receive(DATA), b"INCR");
        tunnel.send(DATA, b"1");
    }
    for client in clients {
        assert_reads(client, "1");
    }
}

/// Answers the client that comes over `tunnel`.
fn answer(mut tunnel: Tunnel, client: &mut TcpStream) {
    assert_eq!(tunnel.receive(DATA), b"INCR");
    tunnel.send(DATA, b"1");
    assert_reads(client, "1");
}

#[test]
fn the_next_connection_has_secrets_that_follow_from_those_before() {
    let played = Played::start();
    let (mut tunnel, mut client) = played.ask_over_idle();
    tunnel.send(DATA, b"");
    answer(tunnel, &mut client);
}

#[test]
fn a_client_whose_open_crosses_the_word_that_the_tunnel_is_given_up_goes_over_another() {
    let played = Played::start();
    let (mut tunnel, mut client) = played.ask_over_idle();
    assert_eq!(tunnel.receive(DATA), b"INCR");
    tunnel.send(ABORT, &[IDLE]);
    answer(played.accept(), &mut client);
}

#[test]
fn a_tunnel_that_was_given_up_is_not_used() {
    let played = Played::start();
    let mut tunnel = played.idle();
    tunnel.send(ABORT, &[IDLE]);
    let mut client = played.ask();
    answer(played.accept(), &mut client);
}

#[test]
fn a_tunnel_over_which_something_comes_that_should_not_is_not_used() {
    let played = Played::start();
    for unasked in [DATA, END] {
        let mut tunnel = played.idle();
        tunnel.send(unasked, b"");
        let mut client = played.ask();
        answer(played.accept(), &mut client);
    }
}

#[test]
fn a_tunnel_that_has_ended_is_not_used() {
    let played = Played::start();
    let mut tunnel = played.idle();
    tunnel.vanish();
    let mut client = played.ask();
    answer(played.accept(), &mut client);
}

#[test]
fn a_wire_that_breaks_when_the_target_may_have_seen_a_byte_is_a_reset() {
    let played = Played::start();
    let (mut tunnel, mut client) = played.ask_over_idle();
    assert_eq!(tunnel.receive(DATA), b"INCR");
    tunnel.vanish();
    assert_eq!(assert_reset(&mut client), b"");
    played.service.assert_no_connection();
}

#[test]
fn a_client_that_could_go_elsewhere_keeps_its_bytes_until_the_target_stands() {
    let other = Service::start();
    let played = Played::with(&["-t", &other.address().to_string()]);
    let (mut tunnel, mut client) = played.ask_over_idle();
    // With one target, the same is a reset: its bytes would be on their way.
    tunnel.vanish();
    answer(played.accept(), &mut client);
    other.assert_no_connection();
}

#[test]
fn bytes_that_were_kept_follow_when_the_target_stands() {
    let other = Service::start();
    let played = Played::with(&["-t", &other.address().to_string()]);
    let (mut tunnel, mut client) = played.ask_over_idle();
    tunnel.send(DATA, b"");
    answer(tunnel, &mut client);
}

#[test]
fn a_target_that_cannot_be_reached_is_told_of_over_a_tunnel_as_well() {
    let played = Played::start();
    let (mut tunnel, mut client) = played.ask_over_idle();
    tunnel.send(ABORT, &[TARGET_UNREACHABLE]);
    assert_eq!(assert_reset(&mut client), b"");
    played.initiator.await_line(&["failed", "cannot reach its target"]);
    played.service.assert_no_connection();
}

#[test]
fn a_wire_that_breaks_before_the_client_has_spoken_is_not_noticed() {
    let played = Played::start();
    let mut tunnel = played.idle();
    let mut client: TcpStream = played.initiator.connect();
    tunnel.receive(OPEN);
    tunnel.vanish();
    let tunnel = played.accept();
    client.write_all(b"INCR").expect("the pipe accepts the bytes");
    answer(tunnel, &mut client);
}

#[test]
fn a_frame_of_the_connection_before_is_refused() {
    let played = Played::start();
    let mut tunnel = played.ended();
    tunnel.renew_received();
    let mut client = played.ask();
    tunnel.receive(OPEN);
    // It has the number that is due.
    tunnel.send(DATA, b"late");
    assert_eq!(assert_reset(&mut client), b"");
    played.initiator.await_line(&["closed", "does not authenticate"]);
}

#[test]
fn a_reload_closes_idle_tunnels_although_connections_go_on() {
    let played = Played::start();
    // Two at a time, so that one needs a tunnel of its own.
    let (mut over_idle, mut first) = played.ask_over_idle();
    over_idle.send(DATA, b"");
    let mut second = played.ask();
    let mut own = played.accept();
    // The first one ends, and the second one goes on.
    over_idle.receive(DATA);
    first.shutdown(Shutdown::Write).expect("the client is connected");
    over_idle.receive(END);
    over_idle.send(END, b"");
    assert_ends(&mut first);
    played.initiator.process.await_lines(2, " closed ");
    played.initiator.process.reload_successfully();
    over_idle.assert_closes();
    assert_eq!(own.receive(DATA), b"INCR");
    own.send(DATA, b"1");
    assert_reads(&mut second, "1");
}

/// Longer than an initiator trusts a tunnel over which nothing comes.
const QUIET: Duration = Duration::from_secs(16);

#[test]
fn a_wire_that_has_died_in_a_quiet_time_is_not_noticed() {
    let played = Played::with(&["-o", "2"]);
    let mut tunnel = played.idle();
    thread::sleep(QUIET);
    let mut client = played.ask();
    tunnel.receive(OPEN);
    // No answer, for as long as a handshake may take. The client's bytes are not here.
    let begun = played.begin();
    // Longer than a timer takes to run out that has no time left.
    thread::sleep(Duration::from_millis(100));
    answer(grant(begun), &mut client);
    tunnel.assert_closes();
}
