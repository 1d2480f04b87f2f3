//! Several keys: one for each client, and a change from an old key to a new one without interruption.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::support::pipe::{End, Key, field};
use crate::support::poll_until;
use crate::support::process::{Process, run, spipe};
use crate::support::site::{Site, fingerprint};
use crate::support::socket::{assert_echoes, connect, echo};

/// `spipe -d` to an echo target, with a `-k` for each of `keys`.
fn responder(keys: &[&Path]) -> Process {
    let mut command = spipe();
    command.args(["-d", "-s", "127.0.0.1:0", "-t", &echo().to_string()]);
    for key in keys {
        command.arg("-k").arg(key);
    }
    let process = Process::start(&mut command);
    process.await_line(&["listening"]);
    process
}

/// `spipe -e` to `responder`, with a `-k` for each of `keys`.
fn initiator(keys: &[&Path], responder: &Process) -> Process {
    let target = address(responder).to_string();
    let mut command = spipe();
    command.args(["-e", "-s", "127.0.0.1:0", "-t", &target]);
    for key in keys {
        command.arg("-k").arg(key);
    }
    let process = Process::start(&mut command);
    process.await_line(&["listening"]);
    process
}

fn address(end: &Process) -> std::net::SocketAddr {
    let line = end.await_line(&["listening"]);
    field(&line, "source").replace(['[', ']'], "").parse().expect("an IPv4 address")
}

/// Asserts that the key of `initiator` is accepted.
#[track_caller]
fn assert_accepted(initiator: &Process) {
    assert_echoes(&mut connect(address(initiator)), "accepted");
}

/// Whether a client of `initiator` gets an answer.
fn is_accepted(initiator: &Process) -> bool {
    let Ok(mut client) = crate::support::socket::try_connect(address(initiator)) else { return false };
    client.write_all(b"x").is_ok() && client.read_exact(&mut [0]).is_ok()
}

/// Asserts that the key of `initiator` is refused.
#[track_caller]
fn assert_refused(initiator: &Process) {
    assert!(!is_accepted(initiator), "it is accepted");
}

#[test]
fn a_responder_accepts_each_of_its_keys() {
    let keys = [Key::new(), Key::new(), Key::new()].map(|key| (key.path(), key));
    let paths: Vec<_> = keys.iter().map(|(path, _)| &**path).collect();
    let responder = responder(&paths);
    for key in paths {
        assert_accepted(&initiator(&[key], &responder));
    }
}

#[test]
fn a_responder_accepts_each_key_of_a_directory() {
    let site = Site::new();
    for name in ["a.key", "b.key", "c.key"] {
        site.add_key(&format!("keys/{name}"));
    }
    let responder = responder(&[&site.path("keys")]);
    for name in ["a.key", "b.key", "c.key"] {
        assert_accepted(&initiator(&[&site.path(&format!("keys/{name}"))], &responder));
    }
}

#[test]
fn a_key_that_the_responder_does_not_have_is_refused() {
    let (site, stranger) = (Site::new(), Key::new());
    site.add_key("keys/a.key");
    site.add_key("keys/b.key");
    let responder = responder(&[&site.path("keys")]);
    assert_refused(&initiator(&[&stranger.path()], &responder));
    let line = responder.await_line(&["refused", "the keys differ"]);
    assert!(!line.contains(&fingerprint(&stranger.path())), "the fingerprint of an unknown key: {line}");
}

#[test]
fn files_without_the_extension_key_in_a_directory_are_ignored() {
    let site = Site::new();
    site.add_key("keys/a.key");
    for name in ["a.key.revoked", "key", "README"] {
        site.add_key(&format!("keys/{name}"));
    }
    let responder = responder(&[&site.path("keys")]);
    assert_accepted(&initiator(&[&site.path("keys/a.key")], &responder));
    for name in ["a.key.revoked", "key", "README"] {
        assert_refused(&initiator(&[&site.path(&format!("keys/{name}"))], &responder));
    }
}

#[test]
fn an_initiator_uses_its_first_key() {
    let (first, second) = (Key::new(), Key::new());
    let (with_first, with_second) = (responder(&[&first.path()]), responder(&[&second.path()]));
    assert_accepted(&initiator(&[&first.path(), &second.path()], &with_first));
    assert_refused(&initiator(&[&first.path(), &second.path()], &with_second));
}

#[test]
fn an_initiator_uses_the_first_key_of_a_directory_by_name() {
    let site = Site::new();
    // They are not created in the order of their names.
    for name in ["20-new.key", "10-current.key", "30-old.key"] {
        site.add_key(&format!("keys/{name}"));
    }
    let (current, new) = (site.path("keys/10-current.key"), site.path("keys/20-new.key"));
    let (with_current, with_new) = (responder(&[&current]), responder(&[&new]));
    assert_accepted(&initiator(&[&site.path("keys")], &with_current));
    assert_refused(&initiator(&[&site.path("keys")], &with_new));
}

#[test]
fn the_log_line_of_a_connections_end_names_its_key() {
    let (one, other) = (Key::new(), Key::new());
    let responder = responder(&[&one.path(), &other.path()]);
    for key in [&one, &other] {
        let initiator = initiator(&[&key.path()], &responder);
        assert_accepted(&initiator);
        let expected = format!("key={}", fingerprint(&key.path()));
        initiator.await_line(&[" closed ", &expected]);
        responder.await_line(&[" closed ", &expected]);
    }
}

#[test]
fn the_first_line_names_all_keys() {
    let (one, other) = (Key::new(), Key::new());
    let responder = responder(&[&one.path(), &other.path()]);
    let line = responder.await_line(&["listening"]);
    let expected = format!("{},{}", fingerprint(&one.path()), fingerprint(&other.path()));
    assert_eq!(field(&line, "key"), expected);
}

#[test]
fn one_invalid_key_of_several_prevents_the_start() {
    let (good, bad) = (Key::new(), Key::of(b"short"));
    let mut command = spipe();
    command.args(["-d", "-s", "127.0.0.1:0", "-t", "127.0.0.1:9", "-k"]).arg(good.path());
    run(command.arg("-k").arg(bad.path())).failed_with(1, &["at least 32 bytes"]);
}

// ── keys are added and removed while the process runs ──

#[test]
fn a_removed_key_is_refused_and_other_keys_are_still_accepted() {
    let site = Site::new();
    for name in ["alice.key", "bob.key"] {
        site.add_key(&format!("keys/{name}"));
    }
    let responder = responder(&[&site.path("keys")]);
    let alice = initiator(&[&site.path("keys/alice.key")], &responder);
    let bob = initiator(&[&site.path("keys/bob.key")], &responder);
    assert_accepted(&alice);
    assert_accepted(&bob);

    std::fs::remove_file(site.path("keys/alice.key")).expect("the file can be removed");
    // Not yet: the keys that have been read stay in force until a reload.
    assert_accepted(&alice);
    responder.reload_successfully();
    assert_refused(&alice);
    assert_accepted(&bob);
}

#[test]
fn an_added_key_is_accepted() {
    let (site, later) = (Site::new(), Key::new());
    site.add_key("keys/first.key");
    let responder = responder(&[&site.path("keys")]);
    let newcomer = initiator(&[&later.path()], &responder);
    assert_refused(&newcomer);
    std::fs::copy(later.path(), site.path("keys/later.key")).expect("the file can be copied");
    responder.reload_successfully();
    assert_accepted(&newcomer);
    assert_accepted(&initiator(&[&site.path("keys/first.key")], &responder));
}

#[test]
fn a_key_whose_file_was_overwritten_is_refused() {
    let (key, copy) = (Key::new(), Key::new());
    std::fs::copy(key.path(), copy.path()).expect("the file can be copied");
    let responder = responder(&[&key.path()]);
    let old = initiator(&[&copy.path()], &responder);
    assert_accepted(&old);
    std::fs::write(key.path(), b"another key, of more than 32 bytes").expect("the file can be written");
    responder.reload_successfully();
    assert_refused(&old);
    assert_accepted(&initiator(&[&key.path()], &responder));
}

#[test]
fn the_last_key_of_a_directory_cannot_be_removed() {
    let site = Site::new();
    site.add_key("keys/only.key");
    let responder = responder(&[&site.path("keys")]);
    let initiator = initiator(&[&site.path("keys/only.key")], &responder);
    std::fs::rename(site.path("keys/only.key"), site.path("keys/only.key.old"))
        .expect("the file can be renamed");
    responder.fail_to_reload(&["has no key"]);
    assert_accepted(&initiator);
}

#[test]
fn a_connection_outlives_its_removed_key_and_this_is_logged() {
    let site = Site::new();
    let gone = site.add_key("keys/gone.key");
    let stays = site.add_key("keys/stays.key");
    let responder = responder(&[&site.path("keys")]);
    let with_gone = initiator(&[&site.path("keys/gone.key")], &responder);
    let with_stays = initiator(&[&site.path("keys/stays.key")], &responder);
    let mut running = [connect(address(&with_gone)), connect(address(&with_gone))];
    for client in &mut running {
        assert_echoes(client, "before");
    }
    let mut other = connect(address(&with_stays));
    assert_echoes(&mut other, "before");

    std::fs::remove_file(site.path("keys/gone.key")).expect("the file can be removed");
    responder.reload_successfully();
    let line = responder.await_line(&["running connections have a key that new ones cannot use any more"]);
    assert_eq!((field(&line, "key"), field(&line, "connections")), (&*gone, "2"));
    for client in &mut running {
        assert_echoes(client, "after");
    }

    // When they have ended, the line is not logged again. Their end is logged shortly before they are no longer
    // counted.
    drop(running);
    poll_until("no connection has the key", || {
        let said = || responder.log().matches("cannot use any more").count();
        let before = said();
        responder.reload_successfully();
        // The line of the next reload comes after all lines of the previous one.
        responder.reload_successfully();
        (said() == before).then_some(())
    });
    let log = responder.log();
    assert!(!log.lines().any(|line| line.contains("cannot use any more") && line.contains(&stays)), "{log}");
    assert_echoes(&mut other, "undisturbed");
}

/// A client that repeatedly connects, sends a request and disconnects. It panics at the first failure.
struct Loop {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Loop {
    fn start(address: std::net::SocketAddr) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                assert_echoes(&mut connect(address), "one request");
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, answered, thread: Some(thread) }
    }

    /// Waits until `count` more requests have been answered, or one has failed.
    #[track_caller]
    fn await_more(&self, count: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + count;
        poll_until("requests are answered", || {
            assert!(!self.thread.as_ref().expect("the thread runs").is_finished(), "a request failed");
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// Asserts that no request has failed.
    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("the thread runs").join().expect("no request failed");
    }
}

#[test]
fn no_request_fails_during_a_change_of_keys() {
    let (server, client) = (Site::new(), Site::new());
    let old = server.add_key("keys/old.key");
    std::fs::create_dir(client.path("keys")).expect("the directory can be created");
    let copy = |from: &Path, to: &Path| {
        std::fs::copy(from, to).expect("the file can be copied");
    };
    for name in ["keys/the.key", "keys/old.key"] {
        copy(&server.path("keys/old.key"), &client.path(name));
    }
    let responder = responder(&[&server.path("keys")]);
    let initiator = initiator(&[&client.path("keys/the.key")], &responder);
    let requests = Loop::start(address(&initiator));
    requests.await_more(10);

    // First add the new key to the responder,
    let new = server.add_key("keys/new.key");
    responder.reload_successfully();
    requests.await_more(10);
    // then use it at the initiator,
    copy(&server.path("keys/new.key"), &client.path("keys/next"));
    std::fs::rename(client.path("keys/next"), client.path("keys/the.key")).expect("the file can be renamed");
    initiator.reload_successfully();
    requests.await_more(10);
    responder.await_line(&[" closed ", &new]);
    // and finally remove the old key from the responder.
    std::fs::remove_file(server.path("keys/old.key")).expect("the file can be removed");
    responder.reload_successfully();
    requests.await_more(10);
    requests.finish();

    let closed = responder.log();
    let keys: Vec<_> =
        closed.lines().filter(|line| line.contains(" closed ")).map(|line| field(line, "key")).collect();
    assert_eq!((keys[0], keys[keys.len() - 1]), (&*old, &*new));
    assert_refused(&self::initiator(&[&client.path("keys/old.key")], &responder));
}

#[test]
fn redis_benchmark_reports_no_error_during_a_change_of_keys() {
    let redis = crate::support::redis::Redis::start();
    let (server, client) = (Site::new(), Site::new());
    server.add_key("keys/old.key");
    std::fs::copy(server.path("keys/old.key"), client.path("the.key")).expect("the file can be copied");
    let mut command = spipe();
    command.args(["-d", "-s", "127.0.0.1:0", "-t", &redis.address(), "-k"]).arg(server.path("keys"));
    let responder = Process::start(&mut command);
    responder.await_line(&["listening"]);
    let initiator = initiator(&[&client.path("the.key")], &responder);
    // -k 0: a new connection for each request.
    let port = address(&initiator).port().to_string();
    let mut benchmark = std::process::Command::new("redis-benchmark");
    benchmark.args(["-h", "127.0.0.1", "-p", &port, "-k", "0", "-c", "4", "-n", "4000", "-t", "set"]);
    let mut benchmark = Process::start(&mut benchmark);
    responder.await_lines(50, " closed ");
    let new = server.add_key("keys/new.key");
    responder.reload_successfully();
    std::fs::copy(server.path("keys/new.key"), client.path("the.key")).expect("the file can be copied");
    initiator.reload_successfully();
    responder.await_line(&[" closed ", &new]);
    benchmark.wait();
    let report = benchmark.log();
    assert!(report.contains("4000 requests completed") && !report.contains("rror"), "{report}");
    assert!(redis.ask(&["INFO", "commandstats"]).contains("cmdstat_set:calls=4000,"));
    std::fs::remove_file(server.path("keys/old.key")).expect("the file can be removed");
    responder.reload_successfully();
    assert!(crate::support::redis::cli(&port, &["PING"]).succeeded().text().contains("PONG"));
}

#[test]
fn keys_of_a_configuration_are_read_again_too() {
    let site = Site::new();
    site.add_key("keys/a.key");
    let process = site.serve(site.decrypt("door", echo()).replace("test.key", "keys"));
    let with = |name: &str| {
        End::initiator(
            &Key::of(&std::fs::read(site.path(name)).expect("the file can be read")),
            site.socket("door"),
        )
        .start()
    };
    let a = with("keys/a.key");
    site.add_key("keys/b.key");
    process.reload_successfully();
    assert_echoes(&mut with("keys/b.key").connect(), "the new one");
    std::fs::remove_file(site.path("keys/a.key")).expect("the file can be removed");
    process.reload_successfully();
    a.assert_resets_a_client();
}
