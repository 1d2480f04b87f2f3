//! A reset on one side becomes a reset on the other side, and so does every end that is not clean.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use rustix::process::Signal;

use crate::support::pipe::{End, Key, Pipe};
use crate::support::poll_until;
use crate::support::redis::free_port;
use crate::support::socket::{
    Service, assert_echoes, assert_ends, assert_reads, assert_reset, connect_unix, echo, reset,
};

/// A pipe, a client, and its connection at the target. Bytes have crossed in both directions.
fn conversation() -> (Pipe, TcpStream, TcpStream) {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).start();
    let mut client = pipe.connect();
    let mut served = service.accept();
    client.write_all(b"half a requ").expect("the pipe accepts the bytes");
    assert_reads(&mut served, "half a requ");
    served.write_all(b"half an ans").expect("the pipe accepts the bytes");
    assert_reads(&mut client, "half an ans");
    (pipe, client, served)
}

#[test]
fn a_clients_reset_resets_the_target() {
    let (pipe, client, mut served) = conversation();
    reset(client);
    assert_reset(&mut served);
    pipe.initiator.await_line(&["closed", "the local side was reset"]);
    pipe.responder.await_line(&["closed", "the connection at the other end was reset"]);
}

#[test]
fn a_targets_reset_resets_the_client() {
    let (pipe, mut client, served) = conversation();
    reset(served);
    assert_reset(&mut client);
    pipe.responder.await_line(&["closed", "the local side was reset"]);
    pipe.initiator.await_line(&["closed", "the connection at the other end was reset"]);
}

/// Waits until the kernel has an error for the socket: behind the end of a stream, reading does not tell it.
fn await_error(stream: &TcpStream) {
    poll_until("the connection is reset", || stream.take_error().expect("the socket is open"));
}

#[test]
fn a_clients_reset_behind_its_end_resets_a_silent_target() {
    let (pipe, client, mut served) = conversation();
    client.shutdown(Shutdown::Write).expect("the client is connected");
    assert_ends(&mut served);
    reset(client);
    await_error(&served);
    pipe.initiator.await_line(&["closed", "the local side was reset"]);
    pipe.responder.await_line(&["closed", "the other end gave up"]);
}

#[test]
fn a_targets_reset_behind_its_end_resets_a_silent_client() {
    let (pipe, mut client, served) = conversation();
    served.shutdown(Shutdown::Write).expect("the target is connected");
    assert_ends(&mut client);
    reset(served);
    await_error(&client);
    pipe.responder.await_line(&["closed", "the local side was reset"]);
    pipe.initiator.await_line(&["closed", "the other end gave up"]);
}

#[test]
fn a_unix_client_that_leaves_its_answer_unread_resets_a_silent_target() {
    let (key, service) = (Key::new(), Service::start());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let responder = End::responder(&key, service.address()).start();
    let source = directory.path().join("source");
    let initiator = End::initiator(&key, responder.address()).source(source.display()).start();
    let client = connect_unix(&source).expect("the socket listens");
    client.shutdown(Shutdown::Write).expect("the client is connected");
    let mut served = service.accept();
    assert_ends(&mut served);
    served.write_all(b"an answer").expect("the pipe accepts the bytes");
    poll_until("the answer arrives", || match rustix::io::ioctl_fionread(&client) {
        Ok(0) => None,
        unread => Some(unread.expect("the socket is open")),
    });
    // With unread bytes, which is how a Unix-domain socket is reset.
    drop(client);
    await_error(&served);
    initiator.await_line(&["closed", "the local side was reset"]);
}

#[test]
fn a_connection_reset_behind_its_end_frees_its_place() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).args(&["-n", "1"]).start();
    let first = pipe.connect();
    let mut served = service.accept();
    first.shutdown(Shutdown::Write).expect("the client is connected");
    assert_ends(&mut served);
    reset(first);
    let mut second = pipe.connect();
    second.write_all(b"next").expect("the pipe accepts the bytes");
    assert_reads(&mut service.accept(), "next");
}

#[test]
fn when_the_responder_is_killed_the_client_is_reset() {
    let (pipe, mut client, _served) = conversation();
    pipe.responder.process.kill();
    assert_reset(&mut client);
}

#[test]
fn when_the_responder_is_killed_the_target_is_reset() {
    let (pipe, _client, mut served) = conversation();
    pipe.responder.process.kill();
    assert_reset(&mut served);
}

#[test]
fn when_the_initiator_is_killed_the_target_is_reset() {
    let (pipe, _client, mut served) = conversation();
    pipe.initiator.process.kill();
    assert_reset(&mut served);
}

#[test]
fn when_the_initiator_is_killed_the_client_is_reset() {
    let (pipe, mut client, _served) = conversation();
    pipe.initiator.process.kill();
    assert_reset(&mut client);
}

#[test]
fn a_target_that_refuses_resets_the_client() {
    let pipe = Pipe::to(format!("127.0.0.1:{}", free_port())).start();
    pipe.initiator.assert_resets_a_client();
    pipe.responder.await_line(&["refused", "cannot connect to", "Connection refused"]);
    pipe.initiator.await_line(&["the other end cannot reach its target"]);
}

#[test]
fn a_responder_that_is_down_resets_the_client() {
    let initiator = End::initiator(&Key::new(), format!("127.0.0.1:{}", free_port())).start();
    initiator.assert_resets_a_client();
    initiator.await_line(&["failed", "cannot connect to", "Connection refused"]);
}

#[test]
fn the_failure_of_one_connection_does_not_affect_another() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).start();
    let mut survivor = pipe.connect();
    let mut surviving = service.accept();
    let doomed = pipe.connect();
    let mut served = service.accept();
    reset(doomed);
    assert_reset(&mut served);
    survivor.write_all(b"still here").expect("the pipe accepts the bytes");
    assert_reads(&mut surviving, "still here");
}

#[test]
fn a_broken_pipe_signal_is_harmless() {
    let pipe = Pipe::to(echo()).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "before");
    pipe.initiator.process.signal(Signal::PIPE);
    pipe.responder.process.signal(Signal::PIPE);
    assert_echoes(&mut client, "after");
    assert_echoes(&mut pipe.connect(), "a new one, too");
}
