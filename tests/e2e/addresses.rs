//! Every way to write an address.

use std::io::Write;
use std::net::SocketAddr;

use crate::support::pipe::{End, Key, Pipe, field};
use crate::support::socket::{Service, assert_echoes, assert_reads, connect, echo, send_back};

/// Starts a pipe whose initiator listens on `source`, and asserts that it can be reached at each of `hosts`.
fn assert_listens(source: &str, hosts: &[&str]) {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let initiator = End::initiator(&key, responder.address()).source(source).start();
    for host in hosts {
        let address: SocketAddr = format!("{host}:{}", initiator.port()).parse().expect("an address");
        assert_echoes(&mut connect(address), host);
    }
}

/// An address of each family, and a second one. A host without ::1 cannot show that both families work: the tests fail
/// there, at connecting.
const EVERY_ADDRESS: [&str; 3] = ["127.0.0.1", "127.0.0.2", "[::1]"];

#[test]
fn empty_brackets_listen_on_both_families() {
    assert_listens("[]:0", &EVERY_ADDRESS);
}

#[test]
fn a_star_listens_on_both_families() {
    assert_listens("*:0", &EVERY_ADDRESS);
}

#[test]
fn every_address_is_one_line_each_with_the_same_port() {
    let end = End::initiator(&Key::new(), "127.0.0.1:9").source("*:0").start();
    let lines = end.process.await_lines(2, "listening");
    let sources: Vec<_> = lines.iter().map(|line| field(line, "source")).collect();
    let port = end.port();
    assert_eq!(sources, [format!("[0.0.0.0]:{port}"), format!("[::]:{port}")]);
}

#[test]
fn an_ipv4_address_is_listened_on_with_and_without_brackets() {
    assert_listens("127.0.0.1:0", &["127.0.0.1"]);
    assert_listens("[127.0.0.1]:0", &["127.0.0.1"]);
}

#[test]
fn an_ipv6_address_is_listened_on() {
    assert_listens("[::1]:0", &["[::1]"]);
}

#[test]
fn a_name_is_listened_on() {
    assert_listens("localhost:0", &["127.0.0.1"]);
}

#[test]
fn a_name_of_several_addresses_is_tried_on_all_of_them() {
    // Where localhost has two addresses, one of the two services refuses the first attempt.
    let v4 = Service::start().serve(send_back);
    let pipe = Pipe::to(format!("localhost:{}", v4.port())).start();
    assert_echoes(&mut pipe.connect(), "over IPv4");
}

#[test]
fn a_bracketed_name_is_a_target() {
    let pipe = Pipe::to(format!("[localhost]:{}", echo().port())).start();
    assert_echoes(&mut pipe.connect(), "hello");
}

#[test]
fn an_ipv6_target_is_reached() {
    let service = Service::start_on("[::1]:0").serve(send_back);
    let pipe = Pipe::to(service).start();
    assert_echoes(&mut pipe.connect(), "over IPv6");
}

#[test]
fn the_outgoing_address_is_what_the_service_sees() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).responder_args(&["-b", "127.0.0.2"]).start();
    let mut client = pipe.connect();
    let mut served = service.accept();
    assert_eq!(served.peer_addr().expect("the socket is connected").ip().to_string(), "127.0.0.2");
    client.write_all(b"hello").expect("the pipe accepts the bytes");
    assert_reads(&mut served, "hello");
}

#[test]
fn the_outgoing_address_is_what_the_responder_sees() {
    let pipe = Pipe::to(echo()).initiator_args(&["-b", "[127.0.0.3]"]).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "hello");
    drop(client);
    assert!(field(&pipe.responder.await_line(&[" closed "]), "peer").starts_with("[127.0.0.3]:"));
}
