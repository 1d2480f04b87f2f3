//! Host names: looked up in the background, with the last answer in use, by a real DNS server that moves names and goes dark.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::dns::Host;
use crate::support::poll_until;
use crate::support::process::Process;
use crate::support::site::Site;
use crate::support::socket::guard_unix;

/// A service at a Unix-domain socket that says its name to each client.
fn named(path: &Path, name: &'static str) {
    let listener = UnixListener::bind(path).expect("a socket");
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            guard_unix(&client);
            thread::spawn(move || {
                let _ = client.write_all(name.as_bytes());
                let _ = client.read_to_end(&mut Vec::new());
            });
        }
    });
}

/// A pipe of `site` to `moving.test`; behind 127.0.0.7 is the service "7", and behind 127.0.0.8 the service "8".
fn to_a_name(site: &Site, options: &str) -> String {
    let (seven, eight) = (site.path("7"), site.path("8"));
    named(&seven, "7");
    named(&eight, "8");
    let decrypt = |source: &str, target: &Path| {
        format!(
            "[[pipe]]\nmode = \"decrypt\"\nsource = \"{source}:6380\"\ntarget = \"{}\"\nkey = \"test.key\"\n",
            target.display()
        )
    };
    decrypt("127.0.0.7", &seven)
        + &decrypt("127.0.0.8", &eight)
        + &site.encrypt("a", "moving.test:6380").replace("key = ", &format!("{options}\nkey = "))
}

/// `spipe run` of this configuration on `host`.
fn serve(host: &Host, site: &Site, text: &str) -> Process {
    site.configure(text);
    let process = Process::start(&mut host.command(&site.command()));
    process.await_line(&["listening"]);
    process
}

/// What the service behind the pipe `name` is called.
fn ask(site: &Site, name: &str) -> Option<char> {
    let mut client = site.try_connect(name).ok()?;
    let mut answer = [0];
    client.read_exact(&mut answer).ok()?;
    Some(char::from(answer[0]))
}

#[test]
fn a_name_that_moves_is_followed_under_load_and_no_connection_fails() {
    let (host, site) = (Host::start(), Site::with_key());
    host.set_names("127.0.0.7 moving.test");
    let _process = serve(&host, &site, &to_a_name(&site, "resolve-interval = 1"));
    assert_eq!(ask(&site, "a"), Some('7'));
    let (site, stop) = (Arc::new(site), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (site, stop) = (Arc::clone(&site), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert!(ask(&site, "a").is_some(), "both addresses work all the time");
                }
            })
        })
        .collect();
    host.set_names("127.0.0.8 moving.test");
    poll_until("the name is followed", || (ask(&site, "a") == Some('8')).then_some(()));
    for _ in 0..20 {
        assert_eq!(ask(&site, "a"), Some('8'));
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no client fails");
    }
}

#[test]
fn a_connection_that_fails_looks_the_name_up_again() {
    let (host, site) = (Host::start(), Site::with_key());
    // Nothing listens there.
    host.set_names("127.0.0.9 moving.test");
    let process = serve(&host, &site, &to_a_name(&site, "resolve-interval = 86400"));
    assert_eq!(ask(&site, "a"), None);
    host.set_names("127.0.0.8 moving.test");
    poll_until("the new address is found", || (ask(&site, "a") == Some('8')).then_some(()));
    process.await_line(&["the name has other addresses", "before=\"127.0.0.9\"", "now=\"127.0.0.8\""]);
}

#[test]
fn a_name_that_is_looked_up_once_stays_where_it_is() {
    let (host, site) = (Host::start(), Site::with_key());
    host.set_names("127.0.0.7 moving.test\n127.0.0.7 other.test");
    let text = to_a_name(&site, "resolve-once = true")
        + &site.encrypt("b", "other.test:6380").replace("key = ", "resolve-interval = 1\nkey = ");
    let process = serve(&host, &site, &text);
    assert_eq!(ask(&site, "a"), Some('7'));
    host.set_names("127.0.0.8 moving.test\n127.0.0.8 other.test");
    // The other name is looked up each second.
    process.await_line(&["the name has other addresses", "name=\"other.test\""]);
    assert_eq!((ask(&site, "a"), ask(&site, "b")), (Some('7'), Some('8')));
}

#[test]
fn while_dns_is_dark_the_last_answer_is_used_and_clients_do_not_wait() {
    let (host, site) = (Host::start(), Site::with_key());
    host.set_names("127.0.0.7 moving.test");
    let process = serve(&host, &site, &to_a_name(&site, "resolve-interval = 1"));
    assert_eq!(ask(&site, "a"), Some('7'));
    host.go_dark();
    process.await_line(&["the name cannot be looked up; its last addresses are used"]);
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(ask(&site, "a"), Some('7'));
    }
    // A look-up of the dark server takes two seconds.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    host.answer_again();
    process.await_line(&["the name can be looked up again"]);
    assert_eq!(process.log().matches("its last addresses are used").count(), 1, "once a change");
}

#[test]
fn a_crowd_that_waits_for_a_dark_dns_server_holds_up_neither_other_pipes_nor_a_reload() {
    let (host, site) = (Host::start(), Site::with_key());
    host.go_dark();
    named(&site.path("plain"), "p");
    // Forty names, so that the number of look-ups at a time matters.
    let dark = (0..40).map(|number| site.encrypt(&format!("dark{number}"), format!("name{number}.test:1")));
    let text = dark.collect::<String>() + &site.both_ends("plain", site.name("plain"));
    let process = serve(&host, &site, &text);
    let waiting: Vec<_> =
        (0..40).flat_map(|number| [(); 5].map(|()| site.connect(&format!("dark{number}")))).collect();
    for _ in 0..20 {
        assert_eq!(ask(&site, "plain"), Some('p'));
    }
    process.reload_successfully();
    assert_eq!(ask(&site, "plain"), Some('p'));
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.pid().as_raw_nonzero()));
    let threads = threads.expect("the process runs").count();
    // 32 look-ups, and the threads of the runtime, the clock, the log and the reload.
    assert!(threads < 32 + 16 + num_cpus(), "{threads} threads");
    drop(waiting);
}

fn num_cpus() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[test]
fn a_name_that_does_not_exist_yet_is_connected_to_once_it_does() {
    let (host, site) = (Host::start(), Site::with_key());
    let process = serve(&host, &site, &to_a_name(&site, "resolve-interval = 1"));
    assert_eq!(ask(&site, "a"), None);
    process.await_line(&["failed", "cannot resolve 'moving.test'"]);
    host.set_names("127.0.0.7 moving.test");
    poll_until("the name is found", || (ask(&site, "a") == Some('7')).then_some(()));
}

#[test]
fn of_a_name_with_addresses_that_fail_the_one_that_works_is_used() {
    let (host, site) = (Host::start(), Site::with_key());
    host.set_names("127.0.0.9 moving.test\n127.0.0.8 moving.test\n::1 moving.test");
    let _process = serve(&host, &site, &to_a_name(&site, ""));
    for _ in 0..5 {
        assert_eq!(ask(&site, "a"), Some('8'));
    }
}

#[test]
fn the_family_to_prefer_is_connected_to_first() {
    for (family, expected) in [("ipv4", '7'), ("ipv6", '6')] {
        let (host, site) = (Host::start(), Site::with_key());
        host.set_names("127.0.0.7 moving.test\n::1 moving.test");
        named(&site.path("6"), "6");
        let text = to_a_name(&site, &format!("prefer = \"{family}\""));
        let sixth = text.split("[[pipe]]").nth(1).expect("a pipe").replace("127.0.0.7", "[::1]");
        let sixth = sixth.replace(&site.name("7"), &site.name("6"));
        let _process = serve(&host, &site, &format!("{text}[[pipe]]{sixth}"));
        assert_eq!(ask(&site, "a"), Some(expected), "{family}");
    }
}

#[test]
fn a_source_whose_name_does_not_resolve_yet_is_listened_on_once_it_does() {
    let (host, site) = (Host::start(), Site::with_key());
    let listening = to_a_name(&site, "resolve-interval = 1")
        .replace("source = \"127.0.0.8:6380\"", "wait-for-names = true\nsource = \"here.test:6380\"");
    let process = serve(&host, &site, &listening);
    process.await_line(&["not listening yet", "here.test"]);
    host.set_names("127.0.0.8 here.test\n127.0.0.8 moving.test");
    process.await_line(&["listening", "source=[127.0.0.8]:6380"]);
    poll_until("it is connected to", || (ask(&site, "a") == Some('8')).then_some(()));
    assert_eq!(process.log().matches("not listening yet").count(), 1, "once");
}

#[test]
fn a_source_on_the_command_line_may_resolve_later_in_spite_of_the_sandbox() {
    let (host, site) = (Host::start(), Site::with_key());
    let mut command = crate::support::process::spipe();
    command.args(["-d", "-D", "-s", "here.test:6380", "-t", "127.0.0.1:1", "-k"]).arg(site.path("test.key"));
    let process = Process::start(&mut host.command(&command));
    process.await_line(&["not listening yet"]);
    host.set_names("127.0.0.8 here.test");
    process.await_line(&["listening", "source=[127.0.0.8]:6380"]);
}

#[test]
fn a_source_whose_name_does_not_resolve_is_an_error_otherwise() {
    let (host, site) = (Host::start(), Site::with_key());
    site.configure(to_a_name(&site, "").replace("127.0.0.8:6380", "here.test:6380"));
    crate::support::process::run(&mut host.command(&site.command()))
        .failed_with_last_line(1, &["cannot listen on [here.test]:6380", "cannot resolve 'here.test'"]);
}
