//! The signals that have a meaning of ours.

use std::io;

use tokio::signal::unix::{self, SignalKind, signal};

/// What a signal asks of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, and SIGINT from a terminal.
    Stop,
    /// SIGHUP.
    Reload,
}

/// The signals that have a meaning of ours.
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    /// From here on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. Of several that wait, stopping goes first.
    pub async fn next(&mut self) -> Signal {
        let Self { terminate, interrupt, hang_up } = self;
        tokio::select! {
            biased;
            () = either(terminate, interrupt) => Signal::Stop,
            _ = hang_up.recv() => Signal::Reload,
        }
    }

    /// Waits for one that asks to stop. One that asks for a reload meanwhile is kept for later.
    pub async fn stop(&mut self) {
        either(&mut self.terminate, &mut self.interrupt).await;
    }
}

async fn either(one: &mut unix::Signal, other: &mut unix::Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
