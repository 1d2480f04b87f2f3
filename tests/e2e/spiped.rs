//! `--protocol spiped`: at either end may be Tarsnap's spiped, here Debian's. The modules beside this one hold for both protocols;
//! here is what is different, and that the programs understand each other.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bytes::exchange;
use crate::cuts::assert_client_is_reset;
use crate::support::pipe::{End, Key, Pipe, stdio};
use crate::support::poll_until;
use crate::support::process::{Process, run, run_with_input, spipe};
use crate::support::random::Random;
use crate::support::relay::{Plan, Relay, Rule};
use crate::support::site::Site;
use crate::support::socket::{
    Port, Service, assert_echoes, assert_ends, assert_reads, assert_reset, connect, echo, listed, reset,
};
use crate::support::spiped::{EitherEnd, Mixed, Program, Spiped, bracketed};

use Program::{Spipe as Ours, Spiped as Theirs};

const SPIPED: [&str; 2] = ["--protocol", "spiped"];

/// Bytes of a nonce, of a proof, and of a packet (docs/SPIPED.md).
const NONCE: usize = 32;
const PROOF: usize = 288;
const PACKET: usize = 1060;
/// The first packet.
const PACKETS: usize = NONCE + PROOF;

/// Asserts that a client is answered behind its own end, by a service that reads all of it first.
fn assert_answers_after_the_end(pair: &Mixed, service: &Service) {
    let mut client = pair.initiator.connect();
    client.write_all(b"question").expect("the pipe accepts the bytes");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    let mut served = service.accept();
    assert_reads(&mut served, "question");
    assert_ends(&mut served);
    served.write_all(b"answer").expect("the pipe accepts the bytes");
    drop(served);
    assert_reads(&mut client, "answer");
    assert_ends(&mut client);
}

macro_rules! understand_each_other {
    ($($name:ident: $programs:expr, $initiator:expr, $responder:expr;)*) => {
        $(#[test]
        fn $name() {
            let service = Service::start();
            let pair = Mixed::start($programs, service.address(), (&$initiator, &$responder));
            assert_answers_after_the_end(&pair, &service);
        })*
    };
}

understand_each_other! {
    our_initiator_and_their_responder: (Ours, Theirs), [], [];
    our_initiator_and_their_responder_without_forward_secrecy: (Ours, Theirs), [], ["-f"];
    our_initiator_without_forward_secrecy_and_their_responder: (Ours, Theirs), ["-f"], [];
    our_initiator_and_their_responder_that_both_require_forward_secrecy: (Ours, Theirs), ["-g"], ["-g"];
    their_initiator_and_our_responder: (Theirs, Ours), [], [];
    their_initiator_without_forward_secrecy_and_our_responder: (Theirs, Ours), ["-f"], [];
    their_initiator_and_our_responder_without_forward_secrecy: (Theirs, Ours), [], ["-f"];
    their_initiator_and_our_responder_that_both_require_forward_secrecy: (Theirs, Ours), ["-g"], ["-g"];
    both_ends_of_ours: (Ours, Ours), [], [];
    both_ends_of_theirs: (Theirs, Theirs), [], [];
}

/// Asserts that a client gets nothing, and is told.
#[track_caller]
fn assert_fails(pair: &Mixed) {
    let mut client = pair.initiator.connect();
    let _ = client.write_all(b"question");
    match client.read(&mut [0]) {
        Ok(0) => {}
        Ok(_) => panic!("a byte came"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn an_initiator_that_requires_forward_secrecy_refuses_their_responder_without() {
    let pair = Mixed::start((Ours, Theirs), echo(), (&["-g"], &["-f"]));
    assert_fails(&pair);
    let EitherEnd::Spipe(initiator) = &pair.initiator else { unreachable!("it is ours") };
    initiator.await_line(&["failed", "forward secrecy turned off"]);
}

#[test]
fn a_responder_that_requires_forward_secrecy_refuses_their_initiator_without() {
    let service = Service::start();
    let pair = Mixed::start((Theirs, Ours), service.address(), (&["-f"], &["-g"]));
    assert_fails(&pair);
    let EitherEnd::Spipe(responder) = &pair.responder else { unreachable!("it is ours") };
    responder.await_line(&["refused", "forward secrecy turned off"]);
    service.assert_no_connection();
}

#[test]
fn their_responder_that_requires_forward_secrecy_refuses_us_without() {
    assert_fails(&Mixed::start((Ours, Theirs), echo(), (&["-f"], &["-g"])));
}

/// Carries random bytes both ways at once, on four connections.
fn carry_at_once(programs: (Program, Program), length: usize) {
    let service = Service::start();
    let pair = Mixed::start(programs, service.address(), (&[], &[]));
    thread::scope(|scope| {
        for number in 0..4 {
            // One connection after the other, so that the client and the accepted stream belong together.
            let mut client = pair.initiator.connect();
            client.write_all(&[0]).expect("the pipe accepts the bytes");
            let mut served = service.accept();
            served.read_exact(&mut [0]).expect("the byte arrives");
            let (up, down) = (2 * number + 1, 2 * number + 2);
            scope.spawn(move || exchange(client, up, down, length));
            scope.spawn(move || exchange(served, down, up, length));
        }
    });
}

/// 128 MiB each, in eight streams.
const LENGTH: usize = (128 << 20) / 8;

#[test]
fn random_bytes_cross_in_both_directions_to_their_responder() {
    carry_at_once((Ours, Theirs), LENGTH);
}

#[test]
fn random_bytes_cross_in_both_directions_from_their_initiator() {
    carry_at_once((Theirs, Ours), LENGTH);
}

/// All at the same time, each with bytes of its own. Made one by one: spiped's queue has ten places, and a connection that finds it
/// full is tried again a second later.
fn hold_1000_connections(programs: (Program, Program)) {
    let pair = Mixed::start(programs, echo(), (&[], &[]));
    let connect = |number: u32| {
        let mut client = pair.initiator.connect();
        assert_echoes(&mut client, &format!("connection {number}"));
        client
    };
    let mut clients: Vec<_> = (0..1_000).map(connect).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        write!(client, "again {number}").expect("the pipe accepts the bytes");
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_reads(client, &format!("again {number}"));
    }
    for client in &mut clients {
        client.shutdown(Shutdown::Write).expect("the socket is connected");
    }
    for client in &mut clients {
        assert_ends(client);
    }
}

#[test]
fn a_thousand_connections_at_once_reach_their_responder() {
    hold_1000_connections((Ours, Theirs));
}

#[test]
fn a_thousand_connections_at_once_come_from_their_initiator() {
    hold_1000_connections((Theirs, Ours));
}

// Standard input and output.

#[test]
fn standard_input_reaches_their_responder() {
    let key = Key::new();
    let responder = Spiped::start("-d", &key, bracketed(echo()), &[]);
    let responder = EitherEnd::Spiped(responder);
    let bytes = Random::bytes(3, 3_000_001);
    let mut command = stdio(responder.address().to_string(), &key.path());
    let ended = run_with_input(command.args(SPIPED), bytes.clone()).succeeded();
    assert!(ended.stdout == bytes, "altered on the way");
}

#[test]
fn their_standard_input_reaches_our_responder() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&SPIPED).start();
    let bytes = Random::bytes(4, 3_000_001);
    let mut command = Command::new("/usr/bin/spipe");
    command.args(["-t", &bracketed(responder.address()), "-k"]).arg(key.path());
    assert!(run_with_input(&mut command, bytes.clone()).succeeded().stdout == bytes, "altered on the way");
}

// Keys.

#[test]
fn their_initiator_with_another_key_is_refused_and_the_target_not_dialed() {
    let service = Service::start();
    let responder = End::responder(&Key::new(), service.address()).args(&SPIPED).start();
    let initiator = Spiped::start("-e", &Key::new(), bracketed(responder.address()), &[]);
    let initiator = EitherEnd::Spiped(initiator);
    let mut client = initiator.connect();
    let _closed_or_reset = client.read(&mut [0]);
    responder.await_line(&["refused", "does not authenticate with this key"]);
    service.assert_no_connection();
}

#[test]
fn with_another_key_than_their_responder_the_client_is_reset_and_the_log_says_what_may_be_wrong() {
    let responder = Spiped::start("-d", &Key::new(), bracketed(echo()), &[]);
    let responder = EitherEnd::Spiped(responder);
    let initiator = End::initiator(&Key::new(), responder.address()).args(&SPIPED).start();
    initiator.assert_resets_a_client();
    initiator
        .await_line(&["failed", "its key differs (compare the key files with sha256sum), it cannot reach"]);
}

#[test]
fn a_responder_whose_target_is_down_is_not_taken_for_one_with_another_key() {
    let (key, nobody) = (Key::new(), Port::reserve());
    let responder = Spiped::start("-d", &key, bracketed(nobody.address()), &[]);
    let responder = EitherEnd::Spiped(responder);
    let initiator = End::initiator(&key, responder.address()).args(&SPIPED).start();
    initiator.assert_resets_a_client();
    initiator.await_line(&["failed", "cannot reach its target"]);
}

#[test]
fn a_responder_accepts_any_of_its_keys() {
    let (first, second) = (Key::new(), Key::new());
    let second_path = second.path().to_str().expect("it is UTF-8").to_owned();
    let responder = End::responder(&first, echo()).args(&SPIPED).args(&["-k", &second_path]).start();
    for key in [&first, &second] {
        let initiator = Spiped::start("-e", key, bracketed(responder.address()), &[]);
        assert_echoes(&mut EitherEnd::Spiped(initiator).connect(), "either key");
    }
}

#[test]
fn a_short_key_that_their_end_has_is_taken_with_a_warning() {
    let key = Key::of(b"secret\n");
    let responder = End::responder(&key, echo()).args(&SPIPED).start();
    responder.await_line(&["WARN", "a weak key"]);
    let initiator = Spiped::start("-e", &key, bracketed(responder.address()), &[]);
    assert_echoes(&mut EitherEnd::Spiped(initiator).connect(), "a weak key");
}

#[test]
fn a_short_key_is_refused_for_our_own_protocol() {
    let ended = run(&mut End::responder(&Key::of(b"secret\n"), echo()).command());
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("a key is at least 32 bytes"), "{}", ended.stderr);
}

// Strangers.

#[test]
fn a_stranger_that_says_nothing_is_told_nothing() {
    let service = Service::start();
    let responder = End::responder(&Key::new(), service.address()).args(&SPIPED).args(&["-o", "1"]).start();
    let mut stranger = responder.connect();
    let mut received = Vec::new();
    // Closed or reset: to a stranger, that is all the same.
    let _ = stranger.read_to_end(&mut received);
    assert_eq!(received, b"");
    service.assert_no_connection();
}

#[test]
fn a_stranger_gets_a_nonce_for_a_nonce_and_nothing_more() {
    let service = Service::start();
    let responder = End::responder(&Key::new(), service.address()).args(&SPIPED).start();
    let mut nonces = Vec::new();
    for _ in 0..2 {
        let mut stranger = responder.connect();
        stranger.write_all(&[7; NONCE]).expect("the responder reads");
        let mut nonce = [0; NONCE];
        stranger.read_exact(&mut nonce).expect("the nonce comes");
        stranger.write_all(&[7; PROOF]).expect("the responder reads");
        let mut more = Vec::new();
        let _ = stranger.read_to_end(&mut more);
        assert_eq!(more, b"");
        nonces.push(nonce);
    }
    assert_ne!(nonces[0], nonces[1]);
    service.assert_no_connection();
}

#[test]
fn a_recorded_handshake_does_not_open_a_second_connection() {
    let (key, service) = (Key::new(), Service::start());
    let responder = End::responder(&key, service.address()).args(&SPIPED).start();
    let relay = Relay::start(responder.address(), Plan::PASS);
    let initiator = Spiped::start("-e", &key, bracketed(relay.address()), &[]);
    let initiator = EitherEnd::Spiped(initiator);
    let mut client = initiator.connect();
    client.write_all(b"once").expect("the pipe accepts the bytes");
    assert_reads(&mut service.accept(), "once");
    let recorded = relay.recorded().forth;
    let mut stranger = connect(responder.address());
    let _ = stranger.write_all(&recorded);
    let mut received = Vec::new();
    let _ = stranger.read_to_end(&mut received);
    assert_eq!(received.len(), NONCE);
    responder.await_line(&["refused", "does not authenticate"]);
    service.assert_no_connection();
}

// What the wire does to a stream.

macro_rules! client_is_reset {
    ($($name:ident: $plan:expr;)*) => {
        $(#[test]
        fn $name() {
            assert_client_is_reset($plan, &SPIPED);
        })*
    };
}

client_is_reset! {
    an_altered_nonce_resets_the_client: Plan::forth(Rule::FlipAt(0));
    an_altered_nonce_of_the_responder_resets_the_client: Plan::back(Rule::FlipAt(NONCE - 1));
    an_altered_value_resets_the_client: Plan::forth(Rule::FlipAt(NONCE + 255));
    an_altered_proof_of_the_responder_resets_the_client: Plan::back(Rule::FlipAt(PACKETS - 1));
    an_altered_packet_resets_the_client: Plan::forth(Rule::FlipAt(PACKETS + PACKET));
    an_altered_length_of_a_packet_resets_the_client: Plan::back(Rule::FlipAt(PACKETS + 1027));
    an_altered_tag_of_a_packet_resets_the_client: Plan::back(Rule::FlipAt(PACKETS + PACKET - 1));
    a_cut_in_the_nonces_resets_the_client: Plan::back(Rule::CutAfter(NONCE - 1));
    a_cut_before_the_proof_resets_the_client: Plan::back(Rule::CutAfter(NONCE));
    a_cut_within_the_proof_resets_the_client: Plan::back(Rule::CutAfter(PACKETS - 1));
    a_cut_within_a_packet_resets_the_client: Plan::back(Rule::CutAfter(PACKETS + PACKET + 1));
    a_cut_before_the_last_byte_of_a_packet_resets_the_client: Plan::back(Rule::CutAfter(PACKETS + 2 * PACKET - 1));
}

/// The one thing that this wire cannot tell: it is said in the log, and in docs/SPIPED.md.
#[test]
fn a_cut_between_two_packets_looks_like_an_end() {
    let plan = Plan::back(Rule::CutAfter(PACKETS + PACKET));
    let pipe = Pipe::to(echo()).args(&SPIPED).through(plan).start();
    let mut client = pipe.connect();
    client.write_all(&[7; 3 * 1024]).expect("the pipe accepts the bytes");
    let mut received = Vec::new();
    client.read_to_end(&mut received).expect("it looks like an end");
    assert!(received.len().is_multiple_of(1024) && received.len() < 3 * 1024, "{}", received.len());
}

#[test]
fn a_client_that_is_reset_resets_the_target_but_for_their_initiator_which_ends_it() {
    for programs in [(Ours, Ours), (Theirs, Ours)] {
        let service = Service::start();
        let pair = Mixed::start(programs, service.address(), (&[], &[]));
        let mut client = pair.initiator.connect();
        client.write_all(b"x").expect("the pipe accepts the bytes");
        let mut served = service.accept();
        assert_reads(&mut served, "x");
        reset(client);
        let ended = served.read(&mut [0]);
        // spiped closes its side of the wire in an orderly way, which cannot be told from an end.
        match programs.0 {
            Ours => assert_eq!(ended.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset)),
            Theirs => assert_eq!(ended.map_err(|error| error.kind()), Ok(0)),
        }
    }
}

#[test]
fn the_death_of_an_initiator_is_a_reset_and_not_an_end() {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).args(&SPIPED).start();
    let mut client = pipe.connect();
    client.write_all(b"x").expect("the pipe accepts the bytes");
    let mut served = service.accept();
    assert_reads(&mut served, "x");
    let Pipe { initiator, responder, .. } = pipe;
    initiator.process.kill();
    assert_reset(&mut served);
    responder.await_line(&["closed", "the connection to the other end broke"]);
}

#[test]
fn the_death_of_a_responder_is_a_reset_and_not_an_end() {
    let pipe = Pipe::to(echo()).args(&SPIPED).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "x");
    let Pipe { initiator, responder, .. } = pipe;
    responder.process.kill();
    assert_reset(&mut client);
    initiator.await_line(&["closed", "the connection to the other end broke"]);
}

#[test]
fn a_target_that_is_reset_resets_the_client() {
    let service = Service::start();
    let pair = Mixed::start((Ours, Ours), service.address(), (&[], &[]));
    let mut client = pair.initiator.connect();
    client.write_all(b"x").expect("the pipe accepts the bytes");
    let mut served = service.accept();
    assert_reads(&mut served, "x");
    reset(served);
    assert_reset(&mut client);
}

/// A peer may say all that it has and end its stream while the target is still being connected to.
#[test]
fn a_client_that_ends_at_once_is_still_carried() {
    let service = Service::start();
    let pair = Mixed::start((Theirs, Ours), service.address(), (&[], &[]));
    for _ in 0..20 {
        assert_answers_after_the_end(&pair, &service);
    }
}

#[test]
fn a_peer_that_is_reset_while_the_target_is_connected_to_frees_its_place() {
    let key = Key::new();
    let black_hole = crate::support::socket::BlackHole::start();
    let responder =
        End::responder(&key, black_hole.address()).args(&SPIPED).args(&["-o", "60", "-n", "1"]).start();
    let initiator = End::initiator(&key, responder.address()).args(&SPIPED).start();
    let client = initiator.connect();
    poll_until("the target is dialed", || {
        listed().iter().any(|row| row.remote == black_hole.address() && row.state == "02").then_some(())
    });
    reset(client);
    responder.await_line(&["refused", "went away before the connection was established"]);
}

// Configuration.

#[test]
fn the_log_says_once_at_the_start_what_this_protocol_cannot_promise() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&SPIPED).args(&["-f"]).start();
    let promise = responder.await_line(&["WARN", "spiped's protocol cannot tell an end"]);
    assert!(promise.contains("docs/SPIPED.md") && promise.contains("quantum"), "{promise}");
    responder.await_line(&["WARN", "no forward secrecy (-f)"]);
    let initiator = End::initiator(&key, responder.address()).args(&SPIPED).start();
    (0..2).for_each(|_| assert_echoes(&mut initiator.connect(), "text"));
    assert_eq!(responder.process.log().matches("cannot tell an end").count(), 1);
}

#[test]
fn options_of_our_own_protocol_are_refused_with_the_reason() {
    let key = Key::new();
    for (args, reason) in [
        (&["--label", "x"][..], "--label is for spipe's own protocol"),
        (&["--cipher", "aes256gcm"], "--cipher is for spipe's own protocol"),
        (&["--no-reuse"], "--no-reuse is for spipe's own protocol"),
        (&["-f", "-g"], "-g requires forward secrecy"),
    ] {
        let ended = run(&mut End::responder(&key, echo()).args(&SPIPED).args(args).command());
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(reason), "{}", ended.stderr);
    }
}

#[test]
fn pipes_of_both_protocols_cannot_share_a_source() {
    let site = Site::with_key();
    let pipe = |name: &str, more: &str| {
        format!(
            "[[pipe]]\nname = \"{name}\"\nmode = \"decrypt\"\nsource = \"127.0.0.1:0\"\ntarget = \"127.0.0.1:1\"\n\
             key = \"test.key\"\n{more}\n"
        )
    };
    site.configure(pipe("one", "protocol = \"spiped\"") + &pipe("two", "label = \"x\""));
    let ended = run(spipe().arg("check").arg(site.file()));
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("give each protocol a source of its own"), "{}", ended.stderr);
}

#[test]
fn a_reload_changes_the_protocol_for_new_connections_and_running_ones_go_on() {
    let site = Site::with_key();
    let service = Service::start();
    let address = service.address();
    let responder = |more: &str| {
        format!(
            "[[pipe]]\nmode = \"decrypt\"\nsource = \"/{}\"\ntarget = \"{address}\"\nkey = \"test.key\"\n{more}\n",
            site.name("in.sock").trim_start_matches('/')
        )
    };
    let process = site.serve(responder("protocol = \"spiped\""));
    let stdio_to = |args: &[&str]| {
        let mut command = stdio(site.name("in.sock"), &site.path("test.key"));
        command.args(args).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        Process::start_piped(&mut command)
    };
    let mut old = stdio_to(&SPIPED);
    let mut old_input = old.take_input();
    old_input.write_all(b"old").expect("it reads");
    let mut old_served = service.accept();
    assert_reads(&mut old_served, "old");
    site.configure(responder(""));
    process.reload_successfully();
    let mut new = stdio_to(&[]);
    new.take_input().write_all(b"new").expect("it reads");
    let mut new_served = service.accept();
    assert_reads(&mut new_served, "new");
    assert_ends(&mut new_served);
    old_input.write_all(b"still").expect("it reads");
    assert_reads(&mut old_served, "still");
    process.signal(Signal::KILL);
}

#[test]
fn checks_of_an_initiator_prove_the_key_to_their_responder() {
    let key = Key::new();
    let (wrong, right) = (Spiped::start("-d", &Key::new(), bracketed(echo()), &[]), {
        Spiped::start("-d", &key, bracketed(echo()), &[])
    });
    let (wrong, right) = (EitherEnd::Spiped(wrong), EitherEnd::Spiped(right));
    let second = right.address().to_string();
    let initiator = End::initiator(&key, wrong.address())
        .args(&SPIPED)
        .args(&["-t", &second, "--check", "1", "--fall", "1"])
        .start();
    initiator.await_line(&["down", &wrong.address().port().to_string()]);
    assert_echoes(&mut initiator.connect(), "the one that is up");
}

#[test]
fn several_of_their_responders_are_tried_until_one_proves_the_key() {
    let key = Key::new();
    let nobody = Port::reserve();
    let wrong = EitherEnd::Spiped(Spiped::start("-d", &Key::new(), bracketed(echo()), &[]));
    let right = EitherEnd::Spiped(Spiped::start("-d", &key, bracketed(echo()), &[]));
    let more = [wrong.address(), right.address()].map(|address: SocketAddr| address.to_string());
    let initiator =
        End::initiator(&key, nobody.address()).args(&SPIPED).args(&["-t", &more[0], "-t", &more[1]]).start();
    let mut client: TcpStream = initiator.connect();
    assert_echoes(&mut client, "the third");
}

// Pings.

fn ping(target: SocketAddr, key: &Key) -> Command {
    let mut command = spipe();
    command.args(["ping", "-t", &target.to_string(), "--protocol", "spiped", "-k"]).arg(key.path());
    command
}

#[test]
fn a_ping_finds_out_whether_their_responder_holds_the_key() {
    let key = Key::new();
    let responder = EitherEnd::Spiped(Spiped::start("-d", &key, bracketed(echo()), &[]));
    let said = run(&mut ping(responder.address(), &key)).succeeded().text();
    assert!(said.contains("handshake") && said.contains("holds the key"), "{said}");
    let ended = run(&mut ping(responder.address(), &Key::new()));
    ended.failed_with(5, &["its key differs (compare the key files with sha256sum)"]);
}

#[test]
fn a_ping_refuses_what_spipeds_protocol_does_not_have() {
    let ended = run(ping(echo(), &Key::new()).arg("--through"));
    ended.failed_with(2, &["--through is for spipe's own protocol"]);
}

// A while of everything at once.

/// How long the mixed load goes on: `SPIPE_SOAK=1800 cargo test --test e2e mixed_load` takes half an hour.
fn soak() -> Duration {
    let seconds =
        std::env::var("SPIPE_SOAK").ok().map(|text| text.parse().expect("SPIPE_SOAK is a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(5))
}

/// Streams of megabytes, round trips on connections that stay, new connections one after the other, and clients that are reset, until the
/// time is up. All that arrives is what was sent.
fn mix_load(programs: (Program, Program)) {
    let pair = Mixed::start(programs, echo(), (&[], &[]));
    let end = Instant::now() + soak();
    let (pair, is_time_up) = (&pair, || Instant::now() >= end);
    thread::scope(|scope| {
        for seed in 0..2 {
            scope.spawn(move || {
                for round in 0.. {
                    if is_time_up() {
                        return;
                    }
                    let bytes = Random::bytes(seed * 1_000_000 + round, 3_000_000);
                    let mut client = pair.initiator.connect();
                    let mut sending = client.try_clone().expect("descriptors are left");
                    let sent = bytes.clone();
                    let sender = thread::spawn(move || {
                        sending.write_all(&sent).expect("the pipe accepts the bytes");
                        sending.shutdown(Shutdown::Write).expect("the socket is connected");
                    });
                    let mut received = Vec::new();
                    client.read_to_end(&mut received).expect("the stream ends");
                    sender.join().expect("all is sent");
                    assert!(received == bytes, "stream {round} of {seed} was altered");
                }
            });
        }
        scope.spawn(move || {
            let mut clients: Vec<_> = (0..20).map(|_| pair.initiator.connect()).collect();
            for round in 0_u64.. {
                if is_time_up() {
                    return;
                }
                for (number, client) in clients.iter_mut().enumerate() {
                    assert_echoes(client, &format!("round {round} of {number}"));
                }
            }
        });
        scope.spawn(move || {
            for number in 0_u64.. {
                if is_time_up() {
                    return;
                }
                let mut client = pair.initiator.connect();
                assert_echoes(&mut client, &format!("connection {number}"));
                if number % 3 == 0 {
                    reset(client);
                } else {
                    client.shutdown(Shutdown::Write).expect("the socket is connected");
                    assert_ends(&mut client);
                }
            }
        });
    });
}

#[test]
fn mixed_load_to_their_responder_arrives_as_it_was_sent() {
    mix_load((Ours, Theirs));
}

#[test]
fn mixed_load_from_their_initiator_arrives_as_it_was_sent() {
    mix_load((Theirs, Ours));
}
