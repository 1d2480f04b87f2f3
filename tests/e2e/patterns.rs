//! Patterns that users bring, as the guides show them: the configuration here is that of the guides, with other addresses.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use crate::support::pipe::{End, Key};
use crate::support::poll_until;
use crate::support::process::Process;
use crate::support::redis::{Redis, cli};
use crate::support::site::Site;
use crate::support::socket::{Port, try_connect};

/// The block of `docs/guides/GUIDE` that is marked with `mark`, with other addresses.
#[track_caller]
fn block(guide: &str, mark: &str, replacements: &[(&str, String)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guides").join(guide);
    let text = std::fs::read_to_string(path).expect("the guide is in the repository");
    let block = text.split_once(&format!("```{mark}\n")).and_then(|(_, rest)| rest.split_once("```"));
    let mut block = block.unwrap_or_else(|| panic!("no block that is marked with {mark}")).0.to_owned();
    for (shown, here) in replacements {
        assert!(block.contains(shown), "no {shown} in:\n{block}");
        block = block.replace(shown, here);
    }
    block
}

/// The directory of keys of the guides.
const KEYS: &str = "/etc/spipe/redis.keys";

/// A host that has the key.
fn site(key: &Key) -> Site {
    let site = Site::new();
    std::fs::create_dir(site.path("keys")).expect("the site is empty");
    std::fs::copy(key.path(), site.path("keys/1.key")).expect("the key can be copied");
    site
}

/// An address as a configuration has it.
fn quoted(address: impl std::fmt::Display) -> String {
    format!("\"{address}\"")
}

// Primary and reader.

/// The pipes of the guide: clients reach a primary at one address, and its replicas at another one.
struct Pipes {
    primary: SocketAddr,
    reader: SocketAddr,
    server: Process,
    _client: Process,
    _sites: [Site; 2],
    _ports: [Port; 4],
}

const READER: &str = "primary-and-reader.md";

/// A primary and two replicas that are in step, and the pipes to them.
fn primary_and_reader() -> (Redis, [Redis; 2], Pipes) {
    let primary = Redis::start();
    let replicas = [replica_of(&primary), replica_of(&primary)];
    let (key, ports) = (Key::new(), [(); 4].map(|()| Port::reserve()));
    let [primary_there, reader_there, primary_here, reader_here] = ports.each_ref().map(Port::address);
    let (there, here) = (site(&key), site(&key));
    let server = there.serve(block(
        READER,
        "toml server",
        &[
            ("\"[0.0.0.0]:6390\"", quoted(primary_there)),
            ("\"[0.0.0.0]:6391\"", quoted(reader_there)),
            ("\"[127.0.0.1]:6379\"", quoted(primary.address())),
            ("\"[127.0.0.1]:6381\"", quoted(replicas[0].address())),
            ("\"[127.0.0.1]:6382\"", quoted(replicas[1].address())),
            (KEYS, there.name("keys")),
        ],
    ));
    let client = here.serve(block(
        READER,
        "toml client",
        &[
            ("\"[127.0.0.1]:8000\"", quoted(primary_here)),
            ("\"[127.0.0.1]:8001\"", quoted(reader_here)),
            ("\"[192.0.2.10]:6390\"", quoted(primary_there)),
            ("\"[192.0.2.10]:6391\"", quoted(reader_there)),
            (KEYS, here.name("keys")),
        ],
    ));
    let pipes = Pipes {
        primary: primary_here,
        reader: reader_here,
        server,
        _client: client,
        _sites: [there, here],
        _ports: ports,
    };
    (primary, replicas, pipes)
}

/// A replica of `primary`, also after it was started again.
fn replica_of(primary: &Redis) -> Redis {
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &primary.port()]);
    replica.await_master();
    replica
}

/// A connection to Redis.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self(BufReader::new(try_connect(address)?)))
    }

    /// What Redis answers: a text without its length, or a line as it is.
    fn ask(&mut self, command: &str) -> io::Result<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let Some(length) = line.strip_prefix('$').and_then(|length| length.parse::<usize>().ok()) else {
            return Ok(line.to_owned());
        };
        let mut text = vec![0; length + "\r\n".len()];
        self.0.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
    }

    /// The port of the Redis behind the connection.
    fn port(&mut self) -> io::Result<String> {
        let info = self.ask("INFO server")?;
        let port = info.lines().find_map(|line| line.strip_prefix("tcp_port:"));
        Ok(port.expect("Redis says its port").to_owned())
    }
}

/// Asks over a new connection.
fn ask(address: SocketAddr, command: &str) -> io::Result<String> {
    Client::connect(address)?.ask(command)
}

/// Which Redis a new connection gets.
fn port_behind(address: SocketAddr) -> String {
    Client::connect(address).and_then(|mut client| client.port()).expect("a Redis answers")
}

#[test]
fn writes_go_to_the_primary_and_are_read_through_the_reader() {
    let (primary, replicas, pipes) = primary_and_reader();
    let mut writer = Client::connect(pipes.primary).expect("the pipe listens");
    assert_eq!(writer.port().expect("the primary answers"), primary.port());
    assert_eq!(writer.ask("SET key value").expect("the primary answers"), "+OK");
    assert_eq!(writer.ask("WAIT 2 30000").expect("the primary answers"), ":2");
    for _ in &replicas {
        assert_eq!(ask(pipes.reader, "GET key").expect("a replica answers"), "value");
    }
}

#[test]
fn a_write_through_the_reader_is_refused() {
    let (primary, _replicas, pipes) = primary_and_reader();
    let answer = ask(pipes.reader, "SET key value").expect("a replica answers");
    assert!(answer.starts_with("-READONLY"), "{answer}");
    assert_eq!(primary.ask(&["EXISTS", "key"]), "0");
}

#[test]
fn reads_are_spread_over_both_replicas() {
    let (_primary, replicas, pipes) = primary_and_reader();
    let ports: Vec<_> = (0..10).map(|_| port_behind(pipes.reader)).collect();
    for replica in &replicas {
        assert_eq!(ports.iter().filter(|port| **port == replica.port()).count(), 5, "{ports:?}");
    }
}

#[test]
fn when_a_replica_dies_connections_to_the_other_one_go_on() {
    let (_primary, [first, second], pipes) = primary_and_reader();
    let mut clients: Vec<_> =
        (0..4).map(|_| Client::connect(pipes.reader).expect("the pipe listens")).collect();
    let ports: Vec<_> = clients.iter_mut().map(|client| client.port().expect("a replica answers")).collect();
    let dead = first.port();
    first.kill();
    for (client, port) in clients.iter_mut().zip(ports) {
        match client.port() {
            Ok(_) => assert_eq!(port, second.port()),
            Err(_) => assert_eq!(port, dead),
        }
    }
}

#[test]
fn a_replica_that_dies_fails_no_read_that_begins_later() {
    let (_primary, [first, second], pipes) = primary_and_reader();
    let stop = Arc::new(AtomicBool::new(false));
    let before = first.connections_received();
    let readers = [(); 2].map(|()| {
        let (stop, reader) = (Arc::clone(&stop), pipes.reader);
        thread::spawn(move || {
            let mut failed = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                failed.extend(ask(reader, "GET key").err().map(|error| (began, error)));
            }
            failed
        })
    });
    poll_until("reads are under way", || (first.connections_received() > before + 100).then_some(()));
    first.kill();
    let dead = Instant::now();
    pipes.server.await_line(&["target avoided"]);
    pipes.server.await_line(&["target down"]);
    assert_eq!(port_behind(pipes.reader), second.port());
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        let failed = reader.join().expect("the reader ends");
        assert!(failed.iter().all(|(began, _)| *began < dead), "dead at {dead:?}, failed: {failed:?}");
    }
}

#[test]
fn a_replica_that_returns_is_used_once_it_is_in_step() {
    let (primary, [first, second], pipes) = primary_and_reader();
    let returning = first.port();
    let first = first.kill();
    pipes.server.await_line(&["target down"]);
    assert_eq!(port_behind(pipes.reader), second.port());
    primary.ask(&["SET", "key", "written meanwhile"]);
    let _first = first.start();
    poll_until("the replica is used", || {
        let mut client = Client::connect(pipes.reader).expect("the pipe listens");
        if client.port().expect("a replica answers") != returning {
            return None;
        }
        assert_eq!(client.ask("GET key").expect("it answers"), "written meanwhile");
        Some(())
    });
    pipes.server.await_line(&["target up again"]);
}

#[test]
fn a_replica_that_has_lost_its_primary_is_not_used() {
    let (primary, [first, second], pipes) = primary_and_reader();
    let nobody = Port::reserve();
    first.ask(&["REPLICAOF", "127.0.0.1", &nobody.number().to_string()]);
    pipes.server.await_line(&["target down", &first.port()]);
    for _ in 0..4 {
        assert_eq!(port_behind(pipes.reader), second.port());
    }
    // Back with its primary, it is used again.
    first.replicate(&primary);
    pipes.server.await_line(&["target up again", &first.port()]);
    assert_ne!(port_behind(pipes.reader), port_behind(pipes.reader));
}

#[test]
fn without_the_primary_nothing_is_read_that_may_be_old() {
    let (primary, _replicas, pipes) = primary_and_reader();
    primary.kill();
    pipes.server.await_lines(2, "target down");
    let answer = ask(pipes.reader, "PING");
    assert!(answer.is_err(), "{answer:?}");
    pipes.server.await_line(&["refused", "pipe=\"reader\"", "no target can be used"]);
}

#[test]
fn a_check_logs_in_with_a_user_that_can_do_nothing_else() {
    let primary = Redis::start();
    let user = ["--user", "check", "on", "nopass", "+info"];
    let replica = Redis::start_with(&[&["--requirepass", "sesame"], &user[..]].concat());
    let responder = End::responder(&Key::new(), replica.address())
        .args(&["--check", "1", "--rise", "1", "--fall", "1", "--check-expect", "master_link_status:up"])
        .args(&["--check-send", r"AUTH check -\r\nINFO replication\r\nQUIT\r\n"])
        .start();
    // So far it is a primary itself.
    let line = responder.await_line(&["target down", "+OK"]);
    assert!(!line.contains("NOAUTH"), "{line}");
    cli(&replica.port(), &["--no-auth-warning", "-a", "sesame", "REPLICAOF", "127.0.0.1", &primary.port()])
        .succeeded();
    responder.await_line(&["target up again"]);
    let denied = cli(&replica.port(), &["--user", "check", "--no-auth-warning", "-a", "-", "GET", "key"]);
    assert!(denied.text().contains("NOPERM"), "{denied:?}");
}

#[test]
fn of_replicas_on_hosts_of_their_own_a_client_gets_those_that_are_in_step() {
    let (primary, key) = (Redis::start(), Key::new());
    let replicas = [replica_of(&primary), replica_of(&primary)];
    let responders = replicas.each_ref().map(|replica| {
        End::responder(&key, replica.address())
            .args(&["--check", "1", "--check-send", r"INFO replication\r\nQUIT\r\n"])
            .args(&["--check-expect", "master_link_status:up"])
            .start()
    });
    let initiator = End::initiator(&key, responders[0].address())
        .args(&["-t", &responders[1].address().to_string(), "--balance", "round-robin", "--check", "1"])
        .start();
    assert_ne!(port_behind(initiator.address()), port_behind(initiator.address()));
    replicas[0].ask(&["REPLICAOF", "NO", "ONE"]);
    initiator.await_line(&["target down", "the other end cannot reach its target"]);
    for _ in 0..4 {
        assert_eq!(port_behind(initiator.address()), replicas[1].port());
    }
}
