//! Notifications to a service manager (sd_notify(3)), which the test plays.

use std::process::Command;

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use crate::support::manager::Manager;
use crate::support::pipe::{End, Key, stdio};
use crate::support::process::{Process, after, run};
use crate::support::site::Site;
use crate::support::socket::{Service, assert_echoes, echo};

/// A process with both ends of the pipe `a` to an echo target, which notifies a manager.
struct Managed {
    manager: Manager,
    site: Site,
    text: String,
    process: Process,
}

impl Managed {
    fn start() -> Self {
        Self::start_by(Manager::start())
    }

    fn start_by(manager: Manager) -> Self {
        let site = Site::with_key();
        let text = site.both_ends("a", echo());
        site.configure(&text);
        let process = Process::start(site.command().env("NOTIFY_SOCKET", manager.address()));
        Self { manager, site, text, process }
    }

    /// A process that has reported that it is ready.
    fn ready() -> Self {
        let managed = Self::start();
        managed.manager.await_line("READY=1");
        managed
    }
}

fn assert_has(message: &[String], line: &str) {
    assert!(message.iter().any(|other| other == line), "no {line} in {message:?}");
}

#[test]
fn the_first_message_is_ready_and_all_sockets_listen_by_then() {
    let Managed { manager, site, process: _process, .. } = Managed::start();
    let message = manager.next_message();
    assert_has(&message, "READY=1");
    assert_has(&message, "STATUS=2 pipes, no connections");
    for name in ["a", "a-sealed"] {
        site.connect(name);
    }
}

#[test]
fn a_manager_at_an_abstract_address_is_notified() {
    let Managed { manager, site, process: _process, .. } = Managed::start_by(Manager::start_abstract());
    assert_has(&manager.next_message(), "READY=1");
    assert_echoes(&mut site.connect("a"), "hello");
}

#[test]
fn a_process_that_cannot_listen_is_never_ready() {
    let (manager, taken, key) = (Manager::start(), Service::start(), Key::new());
    let end = End::initiator(&key, "127.0.0.1:9").source(taken.address());
    run(end.command().env("NOTIFY_SOCKET", manager.address())).failed_with(1, &["cannot listen on"]);
    assert_eq!(manager.remaining_lines(), [""; 0]);
}

#[test]
fn a_process_that_cannot_read_the_key_is_never_ready() {
    let (manager, key) = (Manager::start(), Key::of(b"short"));
    let end = End::initiator(&key, "127.0.0.1:9");
    run(end.command().env("NOTIFY_SOCKET", manager.address())).failed_with(1, &["at least 32 bytes"]);
    assert_eq!(manager.remaining_lines(), [""; 0]);
}

#[test]
fn the_status_counts_connections_by_key() {
    let site = Site::new();
    let (one, other) = (site.add_key("one.key"), site.add_key("other.key"));
    let manager = Manager::start();
    let door = site.decrypt("door", echo()).replace("\"test.key\"", "[\"one.key\", \"other.key\"]");
    site.configure(door);
    let _process = Process::start(site.command().env("NOTIFY_SOCKET", manager.address()));
    manager.await_line("READY=1");
    let client_of = |name: &str| {
        let key = Key::of(&std::fs::read(site.path(name)).expect("the file can be read"));
        let end = End::initiator(&key, site.socket("door")).start();
        let mut client = end.connect();
        assert_echoes(&mut client, "hello");
        (client, end)
    };
    let first = client_of("one.key");
    manager.await_line(&format!("STATUS=1 pipe, 1 connection ({one}: 1)"));
    let second = client_of("other.key");
    manager.await_line(&format!("STATUS=1 pipe, 2 connections ({one}: 1, {other}: 1)"));
    drop(first);
    manager.await_line(&format!("STATUS=1 pipe, 1 connection ({other}: 1)"));
    drop(second);
    manager.await_line("STATUS=1 pipe, no connections");
}

fn monotonic_microseconds() -> i128 {
    let now = clock_gettime(ClockId::Monotonic);
    i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000
}

#[test]
fn a_reload_is_reported_with_its_time_and_ready_follows() {
    let Managed { manager, site, text, process } = Managed::ready();
    site.configure(text + &site.encrypt("b", "127.0.0.1:9"));
    let before = monotonic_microseconds();
    process.signal(Signal::HUP);
    let message = manager.await_line("RELOADING=1");
    let stamp = message.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    let stamp: i128 = stamp.expect("a time stamp").parse().expect("a number");
    assert!((before..=monotonic_microseconds()).contains(&stamp), "{stamp} is out of range");
    let message = manager.await_line("READY=1");
    assert_has(&message, "STATUS=3 pipes, no connections");
    site.connect("b");
}

#[test]
fn a_failed_reload_is_in_the_status_until_a_reload_succeeds() {
    let Managed { manager, site, text, process } = Managed::ready();
    site.configure("");
    process.signal(Signal::HUP);
    manager.await_line("RELOADING=1");
    assert_has(
        &manager.await_line("READY=1"),
        "STATUS=the last reload failed, see the log; 2 pipes, no connections",
    );
    site.configure(text);
    process.signal(Signal::HUP);
    manager.await_line("RELOADING=1");
    assert_has(&manager.await_line("READY=1"), "STATUS=2 pipes, no connections");
}

#[test]
fn stopping_is_reported_with_the_time_it_may_take() {
    let Managed { manager, site, text, mut process } = Managed::ready();
    site.configure(format!("drain-timeout = 7\n{text}"));
    process.reload_successfully();
    process.signal(Signal::TERM);
    let message = manager.await_line("STOPPING=1");
    assert_has(&message, "STATUS=stopping; 2 pipes, no connections");
    assert_has(&message, "EXTEND_TIMEOUT_USEC=12000000");
    assert_eq!(process.wait().code(), Some(0));
    assert!(!manager.remaining_lines().contains(&"READY=1".to_owned()));
}

#[test]
fn a_reload_while_stopping_is_not_reported() {
    let Managed { manager, site, mut process, .. } = Managed::ready();
    let mut client = site.connect("a");
    assert_echoes(&mut client, "before");
    process.signal(Signal::TERM);
    manager.await_line("STOPPING=1");
    process.signal(Signal::HUP);
    assert_echoes(&mut client, "after");
    drop(client);
    process.wait();
    let rest = manager.remaining_lines();
    assert!(!rest.iter().any(|line| line == "RELOADING=1" || line == "READY=1"), "{rest:?}");
}

/// The pipe `a` with a watchdog. The shell that becomes the process expands `pid` as WATCHDOG_PID.
fn watched(manager: &Manager, microseconds: &str, pid: &str) -> (Site, Process) {
    let site = Site::with_key();
    site.configure(site.both_ends("a", echo()));
    let mut command: Command = after(&format!("WATCHDOG_PID={pid}"), &site.command());
    command.env("NOTIFY_SOCKET", manager.address()).env("WATCHDOG_USEC", microseconds);
    let process = Process::start(&mut command);
    manager.await_line("READY=1");
    (site, process)
}

#[test]
fn the_watchdog_is_notified_regularly() {
    let manager = Manager::start();
    let (site, process) = watched(&manager, "100000", "$$");
    for _ in 0..5 {
        manager.await_line("WATCHDOG=1");
    }
    // The accept loops that a reload has started send them too.
    process.reload_successfully();
    manager.await_line("READY=1");
    for _ in 0..5 {
        manager.await_line("WATCHDOG=1");
    }
    assert_echoes(&mut site.connect("a"), "alive");
}

#[test]
fn the_watchdog_is_notified_by_a_full_pipe() {
    let manager = Manager::start();
    let site = Site::with_key();
    site.configure(
        site.encrypt("a", site.socket("b")) + "max-connections = 1\n" + &site.decrypt("b", echo()),
    );
    let mut command = site.command();
    let process =
        Process::start(command.env("NOTIFY_SOCKET", manager.address()).env("WATCHDOG_USEC", "100000"));
    let _listens = manager.await_line("READY=1");
    let mut only = site.connect("a");
    assert_echoes(&mut only, "the only one");
    process.await_line(&["as many connections as -n allows"]);
    let _before = manager.remaining_lines();
    for _ in 0..5 {
        manager.await_line("WATCHDOG=1");
    }
}

#[test]
fn the_watchdog_is_notified_while_the_process_stops() {
    let manager = Manager::start();
    let (site, mut process) = watched(&manager, "100000", "$$");
    let mut client = site.connect("a");
    assert_echoes(&mut client, "before");
    process.signal(Signal::TERM);
    manager.await_line("STOPPING=1");
    for _ in 0..5 {
        manager.await_line("WATCHDOG=1");
    }
    drop(client);
    assert_eq!(process.wait().code(), Some(0));
}

/// Asserts that the process sends no watchdog message in a time in which a watched process would send hundreds.
fn assert_not_notified(microseconds: &str, pid: &str) {
    let manager = Manager::start();
    let (_site, process) = watched(&manager, microseconds, pid);
    for _ in 0..20 {
        process.reload_successfully();
    }
    assert!(!manager.remaining_lines().contains(&"WATCHDOG=1".to_owned()));
}

#[test]
fn a_watchdog_of_another_process_is_not_notified() {
    assert_not_notified("1000", "1");
}

#[test]
fn a_watchdog_without_a_timeout_is_not_notified() {
    assert_not_notified("0", "$$");
}

#[test]
fn an_address_that_cannot_be_a_managers_is_a_warning_and_the_pipe_serves() {
    let (key, target) = (Key::new(), echo());
    let responder = End::responder(&key, target).start();
    let too_long = format!("/{}", "x".repeat(200));
    for address in ["notify", "vsock:2:1234", "./notify", &too_long] {
        let end = End::initiator(&key, responder.address());
        let process = Process::start(end.command().env("NOTIFY_SOCKET", address));
        process
            .await_line(&["WARN no service manager is told, since NOTIFY_SOCKET is not an address of one"]);
        let line = process.await_line(&["listening"]);
        let source = crate::support::pipe::field(&line, "source").replace(['[', ']'], "");
        assert_echoes(&mut crate::support::socket::connect(source.parse().expect("an address")), "hello");
    }
}

#[test]
fn an_empty_manager_address_is_none() {
    let key = Key::new();
    let end = End::initiator(&key, "127.0.0.1:9");
    let process = Process::start(end.command().env("NOTIFY_SOCKET", ""));
    process.await_line(&["listening"]);
    assert!(!process.log().contains("NOTIFY_SOCKET"), "{}", process.log());
}

#[test]
fn a_missing_manager_does_not_stop_the_process() {
    let manager = Manager::start();
    manager.remove_socket();
    let Managed { site, process, .. } = Managed::start_by(manager);
    process.await_line(&["listening"]);
    process.reload_successfully();
    assert_echoes(&mut site.connect("a"), "hello");
}

#[test]
fn a_manager_that_does_not_read_does_not_delay_the_process() {
    let Managed { manager, site, process, .. } = Managed::ready();
    // More messages than a queue can hold (net.unix.max_dgram_qlen).
    let places = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").expect("Linux has this file");
    let places: usize = places.trim().parse().expect("a number");
    for _ in 0..=places / 2 {
        process.reload_successfully();
    }
    assert_echoes(&mut site.connect("a"), "hello");
    assert!(manager.remaining_lines().len() > places, "the queue was full");
}

#[test]
fn a_pipe_on_standard_input_and_output_notifies_no_manager() {
    let (manager, key) = (Manager::start(), Key::new());
    let responder = End::responder(&key, echo()).start();
    let mut command = stdio(responder.address().to_string(), &key.path());
    let ended = crate::support::process::run_with_input(
        command.env("NOTIFY_SOCKET", manager.address()),
        b"hello".to_vec(),
    );
    assert_eq!(ended.succeeded().text(), "hello");
    assert_eq!(manager.remaining_lines(), [""; 0]);
}
