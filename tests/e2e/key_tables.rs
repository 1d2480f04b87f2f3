//! `[[key]]`: who holds a key, and what its holders may do.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::thread;

use jiff::{SignedDuration, Timestamp};

use crate::secrets::descriptors;
use crate::support::pipe::{End, Key, field};
use crate::support::poll_until;
use crate::support::process::{Process, run, spipe};
use crate::support::site::{Site, fingerprint};
use crate::support::socket::{Service, assert_echoes, assert_ends, echo, try_connect};

const ADDRESS: &str = "127.0.0.1";

/// A responder that accepts the keys `web1` and `web2` of a directory.
struct Door {
    site: Site,
    process: Process,
    address: SocketAddr,
}

impl Door {
    /// A responder to `target`, with `tables` and further options of its pipe.
    fn to(target: SocketAddr, options: &str, tables: &str) -> Self {
        let site = Site::new();
        for name in ["web1", "web2"] {
            site.add_key(&format!("keys/{name}.key"));
        }
        site.configure(pipe(target, options) + tables);
        let process = Process::start(&mut site.command());
        let line = process.await_line(&["listening"]);
        let port = field(&line, "source").rsplit_once(':').expect("a port").1;
        let address = format!("{ADDRESS}:{port}").parse().expect("an address");
        Self { site, process, address }
    }

    fn with(tables: &str) -> Self {
        Self::to(echo(), "", tables)
    }

    /// An initiator with a copy of the key `name`.
    fn holder(&self, name: &str) -> End {
        self.holder_with(name, &[])
    }

    fn holder_with(&self, name: &str, args: &[&str]) -> End {
        End::initiator(&self.key(name), self.address).args(args).start()
    }

    fn key(&self, name: &str) -> Key {
        let path = self.site.path(&format!("keys/{name}.key"));
        Key::of(&std::fs::read(path).expect("the file can be read"))
    }

    fn fingerprint(&self, name: &str) -> String {
        fingerprint(&self.site.path(&format!("keys/{name}.key")))
    }

    /// Reloads with other tables.
    fn change(&self, target: SocketAddr, tables: &str) {
        self.site.configure(pipe(target, "") + tables);
        self.process.reload_successfully();
    }
}

fn pipe(target: SocketAddr, options: &str) -> String {
    format!(
        "[[pipe]]\nmode = \"decrypt\"\nsource = \"{ADDRESS}:0\"\ntarget = \"{target}\"\nkey = \"keys\"\n{options}\n"
    )
}

/// A `[[key]]` for `web1` that says `rules`.
fn web1(rules: &str) -> String {
    format!("[[key]]\nfile = \"keys/web1.key\"\nname = \"first web server\"\n{rules}\n")
}

/// So long from now, as a file has it.
fn in_seconds(seconds: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(seconds)
}

fn expires_in(seconds: i64) -> String {
    web1(&format!("expires = {}", in_seconds(seconds)))
}

/// Whether a client of `end` gets an answer; such as once a place has become free.
fn is_served(end: &End) -> bool {
    let Ok(mut client) = try_connect(end.address()) else { return false };
    client.write_all(b"x").is_ok() && client.read_exact(&mut [0]).is_ok()
}

// ── how many connections ──

#[test]
fn a_key_has_as_many_connections_as_it_may_and_other_keys_are_served() {
    let door = Door::with(&web1("max-connections = 2"));
    let (one, other) = (door.holder("web1"), door.holder("web2"));
    let mut running = [(); 2].map(|()| one.connect());
    for client in &mut running {
        assert_echoes(client, "hello");
    }
    one.assert_resets_a_client();
    let line = door.process.await_line(&["refused", "its key has as many connections as it may"]);
    assert_eq!(field(&line, "key"), door.fingerprint("web1"));
    assert_eq!((field(&line, "key_file"), field(&line, "key_name")), ("keys/web1.key", "first web server"));
    one.await_line(&["the other end has as many connections as it may", "the limits of this key"]);
    for _ in 0..5 {
        assert_echoes(&mut other.connect(), "another key");
    }
    for client in &mut running {
        assert_echoes(client, "undisturbed");
    }
}

#[test]
fn a_connection_that_ends_makes_room_for_another_of_its_key() {
    let door = Door::with(&web1("max-connections = 1"));
    let holder = door.holder("web1");
    for _ in 0..3 {
        let mut client = poll_until("the key has a place again", || {
            let mut client = holder.connect_unless_reset()?;
            client.write_all(b"x").ok()?;
            client.read_exact(&mut [0]).ok()?;
            Some(client)
        });
        assert_echoes(&mut client, "the only one");
    }
}

#[test]
fn a_holder_that_is_killed_gives_its_places_back() {
    let door = Door::with(&web1("max-connections = 1"));
    let (gone, next) = (door.holder("web1"), door.holder("web1"));
    let mut client = gone.connect();
    assert_echoes(&mut client, "the only one");
    next.assert_resets_a_client();
    gone.process.kill();
    poll_until("the key has a place again", || is_served(&next).then_some(()));
}

#[test]
fn all_holders_of_a_key_are_counted_together_in_all_pipes() {
    let door = Door::with("");
    let second = pipe(echo(), "").replace("127.0.0.1:0", "[::1]:0");
    door.site.configure(pipe(echo(), "") + &second + &web1("max-connections = 2"));
    door.process.reload_successfully();
    let line = door.process.await_line(&["listening", "source=[::1]"]);
    let here = door.holder("web1");
    let there = End::initiator(&door.key("web1"), field(&line, "source")).start();
    let mut running = [here.connect(), there.connect()];
    for client in &mut running {
        assert_echoes(client, "hello");
    }
    here.assert_resets_a_client();
    there.assert_resets_a_client();
}

#[test]
fn a_key_that_has_enough_takes_no_place_of_the_pipe() {
    let door = Door::to(echo(), "max-connections = 2\ntimeout = 600", &web1("max-connections = 1"));
    let (one, other) = (door.holder("web1"), door.holder("web2"));
    let mut first = one.connect();
    assert_echoes(&mut first, "the only one");
    for _ in 0..20 {
        one.assert_resets_a_client();
    }
    assert_echoes(&mut other.connect(), "the second place");
}

#[test]
fn of_two_hundred_clients_at_once_no_more_than_the_limit_reach_the_target() {
    let service = Service::start();
    let door = Door::to(service.address(), "max-connections = 0", &web1("max-connections = 10"));
    let holder = door.holder_with("web1", &["-n", "0"]);
    let address = holder.address();
    let clients: Vec<_> = (0..200).map(|_| thread::spawn(move || try_connect(address))).collect();
    let _clients: Vec<_> = clients.into_iter().map(|client| client.join().expect("it connects")).collect();
    let _served: Vec<_> = (0..10).map(|_| service.accept()).collect();
    // Ten lines of this kind, and the number of the rest.
    door.process.await_lines(10, "its key has as many connections as it may");
    holder.process.await_lines(190, "the other end has as many connections as it may");
    service.assert_no_connection();
}

#[test]
fn a_key_has_new_connections_at_its_rate() {
    let door = Door::with(&web1("rate = 3"));
    let (one, other) = (door.holder("web1"), door.holder("web2"));
    let served = (0..20).filter(|_| is_served(&one)).count();
    assert!((3..20).contains(&served), "{served} of 20 at once");
    door.process.await_line(&[
        "refused",
        "makes new connections faster than it may (rate)",
        "first web server",
    ]);
    assert!((0..10).all(|_| is_served(&other)), "another key has no such limit");
    poll_until("the key may make a connection again", || is_served(&one).then_some(()));
}

#[test]
fn a_client_whose_key_has_enough_at_one_responder_is_given_to_the_next() {
    let door = Door::with(&web1("max-connections = 1"));
    let key = door.key("web1");
    let next = End::responder(&key, echo()).start();
    let holder = door.holder_with("web1", &["-t", &next.address().to_string()]);
    let mut clients = [(); 3].map(|()| holder.connect());
    for client in &mut clients {
        assert_echoes(client, "hello");
    }
    // With three clients there are two more than the first one takes.
    drop(clients);
    next.process.await_lines(2, " closed ");
}

// ── from where ──

#[test]
fn a_key_is_accepted_from_its_addresses_only() {
    let door = Door::with(&web1("allow = [\"127.0.0.7\", \"10.0.0.0/8\"]"));
    let here = door.holder_with("web1", &["-b", "127.0.0.7"]);
    let elsewhere = door.holder_with("web1", &["-b", "127.0.0.8"]);
    let other = door.holder_with("web2", &["-b", "127.0.0.8"]);
    assert!(is_served(&here) && is_served(&other));
    elsewhere.assert_resets_a_client();
    let line = door.process.await_line(&["refused", "its address may not use this key (allow)"]);
    assert!(field(&line, "peer").contains("127.0.0.8"), "{line}");
    elsewhere.await_line(&["the other end does not accept this key any more, or not from this address"]);
}

#[test]
fn a_list_of_addresses_of_a_key_is_read_again_by_a_reload() {
    let door = Door::with("");
    let list = |text: &str| std::fs::write(door.site.path("keys/web1.txt"), text).expect("it can be written");
    list("10.0.0.1\n");
    door.change(echo(), &web1("allow = \"file:keys/web1.txt\""));
    let holder = door.holder("web1");
    holder.assert_resets_a_client();
    list("10.0.0.1\n127.0.0.1  # the test\n");
    door.process.reload_successfully();
    assert!(is_served(&holder));
    list("10.0.0.300\n");
    door.process.fail_to_reload(&["web1.txt:1: '10.0.0.300' is no network"]);
    assert!(is_served(&holder));
}

// ── how long ──

#[test]
fn an_expired_key_is_refused_and_the_log_names_it_and_the_date() {
    let door = Door::with(&web1("expires = 2020-02-01"));
    let line = door.process.await_line(&["the key has expired", "expires=2020-02-01T00:00:00Z"]);
    assert_eq!(
        (field(&line, "key"), field(&line, "key_name")),
        (&*door.fingerprint("web1"), "first web server")
    );
    let (expired, other) = (door.holder("web1"), door.holder("web2"));
    expired.assert_resets_a_client();
    let line = door.process.await_line(&["refused", "its key expired at 2020-02-01T00:00:00Z"]);
    assert_eq!(field(&line, "key_name"), "first web server");
    expired.await_line(&["the other end does not accept this key any more"]);
    assert!(is_served(&other));
}

#[test]
fn nothing_is_dialed_for_an_expired_key() {
    let service = Service::start();
    let door = Door::to(service.address(), "", &web1("expires = 2020-02-01"));
    door.holder("web1").assert_resets_a_client();
    service.assert_no_connection();
}

#[test]
fn a_stranger_gets_no_byte_whether_or_not_a_key_has_expired() {
    let door = Door::with(&web1("expires = 2020-02-01"));
    let stranger = End::initiator(&Key::new(), door.address).start();
    stranger.assert_resets_a_client();
    stranger.await_line(&["failed", "0 of 1168 bytes of the other end's handshake came"]);
    let line = door.process.await_line(&["refused", "does not open with this key"]);
    assert!(!line.contains("key_file"), "{line}");
}

#[test]
fn a_key_that_expires_within_a_week_is_warned_of() {
    let week = 7 * 24 * 3_600;
    let other = format!("[[key]]\nfile = \"keys/web2.key\"\nexpires = {}\n", in_seconds(week + 3_600));
    let door = Door::with(&(expires_in(week - 60) + &other));
    let line = door.process.await_line(&["WARN", "the key expires soon"]);
    assert_eq!(field(&line, "key_name"), "first web server");
    assert!(is_served(&door.holder("web1")));
    assert_eq!(door.process.log().matches("expires soon").count(), 1, "{}", door.process.log());
}

#[test]
fn a_key_that_expires_is_refused_from_then_on_and_its_connections_continue() {
    let door = Door::with(&expires_in(4));
    let holder = door.holder("web1");
    let mut running = holder.connect();
    assert_echoes(&mut running, "before");
    door.process.await_line(&["the key has expired: new connections are refused, running ones go on"]);
    assert_echoes(&mut running, "after");
    holder.assert_resets_a_client();
}

#[test]
fn the_idle_tunnel_of_a_key_that_expires_is_given_up() {
    let door = Door::with(&expires_in(4));
    let holder = door.holder("web1");
    let none = descriptors(&door.process);
    let mut client = holder.connect();
    assert_echoes(&mut client, "before");
    client.shutdown(Shutdown::Write).expect("the client is connected");
    assert_ends(&mut client);
    door.process.await_line(&["closed"]);
    poll_until("only the tunnel is left", || (descriptors(&door.process) == none + 1).then_some(()));
    door.process.await_line(&["the key has expired"]);
    poll_until("it is given up", || (descriptors(&door.process) == none).then_some(()));
    holder.assert_resets_a_client();
}

#[test]
fn the_connections_of_a_key_that_expires_end_if_that_is_asked_for() {
    let door = Door::with("");
    let holders = ["web1", "web2"].map(|name| door.holder(name));
    let mut running = [holders[0].connect(), holders[1].connect()];
    for client in &mut running {
        assert_echoes(client, "before");
    }
    // By a reload: the connections were there before.
    door.site.configure(format!("on-revoke = \"reset\"\n{}{}", pipe(echo(), ""), expires_in(4)));
    door.process.reload_successfully();
    assert_echoes(&mut running[0], "not yet");
    let [mut expired, mut other] = running;
    let line =
        door.process.await_line(&["the key has expired: new connections are refused, running ones end"]);
    assert_eq!(field(&line, "ended"), "1");
    assert_eq!(crate::support::socket::assert_reset(&mut expired), b"");
    door.process.await_line(&["closed", "its key is not accepted any more (--on-revoke reset)"]);
    holders[0].await_line(&["closed", "the other end does not accept this key any more"]);
    assert_echoes(&mut other, "undisturbed");
}

#[test]
fn a_later_date_brings_an_expired_key_back() {
    let door = Door::with(&web1("expires = 2020-02-01"));
    let holder = door.holder("web1");
    holder.assert_resets_a_client();
    door.change(echo(), &expires_in(1_000_000));
    assert!(is_served(&holder));
}

#[test]
fn an_initiator_does_not_start_with_an_expired_key() {
    let site = Site::with_key();
    let table = "[[key]]\nfile = \"test.key\"\nexpires = 2020-02-01\n";
    site.configure(site.encrypt("front", "127.0.0.1:9") + table);
    run(&mut site.command()).failed_with(
        1,
        &["pipes.toml:9: the key test.key expired at 2020-02-01T00:00:00Z; get a new one for front: encrypt "],
    );
}

#[test]
fn an_initiator_whose_key_expires_refuses_clients_and_says_why() {
    let site = Site::with_key();
    let table = format!("[[key]]\nfile = \"test.key\"\nexpires = {}\n", in_seconds(4));
    let process = site.serve(site.encrypt("front", "127.0.0.1:9") + &table);
    process.await_line(&["the key has expired"]);
    let _ended = site.connect("front").read(&mut [0]);
    process.await_line(&["denied", "the key of the pipe has expired (expires)", "pipe=\"front\""]);
}

// ── reload ──

#[test]
fn a_limit_that_a_reload_sets_counts_the_connections_that_run() {
    let door = Door::with("");
    let holder = door.holder("web1");
    let mut running = [(); 3].map(|()| holder.connect());
    for client in &mut running {
        assert_echoes(client, "before");
    }
    door.change(echo(), &web1("max-connections = 3"));
    holder.assert_resets_a_client();
    for client in &mut running {
        assert_echoes(client, "after");
    }
    door.change(echo(), &web1("max-connections = 4"));
    assert!(is_served(&holder));
}

#[test]
fn a_limit_goes_on_counting_when_pipes_change() {
    let door = Door::with(&web1("max-connections = 1"));
    let holder = door.holder("web1");
    let mut running = holder.connect();
    assert_echoes(&mut running, "before");
    for _ in 0..3 {
        // To another target each time.
        door.change(echo(), &web1("max-connections = 1"));
        holder.assert_resets_a_client();
    }
    assert_echoes(&mut running, "after");
}

#[test]
fn a_table_with_an_error_keeps_the_old_state() {
    let door = Door::with(&web1("max-connections = 1"));
    let holder = door.holder("web1");
    let mut running = holder.connect();
    assert_echoes(&mut running, "before");
    door.site.configure(pipe(echo(), "") + &web1("max-connections = 0"));
    door.process.fail_to_reload(&["pipes.toml:10: invalid value: integer `0`"]);
    holder.assert_resets_a_client();
    assert_echoes(&mut running, "after");
}

#[test]
fn a_copy_that_systemd_has_made_is_known_by_the_name_of_its_file() {
    let site = Site::new();
    // LoadCredential=keys:DIRECTORY calls web_1.key in it so.
    site.add_key("keys/keys_web_1.key");
    site.configure(pipe(echo(), "") + "[[key]]\nfile = \"keys/web_1.key\"\nname = \"first\"\nrate = 5\n");
    let check = |command: &mut std::process::Command| run(command.arg("check").arg(site.file()));
    check(spipe().env("CREDENTIALS_DIRECTORY", site.path("keys"))).succeeded();
    check(&mut spipe()).failed_with(1, &["no pipe has the key keys/web_1.key"]);
}

// ── what cannot be ──

/// Asserts that a file with `tables` behind a pipe of seven lines is refused with `parts`.
#[track_caller]
fn assert_refused(tables: &str, parts: &[&str]) {
    let site = Site::new();
    for name in ["keys/web1.key", "keys/web2.key", "other.key"] {
        site.add_key(name);
    }
    site.configure(pipe(echo(), "") + tables);
    run(spipe().arg("check").arg(site.file())).failed_with(1, parts);
}

#[test]
fn a_key_that_no_pipe_has_is_refused() {
    assert_refused(
        "[[key]]\nname = \"x\"\nfile = \"other.key\"\n",
        &["pipes.toml:9: no pipe has the key other.key; give it to a pipe, or remove this table"],
    );
    assert_refused(
        "[[key]]\nfile = \"keys/web3.key\"\n",
        &["pipes.toml:8: no pipe has the key keys/web3.key"],
    );
}

#[test]
fn a_key_that_has_two_tables_is_refused_however_its_file_is_written() {
    assert_refused(
        "[[key]]\nfile = \"keys/web1.key\"\n\n[[key]]\nfile = \"./keys/../keys/web1.key\"\n",
        &["pipes.toml:11: line 7 has a table for this key already; make one table of the two"],
    );
}

#[test]
fn two_keys_of_one_name_are_refused() {
    assert_refused(
        "[[key]]\nfile = \"keys/web1.key\"\nname = \"x\"\n[[key]]\nfile = \"keys/web2.key\"\nname = \"x\"\n",
        &["pipes.toml:12: 'x' is the name of the key in line 7, too; give each its own"],
    );
}

#[test]
fn a_table_without_a_file_or_with_an_unknown_name_is_refused() {
    assert_refused("[[key]]\nname = \"x\"\n", &["pipes.toml:7: missing field `file`"]);
    assert_refused(
        "[[key]]\nfile = \"keys/web1.key\"\nlable = 1\n",
        &["pipes.toml:9: unknown field `lable`"],
    );
}

#[test]
fn a_date_that_is_no_moment_is_refused() {
    for date in ["2027-01-31T18:00:00", "18:00:00"] {
        assert_refused(
            &web1(&format!("expires = {date}")),
            &["pipes.toml:10: '", "is no moment; write a date"],
        );
    }
    assert_refused(&web1("expires = \"2027-01-31\""), &["pipes.toml:10: invalid type: string"]);
}

#[test]
fn what_only_a_responder_can_see_to_is_refused_for_the_key_of_an_initiator() {
    for rule in ["allow = \"127.0.0.1\"", "max-connections = 1", "rate = 1"] {
        let site = Site::with_key();
        let table = format!("[[key]]\nfile = \"test.key\"\n{rule}\n");
        site.configure(site.encrypt("front", "127.0.0.1:9") + &table);
        run(spipe().arg("check").arg(site.file()))
            .failed_with(1, &["pipes.toml:9: ", "is for the end that accepts the key"]);
    }
}

#[test]
fn thousands_of_keys_each_have_a_table() {
    let site = Site::new();
    std::fs::create_dir(site.path("keys")).expect("a new directory");
    let mut tables = String::new();
    for number in 0..2_000 {
        let path = site.path(&format!("keys/{number}.key"));
        std::fs::write(&path, format!("key number {number:030} of many")).expect("the file can be written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
        let _ = write!(tables, "[[key]]\nfile = \"keys/{number}.key\"\nname = \"{number}\"\nrate = 5\n");
    }
    site.configure(pipe(echo(), "") + &tables);
    run(spipe().arg("check").arg(site.file())).succeeded();
}
