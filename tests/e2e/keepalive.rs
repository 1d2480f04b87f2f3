//! TCP keep-alive, as the kernel reports it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::pipe::Pipe;
use crate::support::socket::{assert_echoes, echo, listed};

/// The timers of the established connections that were accepted at `listener`: `02` is keep-alive, `01` a
/// retransmission, which ends soon, and `00` none.
pub(crate) fn timers(listener: SocketAddr) -> Vec<String> {
    let accepted = listed().into_iter().filter(|row| row.local == listener && row.state == "01");
    accepted.map(|row| row.timer).collect()
}

/// Waits until both the client's connection and the connection on the wire have exactly this timer.
fn assert_timer(args: &[&str], expected: &str) {
    let pipe = Pipe::to(echo()).args(args).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "hello");
    let guard = Instant::now() + Duration::from_secs(30);
    for end in [&pipe.initiator, &pipe.responder] {
        loop {
            let timers = timers(end.address());
            if timers == [expected] {
                break;
            }
            assert!(Instant::now() < guard, "the connection has timer {timers:?} and not {expected}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn idle_connections_are_probed() {
    assert_timer(&[], "02");
}

#[test]
fn with_j_idle_connections_are_not_probed() {
    assert_timer(&["-j"], "00");
}
