//! Sockets passed by the service manager (sd_listen_fds(3)).

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::pipe::{Key, field};
use crate::support::process::{Process, after, run, spipe};
use crate::support::site::Site;
use crate::support::socket::{assert_echoes, connect, echo};

/// `command` with one or two `sockets` as descriptors 3 and 4, and with the environment variables that announce them.
fn with_sockets(command: &Command, names: Option<&str>, sockets: Vec<OwnedFd>) -> Command {
    let count = sockets.len();
    let names = names.map(|names| format!("LISTEN_FDNAMES={names} ")).unwrap_or_default();
    // A child inherits only its standard streams, so the sockets are passed as these.
    let shift = match count {
        1 => "exec 3<&0 </dev/null;",
        _ => "exec 3<&0 4<&1 </dev/null >/dev/null;",
    };
    let mut command = after(&format!("{shift} LISTEN_PID=$$ LISTEN_FDS={count} {names}"), command);
    let mut sockets = sockets.into_iter();
    command.stdin(sockets.next().expect("a socket")).stderr(Stdio::piped());
    command.stdout(sockets.next().map_or_else(Stdio::null, Stdio::from));
    command
}

/// `spipe -d` with `-s` for each of `sources`, to an echo target.
fn responder(key: &Key, sources: &[&str]) -> Command {
    let mut command = spipe();
    command.args(["-d", "-t", &echo().to_string(), "-k"]).arg(key.path());
    for source in sources {
        command.args(["-s", source]);
    }
    command
}

fn start(command: &Command, names: Option<&str>, sockets: Vec<OwnedFd>) -> Process {
    let process = Process::start_piped(&mut with_sockets(command, names, sockets));
    process.await_line(&["listening"]);
    process
}

/// Runs `command`, and asserts that it fails with one line that has all of `parts`.
#[track_caller]
fn assert_refused(command: &Command, names: Option<&str>, sockets: Vec<OwnedFd>, parts: &[&str]) {
    let mut process = Process::start_piped(&mut with_sockets(command, names, sockets));
    assert_eq!(process.wait().code(), Some(1), "{}", process.log());
    let log = process.log();
    assert_eq!(log.lines().count(), 1, "{log}");
    for part in [&["spipe: "], parts].concat() {
        assert!(log.contains(part), "no '{part}' in {log}");
    }
}

fn listener() -> (OwnedFd, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("the socket is bound");
    (listener.into(), address)
}

/// Asserts that the responder at `address` serves an initiator with `key`.
#[track_caller]
fn assert_serves(key: &Key, address: impl std::fmt::Display) {
    let initiator = crate::support::pipe::End::initiator(key, address).start();
    assert_echoes(&mut initiator.connect(), "through a passed socket");
}

#[test]
fn a_passed_socket_is_served() {
    let (key, (socket, address)) = (Key::new(), listener());
    let process = start(&responder(&key, &["systemd"]), Some("door"), vec![socket]);
    let line = process.await_line(&["listening"]);
    assert_eq!(field(&line, "source"), format!("[127.0.0.1]:{}", address.port()));
    assert_serves(&key, address);
}

#[test]
fn without_a_name_all_passed_sockets_are_served() {
    let (key, site) = (Key::new(), Site::new());
    let (socket, address) = listener();
    let unix = UnixListener::bind(site.path("door")).expect("the name is free");
    let _process = start(&responder(&key, &["systemd"]), Some("one:other"), vec![socket, unix.into()]);
    assert_serves(&key, address);
    assert_serves(&key, site.name("door"));
}

#[test]
fn unnamed_passed_sockets_are_served() {
    let (key, (socket, address)) = (Key::new(), listener());
    let _process = start(&responder(&key, &["systemd"]), None, vec![socket]);
    assert_serves(&key, address);
}

#[test]
fn each_pipe_of_a_file_takes_the_socket_with_its_name() {
    let site = Site::with_key();
    let target = echo();
    let by_name = |text: String, name: &str| {
        text.replace(&format!("source = \"{}\"", site.socket(name)), &format!("source = \"systemd:{name}\""))
    };
    let sealed = UnixListener::bind(site.socket("sealed")).expect("the name is free");
    let (plain, address) = listener();
    site.configure(
        by_name(site.encrypt("plain", site.socket("sealed")), "plain")
            + &by_name(site.decrypt("sealed", target), "sealed"),
    );
    let process = start(&site.command(), Some("sealed:plain"), vec![sealed.into(), plain]);
    assert_echoes(&mut connect(address), "hello");
    process.await_line(&[" closed ", "pipe=\"plain\""]);
    process.await_line(&[" closed ", "pipe=\"sealed\""]);
}

#[test]
fn a_passed_socket_and_a_path_are_served_together() {
    let (key, (socket, address), site) = (Key::new(), listener(), Site::new());
    let command = responder(&key, &["systemd:door", &site.socket("own")]);
    let _process = start(&command, Some("door"), vec![socket]);
    assert_serves(&key, address);
    assert_serves(&key, site.socket("own"));
}

#[test]
fn a_name_that_was_not_passed_is_refused_and_the_passed_names_are_listed() {
    let (key, (one, _), (other, _)) = (Key::new(), listener(), listener());
    assert_refused(
        &responder(&key, &["systemd:front"]),
        Some("back:side"),
        vec![one, other],
        &[
            "cannot listen on systemd:front",
            "systemd has passed only back, side",
            "FileDescriptorName=front",
            "or name an address",
        ],
    );
}

#[test]
fn without_a_passed_socket_the_error_says_what_to_do() {
    let key = Key::new();
    run(&mut responder(&key, &["systemd"])).failed_with(
        1,
        &["cannot listen on systemd:", "systemd has passed no socket", "start spipe by a .socket unit"],
    );
}

#[test]
fn sockets_passed_to_another_process_are_not_used() {
    let (key, (socket, _)) = (Key::new(), listener());
    let mut command =
        after("exec 3<&0 </dev/null; LISTEN_PID=1 LISTEN_FDS=1", &responder(&key, &["systemd"]));
    let mut process =
        Process::start_piped(command.stdin(socket).stdout(Stdio::null()).stderr(Stdio::piped()));
    assert_eq!(process.wait().code(), Some(1));
    assert!(process.log().contains("systemd has passed no socket"), "{}", process.log());
}

#[test]
fn two_pipes_cannot_have_the_same_passed_socket() {
    let site = Site::with_key();
    let source = |name: &str| format!("\"{}\"", site.socket(name));
    let text = site.encrypt("a", "127.0.0.1:9").replace(&source("a"), "\"systemd:door\"")
        + &site.encrypt("b", "127.0.0.1:9").replace(&source("b"), "\"systemd\"");
    site.configure(text);
    let (socket, _) = listener();
    assert_refused(
        &site.command(),
        Some("door"),
        vec![socket],
        &["cannot listen on systemd", "systemd has passed no socket"],
    );
}

#[test]
fn a_socket_that_does_not_listen_is_refused() {
    let (key, (socket, address)) = (Key::new(), listener());
    let connected = TcpStream::connect(address).expect("the socket listens");
    drop(socket);
    assert_refused(
        &responder(&key, &["systemd"]),
        Some("door"),
        vec![connected.into()],
        &["'door'", "a socket that does not listen", "ListenStream= and Accept=no"],
    );
}

#[test]
fn a_datagram_socket_is_refused() {
    let key = Key::new();
    let sockets: [OwnedFd; 2] = [
        UdpSocket::bind("127.0.0.1:0").expect("a free port").into(),
        UnixDatagram::unbound().expect("a socket").into(),
    ];
    for socket in sockets {
        assert_refused(
            &responder(&key, &["systemd"]),
            Some("door"),
            vec![socket],
            &["systemd has passed", "'door'", "ListenStream="],
        );
    }
}

#[test]
fn a_file_is_refused() {
    let key = Key::new();
    let file = std::fs::File::open("/dev/null").expect("Linux has this file");
    assert_refused(
        &responder(&key, &["systemd"]),
        Some("door"),
        vec![file.into()],
        &["something that is no stream socket as 'door'"],
    );
}

#[test]
fn different_numbers_of_names_and_sockets_are_refused() {
    let (key, (socket, _)) = (Key::new(), listener());
    assert_refused(
        &responder(&key, &["systemd"]),
        Some("one:other"),
        vec![socket],
        &["LISTEN_FDNAMES has 2 names for 1 sockets"],
    );
}

#[test]
fn a_passed_socket_that_no_pipe_uses_causes_a_warning() {
    let (key, (used, address), (unused, _)) = (Key::new(), listener(), listener());
    let process = start(&responder(&key, &["systemd:used"]), Some("used:unused"), vec![used, unused]);
    let line = process.await_line(&["WARN no pipe uses this socket that systemd has passed"]);
    assert_eq!(field(&line, "name"), "unused");
    assert_serves(&key, address);
}

#[test]
fn an_invalid_name_of_a_passed_socket_is_a_usage_error() {
    let key = Key::new();
    for source in ["systemd:", "systemd:a:b", &format!("systemd:{}", "x".repeat(300))] {
        run(&mut responder(&key, &[source])).failed_with(2, &["--source"]);
    }
}

#[test]
fn a_passed_socket_cannot_be_a_target() {
    let key = Key::new();
    let mut command = spipe();
    command.args(["-e", "-s", "127.0.0.1:0", "-t", "systemd", "-k"]).arg(key.path());
    run(&mut command).failed_with(2, &["--target"]);
}

#[test]
fn the_file_of_a_passed_socket_is_not_removed() {
    let (key, site) = (Key::new(), Site::new());
    let socket = UnixListener::bind(site.path("door")).expect("the name is free");
    let mut process = start(&responder(&key, &["systemd"]), None, vec![socket.into()]);
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    assert!(site.path("door").exists());
}

#[test]
fn a_client_that_connects_between_two_runs_is_served_by_the_second() {
    let site = Site::with_key();
    // The manager keeps the socket and passes a copy to each run.
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("the socket is bound");
    let front = site.encrypt("front", site.socket("back"));
    site.configure(
        front.replace(&format!("\"{}\"", site.socket("front")), "\"systemd\"")
            + &site.decrypt("back", echo()),
    );
    let run_once =
        || start(&site.command(), None, vec![socket.try_clone().expect("descriptors are left").into()]);
    let mut first = run_once();
    assert_echoes(&mut connect(address), "the first run");
    first.signal(Signal::TERM);
    first.wait();
    let mut between = connect(address);
    let _second = run_once();
    assert_echoes(&mut between, "the second run");
}

#[test]
fn a_reload_keeps_the_passed_sockets() {
    let site = Site::with_key();
    let (socket, address) = listener();
    let text = |name: &str| {
        site.encrypt("front", site.socket("back"))
            .replace(&format!("\"{}\"", site.socket("front")), "\"systemd:door\"")
            .replace("\"front\"", &format!("\"{name}\""))
            + &site.decrypt("back", echo())
    };
    site.configure(text("front"));
    let process = start(&site.command(), Some("door"), vec![socket]);
    let mut running = connect(address);
    assert_echoes(&mut running, "before");
    for name in ["renamed", "front", "renamed-again"] {
        site.configure(text(name));
        process.reload_successfully();
        assert_echoes(&mut connect(address), name);
    }
    process.await_line(&[" closed ", "pipe=\"renamed-again\""]);
    assert_echoes(&mut running, "after");
}

#[test]
fn a_socket_passed_by_systemd_is_served() {
    let (key, site) = (Key::new(), Site::new());
    let spipe = responder(&key, &["systemd:door"]);
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--listen").arg(site.path("door")).arg("--fdname=door");
    command.arg(spipe.get_program()).args(spipe.get_args());
    let process = Process::start(&mut command);
    process.await_line(&["Listening on"]);
    // The first connection starts the service.
    assert_serves(&key, site.name("door"));
    process.await_line(&["listening", "role=decrypt"]);
    assert_serves(&key, site.name("door"));
}
