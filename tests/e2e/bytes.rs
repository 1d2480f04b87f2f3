//! Bytes arrive unchanged, in order, in both directions at once, and no faster than they are read.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use crate::support::pipe::Pipe;
use crate::support::random::Random;
use crate::support::socket::{Listed, Service, assert_echoes, assert_ends, assert_reads, echo, listed};

const PIECE: usize = 1 << 16;

/// Sends `length` bytes of the stream `seed`, and half-closes.
fn send_random(stream: &mut TcpStream, seed: u64, length: usize) {
    let mut random = Random::new(seed);
    let mut piece = vec![0; PIECE];
    for _ in 0..length / PIECE {
        random.fill(&mut piece);
        stream.write_all(&piece).expect("the pipe accepts the bytes");
    }
    stream.shutdown(Shutdown::Write).expect("the socket is connected");
}

/// Reads to the end, and asserts that it is `length` bytes of the stream `seed`.
fn receive_random(stream: &mut TcpStream, seed: u64, length: usize) {
    let mut random = Random::new(seed);
    let (mut piece, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    for index in 0..length / PIECE {
        stream.read_exact(&mut piece).expect("all bytes arrive");
        random.fill(&mut expected);
        assert!(piece == expected, "piece {index} of stream {seed} was altered");
    }
    assert_ends(stream);
}

/// Sends and receives at the same time.
pub(crate) fn exchange(mut stream: TcpStream, sends: u64, receives: u64, length: usize) {
    let mut sending = stream.try_clone().expect("descriptors are left");
    let sender = thread::spawn(move || send_random(&mut sending, sends, length));
    receive_random(&mut stream, receives, length);
    sender.join().expect("all bytes are sent");
}

#[test]
fn random_bytes_cross_in_both_directions_at_once_on_8_connections() {
    const CONNECTIONS: u64 = 8;
    // 256 MiB in all: 8 connections, 2 directions.
    const LENGTH: usize = (256 << 20) / 8 / 2;
    let service = Service::start();
    let pipe = Pipe::to(service.address()).start();
    thread::scope(|scope| {
        for number in 0..CONNECTIONS {
            // One connection after the other, so that the client and the accepted stream belong to the same
            // connection.
            let mut client = pipe.connect();
            client.write_all(&[0]).expect("the pipe accepts the bytes");
            let mut served = service.accept();
            served.read_exact(&mut [0]).expect("the byte arrives");
            let (up, down) = (2 * number + 1, 2 * number + 2);
            scope.spawn(move || exchange(client, up, down, LENGTH));
            scope.spawn(move || exchange(served, down, up, LENGTH));
        }
    });
}

#[test]
fn of_1000_short_connections_none_is_lost() {
    let pipe = Pipe::to(echo()).start();
    thread::scope(|scope| {
        for client in 0..8 {
            let pipe = &pipe;
            scope.spawn(move || {
                for number in 0..125 {
                    let mut stream = pipe.connect();
                    assert_echoes(&mut stream, &format!("client {client}, connection {number}"));
                    stream.shutdown(Shutdown::Write).expect("the socket is connected");
                    assert_ends(&mut stream);
                }
            });
        }
    });
    let closed = pipe.initiator.process.await_lines(1000, " closed ");
    assert!(closed.iter().all(|line| line.contains("reason=\"finished\"")));
}

#[test]
fn the_target_may_send_first() {
    let smtp = Service::start().serve(|mut stream| {
        stream.write_all(b"220 mail.example ESMTP\r\n").expect("the pipe accepts the bytes");
        assert_reads(&mut stream, "QUIT\r\n");
        stream.write_all(b"221 Bye\r\n").expect("the pipe accepts the bytes");
    });
    let pipe = Pipe::to(smtp).start();
    let mut client = pipe.connect();
    assert_reads(&mut client, "220 mail.example ESMTP\r\n");
    client.write_all(b"QUIT\r\n").expect("the pipe accepts the bytes");
    assert_reads(&mut client, "221 Bye\r\n");
    assert_ends(&mut client);
}

#[test]
fn the_client_may_half_close_without_sending_a_byte() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).start();
    let client = pipe.connect();
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut service.accept());
}

#[test]
fn after_the_clients_half_close_the_target_can_still_send() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).start();
    let mut client = pipe.connect();
    client.write_all(b"a question").expect("the pipe accepts the bytes");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    let mut served = service.accept();
    assert_reads(&mut served, "a question");
    assert_ends(&mut served);
    // Only now: the direction to the client continues.
    for part in ["an ", "answer ", "in parts"] {
        served.write_all(part.as_bytes()).expect("the pipe accepts the bytes");
        assert_reads(&mut client, part);
    }
    drop(served);
    assert_ends(&mut client);
}

#[test]
fn after_the_targets_half_close_the_client_can_still_send() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).start();
    let mut client = pipe.connect();
    let mut served = service.accept();
    served.write_all(b"the whole message").expect("the pipe accepts the bytes");
    served.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_reads(&mut client, "the whole message");
    assert_ends(&mut client);
    for part in ["but ", "I have ", "more"] {
        client.write_all(part.as_bytes()).expect("the pipe accepts the bytes");
        assert_reads(&mut served, part);
    }
    drop(client);
    assert_ends(&mut served);
}

#[test]
fn a_slow_reader_stops_the_writer_and_memory_stays_bounded() {
    const FAR_TOO_MUCH: usize = 400 << 20;
    let service = Service::start();
    let pipe = Pipe::to(service.address()).start();
    let mut client = pipe.connect();
    let mut served = service.accept();
    client.write_all(b"ready").expect("the pipe accepts the bytes");
    assert_reads(&mut served, "ready");
    let ends = [&pipe.initiator.process, &pipe.responder.process];
    let before = ends.map(crate::support::process::Process::resident_kib);

    // The target does not read: the writes fill the kernel's buffers, and then a write finds no room for two seconds.
    client.set_write_timeout(Some(Duration::from_secs(2))).expect("the socket is open");
    let mut random = Random::new(5);
    let mut piece = vec![0; PIECE];
    let mut written = 0;
    while written < FAR_TOO_MUCH {
        random.fill(&mut piece);
        match client.write(&piece) {
            Ok(count) if count == PIECE => written += PIECE,
            Ok(count) => {
                written += count;
                break;
            }
            Err(_) => break,
        }
    }
    assert!(written < FAR_TOO_MUCH, "back-pressure did not stop the writer");
    for (end, before) in ends.iter().zip(before) {
        let growth = end.resident_kib().saturating_sub(before);
        assert!(growth < 8 * 1024, "{growth} KiB more after {written} bytes");
    }

    // No byte was lost.
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    let mut random = Random::new(5);
    let mut left = written;
    let mut expected = vec![0; PIECE];
    while left > 0 {
        let count = left.min(PIECE);
        random.fill(&mut expected);
        served.read_exact(&mut piece[..count]).expect("all bytes arrive");
        assert!(piece[..count] == expected[..count], "altered with {left} bytes left");
        left -= count;
    }
    assert_ends(&mut served);
}

#[test]
fn the_wire_carries_no_plaintext() {
    use crate::support::relay::Plan;
    let pipe = Pipe::to(echo()).through(Plan::PASS).start();
    let secret = "correct horse battery staple";
    assert_echoes(&mut pipe.connect(), secret);
    let wire = pipe.relay.as_ref().expect("the pipe has a relay").recorded();
    for direction in [wire.forth, wire.back] {
        assert!(direction.len() > 1000, "the relay saw the conversation");
        assert!(!direction.windows(8).any(|window| secret.as_bytes().windows(8).any(|part| part == window)));
    }
}

#[test]
fn the_end_that_dials_keeps_no_port_after_a_connection() {
    let service = Service::start().serve(|mut stream| {
        let _ = stream.read(&mut [0; 16]);
        let _ = stream.write_all(b"answer");
        let _ = stream.shutdown(Shutdown::Write);
    });
    let pipe = Pipe::to(service).args(&["--no-reuse"]).start();
    let sealed = pipe.responder.address();
    for _ in 0..20 {
        let mut client = pipe.connect();
        client.write_all(b"question").expect("the pipe accepts the bytes");
        assert_reads(&mut client, "answer");
        assert_ends(&mut client);
    }
    pipe.initiator.process.await_lines(20, " closed ");
    let in_time_wait = |end: fn(&Listed) -> SocketAddr| {
        listed().iter().filter(|row| row.state == "06" && end(row) == sealed).count()
    };
    // They are where the responder listens, which needs no port of its own for each.
    crate::support::poll_until("all are closed", || (in_time_wait(|row| row.local) == 20).then_some(()));
    assert_eq!(in_time_wait(|row| row.remote), 0);
}
