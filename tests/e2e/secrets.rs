//! Secrets in the memory of the process: there while they are needed, and nowhere once they are not. The test is the peer, so it
//! knows every secret, and looks for it at every offset of all memory of the process.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use spipe::proto::cipher::Cipher;

use crate::support::memory::{Memory, Secrets};
use crate::support::peer::{self, Begun, DATA, END, OPEN, Tunnel, key_secrets};
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
    key: Key,
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
        Self { role, cipher, key, key_file, end, service, descriptors }
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

pub(crate) fn descriptors(process: &Process) -> usize {
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
fn connections_of_an_initiator_with_aegis_leave_no_secret() {
    assert_connections_leave_nothing(Role::Initiator, Cipher::Aegis256X4);
}

#[test]
fn connections_of_a_responder_with_aes_leave_no_secret() {
    assert_connections_leave_nothing(Role::Responder, Cipher::Aes256Gcm);
}

#[test]
fn connections_of_a_responder_with_chacha_leave_no_secret() {
    assert_connections_leave_nothing(Role::Responder, Cipher::ChaCha20Poly1305);
}

#[test]
fn connections_of_a_responder_with_aegis_leave_no_secret() {
    assert_connections_leave_nothing(Role::Responder, Cipher::Aegis256X4);
}

/// The initiator's own secrets, which no peer knows. They are found in its memory while it waits for message 2.
fn ephemeral_secrets(subject: &Subject, begun: &Begun) -> Secrets {
    let memory = subject.memory();
    let mut secrets = Secrets::default();
    let is_x25519 = |secret: &[u8; 32]| begun.is_x25519_secret(secret);
    let x25519 =
        memory.candidates().find(|candidate| is_x25519(candidate)).expect("it waits with its X25519 secret");
    secrets.add("X25519 secret", x25519);
    // FIPS 203, algorithm 16: a decapsulation key has the encapsulation key in its middle.
    let keys = memory.around(&begun.kem_key, DECAPSULATION_KEY_BEFORE, DECAPSULATION_KEY_AFTER);
    let key = keys.iter().find(|key| begun.is_kem_secret(key)).expect("it waits with its ML-KEM key");
    secrets.add("ML-KEM secret", &key[..DECAPSULATION_KEY_BEFORE]);
    secrets.add("ML-KEM secret z", &key[key.len() - 32..]);
    secrets
}

/// Bytes of an ML-KEM-768 decapsulation key before and after the encapsulation key in it.
const DECAPSULATION_KEY_BEFORE: usize = 1152;
const DECAPSULATION_KEY_AFTER: usize = 64;

#[test]
fn an_initiator_keeps_its_ephemeral_secrets_only_until_message_2() {
    let subject = Subject::start(Role::Initiator, Cipher::Aes256Gcm);
    let (mut client, begun) = subject.begin();
    let ephemeral = ephemeral_secrets(&subject, &begun);
    let mut tunnel = begun.reply(subject.cipher);
    tunnel.receive(OPEN);
    exchange(&mut client, &mut tunnel);
    subject.assert_has_all_of(&tunnel.traffic_secrets().only(&["traffic "]));
    subject.assert_has_none_of(&ephemeral);
}

/// While a connection runs, only what its next frames need is there.
fn assert_a_handshake_leaves_only_traffic_secrets(role: Role) {
    let subject = Subject::start(role, Cipher::ChaCha20Poly1305);
    let (mut plain, mut tunnel) = subject.establish();
    exchange(&mut plain, &mut tunnel);
    subject.assert_has_all_of(&tunnel.traffic_secrets().only(&["traffic "]));
    subject.assert_has_none_of(&tunnel.secrets().without(&["traffic "]));
}

#[test]
fn an_open_connection_of_an_initiator_has_no_secret_but_its_traffic_secrets() {
    assert_a_handshake_leaves_only_traffic_secrets(Role::Initiator);
}

#[test]
fn an_open_connection_of_a_responder_has_no_secret_but_its_traffic_secrets() {
    assert_a_handshake_leaves_only_traffic_secrets(Role::Responder);
}

/// After a rekey, nothing is left of what was sealed with before it.
fn assert_a_rekey_leaves_nothing(cipher: Cipher) {
    let subject = Subject::start(Role::Responder, cipher);
    let (mut target, mut tunnel) = subject.establish();
    let before = tunnel.received_secrets();
    let reading = std::thread::spawn(move || {
        let mut data = vec![0; peer::REKEY_AFTER];
        target.read_exact(&mut data).expect("the connection stands");
        target
    });
    // *Open* was the first frame of the old secret.
    for _ in 0..peer::REKEY_AFTER {
        tunnel.send(DATA, b"x");
    }
    let _target = reading.join().expect("all data arrives");
    subject.assert_has_all_of(&tunnel.received_secrets().only(&["traffic "]));
    subject.assert_has_none_of(&before);
}

#[test]
fn a_rekey_with_chacha_leaves_nothing_of_the_secrets_before_it() {
    assert_a_rekey_leaves_nothing(Cipher::ChaCha20Poly1305);
}

#[test]
fn a_rekey_with_aegis_leaves_nothing_of_the_secrets_before_it() {
    assert_a_rekey_leaves_nothing(Cipher::Aegis256X4);
}

#[test]
fn a_peer_that_is_silent_before_message_2_leaves_no_ephemeral_secret() {
    let subject = Subject::start_with(Role::Initiator, Cipher::Aes256Gcm, &["-o", "2"]);
    let mut secrets = Secrets::default();
    let mut waiting = Vec::new();
    for _ in 0..10 {
        let (client, begun) = subject.begin();
        secrets.extend(ephemeral_secrets(&subject, &begun));
        secrets.extend(begun.secrets());
        waiting.push((client, begun));
    }
    subject.end.process.await_lines(10, "nothing more in time");
    subject.await_no_connection();
    subject.assert_has_none_of(&secrets);
}

#[test]
fn a_peer_that_vanishes_before_message_2_leaves_no_ephemeral_secret() {
    let subject = Subject::start(Role::Initiator, Cipher::Aes256Gcm);
    let (_client, begun) = subject.begin();
    let mut secrets = ephemeral_secrets(&subject, &begun);
    secrets.extend(begun.secrets());
    drop(begun);
    subject.end.await_line(&["closed the connection"]);
    subject.await_no_connection();
    subject.assert_has_none_of(&secrets);
}

#[test]
fn a_message_2_that_does_not_open_leaves_no_secret() {
    let subject = Subject::start(Role::Initiator, Cipher::Aes256Gcm);
    let mut secrets = Secrets::default();
    for _ in 0..10 {
        let (_client, begun) = subject.begin();
        secrets.extend(ephemeral_secrets(&subject, &begun));
        // The last field: by then, both shared secrets have been computed.
        let tunnel =
            begun.reply_with(|message| *message.last_mut().expect("it has a tag") ^= 1, subject.cipher);
        secrets.extend(tunnel.secrets());
        tunnel.await_close();
    }
    subject.end.process.await_lines(10, "does not open with this key");
    subject.await_no_connection();
    subject.assert_has_none_of(&secrets);
}

/// Peers that hold the key and go on like this instead of opening the connection leave nothing in a responder.
#[track_caller]
fn assert_unopened_connections_leave_nothing(go_on: impl Fn(&mut Tunnel), line: &str) {
    let subject = Subject::start_with(Role::Responder, Cipher::ChaCha20Poly1305, &["-o", "2"]);
    let mut secrets = Secrets::default();
    let mut tunnels: Vec<_> = (0..10).map(|_| subject.initiate()).collect();
    for tunnel in &mut tunnels {
        secrets.extend(tunnel.secrets());
        go_on(tunnel);
    }
    subject.end.await_line(&[line]);
    for tunnel in tunnels {
        tunnel.await_close();
    }
    subject.await_no_connection();
    subject.assert_has_none_of(&secrets);
}

#[test]
fn a_peer_that_is_silent_after_message_2_leaves_no_secret() {
    assert_unopened_connections_leave_nothing(|_| (), "opened no connection in time");
}

#[test]
fn a_peer_that_vanishes_after_message_2_leaves_no_secret() {
    assert_unopened_connections_leave_nothing(Tunnel::vanish, "opened no connection");
}

#[test]
fn a_peer_that_sends_no_frame_after_message_2_leaves_no_secret() {
    assert_unopened_connections_leave_nothing(|tunnel| tunnel.send_raw(&[0; 100]), "opened no connection");
}

/// A reload that replaces the key takes the old one out of memory, although a connection that began with it goes on.
fn assert_a_reload_removes_the_key(role: Role) {
    let subject = Subject::start(role, Cipher::Aes256Gcm);
    let (old, new) = (subject.key_file.clone(), Random::bytes(8, 32));
    let (mut plain, mut tunnel) = subject.establish();
    subject.assert_has_all_of(&key_secrets(&old).only(&["mixed psk"]));
    std::fs::write(subject.key.path(), &new).expect("the file can be written");
    subject.end.process.reload_successfully();
    subject.assert_has_none_of(&key_secrets(&old));
    subject.assert_has_all_of(&key_secrets(&new).only(&["mixed psk"]));
    exchange(&mut plain, &mut tunnel);
}

#[test]
fn a_reload_takes_the_old_key_out_of_the_memory_of_an_initiator() {
    assert_a_reload_removes_the_key(Role::Initiator);
}

#[test]
fn a_reload_takes_the_old_key_out_of_the_memory_of_a_responder() {
    assert_a_reload_removes_the_key(Role::Responder);
}

#[test]
fn a_key_is_in_memory_and_the_content_of_its_file_is_not() {
    let subject = Subject::start(Role::Responder, Cipher::Aes256Gcm);
    subject.assert_has_all_of(&key_secrets(&subject.key_file).only(&["mixed psk"]));
    subject.assert_has_none_of(&key_secrets(&subject.key_file).without(&["mixed psk"]));
}
