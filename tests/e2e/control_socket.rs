//! `--control`: a socket that only its owner may use, and that takes verbs.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::http::Server;
use crate::support::pipe::{End, Key};
use crate::support::poll_until;
use crate::support::process::{Ended, Process, run, spipe};
use crate::support::site::Site;
use crate::support::socket::{Service, assert_echoes, assert_reads, assert_reset, echo};

/// A process with a pipe of both ends, called `a`, and its control socket.
struct Controlled {
    site: Site,
    process: Process,
    control: Server,
    text: String,
}

impl Controlled {
    fn new() -> Self {
        let site = Site::with_key();
        let ends = site.both_ends("a", echo());
        Self::of(site, &ends)
    }

    fn of(site: Site, pipes: &str) -> Self {
        let text = format!("control = \"{}\"\n{pipes}", site.name("control"));
        let process = site.serve(&text);
        let control = Server::Unix(site.path("control"));
        Self { site, process, control, text }
    }

    /// Has it do `verb`; gives the status and the answer.
    fn tell(&self, verb: &str) -> (u16, Value) {
        let response = self.control.request("POST", verb, &[], "");
        let answer = serde_json::from_str(&response.body).expect("JSON");
        (response.status, answer)
    }

    fn report(&self) -> Value {
        serde_json::from_str(&self.control.get("/status").body).expect("JSON")
    }
}

#[test]
fn only_its_owner_may_use_it() {
    let controlled = Controlled::new();
    let metadata = std::fs::metadata(controlled.site.path("control")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
}

#[test]
fn it_is_removed_at_the_end() {
    let mut controlled = Controlled::new();
    controlled.process.signal(Signal::TERM);
    assert!(controlled.process.wait().success());
    assert!(!controlled.site.path("control").exists());
}

#[test]
fn it_can_be_read_like_the_status() {
    let controlled = Controlled::new();
    assert_eq!(controlled.report()["state"], "serving");
    assert_eq!(controlled.control.get("/readyz").body, "ready\n");
}

#[test]
fn a_reload_is_answered_when_it_is_in_force() {
    let controlled = Controlled::new();
    controlled.site.configure(controlled.text.replace("[[pipe]]", "[[pipe]]\nmax-connections = 3"));
    let (status, answer) = controlled.tell("/reload");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(controlled.report()["pipes"][0]["connections"]["limit"], 3);
}

#[test]
fn a_reload_of_a_wrong_configuration_is_answered_with_what_is_wrong() {
    let controlled = Controlled::new();
    controlled.site.configure("[[pipe]]\nmode = \"sideways\"\n");
    let (status, answer) = controlled.tell("/reload");
    assert_eq!(status, 409);
    assert!(answer["error"].as_str().unwrap().contains("sideways"), "{answer}");
    assert_echoes(&mut controlled.site.connect("a"), "still here");
}

#[test]
fn many_reloads_at_once_are_all_answered() {
    let controlled = Controlled::new();
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| controlled.tell("/reload").0)).collect();
        for asked in asking {
            assert_eq!(asked.join().unwrap(), 200);
        }
    });
    assert_eq!(controlled.report()["reload"]["succeeded"], 8);
}

#[test]
fn a_connection_is_closed_by_the_id_that_the_log_has() {
    let controlled = Controlled::new();
    let mut closed = controlled.site.connect("a");
    assert_echoes(&mut closed, "closed");
    let list: Value = serde_json::from_str(&controlled.control.get("/connections").body).unwrap();
    let id = list["connections"][0]["id"].as_str().unwrap().to_owned();
    let mut other = controlled.site.connect("a");
    assert_echoes(&mut other, "other");
    let (status, answer) = controlled.tell(&format!("/close?id={id}"));
    // The process is both ends.
    assert_eq!((status, &answer["connections"]), (200, &2.into()), "{answer}");
    controlled.process.await_line(&["closed", &format!("id={id}"), "an administrator closed it"]);
    poll_until("it is gone", || {
        std::io::Read::read(&mut closed, &mut [0; 1]).map_or(Some(()), |count| (count == 0).then_some(()))
    });
    assert_echoes(&mut other, "goes on");
}

#[test]
fn all_connections_of_a_key_are_closed() {
    let (key, other) = (Key::new(), Key::new());
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    let mut builder = End::responder(&key, echo()).args(&["--control", control.to_str().unwrap(), "-k"]);
    builder = builder.args(&[other.path().to_str().unwrap()]);
    let responder = builder.start();
    let ends = [&key, &other].map(|key| End::initiator(key, responder.address()).start());
    let mut clients = [ends[0].connect(), ends[0].connect(), ends[1].connect()];
    for client in &mut clients {
        assert_echoes(client, "hello");
    }
    let fingerprint = crate::support::site::fingerprint(&key.path());
    let response = Server::Unix(control).request("POST", &format!("/close?key={fingerprint}"), &[], "");
    assert_eq!(
        (response.status, response.body.contains("closed 2 connections")),
        (200, true),
        "{}",
        response.body
    );
    let [mut first, mut second, mut third] = clients;
    assert_eq!(assert_reset(&mut first), b"");
    assert_eq!(assert_reset(&mut second), b"");
    assert_echoes(&mut third, "goes on");
    // A new one is welcome: the key is still accepted.
    assert_echoes(&mut ends[0].connect(), "again");
}

#[test]
fn what_is_not_there_cannot_be_closed_or_drained() {
    let controlled = Controlled::new();
    for (verb, status, words) in [
        ("/close?id=0123456789abcdef", 404, "is running"),
        ("/close?id=xyz", 400, "16 hexadecimal digits"),
        ("/close?key=0000-0000", 404, "is running"),
        ("/close?key=secret", 400, "7f3a-19c2"),
        ("/close", 400, "say which"),
        ("/close?id=0123456789abcdef&key=0000-0000", 400, "say which"),
        ("/drain", 400, "say which target"),
        ("/drain?target=nowhere:1", 404, "no pipe has the target"),
        ("/resume?target=nowhere:1", 404, "no pipe has the target"),
    ] {
        let (answered, answer) = controlled.tell(verb);
        assert_eq!(answered, status, "{verb}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(words), "{verb}: {answer}");
    }
    assert_eq!(controlled.control.request("POST", "/stop", &[], "").status, 404);
}

#[test]
fn a_target_that_is_drained_gets_no_new_connections_until_it_is_resumed() {
    let (one, two) = (Service::start(), Service::start());
    let (key, directory) = (Key::new(), tempfile::tempdir().unwrap());
    let control = directory.path().join("control");
    let target = two.address().to_string();
    let responder = End::responder(&key, one.address())
        .args(&["-t", &target, "--control", control.to_str().unwrap()])
        .start();
    let initiator = End::initiator(&key, responder.address()).start();
    let control = Server::Unix(control);
    let mut running = initiator.connect();
    running.write_all(b"x").unwrap();
    let mut at_one = one.accept();
    let place = one.address().to_string();
    let response = control.request("POST", &format!("/drain?target={place}"), &[], "");
    assert!(response.body.contains("\"connections\":1"), "{}", response.body);
    responder.await_line(&["target drained"]);
    // The one that runs goes on, and the next one goes elsewhere.
    running.write_all(b"y").unwrap();
    assert_reads(&mut at_one, "xy");
    let mut next = initiator.connect();
    next.write_all(b"z").unwrap();
    assert_reads(&mut two.accept(), "z");
    one.assert_no_connection();
    let response = control.request("POST", &format!("/resume?target={place}"), &[], "");
    assert_eq!(response.status, 200, "{}", response.body);
    let mut back = initiator.connect();
    back.write_all(b"w").unwrap();
    assert_reads(&mut one.accept(), "w");
}

#[test]
fn a_client_of_the_only_target_is_told_in_the_log_that_it_is_drained() {
    let target = Service::start();
    let (key, directory) = (Key::new(), tempfile::tempdir().unwrap());
    let control = directory.path().join("control");
    let responder =
        End::responder(&key, target.address()).args(&["--control", control.to_str().unwrap()]).start();
    let drain = format!("/drain?target={}", target.address());
    assert_eq!(Server::Unix(control).request("POST", &drain, &[], "").status, 200);
    End::initiator(&key, responder.address()).start().assert_resets_a_client();
    responder.await_line(&["refused", "an administrator drains it (spipe drain)"]);
    target.assert_no_connection();
}

#[test]
fn what_is_drained_stays_so_after_a_reload() {
    let target = Service::start();
    let site = Site::with_key();
    let pipes = site.decrypt("a", target.address());
    let controlled = Controlled::of(site, &pipes);
    assert_eq!(controlled.tell(&format!("/drain?target={}", target.address())).0, 200);
    assert_eq!(controlled.tell("/reload").0, 200);
    assert_eq!(controlled.report()["pipes"][0]["targets"][0]["state"], "drained");
}

/// Runs `spipe` with these arguments and the socket.
fn command(controlled: &Controlled, args: &[&str]) -> Ended {
    run(spipe().args(args).arg("--control").arg(controlled.site.path("control")))
}

#[test]
fn the_commands_tell_what_a_real_process_does() {
    let controlled = Controlled::new();
    let mut client = controlled.site.connect("a");
    assert_echoes(&mut client, "hello");
    let status = command(&controlled, &["status"]).succeeded().text();
    for part in ["serving, ready", "pipe a: encrypts", "pipe a-sealed: decrypts", "1 connection"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    assert_eq!(command(&controlled, &["status", "--ready"]).succeeded().text(), "ready");
    let json: Value =
        serde_json::from_str(&command(&controlled, &["status", "--json"]).succeeded().text()).unwrap();
    assert_eq!(json["pipes"][0]["name"], "a");
    let top = command(&controlled, &["top"]).succeeded().text();
    assert!(top.contains("a-sealed") && !top.contains('\u{1b}'), "{top}");
}

#[test]
fn the_commands_tell_a_real_process_what_to_do() {
    let controlled = Controlled::new();
    let mut client = controlled.site.connect("a");
    assert_echoes(&mut client, "hello");
    let list: Value = serde_json::from_str(&controlled.control.get("/connections").body).unwrap();
    let (id, key) =
        (list["connections"][0]["id"].as_str().unwrap(), list["connections"][0]["key"].as_str().unwrap());
    assert!(command(&controlled, &["reload"]).succeeded().text().contains("reloaded: 2 pipes"));
    // The process is both ends of it.
    assert!(command(&controlled, &["close", id]).succeeded().text().contains('2'));
    command(&controlled, &["close", id]).failed_with(1, &["no connection with the id"]);
    command(&controlled, &["close", "--key", key]).failed_with(1, &["no connection with the key"]);
    let target = controlled.report()["pipes"][1]["targets"][0]["target"].as_str().unwrap().to_owned();
    command(&controlled, &["drain", &target, "--wait"]).succeeded();
    assert_eq!(controlled.report()["pipes"][1]["targets"][0]["state"], "drained");
    command(&controlled, &["resume", &target]).succeeded();
    assert_eq!(controlled.report()["pipes"][1]["targets"][0]["state"], "up");
    command(&controlled, &["drain", "nowhere:1"]).failed_with(1, &["no pipe has the target"]);
    controlled.site.configure("[[pipe]]\nmode = \"sideways\"\n");
    command(&controlled, &["reload"]).failed_with(1, &["not reloaded", "sideways"]);
}
