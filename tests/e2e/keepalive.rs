//! TCP keep-alive, as the kernel reports it.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::pipe::Pipe;
use crate::support::socket::{assert_echoes, echo};

/// The timers of the established connections that were accepted on `port`: field `tr` of /proc/net/tcp, where `02` is
/// keep-alive, `01` a retransmission, which ends soon, and `00` none (proc_pid_net(5)).
pub(crate) fn timers(port: u16) -> Vec<String> {
    let port = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").expect("Linux has this file");
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[1].ends_with(&port) && row[3] == "01").map(|row| row[5][..2].to_owned()).collect()
}

/// Waits until both the client's connection and the connection on the wire have exactly this timer.
fn assert_timer(args: &[&str], expected: &str) {
    let pipe = Pipe::to(echo()).args(args).start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "hello");
    let guard = Instant::now() + Duration::from_secs(30);
    for end in [&pipe.initiator, &pipe.responder] {
        loop {
            let timers = timers(end.address().port());
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
