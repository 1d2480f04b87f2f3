//! Targets behind a proxy (`--via`).

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;

use tempfile::TempDir;

use crate::support::pipe::{End, Key};
use crate::support::poll_until;
use crate::support::process::{run, spipe};
use crate::support::proxy::{Socks, Squid};
use crate::support::random::Random;
use crate::support::redis::free_port;
use crate::support::socket::{Service, assert_echoes, assert_ends, assert_reads, echo};
use crate::support::tls::{Authority, Session, write};

/// A responder to `target`, and an initiator that reaches it through `proxy`.
fn pipe_via(proxy: &str, target: SocketAddr, args: &[&str]) -> (End, End) {
    let key = Key::new();
    let responder = End::responder(&key, target).start();
    let initiator = End::initiator(&key, responder.address()).args(&["--via", proxy]).args(args).start();
    (initiator, responder)
}

/// A file with credentials that only its owner can read.
fn credentials(text: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("proxy.auth");
    write(&path, text);
    (directory, path.display().to_string())
}

/// Asserts that a client is reset, since the initiator logs `parts` instead of connecting.
#[track_caller]
fn assert_refused(proxy: &str, args: &[&str], parts: &[&str]) {
    let (initiator, _responder) = pipe_via(proxy, echo(), args);
    initiator.assert_resets_a_client();
    initiator.await_line(&[&["cannot connect to", "the proxy"], parts].concat());
}

/// A proxy that answers each request with `answer`, and then with what it is sent.
fn answering(answer: &'static str) -> String {
    let address = Service::start().serve(move |mut client| {
        let _ = client.read(&mut [0; 1024]);
        let _ = client.write_all(answer.as_bytes());
        let _ = std::io::copy(&mut client.try_clone().expect("descriptors are left"), &mut client);
    });
    format!("http://{address}")
}

#[test]
fn a_pipe_goes_through_squid() {
    let squid = Squid::start();
    let (initiator, responder) =
        pipe_via(&format!("http://127.0.0.1:{}", squid.port), echo(), &["--no-reuse"]);
    let mut client = initiator.connect();
    assert_echoes(&mut client, "hello");
    client.shutdown(Shutdown::Write).expect("the stream is open");
    assert_ends(&mut client);
    poll_until("squid has logged the tunnel", || {
        squid.log().contains(&format!("CONNECT 127.0.0.1:{}", responder.port())).then_some(())
    });
}

#[test]
fn a_pipe_goes_through_a_socks_server() {
    let socks = Socks::start(None);
    let (initiator, _responder) = pipe_via(&format!("socks5://127.0.0.1:{}", socks.port), echo(), &[]);
    let mut client = initiator.connect();
    assert_echoes(&mut client, "hello");
    client.shutdown(Shutdown::Write).expect("the stream is open");
    assert_ends(&mut client);
}

#[test]
fn credentials_come_from_a_file() {
    let (_directory, file) = credentials("user:pass:word\n");
    let (squid, socks) = (Squid::start_for("user", "pass:word"), Socks::start(Some(("user", "pass:word"))));
    for proxy in [format!("http://127.0.0.1:{}", squid.port), format!("socks5://127.0.0.1:{}", socks.port)] {
        let (initiator, _responder) = pipe_via(&proxy, echo(), &["--via-auth", &file]);
        assert_echoes(&mut initiator.connect(), "hello");
        assert!(!initiator.process.log().contains("pass:word"));
    }
}

#[test]
fn a_proxy_that_asks_for_credentials_is_told_of_with_the_option() {
    let (squid, socks) = (Squid::start_for("user", "password"), Socks::start(Some(("user", "password"))));
    let (_directory, wrong) = credentials("user:wrong");
    for proxy in [format!("http://127.0.0.1:{}", squid.port), format!("socks5://127.0.0.1:{}", socks.port)] {
        assert_refused(&proxy, &[], &["asks for a user and password", "--via-auth"]);
        assert_refused(&proxy, &["--via-auth", &wrong], &["does not accept the user and password"]);
    }
}

#[test]
fn a_name_is_resolved_by_the_proxy() {
    // squid knows a name that this host does not.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let hosts = directory.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 responder.behind-the-proxy.test\n").expect("the file can be written");
    let squid = Squid::start_with(&format!("hosts_file {}\nhttp_access allow all", hosts.display()));
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let target = format!("responder.behind-the-proxy.test:{}", responder.port());
    let initiator =
        End::initiator(&key, target).args(&["--via", &format!("http://127.0.0.1:{}", squid.port)]).start();
    assert_echoes(&mut initiator.connect(), "hello");
}

#[test]
fn what_a_proxy_says_is_in_the_log() {
    let squid = Squid::start_with("http_access deny all");
    let refusing = format!("http://127.0.0.1:{}", squid.port);
    assert_refused(&refusing, &[], &["answers 403 Forbidden", "squid allows CONNECT to port 443 only"]);

    let key = Key::new();
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (squid, socks) = (Squid::start(), Socks::start(None));
    for (proxy, part) in [
        (
            format!("http://127.0.0.1:{}", squid.port),
            "answers 503 Service Unavailable: it cannot reach the target",
        ),
        (format!("socks5://127.0.0.1:{}", socks.port), "Connection refused"),
    ] {
        let initiator = End::initiator(&key, nobody).args(&["--via", &proxy]).start();
        initiator.assert_resets_a_client();
        initiator.await_line(&["cannot connect to", part]);
    }
}

#[test]
fn a_proxy_that_is_none_is_told_of() {
    assert_refused(&answering("-ERR unknown command\r\n"), &[], &["does not speak HTTP"]);
    assert_refused(&format!("http://{}", Service::start().serve(drop)), &[], &["closed the connection"]);
    let endless: &str = "HTTP/1.1 200 OK\r\nX: ".to_owned().leak();
    assert_refused(&answering(endless), &["-o", "1"], &["has not connected in time"]);
    let socks = Socks::start(None);
    assert_refused(&format!("http://127.0.0.1:{}", socks.port), &[], &["does not speak HTTP"]);
    let http = answering("HTTP/1.1 400 Bad Request\r\n\r\n").replace("http", "socks5");
    assert_refused(&http, &[], &["does not speak SOCKS 5"]);
}

#[test]
fn a_proxy_that_says_nothing_is_given_up_in_time_and_other_pipes_do_not_notice() {
    let silent = Service::start();
    let (initiator, responder) = pipe_via(&format!("http://{}", silent.address()), echo(), &["-o", "1"]);
    let clients: Vec<_> = (0..20).map(|_| initiator.connect()).collect();
    initiator.await_line(&["has not connected in time"]);
    drop((clients, responder));
}

#[test]
fn bytes_that_come_with_the_proxys_answer_are_not_lost() {
    // The first bytes of a mail server, in one packet with the answer.
    let address = Service::start().serve(|mut client| {
        let _ = client.read(&mut [0; 1024]);
        let _ = client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n220 mail.example\r\n");
        let _ = client.read(&mut [0; 1024]);
    });
    let key = Key::new();
    let responder =
        End::responder(&key, "mail.example:25").args(&["--via", &format!("http://{address}")]).start();
    let initiator = End::initiator(&key, responder.address()).start();
    assert_reads(&mut initiator.connect(), "220 mail.example\r\n");
}

#[test]
fn bulk_and_a_crowd_go_through_a_proxy() {
    let socks = Socks::start(None);
    let (initiator, _responder) = pipe_via(&format!("socks5://127.0.0.1:{}", socks.port), echo(), &[]);
    let clients: Vec<_> = (0..50)
        .map(|number| {
            let mut client = initiator.connect();
            thread::spawn(move || {
                let sent = Random::bytes(number, 1 << 20);
                let (mut writing, bytes) = (client.try_clone().expect("descriptors are left"), sent.clone());
                let sending = thread::spawn(move || {
                    writing.write_all(&bytes).expect("the pipe accepts the bytes");
                    writing.shutdown(Shutdown::Write).expect("the stream is open");
                });
                let mut received = Vec::new();
                client.read_to_end(&mut received).expect("a clean end");
                sending.join().expect("all is sent");
                assert!(received == sent, "{} bytes came back", received.len());
            })
        })
        .collect();
    for client in clients {
        client.join().expect("each client is served");
    }
}

#[test]
fn a_responder_reaches_a_tls_target_through_a_proxy() {
    let authority = Authority::new();
    let address = authority.certify("127.0.0.1").serve(Session::send_back);
    let (squid, key) = (Squid::start(), Key::new());
    let responder = End::responder(&key, format!("tls://{address}"))
        .args(&["--tls-ca", &authority.file(), "--via", &format!("http://127.0.0.1:{}", squid.port)])
        .start();
    let initiator = End::initiator(&key, responder.address()).start();
    assert_echoes(&mut initiator.connect(), "hello");
}

#[test]
fn a_target_that_a_proxy_cannot_reach_is_passed_over() {
    let (squid, key) = (Squid::start(), Key::new());
    let responder = End::responder(&key, echo()).start();
    let nobody = format!("127.0.0.1:{}", free_port());
    let initiator = End::initiator(&key, nobody)
        .args(&["-t", &responder.address().to_string(), "--via", &format!("http://127.0.0.1:{}", squid.port)])
        .start();
    assert_echoes(&mut initiator.connect(), "hello");
    initiator.await_line(&["target avoided", "503"]);
}

#[test]
fn a_proxy_that_is_gone_is_a_reset_and_its_return_is_noticed() {
    let squid = Squid::start();
    let (initiator, _responder) = pipe_via(&format!("http://127.0.0.1:{}", squid.port), echo(), &[]);
    assert_echoes(&mut initiator.connect(), "hello");
    squid.kill();
    initiator.assert_resets_a_client();
    initiator.await_line(&["cannot connect to", "Connection refused"]);
    Service::start_on(&format!("127.0.0.1:{}", squid.port)).serve(drop);
    initiator.assert_resets_a_client();
    initiator.await_line(&["closed the connection"]);
}

#[test]
fn mistakes_are_named_with_their_options() {
    let key = Key::new();
    let (_directory, nonsense) = credentials("nonsense");
    let (_directory, good) = credentials("user:password");
    let readable: PathBuf = good.clone().into();
    let refused = |args: &[&str], parts: &[&str]| {
        let mut command = spipe();
        command.args(["-e", "-s", "127.0.0.1:0", "-k"]).arg(key.path()).args(args);
        let ended = run(&mut command);
        assert_ne!(ended.code, Some(0), "{args:?}");
        for part in parts {
            assert!(ended.stderr.contains(part), "{args:?}: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("nonsense\n"), "{}", ended.stderr);
    };
    let (target, proxy) = ("localhost:1", "socks5://localhost:1");
    refused(&["-t", target, "--via-auth", &good], &["--via-auth", "--via PROXY"]);
    refused(&["-t", "/run/redis.sock", "--via", proxy], &["Unix-domain socket", "--via"]);
    refused(&["-t", target, "--via", "localhost:1"], &["socks5://host:port or http://host:port"]);
    refused(&["-t", target, "--via", "http://user:secret@localhost:1"], &["--via-auth"]);
    refused(&["-t", target, "--via", proxy, "--via-auth", &nonsense], &["USER:PASSWORD"]);
    refused(&["-t", target, "--via", proxy, "--via-auth", "/no/such"], &["/no/such"]);
    std::fs::set_permissions(readable, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    refused(&["-t", target, "--via", proxy, "--via-auth", &good], &["can be read by others", "chmod 600"]);
}
