//! `--hand-over`: a new process takes over from the one that serves, and no client notices.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use rustix::process::{Signal, geteuid};

use crate::support::http::Server;
use crate::support::pipe::{End, Key, field};
use crate::support::poll_until;
use crate::support::process::{Process, after, run, spipe};
use crate::support::site::Site;
use crate::support::socket::{assert_echoes, assert_ends, assert_reset, connect, echo, try_connect};

/// A site whose processes hand over to each other.
struct Relay(Site);

impl Relay {
    /// Both ends of the pipe `a` to an echo target. Clients connect to a TCP port that the system chooses.
    fn new() -> Self {
        Self::with("")
    }

    /// The same, with these lines about the process.
    fn with(lines: &str) -> Self {
        let site = Site::with_key();
        let ends = site.both_ends("a", echo());
        let source = format!("source = \"{}\"", site.socket("a"));
        let text = format!("hand-over = \"hand-over\"\n{lines}{ends}");
        site.configure(text.replace(&source, "source = \"127.0.0.1:0\""));
        Self(site)
    }

    /// Starts a process, and waits until it serves.
    fn start(&self) -> Process {
        let process = Process::start(&mut self.0.command());
        process.await_line(&["listening", "pipe=\"a\""]);
        process
    }

    /// Starts a process that takes over from `before`.
    fn follow(&self, before: &Process) -> Process {
        let process = self.start();
        process.await_line(&["took over", &format!("from={}", before.pid())]);
        before.await_line(&["handed over", &format!("to={}", process.pid())]);
        process
    }

    fn socket(&self) -> UnixStream {
        UnixStream::connect(self.0.path("hand-over")).expect("a process hands over there")
    }
}

/// Where the process accepts clients.
fn address(process: &Process) -> SocketAddr {
    let line = process.await_line(&["listening", "pipe=\"a\""]);
    let port = field(&line, "source").rsplit_once(':').expect("a port").1.to_owned();
    format!("127.0.0.1:{port}").parse().expect("an address")
}

/// Ends the connection of `client` in an orderly way.
fn finish(mut client: std::net::TcpStream) {
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut client);
}

/// Clients that do not stop: some connect anew all the time, others carry bytes over one connection.
struct Load {
    end: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    fresh: Vec<JoinHandle<()>>,
    long: Vec<JoinHandle<u64>>,
    address: SocketAddr,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (end, served) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
        let fresh = (0..4).map(|_| {
            let (end, served) = (Arc::clone(&end), Arc::clone(&served));
            thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    let mut client = try_connect(address).expect("no client is refused");
                    assert_echoes(&mut client, "a new connection");
                    finish(client);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let fresh = fresh.collect();
        Self { end, served, fresh, long: Vec::new(), address }
    }

    /// One more connection that carries bytes until the end, each of which is compared.
    fn add_long(&mut self) {
        let mut writer = connect(self.address);
        let mut reader = writer.try_clone().expect("a descriptor");
        let end = Arc::clone(&self.end);
        // Not a power of two, so that a piece that is lost or comes twice shows.
        let byte = |at: u64| u8::try_from(at % 251).expect("less than 251");
        thread::spawn(move || {
            let mut at = 0;
            while !end.load(Ordering::Relaxed) {
                let piece: Vec<_> = (at..at + 10_007).map(byte).collect();
                writer.write_all(&piece).expect("no connection is cut");
                at += 10_007;
            }
            writer.shutdown(Shutdown::Write).expect("no connection is cut");
        });
        self.long.push(thread::spawn(move || {
            let (mut at, mut piece) = (0, vec![0; 64 << 10]);
            loop {
                let count = reader.read(&mut piece).expect("no connection is cut");
                if count == 0 {
                    return at;
                }
                for &got in &piece[..count] {
                    assert_eq!(got, byte(at), "at {at}");
                    at += 1;
                }
            }
        }));
    }

    /// Waits until `count` more new connections have been served.
    fn await_served(&self, count: usize) {
        let before = self.served.load(Ordering::Relaxed);
        poll_until("clients are served", || {
            assert!(self.fresh.iter().all(|client| !client.is_finished()), "a client has failed");
            (self.served.load(Ordering::Relaxed) >= before + count).then_some(())
        });
    }

    /// Ends all clients. Gives how many new connections were served, and how many bytes the others have carried.
    fn finish(self) -> (usize, u64) {
        self.end.store(true, Ordering::Relaxed);
        for client in self.fresh {
            client.join().expect("no client has failed");
        }
        let carried = self.long.into_iter().map(|client| client.join().expect("no client has failed"));
        let carried = carried.sum();
        (self.served.load(Ordering::Relaxed), carried)
    }
}

#[test]
fn twenty_new_processes_under_load_refuse_and_cut_no_connection() {
    let relay = Relay::new();
    let mut processes = vec![relay.start()];
    let mut load = Load::start(address(&processes[0]));
    load.add_long();
    for _ in 0..20 {
        load.await_served(20);
        let next = relay.follow(processes.last().expect("there is a first one"));
        assert_eq!(address(&next), load.address);
        load.add_long();
        processes.push(next);
    }
    load.await_served(20);
    let (served, carried) = load.finish();
    println!("{served} new connections; 21 long ones carried {carried} bytes");
    let last = processes.pop().expect("there is a last one");
    for mut before in processes {
        assert_eq!(before.wait().code(), Some(0), "{}", before.log());
        before.await_line(&["INFO stopped"]);
    }
    finish(connect(address(&last)));
}

#[test]
fn connections_of_the_process_before_go_on_and_new_ones_are_the_next_ones() {
    let relay = Relay::with("drain-timeout = 0\n");
    let mut first = relay.start();
    let mut old = connect(address(&first));
    assert_echoes(&mut old, "before");
    let second = relay.start();
    second.await_line(&["took over", &format!("from={}", first.pid()), "connections=2"]);
    first.await_line(&["handed over", &format!("to={}", second.pid()), "connections=2"]);
    let mut new = connect(address(&second));
    assert_echoes(&mut new, "of the second");
    finish(new);
    second.await_line(&[" closed ", "pipe=\"a\""]);
    // --drain-timeout does not count as long as the other process serves.
    assert_echoes(&mut old, "after");
    finish(old);
    assert_eq!(first.wait().code(), Some(0));
    assert!(!first.log().contains("WARN"), "{}", first.log());
}

#[test]
fn the_file_and_the_abstract_name_of_a_source_stay_and_the_last_process_removes_the_file() {
    let site = Site::with_key();
    let name = format!("spipe-hand-over-{}", std::process::id());
    let abstract_end = site.decrypt("b", echo()).replace(&site.socket("b"), &format!("@{name}"));
    let text = site.encrypt("a", format!("@{name}")) + &abstract_end;
    let relay = Relay(site);
    relay.0.configure(format!("hand-over = \"hand-over\"\n{text}"));
    let first = relay.start();
    let second = relay.follow(&first);
    let mut first = first;
    assert_eq!(first.wait().code(), Some(0));
    let address = UnixAddr::from_abstract_name(&name).expect("a name");
    UnixStream::connect_addr(&address).expect("the name listens");
    assert_echoes(&mut relay.0.connect("a"), "through both");
    let mut second = second;
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code(), Some(0));
    for name in ["a.sock", "hand-over"] {
        assert!(!relay.0.path(name).exists(), "{name} is left behind");
    }
}

#[test]
fn sockets_of_the_status_are_handed_over_too() {
    let relay = Relay::with("status = \"127.0.0.1:0\"\ncontrol = \"/CONTROL\"\n");
    let text = std::fs::read_to_string(relay.0.file()).expect("the file can be read");
    relay.0.configure(text.replace("/CONTROL", &relay.0.name("control")));
    let mut first = relay.start();
    let status = first.await_line(&["serving the status", "127.0.0.1"]);
    let second = relay.follow(&first);
    assert_eq!(first.wait().code(), Some(0));
    second.await_line(&["serving the status", field(&status, "source")]);
    assert_eq!(Server::Unix(relay.0.path("control")).get("/livez").status, 200);
    let mut second = second;
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code(), Some(0));
    assert!(!relay.0.path("control").exists());
}

/// A process of `relay` to which systemd has passed `listener`.
fn start_with(relay: &Relay, listener: &TcpListener) -> Process {
    let text = std::fs::read_to_string(relay.0.file()).expect("the file can be read");
    relay.0.configure(text.replace("127.0.0.1:0", "systemd"));
    let mut command = after("exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1", &relay.0.command());
    let passed = listener.try_clone().expect("descriptors are not short");
    command.stdin(OwnedFd::from(passed)).stdout(Stdio::null()).stderr(Stdio::piped());
    let process = Process::start_piped(&mut command);
    process.await_line(&["listening", "pipe=\"a\""]);
    process
}

#[test]
fn sockets_that_systemd_has_passed_are_handed_over_too() {
    let relay = Relay::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut first = start_with(&relay, &listener);
    let _second = relay.follow(&first);
    assert_eq!(first.wait().code(), Some(0));
    let address = listener.local_addr().expect("the socket is bound");
    assert_echoes(&mut connect(address), "through a passed socket");
}

/// systemd does so whenever it starts a process with it, and the one before still serves.
#[test]
fn a_passed_socket_that_is_made_to_block_holds_nobody_up() {
    let relay = Relay::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("the socket is bound");
    let first = start_with(&relay, &listener);
    let mut before = connect(address);
    assert_echoes(&mut before, "before");
    listener.set_nonblocking(false).expect("it is a flag");
    // More than the threads that could wait in the kernel.
    for _ in 0..64 {
        assert_echoes(&mut connect(address), "meanwhile");
    }
    assert_echoes(&mut before, "still");
    let _second = relay.follow(&first);
}

#[test]
fn a_source_that_the_new_process_does_not_have_is_closed() {
    let relay = Relay::new();
    let with_b = std::fs::read_to_string(relay.0.file()).expect("the file can be read");
    relay.0.configure(format!("{with_b}{}", relay.0.encrypt("b", "127.0.0.1:9")));
    let first = relay.start();
    first.await_line(&["listening", "pipe=\"b\""]);
    relay.0.configure(with_b);
    let _second = relay.follow(&first);
    assert!(relay.0.try_connect("b").is_err());
    assert!(!relay.0.path("b.sock").exists());
}

#[test]
fn a_source_that_is_new_is_listened_on() {
    let relay = Relay::new();
    let first = relay.start();
    let text = std::fs::read_to_string(relay.0.file()).expect("the file can be read");
    relay.0.configure(format!("{text}{}", relay.0.both_ends("b", echo())));
    let second = relay.follow(&first);
    second.await_line(&["listening", "pipe=\"b\""]);
    assert_echoes(&mut relay.0.connect("b"), "new");
}

#[test]
fn a_socket_whose_file_somebody_has_removed_is_made_anew() {
    let relay = Relay::new();
    let first = relay.start();
    std::fs::remove_file(relay.0.socket("a-sealed")).expect("it is there");
    let second = relay.follow(&first);
    assert_echoes(&mut connect(address(&second)), "through a new file");
}

#[test]
fn a_new_process_that_fails_changes_nothing() {
    let relay = Relay::with("pid-file = \"pid\"\n");
    let first = relay.start();
    let mut client = connect(address(&first));
    assert_echoes(&mut client, "before");
    let good = std::fs::read_to_string(relay.0.file()).expect("the file can be read");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("the socket is bound");
    for (bad, reason) in [
        (format!("nonsense = 1\n{good}"), "nonsense"),
        (good.replace("test.key", "no.key"), "no.key"),
        (
            good.clone() + &relay.0.encrypt("b", "127.0.0.1:9").replace(&relay.0.socket("b"), "/no/such/b"),
            "/no/such",
        ),
        (good.replace("\"pid\"", "\"pipes.toml\""), "not a pid file"),
    ] {
        relay.0.configure(bad);
        run(&mut relay.0.command()).failed_with_last_line(1, &[reason]);
        assert_echoes(&mut client, "undisturbed");
        assert_echoes(&mut connect(address(&first)), "a new one");
        assert!(relay.0.path("a-sealed.sock").exists());
        let pid = std::fs::read_to_string(relay.0.path("pid")).expect("the file is there");
        assert_eq!(pid.trim(), first.pid().to_string());
    }
    let _ = taken;
    relay.0.configure(good);
    relay.follow(&first);
}

/// Asks for the sockets as a new process does, and reads the answer up to its last line.
fn ask(relay: &Relay) -> BufReader<UnixStream> {
    let mut stream = BufReader::new(relay.socket());
    stream.get_mut().write_all(b"spipe hand-over 1\ntake\n\n").expect("the process reads");
    assert_eq!(line(&mut stream), "done");
    stream
}

fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("the process answers");
    line.trim_end().to_owned()
}

#[test]
fn a_new_process_that_dies_before_it_is_ready_changes_nothing() {
    let relay = Relay::new();
    let first = relay.start();
    for round in 1..=3 {
        let asked = ask(&relay);
        assert_echoes(&mut connect(address(&first)), "meanwhile");
        drop(asked);
        first.await_lines(round, "has ended before it could serve: nothing has changed");
        assert_echoes(&mut connect(address(&first)), "afterwards");
    }
    relay.follow(&first);
}

#[test]
fn a_new_process_that_dies_right_behind_being_ready_changes_nothing() {
    let relay = Relay::new();
    let first = relay.start();
    first.signal(Signal::STOP);
    // It reads all of this at once.
    let mut stream = relay.socket();
    stream.write_all(b"spipe hand-over 1\ntake\n\nready\n").expect("the queue has room");
    drop(stream);
    first.signal(Signal::CONT);
    first.await_line(&["has ended before it could serve: nothing has changed"]);
    assert_echoes(&mut connect(address(&first)), "afterwards");
}

#[test]
fn a_second_new_process_is_told_to_wait_and_the_first_one_may_go_on() {
    let relay = Relay::new();
    let first = relay.start();
    let mut asked = ask(&relay);
    let us = std::process::id().to_string();
    run(&mut relay.0.command()).failed_with_last_line(
        1,
        &["--hand-over", &format!("process {us} is just taking over"), "wait until it has"],
    );
    asked.get_mut().write_all(b"ready\n").expect("the process reads");
    assert_eq!(line(&mut asked), "go 0");
    first.await_line(&["handed over", &format!("to={us}")]);
}

#[test]
fn of_many_new_processes_at_once_one_serves_in_the_end_and_no_client_is_refused() {
    let relay = Relay::new();
    let first = relay.start();
    let load = Load::start(address(&first));
    load.await_served(10);
    let mut others: Vec<_> = (0..8).map(|_| Process::start(&mut relay.0.command())).collect();
    load.await_served(50);
    // Each has served, or says why not.
    for other in &mut others {
        assert!(
            other.has_line_before_exit("listening") || other.log().contains("is just taking over"),
            "{}",
            other.log()
        );
    }
    load.await_served(50);
    let (served, _) = load.finish();
    assert!(served >= 110, "{served}");
    assert_echoes(&mut connect(address(&first)), "at the end");
    let serving = others
        .iter()
        .filter(|other| other.log().contains("took over") && !other.log().contains("handed over"));
    assert_eq!(serving.count(), 1);
}

#[test]
fn a_process_that_hangs_is_named_and_nothing_is_taken_from_it() {
    let relay = Relay::new();
    let first = relay.start();
    first.signal(Signal::STOP);
    let pid = first.pid().to_string();
    run(&mut relay.0.command()).failed_with_last_line(
        1,
        &[
            "--hand-over",
            &format!("process {pid}, which serves so far, has not answered"),
            &format!("kill -KILL {pid}"),
        ],
    );
    first.signal(Signal::CONT);
    assert_echoes(&mut connect(address(&first)), "it goes on");
    relay.follow(&first);
}

#[test]
fn a_process_that_was_killed_is_not_waited_for() {
    let relay = Relay::new();
    relay.start().kill();
    assert!(relay.0.path("hand-over").exists());
    let second = relay.start();
    assert_echoes(&mut connect(address(&second)), "served");
    assert!(!second.log().contains("took over"));
}

#[test]
fn a_stop_ends_older_processes_too_after_the_drain_timeout() {
    let relay = Relay::with("drain-timeout = 1\n");
    let mut first = relay.start();
    let mut of_first = connect(address(&first));
    assert_echoes(&mut of_first, "one");
    let mut second = relay.follow(&first);
    let mut of_second = connect(address(&second));
    assert_echoes(&mut of_second, "two");
    let mut third = relay.follow(&second);
    third.signal(Signal::TERM);
    // It has no connections of its own, and waits for the others.
    assert_eq!(third.wait().code(), Some(0));
    for (process, client) in [(&mut first, &mut of_first), (&mut second, &mut of_second)] {
        assert_eq!(process.wait().code(), Some(0));
        process.await_line(&["WARN stopped: ended connections that were not finished", "connections=2"]);
        assert_reset(client);
    }
}

#[test]
fn a_second_signal_ends_connections_of_older_processes_at_once() {
    let relay = Relay::with("drain-timeout = 3600\n");
    let mut first = relay.start();
    let mut client = connect(address(&first));
    assert_echoes(&mut client, "before");
    let mut second = relay.follow(&first);
    second.signal(Signal::TERM);
    second.await_line(&["stopping"]);
    assert_echoes(&mut client, "it may still finish");
    second.signal(Signal::INT);
    assert_reset(&mut client);
    for process in [&mut first, &mut second] {
        assert_eq!(process.wait().code(), Some(0));
    }
}

#[test]
fn an_older_process_whose_next_one_is_killed_ends_after_the_drain_timeout() {
    let relay = Relay::with("drain-timeout = 1\n");
    let mut first = relay.start();
    let mut client = connect(address(&first));
    assert_echoes(&mut client, "before");
    relay.follow(&first).kill();
    assert_reset(&mut client);
    assert_eq!(first.wait().code(), Some(0));
}

#[test]
fn an_older_process_can_be_stopped_alone() {
    let relay = Relay::with("drain-timeout = 0\n");
    let mut first = relay.start();
    let mut client = connect(address(&first));
    assert_echoes(&mut client, "before");
    let second = relay.follow(&first);
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code(), Some(0));
    assert_reset(&mut client);
    assert_echoes(&mut connect(address(&second)), "the other one serves");
}

#[test]
fn a_stop_while_a_new_process_takes_over_leaves_it_the_files() {
    let relay = Relay::new();
    let mut first = relay.start();
    let mut stream = BufReader::new(relay.socket());
    let source = relay.0.socket("a-sealed");
    write!(stream.get_mut(), "spipe hand-over 1\ntake\npipe {source}\n\n").expect("the process reads");
    assert_eq!(line(&mut stream), format!("pipe {source}"));
    assert_eq!(line(&mut stream), "done");
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code(), Some(0));
    assert!(relay.0.path("a-sealed.sock").exists());
}

#[test]
fn the_pid_file_names_the_process_that_serves_and_the_older_one_leaves_it() {
    let relay = Relay::with("pid-file = \"pid\"\n");
    let pid = || std::fs::read_to_string(relay.0.path("pid")).map(|pid| pid.trim().to_owned());
    let mut first = relay.start();
    let mut second = relay.follow(&first);
    assert_eq!(first.wait().code(), Some(0));
    assert_eq!(pid().expect("the file is there"), second.pid().to_string());
    // The lock is the new one's.
    let other = Site::with_key();
    other.configure(format!("pid-file = \"{}\"\n{}", relay.0.name("pid"), other.encrypt("b", "127.0.0.1:9")));
    run(&mut other.command()).failed_with_last_line(1, &["pid", "belongs to a running process"]);
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code(), Some(0));
    assert!(pid().is_err(), "it is removed");
}

/// A process in the background, which does not outlive the test.
struct Killed(i32);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(process) = rustix::process::Pid::from_raw(self.0) {
            let _ = rustix::process::kill_process(process, Signal::KILL);
        }
    }
}

#[test]
fn a_process_in_the_background_is_taken_over_from() {
    let relay = Relay::with("pid-file = \"pid\"\ndaemon = true\n");
    let pid = || -> Option<i32> { std::fs::read_to_string(relay.0.path("pid")).ok()?.trim().parse().ok() };
    let runs = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    run(&mut relay.0.command()).succeeded();
    let first = pid().expect("the file is there");
    let _first = Killed(first);
    run(&mut relay.0.command()).succeeded();
    let second = pid().expect("the file is there");
    let _second = Killed(second);
    assert_ne!(first, second);
    poll_until("the first one ends", || (!runs(first)).then_some(()));
    assert!(runs(second));
    let second = rustix::process::Pid::from_raw(second).expect("a process");
    rustix::process::kill_process(second, Signal::TERM).expect("it runs");
    poll_until("the second one ends", || (!runs(second.as_raw_pid())).then_some(()));
    assert!(pid().is_none());
}

#[test]
fn the_path_has_no_rights_for_others_and_another_program_there_is_left_alone() {
    let relay = Relay::new();
    let first = relay.start();
    let mode = std::fs::metadata(relay.0.path("hand-over")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(first);
    std::fs::remove_file(relay.0.path("hand-over")).expect("it is there");
    std::fs::write(relay.0.path("hand-over"), "precious").expect("it can be written");
    run(&mut relay.0.command()).failed_with_last_line(1, &["a file that is not a socket has this name"]);
    std::fs::remove_file(relay.0.path("hand-over")).expect("it is there");
    let other = UnixListener::bind(relay.0.path("hand-over")).expect("the name is free");
    let answering = thread::spawn(move || {
        let (mut stream, _) = other.accept().expect("a client");
        stream.write_all(b"220 mail\r\n").expect("the client is there");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    run(&mut relay.0.command()).failed_with_last_line(1, &["says something else than this version of spipe"]);
    answering.join().expect("it has answered");
    assert!(relay.0.path("hand-over").exists());
}

#[test]
fn another_user_is_denied() {
    // Only root can become another user; for others there is none to try.
    if !geteuid().is_root() {
        return;
    }
    let relay = Relay::new();
    let first = relay.start();
    let open = |name: &str, mode| {
        std::fs::set_permissions(relay.0.path(name), std::fs::Permissions::from_mode(mode))
            .expect("it is ours");
    };
    open("hand-over", 0o666);
    open("", 0o777);
    let other = Site::with_key();
    std::fs::set_permissions(other.path(""), std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--clear-groups"]).arg(spipe().get_program());
    command.args(["-e", "-s", "127.0.0.1:0", "-t", "127.0.0.1:9", "--insecure-key-permissions", "-k"]);
    std::fs::set_permissions(other.path("test.key"), std::fs::Permissions::from_mode(0o644))
        .expect("it is ours");
    command.arg(other.path("test.key")).arg("--hand-over").arg(relay.0.path("hand-over"));
    run(&mut command).failed_with_last_line(1, &["belongs to another user", "or as root"]);
    first.await_line(&["WARN", "a process of another user was not handed over to", "uid=65534"]);
    assert_echoes(&mut connect(address(&first)), "it goes on");
}

#[test]
fn when_keys_were_last_used_is_known_of_both_processes() {
    let relay = Relay::with("state-directory = \"state\"\n");
    std::fs::create_dir(relay.0.path("state")).expect("the name is free");
    let mut first = relay.start();
    let client = connect(address(&first));
    let mut second = relay.follow(&first);
    let mut client = client;
    assert_echoes(&mut client, "of the first");
    finish(client);
    assert_eq!(first.wait().code(), Some(0));
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code(), Some(0));
    let said = run(spipe()
        .arg("fingerprint")
        .arg(relay.0.path("test.key"))
        .arg("--state-directory")
        .arg(relay.0.path("state")));
    assert!(said.succeeded().text().contains("last used 2"));
}

#[test]
fn a_key_that_is_taken_away_ends_its_connections_in_older_processes_too() {
    let relay = Relay::with("on-revoke = \"reset\"\n");
    let first = relay.start();
    let mut of_first = connect(address(&first));
    assert_echoes(&mut of_first, "one");
    let second = relay.follow(&first);
    let mut of_second = connect(address(&second));
    assert_echoes(&mut of_second, "two");
    let third = relay.follow(&second);
    assert_echoes(&mut of_first, "with the same key");
    relay.0.add_key("other.key");
    let text = std::fs::read_to_string(relay.0.file()).expect("the file can be read");
    relay.0.configure(text.replace("test.key", "other.key"));
    third.reload_successfully();
    for (process, client) in [(&first, &mut of_first), (&second, &mut of_second)] {
        process.await_line(&["ending running connections: their keys are not accepted any more", "ended=2"]);
        assert_reset(client);
    }
}

#[test]
fn a_key_that_the_new_process_does_not_have_ends_its_connections() {
    let relay = Relay::with("on-revoke = \"reset\"\n");
    let mut first = relay.start();
    let mut client = connect(address(&first));
    assert_echoes(&mut client, "before");
    relay.0.add_key("other.key");
    let text = std::fs::read_to_string(relay.0.file()).expect("the file can be read");
    relay.0.configure(text.replace("test.key", "other.key"));
    let _second = relay.follow(&first);
    assert_reset(&mut client);
    assert_eq!(first.wait().code(), Some(0));
}

#[test]
fn the_service_manager_hears_of_the_new_process_only() {
    let manager = crate::support::manager::Manager::start();
    let relay = Relay::new();
    let start = || Process::start(relay.0.command().env("NOTIFY_SOCKET", manager.address()));
    let mut first = start();
    manager.await_line("READY=1");
    let mut client = connect(address(&first));
    assert_echoes(&mut client, "before");
    let _second = start();
    manager.await_line("READY=1");
    first.await_line(&["handed over"]);
    finish(client);
    assert_eq!(first.wait().code(), Some(0));
    let said = manager.remaining_lines();
    assert!(!said.iter().any(|line| line.contains("STOPPING") || line.contains("stopping")), "{said:?}");
}

#[test]
fn a_pipe_of_the_command_line_is_handed_over_too() {
    let (key, site) = (Key::new(), Site::new());
    let path = site.name("hand-over");
    let responder = End::responder(&key, echo()).args(&["--hand-over", &path]).start();
    let initiator = End::initiator(&key, responder.address()).start();
    let mut client = initiator.connect();
    assert_echoes(&mut client, "before");
    let next = End::responder(&key, echo()).args(&["--hand-over", &path]).start();
    assert_eq!(next.address(), responder.address());
    assert_echoes(&mut client, "after");
    let mut responder = responder;
    responder.process.signal(Signal::TERM);
    finish(client);
    assert_eq!(responder.process.wait().code(), Some(0));
    assert_echoes(&mut initiator.connect(), "a new one");
}

#[test]
fn a_process_that_has_left_root_is_taken_over_from_by_one_that_is_about_to() {
    // Only root can become another user; for others there is none to try.
    if !geteuid().is_root() {
        return;
    }
    let (key, site) = (Key::new(), Site::new());
    std::fs::set_permissions(site.path(""), std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    let path = site.name("hand-over");
    let start = || End::responder(&key, echo()).args(&["-u", "nobody", "--hand-over", &path]).start();
    let mut first = start();
    let initiator = End::initiator(&key, first.address()).start();
    let mut client = initiator.connect();
    assert_echoes(&mut client, "before");
    let mut before = first.address();
    for _ in 0..2 {
        let next = start();
        first.await_line(&["handed over"]);
        assert_eq!(next.address(), before);
        before = next.address();
        assert_echoes(&mut initiator.connect(), "a new one");
        finish(client);
        assert_eq!(first.process.wait().code(), Some(0), "{}", first.process.log());
        client = initiator.connect();
        assert_echoes(&mut client, "again");
        first = next;
    }
}

#[test]
fn a_single_connection_has_nothing_to_hand_over() {
    let key = Key::new();
    run(spipe().args(["-t", "127.0.0.1:9", "--hand-over", "x", "-k"]).arg(key.path()))
        .failed_with(2, &["--hand-over is for a pipe that listens"]);
}
