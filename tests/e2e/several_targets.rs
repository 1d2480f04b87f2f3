//! Several targets: which one a connection gets, and what becomes of one that fails.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::pipe::{End, Key, stdio};
use crate::support::poll_until;
use crate::support::process::run;
use crate::support::site::Site;
use crate::support::socket::{BlackHole, Service, assert_echoes, assert_reads, dead, echo, try_connect};

/// A service that says `name` to each client, and waits until the client closes.
fn named(name: &'static str) -> SocketAddr {
    Service::start().serve(move |mut client| {
        let _ = client.write_all(name.as_bytes());
        let _ = client.read_to_end(&mut Vec::new());
    })
}

/// An initiator and a responder with these targets.
fn pipe_to(targets: &[SocketAddr], args: &[&str]) -> (End, End) {
    let key = Key::new();
    let mut responder = End::responder(&key, targets[0]).args(args);
    for target in &targets[1..] {
        responder = responder.args(&["-t", &target.to_string()]);
    }
    let responder = responder.start();
    (End::initiator(&key, responder.address()).start(), responder)
}

/// The one letter that the service says to a new client.
fn greeting(initiator: &End) -> (char, TcpStream) {
    let mut client = initiator.connect();
    let mut name = [0];
    client.read_exact(&mut name).expect("the service says its name");
    (char::from(name[0]), client)
}

#[test]
fn a_target_that_refuses_is_passed_over() {
    let (initiator, responder) = pipe_to(&[dead(), echo()], &[]);
    for _ in 0..10 {
        assert_echoes(&mut initiator.connect(), "hello");
    }
    let line = responder.await_line(&["target avoided"]);
    assert!(line.contains("Connection refused"), "{line}");
    assert_eq!(responder.process.log().matches("target avoided").count(), 1, "{}", responder.process.log());
}

#[test]
fn a_target_that_does_not_answer_is_passed_over_within_the_time_limit() {
    let hole = BlackHole::start();
    let (initiator, responder) = pipe_to(&[hole.address(), echo()], &["-o", "2"]);
    assert_echoes(&mut initiator.connect(), "hello");
    responder.await_line(&["target avoided", "no answer in time"]);
}

#[test]
fn a_client_fails_when_all_targets_have_and_the_log_says_what_each_said() {
    let (first, second) = (dead(), dead());
    let (initiator, responder) = pipe_to(&[first, second], &[]);
    initiator.assert_resets_a_client();
    let line = responder.await_line(&["refused", "no target can be used"]);
    for target in [first, second] {
        let said = format!("cannot connect to [127.0.0.1]:{}: Connection refused", target.port());
        assert!(line.contains(&said), "{line}");
    }
}

#[test]
fn failover_takes_the_first_target_as_long_as_it_works() {
    let (initiator, _responder) = pipe_to(&[named("a"), named("b")], &[]);
    for _ in 0..5 {
        assert_eq!(greeting(&initiator).0, 'a');
    }
}

#[test]
fn round_robin_takes_the_targets_in_turn() {
    let (initiator, _responder) =
        pipe_to(&[named("a"), named("b"), named("c")], &["--balance", "round-robin"]);
    let names: String = (0..6).map(|_| greeting(&initiator).0).collect();
    assert!("abcabcabcabc".contains(&names), "{names}");
}

#[test]
fn least_connections_fills_up_the_target_with_the_fewest() {
    let (initiator, responder) = pipe_to(&[named("a"), named("b")], &["--balance", "least-connections"]);
    let mut clients: Vec<_> = (0..4).map(|_| greeting(&initiator)).collect();
    let count = |clients: &[(char, TcpStream)], name| clients.iter().filter(|(of, _)| *of == name).count();
    assert_eq!((count(&clients, 'a'), count(&clients, 'b')), (2, 2));
    clients.retain(|(name, _)| *name == 'b');
    responder.process.await_lines(2, "closed");
    clients.extend([greeting(&initiator), greeting(&initiator)]);
    assert_eq!((count(&clients, 'a'), count(&clients, 'b')), (2, 2));
}

#[test]
fn a_target_that_is_back_gets_clients_again() {
    let address = dead();
    let (initiator, responder) = pipe_to(&[address, named("b")], &[]);
    assert_eq!(greeting(&initiator).0, 'b');
    Service::start_on(&address.to_string()).serve(|mut client| {
        let _ = client.write_all(b"a");
    });
    poll_until("the first target is used", || (greeting(&initiator).0 == 'a').then_some(()));
    responder.await_line(&["target up again"]);
}

#[test]
fn an_avoided_target_is_not_tried_by_each_client() {
    let hole = BlackHole::start();
    let (initiator, responder) = pipe_to(&[hole.address(), echo()], &["-o", "4"]);
    assert_echoes(&mut initiator.connect(), "first");
    let start = Instant::now();
    for _ in 0..50 {
        assert_echoes(&mut initiator.connect(), "later");
    }
    // Each trial takes two seconds of one client. In the time of 50 clients there are a few at most.
    let time = start.elapsed();
    assert!(time < Duration::from_secs(40), "{time:?}\n{}", responder.process.log());
}

#[test]
fn a_crowd_of_clients_is_served_while_a_target_is_dead() {
    let (initiator, _responder) =
        pipe_to(&[dead(), echo(), dead()], &["--balance", "round-robin", "-n", "0"]);
    let address = initiator.address();
    let clients: Vec<_> = (0..200)
        .map(|number| {
            thread::spawn(move || {
                let mut client = try_connect(address).expect("the initiator listens");
                assert_echoes(&mut client, &format!("client {number}"));
            })
        })
        .collect();
    for client in clients {
        client.join().expect("each client is served");
    }
}

#[test]
fn an_initiator_passes_over_a_responder_with_another_key() {
    let (key, other) = (Key::new(), Key::new());
    let stranger = End::responder(&other, echo()).start();
    let responder = End::responder(&key, echo()).start();
    let initiator =
        End::initiator(&key, stranger.address()).args(&["-t", &responder.address().to_string()]).start();
    assert_echoes(&mut initiator.connect(), "hello");
    initiator.await_line(&["target avoided", "its key or label differs"]);
}

#[test]
fn an_initiator_passes_over_a_responder_that_says_nothing() {
    let (key, mute) = (Key::new(), Service::start());
    let responder = End::responder(&key, echo()).start();
    let initiator = End::initiator(&key, mute.address())
        .args(&["-t", &responder.address().to_string(), "-o", "2"])
        .start();
    assert_echoes(&mut initiator.connect(), "hello");
    initiator.await_line(&["target avoided", "nothing more in time"]);
}

#[test]
fn standard_input_and_output_get_the_target_that_works() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let mut command = stdio(dead().to_string(), &key.path());
    let output = run(command.arg("-t").arg(responder.address().to_string()));
    output.succeeded();
}

#[test]
fn what_is_known_of_a_target_outlives_a_reload() {
    let (site, hole) = (Site::with_key(), BlackHole::start());
    let targets = format!("[\"{}\", \"{}\"]", hole.address(), echo());
    let pipe = site.both_ends("a", "TARGETS").replace("\"TARGETS\"", &targets);
    let process = site.serve(pipe.replace("key = ", "timeout = 2\nkey = "));
    assert_echoes(&mut site.connect("a"), "before");
    process.await_line(&["target avoided"]);
    process.reload_successfully();
    assert_echoes(&mut site.connect("a"), "after");
    assert_eq!(process.log().matches("target avoided").count(), 1, "{}", process.log());
}

#[test]
fn a_target_that_a_reload_takes_away_is_used_no_more() {
    let site = Site::with_key();
    let both = format!("[\"{}\", \"{}\"]", named("a"), named("b"));
    let pipe = site.both_ends("a", "TARGETS");
    let process = site.serve(pipe.replace("\"TARGETS\"", &both));
    assert_reads(&mut site.connect("a"), "a");
    site.configure(pipe.replace("\"TARGETS\"", &format!("\"{}\"", named("c"))));
    process.reload_successfully();
    for _ in 0..3 {
        assert_reads(&mut site.connect("a"), "c");
    }
}
