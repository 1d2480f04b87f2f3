//! Several keys: one for each client, and from an old one to a new one without a pause.

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

/// `spipe -d` to an echo service, with a `-k` for each of `keys`.
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

/// `spipe -e` to it, with `keys`.
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

/// Asserts that `initiator`'s key is accepted.
#[track_caller]
fn assert_let_in(initiator: &Process) {
    assert_echoes(&mut connect(address(initiator)), "let in");
}

/// Whether a client of `initiator` gets an answer.
fn is_let_in(initiator: &Process) -> bool {
    let Ok(mut client) = crate::support::socket::try_connect(address(initiator)) else { return false };
    client.write_all(b"x").is_ok() && client.read_exact(&mut [0]).is_ok()
}

/// Asserts that `initiator`'s key is not.
#[track_caller]
fn assert_refused(initiator: &Process) {
    assert!(!is_let_in(initiator), "it is let in");
}

#[test]
fn a_responder_accepts_each_of_its_keys() {
    let keys = [Key::new(), Key::new(), Key::new()].map(|key| (key.path(), key));
    let paths: Vec<_> = keys.iter().map(|(path, _)| &**path).collect();
    let responder = responder(&paths);
    for key in paths {
        assert_let_in(&initiator(&[key], &responder));
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
        assert_let_in(&initiator(&[&site.path(&format!("keys/{name}"))], &responder));
    }
}

#[test]
fn a_key_that_is_none_of_the_responders_is_refused() {
    let (site, stranger) = (Site::new(), Key::new());
    site.add_key("keys/a.key");
    site.add_key("keys/b.key");
    let responder = responder(&[&site.path("keys")]);
    assert_refused(&initiator(&[&stranger.path()], &responder));
    let line = responder.await_line(&["refused", "the keys differ"]);
    assert!(!line.contains(&fingerprint(&stranger.path())), "nobody can know it: {line}");
}

#[test]
fn what_is_not_called_key_in_a_directory_is_no_key() {
    let site = Site::new();
    site.add_key("keys/a.key");
    for name in ["a.key.revoked", "key", "README"] {
        site.add_key(&format!("keys/{name}"));
    }
    let responder = responder(&[&site.path("keys")]);
    assert_let_in(&initiator(&[&site.path("keys/a.key")], &responder));
    for name in ["a.key.revoked", "key", "README"] {
        assert_refused(&initiator(&[&site.path(&format!("keys/{name}"))], &responder));
    }
}

#[test]
fn an_initiator_uses_its_first_key() {
    let (first, second) = (Key::new(), Key::new());
    let (with_first, with_second) = (responder(&[&first.path()]), responder(&[&second.path()]));
    assert_let_in(&initiator(&[&first.path(), &second.path()], &with_first));
    assert_refused(&initiator(&[&first.path(), &second.path()], &with_second));
}

#[test]
fn of_a_directory_an_initiator_uses_the_key_whose_name_comes_first() {
    let site = Site::new();
    // The order in which they are made is another one.
    for name in ["20-new.key", "10-current.key", "30-old.key"] {
        site.add_key(&format!("keys/{name}"));
    }
    let (current, new) = (site.path("keys/10-current.key"), site.path("keys/20-new.key"));
    let (with_current, with_new) = (responder(&[&current]), responder(&[&new]));
    assert_let_in(&initiator(&[&site.path("keys")], &with_current));
    assert_refused(&initiator(&[&site.path("keys")], &with_new));
}

#[test]
fn the_line_of_a_connections_end_names_its_key() {
    let (one, other) = (Key::new(), Key::new());
    let responder = responder(&[&one.path(), &other.path()]);
    for key in [&one, &other] {
        let initiator = initiator(&[&key.path()], &responder);
        assert_let_in(&initiator);
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
fn one_bad_key_of_several_keeps_the_pipe_from_starting() {
    let (good, bad) = (Key::new(), Key::of(b"short"));
    let mut command = spipe();
    command.args(["-d", "-s", "127.0.0.1:0", "-t", "127.0.0.1:9", "-k"]).arg(good.path());
    run(command.arg("-k").arg(bad.path())).failed_with(1, &["at least 32 bytes"]);
}

// ── keys come and go while the process runs ──

#[test]
fn a_key_that_is_taken_away_lets_in_its_client_no_more_and_every_other_one_still() {
    let site = Site::new();
    for name in ["alice.key", "bob.key"] {
        site.add_key(&format!("keys/{name}"));
    }
    let responder = responder(&[&site.path("keys")]);
    let alice = initiator(&[&site.path("keys/alice.key")], &responder);
    let bob = initiator(&[&site.path("keys/bob.key")], &responder);
    assert_let_in(&alice);
    assert_let_in(&bob);

    std::fs::remove_file(site.path("keys/alice.key")).expect("the file can be removed");
    // Not yet: what has been read is in force until it is read again.
    assert_let_in(&alice);
    responder.reload_successfully();
    assert_refused(&alice);
    assert_let_in(&bob);
}

#[test]
fn a_key_that_is_added_lets_in_its_client() {
    let (site, later) = (Site::new(), Key::new());
    site.add_key("keys/first.key");
    let responder = responder(&[&site.path("keys")]);
    let newcomer = initiator(&[&later.path()], &responder);
    assert_refused(&newcomer);
    std::fs::copy(later.path(), site.path("keys/later.key")).expect("the file can be copied");
    responder.reload_successfully();
    assert_let_in(&newcomer);
    assert_let_in(&initiator(&[&site.path("keys/first.key")], &responder));
}

#[test]
fn a_key_that_is_replaced_in_its_file_lets_in_no_more() {
    let (key, copy) = (Key::new(), Key::new());
    std::fs::copy(key.path(), copy.path()).expect("the file can be copied");
    let responder = responder(&[&key.path()]);
    let old = initiator(&[&copy.path()], &responder);
    assert_let_in(&old);
    std::fs::write(key.path(), [9; 32]).expect("the file can be written");
    responder.reload_successfully();
    assert_refused(&old);
    assert_let_in(&initiator(&[&key.path()], &responder));
}

#[test]
fn the_last_key_of_a_directory_cannot_be_taken_away() {
    let site = Site::new();
    site.add_key("keys/only.key");
    let responder = responder(&[&site.path("keys")]);
    let initiator = initiator(&[&site.path("keys/only.key")], &responder);
    std::fs::rename(site.path("keys/only.key"), site.path("keys/only.key.old"))
        .expect("the file can be renamed");
    responder.fail_to_reload(&["has no key"]);
    assert_let_in(&initiator);
}

#[test]
fn a_running_connection_outlives_its_key_and_the_log_says_so() {
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

    // When they have ended, there is nothing more to say. The log has their end a moment before they are counted out.
    drop(running);
    poll_until("nobody has the key any more", || {
        let said = || responder.log().matches("cannot use any more").count();
        let before = said();
        responder.reload_successfully();
        // The next reload's line comes after all of the one before.
        responder.reload_successfully();
        (said() == before).then_some(())
    });
    let log = responder.log();
    assert!(!log.lines().any(|line| line.contains("cannot use any more") && line.contains(&stays)), "{log}");
    assert_echoes(&mut other, "undisturbed");
}

/// A client that connects, asks and hangs up, again and again; it panics at the first failure.
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
            assert!(!self.thread.as_ref().expect("the process runs").is_finished(), "a request failed");
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// Asserts that no request has failed.
    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("the process runs").join().expect("no request failed");
    }
}

#[test]
fn from_an_old_key_to_a_new_one_no_request_fails() {
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

    // First the new key where it is accepted …
    let new = server.add_key("keys/new.key");
    responder.reload_successfully();
    requests.await_more(10);
    // … then where it is used …
    copy(&server.path("keys/new.key"), &client.path("keys/next"));
    std::fs::rename(client.path("keys/next"), client.path("keys/the.key")).expect("the file can be renamed");
    initiator.reload_successfully();
    requests.await_more(10);
    responder.await_line(&[" closed ", &new]);
    // … and at last the old one goes.
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
fn redis_benchmark_does_not_notice_a_change_of_keys() {
    let redis = crate::support::redis::Redis::start();
    let (server, client) = (Site::new(), Site::new());
    server.add_key("keys/old.key");
    std::fs::copy(server.path("keys/old.key"), client.path("the.key")).expect("the file can be copied");
    let mut command = spipe();
    command.args(["-d", "-s", "127.0.0.1:0", "-t", &redis.address(), "-k"]).arg(server.path("keys"));
    let responder = Process::start(&mut command);
    responder.await_line(&["listening"]);
    let initiator = initiator(&[&client.path("the.key")], &responder);
    // -k 0: a connection for each request.
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
fn keys_of_a_file_of_pipes_are_read_again_too() {
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
