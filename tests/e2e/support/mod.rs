//! Building blocks of the tests: processes that end with the test, both ends of a pipe, targets and clients for them,
//! a browser, and a relay that does to the wire what networks and attackers can do.

pub(crate) mod browser;
pub(crate) mod dns;
pub(crate) mod http;
pub(crate) mod manager;
pub(crate) mod memory;
pub(crate) mod metrics;
pub(crate) mod network;
pub(crate) mod peer;
pub(crate) mod pipe;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod random;
pub(crate) mod redis;
pub(crate) mod relay;
#[path = "../../protocol/second.rs"]
pub(crate) mod second;
pub(crate) mod site;
pub(crate) mod socket;
pub(crate) mod spiped;
pub(crate) mod tls;

use std::time::Duration;

/// The limit that turns a hang into a failure. A test that passes never waits for it, so it is long: the machine may
/// be slow and busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// For the few conditions that can only be polled.
pub(crate) fn poll_until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(start.elapsed() < DEADLINE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
