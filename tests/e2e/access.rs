//! Which addresses may connect, and how much one source may have.

use std::io::{ErrorKind, Read};

use crate::support::pipe::{End, Key, Pipe};
use crate::support::poll_until;
use crate::support::socket::{Service, assert_echoes, connect_from, connect_unix, echo, try_connect_from};

const LISTED: [u8; 4] = [127, 0, 0, 7];
const OTHER: [u8; 4] = [127, 0, 0, 8];

#[track_caller]
fn assert_served(end: &End, from: [u8; 4]) {
    assert_echoes(&mut connect_from(from, end.address()), "hello");
}

/// Asserts that a client is reset or closed, and hears nothing.
#[track_caller]
fn assert_turned_away(end: &End, from: [u8; 4]) {
    let mut received = Vec::new();
    match try_connect_from(from, end.address()) {
        Ok(mut client) => drop(client.read_to_end(&mut received)),
        // On a busy machine, the reset comes before connect(2) returns.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert_eq!(received, b"");
}

#[test]
fn only_clients_that_are_allowed_are_served() {
    let pipe = Pipe::to(echo()).initiator_args(&["--allow", "127.0.0.7", "--allow", "10.0.0.0/8"]).start();
    assert_served(&pipe.initiator, LISTED);
    assert_turned_away(&pipe.initiator, OTHER);
    pipe.initiator.await_line(&["denied", "127.0.0.8", "--allow, --deny"]);
}

#[test]
fn clients_that_are_denied_are_not_served_also_if_they_are_allowed() {
    let pipe = Pipe::to(echo()).initiator_args(&["--allow", "127.0.0.0/8", "--deny", "127.0.0.7"]).start();
    assert_served(&pipe.initiator, OTHER);
    assert_turned_away(&pipe.initiator, LISTED);
}

#[test]
fn a_peer_that_is_denied_shakes_no_hands_although_it_has_the_key() {
    let (key, service) = (Key::new(), Service::start());
    let responder = End::responder(&key, service.address()).args(&["--deny", "127.0.0.1"]).start();
    let initiator = End::initiator(&key, responder.address()).start();
    initiator.assert_resets_a_client();
    service.assert_no_connection();
    responder.await_line(&["denied", "--allow, --deny"]);
}

#[test]
fn lists_are_read_from_files_and_read_again_by_a_reload() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let list = directory.path().join("allowed.txt");
    let write = |text: &str| std::fs::write(&list, text).expect("the file can be written");
    write("# clients\n127.0.0.7   # the first one\n\n10.0.0.0/8\n");
    let pipe = Pipe::to(echo()).initiator_args(&["--allow", &format!("file:{}", list.display())]).start();
    let mut running = connect_from(LISTED, pipe.initiator.address());
    assert_echoes(&mut running, "before");
    assert_turned_away(&pipe.initiator, OTHER);
    write("127.0.0.8\n");
    pipe.initiator.process.reload_successfully();
    assert_served(&pipe.initiator, OTHER);
    assert_turned_away(&pipe.initiator, LISTED);
    assert_echoes(&mut running, "after");
    write("127.0.0.8\n127.0.0.300\n");
    pipe.initiator.process.fail_to_reload(&["allowed.txt:2: '127.0.0.300' is no network"]);
    assert_served(&pipe.initiator, OTHER);
}

#[test]
fn an_empty_list_of_allowed_clients_admits_nobody() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let list = directory.path().join("allowed.txt");
    std::fs::write(&list, "# nobody yet\n").expect("the file can be written");
    let pipe = Pipe::to(echo()).initiator_args(&["--allow", &format!("file:{}", list.display())]).start();
    assert_turned_away(&pipe.initiator, LISTED);
}

#[test]
fn lists_say_nothing_of_local_clients() {
    let (key, directory) = (Key::new(), tempfile::tempdir().expect("a temporary directory"));
    let responder = End::responder(&key, echo()).start();
    let source = directory.path().join("source");
    let _initiator = End::initiator(&key, responder.address())
        .source(source.display())
        .args(&["--allow", "10.0.0.1"])
        .start();
    assert_echoes(&mut connect_unix(&source).expect("the socket listens"), "hello");
}

#[test]
fn a_source_has_as_many_connections_as_it_may_and_others_are_served() {
    let pipe = Pipe::to(echo()).initiator_args(&["--max-per-source", "2"]).start();
    let mut clients = [(); 2].map(|()| connect_from(LISTED, pipe.initiator.address()));
    for client in &mut clients {
        assert_echoes(client, "hello");
    }
    assert_turned_away(&pipe.initiator, LISTED);
    assert_served(&pipe.initiator, OTHER);
    drop(clients);
    poll_until("the source has a place again", || {
        let mut client = connect_from(LISTED, pipe.initiator.address());
        std::io::Write::write_all(&mut client, b"x").ok()?;
        client.read_exact(&mut [0]).ok()
    });
    pipe.initiator.await_line(&["denied", "--max-per-source"]);
}

#[test]
fn a_responder_counts_strangers_and_key_holders_of_a_source_together() {
    let (key, service) = (Key::new(), Service::start());
    let responder =
        End::responder(&key, service.address()).args(&["--max-per-source", "1", "-o", "600"]).start();
    let stranger = responder.connect();
    let initiator = End::initiator(&key, responder.address()).start();
    initiator.assert_resets_a_client();
    drop(stranger);
    responder.process.await_lines(1, "denied");
    poll_until("the place of the stranger is free", || {
        let _client = initiator.connect();
        service.accept_within(std::time::Duration::from_millis(300))
    });
}

#[test]
fn a_source_that_comes_too_fast_waits_for_its_turn() {
    let pipe = Pipe::to(echo()).initiator_args(&["--rate-per-source", "3"]).start();
    for _ in 0..3 {
        assert_served(&pipe.initiator, LISTED);
    }
    assert_turned_away(&pipe.initiator, LISTED);
    assert_served(&pipe.initiator, OTHER);
    pipe.initiator.await_line(&["denied", "--rate-per-source"]);
}

#[test]
fn thousands_that_are_denied_are_a_few_lines() {
    let pipe = Pipe::to(echo()).initiator_args(&["--deny", "127.0.0.7"]).start();
    for _ in 0..2_000 {
        assert_turned_away(&pipe.initiator, LISTED);
    }
    assert_served(&pipe.initiator, OTHER);
    let lines = pipe.initiator.process.log().matches("denied").count();
    assert!((1..=10).contains(&lines), "{lines} lines");
}
