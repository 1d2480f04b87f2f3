//! One port, many pipes: the key or the label that message 1 opens with chooses the pipe.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use crate::support::pipe::{End, Key};
use crate::support::process::{Process, run, spipe};
use crate::support::random::Random;
use crate::support::redis::free_port;
use crate::support::site::Site;
use crate::support::socket::{Service, assert_echoes, assert_reads, assert_reset, connect};

/// A service that says its name, and sends back what it receives.
fn named(name: &'static str) -> SocketAddr {
    Service::start().serve(move |mut client| {
        let _ = client.write_all(name.as_bytes());
        let _ = std::io::copy(&mut client.try_clone().expect("descriptors are left"), &mut client);
    })
}

/// A site whose pipes share one port.
struct Shared {
    site: Site,
    port: u16,
}

impl Shared {
    fn new() -> Self {
        let site = Site::new();
        for name in ["a.key", "b.key"] {
            site.add_key(name);
        }
        Self { site, port: free_port() }
    }

    /// A pipe with this name, target and these options.
    fn pipe(&self, name: &str, target: SocketAddr, options: &str) -> String {
        format!(
            "[[pipe]]\nname = '{name}'\nmode = 'decrypt'\nsource = '127.0.0.1:{}'\ntarget = '{target}'\n{options}\n",
            self.port
        )
    }

    fn serve(&self, text: &str) -> Process {
        self.site.serve(text)
    }

    fn initiator(&self, key: &str, args: &[&str]) -> End {
        let key = Key::of(&std::fs::read(self.site.path(key)).expect("the key can be read"));
        End::initiator(&key, format!("127.0.0.1:{}", self.port)).args(args).start()
    }

    fn check(&self, text: &str, parts: &[&str]) {
        self.site.configure(text);
        run(spipe().arg("check").arg(self.site.file())).failed_with(1, parts);
    }
}

/// The name of the service that a client of this initiator gets.
fn asks(initiator: &End, name: &str) -> TcpStream {
    let mut client = initiator.connect();
    assert_reads(&mut client, name);
    client
}

#[test]
fn the_key_chooses_the_pipe() {
    let shared = Shared::new();
    let _process = shared.serve(
        &(shared.pipe("one", named("one"), "key = 'a.key'")
            + &shared.pipe("two", named("two"), "key = 'b.key'")),
    );
    let (one, two) = (shared.initiator("a.key", &[]), shared.initiator("b.key", &[]));
    for _ in 0..3 {
        assert_echoes(&mut asks(&one, "one"), "hello");
        assert_echoes(&mut asks(&two, "two"), "hello");
    }
}

#[test]
fn the_label_chooses_the_pipe_of_those_with_one_key() {
    let shared = Shared::new();
    let process = shared.serve(
        &(shared.pipe("one", named("one"), "key = 'a.key'\nlabel = 'one'")
            + &shared.pipe("two", named("two"), "key = 'a.key'\nlabel = 'two'")),
    );
    let one = shared.initiator("a.key", &["--label", "one"]);
    let two = shared.initiator("a.key", &["--label", "two"]);
    drop((asks(&one, "one"), asks(&two, "two")));
    process.await_line(&["closed", "pipe=\"one\""]);
    process.await_line(&["closed", "pipe=\"two\""]);
}

#[test]
fn a_stranger_hears_nothing_and_the_log_names_all_pipes() {
    let shared = Shared::new();
    let process = shared.serve(
        &(shared.pipe("one", named("one"), "key = 'a.key'")
            + &shared.pipe("two", named("two"), "key = 'b.key'")),
    );
    let mut stranger = connect(SocketAddr::from(([127, 0, 0, 1], shared.port)));
    stranger.write_all(&Random::bytes(1, 1264)).expect("the responder accepts the bytes");
    let mut received = Vec::new();
    let _ = stranger.read_to_end(&mut received);
    assert_eq!(received, b"");
    process.await_line(&["refused", "pipe=\"one,two\"", "keys differ"]);
    // So does a key holder with a label that no pipe has.
    let other = shared.initiator("a.key", &["--label", "other"]);
    other.assert_resets_a_client();
}

#[test]
fn each_pipe_has_its_own_limit_and_a_full_one_does_not_hold_up_the_other() {
    let shared = Shared::new();
    let process = shared.serve(
        &(shared.pipe("full", named("full"), "key = 'a.key'\nmax-connections = 1\ntimeout = 1")
            + &shared.pipe("free", named("free"), "key = 'b.key'")),
    );
    let (full, free) = (shared.initiator("a.key", &[]), shared.initiator("b.key", &[]));
    let _held = asks(&full, "full");
    let waiting: Vec<_> = (0..40).map(|_| full.connect()).collect();
    for _ in 0..5 {
        drop(asks(&free, "free"));
    }
    process.await_line(&["refused", "pipe=\"full\"", "raise -n"]);
    for mut client in waiting {
        assert_eq!(assert_reset(&mut client), b"");
    }
}

#[test]
fn many_clients_of_many_pipes_come_at_once() {
    let shared = Shared::new();
    let names = ["a0", "a1", "a2", "a3"];
    let text: String = names
        .iter()
        .map(|name| {
            shared.pipe(name, named(name), &format!("key = 'a.key'\nlabel = '{name}'\nmax-connections = 0"))
        })
        .collect();
    let _process = shared.serve(&text);
    let initiators = names.map(|name| shared.initiator("a.key", &["--label", name]));
    let clients: Vec<_> = (0..200)
        .map(|number| {
            let (address, name) = (initiators[number % 4].address(), names[number % 4]);
            thread::spawn(move || {
                let mut client = connect(address);
                assert_reads(&mut client, name);
                assert_echoes(&mut client, &format!("client {number}"));
            })
        })
        .collect();
    for client in clients {
        client.join().expect("each client is served");
    }
}

#[test]
fn pipes_join_and_leave_a_source_by_reload_while_connections_run() {
    let shared = Shared::new();
    let one = shared.pipe("one", named("one"), "key = 'a.key'");
    let two = shared.pipe("two", named("two"), "key = 'b.key'");
    let process = shared.serve(&one);
    let (to_one, to_two) = (shared.initiator("a.key", &[]), shared.initiator("b.key", &[]));
    let mut running = asks(&to_one, "one");
    to_two.assert_resets_a_client();

    shared.site.configure(one.clone() + &two);
    process.reload_successfully();
    let mut joined = asks(&to_two, "two");
    assert_echoes(&mut running, "still one");

    shared.site.configure(&two);
    process.reload_successfully();
    to_one.assert_resets_a_client();
    assert_echoes(&mut running, "still one");
    assert_echoes(&mut joined, "still two");
    drop(asks(&to_two, "two"));
}

#[test]
fn what_cannot_share_is_refused_with_its_place() {
    let shared = Shared::new();
    let target = SocketAddr::from(([127, 0, 0, 1], 1));
    let pipe = |name: &str, options: &str| shared.pipe(name, target, options);
    let (a, b) = (pipe("one", "key = 'a.key'"), pipe("two", "key = 'b.key'"));
    shared.check(
        &(a.clone() + &pipe("two", "key = 'a.key'")),
        &["pipes.toml:7", "one and two", "another label"],
    );
    shared.check(&(a.clone() + &b.replace("decrypt", "encrypt")), &["pipes.toml:10", "source of two pipes"]);
    shared.check(&(a.clone() + &b.replace("name = 'two'\n", "")), &["pipes.toml:9", "give each a name"]);
    let denying = pipe("two", "key = 'b.key'\ndeny = '192.0.2.1'");
    shared.check(&(a.clone() + &denying), &["pipes.toml:10", "have to agree", "[defaults]"]);
    let more = b.replace("source = '", "source = ['127.0.0.1:2', '").replace("'\ntarget", "']\ntarget");
    shared.check(&(a + &more), &["pipes.toml:10", "source of two pipes"]);
}

#[test]
fn a_connection_tries_so_many_keys_and_no_more() {
    let shared = Shared::new();
    let keys = |directory: &str, count: u16| {
        std::fs::create_dir(shared.site.path(directory)).expect("a directory");
        for number in 0..count {
            let path = shared.site.path(&format!("{directory}/{number}.key"));
            crate::support::tls::write(
                &path,
                &format!("a key of thirty-two bytes or more: {directory} {number}"),
            );
        }
    };
    keys("many.keys", 200);
    keys("more.keys", 57);
    let target = SocketAddr::from(([127, 0, 0, 1], 1));
    let text =
        shared.pipe("one", target, "key = 'many.keys'") + &shared.pipe("two", target, "key = 'more.keys'");
    shared.check(&text, &["257 keys in all", "256 at most"]);
}

#[test]
fn what_pipes_have_in_common_is_said_once() {
    let shared = Shared::new();
    let (one, two) = (named("one"), named("two"));
    let text = format!(
        "[defaults]\nmode = 'decrypt'\nsource = '127.0.0.1:{}'\nkey = 'a.key'\nmax-connections = 1\n\
         [[pipe]]\nname = 'one'\nlabel = 'one'\ntarget = '{one}'\n\
         [[pipe]]\nname = 'two'\nlabel = 'two'\ntarget = '{two}'\nmax-connections = 5\n",
        shared.port
    );
    let _process = shared.serve(&text);
    let to_one = shared.initiator("a.key", &["--label", "one", "-o", "1"]);
    let to_two = shared.initiator("a.key", &["--label", "two"]);
    let (_first, _second) = (asks(&to_two, "two"), asks(&to_two, "two"));
    let _only = asks(&to_one, "one");
    to_one.assert_resets_a_client();
}

#[test]
fn a_wrong_default_is_told_of_with_its_line() {
    let shared = Shared::new();
    let pipe = shared.pipe("one", SocketAddr::from(([127, 0, 0, 1], 1)), "");
    shared.check(
        &format!("[defaults]\nkey = 'a.key'\ntimout = 7\n{pipe}"),
        &["pipes.toml:3", "unknown field `timout`"],
    );
    shared
        .check(&format!("[defaults]\nkey = 'a.key'\ntimeout = 0\n{pipe}"), &["pipes.toml:3", "from 0.1 to"]);
    shared.check(&format!("[defaults]\nkey = 'missing.key'\n{pipe}"), &["pipes.toml:2", "missing.key"]);
    shared.check(&format!("defaults = 7\n{pipe}"), &["pipes.toml:1", "write [defaults]"]);
}

#[test]
fn a_limit_on_each_source_counts_on_when_a_reload_changes_the_order_of_pipes() {
    let shared = Shared::new();
    let one = shared.pipe("one", named("one"), "key = 'a.key'\nmax-per-source = 2");
    let two = shared.pipe("two", named("two"), "key = 'b.key'\nmax-per-source = 2");
    let process = shared.serve(&(one.clone() + &two));
    let (to_one, to_two) = (shared.initiator("a.key", &[]), shared.initiator("b.key", &[]));
    let (_first, _second) = (asks(&to_one, "one"), asks(&to_two, "two"));
    to_two.assert_resets_a_client();

    shared.site.configure(two + &one);
    process.reload_successfully();
    to_two.assert_resets_a_client();
    to_one.assert_resets_a_client();
}

#[test]
fn a_pipe_keeps_count_of_its_connections_when_another_joins_or_leaves_its_source() {
    let shared = Shared::new();
    let one = shared.pipe("one", named("one"), "key = 'a.key'\nmax-connections = 1\ntimeout = 1");
    let two = shared.pipe("two", named("two"), "key = 'b.key'");
    let process = shared.serve(&one);
    let to_one = shared.initiator("a.key", &[]);
    let held = asks(&to_one, "one");

    for text in [two + &one, one] {
        shared.site.configure(text);
        process.reload_successfully();
        to_one.assert_resets_a_client();
    }
    drop(held);
    process.await_line(&["closed", "pipe=\"one\""]);
    drop(asks(&to_one, "one"));
}

#[test]
fn a_pipe_alone_at_its_source_keeps_count_of_its_connections_under_another_name() {
    let shared = Shared::new();
    let pipe = |name| shared.pipe(name, named("one"), "key = 'a.key'\nmax-connections = 1\ntimeout = 1");
    let process = shared.serve(&pipe("before"));
    let to_one = shared.initiator("a.key", &[]);
    let _held = asks(&to_one, "one");

    shared.site.configure(pipe("after"));
    process.reload_successfully();
    to_one.assert_resets_a_client();
}
