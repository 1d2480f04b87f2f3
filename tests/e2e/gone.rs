//! A client or a peer that is gone before its connection is established: nothing is kept for it.

use std::fmt::Display;
use std::io::Write;
use std::net::{Shutdown, SocketAddr};

use crate::support::pipe::{End, Key, Pipe};
use crate::support::poll_until;
use crate::support::redis::free_port;
use crate::support::socket::{BlackHole, Service, assert_reads, assert_reset, connect_unix, listed, reset};

/// An option for a handshake that never times out while a test runs, so that only being gone can end it.
const PATIENT: [&str; 2] = ["-o", "600"];

/// An initiator with one place.
fn initiator_to(target: impl Display) -> End {
    End::initiator(&Key::new(), target).args(&PATIENT).args(&["-n", "1"]).start()
}

#[test]
fn a_client_that_is_reset_while_its_responder_is_dialed_frees_its_place() {
    let hole = BlackHole::start();
    let initiator = initiator_to(hole.address());
    for _ in 0..3 {
        reset(initiator.connect());
        initiator.await_line(&["failed", "the other side went away before the connection was established"]);
    }
}

#[test]
fn a_client_that_is_reset_during_the_handshake_leaves_no_connection_to_the_responder() {
    let mute = Service::start();
    let initiator = initiator_to(mute.address());
    let client = initiator.connect();
    let mut wire = mute.accept();
    reset(client);
    // Behind message 1.
    assert_reset(&mut wire);
    // The only place is free.
    let _next = initiator.connect();
    mute.accept();
}

#[test]
fn a_client_that_has_half_closed_before_its_connection_stands_is_served() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).start();
    let mut client = pipe.connect();
    client.write_all(b"request").expect("the pipe accepts the bytes");
    client.shutdown(Shutdown::Write).expect("the client is connected");
    let mut served = service.accept();
    assert_reads(&mut served, "request");
    served.write_all(b"answer").expect("the pipe accepts the bytes");
    assert_reads(&mut client, "answer");
}

#[test]
fn the_bytes_of_a_unix_client_that_has_closed_already_are_delivered() {
    let (key, service) = (Key::new(), Service::start());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let responder = End::responder(&key, service.address()).start();
    let source = directory.path().join("source");
    let _initiator = End::initiator(&key, responder.address()).source(source.display()).start();
    let mut client = connect_unix(&source).expect("the socket listens");
    client.write_all(b"a line for the log").expect("the pipe accepts the bytes");
    drop(client);
    let mut received = Vec::new();
    std::io::Read::read_to_end(&mut service.accept(), &mut received).expect("a clean end");
    assert_eq!(received, b"a line for the log");
}

#[test]
fn a_peer_that_is_gone_while_the_target_is_dialed_frees_its_place() {
    let (key, hole) = (Key::new(), BlackHole::start());
    let responder = End::responder(&key, hole.address()).args(&PATIENT).args(&["-n", "1"]).start();
    let initiator = End::initiator(&key, responder.address()).start();
    for _ in 0..3 {
        let mut client = initiator.connect();
        client.write_all(b"request").expect("the pipe accepts the bytes");
        // The responder has answered, and dials.
        poll_until("the target is dialed", || has_state(hole.address(), "02").then_some(()));
        reset(client);
        responder.await_line(&["refused", "the other side went away before the connection was established"]);
    }
}

/// Two initiators, each with the other as its target: each connection makes another one, and waits for it. In one process, this
/// is refused; in two, nobody sees it.
fn chain(args: &[&str]) -> [End; 2] {
    let (key, back) = (Key::new(), format!("127.0.0.1:{}", free_port()));
    let there = End::initiator(&key, &back).args(args).start();
    let back = End::initiator(&key, there.address()).source(back).args(args).start();
    [there, back]
}

/// Waits until nothing is connected to the chain. Each connection of it holds the next, so that it cannot go on then.
fn assert_ends_whole(chain: &[End; 2]) {
    let states = ["01", "02", "03", "04", "05", "08", "09", "0B"];
    let listeners = chain.each_ref().map(End::address);
    let is_connected = |listener| states.iter().any(|state| has_state(listener, state));
    poll_until("the chain ends", || (!listeners.into_iter().any(is_connected)).then_some(()));
}

/// Whether a TCP connection from or to this address is in this state.
fn has_state(address: SocketAddr, state: &str) -> bool {
    listed().iter().any(|row| (row.local == address || row.remote == address) && row.state == state)
}

#[test]
fn a_chain_of_initiators_ends_with_its_first_client() {
    let chain = chain(&["-n", "20", "-o", "600"]);
    let client = chain[0].connect();
    chain[0].await_line(&["as many connections as -n allows"]);
    reset(client);
    assert_ends_whole(&chain);
}

#[test]
fn a_chain_of_initiators_whose_first_client_has_closed_ends_in_time() {
    let chain = chain(&["-n", "20", "-o", "2"]);
    let client = chain[0].connect();
    chain[0].await_line(&["as many connections as -n allows"]);
    drop(client);
    assert_ends_whole(&chain);
}
