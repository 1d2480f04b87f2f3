//! The units that are shipped, checked and run by systemd.

use crate::Hosts;
use crate::support::host::Host;

/// The highest allowed exposure level of `systemd-analyze security`.
const EXPOSURE_MAX: f64 = 1.5;

/// The names of the services that are checked.
const SERVICES: [&str; 3] = ["spiped-receive.service", "spiped-send.service", "spipe@office.service"];

pub(crate) fn systemd_finds_nothing_wrong_with_the_units(hosts: &Hosts) {
    hosts.install();
    for host in [&hosts.server, &hosts.client] {
        // It prints what is wrong, but does not always fail. The manual pages that the units name are not on these hosts.
        let units = SERVICES.join(" ");
        assert_eq!(
            host.run(&format!(
                "cd /etc/systemd/system; systemd-analyze verify --man=no {units} spipe@office.socket"
            )),
            ""
        );
    }
}

pub(crate) fn the_exposure_of_each_service_is_low(hosts: &Hosts) {
    hosts.install();
    for host in [&hosts.server, &hosts.client] {
        for service in SERVICES {
            let said = host.run(&format!("systemd-analyze security --offline=true --no-pager {service}"));
            let exposure =
                said.lines().find_map(|line| line.split_once("Overall exposure level for")).expect(&said).1;
            let exposure =
                exposure.split_whitespace().nth(1).and_then(|level| level.parse::<f64>().ok()).expect(&said);
            assert!(exposure <= EXPOSURE_MAX, "{said}");
        }
    }
}

pub(crate) fn the_service_has_no_rights_and_root_keeps_the_key(hosts: &Hosts) {
    hosts.start_pipe();
    for (host, unit, keys) in
        [(&hosts.server, "spiped-receive", "receive.keys"), (&hosts.client, "spiped-send", "send.keys")]
    {
        let status = host.run(&format!("cat /proc/$(systemctl show -P MainPID {unit})/status"));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(&status);
            line.split_whitespace().next().expect(&status).to_owned()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:"), "2");
        assert_ne!(field("Uid:"), "0");
        assert_eq!(host.run(&format!("stat -c '%U %a' /etc/spipe/{keys}/redis.key")), "root 600");
        // The sandbox of spipe itself works within the restrictions of the unit.
        let sandboxed = host.await_line(unit, &["sandboxed"]);
        let memory = if root_may_lift_limits() { "locked" } else { "swappable" };
        let is_whole = sandboxed.contains("landlock=abi")
            && sandboxed.ends_with(&format!("seccomp=on memory={memory} capabilities=none"));
        assert!(is_whole, "{sandboxed}");
        // What the unit has taken already is not missed.
        let journal = host.journal(unit);
        assert!(!journal.contains("rights that are not needed"), "{journal}");
    }
}

pub(crate) fn a_started_service_listens(hosts: &Hosts) {
    hosts.start_pipe();
    for _ in 0..5 {
        assert_eq!(hosts.client.run("systemctl restart spiped-send; redis-cli -p 8000 ping"), "PONG");
    }
}

pub(crate) fn a_process_that_hangs_is_started_again(hosts: &Hosts) {
    hosts.start_pipe();
    drop_in(&hosts.server, "spiped-receive", "[Service]\nWatchdogSec=2\n");
    hosts.server.run("systemctl restart spiped-receive");
    hosts.server.run("systemctl kill --signal=STOP spiped-receive");
    hosts.server.await_line("spiped-receive", &["Watchdog timeout"]);
    hosts.server.await_output(
        "systemctl show -P NRestarts -P ActiveState spiped-receive | paste -sd ' '",
        "1 active",
    );
    assert_eq!(hosts.client.run("redis-cli -p 8000 ping"), "PONG");
}

pub(crate) fn a_process_that_dies_is_started_again(hosts: &Hosts) {
    hosts.start_pipe();
    hosts.client.run("systemctl kill --signal=KILL spiped-send");
    hosts
        .client
        .await_output("systemctl show -P NRestarts -P ActiveState spiped-send | paste -sd ' '", "1 active");
    assert_eq!(hosts.client.run("redis-cli -p 8000 ping"), "PONG");
}

pub(crate) fn status_says_which_keys_have_connections(hosts: &Hosts) {
    hosts.start_pipe();
    let fingerprint = hosts.server.run("spipe fingerprint /etc/spipe/receive.keys/redis.key");
    hosts.client.run("systemd-run --quiet --unit=load-idle redis-cli -p 8000 subscribe news");
    let status = "systemctl status --no-pager spiped-receive | grep Status: | sed 's/^ *//'";
    hosts.server.await_output(status, &format!("Status: \"1 pipe, 1 connection ({fingerprint}: 1)\""));
}

pub(crate) fn the_drain_timeout_applies_whatever_the_stop_timeout_of_the_unit(hosts: &Hosts) {
    hosts.start_pipe();
    drop_in(
        &hosts.server,
        "spiped-receive",
        "[Service]\nEnvironment=\"OPTIONS=--drain-timeout 4\"\nTimeoutStopSec=1\n",
    );
    hosts.server.run("systemctl restart spiped-receive");
    hosts.client.run("systemd-run --quiet --unit=load-idle redis-cli -p 8000 subscribe news");
    hosts.server.await_output(
        "systemctl show -P StatusText spiped-receive | cut -d '(' -f 1",
        "1 pipe, 1 connection",
    );
    hosts.server.run("systemctl stop spiped-receive");
    // spipe cut the connection itself, and was not killed after a second.
    hosts.server.await_line("spiped-receive", &["stopped: ended connections", "connections=1"]);
}

pub(crate) fn a_reload_with_an_unusable_key_fails_and_changes_nothing(hosts: &Hosts) {
    hosts.start_pipe();
    hosts.server.run("rm /etc/spipe/receive.keys/redis.key; echo short > /etc/spipe/receive.keys/bad.key");
    hosts.server.run("chmod 600 /etc/spipe/receive.keys/bad.key");
    hosts.server.fail("systemctl reload spiped-receive");
    hosts.server.await_line("spiped-receive", &["/etc/spipe/receive.keys/bad.key", "not usable"]);
    assert_eq!(hosts.client.run("redis-cli -p 8000 ping"), "PONG");
}

pub(crate) fn a_reload_that_fails_in_the_process_is_in_the_status(hosts: &Hosts) {
    hosts.start_office();
    hosts.server.run("echo nonsense >> /etc/spipe/office.toml; systemctl kill --signal=HUP spipe@office");
    hosts.server.await_line("spipe@office", &["not reloaded", "office.toml"]);
    hosts.server.await_output(
        "systemctl show -P StatusText spipe@office | cut -d ';' -f 1",
        "the last reload failed, see the log",
    );
    assert_eq!(hosts.client.run("redis-cli -p 8000 ping"), "PONG");
}

pub(crate) fn an_administrator_asks_a_service_over_its_control_socket(hosts: &Hosts) {
    hosts.start_office();
    let pipes = hosts.server.run("cat /etc/spipe/office.toml");
    let service = "control = \"/run/spipe-office/control\"\nstatus = \"127.0.0.1:9100\"";
    hosts.server.put("/etc/spipe/office.toml", "644", format!("{service}\n{pipes}\n").as_bytes());
    hosts.server.run("systemctl restart spipe@office");
    let status = hosts.server.run("spipe status --control /run/spipe-office/control");
    assert!(status.contains("serving, ready"), "{status}");
    hosts.server.run("spipe reload --control /run/spipe-office/control");
    hosts
        .server
        .fail("setpriv --reuid=nobody --clear-groups spipe status --control /run/spipe-office/control");
    let ask = "exec 3<>/dev/tcp/127.0.0.1/9100; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    hosts.server.put("/root/ask", "755", ask.as_bytes());
    let metrics = hosts.server.run("bash /root/ask");
    for name in ["spipe_ready 1", "process_open_fds ", "process_resident_memory_bytes "] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    assert_eq!(hosts.client.run("redis-cli -p 8000 ping"), "PONG");
}

pub(crate) fn the_journal_has_levels(hosts: &Hosts) {
    hosts.start_pipe();
    hosts
        .server
        .run("echo nonsense > /etc/spipe/receive.keys/redis.key; systemctl kill --signal=HUP spiped-receive");
    // A plain client at the sealed port is refused.
    hosts.client.fail("redis-cli -h 192.0.2.10 -p 6380 ping");
    hosts.server.await_line("spiped-receive", &["refused"]);
    let grave = hosts.server.run("journalctl --sync; journalctl -o cat -p warning -u spiped-receive");
    assert!(!grave.contains("listening"), "{grave}");
    let all = hosts.server.run("journalctl -o cat -u spiped-receive");
    assert!(all.contains("listening"), "{all}");
    // The level is not repeated in the text.
    assert!(!all.contains("INFO") && !all.contains("<6>"), "{all}");
}

pub(crate) fn a_port_below_1024_needs_one_capability(hosts: &Hosts) {
    hosts.start_pipe();
    drop_in(
        &hosts.server,
        "spiped-receive",
        "[Service]\nEnvironment=SOURCE=[0.0.0.0]:443\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n\
         AmbientCapabilities=CAP_NET_BIND_SERVICE\nPrivateUsers=no\n",
    );
    drop_in(&hosts.client, "spiped-send", "[Service]\nEnvironment=TARGET=[192.0.2.10]:443\n");
    hosts.server.run("systemctl restart spiped-receive");
    assert_eq!(hosts.client.run("systemctl restart spiped-send; redis-cli -p 8000 ping"), "PONG");
}

pub(crate) fn the_first_connection_to_the_socket_unit_starts_the_service(hosts: &Hosts) {
    hosts.start_office();
    // As it is shipped, the unit has a Unix-domain socket.
    hosts.client.run("rm /etc/systemd/system/spipe@office.socket.d/local.conf; systemctl daemon-reload");
    hosts.client.run("systemctl stop spipe@office.service; systemctl restart spipe@office.socket");
    hosts.client.fail("systemctl is-active spipe@office.service");
    assert_eq!(hosts.client.run("redis-cli -s /run/spipe/office.sock ping"), "PONG");
    assert_eq!(hosts.client.run("systemctl is-active spipe@office.service"), "active");
}

pub(crate) fn the_unit_lines_of_guides_for_spiped_work_with_the_name_changed(hosts: &Hosts) {
    hosts.install();
    let unit = |line: &str| {
        format!(
            "[Unit]\nDescription=Spiped for Redis\nWants=network-online.target\nAfter=network-online.target\n\n\
             [Service]\nExecStart={}\nRestart=on-failure\n\n[Install]\nWantedBy=multi-user.target\n",
            line.replace("/usr/bin/spiped", "/usr/bin/spipe")
        )
    };
    let start = |host: &Host, name: &str, line: &str| {
        host.put(&format!("/etc/systemd/system/{name}.service"), "644", unit(line).as_bytes());
        host.run(&format!("systemctl daemon-reload; systemctl start {name}"));
        host.await_line(name, &["listening"]);
    };
    let (server, client) = (&hosts.server, &hosts.client);
    server.run("install -d /etc/spiped; dd if=/dev/urandom bs=32 count=1 of=/etc/spiped/redis.key; chmod 600 /etc/spiped/*");
    client.run("install -d /etc/spiped; scp -q root@192.0.2.10:/etc/spiped/redis.key /etc/spiped/");
    start(
        server,
        "spiped-receive",
        "/usr/bin/spiped -F -d -s [192.0.2.10]:6379 -t [127.0.0.1]:6379 -k /etc/spiped/redis.key",
    );
    start(
        client,
        "spiped-send",
        "/usr/bin/spiped -F -e -s [127.0.0.1]:8000 -t [192.0.2.10]:6379 -k /etc/spiped/redis.key",
    );
    assert_eq!(client.run("redis-cli -p 8000 ping"), "PONG");
    // No two programs can share the port on Linux, so the target of this one could only be itself.
    let loops = "/usr/bin/spipe -F -d -s [0.0.0.0]:6379 -t [127.0.0.1]:6379 -k /etc/spiped/redis.key";
    let refusal = client.run(&format!("{loops} 2>&1 || true"));
    assert!(refusal.contains("is the pipe's own source"), "{refusal}");
}

/// Whether root may lift limits on this machine (CAP_SYS_RESOURCE). In a container it may not, and then root on the
/// hosts may not either.
fn root_may_lift_limits() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("/proc has this field");
    u64::from_str_radix(rights.trim(), 16).expect("a number") & (1 << 24) != 0
}

/// Adds a drop-in file with `text` to `unit`; nothing is started.
pub(crate) fn drop_in(host: &Host, unit: &str, text: &str) {
    // The name sorts after that of the guide's drop-in file, so that it overrides it.
    host.put(&format!("/etc/systemd/system/{unit}.service.d/test.conf"), "644", text.as_bytes());
    host.run("systemctl daemon-reload");
}
