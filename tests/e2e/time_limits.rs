//! Connections that nothing is wrong with, and that take more time than they may.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::pipe::{End, Key, Pipe, field, stdio};
use crate::support::process::Process;
use crate::support::site::Site;
use crate::support::socket::{
    BlackHole, Service, assert_echoes, assert_ends, assert_reads, assert_reset, echo,
};

const IDLE: [&str; 2] = ["--idle-timeout", "1"];
const IDLE_HERE: &str = "idle: no byte was carried for 1 s (--idle-timeout)";
const IDLE_THERE: &str = "the other end ended the connection, since it was idle";

/// A client, and its connection at the target. Bytes have crossed in both directions.
fn conversation(pipe: &Pipe, service: &Service) -> (TcpStream, TcpStream) {
    let mut client = pipe.connect();
    let mut served = service.accept();
    client.write_all(b"request").expect("the pipe accepts the bytes");
    assert_reads(&mut served, "request");
    served.write_all(b"answer").expect("the pipe accepts the bytes");
    assert_reads(&mut client, "answer");
    (client, served)
}

#[test]
fn an_idle_connection_is_reset_by_an_initiator_with_a_limit() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).initiator_args(&IDLE).start();
    let (mut client, mut served) = conversation(&pipe, &service);
    assert_reset(&mut client);
    assert_reset(&mut served);
    let line = pipe.initiator.await_line(&["closed", IDLE_HERE]);
    assert!(line.contains("INFO"), "a limit that is reached is no warning: {line}");
    pipe.responder.await_line(&["INFO", "closed", IDLE_THERE]);
}

#[test]
fn an_idle_connection_is_reset_by_a_responder_with_a_limit() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).responder_args(&IDLE).start();
    let (mut client, mut served) = conversation(&pipe, &service);
    assert_reset(&mut client);
    assert_reset(&mut served);
    pipe.responder.await_line(&["closed", IDLE_HERE]);
    pipe.initiator.await_line(&["closed", IDLE_THERE]);
}

#[test]
fn a_connection_on_which_nobody_ever_says_a_word_is_idle() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).initiator_args(&IDLE).start();
    let mut client = pipe.connect();
    let mut served = service.accept();
    assert_reset(&mut client);
    assert_reset(&mut served);
}

#[test]
fn bytes_of_one_direction_keep_a_connection() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).args(&["--idle-timeout", "3"]).start();
    let (mut client, mut served) = conversation(&pipe, &service);
    // The subject of this test: a time longer than the limit, in pauses that are shorter.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(200));
        served.write_all(b".").expect("the connection lives");
        assert_reads(&mut client, ".");
    }
}

const HALF_CLOSE: [&str; 2] = ["--half-close-timeout", "1"];
const HALF_CLOSED_HERE: &str =
    "idle: it was half-closed, and no byte was carried for 1 s (--half-close-timeout)";

#[test]
fn a_half_closed_connection_that_is_idle_is_reset() {
    for end in [Shutdown::Write, Shutdown::Read] {
        let service = Service::start();
        let pipe = Pipe::to(service.address()).initiator_args(&HALF_CLOSE).start();
        let (mut client, mut served) = conversation(&pipe, &service);
        // Either side may be the one that has said all.
        let (ending, silent) = match end {
            Shutdown::Write => (&mut client, &mut served),
            _ => (&mut served, &mut client),
        };
        ending.shutdown(Shutdown::Write).expect("the stream is connected");
        assert_ends(silent);
        pipe.initiator.await_line(&["closed", HALF_CLOSED_HERE]);
        // The reset comes behind the end of the stream.
        assert_reset(ending);
    }
}

#[test]
fn a_half_closed_connection_is_reset_by_a_responder_with_a_limit() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).responder_args(&HALF_CLOSE).start();
    let (mut client, mut served) = conversation(&pipe, &service);
    client.shutdown(Shutdown::Write).expect("the client is connected");
    assert_ends(&mut served);
    assert_reset(&mut client);
    pipe.responder.await_line(&["closed", HALF_CLOSED_HERE]);
    pipe.initiator.await_line(&["closed", IDLE_THERE]);
}

#[test]
fn a_connection_with_both_directions_open_is_not_half_closed() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).args(&HALF_CLOSE).start();
    let (mut client, mut served) = conversation(&pipe, &service);
    let (mut ending, _ended) = conversation(&pipe, &service);
    ending.shutdown(Shutdown::Write).expect("the client is connected");
    assert_reset(&mut ending);
    served.write_all(b"still here").expect("the connection lives");
    assert_reads(&mut client, "still here");
}

#[test]
fn a_half_closed_connection_that_carries_bytes_lives() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).args(&["--half-close-timeout", "3"]).start();
    let (mut client, mut served) = conversation(&pipe, &service);
    client.shutdown(Shutdown::Write).expect("the client is connected");
    assert_ends(&mut served);
    // The subject of this test: an age beyond the limit, in pauses that are shorter.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(200));
        served.write_all(b".").expect("the connection lives");
        assert_reads(&mut client, ".");
    }
    served.shutdown(Shutdown::Write).expect("the connection lives");
    assert_ends(&mut client);
    pipe.initiator.await_line(&["closed", "finished"]);
}

#[test]
fn half_closed_a_connection_may_be_idle_for_longer() {
    let service = Service::start();
    let pipe =
        Pipe::to(service.address()).initiator_args(&IDLE).args(&["--half-close-timeout", "3600"]).start();
    let (mut client, mut served) = conversation(&pipe, &service);
    client.shutdown(Shutdown::Write).expect("the client is connected");
    assert_ends(&mut served);
    let (mut idle, _served) = conversation(&pipe, &service);
    assert_reset(&mut idle);
    served.write_all(b"answer").expect("the connection lives");
    drop(served);
    assert_reads(&mut client, "answer");
    assert_ends(&mut client);
}

const EXPIRED_HERE: &str = "expired: it has lasted for as long as it may (--max-lifetime)";
const EXPIRED_THERE: &str = "the other end ended the connection, since it has lasted for as long as it may";

/// Says something and reads it again, until the connection ends; gives the error.
fn talk_to_the_end(client: &mut TcpStream) -> std::io::ErrorKind {
    let mut talk = || client.write_all(b"x").and_then(|()| client.read_exact(&mut [0]));
    loop {
        if let Err(error) = talk() {
            return error.kind();
        }
    }
}

#[test]
fn a_busy_connection_ends_at_its_age() {
    let pipe = Pipe::to(echo()).initiator_args(&["--max-lifetime", "2"]).start();
    let start = Instant::now();
    let mut client = pipe.connect();
    assert_eq!(talk_to_the_end(&mut client), std::io::ErrorKind::ConnectionReset);
    assert!(start.elapsed() >= Duration::from_millis(1_800), "it took only {:?}", start.elapsed());
    pipe.initiator.await_line(&["INFO", "closed", EXPIRED_HERE]);
    pipe.responder.await_line(&["INFO", "closed", EXPIRED_THERE]);
}

#[test]
fn a_responder_ends_a_connection_at_its_age() {
    let pipe = Pipe::to(echo()).responder_args(&["--max-lifetime", "1"]).start();
    assert_eq!(talk_to_the_end(&mut pipe.connect()), std::io::ErrorKind::ConnectionReset);
    pipe.responder.await_line(&["closed", EXPIRED_HERE]);
    pipe.initiator.await_line(&["closed", EXPIRED_THERE]);
}

#[test]
fn connections_that_began_together_do_not_end_together() {
    let pipe = Pipe::to(echo()).args(&["-n", "0"]).initiator_args(&["--max-lifetime", "10"]).start();
    let crowd: Vec<_> = (0..100).map(|_| pipe.connect()).collect();
    let lines = pipe.initiator.process.await_lines(100, "(--max-lifetime)");
    let ages = lines.iter().map(|line| field(line, "seconds").parse::<f64>().expect("a number"));
    let (first, last) =
        ages.fold((f64::MAX, 0.0), |(first, last): (f64, f64), age| (first.min(age), last.max(age)));
    println!("100 connections ended over {:.2} s", last - first);
    assert!(first >= 9.0 && last - first > 0.5, "{first} s to {last} s");
    drop(crowd);
}

#[test]
fn a_connection_that_still_waits_for_its_responder_ends_at_its_age() {
    let (key, never) = (Key::new(), BlackHole::start());
    // The responder shakes hands, and its target never answers.
    let responder = End::responder(&key, never.address()).args(&["-o", "3600"]).start();
    let initiator = End::initiator(&key, responder.address())
        .args(&["-t", &responder.address().to_string().replace("127.0.0.1", "localhost")])
        .args(&["--max-lifetime", "1"])
        .start();
    let mut client = initiator.connect();
    assert_reset(&mut client);
    initiator.await_line(&["closed", EXPIRED_HERE]);
}

#[test]
fn bytes_that_wait_for_a_reader_who_has_stalled_keep_no_connection() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).responder_args(&IDLE).start();
    let (_stalled, mut served) = conversation(&pipe, &service);
    let bytes = vec![7; 1 << 16];
    // Until every buffer on the way is full, and the limit is reached.
    let error = loop {
        if let Err(error) = served.write_all(&bytes) {
            break error.kind();
        }
    };
    assert_eq!(error, std::io::ErrorKind::ConnectionReset);
    pipe.responder.await_line(&["closed", IDLE_HERE]);
}

#[test]
fn a_client_of_an_idle_connection_is_reset_although_the_peer_cannot_be_told() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).initiator_args(&IDLE).start();
    let (mut client, mut served) = conversation(&pipe, &service);
    pipe.responder.process.signal(Signal::STOP);
    assert_reset(&mut client);
    pipe.initiator.await_line(&["closed", IDLE_HERE]);
    pipe.responder.process.signal(Signal::CONT);
    assert_reset(&mut served);
}

#[test]
fn an_idle_connection_gives_its_place_to_a_client_that_waits() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).args(&["-n", "1"]).initiator_args(&IDLE).start();
    let (mut idle, _served) = conversation(&pipe, &service);
    let mut next = pipe.connect();
    next.write_all(b"next").expect("the kernel accepts the bytes");
    assert_reset(&mut idle);
    assert_reads(&mut service.accept(), "next");
}

#[test]
fn a_crowd_of_idle_connections_is_reset_and_a_busy_one_lives() {
    let pipe = Pipe::to(echo()).args(&["-n", "0"]).initiator_args(&["--idle-timeout", "2"]).start();
    let mut busy = pipe.connect();
    let mut crowd: Vec<_> = (0..300).map(|_| pipe.connect()).collect();
    for client in &mut crowd {
        client.write_all(b"x").expect("the pipe accepts the byte");
    }
    for client in &mut crowd {
        client.set_read_timeout(Some(Duration::from_millis(100))).expect("the socket is open");
        let mut received = Vec::new();
        let error = loop {
            assert_echoes(&mut busy, "busy");
            match client.read_to_end(&mut received).map_err(|error| error.kind()) {
                Err(std::io::ErrorKind::WouldBlock) => {}
                ended => break ended.expect_err("it is reset"),
            }
        };
        assert_eq!((error, &*received), (std::io::ErrorKind::ConnectionReset, &b"x"[..]));
    }
    pipe.initiator.process.await_lines(300, "(--idle-timeout)");
    assert_echoes(&mut busy, "still busy");
}

#[test]
fn standard_input_and_output_that_are_idle_fail_with_the_reason() {
    let (key, service) = (Key::new(), Service::start());
    let responder = End::responder(&key, service.address()).start();
    let mut command = stdio(responder.address().to_string(), &key.path());
    command.args(IDLE).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::start_piped(&mut command);
    let _open = process.take_input();
    let mut served = service.accept();
    assert_reset(&mut served);
    process.await_line(&["spipe: ", IDLE_HERE]);
    assert_eq!(process.wait().code(), Some(1));
}

#[test]
fn a_reload_changes_limits_for_new_connections_and_running_ones_go_on() {
    let site = Site::with_key();
    let pipe = site.both_ends("a", echo());
    let process = site.serve(&pipe);
    let mut running = site.connect("a");
    assert_echoes(&mut running, "before");
    site.configure(pipe.clone() + "idle-timeout = 1\n");
    process.reload_successfully();
    let mut limited = site.connect("a");
    assert_echoes(&mut limited, "limited");
    process.await_line(&["closed", IDLE_HERE]);
    assert_echoes(&mut running, "after");
    site.configure(pipe);
    process.reload_successfully();
    assert_echoes(&mut site.connect("a"), "unlimited again");
}

#[test]
fn a_handshake_may_be_given_less_than_a_second() {
    let (key, never) = (Key::new(), Service::start());
    // It accepts, and never shakes hands.
    let initiator = End::initiator(&key, never.address()).args(&["-o", "0.3"]).start();
    let start = Instant::now();
    let mut client = initiator.connect();
    assert_reset(&mut client);
    assert!(
        (Duration::from_millis(300)..Duration::from_secs(1)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}
