//! Targets that speak TLS.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::Command;
use std::thread;

use rustls::version::{TLS12, TLS13};

use crate::support::memory::{Memory, Secrets};
use crate::support::pipe::{End, Key, Pipe};
use crate::support::postgres::{self, Postgres};
use crate::support::process::{run, spipe};
use crate::support::random::Random;
use crate::support::redis::{self, Redis};
use crate::support::site::Site;
use crate::support::socket::{Service, assert_echoes, assert_ends, assert_reads, assert_reset, reset};
use crate::support::tls::{Authority, Certified, Session, write};

const LOCALHOST: &str = "127.0.0.1";

/// Asks PostgreSQL whether the connection has TLS.
const HAS_TLS: &str = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// A pipe to a server of TLS that is trusted by the file of its authority.
fn pipe_to(authority: &Authority, address: SocketAddr) -> Pipe {
    Pipe::to(format!("tls://{address}")).responder_args(&["--tls-ca", &authority.file()]).start()
}

fn pipe_that_needs_no_close_notify_to(authority: &Authority, address: SocketAddr) -> Pipe {
    Pipe::to(format!("tls://{address}"))
        .responder_args(&["--tls-ca", &authority.file(), "--tls-ignore-unexpected-eof"])
        .start()
}

/// A pipe to a server that sends back what it receives, and the authority that has certified it.
fn echo_pipe() -> (Authority, Pipe) {
    let authority = Authority::new();
    let address = authority.certify(LOCALHOST).serve(Session::send_back);
    let pipe = pipe_to(&authority, address);
    (authority, pipe)
}

/// Asserts that a client is reset, since the responder with `args` logs `parts` instead of connecting.
#[track_caller]
fn assert_refused(target: &str, args: &[&str], parts: &[&str]) {
    let pipe = Pipe::to(target).responder_args(args).start();
    pipe.initiator.assert_resets_a_client();
    pipe.responder.await_line(&[&["cannot connect to"], parts].concat());
}

/// A Redis that speaks TLS only.
fn redis(certified: &Certified, authority: &Authority, clients: &str) -> Redis {
    let authority = authority.file();
    Redis::start_with_tls(&[
        ["--tls-cert-file", &certified.certificate_file],
        ["--tls-key-file", &certified.key_file],
        ["--tls-ca-cert-file", &authority],
        ["--tls-auth-clients", clients],
        ["--requirepass", "secret"],
    ])
}

#[test]
fn plain_clients_use_a_redis_with_tls_and_a_password() {
    let authority = Authority::new();
    let redis = redis(&authority.certify(LOCALHOST), &authority, "no");
    let pipe = Pipe::to(format!("tls://{}", redis.address()))
        .responder_args(&["--tls-ca", &authority.file()])
        .start();
    let ask = |args: &[&str]| {
        let args = [&["-a", "secret", "--no-auth-warning"], args].concat();
        redis::cli(&pipe.initiator.port(), &args).succeeded().text()
    };
    assert_eq!(ask(&["SET", "key", "value"]), "OK");
    assert_eq!(ask(&["GET", "key"]), "value");
    // redis-server says close_notify when a client goes, and when it closes a connection itself.
    assert_eq!(ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]), "0");
    assert!(!pipe.responder.process.log().contains("WARN"), "{}", pipe.responder.process.log());
}

#[test]
fn redis_ends_its_stream_with_close_notify_when_it_closes_a_connection() {
    let authority = Authority::new();
    let redis = redis(&authority.certify(LOCALHOST), &authority, "no");
    let pipe = Pipe::to(format!("tls://{}", redis.address()))
        .responder_args(&["--tls-ca", &authority.file()])
        .start();
    let mut client = pipe.connect();
    client.write_all(b"QUIT\r\n").expect("the pipe accepts the bytes");
    assert_reads(&mut client, "+OK\r\n");
    assert_ends(&mut client);
}

#[test]
fn a_target_that_asks_for_a_certificate_gets_ours() {
    let authority = Authority::new();
    let (server, client) = (authority.certify(LOCALHOST), authority.certify("client.example"));
    let redis = redis(&server, &authority, "yes");
    let target = format!("tls://{}", redis.address());
    let pipe = Pipe::to(&target)
        .responder_args(&["--tls-ca", &authority.file()])
        .responder_args(&["--tls-cert", &client.certificate_file, "--tls-key", &client.key_file])
        .start();
    let ask = ["-a", "secret", "--no-auth-warning", "PING"];
    assert_eq!(redis::cli(&pipe.initiator.port(), &ask).succeeded().text(), "PONG");

    // Without, TLS 1.3 lets a client know only after the handshake.
    let without = Pipe::to(&target).responder_args(&["--tls-ca", &authority.file()]).start();
    without.initiator.assert_resets_a_client();
    without.responder.await_line(&["alert", "CertificateRequired"]);
}

#[test]
fn private_keys_are_read_in_each_of_their_forms() {
    let authority = Authority::new();
    let (server, client) = (authority.certify(LOCALHOST), authority.certify("client.example"));
    let redis = redis(&server, &authority, "yes");
    for conversion in [&["ec"][..], &["pkcs8", "-topk8", "-nocrypt"]] {
        let key = authority.path("converted.key").display().to_string();
        run(Command::new("openssl").args(conversion).args(["-in", &client.key_file, "-out", &key]))
            .succeeded();
        let pipe = Pipe::to(format!("tls://{}", redis.address()))
            .responder_args(&["--tls-ca", &authority.file()])
            .responder_args(&["--tls-cert", &client.certificate_file, "--tls-key", &key])
            .start();
        let ask = ["-a", "secret", "--no-auth-warning", "PING"];
        assert_eq!(redis::cli(&pipe.initiator.port(), &ask).succeeded().text(), "PONG");
    }
}

#[test]
fn an_unknown_authority_is_refused_and_the_log_names_the_option() {
    let target = format!("tls://{}", Authority::new().certify(LOCALHOST).serve(Session::send_back));
    assert_refused(&target, &["--tls-ca", &Authority::new().file()], &["UnknownIssuer", "--tls-ca"]);
}

#[test]
fn a_certificate_for_another_name_is_refused_and_the_log_names_the_option() {
    let authority = Authority::new();
    let target = format!("tls://{}", authority.certify("other.example").serve(Session::send_back));
    assert_refused(&target, &["--tls-ca", &authority.file()], &["other.example", "--tls-server-name"]);
}

#[test]
fn a_certificate_may_be_for_the_name_that_is_given() {
    let authority = Authority::new();
    let target = format!("tls://{}", authority.certify("other.example").serve(Session::send_back));
    let pipe = Pipe::to(target)
        .responder_args(&["--tls-ca", &authority.file(), "--tls-server-name", "other.example"])
        .start();
    assert_echoes(&mut pipe.connect(), "hello");
}

#[test]
fn an_expired_certificate_is_refused() {
    let authority = Authority::new();
    let target = format!("tls://{}", authority.certify_until(LOCALHOST, 2020).serve(Session::send_back));
    assert_refused(&target, &["--tls-ca", &authority.file()], &["expired", "renew it"]);
}

#[test]
fn an_authority_that_is_its_own_server_is_refused_with_a_way_out() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    // What most instructions for self-signed certificates make.
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-keyout", &path("key"), "-out", &path("pem")]))
    .succeeded();
    let redis = Redis::start_with_tls(&[
        ["--tls-cert-file", &path("pem")],
        ["--tls-key-file", &path("key")],
        ["--tls-ca-cert-file", &path("pem")],
        ["--tls-auth-clients", "no"],
    ]);
    let target = format!("tls://{}", redis.address());
    assert_refused(&target, &["--tls-ca", &path("pem")], &["CaUsedAsEndEntity", "--tls-pin"]);
}

#[test]
fn the_authorities_of_the_system_count_by_default() {
    let authority = Authority::new();
    let target = format!("tls://{}", authority.certify(LOCALHOST).serve(Session::send_back));
    let key = Key::new();
    // What the system's libraries take instead of /etc/ssl.
    let mut command = End::responder(&key, target).command();
    command.env_remove("SSL_CERT_DIR").env("SSL_CERT_FILE", authority.file());
    let responder = End::started_by(&mut command);
    let initiator = End::initiator(&key, responder.address()).start();
    assert_echoes(&mut initiator.connect(), "hello");
}

#[test]
fn without_any_authority_it_does_not_start_and_says_what_to_install() {
    let mut command = End::responder(&Key::new(), "tls://127.0.0.1:1").command();
    command.env_remove("SSL_CERT_DIR").env("SSL_CERT_FILE", "/no/such/file");
    run(&mut command).failed_with(1, &["ca-certificates", "--tls-ca"]);
}

/// A pin that no server has.
fn other_pin() -> String {
    format!("sha256/{}=", "A".repeat(43))
}

/// The pin that the log says a server has, by refusing it although `trust` has it trusted.
fn pin_of(target: &str, trust: &[&str]) -> String {
    let pipe = Pipe::to(target).responder_args(trust).responder_args(&["--tls-pin", &other_pin()]).start();
    pipe.initiator.assert_resets_a_client();
    let line = pipe.responder.await_line(&["its key is sha256/", "none of --tls-pin"]);
    let pin = line.split_whitespace().find(|word| word.starts_with("sha256/")).expect("it is there");
    pin.trim_end_matches(',').to_owned()
}

#[test]
fn a_pinned_key_is_asked_for_besides_the_certificate() {
    let authority = Authority::new();
    let certified = authority.certify(LOCALHOST);
    let target = format!("tls://{}", certified.serve(Session::send_back));
    let pin = pin_of(&target, &["--tls-ca", &authority.file()]);
    // As the documentation tells to find it out.
    let script = format!(
        "openssl x509 -in '{}' -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64",
        certified.certificate_file
    );
    let digest = run(Command::new("sh").args(["-c", &script])).succeeded().text();
    assert_eq!(pin, format!("sha256/{digest}"));
    let pipe = Pipe::to(&target).responder_args(&["--tls-ca", &authority.file(), "--tls-pin", &pin]).start();
    assert_echoes(&mut pipe.connect(), "hello");
    assert_refused(&target, &["--tls-ca", &Authority::new().file(), "--tls-pin", &pin], &["UnknownIssuer"]);
}

#[test]
fn a_pin_alone_is_enough_where_no_certificate_is_looked_at_and_no_warning_is_due() {
    let authority = Authority::new();
    let target = format!("tls://{}", authority.certify("other.example").serve(Session::send_back));
    let pin = pin_of(&target, &["--tls-ca", &authority.file(), "--tls-server-name", "other.example"]);
    let pipe = Pipe::to(&target).responder_args(&["--tls-insecure", "--tls-pin", &pin]).start();
    assert_echoes(&mut pipe.connect(), "hello");
    assert!(!pipe.responder.process.log().contains("WARN"), "{}", pipe.responder.process.log());
    assert_refused(&target, &["--tls-insecure", "--tls-pin", &other_pin()], &["none of --tls-pin"]);
}

#[test]
fn an_insecure_target_is_warned_of_at_the_start_and_at_each_reload() {
    let target = format!("tls://{}", Authority::new().certify("other.example").serve(Session::send_back));
    let pipe = Pipe::to(&target).responder_args(&["--tls-insecure"]).start();
    assert_echoes(&mut pipe.connect(), "hello");
    let warning = "can read and change everything";
    pipe.responder.await_line(&["WARN", warning, &target.replace("127.0.0.1", "[127.0.0.1]")]);
    pipe.responder.process.reload_successfully();
    assert_eq!(pipe.responder.process.log().matches(warning).count(), 2);
}

#[test]
fn a_reload_takes_a_new_file_of_authorities_and_running_connections_go_on() {
    let (old, new) = (Authority::new(), Authority::new());
    let (before, after) = (old.certify(LOCALHOST), new.certify(LOCALHOST));
    let (old_server, new_server) = (before.serve(Session::send_back), after.serve(Session::send_back));
    let site = Site::with_key();
    let pipes = |target: SocketAddr| {
        format!(
            "[[pipe]]\nmode = 'decrypt'\nsource = '{}'\ntarget = 'tls://{target}'\nkey = 'test.key'\ntls-ca = 'ca.pem'\n",
            site.name("d.sock")
        )
    };
    write(&site.path("ca.pem"), &old.pem());
    let run = site.serve(pipes(old_server));
    let key = std::fs::read(site.path("test.key")).expect("the key can be read");
    let initiator = End::initiator(&Key::of(&key), site.name("d.sock")).start();
    let mut running = initiator.connect();
    assert_echoes(&mut running, "before");

    site.configure(pipes(new_server));
    run.reload_successfully();
    initiator.assert_resets_a_client();
    run.await_line(&["UnknownIssuer"]);

    // Both, as one does for a rotation.
    write(&site.path("ca.pem"), &(old.pem() + &new.pem()));
    run.reload_successfully();
    assert_echoes(&mut initiator.connect(), "after");
    assert_echoes(&mut running, "still");

    write(&site.path("ca.pem"), "nothing");
    run.fail_to_reload(&["pipes.toml:6", "no certificate"]);
    assert_echoes(&mut initiator.connect(), "after");
}

#[test]
fn a_target_that_speaks_no_tls_is_told_apart() {
    // Redis waits for the end of a line.
    let redis = Redis::start();
    let target = format!("tls://{}", redis.address());
    assert_refused(&target, &["--tls-insecure", "-o", "1"], &["handshake did not end in time", "speak TLS?"]);
    let talking = Service::start().serve(|mut client| {
        let _ = client.write_all(b"220 mail.example\r\n");
        let _ = client.read(&mut [0; 64]);
    });
    assert_refused(
        &format!("tls://{talking}"),
        &["--tls-insecure"],
        &["the target does not speak TLS there"],
    );
}

#[test]
fn a_target_that_closes_during_the_handshake_is_told_apart() {
    let address = Service::start().serve(drop);
    assert_refused(&format!("tls://{address}"), &["--tls-insecure"], &["does the target speak TLS?"]);
}

#[test]
fn a_handshake_that_stalls_ends_in_time_and_other_connections_do_not_notice() {
    let authority = Authority::new();
    let (stalled, works) = (Service::start(), authority.certify(LOCALHOST).serve(Session::send_back));
    let pipe = Pipe::to(format!("tls://{}", stalled.address()))
        .responder_args(&["--tls-ca", &authority.file(), "-o", "2", "--max-connections", "50"])
        .responder_args(&["-t", &format!("tls://{works}"), "--balance", "round-robin"])
        .start();
    let clients: Vec<_> = (0..20)
        .map(|number| {
            let mut client = pipe.connect();
            thread::spawn(move || {
                let text = format!("client {number}");
                client.write_all(text.as_bytes()).expect("the pipe accepts the bytes");
                let mut answer = vec![0; text.len()];
                client.read_exact(&mut answer).is_ok()
            })
        })
        .collect();
    let served: Vec<_> =
        clients.into_iter().map(|client| client.join().expect("it does not panic")).collect();
    assert!(
        served.iter().filter(|served| **served).count() >= 10,
        "those of the target that works: {served:?}"
    );
    pipe.responder.await_line(&["handshake did not end in time"]);
}

#[test]
fn a_stream_that_is_cut_short_without_close_notify_is_a_reset() {
    let authority = Authority::new();
    let address = authority.certify(LOCALHOST).serve(|mut session| {
        let _ = session.write_all(b"half of it");
        let _ = session.flush();
        // An end of the TCP stream, as anybody between here and there can make it.
        let _ = session.into_socket().shutdown(Shutdown::Both);
    });
    let pipe = pipe_to(&authority, address);
    assert_eq!(assert_reset(&mut pipe.connect()), b"half of it");
    pipe.responder.await_line(&["close_notify", "--tls-ignore-unexpected-eof"]);
}

#[test]
fn a_stream_without_close_notify_may_be_allowed_to_end() {
    let authority = Authority::new();
    let address = authority.certify(LOCALHOST).serve(|mut session| {
        let _ = session.write_all(b"all of it");
        let _ = session.flush();
        let _ = session.into_socket().shutdown(Shutdown::Both);
    });
    let pipe = pipe_that_needs_no_close_notify_to(&authority, address);
    let mut client = pipe.connect();
    assert_reads(&mut client, "all of it");
    assert_ends(&mut client);
}

#[test]
fn a_reset_of_the_target_is_a_reset_also_where_an_end_needs_no_close_notify() {
    let authority = Authority::new();
    let address = authority.certify(LOCALHOST).serve(|mut session| {
        let _ = session.write_all(b"half of it");
        let _ = session.flush();
        let mut byte = [0];
        let _ = session.read(&mut byte);
        reset(session.into_socket());
    });
    let pipe = pipe_that_needs_no_close_notify_to(&authority, address);
    let mut client = pipe.connect();
    assert_reads(&mut client, "half of it");
    client.write_all(b"x").expect("the pipe accepts the bytes");
    assert_eq!(assert_reset(&mut client), b"");
}

#[test]
fn a_reset_right_behind_bytes_is_no_end_either() {
    let authority = Authority::new();
    let address = authority.certify(LOCALHOST).serve(|mut session| {
        // Both are there when the responder looks.
        let _ = session.write_all(&[7; 4000]).and_then(|()| session.flush());
        reset(session.into_socket());
    });
    let pipe = pipe_that_needs_no_close_notify_to(&authority, address);
    for _ in 0..50 {
        if let Some(mut client) = pipe.initiator.connect_unless_reset() {
            assert!(assert_reset(&mut client).len() <= 4000);
        }
    }
}

#[test]
fn a_reset_of_the_client_is_no_end_for_the_target() {
    let authority = Authority::new();
    let (seen, ending) = std::sync::mpsc::channel();
    let address = authority.certify(LOCALHOST).serve(move |mut session| {
        let mut bytes = Vec::new();
        let _ = seen.send(session.read_to_end(&mut bytes).map_err(|error| error.kind()));
    });
    let pipe = Pipe::to(format!("tls://{address}"))
        .responder_args(&["--tls-ca", &authority.file(), "--verbose"])
        .start();
    let mut client = pipe.connect();
    client.write_all(b"half of it").expect("the pipe accepts the bytes");
    pipe.responder.await_line(&["established"]);
    reset(client);
    let ending = ending.recv().expect("the server sees it");
    assert!(ending.is_err(), "it must not look complete: {ending:?}");
}

#[test]
fn a_client_that_half_closes_gets_its_answer() {
    for version in [&TLS12, &TLS13] {
        let authority = Authority::new();
        let address = authority.certify(LOCALHOST).serve_with(&[version], |mut session| {
            let mut question = Vec::new();
            if session.read_to_end(&mut question).is_ok() {
                let _ = write!(session, "{} bytes", question.len());
                session.end();
            }
        });
        let pipe = pipe_to(&authority, address);
        let mut client = pipe.connect();
        client.write_all(&vec![7; 100_000]).expect("the pipe accepts the bytes");
        client.shutdown(Shutdown::Write).expect("the stream is open");
        assert_reads(&mut client, "100000 bytes");
        assert_ends(&mut client);
    }
}

#[test]
fn a_target_that_speaks_first_is_heard() {
    let authority = Authority::new();
    let address = authority.certify(LOCALHOST).serve(|mut session| {
        let _ = session.write_all(b"220 mail.example\r\n");
        session.send_back();
    });
    let pipe = pipe_to(&authority, address);
    let mut client = pipe.connect();
    assert_reads(&mut client, "220 mail.example\r\n");
    assert_echoes(&mut client, "HELO");
}

#[test]
fn bulk_goes_both_ways_at_once() {
    const LENGTH: usize = 64 << 20;
    let (_authority, pipe) = echo_pipe();
    let client = pipe.connect();
    let sent = Random::bytes(11, LENGTH);
    let (mut writing, expected) = (client.try_clone().expect("descriptors are left"), sent.clone());
    let sending = thread::spawn(move || {
        writing.write_all(&sent).expect("the pipe accepts the bytes");
        writing.shutdown(Shutdown::Write).expect("the stream is open");
    });
    let (mut reading, mut received) = (client, Vec::with_capacity(LENGTH));
    reading.read_to_end(&mut received).expect("a clean end");
    sending.join().expect("all is sent");
    assert!(received == expected, "{} bytes came back", received.len());
}

#[test]
fn a_target_that_reads_late_gets_the_last_byte_although_nothing_more_is_said() {
    const LENGTH: usize = 3_000_001;
    let authority = Authority::new();
    let (begin, begun) = std::sync::mpsc::channel();
    let begun = std::sync::Arc::new(std::sync::Mutex::new(begun));
    let address = authority.certify(LOCALHOST).serve(move |mut session| {
        // The handshake is done, and the client's bytes fill all buffers on the way.
        let _ = session.write_all(b"go").and_then(|()| session.flush());
        let _ = begun.lock().expect("nobody panics").recv();
        let mut bytes = vec![0; LENGTH];
        if session.read_exact(&mut bytes).is_ok() {
            let _ = session.write_all(b"all of it").and_then(|()| session.flush());
        }
        let _ = session.read(&mut [0]);
    });
    let pipe = pipe_to(&authority, address);
    let mut client = pipe.connect();
    assert_reads(&mut client, "go");
    let mut writing = client.try_clone().expect("descriptors are left");
    let sending =
        thread::spawn(move || writing.write_all(&vec![7; LENGTH]).expect("the pipe accepts the bytes"));
    begin.send(()).expect("the server waits");
    sending.join().expect("all is sent");
    assert_reads(&mut client, "all of it");
}

#[test]
fn a_client_that_does_not_read_stops_a_target_and_memory_stays_bounded() {
    let authority = Authority::new();
    let (sent, sending) = std::sync::mpsc::channel();
    let address = authority.certify(LOCALHOST).serve(move |mut session| {
        let piece = vec![7; 1 << 20];
        for _ in 0..256 {
            if session.write_all(&piece).is_err() || sent.send(()).is_err() {
                return;
            }
        }
    });
    let pipe = pipe_to(&authority, address);
    let client = pipe.connect();
    // So much fits into sockets and buffers; the rest waits at the target.
    let mut pieces = 0;
    while sending.recv_timeout(std::time::Duration::from_secs(1)).is_ok() {
        pieces += 1;
    }
    assert!(pieces < 64, "{pieces} MiB are on the way");
    assert!(resident(&pipe.responder) < 64 << 20, "{} bytes of memory", resident(&pipe.responder));
    drop(client);
}

/// Bytes of memory that a process uses.
fn resident(end: &End) -> u64 {
    let pid = end.process.pid().as_raw_nonzero();
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("the process runs");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

#[test]
fn a_crowd_of_clients_is_served() {
    let (_authority, pipe) = echo_pipe();
    let clients: Vec<_> = (0..200)
        .map(|number| {
            let mut client = pipe.connect();
            thread::spawn(move || assert_echoes(&mut client, &format!("client {number}")))
        })
        .collect();
    for client in clients {
        client.join().expect("each client is served");
    }
}

#[test]
fn a_check_speaks_tls_and_leaves_in_an_orderly_way() {
    let authority = Authority::new();
    let redis = redis(&authority.certify(LOCALHOST), &authority, "no");
    let responder = End::responder(&Key::new(), format!("tls://{}", redis.address()))
        .args(&["--tls-ca", &authority.file(), "--check", "1", "--rise", "1", "--fall", "1"])
        .args(&["--check-send", r"AUTH secret\r\nPING\r\n", "--check-expect", "+PONG", "--verbose"])
        .start();
    drop(redis);
    // It was up before.
    responder.await_line(&["target down"]);
}

#[test]
fn plain_clients_use_a_postgresql_that_insists_on_tls() {
    let authority = Authority::new();
    let postgres = Postgres::start(Some(&authority.certify(LOCALHOST)));
    let pipe = Pipe::to(format!("postgres+tls://{}", postgres.address()))
        .responder_args(&["--tls-ca", &authority.file()])
        .start();
    let answer = postgres::psql(&pipe.initiator.port(), "user=postgres sslmode=disable", HAS_TLS);
    // libpq takes this for an attack. docs/guides/behind-a-bastion.md says what to do.
    assert!(
        answer.stderr.contains("SCRAM-SHA-256-PLUS authentication over a non-SSL connection"),
        "{answer:?}"
    );
    let plain = "user=plain sslmode=disable";
    let answer = postgres::psql(&pipe.initiator.port(), plain, HAS_TLS);
    assert_eq!(answer.succeeded().text(), "t|TLSv1.3");
    // It says close_notify also when it ends a connection itself.
    let end = "SELECT pg_terminate_backend(pg_backend_pid())";
    let ended = postgres::psql(&pipe.initiator.port(), plain, end);
    assert!(ended.stderr.contains("terminating connection due to administrator command"), "{ended:?}");
    assert!(!pipe.responder.process.log().contains("WARN"), "{}", pipe.responder.process.log());
}

#[test]
fn a_postgresql_client_may_speak_tls_itself_through_a_plain_pipe() {
    let authority = Authority::new();
    let postgres = Postgres::start(Some(&authority.certify(LOCALHOST)));
    let pipe = Pipe::to(postgres.address()).start();
    let parameters =
        format!("user=postgres sslmode=verify-full channel_binding=require sslrootcert={}", authority.file());
    let answer = postgres::psql(&pipe.initiator.port(), &parameters, HAS_TLS);
    assert_eq!(answer.succeeded().text(), "t|TLSv1.3");
}

#[test]
fn a_postgresql_without_tls_is_told_apart() {
    let postgres = Postgres::start(None);
    let target = format!("postgres+tls://{}", postgres.address());
    assert_refused(&target, &["--tls-insecure"], &["PostgreSQL does not offer TLS"]);
}

#[test]
fn what_is_no_postgresql_is_told_apart() {
    let address = Service::start().serve(|mut client| {
        let _ = client.write_all(b"-ERR\r\n");
        let _ = client.read(&mut [0; 64]);
    });
    let target = format!("postgres+tls://{address}");
    assert_refused(&target, &["--tls-insecure"], &["did not answer as PostgreSQL does"]);
}

#[test]
fn bytes_behind_the_answer_of_postgresql_are_a_part_of_the_handshake() {
    // An attacker's bytes, which must not become the server's (CVE-2021-23222).
    let address = Service::start().serve(|mut client| {
        let _ = client.read(&mut [0; 8]);
        let _ = client.write_all(b"SR\0\0\0\x08\0\0\0\0");
        let _ = client.read(&mut [0; 64]);
    });
    let target = format!("postgres+tls://{address}");
    assert_refused(&target, &["--tls-insecure"], &["the target does not speak TLS there"]);
}

#[test]
fn a_private_key_is_in_memory_in_no_form_of_its_file() {
    let authority = Authority::new();
    let client = authority.certify("client.example");
    let address = authority.certify(LOCALHOST).serve(Session::send_back);
    let pipe = Pipe::to(format!("tls://{address}"))
        .responder_args(&["--tls-ca", &authority.file()])
        .responder_args(&["--tls-cert", &client.certificate_file, "--tls-key", &client.key_file])
        .start();
    assert_echoes(&mut pipe.connect(), "hello");
    let pem = std::fs::read_to_string(&client.key_file).expect("the key can be read");
    let mut secrets = Secrets::default();
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    // Behind what all keys of a kind have in common, and before the public key.
    secrets.add("in the file", &base64.as_bytes()[56..80]);
    secrets.add("decoded", &client.key_der()[36..68]);
    let memory = Memory::of(pipe.responder.process.pid());
    let found = secrets.find_in(&memory);
    assert!(found.is_empty(), "{found}");
}

#[test]
fn contradictions_are_named_with_both_options() {
    let authority = Authority::new();
    let client = authority.certify("client.example");
    let (ca, certificate, key) = (&*authority.file(), &*client.certificate_file, &*client.key_file);
    let tls = "tls://localhost:1";
    for (mode, target, args, parts) in [
        ("-d", "localhost:1", &["--tls-ca", ca][..], &["--tls-ca", "tls://"][..]),
        ("-d", "localhost:1", &["--tls-insecure"], &["--tls-insecure", "tls://"]),
        ("-e", tls, &[], &["tls://[localhost]:1", "-d"]),
        ("-d", tls, &["--tls-ca", ca, "--tls-insecure"], &["--tls-ca", "--tls-insecure"]),
        ("-d", tls, &["--tls-ca", ca, "--tls-cert", certificate], &["--tls-cert", "--tls-key"]),
        ("-d", tls, &["--tls-ca", ca, "--tls-key", key], &["--tls-key", "--tls-cert"]),
        ("-d", tls, &["--tls-ca", "/no/such"], &["cannot read /no/such"]),
        ("-d", tls, &["--tls-ca", key], &["no certificate"]),
        (
            "-d",
            tls,
            &["--tls-ca", ca, "--tls-cert", certificate, "--tls-key", certificate],
            &["no private key"],
        ),
        (
            "-d",
            tls,
            &["--tls-ca", ca, "--tls-cert", ca, "--tls-key", key],
            &["not usable with that certificate"],
        ),
        ("-d", "tls:///run/redis.sock", &[], &["TLS is for TCP"]),
    ] {
        let mut command = spipe();
        let pipe_key = Key::new();
        command.args([mode, "-s", "127.0.0.1:0", "-t", target, "-k"]).arg(pipe_key.path()).args(args);
        let ended = run(&mut command);
        assert_ne!(ended.code, Some(0), "{args:?}");
        for part in parts {
            assert!(ended.stderr.contains(part), "{args:?}: {}", ended.stderr);
        }
    }
}

#[test]
fn a_private_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let authority = Authority::new();
    let client = authority.certify("client.example");
    std::fs::set_permissions(&client.key_file, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    let mut command = End::responder(&Key::new(), "tls://localhost:1")
        .args(&["--tls-ca", &authority.file()])
        .args(&["--tls-cert", &client.certificate_file, "--tls-key", &client.key_file])
        .command();
    run(&mut command).failed_with(1, &["can be read by others (mode 0644)", "chmod 600"]);
}

#[test]
fn a_private_key_with_a_passphrase_is_refused_with_a_way_out() {
    let authority = Authority::new();
    let client = authority.certify("client.example");
    for kind in [&["pkcs8", "-topk8"][..], &["ec", "-aes256"]] {
        let key = authority.path("locked.key").display().to_string();
        run(Command::new("openssl").args(kind).args([
            "-in",
            &client.key_file,
            "-out",
            &key,
            "-passout",
            "pass:secret",
        ]))
        .succeeded();
        let mut command = End::responder(&Key::new(), "tls://localhost:1")
            .args(&["--tls-ca", &authority.file()])
            .args(&["--tls-cert", &client.certificate_file, "--tls-key", &key])
            .command();
        run(&mut command).failed_with(1, &["passphrase", "openssl pkey"]);
    }
}
