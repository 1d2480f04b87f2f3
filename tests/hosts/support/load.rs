//! Clients that send requests without a pause, and fail when a request fails.

use super::host::Host;
use super::poll_until;

/// Clients on a host, run as units of its systemd.
pub(crate) struct Load<'h> {
    host: &'h Host,
    port: u16,
    units: Vec<&'static str>,
}

/// Clients that keep their connections. A request without an answer ends them.
const KEPT: &str = "exec redis-benchmark -p PORT -c 10 -n 100000000 -t incr -q";

/// A new connection and process for each request; each answer is checked.
const FRESH: &str = r#"
ask() { while answer=$(redis-cli -p PORT incr fresh) && [[ $answer =~ ^[0-9]+$ ]]; do :; done; echo "failed: $answer"; }
ask & ask & ask & ask &
wait -n
exit 1
"#;

impl<'h> Load<'h> {
    /// Starts clients of both kinds.
    pub(crate) fn start(host: &'h Host, port: u16) -> Self {
        Self { host, port, units: Vec::new() }.with("load-kept", KEPT).with("load-fresh", FRESH).begin()
    }

    /// Starts clients with a new connection for each request.
    pub(crate) fn start_fresh(host: &'h Host, port: u16) -> Self {
        Self { host, port, units: Vec::new() }.with("load-fresh", FRESH).begin()
    }

    fn with(mut self, unit: &'static str, script: &str) -> Self {
        self.host.put(
            &format!("/run/{unit}"),
            "755",
            format!("#!/bin/bash\n{}", script.replace("PORT", &self.port.to_string())).as_bytes(),
        );
        self.host.run(&format!("systemd-run --quiet --unit={unit} /run/{unit}"));
        self.units.push(unit);
        self
    }

    fn begin(self) -> Self {
        self.assert_continues();
        self
    }

    /// Waits until each kind of client has received 200 more answers, and asserts that no request failed.
    #[track_caller]
    pub(crate) fn assert_continues(&self) {
        let before = self.answered();
        poll_until("requests are still answered", || {
            self.assert_none_failed();
            let after = self.answered();
            before.iter().zip(&after).all(|(before, after)| after - before >= 200).then_some(())
        });
    }

    /// Ends the clients, and asserts that no request failed.
    #[track_caller]
    pub(crate) fn end(self) {
        self.assert_none_failed();
    }

    #[track_caller]
    fn assert_none_failed(&self) {
        for unit in &self.units {
            let state = self.host.try_run(&format!("systemctl is-active {unit}")).text;
            assert_eq!(state, "active", "{unit} has failed:\n{}", self.host.journal(unit));
        }
    }

    /// The number of answered requests for each kind of client, counted by Redis.
    fn answered(&self) -> Vec<u64> {
        let keys = self.units.iter().map(|unit| match *unit {
            // The key that redis-benchmark uses.
            "load-kept" => "counter:__rand_int__",
            _ => "fresh",
        });
        let asked = keys.map(|key| self.host.run(&format!("redis-cli -p {} get {key}", self.port)));
        asked.map(|count| count.parse().unwrap_or(0)).collect()
    }
}

/// Stops the clients even if the test fails, so that they do not disturb the next test.
impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.host.try_run("systemctl kill --signal=KILL 'load-*'; systemctl reset-failed 'load-*'");
    }
}
