//! A host of its own, in namespaces, whose only DNS server is a real dnsmasq that the test controls.
//!
//! Clients and services are outside, and reach the pipes of the host over Unix-domain sockets.

use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::Process;

/// The namespaces, as long as this lives.
pub(crate) struct Host {
    holder: Process,
    dnsmasq: Process,
    directory: TempDir,
}

impl Host {
    /// A host that looks names up in DNS only, where none has an address so far.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let write = |name: &str, content: &str| std::fs::write(path(name), content).expect("a file");
        write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n");
        write("nsswitch.conf", "hosts: dns\n");
        write("names", "");
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c"]).arg(format!(
            "ip link set lo up && mount --bind '{}' /etc/resolv.conf && mount --bind '{}' /etc/nsswitch.conf && \
             echo ready && exec sleep infinity",
            path("resolv.conf"),
            path("nsswitch.conf")
        ));
        let holder = Process::start(&mut unshare);
        holder.await_line(&["ready"]);
        let mut command = Command::new("/usr/sbin/dnsmasq");
        // In the foreground, as the only user that these namespaces have.
        command.args(["--no-daemon", "--no-hosts", "--no-resolv", "--local=/test/", "--local-ttl=0"]);
        command.args(["--listen-address=127.0.0.1", "--bind-interfaces"]);
        command.arg(format!("--addn-hosts={}", path("names")));
        let dnsmasq = Process::start(&mut within(&holder, &command));
        dnsmasq.await_line(&["read", "names"]);
        Self { holder, dnsmasq, directory }
    }

    /// `command`, on this host.
    pub(crate) fn command(&self, command: &Command) -> Command {
        within(&self.holder, command)
    }

    /// From now on, DNS has these names, each line an address and a name.
    pub(crate) fn set_names(&self, lines: &str) {
        let names: PathBuf = self.directory.path().join("names");
        std::fs::write(names, format!("{lines}\n")).expect("the file can be written");
        let before = self.dnsmasq.log().matches("dnsmasq: read").count();
        self.dnsmasq.signal(Signal::HUP);
        self.dnsmasq.await_lines(before + 1, "dnsmasq: read");
    }

    /// The DNS server answers no more, until [`Self::answer_again`].
    pub(crate) fn go_dark(&self) {
        self.dnsmasq.signal(Signal::STOP);
    }

    pub(crate) fn answer_again(&self) {
        self.dnsmasq.signal(Signal::CONT);
    }
}

fn within(holder: &Process, command: &Command) -> Command {
    let holder = holder.pid().as_raw_nonzero().to_string();
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &holder, "--user", "--preserve-credentials", "--net", "--mount"]);
    nsenter.arg(command.get_program()).args(command.get_args());
    nsenter
}
