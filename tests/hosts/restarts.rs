//! `systemctl restart`: no connection is refused, and none is cut.

use crate::Hosts;
use crate::support::host::Host;
use crate::support::load::Load;
use crate::units::drop_in;

/// Prints how many processes of spipe there are.
const PROCESSES: &str = "(grep -lsx spipe /proc/[0-9]*/comm || true) | wc -l";

/// The process that serves for `unit`: the child of its main process.
fn serving(host: &Host, unit: &str) -> String {
    host.run(&format!("cat /proc/$(systemctl show -P MainPID {unit})/task/*/children | xargs"))
}

/// A client of the pipe on the client's host, as a unit, that waits for messages in the channel `news`. It ends when its connection
/// does.
fn subscribe(hosts: &Hosts) {
    hosts.client.run("systemd-run --quiet --unit=load-idle redis-cli -p 8000 subscribe news");
    hosts.server.await_output("redis-cli pubsub numsub news | tail -n 1", "1");
}

fn assert_subscribed(hosts: &Hosts) {
    assert_eq!(hosts.server.run("redis-cli publish news hello"), "1");
    assert_eq!(hosts.client.run("systemctl is-active load-idle"), "active");
}

pub(crate) fn twenty_restarts_under_load_refuse_and_cut_no_connection(hosts: &Hosts) {
    let Hosts { server, client } = hosts;
    hosts.start_pipe();
    subscribe(hosts);
    let load = Load::start(client, 8000);
    for _ in 0..10 {
        for (host, unit) in [(client, "spiped-send"), (server, "spiped-receive")] {
            let before = serving(host, unit);
            host.run(&format!("systemctl restart {unit}"));
            assert_ne!(serving(host, unit), before);
            load.assert_continues();
        }
    }
    assert_subscribed(hosts);
    for (host, unit) in [(client, "spiped-send"), (server, "spiped-receive")] {
        // Besides the one that serves and its parent, the first one, which all lasting connections belong to.
        host.await_output(PROCESSES, "3");
        assert_eq!(host.run(&format!("systemctl show -P NRestarts -P Result {unit} | xargs")), "success 0");
    }
    load.end();
}

pub(crate) fn a_restart_that_fails_leaves_the_process_that_serves_until_one_succeeds(hosts: &Hosts) {
    hosts.start_office();
    let good = hosts.server.run("cat /etc/spipe/office.toml");
    let before = serving(&hosts.server, "spipe@office");
    hosts.server.run("echo nonsense >> /etc/spipe/office.toml");
    hosts.server.fail("systemctl restart spipe@office");
    hosts.server.await_line("spipe@office", &["office.toml:", "key with no value"]);
    assert_eq!(hosts.client.run("redis-cli -p 8000 ping"), "PONG");
    hosts.server.put("/etc/spipe/office.toml", "644", format!("{good}\n").as_bytes());
    // systemd tries again by itself, each second.
    hosts.server.await_output("systemctl is-active spipe@office", "active");
    hosts.server.await_line("spipe@office", &["took over", &format!("from={before}")]);
    assert_eq!(hosts.client.run("redis-cli -p 8000 ping"), "PONG");
}

pub(crate) fn a_stop_also_ends_the_processes_that_restarts_have_left(hosts: &Hosts) {
    hosts.start_pipe();
    drop_in(&hosts.server, "spiped-receive", "[Service]\nEnvironment=\"OPTIONS=--drain-timeout 2\"\n");
    hosts.server.run("systemctl restart spiped-receive");
    subscribe(hosts);
    for _ in 0..3 {
        hosts.server.run("systemctl restart spiped-receive");
        assert_subscribed(hosts);
    }
    hosts.server.run("systemctl stop spiped-receive");
    hosts.server.await_line("spiped-receive", &["stopped: ended connections", "connections=1"]);
    assert_eq!(hosts.server.run(PROCESSES), "0");
    hosts.server.fail("test -e /run/spiped-receive");
}

pub(crate) fn a_process_that_hangs_is_killed_by_a_restart(hosts: &Hosts) {
    hosts.start_pipe();
    drop_in(&hosts.server, "spiped-receive", "[Service]\nTimeoutStopSec=12\nWatchdogSec=0\n");
    hosts.server.run("systemctl restart spiped-receive");
    let hung = serving(&hosts.server, "spiped-receive");
    hosts.server.run(&format!("kill -STOP {hung}; systemctl restart spiped-receive"));
    hosts.server.await_line("spiped-receive", &["is stopped first", &hung, "has not answered"]);
    hosts.server.fail(&format!("test -e /proc/{hung}"));
    assert_eq!(hosts.client.run("redis-cli -p 8000 ping"), "PONG");
}

pub(crate) fn a_process_whose_parent_is_killed_serves_until_the_next_one_does(hosts: &Hosts) {
    hosts.start_pipe();
    subscribe(hosts);
    let before = serving(&hosts.server, "spiped-receive");
    hosts.server.run("kill -KILL $(systemctl show -P MainPID spiped-receive)");
    hosts.server.await_line("spiped-receive", &["took over", &format!("from={before}")]);
    assert_subscribed(hosts);
}

pub(crate) fn a_new_binary_is_served_after_a_restart_and_the_old_one_after_another(hosts: &Hosts) {
    hosts.start_pipe();
    subscribe(hosts);
    let runs = |name: &str| {
        let process = serving(&hosts.server, "spiped-receive");
        assert_eq!(
            hosts.server.run(&format!("cmp /proc/{process}/exe /usr/bin/{name} && echo same")),
            "same"
        );
    };
    runs("spipe");
    hosts.server.run("cp /usr/bin/spipe /usr/bin/spipe.old; cp /usr/bin/spipe /usr/bin/spipe.new; echo >> /usr/bin/spipe.new");
    for version in ["spipe.new", "spipe.old"] {
        hosts.server.run(&format!(
            "cp /usr/bin/{version} /usr/bin/spipe.next; mv /usr/bin/spipe.next /usr/bin/spipe"
        ));
        hosts.server.run("systemctl restart spiped-receive");
        runs(version);
        assert_subscribed(hosts);
    }
    hosts.server.run("rm /usr/bin/spipe.*");
}
