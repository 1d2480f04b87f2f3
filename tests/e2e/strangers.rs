//! A stranger, who does not hold the key, gets nothing: no byte, no connection to the target, and no slot that a key
//! holder needs.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::support::pipe::{End, Key, Pipe};
use crate::support::random::Random;
use crate::support::socket::{Service, assert_echoes, echo, read_all};

/// Bytes of message 1 and message 2 (docs/PROTOCOL.md, section 3).
const MESSAGE_1: usize = 1264;
const MESSAGE_2: usize = 1168;

/// A responder and its target, at which the test can check that no connection has arrived.
struct Door {
    key: Key,
    responder: End,
    service: Service,
}

impl Door {
    fn start(args: &[&str]) -> Self {
        let (key, service) = (Key::new(), Service::start());
        let responder = End::responder(&key, service.address()).args(args).start();
        Self { key, responder, service }
    }

    /// Asserts that a stranger who sends `words` receives no byte, that the target is not dialed, and that `reason`
    /// is logged.
    #[track_caller]
    fn refuses(&self, words: &[u8], reason: &[&str]) {
        let mut stranger = self.responder.connect();
        // The responder may close the connection before it has read all bytes.
        let _ = stranger.write_all(words);
        let _ = stranger.shutdown(Shutdown::Write);
        assert_eq!(read_all(&mut stranger), b"");
        self.responder.await_line(&[&["refused"], reason].concat());
        self.service.assert_no_connection();
    }
}

/// An authentic message 1 for `key`, recorded from an initiator.
fn record_message_1(key: &Key) -> Vec<u8> {
    let recorder = Service::start();
    let initiator = End::initiator(key, recorder.address()).start();
    let _client = initiator.connect();
    let mut message = vec![0; MESSAGE_1];
    recorder.accept().read_exact(&mut message).expect("message 1 arrives");
    message
}

#[test]
fn garbage_gets_no_answer() {
    Door::start(&[]).refuses(&Random::bytes(1, MESSAGE_1), &["keys differ", "labels", "not spipe"]);
}

#[test]
fn more_garbage_than_a_handshake_gets_no_answer() {
    Door::start(&[]).refuses(&Random::bytes(2, 1 << 20), &["not spipe"]);
}

#[test]
fn a_plain_client_gets_no_answer() {
    Door::start(&[]).refuses(b"PING\r\n", &["6 of 1264 bytes", "not spipe"]);
}

#[test]
fn a_tcp_health_check_gets_no_answer_and_no_warning() {
    let mut door = Door::start(&["--verbose"]);
    for _ in 0..20 {
        let mut check = door.responder.connect();
        check.shutdown(Shutdown::Write).expect("the check is connected");
        assert_eq!(read_all(&mut check), b"");
    }
    door.responder.process.await_lines(10, "DEBUG closed without a byte, as a TCP health check does");
    door.service.assert_no_connection();
    door.responder.process.signal(rustix::process::Signal::TERM);
    door.responder.process.wait();
    door.responder.await_line(&["DEBUG closed without a byte: further connections", "more=10"]);
    assert!(!door.responder.process.log().contains("refused"), "{}", door.responder.process.log());
}

#[test]
fn thousands_of_strangers_are_a_few_lines_and_their_number() {
    let mut door = Door::start(&[]);
    for _ in 0..500 {
        let mut stranger = door.responder.connect();
        stranger.write_all(b"PING\r\n").expect("the responder is connected");
        stranger.shutdown(Shutdown::Write).expect("the responder is connected");
        assert_eq!(read_all(&mut stranger), b"");
    }
    door.responder.process.signal(rustix::process::Signal::TERM);
    assert_eq!(door.responder.process.wait().code(), Some(0));
    let line = door.responder.await_line(&["refused: further connections", "incomplete handshake"]);
    assert_eq!(crate::support::pipe::field(&line, "more"), "490");
    assert_eq!(door.responder.process.log().matches("WARN refused peer=").count(), 10);
}

#[test]
fn an_incomplete_message_1_gets_no_answer() {
    let door = Door::start(&[]);
    let message = record_message_1(&door.key);
    door.refuses(&message[..MESSAGE_1 - 1], &["1263 of 1264 bytes"]);
}

#[test]
fn a_silent_stranger_is_disconnected_in_time() {
    let door = Door::start(&["-o", "1"]);
    let mut stranger = door.responder.connect();
    assert_eq!(read_all(&mut stranger), b"");
    door.responder.await_line(&["refused", "nothing more in time"]);
    door.service.assert_no_connection();
}

#[test]
fn a_wrong_key_is_refused_with_the_likely_reason_on_both_ends() {
    let door = Door::start(&[]);
    let initiator = End::initiator(&Key::new(), door.responder.address()).start();
    initiator.assert_resets_a_client();
    door.responder.await_line(&["refused", "the keys differ"]);
    initiator.await_line(&["failed", "key or label differs"]);
    door.service.assert_no_connection();
}

#[test]
fn a_wrong_label_is_refused_with_the_likely_reason_on_both_ends() {
    let door = Door::start(&["--label", "one"]);
    let initiator = End::initiator(&door.key, door.responder.address()).args(&["--label", "two"]).start();
    initiator.assert_resets_a_client();
    door.responder.await_line(&["refused", "labels"]);
    initiator.await_line(&["failed", "key or label differs"]);
    door.service.assert_no_connection();
}

#[test]
fn the_same_label_is_accepted() {
    let pipe = Pipe::to(echo()).label("one").start();
    assert_echoes(&mut pipe.connect(), "hello");
}

#[test]
fn an_initiator_in_front_of_an_initiator_is_refused() {
    let key = Key::new();
    let inner = End::initiator(&key, echo()).args(&["-o", "1"]).start();
    let outer = End::initiator(&key, inner.address()).args(&["-o", "1"]).start();
    outer.assert_resets_a_client();
    // The echo target sent its own message 1 back to it.
    inner.await_line(&["failed", "does not open with this key"]);
    outer.await_line(&["failed"]);
}

#[test]
fn an_initiator_reports_a_target_that_is_not_spipe() {
    let smtp = Service::start().serve(|mut stream| {
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n");
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let initiator = End::initiator(&Key::new(), smtp).start();
    initiator.assert_resets_a_client();
    initiator.await_line(&["failed", "24 of 1168 bytes", "not spipe"]);
}

#[test]
fn a_replayed_message_1_does_not_reach_the_target() {
    let door = Door::start(&["-o", "1"]);
    let message = record_message_1(&door.key);
    let mut replay = door.responder.connect();
    replay.write_all(&message).expect("the responder reads the message");
    // The message is authentic, so it is answered; but the stranger who replays it cannot continue.
    assert_eq!(read_all(&mut replay).len(), MESSAGE_2);
    door.responder.await_line(&["refused", "shook hands and then opened no connection"]);
    door.service.assert_no_connection();
}

#[test]
fn silent_strangers_do_not_keep_a_key_holder_out() {
    // More than a process with so few descriptors has places for, and many more than -n.
    const STRANGERS: usize = 300;
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["-n", "2", "-o", "600"]).descriptors(256).start();
    let initiator = End::initiator(&key, responder.address()).start();
    let strangers: Vec<TcpStream> = (0..STRANGERS).map(|_| responder.connect()).collect();
    assert_echoes(&mut initiator.connect(), "let me through");
    responder.await_line(&["refused", "too many connections are waiting to shake hands"]);
    drop(strangers);
}

#[test]
fn silent_strangers_do_not_disturb_an_established_connection() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["-o", "600"]).descriptors(256).start();
    let initiator = End::initiator(&key, responder.address()).start();
    let mut client = initiator.connect();
    assert_echoes(&mut client, "before");
    let _strangers: Vec<TcpStream> = (0..300).map(|_| responder.connect()).collect();
    responder.await_line(&["refused", "too many connections are waiting to shake hands"]);
    assert_echoes(&mut client, "after");
}
