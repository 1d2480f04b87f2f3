//! Secrets in the memory of the process: there while they are needed, and nowhere once they are not. The test is the peer, so it
//! knows every secret, and looks for it at every offset of all memory of the process.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use spipe::proto::cipher::Cipher;

use crate::support::memory::{Memory, Secrets};
use crate::support::peer::{self, Begun, DATA, END, OPEN, Tunnel};
use crate::support::pipe::{End, Key};
use crate::support::poll_until;
use crate::support::process::Process;
use crate::support::random::Random;
use crate::support::socket::{Service, assert_ends, assert_reads, connect};

/// Connections of a test: enough for each thread of the process to carry some.
const CONNECTIONS: usize = 50;

#[derive(Clone, Copy)]
enum Role {
    Initiator,
    Responder,
}

/// An end whose peer and whose client or target are the test.
struct Subject {
    role: Role,
    cipher: Cipher,
    key_file: Vec<u8>,
    end: End,
    /// What the process connects to: the responder that the test plays, or the target.
    service: Service,
    /// Descriptors of the process without a connection.
    descriptors: usize,
}

impl Subject {
    fn start(role: Role, cipher: Cipher) -> Self {
        Self::start_with(role, cipher, &[])
    }

    fn start_with(role: Role, cipher: Cipher, args: &[&str]) -> Self {
        // Random, for a search for anything else would find it by chance.
        let key_file = Random::bytes(7, 32);
        let (key, service) = (Key::of(&key_file), Service::start());
        let end = match role {
            Role::Initiator => End::initiator(&key, service.address()),
            Role::Responder => End::responder(&key, service.address()),
        };
        let end = end.args(&["--cipher", &cipher.to_string(), "--verbose"]).args(args).start();
        let descriptors = descriptors(&end.process);
        Self { role, cipher, key_file, end, service, descriptors }
    }

    /// A connection: the client or the target, and the tunnel.
    fn establish(&self) -> (TcpStream, Tunnel) {
        match self.role {
            Role::Initiator => {
                let (client, begun) = self.begin();
                let mut tunnel = begun.reply(self.cipher);
                tunnel.receive(OPEN);
                (client, tunnel)
            }
            Role::Responder => {
                let mut tunnel = self.initiate();
                tunnel.send(OPEN, b"");
                (self.service.accept(), tunnel)
            }
        }
    }

    /// A client of the initiator, and the handshake that it causes, up to message 1.
    fn begin(&self) -> (TcpStream, Begun) {
        let client = self.end.connect();
        (client, Begun::read(self.service.accept(), &self.key_file))
    }

    /// A handshake with the responder.
    fn initiate(&self) -> Tunnel {
        peer::initiate(connect(self.end.address()), &self.key_file, self.cipher)
    }

    fn memory(&self) -> Memory {
        Memory::of(self.end.process.pid())
    }

    /// Waits until no connection is left in the process.
    fn await_no_connection(&self) {
        poll_until("the connections have ended", || {
            (descriptors(&self.end.process) == self.descriptors).then_some(())
        });
    }

    #[track_caller]
    fn assert_has_none_of(&self, secrets: &Secrets) {
        let found = secrets.find_in(&self.memory());
        assert!(found.is_empty(), "{} of {} secrets are in memory:\n{found}", found.len(), secrets.len());
    }

    #[track_caller]
    fn assert_has_all_of(&self, secrets: &Secrets) {
        let found = secrets.find_in(&self.memory());
        assert_eq!(found.len(), secrets.len(), "in memory is only:\n{found}");
    }
}

fn descriptors(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid())).expect("the process runs").count()
}

/// Data both ways.
fn exchange(plain: &mut TcpStream, tunnel: &mut Tunnel) {
    plain.write_all(b"to the peer").expect("the connection stands");
    assert_eq!(tunnel.receive(DATA), b"to the peer");
    tunnel.send(DATA, b"from the peer");
    assert_reads(plain, "from the peer");
}

/// The end of both directions.
fn finish(mut plain: TcpStream, mut tunnel: Tunnel) {
    plain.shutdown(Shutdown::Write).expect("the connection stands");
    tunnel.receive(END);
    tunnel.send(END, b"");
    assert_ends(&mut plain);
}

/// A connection from its start to its end leaves nothing. That the search finds what is there is seen while it runs.
fn assert_connections_leave_nothing(role: Role, cipher: Cipher) {
    let subject = Subject::start(role, cipher);
    let mut connections: Vec<_> = (0..CONNECTIONS).map(|_| subject.establish()).collect();
    let mut secrets = Secrets::default();
    let mut current = Secrets::default();
    for (plain, tunnel) in &mut connections {
        exchange(plain, tunnel);
        secrets.extend(tunnel.secrets());
        current.extend(tunnel.traffic_secrets());
    }
    subject.assert_has_all_of(&current.only(&["traffic "]));
    for (plain, tunnel) in connections {
        finish(plain, tunnel);
    }
    subject.await_no_connection();
    subject.assert_has_none_of(&secrets);
}

#[test]
fn connections_of_an_initiator_with_aes_leave_no_secret() {
    assert_connections_leave_nothing(Role::Initiator, Cipher::Aes256Gcm);
}

#[test]
fn connections_of_an_initiator_with_chacha_leave_no_secret() {
    assert_connections_leave_nothing(Role::Initiator, Cipher::ChaCha20Poly1305);
}

#[test]
fn connections_of_a_responder_with_aes_leave_no_secret() {
    assert_connections_leave_nothing(Role::Responder, Cipher::Aes256Gcm);
}

#[test]
fn connections_of_a_responder_with_chacha_leave_no_secret() {
    assert_connections_leave_nothing(Role::Responder, Cipher::ChaCha20Poly1305);
}
