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
use crate::support::redis::{Killed, Redis, cli};
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

// Replication between two hosts.

const REPLICATION: &str = "replication.md";
const PASSWORD: &str = "sesame";

/// A host of the guide: its Redis, and its ends of both pipes.
struct Host {
    redis: Redis,
    pipes: Process,
    rest: Place,
}

/// A host of which every process was killed.
struct LostHost {
    redis: Killed,
    rest: Place,
}

/// What a host has besides processes.
struct Place {
    site: Site,
    ports: Ports,
}

/// Where the pipes of a host listen.
struct Ports {
    /// The pipe to its Redis, for the other host.
    sealed: Port,
    /// The pipe to the Redis of the other host.
    other: Port,
}

impl Ports {
    fn reserve() -> Self {
        Self { sealed: Port::reserve(), other: Port::reserve() }
    }
}

/// The hosts a and b, of which b replicates from a.
fn two_hosts() -> (Host, Host) {
    let (a, b, key) = (Ports::reserve(), Ports::reserve(), Key::new());
    let a = Host::start("toml a", &key, a, (&b, "\"[192.0.2.20]:6390\""));
    let b = Host::start("toml b", &key, b, (&a.rest.ports, "\"[192.0.2.10]:6390\""));
    b.replicate_the_other();
    await_step(&a, &b);
    (a, b)
}

impl Host {
    /// The host whose configuration is marked with `mark`. Of the other one, it gets the ports and the address in the guide.
    fn start(mark: &str, key: &Key, ports: Ports, (other, address_of_other): (&Ports, &str)) -> Self {
        let announced = format!("replica-announce-port {}", other.other.number());
        let conf = block(REPLICATION, "conf both", &[("replica-announce-port 6380", announced)]);
        let options = conf.lines().filter_map(|line| line.split_once(' '));
        let options: Vec<_> =
            options.flat_map(|(name, value)| [format!("--{name}"), value.to_owned()]).collect();
        let redis = Redis::start_with(&options.iter().map(String::as_str).collect::<Vec<_>>());
        let site = site(key);
        let pipes = site.serve(block(
            REPLICATION,
            mark,
            &[
                ("\"[0.0.0.0]:6390\"", quoted(ports.sealed.address())),
                ("\"[127.0.0.1]:6379\"", quoted(redis.address())),
                ("\"[127.0.0.1]:6380\"", quoted(ports.other.address())),
                (address_of_other, quoted(other.sealed.address())),
                (KEYS, site.name("keys")),
            ],
        ));
        Self { redis, pipes, rest: Place { site, ports } }
    }

    /// The port at which the Redis of the other host is found here.
    fn port_of_the_other(&self) -> String {
        self.rest.ports.other.number().to_string()
    }

    /// Asks its Redis.
    #[track_caller]
    fn ask(&self, args: &[&str]) -> String {
        let login = ["--no-auth-warning", "-a", PASSWORD];
        cli(&self.redis.port(), &[&login, args].concat()).succeeded().text()
    }

    fn set(&self, key: &str) {
        assert_eq!(self.ask(&["SET", key, "value"]), "OK");
    }

    /// What its Redis says about replication by the name `name`.
    fn replication(&self, name: &str) -> String {
        let info = self.ask(&["INFO", "replication"]);
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_default().to_owned()
    }

    fn await_loss_of_primary(&self) {
        poll_until("the replica misses its primary", || {
            (self.replication("master_link_status") == "down").then_some(())
        });
    }

    /// Makes it the replica of the other host for good.
    fn replicate_the_other(&self) {
        assert_eq!(self.ask(&["REPLICAOF", "127.0.0.1", &self.port_of_the_other()]), "OK");
        self.remember();
    }

    /// Makes its Redis the same after a restart.
    fn remember(&self) {
        assert_eq!(self.ask(&["CONFIG", "REWRITE"]), "OK");
    }

    /// Kills everything on it with SIGKILL.
    fn lose(self) -> LostHost {
        let Self { redis, pipes, rest } = self;
        pipes.kill();
        LostHost { redis: redis.kill(), rest }
    }
}

impl LostHost {
    /// Makes it the replica of the other host when it comes back.
    fn demote(&self) {
        self.redis.configure(&format!("replicaof 127.0.0.1 {}", self.rest.ports.other.number()));
    }

    /// Starts everything again.
    fn come_back(self) -> Host {
        let Self { redis, rest } = self;
        let pipes = Process::start(&mut rest.site.command());
        pipes.await_line(&["listening"]);
        Host { redis: redis.start(), pipes, rest }
    }
}

/// Waits until `replica` has all that `primary` has.
fn await_step(primary: &Host, replica: &Host) {
    poll_until("the replica is in step", || {
        // Each of them knows first that it is.
        let is_linked = replica.replication("master_link_status") == "up"
            && primary.replication("slave0").contains("state=online");
        let offsets = [(primary, "master_repl_offset"), (replica, "slave_repl_offset")];
        let [primary, replica] = offsets.map(|(host, name)| host.replication(name));
        (is_linked && primary == replica).then_some(())
    });
}

/// Waits until both have all that was written: these keys and no others.
#[track_caller]
fn assert_have(primary: &Host, replica: &Host, keys: &[&str]) {
    await_step(primary, replica);
    for host in [primary, replica] {
        let mut found: Vec<_> = host.ask(&["KEYS", "*"]).lines().map(ToOwned::to_owned).collect();
        found.sort();
        assert_eq!(found, keys);
    }
}

/// Makes `replica` the primary and `primary` the replica, for good.
fn switch(primary: &Host, replica: &Host) {
    assert_eq!(primary.ask(&["FAILOVER"]), "OK");
    poll_until("the roles are switched", || (replica.replication("role") == "master").then_some(()));
    primary.remember();
    replica.remember();
}

/// Loses the host of the replica, and has it back. `keys` were written before.
fn lose_the_replica(primary: &Host, replica: Host, keys: &[&str], next: &str) -> Host {
    let replica = replica.lose();
    primary.set(next);
    let replica = replica.come_back();
    assert_have(primary, &replica, &[keys, &[next]].concat());
    replica
}

#[test]
fn replication_goes_on_after_the_primarys_host_was_lost_and_is_back() {
    let (a, b) = two_hosts();
    a.set("1");
    await_step(&a, &b);
    let a = a.lose();
    b.pipes.await_line(&["target down", "pipe=\"redis-of-a\""]);
    b.await_loss_of_primary();
    assert_eq!(b.ask(&["GET", "1"]), "value", "the replica still answers");
    let a = a.come_back();
    a.set("2");
    assert_have(&a, &b, &["1", "2"]);
}

#[test]
fn replication_goes_on_after_the_replicas_host_was_lost_and_is_back() {
    let (a, b) = two_hosts();
    a.set("1");
    lose_the_replica(&a, b, &["1"], "2");
}

#[test]
fn with_the_roles_switched_either_host_may_be_lost_and_come_back() {
    let (a, b) = two_hosts();
    a.set("1");
    switch(&a, &b);
    b.set("2");
    assert_have(&b, &a, &["1", "2"]);
    let b = b.lose();
    a.await_loss_of_primary();
    let b = b.come_back();
    b.set("3");
    assert_have(&b, &a, &["1", "2", "3"]);
    lose_the_replica(&b, a, &["1", "2", "3"], "4");
}

#[test]
fn a_host_that_was_lost_comes_back_as_the_replica_of_the_one_that_took_over() {
    let (a, b) = two_hosts();
    a.set("1");
    await_step(&a, &b);
    let a = a.lose();
    assert_eq!(b.ask(&["REPLICAOF", "NO", "ONE"]), "OK");
    b.remember();
    b.set("2");
    a.demote();
    let a = a.come_back();
    assert_have(&b, &a, &["1", "2"]);
    assert_eq!(a.replication("role"), "slave");
    // And the roles as they were.
    switch(&b, &a);
    a.set("3");
    assert_have(&a, &b, &["1", "2", "3"]);
}

#[test]
fn the_tunnel_that_is_not_in_use_is_known_to_be_down_and_up_again() {
    let (a, b) = two_hosts();
    let b = b.lose();
    a.pipes.await_line(&["target down", "pipe=\"redis-of-b\"", "Connection refused"]);
    let _b = b.come_back();
    a.pipes.await_line(&["target up again", "pipe=\"redis-of-b\""]);
}

#[test]
fn a_primary_sees_its_replica_at_127_0_0_1_and_the_port_that_it_announces() {
    let (a, _b) = two_hosts();
    let replica = a.replication("slave0");
    let expected = format!("ip=127.0.0.1,port={},state=online,", a.port_of_the_other());
    assert!(replica.starts_with(&expected), "{replica}");
}
