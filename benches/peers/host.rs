//! The hosts of the two ends: this one, or two that are far from each other.
//!
//! ```text
//!  ┌───────────── near ─────────────┐              ┌───────────── far ──────────────┐
//!  client ─▶ near end ─▶ tun device ══ 25 ms each way ══ tun device ─▶ far end ─▶ service
//! ```
//!
//! Two far hosts are network namespaces. What one of them sends to the other, a thread reads from its tun device and
//! writes to the other's device later: sch_netem would do the same, but not every kernel has it.

use std::fs::{self, File, read_to_string};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, mpsc};
use std::thread::{self, sleep};
use std::time::Instant;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::process::{getuid, setpriority_process};
use tappers::{Interface, Tun};

use crate::error::Result;
use crate::machine::{CONGESTION_CONTROL, command};
use crate::process::output;
use crate::work::ROUND_TRIP;

/// Programs, with the Debian packages that bring them.
pub(crate) const NEEDS: [(&str, &str); 1] = [("ip", "iproute2")];
const DEVICE: &str = "distance";
/// An Ethernet's.
const MTU: usize = 1500;

/// Where an end runs.
pub(crate) struct Host {
    /// `None` is the namespace of this process.
    namespace: Option<File>,
    /// Where it listens.
    pub(crate) address: IpAddr,
}

impl Host {
    /// This host twice. Each end has an address of its own on loopback, and connections come from a third one: so none
    /// takes the port that an end is about to listen on.
    pub(crate) fn here() -> [Self; 2] {
        [2, 3].map(|last| Self { namespace: None, address: Ipv4Addr::new(127, 0, 0, last).into() })
    }

    /// Two hosts, a round trip of [`ROUND_TRIP`] apart, for as long as the benchmark runs.
    pub(crate) fn distant() -> Result<[Self; 2]> {
        if !getuid().is_root() {
            return Err(
                "only root can make two hosts that are far from each other: run it as root, or choose \
                        other work with --work"
                    .into(),
            );
        }
        let (near, near_device) = Self::new(Ipv4Addr::new(10, 0, 0, 1))?;
        let (far, far_device) = Self::new(Ipv4Addr::new(10, 0, 0, 2))?;
        carry(&near_device, &far_device);
        carry(&far_device, &near_device);
        Ok([near, far])
    }

    fn new(address: Ipv4Addr) -> Result<(Self, Arc<Tun>)> {
        // The thread leaves the namespace of all others, and ends.
        let made = thread::spawn(move || -> Result<_> {
            let congestion_control = read_to_string(CONGESTION_CONTROL)?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            // A new namespace has the one of the first, where this one may have been given another.
            if read_to_string(CONGESTION_CONTROL)? != congestion_control {
                fs::write(CONGESTION_CONTROL, congestion_control)?;
            }
            let namespace = File::open("/proc/thread-self/ns/net")?;
            let device = Tun::new_named(Interface::new(DEVICE)?)?;
            let ip = |arguments: &str| output(command("ip")?.args(arguments.split(' ')));
            ip("link set lo up")?;
            ip(&format!("address add {address}/24 dev {DEVICE}"))?;
            ip(&format!("link set {DEVICE} mtu {MTU} up"))?;
            Ok((Self { namespace: Some(namespace), address: address.into() }, Arc::new(device)))
        });
        made.join().expect("it does not panic")
    }

    /// Does `work` there: what it starts, and where it listens and connects to, belong to that host.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let Some(namespace) = &self.namespace else { return work() };
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            there.join().expect("it does not panic")
        })
    }
}

/// Whether a socket listens on `address`, on the host of the thread that calls: seen without a connection to it.
pub(crate) fn is_listening(address: SocketAddr) -> io::Result<bool> {
    let IpAddr::V4(ip) = address.ip() else { return Err(io::ErrorKind::Unsupported.into()) };
    // As the kernel prints it: the address in memory's order, and 0A for TCP_LISTEN.
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port());
    let sockets = read_to_string("/proc/thread-self/net/tcp")?;
    Ok(sockets.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1) == Some(&local.as_str()) && fields.get(3) == Some(&"0A")
    }))
}

/// Carries what one device sends to the other, later.
fn carry(from: &Arc<Tun>, to: &Arc<Tun>) {
    let (from, to) = (Arc::clone(from), Arc::clone(to));
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        hurry();
        let mut packet = [0; MTU];
        while let Ok(length) = from.recv(&mut packet) {
            if sender.send((Instant::now() + ROUND_TRIP / 2, packet[..length].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        hurry();
        for (due, packet) in receiver {
            if let Some(early) = due.checked_duration_since(Instant::now()) {
                sleep(early);
            }
            // A packet that does not fit is lost, as on any wire.
            let _ = to.send(&packet);
        }
    });
}

/// Has this thread come before the ends on a busy processor, which is no part of a wire. Root of a container may not do that.
fn hurry() {
    let _ = setpriority_process(None, -20);
}
