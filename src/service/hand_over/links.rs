//! What ties a process that lets its connections finish to the one that serves in its place.
//!
//! Each has a connection to the other, which is kept for as long as both live, and passed on when the one that serves hands over as
//! well. So there is one process to stop, or to take a key away from, and older ones follow it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::wire;
use crate::proto::key::Fingerprint;

/// "Stop", and when it comes again, "end the connections".
const STOP: &str = "stop";
/// "End the connections of keys that are not these".
const KEEP: &str = "keep";
/// "End the connections of this key".
const REVOKE: &str = "revoke";

/// How long a process may take to read a line.
const PATIENCE: Duration = Duration::from_secs(1);

/// What it takes a process to tell its peers that connections are cut, and to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Older processes that let their connections finish. Dropping this tells them that there is nobody any more who would tell them to
/// stop.
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
    pub fn stop(&self) {
        for link in &self.0 {
            // One that is gone, or that hangs, need not be told.
            let _ = link.try_write(format!("{STOP}\n").as_bytes());
        }
    }

    /// Has them end the connections of all keys but `keys`.
    pub async fn keep(&mut self, keys: impl Iterator<Item = Fingerprint>) {
        let words: Vec<_> = [KEEP.to_owned()].into_iter().chain(keys.map(|key| key.to_string())).collect();
        self.tell(&words.join(" ")).await;
    }

    /// Has them end the connections of `key`.
    pub async fn revoke(&mut self, key: Fingerprint) {
        self.tell(&format!("{REVOKE} {key}")).await;
    }

    async fn tell(&mut self, what: &str) {
        let line = format!("{what}\n");
        for mut link in std::mem::take(&mut self.0) {
            // One that hangs, or has ended, is told no more.
            if let Ok(Ok(())) = timeout(PATIENCE, link.write_all(line.as_bytes())).await {
                self.0.push(link);
            }
        }
    }

    /// Waits until all have ended, but not for long once they were told to end their connections, which `cut` says.
    pub async fn ended(&self, cut: impl Future<Output = ()>) {
        let all = async {
            for link in &self.0 {
                while !wire::has_ended(link) && link.readable().await.is_ok() {
                    // They say nothing: what was readable is the end, or it was a mistake.
                    let _ = link.try_read(&mut [0]);
                }
            }
        };
        let late = async {
            cut.await;
            sleep(LAST_WORDS).await;
        };
        tokio::select! { () = all => {}, () = late => {} }
    }
}

/// What the process that serves tells those before it.
pub enum Word {
    /// To stop; when it comes again, to end connections.
    Stop,
    /// To end the connections of all other keys.
    Keep(HashSet<Fingerprint>),
    /// To end the connections of this key.
    Revoke(Fingerprint),
    /// Nothing more: it has ended.
    Gone,
}

impl Word {
    /// None, if it is a word of a later version.
    fn of(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let word = words.next()?;
        let mut keys = words.map_while(|key| key.parse().ok());
        match word {
            STOP => Some(Self::Stop),
            KEEP => Some(Self::Keep(keys.collect())),
            REVOKE => keys.next().map(Self::Revoke),
            _ => None,
        }
    }
}

/// The process that serves in our place.
pub struct Successor {
    lines: Lines<BufReader<UnixStream>>,
    pid: i32,
    is_gone: bool,
}

impl Successor {
    pub(super) fn new(link: UnixStream, pid: i32) -> Self {
        Self { lines: BufReader::new(link).lines(), pid, is_gone: false }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells it that it may accept, and how many connections are ours to finish.
    ///
    /// # Errors
    /// The operating system's: it is gone.
    pub fn go(&mut self, connections: usize) -> io::Result<()> {
        wire::send(self.lines.get_mut().get_mut(), &format!("{}{connections}", wire::GO), None)
    }

    /// What it says next, or the one that has taken over from it. That it is gone is said once.
    pub async fn next(&mut self) -> Word {
        while !self.is_gone {
            let Ok(Some(line)) = self.lines.next_line().await else {
                self.is_gone = true;
                return Word::Gone;
            };
            if let Some(word) = Word::of(&line) {
                return word;
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_later_version_are_passed_over() {
        for line in ["", "dance", "stops", "revoke", "revoke nothing"] {
            assert!(Word::of(line).is_none(), "{line}");
        }
        assert!(matches!(Word::of("stop at once"), Some(Word::Stop)));
    }

    #[tokio::test]
    async fn what_one_process_says_the_other_hears() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut predecessors, mut successor) = (Predecessors(vec![ours]), Successor::new(theirs, 1));
        let [one, other] = ["7f3a-19c2", "0b81-44e0"].map(|key| key.parse::<Fingerprint>().unwrap());
        predecessors.keep([one, other].into_iter()).await;
        predecessors.keep(std::iter::empty()).await;
        predecessors.revoke(one).await;
        predecessors.stop();
        assert!(matches!(successor.next().await, Word::Keep(keys) if keys == [one, other].into()));
        assert!(matches!(successor.next().await, Word::Keep(keys) if keys.is_empty()));
        assert!(matches!(successor.next().await, Word::Revoke(key) if key == one));
        assert!(matches!(successor.next().await, Word::Stop));
        drop(predecessors);
        assert!(matches!(successor.next().await, Word::Gone));
        assert!(timeout(Duration::from_millis(10), successor.next()).await.is_err());
    }
}
