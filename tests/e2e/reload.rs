//! SIGHUP: pipes come, go and change while connections run, and nothing happens by halves.

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

/// A service that says `name` to whoever connects, and then sends back what it gets.
fn greeter(name: &'static str) -> SocketAddr {
    Service::start().serve(move |mut stream| {
        let _ = stream.write_all(name.as_bytes());
        crate::support::socket::send_back(stream);
    })
}

/// Connects to the pipe `name` of `site`, and asserts that it leads to the greeter `greeting`.
#[track_caller]
fn assert_leads_to(site: &Site, name: &str, greeting: &str) -> UnixStream {
    let mut client = site.connect(name);
    assert_reads(&mut client, greeting);
    client
}

/// Asserts that nobody listens for the pipe `name`.
#[track_caller]
fn assert_gone(site: &Site, name: &str) {
    assert!(site.try_connect(name).is_err(), "somebody listens for {name}");
}

/// A process with one pipe, `a`, to an echo service.
fn one_pipe() -> (Site, Process, String) {
    let site = Site::with_key();
    let a = site.both_ends("a", echo());
    let process = site.serve(&a);
    (site, process, a)
}

#[test]
fn a_pipe_is_added_while_another_ones_connection_goes_on() {
    let (site, process, a) = one_pipe();
    let mut running = site.connect("a");
    assert_echoes(&mut running, "before");
    assert_gone(&site, "b");
    site.configure(a + &site.both_ends("b", greeter("b")));
    process.reload_successfully();
    process.await_line(&["listening", "pipe=\"b\""]);
    assert_leads_to(&site, "b", "b");
    assert_echoes(&mut running, "after");
    assert_echoes(&mut site.connect("a"), "a new one, too");
}

#[test]
fn a_pipe_is_removed_while_its_own_connection_and_another_ones_go_on() {
    let (site, process, a) = one_pipe();
    site.configure(a.clone() + &site.both_ends("b", greeter("b")));
    process.reload_successfully();
    let mut staying = site.connect("a");
    let mut orphan = assert_leads_to(&site, "b", "b");
    site.configure(a);
    process.reload_successfully();
    let source = format!("source={}", site.socket("b"));
    process.await_line(&["no longer listening", &source]);
    assert_gone(&site, "b");
    assert_echoes(&mut staying, "still there");
    assert_echoes(&mut orphan, "although its pipe is gone");
    orphan.shutdown(std::net::Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut orphan);
    let line = process.await_line(&[" closed ", "pipe=\"b\""]);
    assert_eq!(field(&line, "reason"), "finished");
}

#[test]
fn a_pipe_is_changed_while_its_own_connection_goes_on() {
    let site = Site::with_key();
    let process = site.serve(site.both_ends("a", greeter("old")));
    let mut running = assert_leads_to(&site, "a", "old");
    site.configure(site.both_ends("a", greeter("new")));
    process.reload_successfully();
    assert_echoes(&mut running, "to the old target");
    assert_leads_to(&site, "a", "new");
    assert_echoes(&mut running, "and still");
}

#[test]
fn the_socket_of_a_removed_pipe_is_removed_and_that_of_one_that_stays_is_not_touched() {
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
fn a_removed_pipe_can_come_back() {
    let (site, process, a) = one_pipe();
    let both = a.clone() + &site.both_ends("b", greeter("b"));
    for _ in 0..3 {
        site.configure(&both);
        process.reload_successfully();
        assert_leads_to(&site, "b", "b");
        site.configure(&a);
        process.reload_successfully();
        assert_gone(&site, "b");
    }
}

#[test]
fn only_new_places_are_told_in_the_log() {
    let (site, process, a) = one_pipe();
    site.configure(a + &site.decrypt("b", echo()));
    process.reload_successfully();
    let line = process.await_line(&["listening", "pipe=\"b\""]);
    assert_eq!(field(&line, "source"), site.socket("b"));
    // The two of the start, and the new one.
    assert_eq!(process.log().matches(" listening ").count(), 3, "{}", process.log());
}

#[test]
fn a_pipe_that_has_become_another_is_told_in_the_log_with_the_place_that_it_keeps() {
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
fn a_place_that_is_written_in_another_way_stays_the_same() {
    let site = Site::with_key();
    // At an address where nobody else looks for a port.
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
fn a_hundred_reloads_leave_no_descriptor_behind() {
    let site = Site::with_key();
    let a = site.both_ends("a", echo());
    let both = a.clone() + &site.both_ends("b", "127.0.0.1:9");
    site.configure(&a);
    // With one left open by each reload, they would soon run out.
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
    assert_leads_to(&site, "x", "one");
    assert_leads_to(&site, "y", "one");
    site.configure(initiators + &pipe("one", one, &["sealed-x"]) + &pipe("other", other, &["sealed-y"]));
    process.reload_successfully();
    assert_leads_to(&site, "x", "one");
    assert_leads_to(&site, "y", "other");
    assert!(!process.log().contains("no longer listening"), "{}", process.log());
}

#[test]
fn a_place_can_change_its_mode() {
    let site = Site::with_key();
    let target = echo();
    let process = site.serve(site.encrypt("front", site.socket("back")) + &site.decrypt("back", target));
    assert_echoes(&mut site.connect("front"), "one way");
    site.configure(site.encrypt("back", site.socket("front")) + &site.decrypt("front", target));
    process.reload_successfully();
    assert_echoes(&mut site.connect("back"), "the other way");
}

#[test]
fn whoever_waits_in_the_queue_is_served_by_the_new_pipe() {
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

/// Connects to `address` again and again while `step` is done again and again, each at least `times` times, and
/// asserts that each connection is answered. Gives how often `step` was done.
fn with_clients_that_always_get_an_answer(
    address: SocketAddr,
    times: usize,
    mut step: impl FnMut(usize),
) -> usize {
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
fn through_fifty_reloads_that_change_everything_but_the_place_no_client_is_refused() {
    let site = Site::with_key();
    let target = echo();
    // Of both ends: the initiator's place is a port, the responder's a file.
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
    let last = with_clients_that_always_get_an_answer(address, 50, |number| {
        site.configure(state(number));
        process.reload_successfully();
    });
    assert_echoes(&mut connect(address), "the last state");
    process.await_line(&[" closed ", &format!("\"front-{last}\"")]);
    assert!(!process.log().contains(" WARN "), "{}", process.log());
}

#[test]
fn signals_that_come_faster_than_they_are_obeyed_do_no_harm() {
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

// ── what is wrong in the new state leaves the old one as it is ──

/// Asserts that `change` makes a reload of one pipe, `a`, fail with `parts` in the log; that the pipe and its
/// connection go on; and that all is well again with what was there before. `change` gives the text of a new file.
#[track_caller]
fn assert_keeps_the_old(change: impl FnOnce(&Site, &str) -> Vec<u8>, parts: &[&str]) {
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
fn a_file_that_is_no_toml_keeps_the_old_state() {
    assert_keeps_the_old(|_, a| format!("{a}[[pipe]\n").into(), &["pipes.toml:13: "]);
}

#[test]
fn a_file_with_an_unknown_option_keeps_the_old_state() {
    assert_keeps_the_old(|_, a| format!("{a}lable = 1\n").into(), &["pipes.toml:13: unknown field `lable`"]);
}

#[test]
fn an_empty_file_keeps_the_old_state() {
    assert_keeps_the_old(|_, _| Vec::new(), &["has no pipe"]);
}

#[test]
fn a_missing_key_keeps_the_old_state() {
    assert_keeps_the_old(
        |site, a| (site.both_ends("new", echo()) + &a.replace("test.key", "missing.key")).into(),
        &["pipes.toml:18: cannot read the key", "missing.key"],
    );
}

#[test]
fn a_key_that_others_can_read_keeps_the_old_state() {
    assert_keeps_the_old(
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
fn a_new_place_in_use_keeps_the_old_state_and_its_neighbour_is_not_started() {
    let taken = Service::start();
    let source = format!("\"{}\"", taken.address());
    assert_keeps_the_old(
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
fn a_new_place_in_use_keeps_even_what_else_has_changed_from_changing() {
    let site = Site::with_key();
    let (old, new, taken) = (greeter("old"), greeter("new"), Service::start());
    let process = site.serve(site.both_ends("a", old) + &site.both_ends("removed", old));
    let source = format!("\"{}\"", site.socket("broken"));
    let broken = site.encrypt("broken", "127.0.0.1:9").replace(&source, &format!("\"{}\"", taken.address()));
    site.configure(site.both_ends("a", new) + &broken);
    process.fail_to_reload(&["cannot listen on"]);
    assert_leads_to(&site, "a", "old");
    assert_leads_to(&site, "removed", "old");
}

#[test]
fn a_file_that_is_gone_keeps_the_old_state() {
    let (site, process, _) = one_pipe();
    std::fs::remove_file(site.file()).expect("the file can be removed");
    process.fail_to_reload(&["cannot read the configuration", "No such file"]);
    assert_echoes(&mut site.connect("a"), "as before");
}

#[test]
fn sockets_that_systemd_has_not_passed_cannot_be_added() {
    assert_keeps_the_old(
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
fn connections_from_before_count_towards_an_unchanged_limit_of_an_initiator() {
    let site = Site::with_key();
    let pipe = |target| {
        site.encrypt("a", site.socket("sealed")) + "max-connections = 1\n" + &site.decrypt("sealed", target)
    };
    let process = site.serve(pipe(greeter("old")));
    let mut only = assert_leads_to(&site, "a", "old");
    process.await_line(&["as many connections as -n allows"]);
    site.configure(pipe(greeter("new")));
    process.reload_successfully();
    // The new accept loop has found no place, either.
    process.await_lines(2, "as many connections as -n allows");
    assert_echoes(&mut only, "undisturbed");
    drop(only);
    assert_leads_to(&site, "a", "new");
}

#[test]
fn connections_from_before_count_towards_an_unchanged_limit_of_a_responder() {
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
fn a_limit_of_one_pipe_is_not_inherited_by_another_place() {
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

// ── what concerns the whole process ──

#[test]
fn a_changed_drain_timeout_is_in_force_without_a_restart() {
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
fn other_changes_of_the_whole_process_are_reported_as_needing_a_restart() {
    for change in
        ["verbose = true", "log-format = \"json\"", "pid-file = \"/nowhere/pid\"", "user = \"nobody\""]
    {
        let (site, process, a) = one_pipe();
        site.configure(format!("{change}\n{a}"));
        process.reload_successfully();
        process.await_line(&[" WARN ", "takes a restart"]);
        assert!(process.log().contains(" INFO "), "the log is as it was: {}", process.log());
    }
}

#[test]
fn a_change_that_the_command_line_overrides_is_none() {
    let site = Site::with_key();
    let a = site.both_ends("a", echo());
    site.configure(&a);
    let process = Process::start(site.command().args(["--log-format", "text"]));
    process.await_line(&["listening"]);
    site.configure(format!("log-format = \"json\"\n{a}"));
    process.reload_successfully();
    // The next reload's line comes after all of the one before.
    process.reload_successfully();
    assert!(!process.log().contains("takes a restart"), "{}", process.log());
}

// ── without a file ──

#[test]
fn a_pipe_of_the_command_line_goes_on_through_a_reload() {
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
fn a_key_of_the_command_line_that_is_gone_keeps_the_old_state() {
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
fn a_key_by_a_relative_path_is_read_again() {
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
fn bytes_that_are_on_the_way_arrive_in_spite_of_reloads() {
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
            reader.read_to_end(&mut arrived).expect("an orderly end");
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
fn a_stranger_who_is_shaking_hands_is_let_go_on() {
    // A client whose handshake is under way when its pipe is replaced: it has the key, so it is served.
    let site = Site::with_key();
    let process = site.serve(site.decrypt("sealed", echo()));
    let hole = Service::start();
    let key = Key::of(&std::fs::read(site.path("test.key")).expect("the file can be read"));
    let initiator = End::initiator(&key, hole.address()).args(&["-o", "60"]).start();
    let mut client = initiator.connect();
    // The test is the wire: the first message goes on only after the reload.
    let wire: TcpStream = hole.accept();
    let far = site.connect("sealed");
    wire.set_read_timeout(Some(Duration::from_secs(60))).expect("the socket is open");
    process.reload_successfully();
    let (mut wire_out, mut far_out) =
        (wire.try_clone().expect("descriptors are left"), far.try_clone().expect("descriptors are left"));
    let (mut wire_in, mut far_in) = (wire, far);
    thread::spawn(move || std::io::copy(&mut wire_in, &mut far_out));
    thread::spawn(move || std::io::copy(&mut far_in, &mut wire_out));
    assert_echoes(&mut client, "served by what was replaced");
}

#[test]
fn a_reload_that_hangs_at_a_key_holds_up_neither_clients_nor_the_end() {
    let site = Site::with_key();
    let mut process = site.serve(site.both_ends("a", greeter("hello")));
    // A named pipe gives nothing as long as nobody writes.
    let key = site.path("test.key");
    std::fs::remove_file(&key).expect("the file can be removed");
    let (read, write) = (rustix::fs::Mode::RUSR, rustix::fs::Mode::WUSR);
    rustix::fs::mkfifoat(rustix::fs::CWD, &key, read | write).expect("the fifo can be created");
    process.signal(Signal::HUP);
    // This waits until it is opened for reading.
    let _silent = std::fs::File::options().write(true).open(&key).expect("the reload reads the key");
    assert_leads_to(&site, "a", "hello");
    process.signal(Signal::TERM);
    process.await_line(&["stopping"]);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
}

#[test]
fn what_changes_while_a_reload_reads_is_read_by_the_next_one() {
    let site = Site::with_key();
    let process = site.serve(site.encrypt("a", "127.0.0.1:9"));
    let key = site.path("test.key");
    let content = std::fs::read(&key).expect("the file can be read");
    std::fs::remove_file(&key).expect("the file can be removed");
    let (read, write) = (rustix::fs::Mode::RUSR, rustix::fs::Mode::WUSR);
    rustix::fs::mkfifoat(rustix::fs::CWD, &key, read | write).expect("the fifo can be created");
    process.signal(Signal::HUP);
    let mut slow = std::fs::File::options().write(true).open(&key).expect("the reload reads the key");
    // The file has been read by now, and only the key is waited for.
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
