//! Debian's package, installed, upgraded and removed by apt; and the RPM package.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::Hosts;
use crate::support::guide::follow;
use crate::support::host::Host;
use crate::support::load::Load;
use crate::support::made::package;

const REDIS: &str = "redis-on-two-hosts.md";

/// Options of apt-get: no questions, and only what a log would have.
pub(crate) const APT: &str = "DEBIAN_FRONTEND=noninteractive apt-get -q -y";

/// The package, on each host.
const FILE: &str = "/root/spipe_0_amd64.deb";

/// Prints what tells the program that is installed now from others.
const PROGRAM: &str = "stat -L -c %i /usr/bin/spipe";

impl Hosts {
    /// Installs the package on both hosts, as its documentation says.
    fn install_package(&self) {
        static PACKAGE: OnceLock<Vec<u8>> = OnceLock::new();
        for host in [&self.server, &self.client] {
            host.put(FILE, "644", PACKAGE.get_or_init(|| made("99.0.0-1")));
        }
        follow("install.md", "On Debian", &self.server, &self.client);
    }

    /// The package of a higher version, ready to be installed on both hosts.
    fn bring_upgrade(&self) {
        static PACKAGE: OnceLock<Vec<u8>> = OnceLock::new();
        for host in [&self.server, &self.client] {
            host.put(FILE, "644", PACKAGE.get_or_init(|| made("99.0.1-1")));
        }
    }

    /// The pipe of the guide "Redis on two hosts", from the package.
    fn start_packaged_pipe(&self) {
        self.install_package();
        for section in ["Make a key, and copy it", "Start"] {
            follow(REDIS, section, &self.server, &self.client);
        }
        self.assert_carries();
    }

    /// The pipes of the guide "Many pipes", from the package.
    fn start_packaged_office(&self) {
        // The guide installs by hand.
        self.start_office();
        for host in [&self.server, &self.client] {
            host.run("rm /etc/systemd/system/spipe@.*");
        }
        self.install_package();
        self.server.run("systemctl restart spipe@office");
        self.client.run("systemctl stop spipe@office.service; systemctl restart spipe@office.socket");
        self.assert_carries();
    }

    #[track_caller]
    fn assert_carries(&self) {
        assert_eq!(self.client.run("redis-cli -p 8000 ping"), "PONG");
    }
}

/// The package with this version. The program is always the same.
fn made(version: &str) -> Vec<u8> {
    let (_directory, file) = package("deb", &["--fast", "--deb-version", version]);
    fs::read(file).expect("the package has been made")
}

/// Installs the package that [`Hosts::bring_upgrade`] has brought.
#[track_caller]
fn upgrade(host: &Host) -> String {
    let said = host.run(&format!("{APT} install {FILE} 2>&1"));
    assert_eq!(installed(host), "install ok installed 99.0.1-1", "{said}");
    said
}

/// What dpkg knows about the package; nothing if it does not know it.
fn installed(host: &Host) -> String {
    host.run("dpkg-query --show --showformat '${Status} ${Version}' spipe 2>/dev/null || true")
}

/// Whether the process of `unit` runs the program that is installed now, and not one that an upgrade has replaced.
fn runs_what_is_installed(host: &Host, unit: &str) -> bool {
    let running = host.run(&format!("stat -L -c %i /proc/$(systemctl show -P MainPID {unit})/exe"));
    running == host.run(PROGRAM)
}

/// Starts `count` instances, `spipe@1` and so on, each with one pipe and a key of its own.
fn start_instances(host: &Host, count: usize) {
    host.run(&format!(
        "for name in $(seq {count}); do
             install -d -m 700 /etc/spipe/$name.keys
             spipe keygen /etc/spipe/$name.keys/1.key
             printf '[[pipe]]\\nname = \"redis\"\\nmode = \"decrypt\"\\nsource = \"127.0.0.1:%d\"\\ntarget = \"127.0.0.1:6379\"\\nkey = \"/etc/spipe/%d.keys\"\\n' \\
                 $((7000 + name)) $name > /etc/spipe/$name.toml
         done
         systemctl start $(seq --format 'spipe@%g' {count})"
    ));
}

pub(crate) fn an_installed_package_needs_only_a_key_to_carry(hosts: &Hosts) {
    hosts.start_packaged_pipe();
    follow(REDIS, "Try it", &hosts.server, &hosts.client);
}

pub(crate) fn nothing_is_enabled_or_started_by_an_installation(hosts: &Hosts) {
    hosts.install_package();
    for host in [&hosts.server, &hosts.client] {
        assert_eq!(host.run("systemctl list-units --all --plain --no-legend 'spipe*'"), "");
        let files = host.run("systemctl list-unit-files --no-legend 'spipe*' | awk '{ print $1, $2 }'");
        let expected = "spipe@.service disabled\nspiped-receive.service disabled\nspiped-send.service disabled\n\
                        spipe@.socket disabled";
        assert_eq!(files, expected);
    }
}

pub(crate) fn the_package_takes_the_place_of_debians_spiped(hosts: &Hosts) {
    let Hosts { server, client } = hosts;
    for (host, name, line) in [
        (server, "spiped-redis", "-d -s [192.0.2.10]:6379 -t [127.0.0.1]:6379"),
        (client, "spiped-redis", "-e -s [127.0.0.1]:8000 -t [192.0.2.10]:6379"),
    ] {
        host.run(&format!("{APT} install /srv/spiped.deb"));
        let unit = format!("[Service]\nExecStart=/usr/bin/spiped -F {line} -k /etc/spiped/redis.key\n");
        host.put(&format!("/etc/systemd/system/{name}.service"), "644", unit.as_bytes());
        host.put("/etc/spiped/redis.key", "600", &[b"one key", [7; 25].as_slice()].concat());
        host.run(&format!("systemctl daemon-reload; systemctl start {name}"));
    }
    client.await_output("redis-cli -p 8000 ping", "PONG");

    hosts.bring_upgrade();
    for host in [server, client] {
        let said = host.run(&format!("{APT} --simulate install {FILE}"));
        assert!(said.contains("will be REMOVED:\n  spiped\n"), "{said}");
        upgrade(host);
        assert_eq!(
            host.run("dpkg-query --search /usr/bin/spipe /usr/bin/spiped | cut -d : -f 1 | uniq"),
            "spipe"
        );
    }
    // The processes of the old package were not touched.
    hosts.assert_carries();
    // The administrator's unit starts the new program by the old name.
    for host in [server, client] {
        host.run("systemctl restart spiped-redis");
        // The unit does not tell when it has started.
        host.await_output(
            "stat -L -c %i /proc/$(systemctl show -P MainPID spiped-redis)/exe",
            &host.run(PROGRAM),
        );
    }
    client.await_output("redis-cli -p 8000 ping", "PONG");
}

pub(crate) fn debians_spiped_can_be_installed_again(hosts: &Hosts) {
    hosts.install_package();
    let said = hosts.server.run(&format!("{APT} install /srv/spiped.deb"));
    assert!(said.contains("will be REMOVED:\n  spipe\n"), "{said}");
    assert_eq!(hosts.server.run("dpkg-query --search /usr/bin/spiped"), "spiped: /usr/bin/spiped");
    hosts.server.run("spiped -v");
}

pub(crate) fn no_new_connection_to_a_socket_unit_fails_during_an_upgrade(hosts: &Hosts) {
    let Hosts { server, client } = hosts;
    hosts.start_packaged_office();
    hosts.give_the_server_of_the_office_a_socket_unit();
    let load = Load::start_fresh(client, 8000);
    hosts.bring_upgrade();
    for host in [client, server] {
        upgrade(host);
        load.assert_continues();
        assert!(runs_what_is_installed(host, "spipe@office"));
    }
    load.end();
}

pub(crate) fn an_upgrade_restarts_all_instances_that_run_and_no_other(hosts: &Hosts) {
    hosts.start_packaged_pipe();
    start_instances(&hosts.server, 10);
    hosts.server.run("systemctl stop spipe@10; systemctl enable spiped-send");
    hosts.bring_upgrade();
    upgrade(&hosts.server);
    for unit in (1..10).map(|name| format!("spipe@{name}")).chain(["spiped-receive".to_owned()]) {
        assert!(runs_what_is_installed(&hosts.server, &unit), "{unit}");
        assert_eq!(hosts.server.run(&format!("systemctl show -P NRestarts {unit}")), "0");
    }
    for unit in ["spipe@10", "spiped-send"] {
        hosts.server.fail(&format!("systemctl is-active {unit}"));
    }
    hosts.assert_carries();
}

pub(crate) fn a_service_that_cannot_start_again_does_not_make_an_upgrade_fail(hosts: &Hosts) {
    hosts.start_packaged_pipe();
    start_instances(&hosts.server, 3);
    hosts.server.run("echo nonsense >> /etc/spipe/1.toml; systemctl mask --runtime spipe@2");
    hosts.bring_upgrade();
    upgrade(&hosts.server);
    hosts.server.await_line("spipe@1", &["1.toml:"]);
    assert!(runs_what_is_installed(&hosts.server, "spipe@3"));
    assert!(runs_what_is_installed(&hosts.server, "spiped-receive"));
    hosts.assert_carries();
}

pub(crate) fn an_upgrade_does_not_wait_for_a_long_drain(hosts: &Hosts) {
    hosts.start_packaged_pipe();
    hosts.server.put(
        "/etc/systemd/system/spiped-receive.service.d/test.conf",
        "644",
        b"[Service]\nEnvironment=\"OPTIONS=--drain-timeout 3600\"\n",
    );
    hosts.server.run("systemctl daemon-reload; systemctl restart spiped-receive");
    hosts.client.run("systemd-run --quiet --unit=load-idle redis-cli -p 8000 subscribe news");
    hosts.server.await_output(
        "systemctl show -P StatusText spiped-receive | cut -d '(' -f 1",
        "1 pipe, 1 connection",
    );
    hosts.bring_upgrade();
    let start = Instant::now();
    upgrade(&hosts.server);
    assert!(start.elapsed() < Duration::from_secs(50), "{:?}", start.elapsed());
    // The connection is carried by the old process until it ends, and the new one serves already.
    assert!(runs_what_is_installed(&hosts.server, "spiped-receive"));
    hosts.assert_carries();
    assert_eq!(hosts.server.run("redis-cli publish news spipe"), "1");
    hosts.client.run("systemctl stop load-idle");
}

pub(crate) fn an_upgrade_without_a_running_systemd_restarts_nothing(hosts: &Hosts) {
    hosts.start_packaged_pipe();
    hosts.bring_upgrade();
    // As in a chroot.
    hosts.server.run(&format!("unshare --mount sh -euc 'mount -t tmpfs tmpfs /run; {APT} install {FILE}'"));
    assert_eq!(installed(&hosts.server), "install ok installed 99.0.1-1");
    assert!(!runs_what_is_installed(&hosts.server, "spiped-receive"));
    hosts.assert_carries();
}

pub(crate) fn an_upgrade_restarts_nothing_if_the_policy_of_the_host_forbids_it(hosts: &Hosts) {
    hosts.start_packaged_pipe();
    hosts.server.put("/usr/sbin/policy-rc.d", "755", b"#!/bin/sh\nexit 101\n");
    hosts.bring_upgrade();
    upgrade(&hosts.server);
    assert!(!runs_what_is_installed(&hosts.server, "spiped-receive"));
    hosts.assert_carries();
}

pub(crate) fn a_removal_stops_everything_and_keeps_keys(hosts: &Hosts) {
    hosts.start_packaged_pipe();
    start_instances(&hosts.server, 3);
    // Its first client would start a service, even after that was stopped.
    hosts.server.run("systemctl start spipe@9.socket");
    for host in [&hosts.server, &hosts.client] {
        let keys = host.run("find /etc/spipe -type f | sort | xargs sha256sum");
        host.run(&format!("{APT} remove spipe"));
        assert_eq!(
            host.run("systemctl list-units --plain --no-legend 'spipe*' | grep -v 'system-spipe' || true"),
            ""
        );
        assert_eq!(host.run("ls /usr/bin/spipe* /usr/lib/systemd/system/spipe* 2>/dev/null || true"), "");
        assert_eq!(host.run("find /etc/spipe -type f | sort | xargs sha256sum"), keys);
    }
    // Installed again, it goes on where it was.
    hosts.install_package();
    hosts.server.run("systemctl start spiped-receive");
    hosts.client.run("systemctl start spiped-send");
    hosts.assert_carries();
}

pub(crate) fn a_purge_removes_what_the_package_made_and_no_key(hosts: &Hosts) {
    hosts.start_packaged_pipe();
    let key = hosts.server.run("sha256sum /etc/spipe/receive.keys/redis.key");
    let said = hosts.server.run(&format!("{APT} purge spipe 2>&1"));
    assert!(said.contains("/etc/spipe stays"), "{said}");
    assert_eq!(installed(&hosts.server), "");
    assert_eq!(
        hosts.server.run("find /etc/spipe -mindepth 1 | sort"),
        "/etc/spipe/receive.keys\n/etc/spipe/receive.keys/redis.key"
    );
    assert_eq!(hosts.server.run("sha256sum /etc/spipe/receive.keys/redis.key"), key);
    assert_eq!(hosts.server.run("find /etc/systemd /var -name '*spipe*' -not -path '/var/log/*'"), "");

    // Without keys, nothing is left.
    hosts.client.run("rm /etc/spipe/send.keys/redis.key");
    hosts.client.run(&format!("{APT} purge spipe"));
    hosts.client.fail("ls /etc/spipe");
    // The drop-in file is the administrator's.
    let left = hosts.client.run("find /etc /usr /var -name '*spipe*' -not -path '/var/log/*'");
    assert_eq!(left, "/etc/systemd/system/spiped-send.service.d");
}

pub(crate) fn the_rpm_package_restarts_what_runs_on_an_upgrade_and_keeps_keys_when_it_is_removed(
    hosts: &Hosts,
) {
    let Hosts { server, client } = hosts;
    hosts.start_packaged_pipe();
    // Debian's rpm knows nothing of Debian's packages, so nothing that spipe needs is there for it.
    client.run(&format!("{APT} remove spipe"));
    client.put("/root/spipe.rpm", "644", &made_rpm("99.0.0"));
    client.run("rpm --install --nodeps spipe.rpm");
    client.run("systemctl start spiped-send");
    hosts.assert_carries();
    assert_eq!(client.run("readlink /usr/bin/spiped"), "spipe");

    client.put("/root/spipe.rpm", "644", &made_rpm("99.0.1"));
    client.run("rpm --upgrade --nodeps spipe.rpm");
    assert_eq!(client.run("rpm --query --queryformat '%{VERSION}' spipe"), "99.0.1");
    assert!(runs_what_is_installed(client, "spiped-send"));
    assert_eq!(client.run("readlink /usr/bin/spiped"), "spipe");
    hosts.assert_carries();

    let key = server.run("sha256sum < /etc/spipe/receive.keys/redis.key");
    client.run("rpm --erase --nodeps spipe");
    client.fail("systemctl is-active spiped-send");
    assert_eq!(client.run("ls /usr/bin/spipe* 2>/dev/null || true"), "");
    assert_eq!(client.run("sha256sum < /etc/spipe/send.keys/redis.key"), key);
}

/// The RPM package with this version.
fn made_rpm(version: &str) -> Vec<u8> {
    let (_directory, file) = package("rpm", &["--set-metadata", &format!("version = '{version}'")]);
    fs::read(file).expect("the package has been made")
}
