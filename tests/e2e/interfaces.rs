//! Targets that are reached over a network interface, whatever the routes say.

use std::io::Read;

use crate::dead_paths::echo_at;
use crate::support::network::Network;
use crate::support::pipe::{End, Key};
use crate::support::process::run;
use crate::support::site::Site;
use crate::support::socket::assert_echoes;

/// A second interface, beside the loopback.
const SECOND: &str = "ip link add v0 type veth peer name v1 && ip link set v0 up && \
                      ip link set v1 up && ip addr add 10.9.0.1/24 dev v0 &&";

/// A pipe from `near.sock` over TCP to an echo, whose initiator has the target `host` and `options`.
fn pipe_over_tcp(site: &Site, host: &str, options: &str) -> String {
    let near = site.encrypt("near", format!("{host}:7000")) + options + "\n";
    let far = site.decrypt("far", site.socket("service"));
    near + &far.replace(&site.socket("far"), "[127.0.0.1]:7000")
}

/// Asserts that a client is not served, and that the log says why.
#[track_caller]
fn assert_fails(site: &Site, network: &Network, reason: &[&str]) {
    let mut received = Vec::new();
    let _ended = site.connect("near").read_to_end(&mut received);
    assert_eq!(received, b"");
    network.process.await_line(&[&["failed", "cannot connect to"], reason].concat());
}

#[test]
fn addresses_and_names_are_reached_over_the_interface_that_was_asked_for() {
    for host in ["127.0.0.1", "localhost"] {
        let site = Site::with_key();
        echo_at(&site);
        let text = pipe_over_tcp(&site, host, "interface = \"lo\"");
        let _network = Network::serve(&site, SECOND, &text);
        assert_echoes(&mut site.connect("near"), "over lo");
    }
}

#[test]
fn a_target_that_the_interface_does_not_lead_to_is_not_reached_another_way() {
    for host in ["127.0.0.1", "localhost"] {
        let site = Site::with_key();
        let text = pipe_over_tcp(&site, host, "interface = \"v0\"\ntimeout = 1");
        let network = Network::serve(&site, SECOND, &text);
        // What the system says depends on its routes; it may say nothing.
        assert_fails(&site, &network, &[]);
    }
}

#[test]
fn an_interface_that_does_not_exist_is_named_in_the_log() {
    for options in ["interface = \"wg7\"", "interface = \"wg7\"\nbind = \"127.0.0.1\""] {
        let site = Site::with_key();
        let network = Network::serve(&site, "", &pipe_over_tcp(&site, "127.0.0.1", options));
        assert_fails(&site, &network, &["over wg7: No such device"]);
    }
}

#[test]
fn a_reload_changes_the_interface_and_running_connections_go_on() {
    let site = Site::with_key();
    echo_at(&site);
    let network = Network::serve(&site, SECOND, &pipe_over_tcp(&site, "127.0.0.1", ""));
    let mut running = site.connect("near");
    assert_echoes(&mut running, "before");
    site.configure(pipe_over_tcp(&site, "127.0.0.1", "interface = \"wg7\""));
    network.process.reload_successfully();
    assert_fails(&site, &network, &["over wg7"]);
    site.configure(pipe_over_tcp(&site, "127.0.0.1", "interface = \"lo\""));
    network.process.reload_successfully();
    assert_echoes(&mut site.connect("near"), "over lo");
    assert_echoes(&mut running, "after");
}

#[test]
fn a_single_pipe_may_use_its_interface_in_its_sandbox() {
    let key = Key::new();
    let responder = End::responder(&key, crate::support::socket::echo()).start();
    let initiator = End::initiator(&key, responder.address()).args(&["--interface", "lo"]).start();
    assert_echoes(&mut initiator.connect(), "over lo");
}

#[test]
fn an_interface_for_a_unix_target_and_a_name_that_none_can_have_are_refused() {
    let refused = |target: &str, interface: &str, parts: &[&str]| {
        let end = End::initiator(&Key::new(), target).args(&["--interface", interface]);
        run(&mut end.command()).failed_with(2, parts);
    };
    refused("/run/service.sock", "lo", &["/run/service.sock", "leave --interface out"]);
    refused("127.0.0.1:9", "eth0:1", &["'eth0:1' is no name of a network interface", "ip link"]);
}
