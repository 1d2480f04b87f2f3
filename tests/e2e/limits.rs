//! Limits on connections (-n), time (-o) and file descriptors.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, prlimit};
use spipe::proto::cipher::Cipher;

use crate::support::peer::{ABORT, OPEN, initiate};
use crate::support::pipe::{End, Key, Pipe};
use crate::support::poll_until;
use crate::support::socket::{
    BlackHole, Service, assert_echoes, assert_reads, connect, connect_unix, dead, echo,
};

/// The delay that a machine under load may add to a time limit of one second.
const SLACK: Duration = Duration::from_secs(20);

#[test]
fn a_client_beyond_the_initiators_limit_waits_and_is_served_when_one_ends() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).initiator_args(&["-n", "2"]).start();
    let first = pipe.connect();
    let _second = pipe.connect();
    let (_, _) = (service.accept(), service.accept());
    pipe.initiator.await_line(&["as many connections as -n allows"]);
    let mut third = pipe.connect();
    third.write_all(b"me too").expect("the socket buffer has room");
    third.set_read_timeout(Some(Duration::from_millis(300))).expect("the socket is open");
    let waiting = third.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(waiting, Err(ErrorKind::WouldBlock), "neither served nor refused");
    service.assert_no_connection();
    drop(first);
    assert_reads(&mut service.accept(), "me too");
}

#[test]
fn a_free_slot_serves_a_client_of_any_source() {
    let (key, directory) = (Key::new(), tempfile::tempdir().expect("a temporary directory"));
    let responder = End::responder(&key, echo()).start();
    let other = directory.path().join("other");
    let args = ["-n", "1", "-s", &other.display().to_string()];
    let initiator = End::initiator(&key, responder.address()).args(&args).start();
    // Each time the slot becomes free again, and no client connects to the other source.
    for round in 0..5 {
        assert_echoes(&mut initiator.connect(), &format!("round {round} at the first"));
    }
    for round in 0..5 {
        let mut client = connect_unix(&other).expect("the socket listens");
        assert_echoes(&mut client, &format!("round {round} at the second"));
    }
}

#[test]
fn a_client_beyond_the_responders_limit_is_reset_and_the_reason_is_logged() {
    let pipe = Pipe::to(echo()).responder_args(&["-n", "1", "-o", "1"]).start();
    let mut first = pipe.connect();
    assert_echoes(&mut first, "the only one");
    pipe.initiator.assert_resets_a_client();
    pipe.initiator.await_line(&["closed", "the other end has as many connections as it may; raise its -n"]);
    pipe.responder.await_line(&["refused", "raise -n"]);
    assert_echoes(&mut first, "undisturbed");
}

#[test]
fn a_client_beyond_the_responders_limit_is_served_when_one_ends_in_time() {
    let pipe = Pipe::to(echo()).responder_args(&["-n", "1", "-o", "600"]).start();
    let mut first = pipe.connect();
    assert_echoes(&mut first, "the first");
    let mut second = pipe.connect();
    second.write_all(b"the second").expect("the pipe accepts the bytes");
    drop(first);
    assert_reads(&mut second, "the second");
}

#[test]
fn a_client_beyond_the_handshakes_of_an_initiator_waits_until_one_is_done() {
    let silent = Service::start();
    let initiator =
        End::initiator(&Key::new(), silent.address()).args(&["--max-handshakes", "1", "-o", "2"]).start();
    let _clients = [initiator.connect(), initiator.connect()];
    let first = silent.accept();
    silent.assert_no_connection();
    // It is given up, and the next one has its turn.
    initiator.await_line(&["failed"]);
    silent.accept();
    drop(first);
}

#[test]
fn strangers_beyond_the_handshakes_of_a_responder_make_room_for_a_key_holder() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["--max-handshakes", "4"]).start();
    let strangers: Vec<_> = (0..40).map(|_| responder.connect()).collect();
    responder.await_line(&["refused", "too many connections are waiting to shake hands"]);
    let initiator = End::initiator(&key, responder.address()).start();
    assert_echoes(&mut initiator.connect(), "hello");
    drop(strangers);
}

#[test]
fn a_limit_of_0_is_no_limit() {
    let pipe = Pipe::to(echo()).args(&["-n", "0"]).start();
    // More than the default of 100.
    let mut clients: Vec<TcpStream> = (0..120).map(|_| pipe.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, "all at once");
    }
}

/// Runs `fail`, and asserts that it takes about the one second that -o allows.
fn assert_takes_a_second(fail: impl FnOnce()) {
    let start = Instant::now();
    fail();
    let took = start.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(1) + SLACK, "{took:?}");
}

#[test]
fn the_responder_gives_up_a_silent_target_in_time() {
    let hole = BlackHole::start();
    let pipe = Pipe::to(hole.address()).responder_args(&["-o", "1"]).start();
    assert_takes_a_second(|| {
        pipe.initiator.assert_resets_a_client();
    });
    pipe.responder.await_line(&["refused", "cannot connect to", "no answer in time (-o)"]);
    pipe.initiator.await_line(&["closed", "the other end cannot reach its target"]);
}

#[test]
fn the_initiator_gives_up_an_unreachable_responder_in_time() {
    let hole = BlackHole::start();
    let initiator = End::initiator(&Key::new(), hole.address()).args(&["-o", "1"]).start();
    assert_takes_a_second(|| {
        initiator.assert_resets_a_client();
    });
    initiator.await_line(&["failed", "cannot connect to", "no answer in time (-o)"]);
}

#[test]
fn the_initiator_gives_up_a_silent_responder_in_time() {
    let mute = Service::start();
    let initiator = End::initiator(&Key::new(), mute.address()).args(&["-o", "1"]).start();
    assert_takes_a_second(|| {
        initiator.assert_resets_a_client();
    });
    initiator.await_line(&["failed", "0 of 1168 bytes", "nothing more in time (-o)"]);
}

#[test]
fn the_time_limit_does_not_end_an_idle_connection() {
    let pipe = Pipe::to(echo()).args(&["-o", "1"]).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "before");
    // The subject of this test: a period without a byte.
    std::thread::sleep(Duration::from_millis(1500));
    assert_echoes(&mut client, "after");
}

/// The descriptors of `end`, which are numbers below its limit.
fn descriptors(end: &End) -> Vec<u64> {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", end.process.pid())).expect("the process runs");
    let mut numbers: Vec<_> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Has `end` run short: it can open so many `more`.
fn leave_descriptors(end: &End, more: u64) {
    let open = descriptors(end);
    let free = |limit: u64| limit - open.iter().filter(|number| **number < limit).count() as u64;
    let limit = (0..10_000).find(|limit| free(*limit) > more).map(|too_much| too_much - 1);
    prlimit(Some(end.process.pid()), Resource::Nofile, Rlimit { current: limit, maximum: limit })
        .expect("limits can be lowered");
}

#[test]
fn a_lack_of_descriptors_pauses_accepting_only() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let initiator = End::initiator(&key, responder.address()).start();
    let mut running = initiator.connect();
    assert_echoes(&mut running, "before");

    // Descriptors run short though they were planned.
    leave_descriptors(&initiator, 0);
    let mut waiting = initiator.connect();
    initiator.await_line(&["cannot accept connections for now", "Too many open files"]);
    assert_echoes(&mut running, "meanwhile");
    drop(running);
    assert_echoes(&mut waiting, "after");
}

#[test]
fn a_client_that_was_accepted_with_the_last_descriptor_waits_for_another() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let initiator = End::initiator(&key, responder.address()).start();
    let mut running = initiator.connect();
    assert_echoes(&mut running, "before");
    let before = descriptors(&initiator).len();
    leave_descriptors(&initiator, 1);
    let mut waiting = initiator.connect();
    poll_until("it is accepted", || (descriptors(&initiator).len() > before).then_some(()));
    drop(running);
    assert_echoes(&mut waiting, "after");
}

#[test]
fn for_want_of_descriptors_a_stranger_goes_and_a_key_holder_gets_in() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["-o", "600"]).start();
    let initiator = End::initiator(&key, responder.address()).start();
    let before = descriptors(&responder).len();
    let mut strangers = [responder.connect(), responder.connect(), responder.connect()];
    poll_until("the strangers are accepted", || (descriptors(&responder).len() == before + 3).then_some(()));
    leave_descriptors(&responder, 1);
    // One descriptor for the peer, and one for the target.
    assert_echoes(&mut initiator.connect(), "served");
    responder.await_line(&["refused", "too many connections are waiting to shake hands"]);
    assert_eq!(crate::support::socket::read_all(&mut strangers[0]), b"");
}

#[test]
fn peers_that_were_turned_away_and_do_not_close_hold_few_descriptors() {
    /// Places that a process with descriptors enough has for them.
    const PLACES: usize = 256;
    const PEERS: usize = 3 * PLACES;
    let key = Key::new();
    let key_file = std::fs::read(key.path()).expect("the key can be read");
    let responder = End::responder(&key, dead()).start();
    let before = descriptors(&responder).len();
    let peers: Vec<_> = (0..PEERS)
        .map(|_| {
            let mut tunnel = initiate(connect(responder.address()), &key_file, Cipher::ChaCha20Poly1305);
            tunnel.send(OPEN, b"");
            tunnel.receive(ABORT);
            tunnel
        })
        .collect();
    // One has just been told, and the descriptor of its target may be closing.
    let held = descriptors(&responder).len() - before;
    assert!(held <= PLACES + 2, "{held}");
    drop(peers);
}
