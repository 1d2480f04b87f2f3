//! How long connections may go on after SIGTERM (--drain-timeout), and what becomes of those that do not end by then.

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

/// What a machine under load may add to a time limit of a second.
const SLACK: Duration = Duration::from_secs(20);

/// A pipe whose ends have these arguments, with a client and its connection at the service, on which bytes have gone.
fn conversation(args: &[&str]) -> (Pipe, TcpStream, TcpStream) {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).args(args).start();
    let mut client = pipe.connect();
    let mut served = service.accept();
    std::io::Write::write_all(&mut client, b"half a requ").expect("the pipe accepts the bytes");
    assert_reads(&mut served, "half a requ");
    (pipe, client, served)
}

/// Stops `end`, which has one connection that never ends, and asserts that it is cut, and said to be.
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
fn no_time_at_all_resets_at_once() {
    let (mut pipe, mut client, mut served) = conversation(&["--drain-timeout", "0"]);
    assert_cuts(&mut pipe.initiator);
    assert_reset(&mut client);
    assert_reset(&mut served);
}

#[test]
fn no_time_at_all_is_enough_for_no_connection() {
    let key = Key::new();
    for _ in 0..10 {
        let mut end = End::initiator(&key, "127.0.0.1:9").args(&["--drain-timeout", "0"]).start();
        end.process.signal(Signal::TERM);
        assert_eq!(end.process.wait().code(), Some(0), "{}", end.process.log());
        end.await_line(&["INFO stopped"]);
    }
}

#[test]
fn a_connection_that_ends_in_time_ends_in_order_and_the_process_at_once() {
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
fn only_those_are_cut_that_have_not_ended() {
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
fn without_a_word_about_it_connections_have_a_minute() {
    let manager = Manager::start();
    let key = Key::new();
    let end = End::initiator(&key, "127.0.0.1:9");
    let mut process = Process::start(end.command().env("NOTIFY_SOCKET", manager.address()));
    process.await_line(&["listening"]);
    process.signal(Signal::TERM);
    // The manager is asked for five seconds more than that.
    assert!(manager.await_line("STOPPING=1").contains(&"EXTEND_TIMEOUT_USEC=65000000".to_owned()));
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_second_signal_of_another_kind_cuts_as_well() {
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
fn sighup_while_connections_finish_does_nothing() {
    let mut pipe = Pipe::to(echo()).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "before");
    pipe.initiator.process.signal(Signal::TERM);
    pipe.initiator.await_line(&["stopping"]);
    for round in 0..10 {
        pipe.initiator.process.signal(Signal::HUP);
        assert_echoes(&mut client, &format!("round {round}"));
    }
    assert!(TcpStream::connect(pipe.initiator.address()).is_err(), "nobody is accepted again");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut client);
    assert_eq!(pipe.initiator.process.wait().code(), Some(0));
    assert!(!pipe.initiator.process.log().contains("reloaded"), "{}", pipe.initiator.process.log());
}

#[test]
fn all_pipes_stop_to_listen_at_once_and_each_ones_connection_finishes() {
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
fn a_connection_of_a_pipe_that_a_reload_has_removed_is_waited_for_as_well() {
    let site = Site::with_key();
    let target = echo();
    let a = site.both_ends("a", target);
    let mut process = site.serve(a.clone() + &site.both_ends("b", target));
    let mut client = site.connect("b");
    assert_echoes(&mut client, "before");
    site.configure(a);
    process.reload_well();
    process.signal(Signal::TERM);
    process.await_line(&["stopping", "connections=2"]);
    assert_echoes(&mut client, "after");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut client);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_client_that_waits_for_a_place_is_refused_and_does_not_hang() {
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
fn a_silent_stranger_holds_up_the_end_for_no_longer_than_a_handshake_may_take() {
    let mut responder = End::responder(&Key::new(), "127.0.0.1:9").args(&["-o", "1"]).start();
    let _stranger = connect(responder.address());
    // It is accepted when the one after it is.
    let mut second = connect(responder.address());
    std::io::Write::write_all(&mut second, &[7; 5000]).expect("the socket buffer has room");
    responder.await_line(&["refused"]);
    responder.process.signal(Signal::TERM);
    responder.await_line(&["stopping"]);
    assert_eq!(responder.process.wait().code(), Some(0));
}

#[test]
fn a_silent_stranger_is_not_among_the_connections_that_are_cut() {
    let args = ["-o", "600", "--drain-timeout", "0"];
    let mut responder = End::responder(&Key::new(), "127.0.0.1:9").args(&args).start();
    let mut stranger = connect(responder.address());
    // It is accepted when the one after it is.
    let mut second = connect(responder.address());
    std::io::Write::write_all(&mut second, &[7; 5000]).expect("the socket buffer has room");
    responder.await_line(&["refused"]);
    responder.process.signal(Signal::TERM);
    assert_eq!(responder.process.wait().code(), Some(0), "{}", responder.process.log());
    responder.await_line(&["INFO stopped"]);
    assert_ends(&mut stranger);
}

#[test]
fn a_silent_stranger_of_a_pipe_that_a_reload_has_removed_is_not_cut_either() {
    let site = Site::with_key();
    let target = echo();
    let a = site.both_ends("a", target);
    let mut process = site.serve("drain-timeout = 0\n".to_owned() + &a + &site.both_ends("b", target));
    let mut stranger = site.try_connect("b-sealed").expect("the socket listens");
    // The stranger has been accepted when the one after it has been served.
    assert_echoes(&mut site.connect("b"), "hello");
    process.await_lines(2, " closed ");
    site.configure("drain-timeout = 0\n".to_owned() + &a);
    process.reload_well();
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    process.await_line(&["INFO stopped"]);
    assert_ends(&mut stranger);
}

#[test]
fn what_has_stopped_can_be_started_again_at_once() {
    // Not on port 0: it is the same port that must be free again, at an address where nobody else looks for one.
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
fn a_drain_timeout_that_is_no_number_of_seconds_is_a_mistake() {
    let key = Key::new();
    for value in ["soon", "1.5", "4294967296"] {
        let end = End::initiator(&key, "127.0.0.1:9").args(&["--drain-timeout", value]);
        run(&mut end.command()).failed_with(2, &["--drain-timeout", value]);
    }
}
