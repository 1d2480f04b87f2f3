//! Two real Debian hosts with a network between them, as an administrator has them: one of the oldest release whose
//! systemd is supported, one of the newest. Each test is named after the one behaviour it shows, and finds both hosts
//! without any spipe on them.

mod support;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Arguments, Trial};

use self::support::host::{Host, connect};
use self::support::image::Image;

/// systemd 252.
const SERVER: Image = Image {
    suite: "bookworm",
    packages: &["systemd", "systemd-sysv", "dbus", "iproute2", "openssh-server", "redis-server", "redis-tools"],
};

/// systemd 257.
const CLIENT: Image = Image {
    suite: "trixie",
    packages: &["systemd", "systemd-sysv", "dbus", "iproute2", "openssh-client", "redis-tools"],
};

/// Addresses that exist in documents only (RFC 5737), and in the guides that are followed here.
const SERVER_ADDRESS: &str = "192.0.2.10/24";
const CLIENT_ADDRESS: &str = "192.0.2.20/24";

/// The two hosts.
struct Hosts {
    server: Host,
    client: Host,
}

/// Booted by the first test that needs them.
static HOSTS: Mutex<Option<Hosts>> = Mutex::new(None);

fn main() -> ExitCode {
    become_root();
    let mut arguments = Arguments::from_args();
    // The hosts are shared, and a busy machine would only make each test slower.
    arguments.test_threads = Some(1);
    let trials = vec![test("hosts_boot", |hosts| {
        println!("{}", hosts.server.run("systemctl --version | head -1; ping -c1 192.0.2.20 || true"));
        hosts.client.reboot();
        println!("{}", hosts.client.run("systemctl --version | head -1; uptime || true"));
        println!("{}", hosts.client.await_line("dbus", &["Started"]));
    })];
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(HOSTS.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

fn test(name: &'static str, behaviour: impl FnOnce(&Hosts) + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let mut hosts = HOSTS.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = hosts.get_or_insert_with(Hosts::boot);
        hosts.forget_spipe();
        behaviour(hosts);
        Ok(())
    })
}

/// Namespaces and mounts are root's to make.
fn become_root() {
    if !rustix::process::geteuid().is_root() {
        let error = Command::new("sudo").args(std::env::args_os()).exec();
        panic!("two hosts can only be booted by root, and sudo does not help: {error}");
    }
}

impl Hosts {
    fn boot() -> Self {
        // Images that are missing are made at the same time.
        let (server, client) = std::thread::scope(|scope| {
            let server = scope.spawn(|| SERVER.tree());
            CLIENT.tree();
            server.join().map(|_| ()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (Host::boot("server", SERVER), Host::boot("client", CLIENT))
        });
        server.await_boot();
        client.await_boot();
        connect([(&server, SERVER_ADDRESS), (&client, CLIENT_ADDRESS)]);
        Self { server, client }
    }

    /// Makes both hosts as they were.
    fn forget_spipe(&self) {
    }
}
