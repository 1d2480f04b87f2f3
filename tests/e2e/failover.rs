//! Failover before the first byte: an initiator gives a client to another responder as long as no target can have seen a byte
//! of it, and never after.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;

use spipe::proto::cipher::Cipher;

use crate::support::peer::{Begun, Tunnel};
use crate::support::pipe::{End, Key};
use crate::support::process::run_with_input;
use crate::support::random::Random;
use crate::support::socket::{
    BlackHole, Service, assert_echoes, assert_ends, assert_reads, assert_reset, dead, echo, reset,
    try_connect,
};

/// Kinds of frames (PROTOCOL.md, section 5).
const OPEN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const ABORT: u8 = 4;

/// The feature "acknowledgement" (section 4.1).
const ACKNOWLEDGEMENT: u8 = 1;

/// Reasons of *Abort* (section 5.3).
const RESET: u8 = 1;
const TARGET_UNREACHABLE: u8 = 2;
const SHUTDOWN: u8 = 4;

/// An initiator with two responders.
fn initiator_to(key: &Key, first: SocketAddr, second: SocketAddr) -> End {
    End::initiator(key, first).args(&["-t", &second.to_string()]).start()
}

/// An initiator whose first responder leads to `first`, and the second one to `second`.
fn pipe_to(first: SocketAddr, second: SocketAddr, first_args: &[&str]) -> (End, [End; 2]) {
    let key = Key::new();
    let responders =
        [End::responder(&key, first).args(first_args).start(), End::responder(&key, second).start()];
    (initiator_to(&key, responders[0].address(), responders[1].address()), responders)
}

/// A responder that the test plays, and one that works, with an initiator that goes to the played one first.
struct Played {
    service: Service,
    key_file: Vec<u8>,
    initiator: End,
    _working: End,
}

impl Played {
    /// The one that works leads to `target`.
    fn before(target: SocketAddr) -> Self {
        let (key, service) = (Key::new(), Service::start());
        let key_file = std::fs::read(key.path()).expect("the key can be read");
        let working = End::responder(&key, target).start();
        let initiator = initiator_to(&key, service.address(), working.address());
        Self { service, key_file, initiator, _working: working }
    }

    /// Shakes hands with the initiator, which has a new client.
    fn accept(&self, granted: u8) -> Tunnel {
        let begun = Begun::read(self.service.accept(), &self.key_file);
        assert_eq!(
            begun.asked & ACKNOWLEDGEMENT,
            ACKNOWLEDGEMENT,
            "an initiator with several targets asks for this"
        );
        let mut tunnel = begun.granting(granted).reply(Cipher::ChaCha20Poly1305);
        tunnel.receive(OPEN);
        tunnel
    }
}

#[test]
fn a_client_gets_the_responder_whose_target_can_be_reached() {
    let (initiator, _responders) = pipe_to(dead(), echo(), &[]);
    for _ in 0..5 {
        assert_echoes(&mut initiator.connect(), "hello");
    }
    initiator.await_line(&["target avoided", "the other end cannot reach its target"]);
    assert_eq!(initiator.process.log().matches("target avoided").count(), 1);
}

#[test]
fn a_service_that_speaks_first_is_heard() {
    let greeter = Service::start().serve(|mut client| {
        let _ = client.write_all(b"220 ready");
    });
    let (initiator, _responders) = pipe_to(dead(), greeter, &[]);
    assert_reads(&mut initiator.connect(), "220 ready");
}

#[test]
fn a_responder_that_has_no_place_left_is_passed_over() {
    let key = Key::new();
    let full = End::responder(&key, echo()).args(&["-n", "1", "-o", "1"]).start();
    let only = End::initiator(&key, full.address()).start();
    let mut occupant = only.connect();
    assert_echoes(&mut occupant, "taken");
    let free = End::responder(&key, echo()).start();
    let initiator = initiator_to(&key, full.address(), free.address());
    assert_echoes(&mut initiator.connect(), "hello");
    initiator.await_line(&["target avoided", "as many connections as it may"]);
    assert_echoes(&mut occupant, "still there");
}

#[test]
fn the_time_that_a_responder_needs_to_find_out_is_not_taken_from_the_next_one() {
    let hole = BlackHole::start();
    let (key, limit) = (Key::new(), ["-o", "3"]);
    let slow = End::responder(&key, hole.address()).args(&limit).start();
    let working = End::responder(&key, echo()).start();
    let initiator =
        End::initiator(&key, slow.address()).args(&["-t", &working.address().to_string(), "-o", "2"]).start();
    assert_echoes(&mut initiator.connect(), "hello");
}

#[test]
fn what_a_client_has_said_arrives_once_and_whole() {
    let hole = BlackHole::start();
    let (initiator, _responders) = pipe_to(hole.address(), echo(), &["-o", "1"]);
    // More than is kept: the rest waits.
    let bytes = Random::bytes(1, 1 << 20);
    let mut client = initiator.connect();
    let mut reader = client.try_clone().expect("descriptors are left");
    let sent = bytes.clone();
    let writer = thread::spawn(move || {
        client.write_all(&sent).expect("the pipe takes all bytes");
        client.shutdown(Shutdown::Write).expect("the client is connected");
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).expect("a clean end");
    assert!(received == bytes, "{} bytes came back", received.len());
    writer.join().expect("the client has sent all");
}

#[test]
fn a_client_that_has_half_closed_already_is_passed_on() {
    let (initiator, _responders) = pipe_to(dead(), echo(), &[]);
    let mut client = initiator.connect();
    client.write_all(b"request").expect("the pipe accepts the bytes");
    client.shutdown(Shutdown::Write).expect("the client is connected");
    assert_reads(&mut client, "request");
    assert_ends(&mut client);
}

#[test]
fn a_crowd_of_clients_is_passed_on() {
    let (initiator, _responders) = pipe_to(dead(), echo(), &[]);
    let address = initiator.address();
    let clients: Vec<_> = (0..90)
        .map(|number| {
            thread::spawn(move || {
                let mut client = try_connect(address).expect("the initiator listens");
                assert_echoes(&mut client, &format!("client {number}"));
            })
        })
        .collect();
    for client in clients {
        client.join().expect("each client is served");
    }
}

#[test]
fn a_client_fails_when_no_responder_can_reach_its_target() {
    let (initiator, _responders) = pipe_to(dead(), dead(), &[]);
    initiator.assert_resets_a_client();
    let line = initiator.await_line(&["failed", "no target can be used"]);
    assert_eq!(line.matches("the other end cannot reach its target").count(), 2, "{line}");
}

#[test]
fn what_a_service_may_have_seen_is_not_given_to_another() {
    let (service, other) = (Service::start(), Service::start());
    let (initiator, _responders) = pipe_to(service.address(), other.address(), &[]);
    let mut client = initiator.connect();
    client.write_all(b"INCR").expect("the pipe accepts the bytes");
    let mut served = service.accept();
    assert_reads(&mut served, "INCR");
    reset(served);
    assert_eq!(assert_reset(&mut client), b"");
    other.assert_no_connection();
}

#[test]
fn an_acknowledged_client_stays_although_it_has_said_nothing() {
    let (service, other) = (Service::start(), Service::start());
    let (initiator, responders) = pipe_to(service.address(), other.address(), &["--verbose"]);
    let mut client = initiator.connect();
    let served = service.accept();
    // The kernel accepts before the responder knows that it is connected.
    responders[0].await_line(&["established"]);
    reset(served);
    assert_eq!(assert_reset(&mut client), b"");
    other.assert_no_connection();
}

#[test]
fn a_responder_that_shuts_down_before_its_target_stands_is_passed_over() {
    let played = Played::before(echo());
    let mut client = played.initiator.connect();
    client.write_all(b"hello").expect("the pipe accepts the bytes");
    let mut tunnel = played.accept(ACKNOWLEDGEMENT);
    tunnel.receive(DATA);
    tunnel.send(ABORT, &[SHUTDOWN]);
    assert_reads(&mut client, "hello");
}

#[test]
fn a_wire_that_breaks_before_the_client_has_spoken_is_passed_over() {
    let played = Played::before(echo());
    let mut client = played.initiator.connect();
    played.accept(ACKNOWLEDGEMENT).vanish();
    // What the client says from now on has not been sent to a responder that may have passed it on.
    played.initiator.await_line(&["target avoided"]);
    assert_echoes(&mut client, "hello");
}

#[test]
fn a_wire_that_breaks_after_the_client_has_spoken_is_a_reset() {
    let other = Service::start();
    let played = Played::before(other.address());
    let mut client = played.initiator.connect();
    client.write_all(b"INCR").expect("the pipe accepts the bytes");
    let mut tunnel = played.accept(ACKNOWLEDGEMENT);
    tunnel.receive(DATA);
    tunnel.vanish();
    assert_eq!(assert_reset(&mut client), b"");
    other.assert_no_connection();
}

#[test]
fn a_reset_at_the_other_end_is_never_passed_over_without_acknowledgements() {
    let other = Service::start();
    let played = Played::before(other.address());
    let mut client = played.initiator.connect();
    client.write_all(b"INCR").expect("the pipe accepts the bytes");
    let mut tunnel = played.accept(0);
    tunnel.receive(DATA);
    tunnel.send(ABORT, &[RESET]);
    assert_eq!(assert_reset(&mut client), b"");
    other.assert_no_connection();
}

#[test]
fn an_older_responder_that_cannot_reach_its_target_is_passed_over() {
    let played = Played::before(echo());
    let mut client = played.initiator.connect();
    client.write_all(b"hello").expect("the pipe accepts the bytes");
    let mut tunnel = played.accept(0);
    tunnel.receive(DATA);
    tunnel.send(ABORT, &[TARGET_UNREACHABLE]);
    assert_reads(&mut client, "hello");
}

#[test]
fn an_upload_to_an_older_responder_does_not_wait_for_an_acknowledgement() {
    let played = Played::before(echo());
    let mut client = played.initiator.connect();
    let bytes = Random::bytes(2, 256 * 1024);
    let (sent, mut writer) = (bytes.clone(), client.try_clone().expect("descriptors are left"));
    let writer = thread::spawn(move || {
        writer.write_all(&sent).expect("the pipe takes all bytes");
        writer.shutdown(Shutdown::Write).expect("the client is connected");
    });
    let mut tunnel = played.accept(0);
    let mut received = Vec::new();
    while received.len() < bytes.len() {
        received.extend(tunnel.receive(DATA));
    }
    assert!(received == bytes);
    tunnel.receive(END);
    tunnel.send(DATA, b"stored");
    tunnel.send(END, b"");
    assert_reads(&mut client, "stored");
    assert_ends(&mut client);
    writer.join().expect("the client has sent all");
}

#[test]
fn a_client_of_a_responder_that_does_not_acknowledge_waits_with_what_is_not_kept() {
    let played = Played::before(echo());
    let mut client = played.initiator.connect();
    let bytes = Random::bytes(3, 1 << 20);
    let (sent, mut writer) = (bytes.clone(), client.try_clone().expect("descriptors are left"));
    let writer = thread::spawn(move || writer.write_all(&sent).expect("the pipe takes all bytes"));
    let mut tunnel = played.accept(ACKNOWLEDGEMENT);
    let mut received = 0;
    while received < 64 * 1024 {
        received += tunnel.receive(DATA).len();
    }
    assert_eq!(received, 64 * 1024, "as much as is kept");
    tunnel.send(ABORT, &[TARGET_UNREACHABLE]);
    let mut back = vec![0; bytes.len()];
    client.read_exact(&mut back).expect("the other responder echoes");
    assert!(back == bytes);
    writer.join().expect("the client has sent all");
}

#[test]
fn a_client_that_is_reset_while_it_waits_is_not_passed_on() {
    let other = Service::start();
    let played = Played::before(other.address());
    let client = played.initiator.connect();
    let tunnel = played.accept(ACKNOWLEDGEMENT);
    reset(client);
    tunnel.await_close();
    played.initiator.await_line(&["closed", "the local side was reset"]);
    other.assert_no_connection();
}

#[test]
fn an_initiator_with_one_target_asks_for_no_acknowledgement_without_reuse() {
    let (key, service) = (Key::new(), Service::start());
    let initiator = End::initiator(&key, service.address()).args(&["--no-reuse"]).start();
    let _client: TcpStream = initiator.connect();
    let key_file = std::fs::read(key.path()).expect("the key can be read");
    assert_eq!(Begun::read(service.accept(), &key_file).asked, 0);
}

#[test]
fn standard_input_is_given_to_the_responder_whose_target_can_be_reached() {
    let key = Key::new();
    let unlucky = End::responder(&key, dead()).start();
    let working = End::responder(&key, echo()).start();
    let mut command = crate::support::pipe::stdio(unlucky.address().to_string(), &key.path());
    command.arg("-t").arg(working.address().to_string());
    let ended = run_with_input(&mut command, b"a line".to_vec()).succeeded();
    assert_eq!(ended.stdout, b"a line");
}
