//! Redis, the most frequent target of spipe.

use std::process::{Command, Stdio};

use crate::support::pipe::{End, Key, Pipe};
use crate::support::poll_until;
use crate::support::process::{Process, run, run_with_input};
use crate::support::random::Random;
use crate::support::redis::{Redis, cli, command};

#[test]
fn ping_is_answered() {
    let redis = Redis::start();
    let pipe = Pipe::to(redis.address()).start();
    assert_eq!(cli(&pipe.initiator.port(), &["PING"]).succeeded().text(), "PONG");
}

#[test]
fn a_value_that_is_set_can_be_read() {
    let redis = Redis::start();
    let pipe = Pipe::to(redis.address()).start();
    assert_eq!(cli(&pipe.initiator.port(), &["SET", "greeting", "hello"]).succeeded().text(), "OK");
    assert_eq!(cli(&pipe.initiator.port(), &["GET", "greeting"]).succeeded().text(), "hello");
    assert_eq!(redis.ask(&["GET", "greeting"]), "hello");
}

#[test]
fn the_right_password_is_accepted() {
    let redis = Redis::start_with(&["--requirepass", "sesame"]);
    let pipe = Pipe::to(redis.address()).start();
    let asked = cli(&pipe.initiator.port(), &["--no-auth-warning", "-a", "sesame", "PING"]);
    assert_eq!(asked.succeeded().text(), "PONG");
}

#[test]
fn a_wrong_password_is_refused_by_redis() {
    let redis = Redis::start_with(&["--requirepass", "sesame"]);
    let pipe = Pipe::to(redis.address()).start();
    let asked = cli(&pipe.initiator.port(), &["AUTH", "wrong"]);
    assert!(asked.text().contains("WRONGPASS"), "{asked:?}");
    let asked = cli(&pipe.initiator.port(), &["PING"]);
    assert!(asked.text().contains("NOAUTH"), "{asked:?}");
}

#[test]
fn pipelined_requests_have_no_error() {
    let redis = Redis::start();
    let pipe = Pipe::to(redis.address()).start();
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.args(["-h", "127.0.0.1", "-p", &pipe.initiator.port(), "-P", "16", "-c", "20", "-n", "40000"]);
    let ended = run(benchmark.args(["-t", "set,get", "-q"])).succeeded();
    let report = ended.text();
    assert!(report.contains("SET: ") && report.contains("GET: "), "{report}");
    assert!(!format!("{report}{}", ended.stderr).contains("rror"), "{report}{}", ended.stderr);
    let stats = redis.ask(&["INFO", "commandstats"]);
    for counted in ["cmdstat_set:calls=40000,", "cmdstat_get:calls=40000,"] {
        assert!(stats.contains(counted), "{stats}");
    }
}

#[test]
fn an_idle_subscriber_receives_a_late_message() {
    let redis = Redis::start();
    let pipe = Pipe::to(redis.address()).start();
    let subscriber = Process::start(command(&pipe.initiator.port()).args(["SUBSCRIBE", "news"]));
    subscriber.await_line(&["subscribe"]);
    // The subject of this test: a period without a byte that is longer than the pipe's time limit (-o is 5 by
    // default).
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(redis.ask(&["PUBLISH", "news", "at last"]), "1");
    subscriber.await_line(&["at last"]);
}

#[test]
fn a_value_of_64_mib_comes_back_unchanged() {
    let redis = Redis::start();
    let pipe = Pipe::to(redis.address()).start();
    let value = Random::bytes(64, 64 << 20);
    let set = run_with_input(command(&pipe.initiator.port()).args(["-x", "SET", "big"]), value.clone());
    assert_eq!(set.succeeded().text(), "OK");
    let mut got = cli(&pipe.initiator.port(), &["GET", "big"]).succeeded().stdout;
    // redis-cli prints a final newline.
    assert_eq!(got.pop(), Some(b'\n'));
    assert!(got == value, "the value was altered");
}

#[test]
fn transactions_work() {
    let redis = Redis::start();
    let pipe = Pipe::to(redis.address()).start();
    let transaction = b"MULTI\nINCR visits\nINCR visits\nEXEC\n".to_vec();
    let ended = run_with_input(&mut command(&pipe.initiator.port()), transaction).succeeded();
    assert_eq!(ended.text(), "OK\nQUEUED\nQUEUED\n1\n2");
}

#[test]
fn a_plain_client_at_the_sealed_port_gets_an_error_and_does_not_reach_redis() {
    let redis = Redis::start();
    let pipe = Pipe::to(redis.address()).responder_args(&["-o", "1"]).start();
    let before = redis.connections_received();
    let asked = cli(&pipe.responder.port(), &["PING"]);
    assert!(!asked.text().contains("PONG"), "{asked:?}");
    assert!(format!("{}{}", asked.text(), asked.stderr).contains("rror"), "{asked:?}");
    pipe.responder.await_line(&["refused", "not spipe"]);
    // The question itself is one more connection.
    assert_eq!(redis.connections_received(), before + 1);
}

/// Two hosts, as in the Redis guides: each has a Redis that listens on its loopback only. Each direction has a tunnel
/// with a separate key.
struct TwoHosts {
    here: Redis,
    there: Redis,
    /// From there to Redis here.
    to_here: Pipe,
    /// From here to Redis there.
    to_there: Pipe,
}

impl TwoHosts {
    fn start() -> Self {
        let (here, there) = (Redis::start(), Redis::start());
        let to_here = Pipe::to(here.address()).label("to here").start();
        let to_there = Pipe::to(there.address()).label("to there").start();
        Self { here, there, to_here, to_there }
    }
}

/// Waits until `replica` follows its master, then writes to the master and reads from the replica.
fn assert_replicates(master: &Redis, replica: &Redis, value: &str) {
    poll_until("the replica has found its master", || {
        replica.ask(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
    });
    assert_eq!(run_commands(master, &format!("SET key \"{value}\"\nWAIT 1 30000\n")), "OK\n1");
    assert_eq!(replica.ask(&["GET", "key"]), value);
}

fn run_commands(redis: &Redis, commands: &str) -> String {
    let port = redis.address().rsplit_once(':').expect("host:port").1.to_owned();
    run_with_input(&mut command(&port), commands.as_bytes().to_vec()).succeeded().text()
}

#[test]
fn a_replica_follows_its_master_through_a_tunnel() {
    let hosts = TwoHosts::start();
    hosts.there.ask(&["REPLICAOF", "127.0.0.1", &hosts.to_here.initiator.port()]);
    assert_replicates(&hosts.here, &hosts.there, "written here");
}

#[test]
fn after_a_failover_the_opposite_tunnel_replicates() {
    let hosts = TwoHosts::start();
    hosts.there.ask(&["REPLICAOF", "127.0.0.1", &hosts.to_here.initiator.port()]);
    assert_replicates(&hosts.here, &hosts.there, "written here");

    hosts.there.ask(&["REPLICAOF", "NO", "ONE"]);
    hosts.here.ask(&["REPLICAOF", "127.0.0.1", &hosts.to_there.initiator.port()]);
    assert_replicates(&hosts.there, &hosts.here, "written there");
}

#[test]
fn the_key_of_one_tunnel_is_refused_by_the_opposite_one() {
    let hosts = TwoHosts::start();
    let before = hosts.here.connections_received();
    // The key of the opposite tunnel.
    let crossed = End::initiator(&hosts.to_there.key, hosts.to_here.responder.address()).start();
    assert!(!cli(&crossed.port(), &["PING"]).text().contains("PONG"));
    crossed.await_line(&["failed", "key or label differs"]);
    assert_eq!(hosts.here.connections_received(), before + 1);
}

#[test]
fn the_demo_shows_a_real_redis() {
    let redis = Redis::start();
    let page = run(crate::support::process::spipe().args(["demo", "--target", &redis.address()])).succeeded();
    assert!(page.text().contains("+PONG"), "{}", page.text());
}

#[test]
fn the_demo_reports_a_missing_redis() {
    let nobody = format!("127.0.0.1:{}", crate::support::redis::free_port());
    let ended = run(crate::support::process::spipe().args(["demo", "--target", &nobody]));
    ended.failed_with(1, &["the demo failed", "is it running?"]);
}

#[test]
fn a_redis_that_is_started_later_is_reached() {
    let socket = tempfile::tempdir().expect("a temporary directory");
    let path = socket.path().join("redis.sock");
    let path = path.to_str().expect("a UTF-8 path");
    let key = Key::new();
    let responder = End::responder(&key, path).start();
    let initiator = End::initiator(&key, responder.address()).start();
    assert!(!cli(&initiator.port(), &["PING"]).text().contains("PONG"));
    let mut server = Command::new("redis-server");
    server.args(["--port", "0", "--save", "", "--unixsocket", path]).current_dir(socket.path());
    let redis = Process::start_piped(server.stdout(Stdio::piped()).stdin(Stdio::null()));
    redis.await_line(&["ready to accept connections"]);
    assert_eq!(cli(&initiator.port(), &["PING"]).succeeded().text(), "PONG");
}
