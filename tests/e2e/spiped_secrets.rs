//! Secrets of spiped's protocol in the memory of the process, as `secrets` looks for those of spipe's own. The test is the peer, so it
//! can compute every secret that both ends have.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use spipe::proto::framing::{Open, Received, Seal};
use spipe::proto::key::Key as ProtoKey;
use spipe::proto::spiped::group::Half;
use spipe::proto::spiped::handshake::{Crossed, End as Which, Established, ForwardSecrecy, NONCE, PROOF};
use spipe::proto::spiped::packet::PACKET;

use crate::secrets::descriptors;
use crate::support::memory::{Memory, Secrets};
use crate::support::peer::{add_hmac_states, key_secrets};
use crate::support::pipe::{End, Key};
use crate::support::poll_until;
use crate::support::random::Random;
use crate::support::second::{pbkdf2, sha256};
use crate::support::socket::{Service, assert_ends, assert_reads, connect};

/// Enough for each thread of the process to carry some.
const CONNECTIONS: u8 = 20;

/// An end whose peer and whose client or target are the test.
struct Subject {
    which: Which,
    key: Key,
    key_file: Vec<u8>,
    end: End,
    service: Service,
    descriptors: usize,
}

/// A tunnel after the handshake.
struct Tunnel {
    wire: TcpStream,
    established: Established,
    secrets: Secrets,
}

impl Subject {
    fn start(which: Which) -> Self {
        let key_file = Random::bytes(17, 32);
        let (key, service) = (Key::of(&key_file), Service::start());
        let end = match which {
            Which::Initiator => End::initiator(&key, service.address()),
            Which::Responder => End::responder(&key, service.address()),
        };
        let end = end.args(&["--protocol", "spiped"]).start();
        let descriptors = descriptors(&end.process);
        Self { which, key, key_file, end, service, descriptors }
    }

    /// A connection: the client or the target, and the tunnel.
    fn establish(&self, number: u8) -> (TcpStream, Tunnel) {
        match self.which {
            Which::Initiator => {
                let client = self.end.connect();
                let tunnel = self.shake_hands(self.service.accept(), number);
                (client, tunnel)
            }
            Which::Responder => {
                let tunnel = self.shake_hands(connect(self.end.address()), number);
                (self.service.accept(), tunnel)
            }
        }
    }

    /// The peer's side of the handshake.
    fn shake_hands(&self, mut wire: TcpStream, number: u8) -> Tunnel {
        let key = ProtoKey::from_bytes(&self.key_file).expect("it is long enough");
        let our = [number; NONCE];
        wire.write_all(&our).expect("the process reads");
        let (mut theirs, mut proof) = ([0; NONCE], [0; PROOF]);
        wire.read_exact(&mut theirs).expect("a nonce comes");
        let half = Half::new(&Random::bytes(u64::from(number) + 100, 32).try_into().expect("32 bytes"));
        let (crossed, nonces) = match self.which {
            Which::Initiator => (Crossed::new(&key, Which::Responder, &our, &theirs), [theirs, our].concat()),
            Which::Responder => (Crossed::new(&key, Which::Initiator, &our, &theirs), [our, theirs].concat()),
        };
        let own_proof = crossed.prove(&half);
        if let Which::Responder = self.which {
            wire.write_all(&own_proof).expect("the process reads");
        }
        wire.read_exact(&mut proof).expect("a proof comes");
        let verified = crossed.verify(&proof, ForwardSecrecy::Required).expect("both hold the key");
        if let Which::Initiator = self.which {
            wire.write_all(&own_proof).expect("the process reads");
        }
        let shared = half.agree(&verified.theirs());
        let mut secrets = Secrets::default();
        let file_key = sha256(&self.key_file);
        for (number, mac) in pbkdf2(&file_key, &nonces, 64).chunks(32).enumerate() {
            secrets.add(format!("key of proof {number}"), mac);
            add_hmac_states(&mut secrets, "key of a proof", mac);
        }
        secrets.add("shared value", &shared[..]);
        secrets.add("shared value as a number", &shared.iter().rev().copied().collect::<Vec<_>>());
        for (number, keys) in pbkdf2(&file_key, &[&nonces, &shared[..]].concat(), 128).chunks(64).enumerate()
        {
            secrets.add(format!("traffic key {number}"), &keys[..32]);
            secrets.add(format!("traffic key of HMAC {number}"), &keys[32..]);
            add_hmac_states(&mut secrets, "traffic key of HMAC", &keys[32..]);
        }
        Tunnel { wire, established: verified.finish(&shared), secrets }
    }

    #[track_caller]
    fn assert_has_none_of(&self, secrets: &Secrets) {
        let found = secrets.find_in(&Memory::of(self.end.process.pid()));
        assert!(found.is_empty(), "{} of {} secrets are in memory:\n{found}", found.len(), secrets.len());
    }

    fn await_no_connection(&self) {
        poll_until("the connections have ended", || {
            (descriptors(&self.end.process) == self.descriptors).then_some(())
        });
    }
}

/// Data both ways.
fn exchange(plain: &mut TcpStream, tunnel: &mut Tunnel) {
    let mut packet = [0; PACKET];
    plain.write_all(b"to the peer").expect("the connection stands");
    tunnel.wire.read_exact(&mut packet).expect("a packet comes");
    assert_eq!(tunnel.established.opener.open(&mut packet), Ok(Received::Data(0..11)));
    packet[..4].copy_from_slice(b"back");
    tunnel.established.sealer.data(&mut packet, 4).expect("numbers are left");
    tunnel.wire.write_all(&packet).expect("the process reads");
    assert_reads(plain, "back");
}

/// A connection from its start to its end leaves nothing. That the search finds what is there is seen while it runs.
fn assert_connections_leave_nothing(which: Which) {
    let subject = Subject::start(which);
    let mut connections: Vec<_> = (0..CONNECTIONS).map(|number| subject.establish(number)).collect();
    let mut secrets = Secrets::default();
    for (plain, tunnel) in &mut connections {
        exchange(plain, tunnel);
        secrets.extend(tunnel.secrets.clone());
    }
    let found = secrets.find_in(&Memory::of(subject.end.process.pid()));
    // A cipher keeps its key as it is; HMAC keeps two states of each.
    assert!(found.len() >= 6 * usize::from(CONNECTIONS), "in memory is only:\n{found}");
    subject.assert_has_none_of(&secrets.without(&["traffic key"]));
    for (mut plain, tunnel) in connections {
        plain.shutdown(Shutdown::Write).expect("the connection stands");
        tunnel.wire.shutdown(Shutdown::Write).expect("the connection stands");
        assert_ends(&mut plain);
    }
    subject.await_no_connection();
    subject.assert_has_none_of(&secrets);
}

#[test]
fn connections_of_an_initiator_leave_no_secret() {
    assert_connections_leave_nothing(Which::Initiator);
}

#[test]
fn connections_of_a_responder_leave_no_secret() {
    assert_connections_leave_nothing(Which::Responder);
}

#[test]
fn connections_that_are_reset_leave_no_secret() {
    let subject = Subject::start(Which::Responder);
    let mut secrets = Secrets::default();
    for number in 0..CONNECTIONS {
        let (mut plain, mut tunnel) = subject.establish(number);
        exchange(&mut plain, &mut tunnel);
        secrets.extend(tunnel.secrets.clone());
        crate::support::socket::reset(tunnel.wire);
    }
    subject.await_no_connection();
    subject.assert_has_none_of(&secrets);
}

#[test]
fn a_reload_takes_a_replaced_key_out_of_memory() {
    let subject = Subject::start(Which::Responder);
    let mut old = key_secrets(&subject.key_file);
    old.add("key of spiped's protocol", &sha256(&subject.key_file));
    let (mut plain, mut tunnel) = subject.establish(1);
    exchange(&mut plain, &mut tunnel);
    let here = old.only(&["key of spiped"]).find_in(&Memory::of(subject.end.process.pid()));
    assert_eq!(here.len(), 1, "the search finds what is there");
    std::fs::write(subject.key.path(), Random::bytes(18, 32)).expect("the file can be written");
    subject.end.process.reload_successfully();
    subject.assert_has_none_of(&old);
    exchange(&mut plain, &mut tunnel);
}
