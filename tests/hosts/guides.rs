//! The guides, followed exactly.

use crate::Hosts;
use crate::packages::APT;
use crate::support::guide::follow;
use crate::support::load::Load;

const REDIS: &str = "redis-on-two-hosts.md";
const ROTATE: &str = "rotate-a-key.md";
const MANY: &str = "many-pipes.md";
const FROM_SPIPED: &str = "from-spiped.md";
const UPGRADE: &str = "upgrade.md";

impl Hosts {
    /// Sets up the pipe of the guide "Redis on two hosts".
    pub(crate) fn start_pipe(&self) {
        self.copy_files();
        for section in ["Install", "Make a key, and copy it", "Start"] {
            follow(REDIS, section, &self.server, &self.client);
        }
    }

    /// Sets up the pipes of the guide "Many pipes".
    pub(crate) fn start_office(&self) {
        self.copy_files();
        for section in ["On the server", "On the client"] {
            follow(MANY, section, &self.server, &self.client);
        }
    }

    /// Has systemd hold the socket of the server's end as well, as the guide shows it for the client's.
    pub(crate) fn give_the_server_of_the_office_a_socket_unit(&self) {
        self.server.run(
            "sed -i '0,/^source = .*/s//source = \"systemd\"/' /etc/spipe/office.toml
             install -d /etc/systemd/system/spipe@office.socket.d
             printf '[Socket]\nListenStream=\nListenStream=0.0.0.0:6380\n' > /etc/systemd/system/spipe@office.socket.d/local.conf
             systemctl daemon-reload
             systemctl stop spipe@office.service
             systemctl enable --now spipe@office.socket spipe@office.service",
        );
    }
}

pub(crate) fn redis_on_two_hosts(hosts: &Hosts) {
    let Hosts { server, client } = hosts;
    hosts.start_pipe();
    follow(REDIS, "Try it", server, client);
    for host in [client, server] {
        host.reboot();
        follow(REDIS, "After a reboot", server, client);
    }
    let connections = "redis-cli info stats | grep total_connections_received";
    let before = server.run(connections);
    follow(REDIS, "Without the key", server, client);
    // The question itself is one more connection.
    let count = |line: &str| {
        line.trim().rsplit(':').next().and_then(|count| count.parse::<u64>().ok()).expect("a count")
    };
    assert_eq!(count(&server.run(connections)), count(&before) + 1);
}

pub(crate) fn no_request_fails_while_a_key_is_rotated(hosts: &Hosts) {
    let Hosts { server, client } = hosts;
    hosts.start_pipe();
    client.run("cp -p /etc/spipe/send.keys/redis.key /root/old.key");
    let load = Load::start(client, 8000);
    for step in ["Add the new key on the server", "Switch the clients", "Remove the old key"] {
        follow(ROTATE, step, server, client);
        load.assert_continues();
    }
    load.end();

    let new = server.run("spipe fingerprint /etc/spipe/receive.keys/redis-2.key");
    server.await_line("spiped-receive", &["listening", &format!("key={new}")]);
    // The old key is refused.
    let refused = client.try_run("echo PING | timeout 10 spipe -t 192.0.2.10:6380 -k old.key");
    assert!(!refused.success && !refused.text.contains("PONG"), "{}", refused.text);
    server.await_line("spiped-receive", &["refused", "key"]);
}

pub(crate) fn no_request_fails_while_a_new_version_is_installed_and_taken_back(hosts: &Hosts) {
    let Hosts { server, client } = hosts;
    hosts.start_pipe();
    let load = Load::start(client, 8000);
    for section in ["With systemd", "How to go back"] {
        follow(UPGRADE, section, server, client);
        load.assert_continues();
    }
    load.end();
}

pub(crate) fn many_pipes(hosts: &Hosts) {
    hosts.start_office();
    for section in ["Try it", "Change it"] {
        follow(MANY, section, &hosts.server, &hosts.client);
    }
}

pub(crate) fn no_new_connection_fails_while_a_service_with_a_socket_unit_is_restarted(hosts: &Hosts) {
    let Hosts { server, client } = hosts;
    hosts.start_office();
    hosts.give_the_server_of_the_office_a_socket_unit();
    let load = Load::start_fresh(client, 8000);
    for _ in 0..5 {
        for host in [client, server] {
            host.run("systemctl restart spipe@office.service");
            load.assert_continues();
        }
    }
    load.end();
}

/// Prints what the services of both hosts have logged, if the test fails.
struct Journals<'h>(&'h Hosts);

impl Drop for Journals<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in [&self.0.server, &self.0.client] {
                println!("{}", host.journal("'spipe*'"));
            }
        }
    }
}

/// Two spipeds as services, as guides for it set them up.
fn start_spipeds(Hosts { server, client }: &Hosts) {
    let unit = |line: &str| {
        format!(
            "[Unit]\nDescription=spiped for Redis\n\n[Service]\nExecStart=/usr/bin/spiped -F {line} -k \
             /etc/spiped/redis.key\n\n[Install]\nWantedBy=multi-user.target\n"
        )
    };
    server.run("install -d /etc/spiped; dd if=/dev/urandom bs=32 count=1 of=/etc/spiped/redis.key; chmod 600 /etc/spiped/*");
    client.run("install -d /etc/spiped; scp -q root@192.0.2.10:/etc/spiped/redis.key /etc/spiped/");
    for host in [server, client] {
        host.run(&format!("{APT} install /srv/spiped.deb"));
    }
    for (host, line) in [
        (server, "-d -s [0.0.0.0]:6380 -t [127.0.0.1]:6379"),
        (client, "-e -s [127.0.0.1]:8000 -t [192.0.2.10]:6380"),
    ] {
        host.put("/etc/systemd/system/spiped-redis.service", "644", unit(line).as_bytes());
        host.run("systemctl daemon-reload; systemctl start spiped-redis");
    }
    client.await_output("redis-cli -p 8000 ping", "PONG");
}

pub(crate) fn no_request_fails_while_two_spipeds_become_two_spipes(hosts: &Hosts) {
    let Hosts { server, client } = hosts;
    start_spipeds(hosts);
    hosts.copy_files();
    let _journals = Journals(hosts);
    follow(FROM_SPIPED, "On each client", server, client);
    assert_eq!(client.run("redis-cli -p 8000 ping"), "PONG");
    let load = Load::start_fresh(client, 18000);
    for step in ["On the server", "Each client changes the protocol", "The end of spiped"] {
        follow(FROM_SPIPED, step, server, client);
        load.assert_continues();
    }
    load.end();
    // By now, everything goes by spipe's own protocol.
    client.run("redis-cli -p 8000 ping");
    let line = server.await_line("spipe@redis", &["closed", "finished"]);
    assert!(!line.contains("hmacsha256"), "{line}");
    server.fail("systemctl is-active spiped-redis");
}

pub(crate) fn spipe_takes_the_port_of_a_server_whose_clients_stay_with_spiped(hosts: &Hosts) {
    let Hosts { server, client } = hosts;
    start_spipeds(hosts);
    hosts.copy_files();
    follow(FROM_SPIPED, "On the server", server, client);
    server.run("systemctl stop spipe@redis");
    // As its last section says.
    server.run(
        "sed -i -e 's/6381/6380/' -e '/^mode/a protocol = \"spiped\"' /etc/spipe/redis.toml; spipe check /etc/spipe/redis.toml",
    );
    server.run("systemctl disable --now spiped-redis; systemctl enable --now spipe@redis");
    assert_eq!(client.run("redis-cli -p 8000 ping"), "PONG");
    server.await_line("spipe@redis", &["closed", "hmacsha256", "finished"]);
}
