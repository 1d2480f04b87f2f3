//! `spipe ping`: which step to the other end fails, in words and by the exit code; and what an end that is pinged makes of it.

use std::fmt::Display;
use std::io::Write;
use std::process::Command;
use std::thread;

use rustix::process::Signal;
use spipe::proto::cipher::Cipher;

use crate::support::dns::Host;
use crate::support::peer::{ABORT, Begun, DATA, END, OPEN, Tunnel, initiate};
use crate::support::pipe::{End, Key, field};
use crate::support::process::{Process, after, run, run_with_input, spipe};
use crate::support::proxy::Socks;
use crate::support::site::{Site, fingerprint};
use crate::support::socket::{BlackHole, Port, Service, assert_ends, connect, echo};

/// A field of *Open*, a feature, and reasons of *Abort* (PROTOCOL.md, sections 5.2, 4.1 and 5.3).
const PING: [u8; 3] = [6, 0, 0];
const PINGS: u8 = 2;
const IDLE: u8 = 6;

/// `spipe ping`, with `args` behind the target and the key.
fn ping(target: impl Display, key: &Key, args: &[&str]) -> Command {
    let mut command = spipe();
    command.args(["ping", "-t", &target.to_string(), "-k"]).arg(key.path()).args(args);
    command
}

/// Asserts that `process` ends with `code`, and that its line about that has all of `parts`.
#[track_caller]
fn assert_ends_with(mut process: Process, code: i32, parts: &[&str]) {
    let status = process.wait();
    let log = process.log();
    assert_eq!(status.code(), Some(code), "{log}");
    let line = log.lines().find(|line| line.starts_with("spipe: ")).unwrap_or_default();
    for part in parts {
        assert!(line.contains(part), "no '{part}' in: {log}");
    }
}

/// The first words of each line.
fn steps(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split("  ").next()).collect()
}

#[test]
fn a_ping_tells_each_step_and_the_target_sees_no_connection() {
    let (key, target) = (Key::new(), Service::start());
    let responder = End::responder(&key, target.address()).args(&["--verbose"]).start();
    let said = run(&mut ping(responder.address(), &key, &[])).succeeded();
    assert_eq!(said.stderr, "");
    let text = said.text();
    assert_eq!(steps(&text), ["TCP", "handshake", "other end", "ping"]);
    for part in [responder.source(), &format!("key {}", fingerprint(&key.path())), " ms"] {
        assert!(text.contains(part), "no '{part}' in: {text}");
    }
    responder.await_line(&["DEBUG pinged", "result=\"finished\""]);
    target.assert_no_connection();
    let log = responder.process.log();
    assert!(!log.contains("WARN") && !log.contains("established") && !log.contains("closed"), "{log}");
}

#[test]
fn with_through_the_other_end_connects_to_its_target_which_gets_no_byte() {
    let (key, target) = (Key::new(), Service::start());
    let responder = End::responder(&key, target.address()).start();
    let said = run(&mut ping(responder.address(), &key, &["--through"])).succeeded().text();
    assert_eq!(steps(&said), ["TCP", "handshake", "other end", "ping", "target"]);
    assert_ends(&mut target.accept());
    target.assert_no_connection();
}

#[test]
fn a_name_is_told_with_its_addresses_and_that_which_was_connected_to() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let target = format!("localhost:{}", responder.port());
    let said = run(&mut ping(target, &key, &["--prefer", "ipv4"])).succeeded().text();
    assert_eq!(steps(&said), ["name", "TCP", "handshake", "other end", "ping"]);
    let (name, connected) =
        (said.lines().next().unwrap_or_default(), said.lines().nth(1).unwrap_or_default());
    assert!(name.contains("localhost → ") && name.contains("127.0.0.1"), "{said}");
    assert!(connected.contains(responder.source()), "{said}");
}

#[test]
fn a_name_that_does_not_resolve_ends_with_3() {
    let said = run(&mut ping("no-such-host.invalid:6380", &Key::new(), &[]));
    said.failed_with(3, &["cannot resolve 'no-such-host.invalid'", "getent ahosts no-such-host.invalid"]);
    assert_eq!(said.text(), "", "no step has worked");
}

#[test]
fn an_outgoing_name_that_does_not_resolve_ends_with_3() {
    let said = run(&mut ping(echo(), &Key::new(), &["-b", "no-such-host.invalid"]));
    said.failed_with(3, &["cannot resolve 'no-such-host.invalid'"]);
}

#[test]
fn a_dns_server_that_does_not_answer_ends_with_3() {
    let host = Host::start();
    host.go_dark();
    let said = run(&mut host.command(&ping("server.test:6380", &Key::new(), &["-o", "1"])));
    said.failed_with(3, &["cannot resolve 'server.test': no answer in time (-o)"]);
}

#[test]
fn a_port_where_nothing_listens_ends_with_4() {
    let port = Port::reserve();
    let said = run(&mut ping(port.address(), &Key::new(), &[]));
    said.failed_with(4, &["Connection refused", "nothing listens there", "its source (-s)?"]);
    assert_eq!(said.text(), "");
}

#[test]
fn an_address_that_never_answers_ends_with_4() {
    let hole = BlackHole::start();
    let said = run(&mut ping(hole.address(), &Key::new(), &["-o", "1"]));
    said.failed_with(4, &["no answer in time (-o)", "a firewall drops"]);
}

#[test]
fn a_socket_file_that_is_not_there_ends_with_4() {
    let site = Site::new();
    run(&mut ping(site.name("none.sock"), &Key::new(), &[])).failed_with(4, &["No such file or directory"]);
}

/// Asserts that a ping whose key or label is another one fails as one with a `key` does, and blames neither alone.
#[track_caller]
fn assert_not_proved(mut command: Command, key: &Key) {
    let said = run(&mut command);
    let ours = format!("our key is {}", fingerprint(&key.path()));
    said.failed_with(5, &[&ours, "key or label differs", "too many connections", "it is not spipe"]);
    assert_eq!(steps(&said.text()), ["TCP"]);
}

#[test]
fn another_key_ends_with_5() {
    let (key, other) = (Key::new(), Key::new());
    let responder = End::responder(&key, echo()).start();
    assert_not_proved(ping(responder.address(), &other, &[]), &other);
    responder.await_line(&["WARN refused", "the keys differ"]);
}

#[test]
fn another_label_ends_with_5() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["--label", "redis"]).start();
    assert_not_proved(ping(responder.address(), &key, &[]), &key);
    assert_not_proved(ping(responder.address(), &key, &["--label", "postgres"]), &key);
    run(&mut ping(responder.address(), &key, &["--label", "redis"])).succeeded();
}

#[test]
fn no_cipher_in_common_ends_with_5() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["--cipher", "chacha20poly1305"]).start();
    let said = run(&mut ping(responder.address(), &key, &["--cipher", "aes256gcm"]));
    said.failed_with(5, &["cipher"]);
}

#[test]
fn a_service_that_says_nothing_ends_with_5() {
    let silent = Service::start();
    let said = run(&mut ping(silent.address(), &Key::new(), &["-o", "1"]));
    said.failed_with(5, &["0 of 1168 bytes", "nothing more in time (-o)", "it is not spipe"]);
}

#[test]
fn a_service_that_says_something_else_ends_with_5() {
    let ssh = Service::start().serve(|mut client| {
        let _ = client.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n");
    });
    run(&mut ping(ssh, &Key::new(), &[])).failed_with(5, &["of 1168 bytes", "it is not spipe"]);
}

#[test]
fn an_initiator_in_the_place_of_the_responder_ends_with_5() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let initiator = End::initiator(&key, responder.address()).start();
    // Its service sends back what it hears.
    let said = run(&mut ping(initiator.address(), &key, &["-o", "1"]));
    said.failed_with(5, &["handshake"]);
}

#[test]
fn a_responder_without_a_place_ends_with_6() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["-n", "1", "-o", "2"]).start();
    let mut held = pinging(&responder, &key);
    // Its word comes when our time is up as well, and is waited for.
    let said = run(&mut ping(responder.address(), &key, &["-o", "2"]));
    said.failed_with(6, &["the handshake worked", "as many connections as it may", "-n"]);
    assert_eq!(steps(&said.text()), ["TCP", "handshake"]);
    responder.await_line(&["WARN refused", "raise -n"]);
    held.send(END, b"");
    assert_eq!(held.receive(END), b"");
    held.await_close();
    run(&mut ping(responder.address(), &key, &[])).succeeded();
}

#[test]
fn a_responder_whose_one_place_is_free_answers_a_ping_and_asks_its_target_after_that() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["-n", "1"]).start();
    for _ in 0..5 {
        run(&mut ping(responder.address(), &key, &["--through"])).succeeded();
    }
}

/// A responder that accepts `key` under the rules of a `[[key]]` table.
fn with_rules(site: &Site, key: &Key, rules: &str) -> (Process, String) {
    std::fs::copy(key.path(), site.path("test.key")).expect("the file can be copied");
    let process = site.serve(format!(
        "[[pipe]]\nmode = \"decrypt\"\nsource = \"127.0.0.1:0\"\ntarget = \"{}\"\nkey = \"test.key\"\n\n\
         [[key]]\nfile = \"test.key\"\n{rules}\n",
        echo()
    ));
    let line = process.await_line(&["listening"]);
    let source = field(&line, "source").to_owned();
    (process, source)
}

#[test]
fn a_key_that_is_not_accepted_from_here_ends_with_6_and_the_log_there_says_why() {
    let (site, key) = (Site::new(), Key::new());
    let (process, source) = with_rules(&site, &key, "allow = [\"192.0.2.0/24\"]");
    let said = run(&mut ping(source, &key, &[]));
    said.failed_with(6, &["does not accept this key", "not from this address", "its log says why"]);
    process.await_line(&["WARN refused", "key_file"]);
}

#[test]
fn pings_count_as_connections_of_their_key() {
    let (site, key) = (Site::new(), Key::new());
    let (_process, source) = with_rules(&site, &key, "max-connections = 1");
    let address = source.replace(['[', ']'], "").parse().expect("an address");
    let key_file = std::fs::read(key.path()).expect("the key can be read");
    let mut held = initiate(connect(address), &key_file, Cipher::ChaCha20Poly1305);
    held.send(OPEN, &PING);
    assert_eq!(held.receive(DATA), b"");
    run(&mut ping(source, &key, &[])).failed_with(6, &["the limits of this key"]);
}

#[test]
fn a_target_that_is_down_is_nothing_to_a_ping_and_ends_one_with_through_with_7() {
    let (key, port) = (Key::new(), Port::reserve());
    let responder = End::responder(&key, port.address()).args(&["--verbose"]).start();
    run(&mut ping(responder.address(), &key, &[])).succeeded();
    let said = run(&mut ping(responder.address(), &key, &["--through"]));
    said.failed_with(7, &["cannot reach its target", "its log says why", "'probed'"]);
    assert_eq!(steps(&said.text()), ["TCP", "handshake", "other end", "ping"]);
    responder.await_line(&["probed", "Connection refused"]);
}

#[test]
fn a_target_that_never_answers_ends_with_7() {
    let (key, hole) = (Key::new(), BlackHole::start());
    let responder = End::responder(&key, hole.address()).args(&["-o", "1"]).start();
    let said = run(&mut ping(responder.address(), &key, &["--through", "-o", "1"]));
    said.failed_with(7, &["cannot reach its target"]);
}

#[test]
fn a_responder_that_does_not_say_whether_its_target_stands_ends_with_7() {
    let (key, responder) = (Key::new(), Service::start());
    let process = Process::start(&mut ping(responder.address(), &key, &["--through", "-o", "3"]));
    let mut tunnel = accept_ping(&responder, &key);
    let number = tunnel.receive(DATA);
    tunnel.send(DATA, &number);
    assert_eq!(tunnel.receive(END), b"");
    tunnel.send(END, b"");
    drop(tunnel);
    let key_file = std::fs::read(key.path()).expect("the key can be read");
    let begun = Begun::read(responder.accept(), &key_file);
    let mut probed = begun.granting(1).reply(Cipher::ChaCha20Poly1305);
    assert_eq!(probed.receive(OPEN), [2, 0, 0]);
    assert_ends_with(process, 7, &["has not connected to its target in time (-o)"]);
}

/// Plays a responder that grants `features`, until it has answered message 1.
fn accept_granting(responder: &Service, key: &Key, features: u8) -> Tunnel {
    let key_file = std::fs::read(key.path()).expect("the key can be read");
    let begun = Begun::read(responder.accept(), &key_file);
    assert_eq!(begun.asked, PINGS);
    begun.granting(features).reply(Cipher::ChaCha20Poly1305)
}

/// Plays a responder that has a place for the ping that comes.
fn accept_ping(responder: &Service, key: &Key) -> Tunnel {
    let mut tunnel = accept_granting(responder, key, PINGS);
    assert_eq!(tunnel.receive(OPEN), PING);
    tunnel.send(DATA, b"");
    tunnel
}

#[test]
fn a_responder_that_is_too_old_ends_with_6_and_is_not_made_to_connect_to_its_target() {
    // Older than features, and older than pings.
    for features in [0, 1] {
        let (key, responder) = (Key::new(), Service::start());
        let process = Process::start(&mut ping(responder.address(), &key, &["--through"]));
        let tunnel = accept_granting(&responder, &key, features);
        assert_eq!(tunnel.await_close(), b"", "neither Open nor anything else");
        assert_ends_with(process, 6, &["key and label are right", "too old to answer pings"]);
        responder.assert_no_connection();
    }
}

#[test]
fn a_responder_that_never_says_that_it_has_a_place_ends_with_6() {
    let (key, responder) = (Key::new(), Service::start());
    let process = Process::start(&mut ping(responder.address(), &key, &["-o", "3"]));
    let mut tunnel = accept_granting(&responder, &key, PINGS);
    assert_eq!(tunnel.receive(OPEN), PING);
    assert_ends_with(process, 6, &["the other end has not answered in time (-o)"]);
}

#[test]
fn a_responder_that_sends_nothing_back_ends_with_6() {
    let (key, responder) = (Key::new(), Service::start());
    let process = Process::start(&mut ping(responder.address(), &key, &["-o", "3"]));
    let mut tunnel = accept_ping(&responder, &key);
    assert_eq!(tunnel.receive(DATA).len(), 8);
    assert_ends_with(process, 6, &["a ping was not answered in time (-o)"]);
}

#[test]
fn a_responder_that_sends_something_else_back_ends_with_6() {
    let (key, responder) = (Key::new(), Service::start());
    let process = Process::start(&mut ping(responder.address(), &key, &[]));
    let mut tunnel = accept_ping(&responder, &key);
    assert_eq!(tunnel.receive(DATA).len(), 8);
    tunnel.send(DATA, b"12345678");
    assert_ends_with(process, 6, &["sent back something else"]);
}

#[test]
fn a_responder_that_ends_pings_that_it_was_not_done_with_ends_with_6() {
    let (key, responder) = (Key::new(), Service::start());
    let process = Process::start(&mut ping(responder.address(), &key, &[]));
    let mut tunnel = accept_ping(&responder, &key);
    tunnel.send(END, b"");
    assert_eq!(tunnel.receive(DATA).len(), 8);
    assert_eq!(tunnel.receive(END), b"");
    drop(tunnel);
    assert_ends_with(process, 6, &["the other end ended the ping"]);
}

#[test]
fn several_pings_have_statistics() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["--verbose"]).start();
    let said = run(&mut ping(responder.address(), &key, &["-c", "5", "-i", "0.01"])).succeeded().text();
    assert_eq!(said.matches("answered, ").count(), 6, "{said}");
    let line = said.lines().last().expect("there are lines");
    let (_, times) = line.split_once("5 answered, min/avg/max ").expect("the statistics");
    let times: Vec<f64> =
        times.trim_end_matches(" ms").split('/').map(|time| time.parse().unwrap()).collect();
    assert!(times.len() == 3 && times[0] <= times[1] && times[1] <= times[2], "{line}");
    // All of them over one connection.
    let pinged = responder.await_line(&["pinged"]);
    assert_eq!(field(&pinged, "bytes"), "40");
}

#[test]
fn the_statistics_of_pings_before_one_that_fails_are_told() {
    let (key, responder) = (Key::new(), Service::start());
    let process = Process::start(&mut ping(responder.address(), &key, &["-c", "9", "-i", "0", "-o", "3"]));
    let mut tunnel = accept_ping(&responder, &key);
    for _ in 0..2 {
        let number = tunnel.receive(DATA);
        tunnel.send(DATA, &number);
    }
    process.await_line(&["2 answered, min/avg/max"]);
    assert_ends_with(process, 6, &["a ping was not answered in time (-o)"]);
}

#[test]
fn many_pings_at_once_are_all_answered() {
    let (key, target) = (Key::new(), Service::start());
    let responder = End::responder(&key, target.address()).args(&["-n", "20", "-o", "60"]).start();
    let address = responder.address();
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                run(&mut ping(address, &key, &["-c", "3", "-i", "0.01", "-o", "60"])).succeeded();
            });
        }
    });
    target.assert_no_connection();
}

#[test]
fn a_unix_domain_socket_can_be_pinged() {
    let (site, key) = (Site::new(), Key::new());
    let socket = site.name("responder.sock");
    let _responder = End::responder(&key, echo()).source(&socket).start();
    let said = run(&mut ping(&socket, &key, &["--through"])).succeeded().text();
    assert_eq!(steps(&said), ["socket", "handshake", "other end", "ping", "target"]);
    assert!(said.contains(&socket), "{said}");
}

#[test]
fn a_ping_goes_through_a_proxy_and_tells_both() {
    let (key, proxy) = (Key::new(), Socks::start(None));
    let responder = End::responder(&key, echo()).start();
    let via = format!("socks5://127.0.0.1:{}", proxy.port);
    let said = run(&mut ping(responder.address(), &key, &["--via", &via])).succeeded().text();
    let line = said.lines().next().unwrap_or_default();
    assert!(line.contains(responder.source()) && line.contains("through socks5://"), "{said}");
}

#[test]
fn a_proxy_that_does_not_lead_there_ends_with_4() {
    let (key, proxy, port) = (Key::new(), Socks::start(None), Port::reserve());
    let via = format!("socks5://127.0.0.1:{}", proxy.port);
    run(&mut ping(port.address(), &key, &["--via", &via])).failed_with(4, &["the proxy", "does not connect"]);
}

#[test]
fn a_key_on_standard_input_serves_as_well() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let mut command = spipe();
    command.args(["ping", "-t", &responder.address().to_string(), "-k", "-"]);
    run_with_input(&mut command, std::fs::read(key.path()).expect("the key can be read")).succeeded();
}

#[test]
fn a_key_file_that_is_missing_ends_with_1() {
    let mut command = spipe();
    command.args(["ping", "-t", "127.0.0.1:9", "-k", "/no-such-directory/test.key"]);
    run(&mut command).failed_with(1, &["/no-such-directory/test.key"]);
}

#[test]
fn an_output_that_is_full_ends_with_1() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let command = ping(responder.address(), &key, &[]);
    run(&mut after("exec >/dev/full;", &command)).failed_with(1, &["cannot write to standard output"]);
}

/// A ping that goes on until it is ended, and has been answered.
fn ping_for_long(responder: &End, key: &Key) -> Process {
    let process = Process::start(&mut ping(responder.address(), key, &["-c", "100000", "-i", "0.01"]));
    process.await_line(&["answered, 2 of"]);
    process
}

#[test]
fn a_responder_that_dies_while_it_is_pinged_ends_with_6() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let process = ping_for_long(&responder, &key);
    responder.process.kill();
    assert_ends_with(process, 6, &["the handshake worked, and then the connection to the other end"]);
}

#[test]
fn a_responder_that_stops_while_it_is_pinged_ends_with_6() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["--drain-timeout", "0"]).start();
    let process = ping_for_long(&responder, &key);
    responder.process.signal(Signal::TERM);
    assert_ends_with(process, 6, &["the other end was shut down"]);
}

#[test]
fn a_key_that_is_taken_away_while_it_pings_ends_with_6() {
    let (site, key) = (Site::new(), Key::new());
    std::fs::create_dir(site.path("keys")).expect("the directory can be made");
    std::fs::copy(key.path(), site.path("keys/gone.key")).expect("the file can be copied");
    site.add_key("keys/stays.key");
    let mut command = spipe();
    command.args([
        "-d",
        "-s",
        "127.0.0.1:0",
        "-t",
        &echo().to_string(),
        "--on-revoke",
        "reset",
        "--verbose",
        "-k",
    ]);
    let responder = End::started_by(command.arg(site.path("keys")));
    let process = ping_for_long(&responder, &key);
    std::fs::remove_file(site.path("keys/gone.key")).expect("the file can be removed");
    responder.process.reload_successfully();
    assert_ends_with(process, 6, &["does not accept this key any more"]);
    responder.await_line(&["pinged", "--on-revoke reset"]);
}

#[test]
fn pings_last_no_longer_than_connections_may() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["--max-lifetime", "1"]).start();
    let process = Process::start(&mut ping(responder.address(), &key, &["-c", "100000", "-i", "0.01"]));
    assert_ends_with(process, 6, &["it has lasted for as long as it may"]);
}

/// Plays an initiator whose ping has a place at `responder`.
fn pinging(responder: &End, key: &Key) -> Tunnel {
    let key_file = std::fs::read(key.path()).expect("the key can be read");
    let mut tunnel = initiate(connect(responder.address()), &key_file, Cipher::ChaCha20Poly1305);
    tunnel.send(OPEN, &PING);
    assert_eq!(tunnel.receive(DATA), b"", "the acknowledgement");
    tunnel
}

#[test]
fn all_that_a_pinging_end_has_said_comes_back_before_the_end_that_it_has_said_too() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let mut tunnel = pinging(&responder, &key);
    let long = vec![7; 5_000];
    tunnel.send(DATA, &long);
    tunnel.send(END, b"");
    let mut back = Vec::new();
    while back.len() < long.len() {
        back.extend(tunnel.receive(DATA));
    }
    assert_eq!(back, long);
    assert_eq!(tunnel.receive(END), b"");
}

#[test]
fn a_ping_that_says_nothing_is_ended_and_told_so() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["-n", "1", "--verbose"]).start();
    let mut tunnel = pinging(&responder, &key);
    assert_eq!(tunnel.receive(ABORT), [IDLE]);
    tunnel.await_close();
    responder.await_line(&["pinged", "nothing came for 5 s"]);
    run(&mut ping(responder.address(), &key, &[])).succeeded();
}

#[test]
fn a_pinging_end_that_never_reads_is_ended_and_takes_no_memory() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["-n", "1", "--verbose"]).start();
    run(&mut ping(responder.address(), &key, &[])).succeeded();
    let before = responder.process.peak_resident_kib();
    let mut tunnel = pinging(&responder, &key);
    let mut sent = 0;
    // Until it is closed: far more than fits into the sockets.
    while tunnel.try_send(DATA, &[7; 16_384]).is_ok() {
        sent += 16;
    }
    let taken = responder.process.peak_resident_kib() - before;
    assert!(sent > 1_024 && taken < 2_048, "{sent} KiB sent, {taken} KiB taken");
    responder.await_line(&["pinged", "nothing came for 5 s"]);
    run(&mut ping(responder.address(), &key, &["-o", "60"])).succeeded();
}

#[test]
fn a_pinging_end_that_vanishes_gives_its_place_back() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["-n", "1"]).start();
    pinging(&responder, &key).vanish();
    run(&mut ping(responder.address(), &key, &["-o", "60"])).succeeded();
}
