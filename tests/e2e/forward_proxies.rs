//! A forward proxy that may lose any part (docs/guides/forward-proxy.md): two squids, each behind its own responder, two initiators that
//! have both as targets, and HAProxy before these. curl and apt go on while the parts are killed and restarted.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::support::pipe::{End, Key};
use crate::support::poll_until;
use crate::support::process::Process;
use crate::support::proxy::Squid;
use crate::support::redis::free_port;
use crate::support::socket::{Service, try_connect};

/// What the origin has, in a form that apt takes for a repository.
const PACKAGES: &str = "Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a <a@a.test>\nFilename: ./a.deb\nSize: 1\n\
                        SHA256: 0000000000000000000000000000000000000000000000000000000000000000\nDescription: a\n";

/// An HTTP server that proxies lead to.
fn origin() -> SocketAddr {
    Service::start().serve(|mut client| {
        let mut lines = BufReader::new(client.try_clone().expect("descriptors are left")).lines();
        while let Some(Ok(request)) = lines.next() {
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let (status, body) = match request.split(' ').nth(1) {
                Some(path) if path.ends_with("/Packages") => ("200 OK", PACKAGES),
                Some(path) if path.ends_with("/page") => ("200 OK", "page"),
                _ => ("404 Not Found", ""),
            };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            if client.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

/// A part that can be killed, and started again in the same place.
struct Part<T> {
    name: &'static str,
    start: Box<dyn Fn() -> T>,
    running: Option<T>,
}

impl<T> Part<T> {
    fn new(name: &'static str, start: impl Fn() -> T + 'static) -> Self {
        let running = Some(start());
        Self { name, start: Box::new(start), running }
    }
}

/// All parts, from the client to the squids.
struct Chain {
    squids: [Part<Squid>; 2],
    responders: [Part<End>; 2],
    initiators: [Part<End>; 2],
    _haproxy: Process,
    proxy: SocketAddr,
    _directory: TempDir,
}

impl Chain {
    fn start() -> Self {
        let key = Arc::new(Key::new());
        let ports: [u16; 6] = std::array::from_fn(|_| free_port());
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let squid = |name, port| Part::new(name, move || Squid::start_on(port, "http_access allow all"));
        let squids = [squid("squid 1", ports[0]), squid("squid 2", ports[1])];
        let responder = |name, port, target| {
            let key = Arc::clone(&key);
            Part::new(name, move || End::responder(&key, target).source(at(port)).start())
        };
        let responders = [
            responder("responder 1", ports[2], at(ports[0])),
            responder("responder 2", ports[3], at(ports[1])),
        ];
        let targets = [at(ports[2]).to_string(), at(ports[3]).to_string()];
        let initiator = |name, port| {
            let (key, [first, second]) = (Arc::clone(&key), targets.clone());
            Part::new(name, move || {
                let options = ["-t", &second, "--balance", "round-robin", "--check", "1"];
                End::initiator(&key, &first).source(at(port)).args(&options).start()
            })
        };
        let initiators = [initiator("initiator 1", ports[4]), initiator("initiator 2", ports[5])];
        let (haproxy, proxy, directory) = start_haproxy([at(ports[4]), at(ports[5])]);
        Self { squids, responders, initiators, _haproxy: haproxy, proxy, _directory: directory }
    }
}

/// HAProxy with a TCP check of both initiators.
fn start_haproxy(initiators: [SocketAddr; 2]) -> (Process, SocketAddr, TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (file, proxy) =
        (directory.path().join("haproxy.cfg"), SocketAddr::from(([127, 0, 0, 1], free_port())));
    let [first, second] = initiators;
    let configuration = format!(
        "defaults\n  mode tcp\n  balance roundrobin\n  retries 3\n  option redispatch 1\n  timeout connect 5s\n  \
         timeout client 60s\n  timeout server 60s\nlisten proxy\n  bind {proxy}\n  \
         server first {first} check inter 200ms\n  server second {second} check inter 200ms\n"
    );
    fs::write(&file, configuration).expect("the file can be written");
    let mut command = Command::new("/usr/sbin/haproxy");
    command.arg("-db").arg("-f").arg(&file);
    let process = Process::start(&mut command);
    poll_until("HAProxy listens", || TcpStream::connect(proxy).ok());
    (process, proxy, directory)
}

/// Clients that make one request after the other, and remember which failed.
struct Clients {
    stop: Arc<AtomicBool>,
    served: Arc<[AtomicU64; 3]>,
    failures: Arc<Mutex<Vec<Failure>>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Failure {
    started: Instant,
    what: String,
}

/// Runs `command`; says what it said if it fails.
fn attempt(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().expect("it is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // apt warns of what it could not get, and is content.
    if output.status.success() && !said.contains("Failed to fetch") { Ok(()) } else { Err(said) }
}

impl Clients {
    fn start(proxy: SocketAddr) -> Self {
        let origin = origin();
        let clients = Self {
            stop: Arc::default(),
            served: Arc::default(),
            failures: Arc::default(),
            threads: Vec::new(),
        };
        let curl = move |args: &[&str]| {
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--fail", "--max-time", "30", "--output", "/dev/null"]);
            command.args(["--proxy", &format!("http://{proxy}")]).args(args);
            attempt(&mut command)
        };
        clients
            // A page, and a tunnel as for https.
            .and(0, move || curl(&[&format!("http://{origin}/page")]))
            .and(1, move || curl(&["--proxytunnel", &format!("http://{origin}/page")]))
            .and(2, {
                let directory = tempfile::tempdir().expect("a temporary directory");
                let list = directory.path().join("sources.list");
                fs::create_dir_all(directory.path().join("lists/partial")).expect("directories");
                fs::write(&list, format!("deb [trusted=yes] http://{origin}/ ./\n")).expect("a file");
                move || {
                    let path = directory.path().display();
                    let mut command = Command::new("apt-get");
                    command.args(["--quiet", "update", "-o", "Dir::Etc::sourceparts=-", "-o"]);
                    command.arg(format!("Dir::Etc::sourcelist={}", list.display()));
                    command.args(["-o", &format!("Dir::State::lists={path}/lists"), "-o"]);
                    command.arg(format!("Dir::Cache={path}"));
                    command.args(["-o", "Acquire::Retries=0", "-o", "APT::Sandbox::User=root", "-o"]);
                    command.arg(format!("Acquire::http::Proxy=http://{proxy}"));
                    attempt(&mut command)
                }
            })
    }

    /// One more client, of this kind.
    fn and(mut self, kind: usize, request: impl Fn() -> Result<(), String> + Send + 'static) -> Self {
        let (stop, served, failures) =
            (Arc::clone(&self.stop), Arc::clone(&self.served), Arc::clone(&self.failures));
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let started = Instant::now();
                match request() {
                    Ok(()) => _ = served[kind].fetch_add(1, Ordering::SeqCst),
                    Err(what) => failures.lock().expect("no client panics").push(Failure { started, what }),
                }
            }
        }));
        self
    }

    /// Waits until clients of each kind have made some requests from now on.
    fn await_requests(&self) {
        let before = self.served.each_ref().map(|served| served.load(Ordering::SeqCst));
        poll_until("clients are served", || {
            let now = self.served.each_ref().map(|served| served.load(Ordering::SeqCst));
            now.iter().zip(before).all(|(now, before)| *now >= before + 3).then_some(())
        });
    }

    /// Asserts that what has failed was under way before `gone`, when the part `name` had died.
    #[track_caller]
    fn assert_only_those_in_flight_failed(&self, name: &str, gone: Instant) {
        for failure in self.failures.lock().expect("no client panics").drain(..) {
            assert!(failure.started <= gone, "{name}, {:?} later: {}", failure.started - gone, failure.what);
        }
    }

    /// Kills `part`, has clients go on without it, and starts it again.
    fn lose<T>(&self, part: &mut Part<T>, kill: impl FnOnce(&T)) {
        self.await_requests();
        let running = part.running.take().expect("it runs");
        kill(&running);
        let gone = Instant::now();
        drop(running);
        self.await_requests();
        self.assert_only_those_in_flight_failed(part.name, gone);
        part.running = Some((part.start)());
        self.await_requests();
        self.assert_only_those_in_flight_failed(part.name, gone);
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.threads.drain(..) {
            let _ = client.join();
        }
        if thread::panicking() {
            println!("failed since the last part was lost: {:#?}", self.failures);
        }
    }
}

/// Kills an end of a pipe, and waits until nothing listens there.
fn kill_end(end: &End) {
    kill_process(end.process.pid(), Signal::KILL).expect("it runs");
    poll_until("it is gone", || try_connect(end.address()).is_err().then_some(()));
}

#[test]
fn each_part_may_be_lost_and_no_request_fails_that_was_not_in_flight_on_it() {
    let mut chain = Chain::start();
    let clients = Clients::start(chain.proxy);
    for squid in &mut chain.squids {
        clients.lose(squid, Squid::kill);
    }
    for responder in &mut chain.responders {
        clients.lose(responder, kill_end);
    }
    for initiator in &mut chain.initiators {
        clients.lose(initiator, kill_end);
    }
}
