//! Each event is one log line, with the values that an administrator needs.

use std::io::{Read, Write};
use std::net::Shutdown;

use crate::support::pipe::{End, Key, Pipe, field};
use crate::support::process::{run, spipe};
use crate::support::random::hex;
use crate::support::socket::{Service, assert_echoes, assert_ends, connect_unix, echo};

#[test]
fn the_first_line_has_version_role_addresses_and_key() {
    let target = echo();
    let pipe = Pipe::to(target).start();
    let fingerprint = run(spipe().arg("fingerprint").arg(pipe.key.path())).succeeded().text();
    for (end, role, target) in
        [(&pipe.initiator, "encrypt", pipe.responder.address()), (&pipe.responder, "decrypt", target)]
    {
        let line = end.await_line(&["listening"]);
        assert_eq!(field(&line, "version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(field(&line, "role"), role);
        assert_eq!(field(&line, "source"), format!("[127.0.0.1]:{}", end.port()));
        assert_eq!(field(&line, "configured"), format!("[127.0.0.1]:{}", target.port()));
        assert_eq!(field(&line, "key"), fingerprint);
    }
}

#[test]
fn both_ends_log_the_end_of_a_connection_in_one_line_with_exact_counts() {
    let service = Service::start().serve(|mut stream| {
        let mut asked = Vec::new();
        stream.read_to_end(&mut asked).expect("a clean end");
        stream.write_all(&vec![7; 100_000]).expect("the pipe accepts the bytes");
    });
    let pipe = Pipe::to(service).start();
    let mut client = pipe.connect();
    let client_address = client.local_addr().expect("the socket is connected");
    client.write_all(&[7; 12_345]).expect("the pipe accepts the bytes");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    client.read_exact(&mut vec![0; 100_000]).expect("all bytes arrive");
    assert_ends(&mut client);

    let initiator = pipe.initiator.await_line(&[" closed "]);
    let responder = pipe.responder.await_line(&[" closed "]);
    for line in [&initiator, &responder] {
        assert_eq!(field(line, "to_target"), "12345");
        assert_eq!(field(line, "from_target"), "100000");
        assert_eq!(field(line, "reason"), "finished");
        let seconds: f64 = field(line, "seconds").parse().expect("a number");
        assert!(seconds > 0.0 && seconds < 60.0, "{line}");
    }
    let address = |port: u16| format!("[127.0.0.1]:{port}");
    for line in [&initiator, &responder] {
        assert_eq!(field(line, "client"), address(client_address.port()), "the initiator reports the client");
    }
    let sealed = address(pipe.responder.address().port());
    assert_eq!(field(&initiator, "peer"), sealed);
    assert_eq!(field(&initiator, "target"), sealed);
    assert_eq!(field(&initiator, "configured"), sealed);
    assert_ne!(field(&responder, "peer"), field(&responder, "client"));
    assert_eq!(field(&responder, "target"), address(service.port()));
    assert_eq!(field(&responder, "configured"), address(service.port()));
    for end in [&pipe.initiator, &pipe.responder] {
        assert_eq!(end.process.log().matches(" closed ").count(), 1);
    }
}

#[test]
fn the_target_is_the_address_that_was_dialed_and_not_the_name_that_was_configured() {
    let pipe = Pipe::to(format!("localhost:{}", echo().port())).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "by name");
    client.shutdown(Shutdown::Write).expect("it is connected");
    assert_ends(&mut client);
    let line = pipe.responder.await_line(&[" closed "]);
    assert!(field(&line, "configured").starts_with("[localhost]:"), "{line}");
    assert!(field(&line, "target").starts_with("[127.0.0.1]:"), "{line}");
}

#[test]
fn quiet_omits_info_lines() {
    // The source is a fixed path, since a quiet process does not log where it listens.
    let key = Key::new();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let source = directory.path().join("plain.sock");
    let responder = End::responder(&key, echo()).start();
    let builder = End::initiator(&key, responder.address()).source(source.display()).args(&["-q"]);
    let mut process = crate::support::process::Process::start(&mut builder.command());
    let mut client = crate::support::poll_until("it listens", || connect_unix(&source).ok());
    assert_echoes(&mut client, "hush");
    drop(client);
    responder.await_line(&[" closed "]);
    process.signal(rustix::process::Signal::TERM);
    process.wait();
    assert_eq!(process.log(), "");
}

#[test]
fn verbose_logs_the_start_of_a_connection() {
    let pipe = Pipe::to(echo()).args(&["--verbose"]).start();
    assert_echoes(&mut pipe.connect(), "hello");
    for end in [&pipe.initiator, &pipe.responder] {
        end.await_line(&["DEBUG established", "cipher="]);
    }
}

#[test]
fn the_key_is_in_no_log() {
    // Letters, so that the key would be visible as text in a log.
    let bytes = b"QhXw3vTzR7kLmN2pY5sD8fG1jC4bV6aE";
    let pipe = Pipe::to(echo()).args(&["--verbose"]).start_with(Key::of(bytes));
    let mut client = pipe.connect();
    assert_echoes(&mut client, "hello");
    drop(client);
    // A connection that fails logs more.
    let stranger = End::initiator(&Key::new(), pipe.responder.address()).args(&["--verbose"]).start();
    drop(stranger.connect());
    pipe.responder.await_line(&["refused"]);

    let hex = hex(bytes);
    let decimal = format!("{bytes:?}");
    for end in [&pipe.initiator, &pipe.responder] {
        end.await_line(&[" closed "]);
        let log = end.process.log();
        let lower = log.to_lowercase();
        for start in 0..bytes.len() - 8 {
            let part = String::from_utf8_lossy(&bytes[start..start + 8]);
            assert!(!log.contains(&*part), "{log}");
            assert!(!lower.contains(&hex[2 * start..2 * start + 16]), "{log}");
        }
        assert!(!log.contains(&decimal[1..20]), "{log}");
    }
}
