//! What the service manager is told (`sd_notify(3)`): that we serve, what is going on, and that we are alive.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::pipe::heartbeat::Heartbeat;

/// How often the state is looked at, and so the most often that it is told.
const STATUS_PERIOD: Duration = Duration::from_secs(1);

/// How often the manager is asked for more time to stop. One message that it had no room for is made up for by the next.
const EXTEND_PERIOD: Duration = Duration::from_secs(60);

/// For what comes after the last connection.
const STOPPING: Duration = Duration::from_secs(5);

/// The service manager, if there is one that listens.
pub struct Manager {
    channel: Option<Channel>,
    /// It kills us when it has heard nothing for so long.
    watchdog: Option<Duration>,
}

/// sd-notify has the words; the socket is our own, because theirs would wait when the manager is slow, and does not know
/// the abstract names that some managers use.
struct Channel {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Manager {
    /// As the environment says. Without a manager, nothing is told, at no cost. An address that cannot be one does not keep the
    /// pipe from serving: the variable may come from a parent that had another use for it.
    pub fn from_env() -> Self {
        // An empty one is how scripts unset it.
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let channel = name.and_then(|name| match Channel::new(&name) {
            Ok(channel) => Some(channel),
            Err(error) => {
                let address = name.to_string_lossy();
                warn!(%address, %error, "no service manager is told, since NOTIFY_SOCKET is not an address of one");
                None
            }
        });
        // Zero is "no watchdog", and no period can be made of it.
        let watchdog = sd_notify::watchdog_enabled().filter(|period| !period.is_zero());
        Self { channel, watchdog }
    }

    /// The sockets listen and are served: units that wait for us to start may go on. Told again after each reload.
    pub fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The configuration is read again; [`ready`](Self::ready) follows.
    pub fn reloading(&self) {
        // Type=notify-reload takes the answer to its signal from this stamp; the call cannot fail on Linux.
        let stamp = NotifyState::monotonic_usec_now().ok();
        self.tell(&[Some(NotifyState::Reloading), stamp].into_iter().flatten().collect::<Vec<_>>());
    }

    /// No new connections from here on. It may take `patience` until the last one has ended, and the manager is asked to wait
    /// for so long (its own patience, `TimeoutStopSec=`, is 90 seconds by default). Goes on for ever: one message can ask for
    /// 71 minutes at most, so it is followed by others.
    pub async fn stopping(&self, status: &str, patience: Duration) {
        let mut left = patience + STOPPING;
        let mut states = vec![NotifyState::Stopping, NotifyState::Status(status)];
        loop {
            states.push(NotifyState::ExtendTimeoutUsec(u32::try_from(left.as_micros()).unwrap_or(u32::MAX)));
            self.tell(&states);
            states.clear();
            sleep(EXTEND_PERIOD).await;
            left = left.saturating_sub(EXTEND_PERIOD);
        }
    }

    /// Tells `status` whenever it has changed, and signs of life as often as they are asked for. Goes on for ever.
    ///
    /// The signs are those of the loops under `heartbeat`, not of this one: if any of them is stuck, the manager hears
    /// nothing, and restarts us.
    pub async fn attend(&self, heartbeat: &Heartbeat, status: impl Fn() -> String) {
        if self.channel.is_none() {
            return std::future::pending().await;
        }
        tokio::join!(self.tell_status(status), self.tell_signs_of_life(heartbeat));
    }

    async fn tell_status(&self, status: impl Fn() -> String) {
        let mut ticks = interval(STATUS_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = String::new();
        loop {
            ticks.tick().await;
            let status = status();
            if status != told {
                self.tell(&[NotifyState::Status(&status)]);
                told = status;
            }
        }
    }

    async fn tell_signs_of_life(&self, heartbeat: &Heartbeat) {
        let Some(period) = self.watchdog else { return };
        // sd_watchdog_enabled(3): every half of the time.
        let period = period / 2;
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut answers = std::pin::pin!(heartbeat.answers());
            if timeout(period, answers.as_mut()).await.is_err() {
                error!(
                    "an accept loop gives no sign of life; the service manager hears of none until it does"
                );
                answers.await;
                info!("all accept loops give signs of life again");
            }
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// Never waits: news that the manager has no room for is dropped. A ping comes again, and so does the status.
    fn tell(&self, states: &[NotifyState<'_>]) {
        if let Some(channel) = &self.channel
            && let Err(error) = channel.send(states)
        {
            debug!(%error, "the service manager was not told");
        }
    }
}

impl Channel {
    fn new(name: &OsStr) -> io::Result<Self> {
        // A leading @ stands for the abstract namespace.
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            // vsock and the like, which the manager of a whole virtual machine uses, not that of a service.
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "neither a path nor an abstract name",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    fn send(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let message: Vec<_> = states.iter().map(ToString::to_string).collect();
        // Each message names the address, so that a manager that was started anew is reached.
        self.socket.send_to_addr(message.join("\n").as_bytes(), &self.address).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::Instant;

    use super::*;

    /// A manager that a test plays, and its mailbox.
    fn manager(watchdog: Option<Duration>) -> (Manager, UnixDatagram) {
        // Named by the kernel: a number in the abstract namespace that no other socket has.
        let mailbox = UnixDatagram::unbound().unwrap();
        socket2::SockRef::from(&mailbox).bind(&socket2::SockAddr::unix("").unwrap()).unwrap();
        mailbox.set_nonblocking(true).unwrap();
        let name = mailbox.local_addr().unwrap().as_abstract_name().unwrap().to_owned();
        let channel = Channel::new(OsStr::from_bytes(&[b"@", &*name].concat())).unwrap();
        (Manager { channel: Some(channel), watchdog }, mailbox)
    }

    /// All that has come.
    fn read(mailbox: &UnixDatagram) -> Vec<String> {
        let mut message = [0; 1024];
        std::iter::from_fn(|| {
            mailbox
                .recv(&mut message)
                .ok()
                .map(|length| String::from_utf8_lossy(&message[..length]).into_owned())
        })
        .collect()
    }

    fn pings(mailbox: &UnixDatagram) -> usize {
        read(mailbox).iter().filter(|message| *message == "WATCHDOG=1").count()
    }

    const WATCHDOG: Duration = Duration::from_secs(10);

    #[test]
    fn readiness_and_status_are_one_message() {
        let (manager, mailbox) = manager(None);
        manager.ready("1 pipe");
        assert_eq!(read(&mailbox), ["READY=1\nSTATUS=1 pipe"]);
    }

    #[test]
    fn reloading_carries_the_monotonic_clock() {
        let (manager, mailbox) = manager(None);
        let now = || rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let before = now();
        manager.reloading();
        let [message] = &read(&mailbox)[..] else { panic!("one message") };
        let stamp: i64 = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        let micros = |time: rustix::time::Timespec| time.tv_sec * 1_000_000 + time.tv_nsec / 1000;
        assert!((micros(before)..=micros(now())).contains(&stamp));
    }

    #[test]
    fn a_manager_that_reads_nothing_holds_nothing_up() {
        let (manager, mailbox) = manager(None);
        // More than any queue takes (net.unix.max_dgram_qlen): that this returns is the test.
        for _ in 0..100_000 {
            manager.ready("busy");
        }
        assert!(!read(&mailbox).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_that_takes_hours_is_granted_all_the_time() {
        const PATIENCE: Duration = Duration::from_secs(5 * 3600);
        let (manager, mailbox) = manager(None);
        let _ = timeout(Duration::from_millis(1), manager.stopping("stopping", PATIENCE)).await;
        let first = read(&mailbox).remove(0);
        assert!(first.starts_with("STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC="), "{first}");
        // The queue of the mailbox is short, so it is read as the manager would read it.
        let mut granted_until = Instant::now();
        let reading = async {
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end {
                for message in read(&mailbox) {
                    let (_, micros) = message.rsplit_once("EXTEND_TIMEOUT_USEC=").unwrap();
                    granted_until = Instant::now() + Duration::from_micros(micros.parse().unwrap());
                }
                sleep(Duration::from_secs(1)).await;
                assert!(granted_until > Instant::now(), "killed by the manager");
            }
        };
        tokio::select! {
            biased;
            () = manager.stopping("stopping", PATIENCE) => {}
            () = reading => {}
        }
    }

    #[test]
    fn what_cannot_be_a_manager_is_refused() {
        for name in ["vsock:2:1234", "relative", ""] {
            assert!(Channel::new(OsStr::new(name)).is_err(), "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_status_is_told_when_it_changes_and_not_more_than_once_a_second() {
        let (manager, mailbox) = manager(None);
        let (heartbeat, connections) = (Heartbeat::default(), Cell::new(0));
        let attend = manager.attend(&heartbeat, || format!("{} connections", connections.get()));
        let change = async {
            // Ten changes in each of the first three seconds.
            for count in 0..30 {
                connections.set(count);
                sleep(Duration::from_millis(100)).await;
            }
            sleep(Duration::from_secs(60)).await;
        };
        tokio::select! { () = attend => {}, () = change => {} }
        let told = read(&mailbox);
        assert!((3..=4).contains(&told.len()), "{told:?}");
        assert_eq!(told.last().unwrap(), "STATUS=29 connections");
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_come_twice_in_the_time() {
        let (manager, mailbox) = manager(Some(WATCHDOG));
        let heartbeat = Heartbeat::default();
        let attend = manager.attend(&heartbeat, String::new);
        let accept_loop = heartbeat.beside(sleep(WATCHDOG * 3 + Duration::from_secs(1)));
        tokio::select! { () = attend => {}, () = accept_loop => {} }
        // At the start, and every five seconds in 31 seconds.
        assert_eq!(pings(&mailbox), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_accept_loop_stops_the_signs_of_life() {
        let (manager, mailbox) = manager(Some(WATCHDOG));
        let heartbeat = Heartbeat::default();
        // A loop that is entered, and then not polled again: its thread is blocked, say.
        let mut accept_loop = Box::pin(heartbeat.beside(std::future::pending::<()>()));
        let turn = |mut accept_loop: std::pin::Pin<&mut dyn Future<Output = ()>>| {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(accept_loop.as_mut().poll(&mut context).is_pending());
        };
        turn(accept_loop.as_mut());
        let mut attend = Box::pin(manager.attend(&heartbeat, String::new));
        let _ = timeout(WATCHDOG * 100, attend.as_mut()).await;
        assert_eq!(pings(&mailbox), 0);
        // It comes back.
        turn(accept_loop.as_mut());
        let _ = timeout(Duration::from_secs(1), attend.as_mut()).await;
        assert_eq!(pings(&mailbox), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_watchdog_there_are_no_pings() {
        let (manager, mailbox) = manager(None);
        let _ = timeout(WATCHDOG * 100, manager.attend(&Heartbeat::default(), String::new)).await;
        assert_eq!(pings(&mailbox), 0);
    }
}
