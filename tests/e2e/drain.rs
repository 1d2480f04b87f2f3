//! How long connections may continue after SIGTERM (--drain-timeout), and what happens to those that have not ended
//! by then.

use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::manager::Manager;
use crate::support::pipe::{End, Key, Pipe, field};
use crate::support::process::{Process, run};
use crate::support::redis::free_port;
use crate::support::site::Site;
use crate::support::socket::{
    Service, assert_echoes, assert_ends, assert_reads, assert_reset, connect, echo,
};

/// The delay that a machine under load may add to a time limit of one second.
const SLACK: Duration = Duration::from_secs(20);

/// A pipe with these arguments at both ends, a client, and its connection at the target. Bytes have already crossed.
fn conversation(args: &[&str]) -> (Pipe, TcpStream, TcpStream) {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).args(args).start();
    let mut client = pipe.connect();
    let mut served = service.accept();
    std::io::Write::write_all(&mut client, b"half a requ").expect("the pipe accepts the bytes");
    assert_reads(&mut served, "half a requ");
    (pipe, client, served)
}

/// Stops `end`, which has one connection that never ends. Asserts that the log reports one cut connection, and
/// returns how long the stop took.
fn assert_cuts(end: &mut End) -> Duration {
    let start = Instant::now();
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    let took = start.elapsed();
    let line = end.await_line(&["WARN stopped: ended connections that were not finished"]);
    assert_eq!(field(&line, "connections"), "1");
    took
}

#[test]
fn a_connection_of_the_initiator_that_takes_too_long_is_reset_on_both_sides() {
    let (mut pipe, mut client, mut served) = conversation(&["--drain-timeout", "1"]);
    let took = assert_cuts(&mut pipe.initiator);
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(1) + SLACK, "{took:?}");
    assert_reset(&mut client);
    assert_reset(&mut served);
    pipe.responder.await_line(&["WARN closed", "the other end was shut down"]);
}

#[test]
fn a_connection_of_the_responder_that_takes_too_long_is_reset_on_both_sides() {
    let (mut pipe, mut client, mut served) = conversation(&["--drain-timeout", "1"]);
    let took = assert_cuts(&mut pipe.responder);
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(1) + SLACK, "{took:?}");
    assert_reset(&mut served);
    assert_reset(&mut client);
    pipe.initiator.await_line(&["WARN closed", "the other end was shut down"]);
}

#[test]
fn a_drain_timeout_of_0_resets_connections_at_once() {
    let (mut pipe, mut client, mut served) = conversation(&["--drain-timeout", "0"]);
    assert_cuts(&mut pipe.initiator);
    assert_reset(&mut client);
    assert_reset(&mut served);
}

#[test]
fn a_drain_timeout_of_0_without_connections_ends_with_success() {
    let key = Key::new();
    for _ in 0..10 {
        let mut end = End::initiator(&key, "127.0.0.1:9").args(&["--drain-timeout", "0"]).start();
        end.process.signal(Signal::TERM);
        assert_eq!(end.process.wait().code(), Some(0), "{}", end.process.log());
        end.await_line(&["INFO stopped"]);
    }
}

#[test]
fn a_connection_that_ends_in_time_ends_cleanly_and_then_the_process_ends() {
    let mut pipe = Pipe::to(echo()).args(&["--drain-timeout", "3600"]).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "before");
    pipe.initiator.process.signal(Signal::TERM);
    pipe.initiator.await_line(&["stopping", "connections=1"]);
    assert_echoes(&mut client, "after");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut client);
    assert_eq!(pipe.initiator.process.wait().code(), Some(0));
}

#[test]
fn only_unfinished_connections_are_cut() {
    let mut pipe = Pipe::to(echo()).start();
    let mut clients: Vec<_> = (0..3).map(|_| pipe.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, "hello");
    }
    pipe.initiator.process.signal(Signal::TERM);
    pipe.initiator.await_line(&["stopping", "connections=3"]);
    let mut stays = clients.pop().expect("three clients");
    for mut client in clients {
        client.shutdown(Shutdown::Write).expect("the socket is connected");
        assert_ends(&mut client);
    }
    assert_echoes(&mut stays, "still running");
    pipe.initiator.process.signal(Signal::TERM);
    assert_eq!(pipe.initiator.process.wait().code(), Some(0));
    assert_reset(&mut stays);
}

#[test]
fn the_default_drain_timeout_is_a_minute() {
    let manager = Manager::start();
    let key = Key::new();
    let end = End::initiator(&key, "127.0.0.1:9");
    let mut process = Process::start(end.command().env("NOTIFY_SOCKET", manager.address()));
    process.await_line(&["listening"]);
    process.signal(Signal::TERM);
    // The process asks the manager for five seconds more.
    assert!(manager.await_line("STOPPING=1").contains(&"EXTEND_TIMEOUT_USEC=65000000".to_owned()));
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_second_signal_of_another_kind_cuts_connections() {
    for [first, second] in [[Signal::TERM, Signal::INT], [Signal::INT, Signal::TERM]] {
        let (mut pipe, mut client, _served) = conversation(&["--drain-timeout", "3600"]);
        pipe.initiator.process.signal(first);
        pipe.initiator.await_line(&["stopping"]);
        pipe.initiator.process.signal(second);
        assert_eq!(pipe.initiator.process.wait().code(), Some(0));
        pipe.initiator.await_line(&["WARN stopped", "connections=1"]);
        assert_reset(&mut client);
    }
}

#[test]
fn sighup_during_a_drain_does_nothing() {
    let mut pipe = Pipe::to(echo()).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "before");
    pipe.initiator.process.signal(Signal::TERM);
    pipe.initiator.await_line(&["stopping"]);
    for round in 0..10 {
        pipe.initiator.process.signal(Signal::HUP);
        assert_echoes(&mut client, &format!("round {round}"));
    }
    assert!(TcpStream::connect(pipe.initiator.address()).is_err(), "it accepts no new connection");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut client);
    assert_eq!(pipe.initiator.process.wait().code(), Some(0));
    assert!(!pipe.initiator.process.log().contains("reloaded"), "{}", pipe.initiator.process.log());
}

#[test]
fn all_pipes_stop_listening_at_once_and_their_connections_finish() {
    let site = Site::with_key();
    let target = echo();
    let mut process = site.serve(site.both_ends("a", target) + &site.both_ends("b", target));
    let mut clients = [site.connect("a"), site.connect("b")];
    for client in &mut clients {
        assert_echoes(client, "before");
    }
    process.signal(Signal::TERM);
    // Both ends are in this process.
    process.await_line(&["stopping", "connections=4"]);
    for name in ["a", "b", "a-sealed", "b-sealed"] {
        assert!(site.try_connect(name).is_err(), "{name} listens");
        assert!(!site.path(&format!("{name}.sock")).exists(), "{name} is left behind");
    }
    for mut client in clients {
        assert_echoes(&mut client, "after");
        client.shutdown(Shutdown::Write).expect("the socket is connected");
        assert_ends(&mut client);
    }
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_drain_also_waits_for_connections_of_a_removed_pipe() {
    let site = Site::with_key();
    let target = echo();
    let a = site.both_ends("a", target);
    let mut process = site.serve(a.clone() + &site.both_ends("b", target));
    let mut client = site.connect("b");
    assert_echoes(&mut client, "before");
    site.configure(a);
    process.reload_successfully();
    process.signal(Signal::TERM);
    process.await_line(&["stopping", "connections=2"]);
    assert_echoes(&mut client, "after");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut client);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_client_that_waits_for_a_slot_is_reset_and_does_not_hang() {
    let mut pipe = Pipe::to(echo()).initiator_args(&["-n", "1", "--drain-timeout", "3600"]).start();
    let mut only = pipe.connect();
    assert_echoes(&mut only, "the only one");
    pipe.initiator.await_line(&["as many connections as -n allows"]);
    let mut waiting = pipe.connect();
    pipe.initiator.process.signal(Signal::TERM);
    assert_reset(&mut waiting);
    assert_echoes(&mut only, "undisturbed");
    only.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut only);
    assert_eq!(pipe.initiator.process.wait().code(), Some(0));
}

#[test]
fn a_silent_stranger_delays_the_exit_by_at_most_the_handshake_timeout() {
    let mut responder = End::responder(&Key::new(), "127.0.0.1:9").args(&["-o", "1"]).start();
    let _stranger = connect(responder.address());
    // It has been accepted when a later connection has been accepted.
    let mut second = connect(responder.address());
    std::io::Write::write_all(&mut second, &[7; 5000]).expect("the socket buffer has room");
    responder.await_line(&["refused"]);
    responder.process.signal(Signal::TERM);
    responder.await_line(&["stopping"]);
    assert_eq!(responder.process.wait().code(), Some(0));
}

#[test]
fn a_silent_stranger_is_not_counted_as_a_cut_connection() {
    let args = ["-o", "600", "--drain-timeout", "0"];
    let mut responder = End::responder(&Key::new(), "127.0.0.1:9").args(&args).start();
    let mut stranger = connect(responder.address());
    // It has been accepted when a later connection has been accepted.
    let mut second = connect(responder.address());
    std::io::Write::write_all(&mut second, &[7; 5000]).expect("the socket buffer has room");
    responder.await_line(&["refused"]);
    responder.process.signal(Signal::TERM);
    assert_eq!(responder.process.wait().code(), Some(0), "{}", responder.process.log());
    responder.await_line(&["INFO stopped"]);
    assert_ends(&mut stranger);
}

#[test]
fn a_silent_stranger_of_a_removed_pipe_is_not_counted_as_a_cut_connection() {
    let site = Site::with_key();
    let target = echo();
    let a = site.both_ends("a", target);
    let mut process = site.serve("drain-timeout = 0\n".to_owned() + &a + &site.both_ends("b", target));
    let mut stranger = site.try_connect("b-sealed").expect("the socket listens");
    // The stranger has been accepted when a later connection has been served.
    assert_echoes(&mut site.connect("b"), "hello");
    process.await_lines(2, " closed ");
    site.configure("drain-timeout = 0\n".to_owned() + &a);
    process.reload_successfully();
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    process.await_line(&["INFO stopped"]);
    assert_ends(&mut stranger);
}

#[test]
fn a_stopped_process_can_be_started_again_at_once() {
    // Not on port 0: the same port must be free again. No other test uses this address.
    let key = Key::new();
    let address = std::net::SocketAddr::from(([127, 77, 0, 1], free_port()));
    let responder = End::responder(&key, echo()).start();
    for _ in 0..3 {
        let end = End::initiator(&key, responder.address()).source(address);
        let mut end = end.args(&["--drain-timeout", "0"]).start();
        let mut client = connect(address);
        assert_echoes(&mut client, "hello");
        end.process.signal(Signal::TERM);
        assert_eq!(end.process.wait().code(), Some(0));
        assert_reset(&mut client);
    }
}

#[test]
fn a_drain_timeout_that_is_not_a_number_of_seconds_is_a_usage_error() {
    let key = Key::new();
    for value in ["soon", "1.5", "4294967296"] {
        let end = End::initiator(&key, "127.0.0.1:9").args(&["--drain-timeout", value]);
        run(&mut end.command()).failed_with(2, &["--drain-timeout", value]);
    }
}
