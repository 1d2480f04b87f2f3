//! A side that does not answer any more is given up within `--dead-after`, and one that only does not read is not.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::network::Network;
use crate::support::pipe::{End, Key, Pipe};
use crate::support::site::Site;
use crate::support::socket::{Service, assert_echoes, assert_reads, guard_unix};

/// The shortest time that the option takes.
const DEAD_AFTER: [&str; 2] = ["--dead-after", "5"];
const LIMIT: Duration = Duration::from_secs(5);
/// What a machine under load may add. Without the option, it would take the kernel a quarter of an hour.
const SLACK: Duration = Duration::from_secs(25);

/// A target at the socket `service.sock` that sends back all bytes.
pub(crate) fn echo_at(site: &Site) {
    let listener = UnixListener::bind(site.socket("service")).expect("the path is free");
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            guard_unix(&stream);
            let mut reader = stream.try_clone().expect("descriptors are left");
            thread::spawn(move || std::io::copy(&mut reader, &mut stream));
        }
    });
}

/// A pipe from `near.sock` over TCP to the echo at `service.sock`, in a network that can be cut, and a client of it.
fn pipe_over_tcp(options: &str) -> (Site, Network, UnixStream) {
    let site = Site::with_key();
    echo_at(&site);
    let near = site.encrypt("near", "[127.0.0.1]:7000") + options;
    let far = site.decrypt("far", site.socket("service")) + options;
    let far = far.replace(&site.socket("far"), "[127.0.0.1]:7000");
    let network = Network::serve(&site, "", &(near + &far));
    let mut client = site.connect("near");
    assert_echoes(&mut client, "before");
    (site, network, client)
}

/// Asserts that the process gives up a connection for this reason in time.
fn assert_noticed(network: &Network, pipe: &str, reason: &str) {
    let start = Instant::now();
    network.process.await_line(&["closed", pipe, reason]);
    assert!(start.elapsed() < LIMIT + SLACK, "it took {:?}", start.elapsed());
}

const NO_ANSWER: &str = "no answer within 5 s (--dead-after)";

#[test]
fn a_path_that_dies_with_data_in_flight_is_noticed_in_time() {
    let (_site, network, mut client) = pipe_over_tcp("dead-after = 5\n");
    network.cut();
    client.write_all(b"into the void").expect("the pipe accepts the bytes");
    assert_noticed(&network, "near", NO_ANSWER);
}

#[test]
fn a_path_that_dies_with_data_in_flight_is_noticed_without_keep_alive() {
    let (_site, network, mut client) = pipe_over_tcp("dead-after = 5\nno-keepalive = true\n");
    network.cut();
    client.write_all(b"into the void").expect("the pipe accepts the bytes");
    assert_noticed(&network, "near", NO_ANSWER);
}

#[test]
fn a_path_that_dies_under_an_idle_connection_is_noticed_in_time() {
    let (_site, network, _client) = pipe_over_tcp("dead-after = 5\n");
    network.cut();
    // By keep-alive, or because a last acknowledgement was still on its way.
    assert_noticed(&network, "near", "the connection to the other end broke");
}

#[test]
fn a_path_that_dies_while_a_write_is_blocked_is_noticed_in_time() {
    let site = Site::with_key();
    let service = UnixListener::bind(site.socket("service")).expect("the path is free");
    let near = site.encrypt("near", "[127.0.0.1]:7000") + "dead-after = 5\n";
    let far = site.decrypt("far", site.socket("service")) + "dead-after = 5\n";
    let far = far.replace(&site.socket("far"), "[127.0.0.1]:7000");
    let network = Network::serve(&site, "", &(near + &far));
    let mut client = site.connect("near");
    client.set_write_timeout(Some(Duration::from_secs(1))).expect("the socket is open");
    // The target reads nothing, so all windows close.
    let bytes = vec![7; 1 << 16];
    while client.write_all(&bytes).is_ok() {}
    let (_stalled, _) = service.accept().expect("the pipe connects");
    network.cut();
    assert_noticed(&network, "near", NO_ANSWER);
}

#[test]
fn a_target_whose_path_dies_with_data_in_flight_is_noticed_in_time() {
    let site = Site::with_key();
    echo_at(&site);
    // The wire of the first pipe is a Unix-domain socket; its target, the second pipe, is reached over TCP.
    let first = site.encrypt("near", site.socket("sealed"));
    let first = first + &site.decrypt("sealed", "[127.0.0.1]:7000") + "dead-after = 5\n";
    let second = site.both_ends("next", site.socket("service"));
    let second = second.replace(&site.socket("next"), "[127.0.0.1]:7000");
    let network = Network::serve(&site, "", &(first + &second));
    let mut client = site.connect("near");
    assert_echoes(&mut client, "before");
    network.cut();
    client.write_all(b"into the void").expect("the pipe accepts the bytes");
    assert_noticed(&network, "sealed", NO_ANSWER);
}

#[test]
fn a_client_that_does_not_read_for_longer_lives() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).args(&DEAD_AFTER).start();
    let mut client = pipe.connect();
    let mut served = service.accept();
    served.set_write_timeout(Some(Duration::from_secs(1))).expect("the socket is open");
    // Fills every buffer on the way.
    let (bytes, mut sent) = (vec![7; 1 << 16], 0);
    while let Ok(count) = served.write(&bytes) {
        sent += count;
    }
    // The subject of this test: windows that stay closed, longer than the time limit.
    thread::sleep(LIMIT * 2);
    let mut received = vec![0; sent];
    client.read_exact(&mut received).expect("the connection lives");
    client.write_all(b"request").expect("the pipe accepts the bytes");
    assert_reads(&mut served, "request");
}

#[test]
fn a_unix_client_that_closes_behind_its_end_is_noticed_in_time() {
    let service = Service::start();
    let (key, directory) = (Key::new(), tempfile::tempdir().expect("a temporary directory"));
    let responder = End::responder(&key, service.address()).start();
    let source = directory.path().join("source");
    let initiator =
        End::initiator(&key, responder.address()).source(source.display()).args(&DEAD_AFTER).start();
    let mut client = UnixStream::connect(&source).expect("the socket listens");
    client.write_all(b"request").expect("the pipe accepts the bytes");
    client.shutdown(Shutdown::Write).expect("the client is connected");
    let mut served = service.accept();
    let mut request = Vec::new();
    served.read_to_end(&mut request).expect("the request is complete");
    assert_eq!(request, b"request");
    drop(client);
    let start = Instant::now();
    initiator.await_line(&["closed", NO_ANSWER]);
    assert!(start.elapsed() < LIMIT + SLACK, "it took {:?}", start.elapsed());
    responder.await_line(&["closed", "the other end gave up"]);
}
