//! `--on-revoke`: what becomes of running connections when a reload takes their key away.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use crate::support::pipe::{End, Key, field, stdio};
use crate::support::poll_until;
use crate::support::process::{Process, run, spipe};
use crate::support::site::Site;
use crate::support::socket::{BlackHole, Listed, Service, assert_echoes, assert_reset, echo, listed};

const ENDED: &str = "its key is not accepted any more (--on-revoke reset)";
const REFUSED: &str = "the other end does not accept this key any more";

/// A responder that accepts the keys `gone` and `stays` of a directory.
struct Door {
    site: Site,
    process: Process,
    address: SocketAddr,
}

impl Door {
    fn to(target: SocketAddr, args: &[&str]) -> Self {
        let site = Site::new();
        for name in ["gone", "stays"] {
            site.add_key(&format!("keys/{name}.key"));
        }
        let mut command = spipe();
        command.args(["-d", "-s", "127.0.0.1:0", "-n", "0", "-t", &target.to_string(), "-k"]);
        let process = Process::start(command.arg(site.path("keys")).args(args));
        let line = process.await_line(&["listening"]);
        let address = field(&line, "source").replace(['[', ']'], "").parse().expect("an IPv4 address");
        Self { site, process, address }
    }

    fn that_resets() -> Self {
        Self::to(echo(), &["--on-revoke", "reset"])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.path(&format!("keys/{name}.key"))
    }

    fn holder(&self, name: &str) -> End {
        let key = Key::of(&fs::read(self.path(name)).expect("the file can be read"));
        End::initiator(&key, self.address).args(&["-n", "0"]).start()
    }

    /// Takes the key `gone` away.
    fn revoke(&self) {
        fs::remove_file(self.path("gone")).expect("the file can be removed");
        self.process.reload_successfully();
    }
}

fn connect(end: &End) -> TcpStream {
    let mut client = end.connect();
    assert_echoes(&mut client, "before");
    client
}

#[test]
fn the_connections_of_a_revoked_key_are_reset_and_both_logs_say_why() {
    let door = Door::that_resets();
    let (gone, stays) = (door.holder("gone"), door.holder("stays"));
    let (mut ended, mut other) = (connect(&gone), connect(&stays));
    door.revoke();
    assert_eq!(assert_reset(&mut ended), b"");
    let line =
        door.process.await_line(&["ending running connections", "their keys are not accepted any more"]);
    assert_eq!(field(&line, "ended"), "1");
    let line = door.process.await_line(&[" WARN closed ", ENDED]);
    assert!(field(&line, "key_file").ends_with("keys/gone.key"), "{line}");
    gone.await_line(&[" WARN closed ", REFUSED]);
    assert_echoes(&mut other, "undisturbed");
    connect(&stays);
}

#[test]
fn the_target_sees_a_reset_when_a_key_is_revoked() {
    let service = Service::start();
    let door = Door::to(service.address(), &["--on-revoke", "reset"]);
    let holder = door.holder("gone");
    let _client = holder.connect();
    let mut accepted = service.accept();
    door.revoke();
    assert_eq!(assert_reset(&mut accepted), b"");
}

#[test]
fn all_of_three_hundred_connections_of_a_revoked_key_end_and_none_of_another() {
    let door = Door::that_resets();
    let (gone, stays) = (door.holder("gone"), door.holder("stays"));
    let ended: Vec<_> = (0..300).map(|_| connect(&gone)).collect();
    let mut others: Vec<_> = (0..50).map(|_| connect(&stays)).collect();
    door.revoke();
    for mut client in ended {
        assert_eq!(assert_reset(&mut client), b"");
    }
    door.process.await_lines(300, ENDED);
    for client in &mut others {
        assert_echoes(client, "undisturbed");
    }
    assert_eq!(door.process.log().matches(" closed ").count(), 300);
}

#[test]
fn a_client_that_does_not_read_does_not_keep_the_connection_of_a_revoked_key() {
    // The target sends without end, so the whole pipe fills up.
    let target = Service::start().serve(|mut stream| while stream.write_all(&[7; 4_096]).is_ok() {});
    let door = Door::to(target, &["--on-revoke", "reset"]);
    let holder = door.holder("gone");
    let stalled = holder.connect();
    let here = stalled.local_addr().expect("it is connected");
    let mut before = 0;
    poll_until("the pipe is full", || {
        // Connections to different places may share a port here.
        let is_it = |socket: &&Listed| (socket.local, socket.remote) == (here, holder.address());
        let unread = listed().iter().find(is_it)?.unread;
        let is_full = unread > 0 && unread == before;
        before = unread;
        is_full.then_some(())
    });
    door.revoke();
    door.process.await_line(&[" closed ", ENDED]);
}

#[test]
fn a_connection_that_is_being_set_up_ends_when_its_key_is_revoked() {
    let target = BlackHole::start();
    let door = Door::to(target.address(), &["--on-revoke", "reset", "-o", "600", "--verbose"]);
    let holder = door.holder("gone");
    let mut client = holder.connect();
    // With SYN sent; the black hole's own attempts have timed out, and are closed.
    poll_until("the target is being dialed", || {
        let dialing = |socket: &Listed| socket.remote == target.address() && socket.state == "02";
        listed().iter().any(dialing).then_some(())
    });
    door.revoke();
    assert_eq!(assert_reset(&mut client), b"");
    door.process.await_line(&["refused", ENDED]);
    holder.await_line(&["closed", REFUSED]);
}

#[test]
fn a_key_whose_file_has_another_content_is_revoked() {
    let door = Door::that_resets();
    let holder = door.holder("gone");
    let mut ended = connect(&holder);
    fs::write(door.path("gone"), b"another key, of more than 32 bytes").expect("the file can be written");
    door.process.reload_successfully();
    assert_eq!(assert_reset(&mut ended), b"");
    connect(&door.holder("gone"));
}

#[test]
fn a_reload_that_fails_ends_no_connection() {
    let door = Door::that_resets();
    let holder = door.holder("gone");
    let mut running = connect(&holder);
    fs::remove_file(door.path("gone")).expect("the file can be removed");
    fs::write(door.path("stays"), b"short").expect("the file can be written");
    door.process.fail_to_reload(&["at least 32 bytes"]);
    assert_echoes(&mut running, "undisturbed");
}

#[test]
fn a_key_that_comes_back_is_accepted_again() {
    let door = Door::that_resets();
    let holder = door.holder("gone");
    let content = fs::read(door.path("gone")).expect("the file can be read");
    let mut ended = connect(&holder);
    door.revoke();
    assert_eq!(assert_reset(&mut ended), b"");
    door.site.add_key("keys/new.key");
    fs::write(door.path("new"), content).expect("the file can be written");
    door.process.reload_successfully();
    connect(&holder);
}

#[test]
fn a_reload_can_change_what_becomes_of_connections() {
    let site = Site::new();
    for name in ["keys/gone.key", "keys/stays.key"] {
        site.add_key(name);
    }
    let pipe = site.decrypt("door", echo()).replace("test.key", "keys");
    let process = site.serve(&pipe);
    let key = Key::of(&fs::read(site.path("keys/gone.key")).expect("the file can be read"));
    let holder = End::initiator(&key, site.socket("door")).start();
    let mut running = connect(&holder);
    // The connection is older than the wish, and both come with one reload.
    fs::remove_file(site.path("keys/gone.key")).expect("the file can be removed");
    site.configure(format!("on-revoke = \"reset\"\n{pipe}"));
    process.reload_successfully();
    assert_eq!(assert_reset(&mut running), b"");
    process.await_line(&["closed", ENDED]);
    assert!(!process.log().contains("takes a restart"), "{}", process.log());
}

#[test]
fn the_clients_of_an_initiator_are_reset_when_its_key_is_revoked() {
    let (old, new) = (Key::new(), Key::new());
    let mut command = spipe();
    command.args(["-d", "-s", "127.0.0.1:0", "-t", &echo().to_string(), "-k"]).arg(old.path());
    let responder = End::started_by(command.arg("-k").arg(new.path()));
    let initiator = End::initiator(&old, responder.address()).args(&["--on-revoke", "reset"]).start();
    let mut running = connect(&initiator);
    fs::copy(new.path(), old.path()).expect("the file can be written");
    initiator.process.reload_successfully();
    assert_eq!(assert_reset(&mut running), b"");
    initiator.await_line(&["closed", ENDED]);
    responder.await_line(&["closed", REFUSED]);
    connect(&initiator);
}

#[test]
fn a_word_other_than_keep_and_reset_is_refused() {
    let key = Key::new();
    let mut command = End::responder(&key, "127.0.0.1:9").args(&["--on-revoke", "drop"]).command();
    run(&mut command).failed_with(2, &["'drop' is not what can be done; write keep or reset"]);
}

#[test]
fn one_connection_of_standard_input_has_nothing_to_revoke() {
    let key = Key::new();
    let mut command = stdio("127.0.0.1:9", &key.path());
    run(command.args(["--on-revoke", "reset"])).failed_with(2, &["--on-revoke is for a pipe that listens"]);
}
