//! What the process asks of the operating system when it starts.

use std::io;

use crate::service::sandbox;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{self, SignalKind, signal};

/// Keeps keys out of core dumps and away from debuggers of the same user, and makes room for many connections.
///
/// All of it is a second line of defence: where the system refuses, the pipe works as well, so failures are passed over.
pub(super) fn harden() {
    sandbox::allow_locking();
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // The customary soft limit of 1,024 descriptors is there for programs that use select(2).
    let descriptors = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: descriptors.maximum, ..descriptors });
}

/// What a signal asks of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGTERM, and SIGINT from a terminal.
    Stop,
    /// SIGHUP.
    Reload,
}

/// The signals that have a meaning of ours.
pub(super) struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    /// From here on these signals no longer end the process by themselves.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. Of several that wait, stopping goes first.
    pub(super) async fn next(&mut self) -> Signal {
        let Self { terminate, interrupt, hang_up } = self;
        tokio::select! {
            biased;
            () = either(terminate, interrupt) => Signal::Stop,
            _ = hang_up.recv() => Signal::Reload,
        }
    }

    /// Waits for one that asks to stop. One that asks for a reload meanwhile is kept for later.
    pub(super) async fn stop(&mut self) {
        either(&mut self.terminate, &mut self.interrupt).await;
    }
}

async fn either(one: &mut unix::Signal, other: &mut unix::Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
