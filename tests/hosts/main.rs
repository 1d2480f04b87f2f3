//! Two real Debian hosts with a network between them, as an administrator has them: one has the oldest release whose
//! systemd is supported, the other the newest. Each test is named after the one behaviour that it tests. Before each
//! test, spipe is removed from both hosts.

mod guides;
mod packages;
mod restarts;
mod support;
mod units;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Arguments, Trial};

use self::support::host::{Host, connect};
use self::support::image::Image;

/// systemd 252.
const SERVER: Image = Image {
    suite: "bookworm",
    packages: &[
        "systemd",
        "systemd-sysv",
        "dbus",
        "iproute2",
        "openssh-server",
        "redis-server",
        "redis-tools",
    ],
    archived: "spiped",
};

/// systemd 257.
const CLIENT: Image = Image {
    suite: "trixie",
    packages: &["systemd", "systemd-sysv", "dbus", "iproute2", "openssh-client", "redis-tools", "rpm"],
    archived: "spiped",
};

/// Addresses for documentation only (RFC 5737); the guides use them.
const SERVER_ADDRESS: &str = "192.0.2.10/24";
const CLIENT_ADDRESS: &str = "192.0.2.20/24";

/// The units that are shipped.
const UNITS: [&str; 4] = ["spiped-receive.service", "spiped-send.service", "spipe@.service", "spipe@.socket"];

/// The two hosts.
struct Hosts {
    server: Host,
    client: Host,
}

/// The hosts, booted by the first test that needs them.
static HOSTS: Mutex<Option<Hosts>> = Mutex::new(None);

/// A test for each function, with the name of the function.
macro_rules! trials {
    ($($test:path),* $(,)?) => { vec![$(test(stringify!($test), $test)),*] };
}

fn main() -> ExitCode {
    become_root();
    let mut arguments = Arguments::from_args();
    // All tests share the hosts, and running them in parallel would only make each test slower.
    arguments.test_threads = Some(1);
    let trials = trials![
        units::systemd_finds_nothing_wrong_with_the_units,
        units::the_exposure_of_each_service_is_low,
        guides::redis_on_two_hosts,
        units::the_service_has_no_rights_and_root_keeps_the_key,
        units::a_started_service_listens,
        units::a_process_that_hangs_is_started_again,
        units::a_process_that_dies_is_started_again,
        units::status_says_which_keys_have_connections,
        units::the_drain_timeout_applies_whatever_the_stop_timeout_of_the_unit,
        units::the_journal_has_levels,
        units::a_reload_with_an_unusable_key_fails_and_changes_nothing,
        units::a_reload_that_fails_in_the_process_is_in_the_status,
        units::an_administrator_asks_a_service_over_its_control_socket,
        units::a_port_below_1024_needs_one_capability,
        units::the_first_connection_to_the_socket_unit_starts_the_service,
        units::the_unit_lines_of_guides_for_spiped_work_with_the_name_changed,
        restarts::twenty_restarts_under_load_refuse_and_cut_no_connection,
        restarts::a_restart_that_fails_leaves_the_process_that_serves_until_one_succeeds,
        restarts::a_stop_also_ends_the_processes_that_restarts_have_left,
        restarts::a_process_that_hangs_is_killed_by_a_restart,
        restarts::a_process_whose_parent_is_killed_serves_until_the_next_one_does,
        restarts::a_new_binary_is_served_after_a_restart_and_the_old_one_after_another,
        guides::no_request_fails_while_a_key_is_rotated,
        guides::no_request_fails_while_a_new_version_is_installed_and_taken_back,
        guides::many_pipes,
        guides::no_request_fails_while_two_spipeds_become_two_spipes,
        guides::spipe_takes_the_port_of_a_server_whose_clients_stay_with_spiped,
        guides::no_new_connection_fails_while_a_service_with_a_socket_unit_is_restarted,
        packages::an_installed_package_needs_only_a_key_to_carry,
        packages::nothing_is_enabled_or_started_by_an_installation,
        packages::the_package_takes_the_place_of_debians_spiped,
        packages::debians_spiped_can_be_installed_again,
        packages::no_new_connection_to_a_socket_unit_fails_during_an_upgrade,
        packages::an_upgrade_restarts_all_instances_that_run_and_no_other,
        packages::a_service_that_cannot_start_again_does_not_make_an_upgrade_fail,
        packages::an_upgrade_does_not_wait_for_a_long_drain,
        packages::an_upgrade_without_a_running_systemd_restarts_nothing,
        packages::an_upgrade_restarts_nothing_if_the_policy_of_the_host_forbids_it,
        packages::a_removal_stops_everything_and_keeps_keys,
        packages::a_purge_removes_what_the_package_made_and_no_key,
        packages::the_rpm_package_restarts_what_runs_on_an_upgrade_and_keeps_keys_when_it_is_removed,
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(HOSTS.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

fn test(name: &str, behaviour: fn(&Hosts)) -> Trial {
    // stringify! puts spaces around the colons of a path.
    Trial::test(name.replace(' ', ""), move || {
        let mut hosts = HOSTS.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = hosts.get_or_insert_with(Hosts::boot);
        hosts.remove_spipe();
        behaviour(hosts);
        Ok(())
    })
}

/// Restarts this program as root, since only root can make namespaces and mounts.
fn become_root() {
    if !rustix::process::geteuid().is_root() {
        let error = Command::new("sudo").args(std::env::args_os()).exec();
        panic!("only root can boot two hosts, and sudo failed: {error}");
    }
}

impl Hosts {
    fn boot() -> Self {
        // Missing images are made in parallel.
        let (server, client) = std::thread::scope(|scope| {
            let server = scope.spawn(|| SERVER.tree());
            CLIENT.tree();
            if let Err(panic) = server.join() {
                std::panic::resume_unwind(panic);
            }
            (Host::boot("server", SERVER), Host::boot("client", CLIENT))
        });
        server.await_boot();
        client.await_boot();
        connect([(&server, SERVER_ADDRESS), (&client, CLIENT_ADDRESS)]);
        // As in the guides, root of the client may log in to the server.
        client.run("ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519");
        server.put("/root/.ssh/authorized_keys", "600", client.run("cat .ssh/id_ed25519.pub").as_bytes());
        client.put(
            "/root/.ssh/config",
            "600",
            b"StrictHostKeyChecking=no\nUserKnownHostsFile=/dev/null\nLogLevel=ERROR\n",
        );
        Self { server, client }
    }

    /// Copies the program and the units to both hosts, to where the guides expect them.
    fn copy_files(&self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for host in [&self.server, &self.client] {
            host.copy(env!("CARGO_BIN_EXE_spipe"), "/root/spipe", "755");
            for unit in UNITS {
                host.copy(root.join("units").join(unit), &format!("/root/units/{unit}"), "644");
            }
        }
    }

    /// Installs the program and all units, without a key or a configuration.
    fn install(&self) {
        self.copy_files();
        for host in [&self.server, &self.client] {
            host.run(
                "install spipe /usr/bin; install -m 644 units/* /etc/systemd/system; systemctl daemon-reload",
            );
        }
    }

    /// Removes spipe and its configuration from both hosts.
    fn remove_spipe(&self) {
        for host in [&self.server, &self.client] {
            host.run(
                "shopt -s nullglob
                 units=$(systemctl list-units --all --plain --no-legend 'spipe*' 'load-*' | cut -d ' ' -f 1)
                 if [ -n \"$units\" ]; then
                     systemctl stop --no-block $units
                     systemctl kill --signal=KILL $units || true
                     systemctl stop $units
                 fi
                 dpkg --purge spipe spiped 2>&1
                 ! command -v rpm || ! rpm --query spipe || rpm --erase --nodeps spipe
                 rm -rf /{etc,run}/systemd/system/{,*/}spipe* /etc/spipe{,d} /usr/bin/spipe /root/{spipe*,units} /usr/sbin/policy-rc.d
                 systemctl daemon-reload
                 systemctl reset-failed
                 journalctl --quiet --rotate --vacuum-time=1s",
            );
        }
        self.server.run("redis-cli flushall");
    }
}
