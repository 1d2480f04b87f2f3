//! TCP keep-alive, as the kernel reports it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::pipe::{Pipe, field};
use crate::support::poll_until;
use crate::support::site::Site;
use crate::support::socket::{assert_echoes, connect, echo, listed};

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

/// Waits until the connection that `end` has accepted is probed after `at_most`, and not much sooner.
fn assert_probed_after(end: SocketAddr, at_most: Duration) {
    poll_until("the connection is probed after that time", || {
        let accepted = listed().into_iter().find(|row| row.local == end && row.state == "01")?;
        let left = accepted.timer_left;
        (accepted.timer == "02" && left <= at_most && left > at_most / 2).then_some(())
    });
}

#[test]
fn idle_connections_are_probed_when_the_option_says() {
    for (seconds, time) in [("9", Duration::from_secs(9)), ("32767", Duration::from_secs(32_767))] {
        let pipe = Pipe::to(echo()).args(&["--keepalive", seconds]).start();
        let mut client = pipe.connect();
        assert_echoes(&mut client, "hello");
        for end in [&pipe.initiator, &pipe.responder] {
            assert_probed_after(end.address(), time);
        }
    }
}

#[test]
fn a_reload_changes_when_new_connections_are_probed() {
    let site = Site::with_key();
    let pipe = site.both_ends("a", echo()).replacen(&site.socket("a"), "127.0.0.1:0", 1);
    let process = site.serve(&pipe);
    let line = process.await_line(&["listening", "pipe=\"a\""]);
    let source: SocketAddr = field(&line, "source").replace(['[', ']'], "").parse().expect("an address");
    site.configure(pipe.replacen("key = ", "keepalive = 600\nkey = ", 1));
    process.reload_successfully();
    let mut client = connect(source);
    assert_echoes(&mut client, "hello");
    assert_probed_after(source, Duration::from_secs(600));
}
