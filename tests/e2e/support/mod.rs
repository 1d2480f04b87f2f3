//! What the tests are made of: processes that end with the test, both ends of a pipe, services and clients to put at
//! them, and a relay that does to the wire what networks and attackers do.

pub(crate) mod manager;
pub(crate) mod pipe;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod site;
pub(crate) mod socket;

use std::time::Duration;

/// The guard that turns a hang into a failure. No test waits for it to pass, so it may be generous: the machine may be
/// slow and busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// For the few cases where nothing but asking again tells that something has come about.
pub(crate) fn poll_until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(start.elapsed() < DEADLINE, "it did not come about in time that {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
