//! SIGHUP: pipes are added, removed and changed while connections run. A reload takes effect completely or not at
//! all.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::pipe::{End, Key, field};
use crate::support::process::Process;
use crate::support::site::Site;
use crate::support::socket::{Service, assert_echoes, assert_ends, assert_reads, connect, echo, try_connect};

/// A target that sends `name` on each connection, and then sends back the bytes that it receives.
fn greeter(name: &'static str) -> SocketAddr {
    Service::start().serve(move |mut stream| {
        let _ = stream.write_all(name.as_bytes());
        crate::support::socket::send_back(stream);
    })
}

/// Connects to the pipe `name` of `site`, and asserts that its target is the greeter `greeting`.
#[track_caller]
fn assert_dials(site: &Site, name: &str, greeting: &str) -> UnixStream {
    let mut client = site.connect(name);
    assert_reads(&mut client, greeting);
    client
}

/// Asserts that no process listens for the pipe `name`.
#[track_caller]
fn assert_gone(site: &Site, name: &str) {
    assert!(site.try_connect(name).is_err(), "{name} listens");
}

/// A process with one pipe, `a`, to an echo target.
fn one_pipe() -> (Site, Process, String) {
    let site = Site::with_key();
    let a = site.both_ends("a", echo());
    let process = site.serve(&a);
    (site, process, a)
}

#[test]
fn a_pipe_is_added_while_another_pipes_connection_continues() {
    let (site, process, a) = one_pipe();
    let mut running = site.connect("a");
    assert_echoes(&mut running, "before");
    assert_gone(&site, "b");
    site.configure(a + &site.both_ends("b", greeter("b")));
    process.reload_successfully();
    process.await_line(&["listening", "pipe=\"b\""]);
    assert_dials(&site, "b", "b");
    assert_echoes(&mut running, "after");
    assert_echoes(&mut site.connect("a"), "a new one, too");
}

#[test]
fn a_pipe_is_removed_while_connections_of_this_and_another_pipe_continue() {
    let (site, process, a) = one_pipe();
    site.configure(a.clone() + &site.both_ends("b", greeter("b")));
    process.reload_successfully();
    let mut staying = site.connect("a");
    let mut orphan = assert_dials(&site, "b", "b");
    site.configure(a);
    process.reload_successfully();
    let source = format!("source={}", site.socket("b"));
    process.await_line(&["no longer listening", &source]);
    assert_gone(&site, "b");
    assert_echoes(&mut staying, "still there");
    assert_echoes(&mut orphan, "its pipe is removed");
    orphan.shutdown(std::net::Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut orphan);
    let line = process.await_line(&[" closed ", "pipe=\"b\""]);
    assert_eq!(field(&line, "reason"), "finished");
}

#[test]
fn a_pipe_is_changed_while_its_connection_continues() {
    let site = Site::with_key();
    let process = site.serve(site.both_ends("a", greeter("old")));
    let mut running = assert_dials(&site, "a", "old");
    site.configure(site.both_ends("a", greeter("new")));
    process.reload_successfully();
    assert_echoes(&mut running, "to the old target");
    assert_dials(&site, "a", "new");
    assert_echoes(&mut running, "and still");
}

#[test]
fn only_the_socket_of_a_removed_pipe_is_removed() {
    let (site, process, a) = one_pipe();
    let inode = |name: &str| std::fs::metadata(site.socket(name)).map(|file| file.ino()).ok();
    site.configure(a.clone() + &site.both_ends("b", echo()));
    process.reload_successfully();
    let before = inode("a");
    assert!(before.is_some() && inode("b").is_some());
    site.configure(a);
    process.reload_successfully();
    assert_eq!((inode("a"), inode("b")), (before, None));
}

#[test]
fn a_removed_pipe_can_be_added_again() {
    let (site, process, a) = one_pipe();
    let both = a.clone() + &site.both_ends("b", greeter("b"));
    for _ in 0..3 {
        site.configure(&both);
        process.reload_successfully();
        assert_dials(&site, "b", "b");
        site.configure(&a);
        process.reload_successfully();
        assert_gone(&site, "b");
    }
}

#[test]
fn only_new_sources_are_logged() {
    let (site, process, a) = one_pipe();
    site.configure(a + &site.decrypt("b", echo()));
    process.reload_successfully();
    let line = process.await_line(&["listening", "pipe=\"b\""]);
    assert_eq!(field(&line, "source"), site.socket("b"));
    // Two lines from the start, and one for the new source.
    assert_eq!(process.log().matches(" listening ").count(), 3, "{}", process.log());
}

#[test]
fn a_renamed_pipe_is_logged_with_its_unchanged_source() {
    let (site, process, a) = one_pipe();
    process.reload_successfully();
    assert_eq!(process.log().matches(" listening ").count(), 2, "nothing has changed: {}", process.log());
    site.configure(a.replace("name = \"a\"", "name = \"renamed\""));
    process.reload_successfully();
    let line = process.await_line(&["listening", "pipe=\"renamed\""]);
    assert_eq!(field(&line, "source"), site.socket("a"));
    assert_eq!(process.log().matches(" listening ").count(), 3, "{}", process.log());
}

#[test]
fn another_notation_of_the_same_source_changes_nothing() {
    let site = Site::with_key();
    // No other test uses this address.
    let port = crate::support::redis::free_port();
    let sealed = site.decrypt("sealed", echo());
    let front = |source: &str| {
        let front = site.encrypt("front", site.socket("sealed"));
        front.replace(&site.socket("front"), source) + &sealed
    };
    let process = site.serve(front(&format!("127.77.0.2:{port}")));
    site.configure(front(&format!("[127.77.0.2]:{port}")));
    process.reload_successfully();
    assert!(!process.log().contains("no longer listening"), "{}", process.log());
    assert_echoes(&mut connect(([127, 77, 0, 2], port).into()), "the same place");
}

#[test]
fn a_hundred_reloads_leak_no_descriptor() {
    let site = Site::with_key();
    let a = site.both_ends("a", echo());
    let both = a.clone() + &site.both_ends("b", "127.0.0.1:9");
    site.configure(&a);
    // If each reload left one open, the process would soon have none left.
    let command = site.command();
    let mut limited = std::process::Command::new("prlimit");
    limited.arg("--nofile=64:64").arg(command.get_program()).args(command.get_args());
    let process = Process::start(&mut limited);
    process.await_line(&["listening"]);
    for number in 0..100 {
        site.configure(if number & 1 == 0 { &both } else { &a });
        process.reload_successfully();
        assert_echoes(&mut site.connect("a"), "still");
    }
    assert!(!process.log().contains("Too many open files"), "{}", process.log());
}

#[test]
fn a_source_moves_from_one_pipe_to_another() {
    let site = Site::with_key();
    let (one, other) = (greeter("one"), greeter("other"));
    let sources = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| format!("\"{}\"", site.socket(name))).collect();
        format!("source = [{}]", names.join(", "))
    };
    let initiators = site.encrypt("x", site.socket("sealed-x")) + &site.encrypt("y", site.socket("sealed-y"));
    let pipe = |name: &str, target, places: &[&str]| {
        let plain = format!("source = \"{}\"", site.socket(name));
        site.decrypt(name, target).replace(&plain, &sources(places))
    };
    let process = site.serve(initiators.clone() + &pipe("one", one, &["sealed-x", "sealed-y"]));
    assert_dials(&site, "x", "one");
    assert_dials(&site, "y", "one");
    site.configure(initiators + &pipe("one", one, &["sealed-x"]) + &pipe("other", other, &["sealed-y"]));
    process.reload_successfully();
    assert_dials(&site, "x", "one");
    assert_dials(&site, "y", "other");
    assert!(!process.log().contains("no longer listening"), "{}", process.log());
}

#[test]
fn a_source_can_change_its_mode() {
    let site = Site::with_key();
    let target = echo();
    let process = site.serve(site.encrypt("front", site.socket("back")) + &site.decrypt("back", target));
    assert_echoes(&mut site.connect("front"), "one way");
    site.configure(site.encrypt("back", site.socket("front")) + &site.decrypt("front", target));
    process.reload_successfully();
    assert_echoes(&mut site.connect("back"), "the other way");
}

#[test]
fn a_client_in_the_queue_is_served_by_the_new_pipe() {
    let site = Site::with_key();
    let sealed = site.decrypt("sealed", echo());
    let full = site.encrypt("a", site.socket("sealed")) + "max-connections = 1\n";
    let process = site.serve(full.clone() + &sealed);
    let mut only = site.connect("a");
    assert_echoes(&mut only, "the only one");
    process.await_line(&["as many connections as -n allows"]);
    let mut waiting = site.connect("a");
    waiting.write_all(b"hello").expect("the socket buffer has room");
    site.configure(full.replace("max-connections = 1", "max-connections = 2") + &sealed);
    process.reload_successfully();
    assert_reads(&mut waiting, "hello");
    assert_echoes(&mut only, "undisturbed");
}

/// Repeatedly connects to `address` and at the same time repeatedly calls `step`, each at least `times` times.
/// Asserts that each connection is answered. Returns how often `step` was called.
fn assert_clients_are_served_during(address: SocketAddr, times: usize, mut step: impl FnMut(usize)) -> usize {
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut client = try_connect(address).unwrap_or_else(|error| panic!("{answered:?}: {error}"));
                assert_echoes(&mut client, "always");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut steps = 0;
        while (steps < times || answered.load(Ordering::Relaxed) < times) && !clients.is_finished() {
            steps += 1;
            step(steps);
        }
        stop.store(true, Ordering::Relaxed);
        clients.join().expect("every client got an answer");
        steps
    })
}

#[test]
fn no_client_is_refused_during_fifty_reloads_that_keep_only_the_source() {
    let site = Site::with_key();
    let target = echo();
    // The states of both ends: the initiator's source is a port, the responder's is a file.
    let state = |number: usize| {
        let front = site.encrypt("front", site.socket("back"));
        let front = front
            .replace(&site.socket("front"), "127.0.0.1:0")
            .replace("\"front\"", &format!("\"front-{number}\""));
        let back = site.decrypt("back", target).replace("\"back\"", &format!("\"back-{number}\""));
        let limit = format!("max-connections = {}\n", 100 + number);
        // The order changes too.
        if number.is_multiple_of(2) {
            front + &limit + &back + &limit
        } else {
            back + &limit + &front + &limit
        }
    };
    let process = site.serve(state(0));
    let line = process.await_line(&["listening", "front-0"]);
    let address = field(&line, "source").replace(['[', ']'], "").parse().expect("an IPv4 address");
    let last = assert_clients_are_served_during(address, 50, |number| {
        site.configure(state(number));
        process.reload_successfully();
    });
    assert_echoes(&mut connect(address), "the last state");
    process.await_line(&[" closed ", &format!("\"front-{last}\"")]);
    assert!(!process.log().contains(" WARN "), "{}", process.log());
}

#[test]
fn more_signals_than_reloads_do_no_harm() {
    let (site, process, _) = one_pipe();
    let mut running = site.connect("a");
    assert_echoes(&mut running, "before");
    for _ in 0..100 {
        process.signal(Signal::HUP);
    }
    process.reload_successfully();
    assert_echoes(&mut running, "after");
    assert_echoes(&mut site.connect("a"), "a new one, too");
}

// ── an error in the new state leaves the old state in force ──

/// Asserts that a reload with the configuration that `change` returns fails with `parts` in the log; that the pipe
/// `a` and its connection continue; and that a reload with the previous configuration succeeds.
#[track_caller]
fn assert_keeps_the_old_state(change: impl FnOnce(&Site, &str) -> Vec<u8>, parts: &[&str]) {
    let (site, process, a) = one_pipe();
    let mut running = site.connect("a");
    assert_echoes(&mut running, "before");
    let changed = change(&site, &a);
    site.configure(changed);
    process.fail_to_reload(parts);
    assert_echoes(&mut running, "after");
    assert_echoes(&mut site.connect("a"), "a new one, too");
    assert_gone(&site, "new");
    site.configure(&a);
    process.reload_successfully();
    assert_echoes(&mut site.connect("a"), "as before");
}

#[test]
fn a_file_that_is_not_toml_keeps_the_old_state() {
    assert_keeps_the_old_state(|_, a| format!("{a}[[pipe]\n").into(), &["pipes.toml:13: "]);
}

#[test]
fn a_file_with_an_unknown_option_keeps_the_old_state() {
    assert_keeps_the_old_state(
        |_, a| format!("{a}lable = 1\n").into(),
        &["pipes.toml:13: unknown field `lable`"],
    );
}

#[test]
fn an_empty_file_keeps_the_old_state() {
    assert_keeps_the_old_state(|_, _| Vec::new(), &["has no pipe"]);
}

#[test]
fn a_missing_key_keeps_the_old_state() {
    assert_keeps_the_old_state(
        |site, a| (site.both_ends("new", echo()) + &a.replace("test.key", "missing.key")).into(),
        &["pipes.toml:18: cannot read the key", "missing.key"],
    );
}

#[test]
fn a_key_that_others_can_read_keeps_the_old_state() {
    assert_keeps_the_old_state(
        |site, a| {
            use std::os::unix::fs::PermissionsExt;
            site.add_key("open.key");
            let open = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(site.path("open.key"), open).expect("the mode can be changed");
            a.replace("test.key", "open.key").into()
        },
        &["pipes.toml:6: ", "can be read by others (mode 0644)"],
    );
}

#[test]
fn a_new_source_in_use_keeps_the_old_state_and_starts_no_other_new_pipe() {
    let taken = Service::start();
    let source = format!("\"{}\"", taken.address());
    assert_keeps_the_old_state(
        |site, a| {
            let broken = site
                .encrypt("broken", "127.0.0.1:9")
                .replace(&format!("\"{}\"", site.socket("broken")), &source);
            (site.both_ends("new", echo()) + a + &broken).into()
        },
        &["cannot listen on", "in use", "choose another port"],
    );
}

#[test]
fn a_new_source_in_use_prevents_all_other_changes() {
    let site = Site::with_key();
    let (old, new, taken) = (greeter("old"), greeter("new"), Service::start());
    let process = site.serve(site.both_ends("a", old) + &site.both_ends("removed", old));
    let source = format!("\"{}\"", site.socket("broken"));
    let broken = site.encrypt("broken", "127.0.0.1:9").replace(&source, &format!("\"{}\"", taken.address()));
    site.configure(site.both_ends("a", new) + &broken);
    process.fail_to_reload(&["cannot listen on"]);
    assert_dials(&site, "a", "old");
    assert_dials(&site, "removed", "old");
}

#[test]
fn a_missing_configuration_keeps_the_old_state() {
    let (site, process, _) = one_pipe();
    std::fs::remove_file(site.file()).expect("the file can be removed");
    process.fail_to_reload(&["cannot read the configuration", "No such file"]);
    assert_echoes(&mut site.connect("a"), "as before");
}

#[test]
fn sockets_that_systemd_has_not_passed_cannot_be_added() {
    assert_keeps_the_old_state(
        |site, a| {
            let source = format!("\"{}\"", site.socket("passed"));
            (a.to_owned() + &site.encrypt("passed", "127.0.0.1:9").replace(&source, "\"systemd:front\""))
                .into()
        },
        &["cannot listen on systemd:front", "systemd has passed no socket"],
    );
}

// ── limits ──

#[test]
fn earlier_connections_count_towards_an_unchanged_limit_of_an_initiator() {
    let site = Site::with_key();
    let pipe = |target| {
        site.encrypt("a", site.socket("sealed")) + "max-connections = 1\n" + &site.decrypt("sealed", target)
    };
    let process = site.serve(pipe(greeter("old")));
    let mut only = assert_dials(&site, "a", "old");
    process.await_line(&["as many connections as -n allows"]);
    site.configure(pipe(greeter("new")));
    process.reload_successfully();
    // The new accept loop has found no free slot, either.
    process.await_lines(2, "as many connections as -n allows");
    assert_echoes(&mut only, "undisturbed");
    drop(only);
    assert_dials(&site, "a", "new");
}

#[test]
fn earlier_connections_count_towards_an_unchanged_limit_of_a_responder() {
    let site = Site::with_key();
    let limited = site.decrypt("sealed", echo()) + "max-connections = 1\ntimeout = 1\n";
    let process = site.serve(site.encrypt("a", site.socket("sealed")) + &limited);
    let mut only = site.connect("a");
    assert_echoes(&mut only, "the only one");
    process.reload_successfully();
    let _ = site.connect("a").read(&mut [0]);
    process.await_line(&["refused", "raise -n"]);
    assert_echoes(&mut only, "undisturbed");
}

#[test]
fn a_new_source_does_not_inherit_the_limit_of_another_pipe() {
    let site = Site::with_key();
    let sealed = site.decrypt("sealed", echo());
    let limited = |name: &str| site.encrypt(name, site.socket("sealed")) + "max-connections = 1\n";
    let process = site.serve(limited("a") + &sealed);
    let mut only = site.connect("a");
    assert_echoes(&mut only, "the only one of a");
    site.configure(limited("b") + &sealed);
    process.reload_successfully();
    assert_echoes(&mut site.connect("b"), "the first of b");
}

// ── options of the whole process ──

#[test]
fn a_changed_drain_timeout_takes_effect_without_a_restart() {
    let (site, mut process, a) = one_pipe();
    let mut client = site.connect("a");
    assert_echoes(&mut client, "before");
    site.configure(format!("drain-timeout = 0\n{a}"));
    process.reload_successfully();
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    process.await_line(&["WARN stopped", "connections=2"]);
    assert!(!process.log().contains("takes a restart"), "{}", process.log());
}

#[test]
fn other_changes_of_process_options_are_reported_as_needing_a_restart() {
    for change in
        ["verbose = true", "log-format = \"json\"", "pid-file = \"/nowhere/pid\"", "user = \"nobody\""]
    {
        let (site, process, a) = one_pipe();
        site.configure(format!("{change}\n{a}"));
        process.reload_successfully();
        process.await_line(&[" WARN ", "takes a restart"]);
        assert!(process.log().contains(" INFO "), "the log has changed: {}", process.log());
    }
}

#[test]
fn a_change_that_the_command_line_overrides_is_not_reported() {
    let site = Site::with_key();
    let a = site.both_ends("a", echo());
    site.configure(&a);
    let process = Process::start(site.command().args(["--log-format", "text"]));
    process.await_line(&["listening"]);
    site.configure(format!("log-format = \"json\"\n{a}"));
    process.reload_successfully();
    // The line of the next reload comes after all lines of the previous one.
    process.reload_successfully();
    assert!(!process.log().contains("takes a restart"), "{}", process.log());
}

// ── without a configuration file ──

#[test]
fn a_pipe_of_the_command_line_survives_a_reload() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let initiator = End::initiator(&key, responder.address()).start();
    let mut running = initiator.connect();
    assert_echoes(&mut running, "before");
    for end in [&initiator, &responder] {
        end.process.reload_successfully();
    }
    assert_echoes(&mut running, "after");
    assert_echoes(&mut initiator.connect(), "a new one, too");
}

#[test]
fn a_missing_key_of_the_command_line_keeps_the_old_state() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let initiator = End::initiator(&key, responder.address()).start();
    std::fs::remove_file(key.path()).expect("the file can be removed");
    for end in [&initiator, &responder] {
        end.process.fail_to_reload(&["cannot read the key"]);
    }
    assert_echoes(&mut initiator.connect(), "as before");
}

#[test]
fn a_key_from_standard_input_survives_a_reload() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let mut command = crate::support::process::spipe();
    command.args(["-e", "-s", "127.0.0.1:0", "-t", &responder.address().to_string(), "-k", "-"]);
    command.stdin(std::fs::File::open(key.path()).expect("the file can be read"));
    let initiator = Process::start_piped(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let line = initiator.await_line(&["listening"]);
    let address = field(&line, "source").replace(['[', ']'], "").parse().expect("an IPv4 address");
    for _ in 0..2 {
        initiator.reload_successfully();
        assert_echoes(&mut connect(address), "with the same key");
    }
}

#[test]
fn a_key_with_a_relative_path_is_read_again() {
    let site = Site::with_key();
    let mut command = crate::support::process::spipe();
    command
        .args(["-d", "-s", "127.0.0.1:0", "-t", "127.0.0.1:9", "-k", "test.key"])
        .current_dir(site.path(""));
    let process = Process::start(&mut command);
    process.await_line(&["listening"]);
    process.reload_successfully();
    std::fs::write(site.path("test.key"), "short").expect("the file can be written");
    process.fail_to_reload(&["at least 32 bytes"]);
}

#[test]
fn bytes_in_transit_arrive_despite_reloads() {
    let (site, process, _) = one_pipe();
    let bytes = crate::support::random::Random::bytes(50, 32 << 20);
    let client = site.connect("a");
    let mut writer = client.try_clone().expect("descriptors are left");
    let mut reader = client;
    let arrived = thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&bytes).expect("the pipe accepts the bytes");
            writer.shutdown(std::net::Shutdown::Write).expect("the socket is connected");
        });
        let arriving = scope.spawn(move || {
            let mut arrived = Vec::new();
            reader.read_to_end(&mut arrived).expect("a clean end");
            arrived
        });
        for _ in 0..10 {
            process.reload_successfully();
        }
        arriving.join().expect("all bytes arrive")
    });
    assert!(arrived == bytes, "the bytes were altered");
}

#[test]
fn a_handshake_in_progress_is_completed_after_a_reload() {
    // A peer whose handshake is in progress when its pipe is replaced. It has the key, so it is served.
    let site = Site::with_key();
    let process = site.serve(site.decrypt("sealed", echo()));
    let hole = Service::start();
    let key = Key::of(&std::fs::read(site.path("test.key")).expect("the file can be read"));
    let initiator = End::initiator(&key, hole.address()).args(&["-o", "60"]).start();
    let mut client = initiator.connect();
    // The test relays the wire: it passes message 1 on only after the reload.
    let wire: TcpStream = hole.accept();
    let far = site.connect("sealed");
    wire.set_read_timeout(Some(Duration::from_secs(60))).expect("the socket is open");
    process.reload_successfully();
    let (mut wire_out, mut far_out) =
        (wire.try_clone().expect("descriptors are left"), far.try_clone().expect("descriptors are left"));
    let (mut wire_in, mut far_in) = (wire, far);
    thread::spawn(move || std::io::copy(&mut wire_in, &mut far_out));
    thread::spawn(move || std::io::copy(&mut far_in, &mut wire_out));
    assert_echoes(&mut client, "served by the replaced pipe");
}

#[test]
fn a_reload_that_blocks_on_a_key_delays_neither_clients_nor_the_exit() {
    let site = Site::with_key();
    let mut process = site.serve(site.both_ends("a", greeter("hello")));
    // Reading a named pipe blocks until a process writes to it.
    let key = site.path("test.key");
    std::fs::remove_file(&key).expect("the file can be removed");
    let (read, write) = (rustix::fs::Mode::RUSR, rustix::fs::Mode::WUSR);
    rustix::fs::mkfifoat(rustix::fs::CWD, &key, read | write).expect("the fifo can be created");
    process.signal(Signal::HUP);
    // Opening waits until the reload opens it for reading.
    let _silent = std::fs::File::options().write(true).open(&key).expect("the reload reads the key");
    assert_dials(&site, "a", "hello");
    process.signal(Signal::TERM);
    process.await_line(&["stopping"]);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
}

#[test]
fn a_change_during_a_reload_is_read_by_the_next_reload() {
    let site = Site::with_key();
    let process = site.serve(site.encrypt("a", "127.0.0.1:9"));
    let key = site.path("test.key");
    let content = std::fs::read(&key).expect("the file can be read");
    std::fs::remove_file(&key).expect("the file can be removed");
    let (read, write) = (rustix::fs::Mode::RUSR, rustix::fs::Mode::WUSR);
    rustix::fs::mkfifoat(rustix::fs::CWD, &key, read | write).expect("the fifo can be created");
    process.signal(Signal::HUP);
    let mut slow = std::fs::File::options().write(true).open(&key).expect("the reload reads the key");
    // The reload has read the configuration by now, and waits for the key.
    std::fs::remove_file(&key).expect("the file can be removed");
    std::fs::write(&key, &content).expect("the file can be written");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("the mode can be changed");
    site.configure(site.encrypt("b", "127.0.0.1:9"));
    process.signal(Signal::HUP);
    slow.write_all(&content).expect("the reload reads the key");
    drop(slow);
    process.await_lines(2, "reloaded:");
    assert_gone(&site, "a");
    site.connect("b");
}
