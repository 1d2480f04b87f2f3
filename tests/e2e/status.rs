//! `--status`: what a process says of itself to people and programs.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::browser::{Browser, ColourScheme, Device};
use crate::support::http::Server;
use crate::support::metrics::samples;
use crate::support::pipe::{End, EndBuilder, Key, Pipe, field};
use crate::support::poll_until;
use crate::support::process::{Process, run, spipe};
use crate::support::redis::Redis;
use crate::support::site::Site;
use crate::support::socket::{self, Port, Service, assert_echoes, echo};

/// `--status` on a port that the system chooses.
const STATUS: [&str; 2] = ["--status", "127.0.0.1:0"];

/// Where `process` serves its status over TCP.
fn status_of(process: &Process) -> Server {
    let line = process.await_line(&["serving the status", "[127.0.0.1]"]);
    Server::Tcp(field(&line, "source").replace(['[', ']'], "").parse().expect("an IPv4 address"))
}

fn address_of(server: &Server) -> SocketAddr {
    match server {
        Server::Tcp(address) => *address,
        Server::Unix(_) => panic!("it is TCP"),
    }
}

fn report(server: &Server) -> Value {
    let response = server.get("/status");
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    serde_json::from_str(&response.body).expect("JSON")
}

/// The first pipe in the report.
fn pipe(server: &Server) -> Value {
    report(server)["pipes"][0].clone()
}

/// Waits until the value at `pointer` of the first pipe is `wanted`.
fn await_value(server: &Server, pointer: &str, wanted: impl Into<Value>) {
    let wanted = wanted.into();
    poll_until(&format!("{pointer} is {wanted}"), || {
        (pipe(server).pointer(pointer)? == &wanted).then_some(())
    });
}

fn failures(server: &Server, cause: &str) -> Value {
    pipe(server)["failures"]["total"][cause].clone()
}

fn responder(key: &Key, target: SocketAddr) -> EndBuilder {
    End::responder(key, target).args(&STATUS)
}

#[test]
fn words_over_a_tunnel_that_is_ready_count_as_no_connections() {
    let pipes = Pipe::to(echo()).args(&STATUS).initiator_args(&["--spares", "1"]).start();
    let status = status_of(&pipes.responder.process);
    // Its handshake.
    await_value(&status, "/connections/accepted", 1);
    // Longer than until the responder is heard of for the first time.
    std::thread::sleep(Duration::from_secs(12));
    let connections = pipe(&status)["connections"].clone();
    assert_eq!((&connections["accepted"], &connections["reused"]), (&1.into(), &0.into()));
    assert_echoes(&mut pipes.connect(), "hello");
    await_value(&status, "/connections/reused", 1);
}

#[test]
fn both_ends_count_bytes_while_a_connection_runs() {
    let pipes = Pipe::to(echo()).args(&STATUS).start();
    let mut client = pipes.connect();
    assert_echoes(&mut client, "twelve bytes");
    for end in [&pipes.initiator, &pipes.responder] {
        let status = status_of(&end.process);
        await_value(&status, "/bytes/to_target", 12);
        await_value(&status, "/bytes/from_target", 12);
        await_value(&status, "/connections/now", 1);
    }
}

#[test]
fn a_connection_has_one_id_in_the_lists_of_both_ends() {
    let pipes = Pipe::to(echo()).args(&STATUS).start();
    let mut client = pipes.connect();
    assert_echoes(&mut client, "hello");
    let local = client.local_addr().unwrap().to_string().replace("127.0.0.1", "[127.0.0.1]");
    let ids = [&pipes.initiator, &pipes.responder].map(|end| {
        let body = status_of(&end.process).get("/connections").body;
        let list: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&list["total"], &list["connections"][0]["client"]), (&1.into(), &local.clone().into()));
        list["connections"][0]["id"].clone()
    });
    assert_eq!(ids[0], ids[1]);
    drop(client);
    pipes.responder.await_line(&["closed", &format!("id={}", ids[0].as_str().unwrap())]);
}

#[test]
fn connections_are_sorted_as_it_is_asked_for() {
    let pipes = Pipe::to(echo()).responder_args(&STATUS).start();
    let (mut quiet, mut busy) = (pipes.connect(), pipes.connect());
    assert_echoes(&mut quiet, "a");
    assert_echoes(&mut busy, "much more");
    let status = status_of(&pipes.responder.process);
    let bytes = |query: &str| {
        let list: Value = serde_json::from_str(&status.get(query).body).unwrap();
        let connections = list["connections"].as_array().unwrap().clone();
        connections.iter().map(|connection| connection["to_target"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(bytes("/connections?sort=to_target"), [9, 1]);
    assert_eq!(bytes("/connections?sort=to_target&reverse=1"), [1, 9]);
    assert_eq!(bytes("/connections?sort=to_target&limit=1"), [9]);
    assert_eq!(status.get("/connections?sort=colour").status, 400);
}

#[test]
fn counters_go_on_after_a_reload() {
    let site = Site::with_key();
    let text = format!("status = \"127.0.0.1:0\"\n{}", site.both_ends("a", echo()));
    let process = site.serve(&text);
    let status = status_of(&process);
    let mut client = site.connect("a");
    assert_echoes(&mut client, "before");
    await_value(&status, "/bytes/to_target", 6);
    let since = pipe(&status)["since"].clone();
    site.configure(text.replace("[[pipe]]", "[[pipe]]\nmax-connections = 7"));
    process.reload_successfully();
    assert_echoes(&mut client, "after");
    await_value(&status, "/bytes/to_target", 11);
    let pipe = pipe(&status);
    assert_eq!((&pipe["since"], &pipe["connections"]["limit"]), (&since, &7.into()));
    poll_until("the reload is told", || (report(&status)["reload"]["succeeded"] == 1).then_some(()));
    assert!(report(&status)["reload"]["last"]["error"].is_null());
}

/// Two pipes, of which a reload takes the first away while it has a connection.
struct Removed {
    site: Site,
    process: Process,
    status: Server,
    client: std::os::unix::net::UnixStream,
    before: String,
}

impl Removed {
    fn new() -> Self {
        let site = Site::with_key();
        let status = "status = \"127.0.0.1:0\"\n";
        let stays = site.both_ends("stays", echo());
        let before = format!("{status}{}{stays}", site.encrypt("goes", site.socket("stays-sealed")));
        let process = site.serve(&before);
        let (server, mut client) = (status_of(&process), site.connect("goes"));
        assert_echoes(&mut client, "hello");
        site.configure(format!("{status}{stays}"));
        process.reload_successfully();
        Self { site, process, status: server, client, before }
    }

    fn pipe(&self, name: &str) -> Option<Value> {
        let report = report(&self.status);
        report["pipes"].as_array().unwrap().iter().find(|pipe| pipe["name"] == name).cloned()
    }
}

#[test]
fn a_pipe_that_a_reload_takes_away_is_shown_as_long_as_it_has_connections() {
    let mut removed = Removed::new();
    let pipe = removed.pipe("goes").unwrap();
    assert_eq!((&pipe["state"], &pipe["connections"]["now"]), (&"removed".into(), &1.into()));
    assert_echoes(&mut removed.client, "goes on");
    assert!(removed.status.get("/connections?limit=9").body.contains("\"pipe\":\"goes\""));
    assert_eq!(removed.status.get("/readyz").status, 200);
    drop(removed.client.shutdown(std::net::Shutdown::Both));
    poll_until("it is gone", || {
        let report = report(&removed.status);
        let pipes = report["pipes"].as_array()?;
        pipes.iter().all(|pipe| pipe["name"] != "goes").then_some(())
    });
    assert!(!removed.status.get("/metrics").body.contains("\"goes\""));
    assert!(removed.process.log().contains("no longer listening"));
}

#[test]
fn a_pipe_that_comes_back_goes_on_counting_where_it_was() {
    let removed = Removed::new();
    removed.site.configure(&removed.before);
    removed.process.reload_successfully();
    poll_until("it is back", || (removed.pipe("goes")?["state"] == "listening").then_some(()));
    assert_eq!(removed.pipe("goes").unwrap()["connections"]["now"], 1);
    let report = report(&removed.status);
    assert_eq!(report["pipes"].as_array().unwrap().len(), 3, "it is there once");
}

#[test]
fn a_pipe_that_takes_the_name_of_one_that_is_gone_is_another() {
    let removed = Removed::new();
    let moved = removed.before.replace("goes.sock", "elsewhere.sock");
    removed.site.configure(moved);
    removed.process.reload_successfully();
    poll_until("it is there", || (removed.pipe("goes")?["state"] == "listening").then_some(()));
    assert_eq!(removed.pipe("goes").unwrap()["connections"]["established"], 0);
    assert_eq!(removed.pipe("goes (removed)").unwrap()["connections"]["now"], 1);
    crate::support::metrics::check_with_promtool(&removed.status.get("/metrics").body);
}

#[test]
fn a_reload_that_fails_is_told_with_its_reason() {
    let site = Site::with_key();
    let process = site.serve(format!("status = \"127.0.0.1:0\"\n{}", site.both_ends("a", echo())));
    let status = status_of(&process);
    site.configure("[[pipe]]\nmode = \"sideways\"\n");
    process.fail_to_reload(&["sideways"]);
    poll_until("the reload is told", || (report(&status)["reload"]["failed"] == 1).then_some(()));
    let report = report(&status);
    assert_eq!(report["state"], "serving");
    assert!(report["reload"]["last"]["error"].as_str().unwrap().contains("sideways"));
    assert_eq!(status.get("/readyz").status, 200, "what was in force is in force");
}

#[test]
fn a_wrong_key_is_counted_and_told_in_words() {
    let (key, other) = (Key::new(), Key::new());
    let responder = responder(&key, echo()).start();
    let status = status_of(&responder.process);
    End::initiator(&other, responder.address()).start().assert_resets_a_client();
    poll_until("it is counted", || (failures(&status, "wrong_key_or_label") == 1).then_some(()));
    let pipe = pipe(&status);
    assert_eq!(pipe["failures"]["last_24_hours"]["wrong_key_or_label"], 1);
    assert_eq!(pipe["failures"]["last"][0]["cause"], "wrong_key_or_label");
    assert!(pipe["failures"]["last"][0]["text"].as_str().unwrap().contains("127.0.0.1"));
}

#[test]
fn a_stranger_that_stops_half_way_is_counted_as_incomplete() {
    let responder = responder(&Key::new(), echo()).start();
    let status = status_of(&responder.process);
    let mut stranger = responder.connect();
    stranger.write_all(&[7; 100]).unwrap();
    await_value(&status, "/strangers", 1);
    drop(stranger);
    poll_until("it is counted", || (failures(&status, "incomplete") == 1).then_some(()));
    await_value(&status, "/strangers", 0);
}

#[test]
fn a_stranger_that_says_nothing_in_time_is_counted_as_a_timeout() {
    let responder = responder(&Key::new(), echo()).args(&["-o", "1"]).start();
    let status = status_of(&responder.process);
    let _stranger = responder.connect();
    poll_until("it is counted", || (failures(&status, "timeout") == 1).then_some(()));
}

#[test]
fn a_health_check_is_no_failure() {
    let responder = responder(&Key::new(), echo()).args(&["--verbose"]).start();
    let status = status_of(&responder.process);
    drop(responder.connect());
    responder.await_line(&["as a TCP health check does"]);
    let total = pipe(&status)["failures"]["total"].clone();
    assert!(total.as_object().unwrap().values().all(|count| count == 0), "{total}");
    assert_eq!(pipe(&status)["connections"]["accepted"], 1);
}

#[test]
fn an_address_that_may_not_connect_is_counted_as_denied() {
    let responder = responder(&Key::new(), echo()).args(&["--deny", "127.0.0.0/8"]).start();
    let status = status_of(&responder.process);
    drop(responder.connect_unless_reset());
    poll_until("it is counted", || (failures(&status, "denied") == 1).then_some(()));
    assert_eq!(pipe(&status)["connections"]["accepted"], 0);
}

#[test]
fn ends_without_a_common_cipher_are_counted() {
    let key = Key::new();
    let responder = responder(&key, echo()).args(&["--cipher", "aes256gcm"]).start();
    let status = status_of(&responder.process);
    let initiator = End::initiator(&key, responder.address()).args(&["--cipher", "chacha20poly1305"]).start();
    initiator.assert_resets_a_client();
    poll_until("it is counted", || (failures(&status, "no_common_cipher") == 1).then_some(()));
}

#[test]
fn a_peer_that_finds_no_place_is_counted_as_busy_at_both_ends() {
    let pipes = Pipe::to(echo()).args(&STATUS).args(&["-o", "1"]).responder_args(&["-n", "1"]).start();
    let mut first = pipes.connect();
    assert_echoes(&mut first, "first");
    drop(pipes.initiator.connect());
    let mut second = pipes.connect();
    assert_eq!(socket::assert_reset(&mut second), b"");
    let responder = status_of(&pipes.responder.process);
    poll_until("it is counted", || failures(&responder, "busy").at_least(1).then_some(()));
    poll_until("it has ended", || {
        pipe(&status_of(&pipes.initiator.process))["closed"]["busy"].at_least(1).then_some(())
    });
}

/// Values are numbers here.
trait AtLeast {
    fn at_least(&self, least: u64) -> bool;
}

impl AtLeast for Value {
    fn at_least(&self, least: u64) -> bool {
        self.as_u64().is_some_and(|number| number >= least)
    }
}

#[test]
fn a_target_that_refuses_is_avoided_and_its_last_error_is_told() {
    let (key, port) = (Key::new(), Port::reserve());
    let responder = responder(&key, port.address()).start();
    let status = status_of(&responder.process);
    End::initiator(&key, responder.address()).start().assert_resets_a_client();
    poll_until("it is counted", || failures(&status, "target").at_least(1).then_some(()));
    let target = &pipe(&status)["targets"][0];
    assert!(target["dials"]["refused"].at_least(1), "{target}");
    assert!(target["last_error"].as_str().unwrap().contains("refused"), "{target}");
}

#[test]
fn liveness_is_answered_without_a_connection_to_the_target() {
    let target = Service::start();
    let responder = responder(&Key::new(), target.address()).start();
    let status = status_of(&responder.process);
    for path in ["/livez", "/readyz", "/status", "/metrics", "/connections"] {
        assert_eq!(status.get(path).status, 200, "{path}");
    }
    target.assert_no_connection();
}

#[test]
fn a_pipe_whose_target_is_down_is_alive_and_not_ready_if_that_needs_a_target() {
    let port = Port::reserve();
    let check = ["--check", "1", "--fall", "1", "--ready-needs-target"];
    let responder = responder(&Key::new(), port.address()).args(&check).start();
    let status = status_of(&responder.process);
    poll_until("it is down", || (status.get("/readyz").status == 503).then_some(()));
    let response = status.get("/readyz");
    assert!(response.body.contains("no target is up"), "{}", response.body);
    assert_eq!(status.get("/livez").status, 200);
    assert_eq!(report(&status)["ready"], false);
}

#[test]
fn a_pipe_that_needs_no_target_to_be_ready_is_ready_without_one() {
    let port = Port::reserve();
    let responder = responder(&Key::new(), port.address()).args(&["--check", "1", "--fall", "1"]).start();
    let status = status_of(&responder.process);
    await_value(&status, "/targets/0/state", "down");
    assert_eq!(status.get("/readyz").status, 200);
}

#[test]
fn a_process_that_drains_says_so_until_its_end() {
    let mut pipes = Pipe::to(echo()).responder_args(&STATUS).start();
    let mut client = pipes.connect();
    assert_echoes(&mut client, "hello");
    let status = status_of(&pipes.responder.process);
    pipes.responder.process.signal(Signal::TERM);
    poll_until("it drains", || (report(&status)["state"] == "stopping").then_some(()));
    let readiness = status.get("/readyz");
    assert_eq!((readiness.status, &*readiness.body), (503, "the process is stopping\n"));
    assert_eq!(pipe(&status)["connections"]["now"], 1);
    drop(client);
    assert!(pipes.responder.process.wait().success());
}

#[test]
fn the_status_can_only_be_read() {
    let responder = responder(&Key::new(), echo()).start();
    let status = status_of(&responder.process);
    for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"] {
        for path in ["/status", "/reload", "/close?key=7f3a-19c2", "/drain?target=x:1"] {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let answer = String::from_utf8_lossy(&status.send_raw(head.as_bytes())).into_owned();
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
            assert!(answer.contains("allow: GET"), "{answer}");
        }
    }
    assert!(!responder.process.log().contains("reloaded"));
}

#[test]
fn every_answer_forbids_caching_guessing_and_framing() {
    let responder = responder(&Key::new(), echo()).start();
    let status = status_of(&responder.process);
    for path in ["/", "/status", "/metrics", "/connections", "/livez", "/readyz", "/nothing"] {
        let response = status.get(path);
        assert_eq!(response.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{path}");
        let policy = response.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}");
    }
    assert_eq!(status.get("/nothing").status, 404);
}

#[test]
fn a_page_of_somebody_else_cannot_read_it_by_a_name_that_leads_here() {
    let responder = responder(&Key::new(), echo()).start();
    let status = status_of(&responder.process);
    let head = b"GET /status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    let answer = String::from_utf8_lossy(&status.send_raw(head)).into_owned();
    assert!(answer.starts_with("HTTP/1.1 421 ") && !answer.contains("schema"), "{answer}");
}

#[test]
fn what_other_hosts_can_reach_needs_a_password_or_an_explicit_word() {
    let key = Key::new();
    let command = |args: &[&str]| {
        let mut command = spipe();
        command.args(["-d", "-s", "127.0.0.1:0", "-t", "127.0.0.1:1", "-k"]).arg(key.path()).args(args);
        command
    };
    run(&mut command(&["--status", "0.0.0.0:0"]))
        .failed_with(1, &["--status", "--status-user", "--status-public"]);
    run(&mut command(&["--status-public"])).failed_with(1, &["--status-public", "give --status"]);
    run(&mut command(&["--control", "127.0.0.1:0"])).failed_with(1, &["--control", "path"]);
    run(&mut command(&["--status", "127.0.0.1:0", "--status-user", "admin:secret"]))
        .failed_with(2, &["--status-user", "openssl passwd -6"]);
    let public = Process::start(&mut command(&["--status", "0.0.0.0:0", "--status-public"]));
    public.await_line(&["serving the status", "0.0.0.0"]);
}

#[test]
fn a_password_that_openssl_has_hashed_opens_it_and_no_other() {
    let hashed =
        run(std::process::Command::new("openssl").args(["passwd", "-6", "open sesame"])).succeeded().text();
    let user = format!("admin:{}", hashed.trim());
    let responder = responder(&Key::new(), echo()).args(&["--status-user", &user]).start();
    let status = status_of(&responder.process);
    let get =
        |credentials: &str| status.request("GET", "/status", &[("Authorization", credentials)], "").status;
    // base64 of admin:open sesame, admin:wrong and admin:
    assert_eq!(get("Basic YWRtaW46b3BlbiBzZXNhbWU="), 200);
    assert_eq!(get("Basic YWRtaW46d3Jvbmc="), 401);
    assert_eq!(get("Basic YWRtaW46"), 401);
    assert_eq!(get("Bearer x"), 401);
    let refused = status.get("/metrics");
    assert_eq!(refused.status, 401);
    assert!(refused.header("www-authenticate").unwrap().starts_with("Basic "));
    assert!(!responder.process.log().contains("sesame"));
}

#[test]
fn readers_that_stall_keep_nobody_out() {
    let responder = responder(&Key::new(), echo()).start();
    let status = status_of(&responder.process);
    let mut stalled: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut reader = TcpStream::connect(address_of(&status)).unwrap();
            // Half a request.
            reader.write_all(b"GET /status HTTP/1.1\r\nHost: local").unwrap();
            reader
        })
        .collect();
    assert_eq!(status.get("/status").status, 200);
    // The first ones made room: half a request would be waited for much longer.
    socket_ends(&mut stalled[0]);
}

/// Asserts that the stream ends, or is reset, within 20 s.
#[track_caller]
fn socket_ends(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    if let Err(error) = stream.read_to_end(&mut Vec::new()) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn garbage_is_refused_and_harms_nobody() {
    let pipes = Pipe::to(echo()).responder_args(&STATUS).start();
    let mut client = pipes.connect();
    assert_echoes(&mut client, "before");
    let status = status_of(&pipes.responder.process);
    let long = [b"GET /".as_slice(), &vec![b'a'; 100_000], b" HTTP/1.1\r\n\r\n"].concat();
    for garbage in [&b"\x16\x03\x01\x02\x00\x01"[..], b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n", &long] {
        let answer = status.send_raw(garbage);
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert_eq!(status.get("/livez").status, 200);
    assert_echoes(&mut client, "after");
}

#[test]
fn a_process_that_is_full_of_connections_still_tells_its_status() {
    let (key, target) = (Key::new(), echo());
    let responder = responder(&key, target).args(&["-n", "0"]).descriptors(128).start();
    let status = status_of(&responder.process);
    let initiator = End::initiator(&key, responder.address()).args(&["-n", "0", "-o", "60"]).start();
    let clients: Vec<_> = (0..100).map(|_| initiator.connect()).collect();
    responder.await_line(&["further clients wait"]);
    for _ in 0..10 {
        assert_eq!(status.get("/status").status, 200);
    }
    let connections = pipe(&status)["connections"].clone();
    assert!(connections["now"].at_least(1), "{connections}");
    drop(clients);
}

#[test]
fn strangers_of_a_source_that_pipes_share_have_a_row_of_their_own() {
    let site = Site::with_key();
    let text = format!(
        "status = \"127.0.0.1:0\"\n{}label = \"one\"\n{}label = \"two\"\n",
        site.decrypt("a", echo()),
        site.decrypt("b", echo()).replace("b.sock", "a.sock"),
    );
    let process = site.serve(text);
    let status = status_of(&process);
    let mut stranger = site.connect("a");
    stranger.write_all(&[1; 2000]).unwrap();
    poll_until("it is counted", || {
        let report = report(&status);
        let shared = report["pipes"].as_array()?.iter().find(|pipe| pipe["name"] == "a,b")?.clone();
        (shared["failures"]["total"]["wrong_key_or_label"] == 1).then_some(())
    });
}

#[test]
fn a_unix_domain_socket_serves_it_and_is_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("status.sock");
    let place = format!("unix:{}", path.display());
    let mut responder = End::responder(&Key::new(), echo()).args(&["--status", &place]).start();
    assert_eq!(Server::Unix(path.clone()).get("/readyz").body, "ready\n");
    responder.process.signal(Signal::TERM);
    assert!(responder.process.wait().success());
    assert!(!path.exists());
}

#[test]
fn a_status_socket_that_cannot_be_had_is_an_error_that_names_it() {
    let (key, taken) = (Key::new(), Service::start());
    let mut command = spipe();
    command.args(["-d", "-s", "127.0.0.1:0", "-t", "127.0.0.1:1", "-k"]).arg(key.path());
    command.args(["--status", &taken.address().to_string()]);
    run(&mut command).failed_with(1, &["cannot listen on", "stop what listens there"]);
}

#[test]
fn a_check_of_the_configuration_finds_a_status_that_is_open_by_mistake() {
    let site = Site::with_key();
    site.configure(format!("status = \"[]:9000\"\n{}", site.both_ends("a", echo())));
    run(spipe().arg("check").arg(site.file())).failed_with(1, &["[]:9000", "--status-public"]);
}

#[test]
fn without_the_option_nothing_is_served_or_opened() {
    let responder = End::responder(&Key::new(), echo()).start();
    assert!(!responder.process.log().contains("serving the status"));
}

#[test]
fn a_process_that_carries_standard_input_has_no_status() {
    let key = Key::new();
    let mut command = crate::support::pipe::stdio("127.0.0.1:1", &key.path());
    run(command.args(STATUS)).failed_with(2, &["--status", "for a pipe that listens"]);
}

#[test]
fn metrics_are_live_and_agree_with_the_report() {
    let pipes = Pipe::to(echo()).responder_args(&STATUS).start();
    let mut client = pipes.connect();
    assert_echoes(&mut client, "twelve bytes");
    let status = status_of(&pipes.responder.process);
    await_value(&status, "/bytes/to_target", 12);
    let value = |name: &str, label: (&str, &str)| {
        let body = status.get("/metrics").body;
        let samples = samples(&body);
        let has = |labels: &std::collections::BTreeMap<String, String>| {
            labels.get(label.0).is_some_and(|value| value == label.1)
        };
        samples.iter().find(|sample| sample.name == name && has(&sample.labels)).unwrap().value
    };
    assert!((value("spipe_bytes_total", ("direction", "to_target")) - 12.0).abs() < 0.1);
    assert!((value("spipe_connections_accepted_total", ("pipe", "[127.0.0.1]:0")) - 1.0).abs() < 0.1);
}

#[test]
fn the_page_moves_in_a_real_browser_while_redis_benchmark_runs() {
    let redis = Redis::start();
    let pipes = Pipe::to(redis.address()).args(&["-n", "0"]).initiator_args(&STATUS).start();
    let status = status_of(&pipes.initiator.process);
    let browser = Browser::start();
    let page = browser.open(&format!("http://{}/", address_of(&status)));
    page.wait_until("document.querySelector('#stream').textContent === 'Live'");
    let port = pipes.initiator.port();
    let mut benchmark = std::process::Command::new("redis-benchmark");
    benchmark.args(["-p", &port, "-q", "-t", "get", "-n", "1000000000", "-c", "7"]);
    let benchmark = Process::start(&mut benchmark);
    // Seven connections are listed, and what they have carried is more at each look.
    page.wait_until("document.querySelectorAll('#all-connections tbody tr').length >= 7");
    let carried = "Number([...document.querySelectorAll('#all-connections tbody td[title$=bytes]')]\
                   .map(cell => cell.title.replace(/[^0-9]/g, '')).reduce((a, b) => Number(a) + Number(b), 0))";
    let before = page.evaluate(carried).as_f64().unwrap();
    page.wait_until(&format!("{carried} > {before}"));
    let text = page.text();
    assert!(text.contains("listening") && text.contains("serving"), "{text}");
    drop(benchmark);
    assert_eq!(page.complaints(), Vec::<String>::new());
}

#[test]
fn the_page_of_a_real_process_is_whole_without_scripts_and_on_a_phone() {
    let pipes = Pipe::to(echo()).responder_args(&STATUS).start();
    let mut client = pipes.connect();
    assert_echoes(&mut client, "hello");
    let status = status_of(&pipes.responder.process);
    let browser = Browser::start();
    let page = browser.page();
    page.set_size(390, 844, Device::Phone);
    page.set_colour_scheme(ColourScheme::Dark);
    page.disable_scripts();
    page.open(&format!("http://{}/?sort=client&reverse=1", address_of(&status)));
    let local = client.local_addr().unwrap();
    assert!(page.text().contains(&format!("[{}]:{}", local.ip(), local.port())), "{}", page.text());
    let width = page.evaluate("document.scrollingElement.scrollWidth");
    assert!(width.as_u64().unwrap() <= 390, "{width}");
    assert_eq!(page.complaints(), Vec::<String>::new());
}

#[test]
fn readers_of_events_that_read_nothing_take_nothing_from_others() {
    let pipes = Pipe::to(echo()).responder_args(&STATUS).start();
    let mut client = pipes.connect();
    assert_echoes(&mut client, "before");
    let status = status_of(&pipes.responder.process);
    let _deaf: Vec<_> = (0..20)
        .map(|_| {
            let mut reader = TcpStream::connect(address_of(&status)).unwrap();
            reader.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            reader
        })
        .collect();
    let mut events = status.events("/events");
    for _ in 0..3 {
        assert!(events.next_event().unwrap().data.contains("Process"));
    }
    assert_echoes(&mut client, "after");
}

#[test]
fn an_event_stream_ends_with_the_process() {
    let mut responder = responder(&Key::new(), echo()).start();
    let mut events = TcpStream::connect(address_of(&status_of(&responder.process))).unwrap();
    events.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_ne!(events.read(&mut [0; 64]).unwrap(), 0);
    responder.process.signal(Signal::TERM);
    assert!(responder.process.wait().success());
    socket_ends(&mut events);
}

/// Every name of a field in `value`; not those of maps by cause, reason, result or cipher, which are words.
fn names(value: &Value, names: &mut BTreeSet<String>) {
    const WORDS: [&str; 5] = ["total", "last_24_hours", "closed", "dials", "established"];
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                names.insert(name.clone());
                if !(WORDS.contains(&&**name) && value.is_object()) {
                    self::names(value, names);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| self::names(value, names)),
        _ => {}
    }
}

#[test]
fn the_document_has_every_field_and_word_of_the_json() {
    let port = Port::reserve();
    let pipes = Pipe::to(echo()).responder_args(&STATUS).responder_args(&["--check", "1"]).start();
    let key = Key::new();
    let other = responder(&key, port.address()).start();
    let _client = pipes.connect();
    let mut stranger = other.connect();
    stranger.write_all(&[7; 2000]).unwrap();
    let status = status_of(&other.process);
    poll_until("it is counted", || failures(&status, "wrong_key_or_label").at_least(1).then_some(()));
    other.process.signal(Signal::HUP);
    poll_until("the reload is told", || (report(&status)["reload"]["succeeded"] == 1).then_some(()));
    let established = status_of(&pipes.responder.process);
    await_value(&established, "/connections/now", 1);
    let connections = serde_json::from_str::<Value>(&established.get("/connections").body).unwrap();
    let (mut fields, document) = (BTreeSet::new(), include_str!("../../docs/STATUS.md"));
    for value in [&report(&status), &report(&established), &connections] {
        names(value, &mut fields);
    }
    let pipe = pipe(&status);
    for words in [&pipe["failures"]["total"], &pipe["closed"], &pipe["targets"][0]["dials"]] {
        fields.extend(words.as_object().unwrap().keys().cloned());
    }
    assert!(fields.len() > 90, "{fields:?}");
    let missing: Vec<_> = fields.iter().filter(|name| !document.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_socket_that_systemd_passes_serves_it_although_the_pipe_takes_all_others() {
    let (key, site) = (Key::new(), Site::new());
    let mut command = std::process::Command::new("systemd-socket-activate");
    command.arg("-l").arg(site.path("status")).arg("-l").arg(site.path("pipe"));
    command.args(["--fdname=status:pipe"]).arg(spipe().get_program());
    command.args(["-d", "-s", "systemd", "-t", &echo().to_string(), "-k"]).arg(key.path());
    let process = Process::start(command.args(["--status", "systemd:status"]));
    process.await_lines(2, "Listening on");
    let server = Server::Unix(site.path("status"));
    assert_eq!(server.get("/readyz").body, "ready\n");
    assert_eq!(pipe(&server)["sources"], serde_json::json!([site.name("pipe")]));
}
