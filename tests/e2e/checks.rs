//! Checks of targets in the background (`--check`).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use spipe::proto::cipher::Cipher;

use crate::support::peer::{Begun, initiate};
use crate::support::pipe::{End, Key, Pipe};
use crate::support::poll_until;
use crate::support::redis::Redis;
use crate::support::site::Site;
use crate::support::socket::{
    Service, assert_echoes, assert_ends, assert_reset, connect, dead, echo, listed, send_back,
};

/// Options for checks that find out fast.
const FAST: [&str; 6] = ["--check", "1", "--rise", "1", "--fall", "1"];

/// Kinds of frames, and a field of *Open* (PROTOCOL.md, sections 5 and 5.2).
const OPEN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const PROBE: [u8; 3] = [2, 0, 0];

/// A service that answers each line with `answer`.
fn answering(answer: &'static str) -> SocketAddr {
    Service::start().serve(move |mut client| {
        let mut line = [0; 256];
        while client.read(&mut line).is_ok_and(|count| count > 0) {
            let _ = client.write_all(answer.as_bytes());
        }
    })
}

#[test]
fn a_target_that_does_not_listen_is_found_down_before_a_client_comes_and_up_when_it_does() {
    let address = dead();
    let responder = End::responder(&Key::new(), address).args(&FAST).start();
    responder.await_line(&["target down", "Connection refused"]);
    Service::start_on(&address.to_string()).serve(send_back);
    responder.await_line(&["target up again"]);
    assert_eq!(responder.process.log().matches("target down").count(), 1, "once a change");
}

#[test]
fn a_client_of_a_target_that_is_down_fails_at_once_and_the_log_says_why() {
    let key = Key::new();
    let responder = End::responder(&key, answering("-LOADING\r\n"))
        .args(&FAST)
        .args(&["--check-send", r"PING\r\n", "--check-expect", "+PONG", "-o", "2"])
        .start();
    responder.await_line(&["target down", "LOADING"]);
    let initiator = End::initiator(&key, responder.address()).start();
    initiator.assert_resets_a_client();
    responder.await_line(&["refused", "checks of it fail", "LOADING"]);
}

#[test]
fn a_service_that_is_asked_and_says_nothing_is_down() {
    let mute = Service::start();
    let responder = End::responder(&Key::new(), mute.address())
        .args(&FAST)
        .args(&["--check-expect", "220", "-o", "1"])
        .start();
    responder.await_line(&["target down", "did not say what is expected in time"]);
}

#[test]
fn an_answer_may_come_in_pieces() {
    let service = Service::start();
    let responder =
        End::responder(&Key::new(), service.address()).args(&FAST).args(&["--check-expect", "+PONG"]).start();
    let mut check = service.accept();
    let remote = check.peer_addr().expect("the check waits for an answer");
    check.write_all(b"200 more or less, +PO").expect("the check reads");
    // Each piece is a read of its own: the second comes when the first was taken.
    poll_until("the first piece is read", || {
        let sockets = listed();
        let socket = sockets.iter().find(|socket| socket.local == remote)?;
        (socket.unread == 0).then_some(())
    });
    check.write_all(b"NG").expect("the check reads");
    service.accept();
    assert!(!responder.process.log().contains("target down"), "{}", responder.process.log());
}

/// A pipe to two Redis servers, of which the second is a replica, that asks for the master.
fn pipe_to_the_master(on_down: &str) -> (Redis, Redis, Pipe) {
    let (first, second) = (Redis::start(), Redis::start());
    second.replicate(&first);
    let pipe = Pipe::to(first.address())
        .responder_args(&["-t", &second.address(), "--on-down", on_down])
        .responder_args(&FAST)
        .responder_args(&["--check-send", r"INFO replication\r\n", "--check-expect", "role:master"])
        .start();
    (first, second, pipe)
}

fn role(client: &mut TcpStream) -> String {
    client.write_all(b"ROLE\r\n").expect("the pipe accepts the bytes");
    let mut answer = [0; 512];
    let count = client.read(&mut answer).expect("Redis answers");
    let text = String::from_utf8_lossy(&answer[..count]).into_owned();
    text.lines().nth(2).unwrap_or_default().to_owned()
}

#[test]
fn clients_follow_the_master_of_redis() {
    let (first, second, pipe) = pipe_to_the_master("keep");
    assert_eq!(role(&mut pipe.connect()), "master");
    second.promote();
    first.replicate(&second);
    pipe.responder.await_line(&["target down", &first.address().replace("127.0.0.1", "[127.0.0.1]")]);
    poll_until("the new master is found", || {
        let mut client = pipe.initiator.connect_unless_reset()?;
        client.write_all(b"SET key value\r\n").ok()?;
        let mut answer = [0; 5];
        (client.read_exact(&mut answer).is_ok() && &answer == b"+OK\r\n").then_some(())
    });
}

#[test]
fn connections_to_a_master_that_was_demoted_are_reset_where_that_is_wanted() {
    let (first, second, pipe) = pipe_to_the_master("reset");
    let mut client = pipe.connect();
    assert_eq!(role(&mut client), "master");
    second.promote();
    first.replicate(&second);
    assert_eq!(assert_reset(&mut client), b"");
    pipe.responder.await_line(&["closed", "the target went down (--on-down reset)"]);
}

#[test]
fn connections_to_a_target_that_went_down_stay_otherwise() {
    let (first, second, pipe) = pipe_to_the_master("keep");
    let mut client = pipe.connect();
    assert_eq!(role(&mut client), "master");
    second.promote();
    first.replicate(&second);
    pipe.responder.await_line(&["target down"]);
    assert_eq!(role(&mut client), "slave");
}

#[test]
fn an_initiator_asks_whether_the_target_of_the_other_end_can_be_reached() {
    let (key, address) = (Key::new(), dead());
    let responder = End::responder(&key, address).start();
    let initiator = End::initiator(&key, responder.address()).args(&FAST).start();
    initiator.await_line(&["target down", "the other end cannot reach its target"]);
    Service::start_on(&address.to_string()).serve(send_back);
    initiator.await_line(&["target up again"]);
    assert_echoes(&mut initiator.connect(), "hello");
}

#[test]
fn an_initiator_finds_a_responder_with_another_key_down() {
    let responder = End::responder(&Key::new(), echo()).start();
    let initiator = End::initiator(&Key::new(), responder.address()).args(&FAST).start();
    initiator.await_line(&["target down", "its key or label differs"]);
}

#[test]
fn a_probe_is_no_warning_at_the_other_end_whether_it_succeeds_or_not() {
    for target in [echo(), dead()] {
        let key = Key::new();
        let responder = End::responder(&key, target).args(&["--verbose"]).start();
        let _initiator = End::initiator(&key, responder.address()).args(&FAST).start();
        responder.process.await_lines(3, "probed");
        let log = responder.process.log();
        assert!(!log.contains("WARN") && !log.contains("INFO closed"), "{log}");
    }
}

#[test]
fn a_responder_without_a_place_left_is_not_down() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["-n", "1", "-o", "1", "--verbose"]).start();
    let initiator = End::initiator(&key, responder.address())
        .args(&FAST)
        .args(&["--on-down", "reset", "-o", "9"])
        .start();
    let mut client = initiator.connect();
    assert_echoes(&mut client, "taken");
    let busy = "as many connections as it may";
    poll_until("two probes find no place", || {
        let log = responder.process.log();
        let busy = log.lines().filter(|line| line.contains("probed") && !line.contains("\"up\""));
        (busy.count() >= 2).then_some(())
    });
    assert_echoes(&mut client, "still there");
    assert!(!initiator.process.log().contains("target down"), "{busy}: {}", initiator.process.log());
}

#[test]
fn an_older_responder_is_asked_to_connect_to_its_target_by_no_probe() {
    let (key, service) = (Key::new(), Service::start());
    let key_file = std::fs::read(key.path()).expect("the key can be read");
    let initiator = End::initiator(&key, service.address()).args(&FAST).start();
    // The first probe finds out that the other end is older.
    Begun::read(service.accept(), &key_file).reply(Cipher::ChaCha20Poly1305).await_close();
    for _ in 0..3 {
        assert_ends(&mut service.accept());
    }
    assert!(!initiator.process.log().contains("target down"));
}

#[test]
fn a_probe_carries_nothing_to_the_target() {
    let (key, service) = (Key::new(), Service::start());
    let key_file = std::fs::read(key.path()).expect("the key can be read");
    let responder = End::responder(&key, service.address()).start();
    let mut tunnel = initiate(connect(responder.address()), &key_file, Cipher::ChaCha20Poly1305);
    tunnel.send(OPEN, &PROBE);
    tunnel.send(DATA, b"FLUSHALL\r\n");
    tunnel.send(END, b"");
    assert_ends(&mut service.accept());
    assert_eq!(tunnel.receive(END), b"");
}

#[test]
fn a_probe_that_never_ends_is_ended() {
    let (key, service) = (Key::new(), Service::start());
    let key_file = std::fs::read(key.path()).expect("the key can be read");
    let responder = End::responder(&key, service.address()).args(&["-o", "1", "-n", "1"]).start();
    let mut tunnel = initiate(connect(responder.address()), &key_file, Cipher::ChaCha20Poly1305);
    tunnel.send(OPEN, &PROBE);
    assert_ends(&mut service.accept());
    tunnel.await_close();
    // Its place is free.
    let initiator = End::initiator(&key, responder.address()).start();
    let _client = initiator.connect();
    service.accept();
}

#[test]
fn what_checks_have_found_outlives_a_reload() {
    let site = Site::with_key();
    let options = "check = 1\nfall = 1\nrise = 1\nkey = ";
    let process = site.serve(site.both_ends("a", dead()).replace("key = ", options));
    process.await_lines(2, "target down");
    process.reload_successfully();
    drop(site.connect("a"));
    process.await_line(&["failed", "checks of it fail"]);
    assert_eq!(process.log().matches("target down").count(), 2, "{}", process.log());
}

#[test]
fn checks_end_with_their_pipe() {
    let (site, service, next) = (Site::with_key(), Service::start(), Service::start());
    let checked = |pipe: String| pipe.replace("key = ", "check = 1\nkey = ");
    let process = site.serve(checked(site.decrypt("a", service.address())));
    service.accept();
    site.configure(checked(site.decrypt("b", next.address())));
    process.reload_successfully();
    next.accept();
    // One check may have been under way.
    service.drain();
    // A second apart.
    for _ in 0..3 {
        next.accept();
    }
    service.assert_no_connection();
}
