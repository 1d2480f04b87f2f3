//! A managed Redis behind a bastion (docs/guides/behind-a-bastion.md): TLS, a password, and a name that moves at a failover, all of
//! which only the bastion can reach. Clients outside speak plain Redis to a pipe.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::process::{Signal, kill_process};

use crate::support::dns::Host;
use crate::support::pipe::{End, Key};
use crate::support::poll_until;
use crate::support::process::{Process, run};
use crate::support::redis;
use crate::support::site::Site;
use crate::support::socket::{assert_reset, try_connect};
use crate::support::tls::Authority;

const PRIMARY: &str = "127.0.0.1";
const REPLICA: &str = "127.0.0.2";

/// The bastion with the service that only it can reach, and a client's host.
struct Bastion {
    host: Host,
    authority: Authority,
    primary: Process,
    _replica: Process,
    responder: Process,
    initiator: End,
    _site: Site,
}

fn redis_server(host: &Host, authority: &Authority, address: &str, args: &[&str]) -> Process {
    let certified = authority.certify("redis.test");
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", address, "--port", "0", "--tls-port", "6379", "--save", "", "--appendonly", "no"])
        .args(["--tls-cert-file", &certified.certificate_file, "--tls-key-file", &certified.key_file])
        .args([
            "--tls-ca-cert-file",
            &authority.file(),
            "--tls-auth-clients",
            "no",
            "--tls-replication",
            "yes",
        ])
        .args(["--requirepass", "secret", "--masterauth", "secret", "--repl-diskless-sync-delay", "0"])
        .args(args);
    let process = Process::start(&mut host.command(&command));
    process.await_line(&["Ready to accept connections"]);
    process
}

impl Bastion {
    fn start() -> Self {
        let (host, authority, key) = (Host::start(), Authority::new(), Key::new());
        let primary = redis_server(&host, &authority, PRIMARY, &[]);
        let replica = redis_server(&host, &authority, REPLICA, &["--replicaof", PRIMARY, "6379"]);
        host.set_names(&format!("{PRIMARY} redis.test"));
        let site = Site::new();
        let socket = site.name("bastion.sock");
        let responder = End::responder(&key, "tls://redis.test:6379").source(&socket).args(&[
            "--tls-ca",
            &authority.file(),
            "-r",
            "1",
        ]);
        let responder = Process::start(&mut host.command(&responder.command()));
        responder.await_line(&["listening"]);
        let initiator = End::initiator(&key, &socket).start();
        let bastion = Self { host, authority, primary, _replica: replica, responder, initiator, _site: site };
        poll_until("the replica is in step", || {
            bastion.ask(REPLICA, &["INFO", "replication"]).contains("master_link_status:up").then_some(())
        });
        bastion
    }

    /// What one of the two servers says to an administrator on the bastion.
    fn ask(&self, address: &str, args: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-h", address, "--tls", "--cacert", &self.authority.file(), "--no-auth-warning"]);
        command.args(["-a", "secret"]).args(args);
        run(&mut self.host.command(&command)).succeeded().text()
    }

    /// What the service does when its primary dies.
    fn fail_over(&self) {
        kill_process(self.primary.pid(), Signal::KILL).expect("it runs");
        assert_eq!(self.ask(REPLICA, &["REPLICAOF", "NO", "ONE"]), "OK");
        self.host.set_names(&format!("{REPLICA} redis.test"));
    }
}

/// Counts once, on a connection of its own, as a client without a pool does.
fn count(address: SocketAddr) -> Option<()> {
    let mut client = try_connect(address).ok()?;
    client.write_all(b"AUTH secret\r\nINCR counter\r\n").ok()?;
    let mut lines = BufReader::new(client).lines();
    let (answer, number) = (lines.next()?.ok()?, lines.next()?.ok()?);
    (answer == "+OK" && number.starts_with(':')).then_some(())
}

#[test]
fn plain_clients_outside_use_the_service() {
    let bastion = Bastion::start();
    let ask = |args: &[&str]| {
        let args = [&["-a", "secret", "--no-auth-warning"], args].concat();
        redis::cli(&bastion.initiator.port(), &args).succeeded().text()
    };
    assert_eq!(ask(&["SET", "key", "value"]), "OK");
    assert_eq!(ask(&["GET", "key"]), "value");
    assert!(ask(&["INFO", "replication"]).contains("role:master"));
}

#[test]
fn errors_under_load_last_no_longer_than_the_failover() {
    let bastion = Bastion::start();
    let address = bastion.initiator.address();
    let (stop, followed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let counted = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (stop, followed, counted) = (Arc::clone(&stop), Arc::clone(&followed), Arc::clone(&counted));
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let may_fail = !followed.load(Ordering::SeqCst);
                    match count(address) {
                        Some(()) => _ = counted.fetch_add(1, Ordering::SeqCst),
                        None => assert!(may_fail, "the service was there again"),
                    }
                }
            })
        })
        .collect();
    let await_more = |more| {
        let before = counted.load(Ordering::SeqCst);
        poll_until("clients are served", || (counted.load(Ordering::SeqCst) >= before + more).then_some(()));
    };
    await_more(50);
    let mut idle = try_connect(address).expect("the initiator listens");
    idle.write_all(b"AUTH secret\r\n").expect("the pipe accepts the bytes");
    idle.read_exact(&mut [0; 5]).expect("Redis answers");

    bastion.fail_over();
    bastion.responder.await_line(&["the name has other addresses", &format!("now=\"{REPLICA}\"")]);
    // A connection to the old address may be on its way for a moment.
    count(address).or_else(|| count(address)).expect("the service is there again");
    followed.store(true, Ordering::SeqCst);
    await_more(200);
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().expect("no client fails after the failover");
    }
    // A client that has sat on a connection to the dead server knows it.
    assert_eq!(assert_reset(&mut idle), b"");
    assert!(bastion.ask(REPLICA, &["GET", "counter"]).parse::<u64>().is_ok_and(|counter| counter > 200));
}

#[test]
fn a_demoted_server_that_lives_on_is_left_by_its_clients() {
    // The name moves although the old server answers still, as in a planned failover: --check and --on-down take clients away.
    let bastion = Bastion::start();
    let (key, site) = (Key::new(), Site::new());
    let socket = site.name("checked.sock");
    let responder = End::responder(&key, "tls://redis.test:6379").source(&socket).args(&[
        "--tls-ca",
        &bastion.authority.file(),
        "-r",
        "1",
        "--check",
        "1",
        "--rise",
        "1",
        "--fall",
        "1",
    ]);
    let responder = responder.args(&[
        "--check-send",
        r"AUTH secret\r\nINFO replication\r\n",
        "--check-expect",
        "role:master",
        "--on-down",
        "reset",
    ]);
    let responder = Process::start(&mut bastion.host.command(&responder.command()));
    responder.await_line(&["listening"]);
    let initiator = End::initiator(&key, &socket).start();
    let mut idle = initiator.connect();
    idle.write_all(b"AUTH secret\r\n").expect("the pipe accepts the bytes");
    idle.read_exact(&mut [0; 5]).expect("Redis answers");

    assert_eq!(bastion.ask(REPLICA, &["REPLICAOF", "NO", "ONE"]), "OK");
    assert_eq!(bastion.ask(PRIMARY, &["REPLICAOF", REPLICA, "6379"]), "OK");
    responder.await_line(&["target down"]);
    assert_eq!(assert_reset(&mut idle), b"");
    bastion.host.set_names(&format!("{REPLICA} redis.test"));
    responder.await_line(&["target up again"]);
    count(initiator.address()).expect("the new primary serves");
}
