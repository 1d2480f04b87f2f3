//! All notations of addresses.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;

use crate::support::network::Network;
use crate::support::pipe::{End, Key, Pipe, field};
use crate::support::site::Site;
use crate::support::socket::{Service, assert_echoes, assert_reads, connect, echo, send_back};

/// Starts a pipe whose initiator listens on `source`, and asserts that each of `hosts` reaches it.
fn assert_listens(source: &str, hosts: &[&str]) {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let initiator = End::initiator(&key, responder.address()).source(source).start();
    for host in hosts {
        let address: SocketAddr = format!("{host}:{}", initiator.port()).parse().expect("an address");
        assert_echoes(&mut connect(address), host);
    }
}

/// Two IPv4 addresses and an IPv6 address. On a host without ::1 the tests fail when they connect.
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
fn each_address_has_one_log_line_with_the_same_port() {
    let end = End::initiator(&Key::new(), "127.0.0.1:9").source("*:0").start();
    let lines = end.process.await_lines(2, "listening");
    let sources: Vec<_> = lines.iter().map(|line| field(line, "source")).collect();
    let port = end.port();
    assert_eq!(sources, [format!("[0.0.0.0]:{port}"), format!("[::]:{port}")]);
}

#[test]
fn an_ipv4_source_works_with_and_without_brackets() {
    assert_listens("127.0.0.1:0", &["127.0.0.1"]);
    assert_listens("[127.0.0.1]:0", &["127.0.0.1"]);
}

#[test]
fn an_ipv6_source_works() {
    assert_listens("[::1]:0", &["[::1]"]);
}

#[test]
fn a_host_name_works_as_source() {
    assert_listens("localhost:0", &["127.0.0.1"]);
}

#[test]
fn all_addresses_of_a_host_name_are_tried() {
    // Nothing listens on [::1] at this port. So where localhost has both addresses, an attempt over IPv6 is refused.
    let v4 = Service::start().serve(send_back);
    let pipe = Pipe::to(format!("localhost:{}", v4.port())).start();
    assert_echoes(&mut pipe.connect(), "over IPv4");
}

#[test]
fn a_bracketed_host_name_works_as_target() {
    let pipe = Pipe::to(format!("[localhost]:{}", echo().port())).start();
    assert_echoes(&mut pipe.connect(), "hello");
}

#[test]
fn an_ipv6_target_works() {
    let service = Service::start_on("[::1]:0").serve(send_back);
    let pipe = Pipe::to(service).start();
    assert_echoes(&mut pipe.connect(), "over IPv6");
}

#[test]
fn the_target_sees_the_outgoing_address() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).responder_args(&["-b", "127.0.0.2"]).start();
    let mut client = pipe.connect();
    let mut served = service.accept();
    assert_eq!(served.peer_addr().expect("the socket is connected").ip().to_string(), "127.0.0.2");
    client.write_all(b"hello").expect("the pipe accepts the bytes");
    assert_reads(&mut served, "hello");
}

#[test]
fn the_responder_sees_the_outgoing_address() {
    let pipe = Pipe::to(echo()).initiator_args(&["-b", "[127.0.0.3]"]).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "hello");
    drop(client);
    assert!(field(&pipe.responder.await_line(&[" closed "]), "peer").starts_with("[127.0.0.3]:"));
}

#[test]
fn connections_from_an_outgoing_address_to_different_targets_share_ports() {
    let site = Site::with_key();
    let listener = UnixListener::bind(site.socket("service")).expect("the path is free");
    let mut text = String::new();
    for (name, target) in [("first", "[127.0.0.1]:7000"), ("second", "[127.0.0.2]:7000")] {
        text += &(site.encrypt(name, target) + "bind = \"127.0.0.1\"\n");
    }
    let far = site.decrypt("far", site.socket("service"));
    text += &far.replace(&site.socket("far"), "[0.0.0.0]:7000");
    // Four ports in all.
    let ports = "echo 40000 40003 > /proc/sys/net/ipv4/ip_local_port_range &&";
    let _network = Network::serve(&site, ports, &text);
    let mut open = Vec::new();
    for name in ["first", "second"] {
        for _ in 0..4 {
            let mut client = site.connect(name);
            client.write_all(b"hello").expect("the pipe accepts the bytes");
            let (mut served, _) = listener.accept().expect("the pipe connects");
            assert_reads(&mut served, "hello");
            open.push((client, served));
        }
    }
}
