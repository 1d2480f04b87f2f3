//! How a pipe stops, and what it does when its log cannot be written.

use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::pipe::{End, Key, Pipe};
use crate::support::poll_until;
use crate::support::process::Process;
use crate::support::socket::{assert_echoes, assert_ends, assert_reset, connect_unix, echo};

/// Asserts that `end` lets its one connection finish after `signal`, refuses new ones, and ends with success.
fn assert_drains(end: &mut End, signal: Signal, mut client: TcpStream) {
    end.process.signal(signal);
    end.await_line(&["stopping", "connections=1"]);
    let refused = TcpStream::connect(end.address()).map(|_| ()).map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
    assert_echoes(&mut client, "still running");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut client);
    assert_eq!(end.process.wait().code(), Some(0));
    end.await_line(&["stopped"]);
}

#[test]
fn sigterm_lets_the_initiators_connection_finish_and_refuses_new_ones() {
    let mut pipe = Pipe::to(echo()).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "before");
    assert_drains(&mut pipe.initiator, Signal::TERM, client);
}

#[test]
fn sigterm_lets_the_responders_connection_finish_and_refuses_new_ones() {
    let mut pipe = Pipe::to(echo()).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "before");
    assert_drains(&mut pipe.responder, Signal::TERM, client);
}

#[test]
fn sigint_lets_connections_finish_too() {
    let mut pipe = Pipe::to(echo()).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "before");
    assert_drains(&mut pipe.initiator, Signal::INT, client);
}

#[test]
fn a_second_sigterm_cuts_connections_at_once() {
    let mut pipe = Pipe::to(echo()).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "before");
    pipe.initiator.process.signal(Signal::TERM);
    pipe.initiator.await_line(&["stopping"]);
    pipe.initiator.process.signal(Signal::TERM);
    assert_eq!(pipe.initiator.process.wait().code(), Some(0));
    pipe.initiator.await_line(&["WARN stopped", "connections=1"]);
    assert_reset(&mut client);
}

#[test]
fn sigterm_ends_an_idle_pipe_with_success() {
    let mut pipe = Pipe::to(echo()).start();
    for end in [&mut pipe.initiator, &mut pipe.responder] {
        end.process.signal(Signal::TERM);
        assert_eq!(end.process.wait().code(), Some(0));
    }
}

/// Asserts that a pipe serves whose initiator has `stderr` as its standard error. The initiator cannot log where it
/// listens, so its source is a fixed path.
fn assert_serves_with_stderr(stderr: Stdio) {
    let key = Key::new();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let source = directory.path().join("plain.sock");
    let responder = End::responder(&key, echo()).start();
    let initiator = End::initiator(&key, responder.address()).args(&["--verbose"]).source(source.display());
    let mut process =
        Process::start_piped(initiator.command().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr));
    let connect = || connect_unix(&source).ok();
    // Several connections, since the end of each is logged.
    for _ in 0..3 {
        assert_echoes(&mut poll_until("it listens", connect), "without a log");
    }
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_log_on_a_full_disk_does_not_stop_the_pipe() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has this file");
    assert_serves_with_stderr(full.into());
}

#[test]
fn a_log_without_a_reader_does_not_stop_the_pipe() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert_serves_with_stderr(writer.into());
}
