//! What ties a process that lets its connections finish to the one that serves in its place.
//!
//! Each has a connection to the other, which is kept for as long as both live, and passed on when the one that serves hands over as
//! well. So there is one process to stop, and older ones follow it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::wire;

/// "Stop", and when it comes again, "end the connections".
const WORD: u8 = b's';

/// What it takes a process to tell its peers that connections are cut, and to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Older processes that let their connections finish. Dropping this tells them that nobody is there to wait for.
#[derive(Default)]
pub struct Predecessors(Vec<UnixStream>);

impl Predecessors {
    /// Those at the other ends of `links`.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn new(links: Vec<std::os::unix::net::UnixStream>) -> io::Result<Self> {
        let stream = |link: std::os::unix::net::UnixStream| {
            link.set_nonblocking(true)?;
            UnixStream::from_std(link)
        };
        Ok(Self(links.into_iter().map(stream).collect::<io::Result<_>>()?))
    }

    pub(super) fn add(&mut self, link: UnixStream) {
        self.0.push(link);
    }

    /// What the next process has them by. Those that have ended are forgotten.
    pub(super) fn descriptors(&mut self) -> Vec<OwnedFd> {
        self.0.retain(|link| !wire::has_ended(link));
        self.0.iter().filter_map(|link| link.as_fd().try_clone_to_owned().ok()).collect()
    }

    /// Tells them to stop, for which they have the time of their own `--drain-timeout`; a second time, to end their connections.
    pub fn tell(&self) {
        for link in &self.0 {
            // One that is gone need not be told.
            let _ = link.try_write(&[WORD]);
        }
    }

    /// Waits until all have ended, but not for long once they were told to end their connections, which `cut` says.
    pub async fn ended(&self, cut: impl Future<Output = ()>) {
        let all = async {
            for link in &self.0 {
                while link.readable().await.is_ok() {
                    match link.try_read(&mut [0]) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Ok(1..) => {}
                        Ok(0) | Err(_) => break,
                    }
                }
            }
        };
        let late = async {
            cut.await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! { () = all => {}, () = late => {} }
    }
}

/// The process that serves in our place.
pub struct Successor {
    link: UnixStream,
    pid: i32,
}

impl Successor {
    pub(super) fn new(link: UnixStream, pid: i32) -> Self {
        Self { link, pid }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells it that it may accept, and how many connections are ours to finish.
    ///
    /// # Errors
    /// The operating system's: it is gone.
    pub fn go(&self, connections: usize) -> io::Result<()> {
        wire::send(&self.link, &format!("{}{connections}", wire::GO), None)
    }

    /// Waits until it, or the one after it, is told to stop, or is gone.
    pub async fn stops(&mut self) {
        let _told_or_gone = self.link.read(&mut [0]).await;
    }

    /// Waits until it is told to end connections. That it is gone means nothing.
    pub async fn cuts(&mut self) {
        if !matches!(self.link.read(&mut [0]).await, Ok(1..)) {
            std::future::pending::<()>().await;
        }
    }
}
