//! How TCP connections are kept alive, and how one that is dead is told from one that is only slow.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{getsockopt, setsockopt};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::Answer;

/// When a TCP connection counts as dead, and how that is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How long the other side may leave unanswered what was sent to it (`--dead-after`): at least 5 seconds.
    pub dead_after: Duration,
    /// When idle connections are probed.
    pub probes: Probes,
}

/// When TCP keep-alive probes a connection on which nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probes {
    /// So early that a path which has died is noticed within `dead_after`.
    InTime,
    /// After so long (`--keepalive`): at least a second, and at most 32,767 (MAX_TCP_KEEPIDLE).
    After(Duration),
    /// Never (`-j`). A connection may outlive its peer for ever.
    Never,
}

impl Keepalive {
    /// `--dead-after` by default. The first probe then comes after a minute, inside the idle limits of common NATs.
    pub const DEAD_AFTER: Duration = Duration::from_secs(120);

    /// How often a connection with something unanswered is looked at: eight times within the limit.
    pub(crate) fn step(self) -> Duration {
        self.dead_after / 8
    }
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { dead_after: Self::DEAD_AFTER, probes: Probes::InTime }
    }
}

/// Longest pause between two retransmissions, or two probes of a window that stays closed, in milliseconds: from Linux 6.15,
/// `include/uapi/linux/tcp.h`.
const TCP_RTO_MAX_MS: libc::c_int = 44;

#[derive(Clone, Copy)]
struct RtoMax;
nix::setsockopt_impl!(
    RtoMax,
    libc::IPPROTO_TCP,
    TCP_RTO_MAX_MS,
    u32,
    nix::sys::socket::sockopt::SetStruct<u32>
);

#[derive(Clone, Copy)]
struct Info;
nix::getsockopt_impl!(
    Info,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    libc::tcp_info,
    nix::sys::socket::sockopt::GetStruct<libc::tcp_info>
);

/// Sets `socket` up so that a dead peer is noticed within `keepalive.dead_after`.
///
/// The kernel's own limit for this is TCP_USER_TIMEOUT. It is not used, since it would also end a connection whose peer lives,
/// acknowledges every probe, and only does not read (tcp_probe_timer() in Linux): a client that is paused for an hour. The
/// kernel does what keeps the connection talking, and [`answer`] tells whether somebody answers.
pub(super) fn keep_alive(socket: &impl AsFd, keepalive: Keepalive) {
    let Keepalive { dead_after, probes } = keepalive;
    // In whole seconds. Half of the time passes in silence, and four probes share the rest.
    let seconds = dead_after.as_secs();
    let (silence, interval) = (seconds / 2, (seconds / 8).max(1));
    let idle = match probes {
        Probes::InTime => Some(Duration::from_secs(silence)),
        Probes::After(idle) => Some(idle),
        Probes::Never => None,
    };
    if let Some(idle) = idle {
        let retries = u32::try_from((seconds - silence) / interval).unwrap_or(u32::MAX);
        let settings = TcpKeepalive::new()
            .with_time(idle)
            .with_interval(Duration::from_secs(interval))
            .with_retries(retries);
        let _ = SockRef::from(socket).set_tcp_keepalive(&settings);
    } else {
        // A socket that listens may have had it from the pipe before.
        let _ = SockRef::from(socket).set_keepalive(false);
    }
    // Both kinds of pause double each time, up to two minutes. A connection that has waited long would not ask for so long
    // whether its peer still lives. Kernels that do not know the option stay with that.
    let pause = keepalive.step().as_millis().clamp(1_000, 120_000);
    let _older_kernel = setsockopt(socket, RtoMax, &u32::try_from(pause).expect("it is clamped"));
}

/// Whether the other side answers.
pub(super) fn answer(socket: &TcpStream, within: Duration) -> Answer {
    let Ok(info) = getsockopt(socket, Info) else { return Answer::NotDue };
    // A window that stays closed has probes instead of packets in flight; their number goes back to 0 with each answer.
    let is_due = info.tcpi_unacked > 0 || info.tcpi_probes > 0;
    let heard = Duration::from_millis(info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv).into());
    match (is_due, info.tcpi_backoff > 0) {
        (true, _) if heard >= within => Answer::Due,
        (false, false) => Answer::NotDue,
        _ => Answer::Heard,
    }
}

/// How many connections wait to be accepted at a socket that listens.
pub(crate) fn queued(listener: &impl AsFd) -> u32 {
    // Of such a socket, this field is the length of the queue (tcp_get_info() in Linux).
    getsockopt(listener, Info).map_or(0, |info| info.tcpi_unacked)
}

/// States of `include/net/tcp_states.h` in which our end of the stream is sent and not yet acknowledged.
const FIN_WAIT1: u8 = 4;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// Whether the end of our stream is sent and not yet acknowledged.
pub(super) fn is_delivering(socket: &TcpStream) -> bool {
    getsockopt(socket, Info).is_ok_and(|info| [FIN_WAIT1, LAST_ACK, CLOSING].contains(&info.tcpi_state))
}
