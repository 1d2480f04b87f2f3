//! The administrator's commands, between a server that the test plays and, for `top`, a real terminal.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use spipe::status::report::{Connection, ConnectionList, Report, SCHEMA, TargetState};

use crate::support::process::{Ended, Process, run, spipe};
use crate::support::site::Site;
use crate::support::socket::guard_unix;
use crate::support::{DEADLINE, poll_until};

/// Every command, with what it needs, as it is used without a terminal.
const COMMANDS: [&[&str]; 9] = [
    &["status"],
    &["status", "--json"],
    &["status", "--ready"],
    &["top"],
    &["reload"],
    &["close", "3b6206f98e5cbfac"],
    &["close", "--key", "7f3a-19c2"],
    &["drain", "[10.0.0.1]:6380"],
    &["resume", "[10.0.0.1]:6380"],
];

/// How long an answer may take, as `--help` and the errors have it.
const ANSWER: Duration = Duration::from_secs(5);

fn command(control: &Path, arguments: &[&str]) -> Command {
    let mut command = spipe();
    command.args(arguments).arg("--control").arg(control).env("TERM", "xterm").env_remove("NO_COLOR");
    command
}

fn ask(control: &Path, arguments: &[&str]) -> Ended {
    run(&mut command(control, arguments))
}

fn sample(name: &str) -> Value {
    let sample = include_str!("../../src/cli/control/sample.json");
    serde_json::from_str::<Value>(sample).expect("it is JSON")[name].clone()
}

fn report() -> Report {
    serde_json::from_value(sample("report")).expect("it is a report")
}

fn connections(count: usize) -> ConnectionList {
    let one: Connection = serde_json::from_value(sample("connection")).expect("it is a connection");
    let numbered = |number| Connection { id: format!("{number:016x}"), ..one.clone() };
    ConnectionList { schema: SCHEMA, total: count, connections: (0..count).map(numbered).collect() }
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("it can be written as JSON")
}

/// A whole response.
fn response(status: u16, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Because\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A healthy process with this report and so many connections, for `GET` alone.
fn healthy(report: &Report, count: usize) -> impl Fn(&str) -> Vec<u8> + Send + 'static {
    let (report, connections) = (to_json(report), to_json(&connections(count)));
    move |request| match request.split([' ', '?']).nth(1) {
        Some("/status") => response(200, &report),
        Some("/connections") => response(200, &connections),
        _ => response(404, &to_json(&json!({"error": "there is no such thing"}))),
    }
}

/// A process, as far as its control socket goes. When it is dropped, nobody listens any more, and the file has gone.
struct Server {
    /// Where it is, unless the test has a place for it.
    _site: Option<Site>,
    path: PathBuf,
    listener: UnixListener,
    /// The first line of each request.
    requests: Receiver<String>,
}

impl Server {
    /// Gives each request the answer that `answer` makes of its first line.
    fn start(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Self {
        let site = Site::new();
        let path = site.path("control");
        Self::serve(Some(site), &path, writing(answer))
    }

    fn start_at(path: &Path, answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Self {
        Self::serve(None, path, writing(answer))
    }

    /// Has `speak` do what it likes with each connection once a request has come, and then closes it.
    fn speak(path: &Path, speak: impl Fn(&mut UnixStream, &str) + Send + 'static) -> Self {
        Self::serve(None, path, speak)
    }

    fn serve(
        site: Option<Site>,
        path: &Path,
        speak: impl Fn(&mut UnixStream, &str) + Send + 'static,
    ) -> Self {
        let listener = UnixListener::bind(path).expect("the path is free");
        let (asked, requests) = channel();
        let accepting = listener.try_clone().expect("descriptors are left");
        thread::spawn(move || accept(&accepting, &asked, speak));
        Self { _site: site, path: path.to_owned(), listener, requests }
    }

    /// Waits for a request whose first line has `part`.
    #[track_caller]
    fn await_request(&self, part: &str) -> String {
        let start = Instant::now();
        let mut seen = Vec::new();
        while let Ok(request) = self.requests.recv_timeout(DEADLINE.saturating_sub(start.elapsed())) {
            if request.contains(part) {
                return request;
            }
            seen.push(request);
        }
        panic!("no request with '{part}', but {seen:?}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The accept(2) that another thread waits in fails, and so does each connect(2) from here on.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes the answer that `answer` makes of a request.
fn writing(
    answer: impl Fn(&str) -> Vec<u8> + Send + 'static,
) -> impl Fn(&mut UnixStream, &str) + Send + 'static {
    move |stream, request| {
        // A client that has seen enough may close before it has everything.
        let _ = stream.write_all(&answer(request));
    }
}

fn accept(listener: &UnixListener, asked: &Sender<String>, speak: impl Fn(&mut UnixStream, &str)) {
    while let Ok((mut stream, _)) = listener.accept() {
        guard_unix(&stream);
        let lines = BufReader::new(&mut stream).lines().map_while(Result::ok);
        let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        if let Some(request) = head.first() {
            assert!(head.iter().any(|line| line.eq_ignore_ascii_case("host: localhost")), "{head:?}");
            // The test may have ended.
            let _ = asked.send(request.clone());
            speak(&mut stream, request);
        }
    }
}

#[track_caller]
fn every_command_fails(control: &Path, parts: &[&str]) {
    let control_name = control.to_string_lossy();
    for arguments in COMMANDS {
        let ended = ask(control, arguments);
        ended.failed_with(1, &[&[&*control_name], parts].concat());
        assert_eq!(ended.text(), "", "{arguments:?}");
    }
}

/// What is no answer of spipe, whatever was asked.
#[track_caller]
fn no_command_takes(answer: impl AsRef<[u8]>, parts: &[&str]) {
    let answer = answer.as_ref().to_vec();
    let server = Server::start(move |_| answer.clone());
    every_command_fails(&server.path, parts);
}

// Nobody there.

#[test]
fn a_socket_that_is_not_there_is_an_error_with_a_remedy() {
    let site = Site::new();
    every_command_fails(&site.path("none"), &["no such socket", "is spipe running with --control"]);
    every_command_fails(&site.path("none/at/all"), &["no such socket"]);
}

#[test]
fn a_socket_whose_process_has_gone_is_an_error_with_a_remedy() {
    let site = Site::new();
    drop(UnixListener::bind(site.path("stale")).expect("the path is free"));
    every_command_fails(&site.path("stale"), &["nothing listens", "is spipe still running"]);
}

#[test]
fn another_kind_of_file_is_an_error_with_a_remedy() {
    let site = Site::new();
    std::fs::write(site.path("file"), "").expect("the file can be written");
    every_command_fails(&site.path("file"), &["not a socket", "--control"]);
    every_command_fails(&site.path("file/below"), &["no such socket"]);
    let _datagrams = UnixDatagram::bind(site.path("datagrams")).expect("the path is free");
    every_command_fails(&site.path("datagrams"), &["cannot connect", "Protocol wrong type"]);
}

#[test]
fn a_path_that_is_too_long_for_a_socket_is_an_error() {
    every_command_fails(Path::new(&format!("/tmp/{}", "x".repeat(200))), &["cannot connect", "SUN_LEN"]);
}

#[test]
fn a_socket_of_another_user_is_an_error_with_a_remedy() {
    let server = Server::start(healthy(&report(), 0));
    let set_mode = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("the mode can be changed");
    };
    set_mode(&server.path, 0);
    for arguments in COMMANDS {
        // Without the capability that lets root write everywhere.
        let mut without = Command::new("setpriv");
        if geteuid().is_root() {
            without.arg("--bounding-set=-dac_override,-dac_read_search");
        }
        without.arg(spipe().get_program()).args(arguments).arg("--control").arg(&server.path);
        run(&mut without).failed_with(1, &["permission denied", "as the user that spipe runs as"]);
    }
    set_mode(&server.path, 0o600);
    ask(&server.path, &["status"]).succeeded();
}

#[test]
fn a_user_that_may_only_open_the_socket_can_use_it() {
    let site = Site::new();
    let server = Server::start_at(&site.path("control"), healthy(&report(), 1));
    let mut without = Command::new("setpriv");
    if geteuid().is_root() {
        let open = PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(server.path.parent().expect("a directory"), open).expect("the test's own");
        std::os::unix::fs::chown(&server.path, Some(65_534), None).expect("root may change the owner");
        std::fs::set_permissions(&server.path, PermissionsExt::from_mode(0o600)).expect("the test's own");
        without.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    }
    without.arg(spipe().get_program()).args(["status", "--control"]).arg(&server.path);
    assert!(run(&mut without).succeeded().text().contains("process 4711"));
}

// Somebody else there.

#[test]
fn another_protocol_is_not_taken_for_spipe() {
    no_command_takes("SSH-2.0-OpenSSH_9.2p1\r\n", &["not spipe", "--control"]);
    no_command_takes("+PONG\r\n", &["not spipe"]);
    no_command_takes(b"\x16\x03\x01\x00\xff\x00garbage\xff\xfe", &["not spipe"]);
}

#[test]
fn a_server_that_speaks_first_is_not_taken_for_spipe() {
    let site = Site::new();
    let listener = UnixListener::bind(site.path("control")).expect("the path is free");
    let greeting = thread::spawn(move || {
        for _ in COMMANDS {
            let (mut stream, _) = listener.accept().expect("a client connects");
            guard_unix(&stream);
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n");
            // What the client sends is read, so that its connection is not reset before it has seen the greeting.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    every_command_fails(&site.path("control"), &["not spipe"]);
    greeting.join().expect("the server ends");
}

#[test]
fn another_http_server_is_not_taken_for_spipe() {
    no_command_takes(response(404, "<h1>Not Found</h1>"), &["not spipe", "404"]);
    no_command_takes(response(400, ""), &["not spipe", "400"]);
    no_command_takes(response(301, "{\"moved\": true}"), &["not spipe", "301"]);
    let page = Server::start(|_| response(200, "<h1>It works!</h1>"));
    let wrong = Server::start(|_| response(200, "{\"status\":\"ok\",\"schema\":\"one\"}"));
    let binary = Server::start(|_| [response(200, ""), b"\xff\xff".to_vec()].concat());
    for server in [page, wrong, binary] {
        for arguments in COMMANDS.iter().filter(|arguments| arguments[1..] != ["--ready"]) {
            ask(&server.path, arguments).failed_with(1, &["not spipe", "cannot be read"]);
        }
    }
}

#[test]
fn an_answer_that_lacks_a_part_is_an_error() {
    let server = Server::start(|_| response(200, "{\"schema\":1,\"message\":\"done\"}"));
    ask(&server.path, &["status"]).failed_with(1, &["cannot be read", "missing field"]);
    ask(&server.path, &["top"]).failed_with(1, &["cannot be read", "missing field"]);
    ask(&server.path, &["close", "1"]).failed_with(1, &["cannot be read", "missing field `connections`"]);
    ask(&server.path, &["drain", "a:1"]).failed_with(1, &["cannot be read", "missing field `connections`"]);
}

#[test]
fn a_process_that_never_answers_is_waited_for_no_longer_than_the_limit() {
    let site = Site::new();
    // Connections wait in the kernel's queue.
    let _listener = UnixListener::bind(site.path("control")).expect("the path is free");
    let start = Instant::now();
    let asked: Vec<_> = COMMANDS
        .iter()
        .filter(|arguments| arguments[0] != "reload")
        .map(|arguments| Process::start(&mut command(&site.path("control"), arguments)))
        .collect();
    for mut process in asked {
        process.await_line(&["spipe: ", "does not answer", "within 5 s"]);
        assert_eq!(process.wait().code(), Some(1));
    }
    assert!(start.elapsed() >= ANSWER);
}

#[test]
fn an_answer_that_stops_halfway_is_waited_for_no_longer_than_the_limit() {
    let site = Site::new();
    for half in ["HTTP/1.1 200 OK\r\nConte", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"schema\""] {
        let server = Server::speak(&site.path("control"), move |stream, _| {
            stream.write_all(half.as_bytes()).expect("the client reads");
            // Until the client gives up.
            let _ = stream.read(&mut [0]);
        });
        ask(&server.path, &["status"]).failed_with(1, &["does not answer", "within 5 s"]);
    }
}

#[test]
fn a_full_queue_of_the_socket_is_waited_for_no_longer_than_the_limit() {
    let site = Site::new();
    let path = site.path("control");
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("descriptors are left");
    let address = SockAddr::unix(&path).expect("the path is short");
    socket.bind(&address).expect("the path is free");
    socket.listen(0).expect("the socket is bound");
    let mut waiting = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).expect("descriptors are left");
        client.set_nonblocking(true).expect("the socket is open");
        if client.connect(&address).is_err() {
            break;
        }
        waiting.push(client);
    }
    assert!(!waiting.is_empty());
    ask(&path, &["status"]).failed_with(1, &["does not answer", "within 5 s"]);
}

#[test]
fn a_reload_may_take_longer_than_other_answers() {
    let site = Site::new();
    let server = Server::speak(&site.path("control"), |stream, _| {
        // Longer than any other answer may take.
        let longer = ANSWER + Duration::from_secs(1);
        stream.set_read_timeout(Some(longer)).expect("the socket is open");
        assert!(stream.read(&mut [0]).is_err(), "the client waits");
        stream.write_all(&response(200, "{\"message\":\"reloaded\"}")).expect("the client reads");
    });
    assert_eq!(ask(&server.path, &["reload"]).succeeded().text(), "reloaded");
}

#[test]
fn a_connection_that_ends_early_is_an_error_with_a_remedy() {
    for part in ["", "HTTP/1.1 200 OK\r\nConte", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"schema\""]
    {
        no_command_takes(part, &["does not answer", "ended too early", "is it still running"]);
    }
    no_command_takes(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
        &["does not answer", "ended too early"],
    );
}

#[test]
fn an_answer_without_end_is_cut_off_where_it_is_too_large() {
    let site = Site::new();
    let server = Server::speak(&site.path("control"), |stream, _| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("the client reads");
        // Ends when the client has had enough, and not before.
        let spaces = vec![b' '; 1024 * 1024];
        while stream.write_all(&spaces).is_ok() {}
    });
    let mut process = Process::start(&mut command(&server.path, &["status"]));
    process.await_line(&["spipe: ", "larger than 64 MiB"]);
    assert_eq!(process.wait().code(), Some(1));
}

#[test]
fn a_head_without_end_is_an_error() {
    let site = Site::new();
    let server = Server::speak(&site.path("control"), |stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"A: b\r\n").is_ok() {}
    });
    ask(&server.path, &["status"]).failed_with(1, &["not spipe"]);
}

#[test]
fn a_newer_format_is_not_read_by_guesswork() {
    // Nothing of it has the shape that is known here.
    let server = Server::start(|_| response(200, "{\"schema\":2,\"version\":[\"9.0\"],\"pipes\":7}\n"));
    for arguments in [&["status"][..], &["top"]] {
        ask(&server.path, arguments).failed_with(1, &["version 2 of the status format", "knows 1"]);
    }
    let json = ask(&server.path, &["status", "--json"]).succeeded();
    assert_eq!(
        json.text(),
        "{\"schema\":2,\"version\":[\"9.0\"],\"pipes\":7}",
        "programs read what they know"
    );
}

#[test]
fn what_the_process_refuses_is_said_in_its_words() {
    for status in [400, 404, 409, 500] {
        let body = "{\"error\":\"pipes.toml:3: no such key\\u001b[31m; write it\"}";
        let server = Server::start(move |_| response(status, body));
        for arguments in COMMANDS {
            let ended = ask(&server.path, arguments);
            assert_eq!(
                ended.stderr, "spipe: pipes.toml:3: no such key\\u{1b}[31m; write it\n",
                "{arguments:?}"
            );
            assert_eq!((ended.code, &*ended.text()), (Some(1), ""), "{arguments:?}");
        }
    }
}

// Status.

#[test]
fn status_says_how_the_process_is() {
    let server = Server::start(healthy(&report(), 1));
    let text = ask(&server.path, &["status"]).succeeded().text();
    assert!(text.starts_with("spipe 1.2.3, process 4711: serving, ready\n"), "{text}");
    // As the document shows it.
    let document = include_str!("../../docs/STATUS.md").replace("\n    ", "\n");
    assert!(document.contains(&format!("\n{text}\n")), "{text}");
    assert_eq!(server.await_request("status"), "GET /status HTTP/1.1");
}

#[test]
fn status_as_json_is_what_the_process_wrote_on_one_line() {
    let server = Server::start(healthy(&report(), 0));
    let ended = ask(&server.path, &["status", "--json"]).succeeded();
    assert_eq!(String::from_utf8(ended.stdout).expect("it is text"), to_json(&report()) + "\n");
}

#[test]
fn readiness_is_an_exit_code() {
    let ready = Server::start(|_| response(200, "ready\n"));
    assert_eq!(ask(&ready.path, &["status", "--ready"]).succeeded().text(), "ready");
    assert_eq!(ready.await_request(""), "GET /readyz HTTP/1.1");

    let not_ready = Server::start(|_| response(503, "pipe redis: all targets are down\u{1b}\nstopping\n"));
    let ended = ask(&not_ready.path, &["status", "--ready"]);
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.text(), "pipe redis: all targets are down\\u{1b}\nstopping");
    assert_eq!(ended.stderr, "", "it could be asked");
}

// Orders.

#[test]
fn reload_says_what_came_of_it() {
    let server = Server::start(|_| response(200, "{\"message\":\"reloaded: 2 pipes\",\"more\":1}"));
    assert_eq!(ask(&server.path, &["reload"]).succeeded().text(), "reloaded: 2 pipes");
    assert_eq!(server.await_request(""), "POST /reload HTTP/1.1");
}

fn counting(count: u64) -> Server {
    let body = to_json(&json!({"message": "it is done", "connections": count}));
    Server::start(move |_| response(200, &body))
}

#[test]
fn close_says_how_many_connections_it_has_closed() {
    let server = counting(1);
    assert_eq!(ask(&server.path, &["close", "3b6206f98e5cbfac"]).succeeded().text(), "1 connection closed");
    assert_eq!(server.await_request(""), "POST /close?id=3b6206f98e5cbfac HTTP/1.1");
    let server = counting(12);
    assert_eq!(
        ask(&server.path, &["close", "--key", "7f3a-19c2"]).succeeded().text(),
        "12 connections closed"
    );
    assert_eq!(server.await_request(""), "POST /close?key=7f3a%2D19c2 HTTP/1.1");
}

#[test]
fn to_close_none_is_a_failure() {
    let server = counting(0);
    ask(&server.path, &["close", "--key", "7f3a-19c2"])
        .failed_with(1, &["7f3a-19c2", "no connection has it"]);
}

#[test]
fn drain_says_how_many_connections_are_left() {
    let server = counting(3);
    let ended = ask(&server.path, &["drain", "tls://a b:1", "--pipe", "x&y"]).succeeded();
    assert_eq!(ended.text(), "it is done\n3 connections left");
    assert_eq!(server.await_request(""), "POST /drain?target=tls%3A%2F%2Fa%20b%3A1&pipe=x%26y HTTP/1.1");
}

#[test]
fn resume_says_what_was_done() {
    let server = counting(3);
    assert_eq!(ask(&server.path, &["resume", "[10.0.0.1]:6380"]).succeeded().text(), "it is done");
    assert_eq!(server.await_request(""), "POST /resume?target=%5B10%2E0%2E0%2E1%5D%3A6380 HTTP/1.1");
}

/// A process that has drained its target, and whose report shows in turn what `reports` have.
fn draining(reports: Vec<Report>) -> Server {
    let reports = std::sync::Mutex::new(reports.into_iter());
    Server::start(move |request| match request.split(' ').next() {
        Some("POST") => response(200, "{\"message\":\"drained\",\"connections\":2}"),
        _ => match reports.lock().expect("no test panics here").next() {
            Some(report) => response(200, &to_json(&report)),
            None => response(500, "{\"error\":\"asked once too often\"}"),
        },
    })
}

fn drained(connections: usize) -> Report {
    let mut report = report();
    report.pipes[0].targets[0].state = TargetState::Drained;
    report.pipes[0].targets[0].connections = connections;
    report
}

#[test]
fn drain_waits_until_no_connection_is_left() {
    let server = draining(vec![drained(2), drained(1), drained(0)]);
    let ended = ask(&server.path, &["drain", "10.0.0.1:6380", "--wait"]).succeeded();
    assert_eq!((&*ended.text(), &*ended.stderr), ("drained\nno connection is left", ""));
    let asked: Vec<_> = server.requests.try_iter().collect();
    assert_eq!(asked.iter().filter(|request| request.starts_with("GET /status")).count(), 3);
}

#[test]
fn drain_does_not_wait_where_nothing_is_left() {
    let server = counting(0);
    let ended = ask(&server.path, &["drain", "[10.0.0.1]:6380", "--wait"]).succeeded();
    assert_eq!(ended.text(), "it is done\nno connection is left");
}

#[test]
fn drain_does_not_wait_for_a_target_that_is_used_again_or_has_gone() {
    let mut without = drained(0);
    without.pipes[0].targets.clear();
    let ended = |report| {
        let server = draining(vec![report]);
        ask(&server.path, &["drain", "[10.0.0.1]:6380", "--wait"])
    };
    ended(report()).failed_with(1, &["[10.0.0.1]:6380", "resumed meanwhile"]);
    ended(without).failed_with(1, &["[10.0.0.1]:6380", "no pipe has this target any more"]);
    ended(Report { schema: 2, ..drained(0) }).failed_with(1, &["version 2 of the status format"]);
}

#[test]
fn drain_that_waits_fails_when_the_process_has_gone() {
    let server = draining(Vec::new());
    ask(&server.path, &["drain", "[10.0.0.1]:6380", "--wait"]).failed_with(1, &["asked once too often"]);
}

// Top, without a terminal.

#[test]
fn top_without_a_terminal_prints_one_frame_of_plain_text() {
    let server = Server::start(healthy(&report(), 3));
    let ended = ask(&server.path, &["top"]).succeeded();
    let text = ended.text();
    assert!(!ended.stdout.contains(&0x1b), "{text}");
    for part in
        ["spipe 1.2.3", "process 4711", "redis", "listening", "1 of 100", "7f3a-19c2", "[10.0.0.1]:6380"]
    {
        assert!(text.contains(part), "no '{part}' in:\n{text}");
    }
    assert_eq!(text.matches("[192.0.2.20]:54386").count(), 3, "{text}");
    assert_eq!(text.matches("spipe 1.2.3").count(), 1);
}

#[test]
fn top_without_a_terminal_prints_as_many_frames_as_are_asked_for() {
    let server = Server::start(healthy(&report(), 0));
    let text = ask(&server.path, &["top", "-n", "3", "-i", "1"]).succeeded().text();
    assert_eq!(text.matches("spipe 1.2.3").count(), 3, "{text}");
}

#[test]
fn top_ends_quietly_when_its_reader_does() {
    let server = Server::start(healthy(&report(), 10_000));
    let mut command = command(&server.path, &["top", "-n", "1000"]);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut output = BufReader::new(process.stdout.take().expect("it is piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("it writes");
    assert!(line.starts_with("spipe 1.2.3"), "{line}");
    drop(output);
    let ended = poll_until("top ends", || process.try_wait().expect("it is a child"));
    let mut complaint = String::new();
    process.stderr.take().expect("it is piped").read_to_string(&mut complaint).expect("it is text");
    assert_eq!((ended.code(), &*complaint), (Some(0), ""));
}

#[test]
fn top_without_a_terminal_fails_when_the_process_goes_away() {
    let server = Server::start(healthy(&report(), 0));
    let process = Process::start(&mut command(&server.path, &["top", "-n", "1000"]));
    process.await_line(&["spipe 1.2.3"]);
    drop(server);
    process.await_line(&["spipe: ", "no such socket"]);
    process.await_end_of_output();
}

#[test]
fn all_of_ten_thousand_connections_are_shown() {
    let server = Server::start(healthy(&report(), 10_000));
    let text = ask(&server.path, &["top"]).succeeded().text();
    assert_eq!(text.matches("[192.0.2.20]:54386").count(), 10_000);
    assert!(text.contains("10000 connections by rate\n"));
}

#[test]
fn a_client_that_writes_escape_sequences_into_a_name_changes_nothing() {
    let mut report = report();
    report.pipes[0].name = "\u{1b}[2J\u{1b}]0;evil\u{7}".to_owned();
    let server = Server::start(healthy(&report, 0));
    for arguments in [["status"], ["top"]] {
        let ended = ask(&server.path, &arguments).succeeded();
        assert!(!ended.stdout.contains(&0x1b) && !ended.stdout.contains(&7), "{}", ended.text());
        assert!(ended.text().contains("\\u{1b}[2J"), "{}", ended.text());
    }
}

// Top, on a terminal.

const ENTERS: &str = "\u{1b}[?1049h";
const LEAVES: &str = "\u{1b}[?1049l";

/// `spipe top` on a terminal of its own.
struct Terminal {
    script: Process,
    keys: ChildStdin,
    device: String,
    pid: Pid,
}

impl Terminal {
    /// Starts it with 24 lines and 120 columns, and waits until it shows something.
    fn start(control: &Path, arguments: &str) -> Self {
        Self::start_by("", control, arguments)
    }

    /// The same by the command `by`.
    fn start_by(by: &str, control: &Path, arguments: &str) -> Self {
        let terminal = Self::start_any(by, control, arguments);
        terminal.script.await_line(&[ENTERS]);
        terminal.script.await_line(&["spipe 1.2.3"]);
        terminal
    }

    fn start_any(by: &str, control: &Path, arguments: &str) -> Self {
        let (program, control) = (spipe().get_program().to_string_lossy().into_owned(), control.display());
        let top = format!("exec {by} '{program}' top --control '{control}' {arguments}");
        let shell = format!(
            "tty; stty rows 24 cols 120; echo \"before $(stty -g)\"; \
             sh -c 'echo \"pid $$\"; {}'; echo \"code $?\"; echo \"after $(stty -g)\"",
            top.replace('\'', "'\\''")
        );
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--command", &shell, "/dev/null"])
            .env("TERM", "xterm")
            .env_remove("NO_COLOR");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut script = Process::start_piped(&mut command);
        let keys = script.take_input();
        let device = script.await_line(&["/dev/pts/"]);
        let pid = script.await_line(&["pid "]);
        let pid = pid.trim_start_matches("pid ").parse().ok().and_then(Pid::from_raw).expect("a process id");
        Self { script, keys, device, pid }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("the terminal is there");
    }

    fn resize(&self, lines: u32, columns: u32) {
        let (lines, columns) = (lines.to_string(), columns.to_string());
        run(Command::new("stty").args(["-F", &self.device, "rows", &lines, "cols", &columns])).succeeded();
    }

    /// Asserts that it ends with this code, and leaves the terminal as it was.
    #[track_caller]
    fn ends_with(&self, code: i32) {
        self.script.await_line(&[&format!("code {code}")]);
        let after = self.script.await_line(&["after "]);
        let log = self.script.log();
        let settings = after.split_once("after ").expect("it is there").1;
        assert!(log.contains(&format!("before {settings}")), "{log}");
        assert_eq!((log.matches(ENTERS).count(), log.matches(LEAVES).count()), (1, 1), "{log}");
        let left = log.split(LEAVES).nth(1).expect("it is there once");
        assert!(!left.contains("redis"), "nothing is drawn afterwards: {log}");
        for (on, off) in [("\u{1b}[?25l", "\u{1b}[?25h"), ("\u{1b}[?7l", "\u{1b}[?7h")] {
            assert!(log.rfind(on) < log.rfind(off), "{log}");
        }
    }
}

#[test]
fn top_shows_numbers_until_q_is_pressed() {
    let server = Server::start(healthy(&report(), 3));
    let mut terminal = Terminal::start(&server.path, "");
    for parts in
        [&["redis", "listening", "1 of 100", "3.2", "1.1 MiB", "332 KiB"][..], &["3 connections by rate"]]
    {
        terminal.script.await_line(parts);
    }
    terminal.script.await_line(&["[192.0.2.20]:54386"]);
    terminal.press("q");
    terminal.ends_with(0);
}

#[test]
fn top_shows_new_numbers_without_a_key() {
    let site = Site::new();
    // Each look is a second later, of which the process has used a tenth.
    let (reports, lists) = (AtomicU32::new(0), AtomicU32::new(0));
    let server = Server::start_at(&site.path("control"), move |request| {
        if request.contains("/status") {
            let looks = reports.fetch_add(1, Ordering::Relaxed);
            let mut report = report();
            report.now += SignedDuration::from_secs(looks.into());
            report.process.cpu_seconds = Some(1.5 + 0.1 * f64::from(looks));
            return response(200, &to_json(&report));
        }
        let looks = lists.fetch_add(1, Ordering::Relaxed);
        let mut list = connections(1);
        list.connections[0].age_seconds += f64::from(looks);
        list.connections[0].to_target += u64::from(looks) * 7_700_000;
        response(200, &to_json(&list))
    });
    let terminal = Terminal::start(&server.path, "");
    for part in ["processor 10.0 %", "for 1 h", "7.3 MiB"] {
        terminal.script.await_lines(2, part);
    }
}

#[test]
fn top_ends_by_ctrl_c_and_by_signals_with_the_terminal_as_it_was() {
    let server = Server::start(healthy(&report(), 3));
    let mut terminal = Terminal::start(&server.path, "");
    terminal.press("\u{3}");
    terminal.ends_with(0);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let terminal = Terminal::start(&server.path, "");
        kill_process(terminal.pid, signal).expect("it runs");
        terminal.ends_with(0);
    }
}

#[test]
fn top_ends_when_its_terminal_goes_away() {
    let server = Server::start(healthy(&report(), 3));
    let Terminal { script, pid, .. } = Terminal::start(&server.path, "");
    script.kill();
    poll_until("top ends", || test_kill_process(pid).is_err().then_some(()));
}

#[test]
fn top_ends_when_its_terminal_goes_away_and_no_signal_says_so() {
    let server = Server::start(healthy(&report(), 3));
    // In a session of its own it has no controlling terminal, so nobody sends it SIGHUP.
    let Terminal { script, pid, .. } = Terminal::start_by("setsid", &server.path, "-i 3600");
    script.kill();
    poll_until("top ends", || test_kill_process(pid).is_err().then_some(()));
}

#[test]
fn top_ends_after_as_many_looks_as_are_asked_for() {
    let server = Server::start(healthy(&report(), 3));
    Terminal::start(&server.path, "-n 2").ends_with(0);
}

#[test]
fn top_fills_a_terminal_whose_size_changes() {
    let server = Server::start(healthy(&report(), 100));
    let mut terminal = Terminal::start(&server.path, "");
    terminal.script.await_line(&["q quit", "1-21 of "]);
    terminal.resize(5, 40);
    terminal.script.await_line(&["q quit  s sort (rate)  arrows, page up a\u{1b}[0m"]);
    terminal.resize(12, 100);
    terminal.script.await_line(&["q quit", "1-9 of "]);
    terminal.press("q");
    terminal.ends_with(0);
}

#[test]
fn top_sorts_by_something_else_when_s_is_pressed() {
    let server = Server::start(healthy(&report(), 3));
    let mut terminal = Terminal::start(&server.path, "-i 3600");
    assert_eq!(server.await_request("/connections"), "GET /connections?sort=idle&limit=10000 HTTP/1.1");
    // The next look would be in an hour.
    for (asked, name) in [("bytes", "bytes"), ("age", "age"), ("idle", "idle time"), ("client", "client")] {
        terminal.press("s");
        let request = server.await_request("/connections");
        assert_eq!(request, format!("GET /connections?sort={asked}&limit=10000 HTTP/1.1"));
        terminal.script.await_line(&[&format!("3 connections by {name}")]);
    }
}

#[test]
fn top_scrolls_to_the_last_of_ten_thousand_connections_and_back() {
    let server = Server::start(healthy(&report(), 10_000));
    let mut terminal = Terminal::start(&server.path, "");
    let last = format!("{:016x}", 9_999);
    assert!(!terminal.script.log().contains(&last));
    terminal.press("\u{1b}[F");
    terminal.script.await_line(&[&last]);
    for (key, shown) in [
        ("\u{1b}[H", "1-21 of"),
        ("\u{1b}[B", "2-22 of"),
        ("\u{1b}[6~", "23-43 of"),
        ("\u{1b}[5~", "2-22 of"),
    ] {
        let before = terminal.script.log().matches(shown).count();
        terminal.press(key);
        terminal.script.await_lines(before + 1, shown);
    }
    terminal.press("q");
    terminal.ends_with(0);
}

#[test]
fn top_says_when_the_process_has_gone_and_goes_on_when_it_is_back() {
    let site = Site::new();
    let server = Server::start_at(&site.path("control"), healthy(&report(), 3));
    let mut terminal = Terminal::start(&server.path, "");
    drop(server);
    terminal.script.await_line(&["Trying again", "no such socket"]);
    let other = Report { pid: 4712, ..report() };
    let server = Server::start_at(&site.path("control"), healthy(&other, 3));
    terminal.script.await_line(&["process 4712"]);
    let line = terminal.script.await_line(&["files 34 of 1024"]);
    assert!(!line.contains("Trying again"));
    drop(server);
    terminal.script.await_lines(2, "Trying again");
    terminal.press("q");
    terminal.ends_with(0);
}

#[test]
fn top_obeys_keys_while_the_process_does_not_answer() {
    let site = Site::new();
    let server = Server::start_at(&site.path("control"), healthy(&report(), 0));
    let mut terminal = Terminal::start(&server.path, "");
    // From here on, connections wait in the kernel's queue.
    drop(server);
    let _silent = UnixListener::bind(site.path("control")).expect("the path is free");
    terminal.script.await_line(&["Trying again"]);
    let start = Instant::now();
    terminal.press("q");
    terminal.ends_with(0);
    assert!(start.elapsed() < ANSWER, "{:?}", start.elapsed());
}

#[test]
fn top_has_colours_unless_no_color_is_set() {
    let server = Server::start(healthy(&report(), 0));
    let green = "\u{1b}[32mserving\u{1b}[0m";
    Terminal::start(&server.path, "").script.await_line(&["spipe 1.2.3", green]);
    let with = format!("'{}'", server.path.display());
    // As the shell before it sets it.
    let shell = format!("NO_COLOR=1 '{}' top -n 1 --control {with}", spipe().get_program().to_string_lossy());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &shell, "/dev/null"]).env("TERM", "xterm");
    let ended = run(&mut script).succeeded();
    assert!(ended.text().contains("serving") && ended.text().contains(ENTERS), "{}", ended.text());
    assert!(!ended.text().contains("\u{1b}[32m") && !ended.text().contains("\u{1b}[1m"), "{}", ended.text());
}

#[test]
fn top_that_cannot_begin_leaves_the_screen_alone() {
    let site = Site::new();
    let terminal = Terminal::start_any("", &site.path("none"), "");
    terminal.script.await_line(&["spipe: ", "no such socket"]);
    terminal.script.await_line(&["code 1"]);
    assert!(!terminal.script.log().contains(ENTERS));
}

#[test]
fn top_on_a_terminal_without_escape_sequences_prints_plain_text() {
    let server = Server::start(healthy(&report(), 0));
    let shell = format!(
        "TERM=dumb '{}' top --control '{}'",
        spipe().get_program().to_string_lossy(),
        server.path.display()
    );
    let ended = run(Command::new("script").args(["--quiet", "--return", "--command", &shell, "/dev/null"]))
        .succeeded();
    assert!(ended.text().contains("serving") && !ended.text().contains('\u{1b}'), "{}", ended.text());
}

// Progress.

#[test]
fn progress_is_shown_on_a_terminal_and_erased() {
    let server = draining(vec![drained(1), drained(0)]);
    let shell = format!(
        "'{}' drain '[10.0.0.1]:6380' --wait --control '{}'",
        spipe().get_program().to_string_lossy(),
        server.path.display()
    );
    let ended = run(Command::new("script").args(["--quiet", "--return", "--command", &shell, "/dev/null"]))
        .succeeded();
    let text = ended.text();
    for part in ["\rwaiting for 2 connections to [10.0.0.1]:6380\u{1b}[K", "\rwaiting for 1 connection to"] {
        assert!(text.contains(part), "{text:?}");
    }
    assert!(text.ends_with("\r\u{1b}[Kno connection is left"), "{text:?}");
}

#[test]
fn the_demo_shows_its_steps_on_a_terminal_only() {
    let program = spipe().get_program().to_string_lossy().into_owned();
    let shell = format!("'{program}' demo");
    let text = run(Command::new("script").args(["--quiet", "--return", "--command", &shell, "/dev/null"]))
        .succeeded()
        .text();
    for step in ["1 of 4: ", "2 of 4: ", "3 of 4: ", "4 of 4: waiting for the throughput\u{1b}[K\r\u{1b}[K"] {
        assert!(text.contains(step), "no '{step}' in {text:?}");
    }
    let ended = run(spipe().arg("demo")).succeeded();
    assert_eq!(ended.stderr, "");
    assert!(!ended.text().contains("of 4"), "{}", ended.text());
}
