//! Why connections failed and how they ended, by kinds that can be counted: their words are part of what programs read.

use std::sync::atomic::{AtomicU64, Ordering};

/// An enum with a stable word for each of its kinds.
pub trait Kinds: Copy + Sized + 'static {
    /// Each of them, in the order in which they are numbered.
    const ALL: &'static [Self];

    /// Its word in statistics.
    fn word(self) -> &'static str;

    /// Its place in [`ALL`](Self::ALL).
    fn number(self) -> usize;
}

/// Declares a fieldless enum whose kinds have words.
macro_rules! kinds {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $kind:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $kind,)* }

        impl Kinds for $name {
            const ALL: &'static [Self] = &[$(Self::$kind,)*];

            fn word(self) -> &'static str {
                match self { $(Self::$kind => $word,)* }
            }

            fn number(self) -> usize {
                self as usize
            }
        }
    };
}
pub(super) use kinds;

kinds! {
    /// Why a connection never carried anything.
    Cause {
        /// Message 1 or 2 does not open: the keys differ, or the labels, or the peer is not spipe.
        WrongKeyOrLabel = "wrong_key_or_label",
        /// The peer's message did not come whole before the connection ended.
        Incomplete = "incomplete",
        /// The same, before the time was over.
        Timeout = "timeout",
        /// A stranger had to make room for others.
        TurnedOut = "turned_out",
        /// Both ends hold the key, and accept no common cipher.
        NoCommonCipher = "no_common_cipher",
        /// The peer's first message was good and nothing followed: it is a recording, or the peer gave up.
        ReplayOrNoOpen = "replay_or_no_open",
        /// There is no place, at this end or at the other.
        Busy = "busy",
        /// Its address may not connect, or has too many connections.
        Denied = "denied",
        /// Its key may not do this, or not any more.
        KeyRefused = "key_refused",
        /// A proxy did not say who is behind it.
        NoProxyHeader = "no_proxy_header",
        /// The target cannot be reached, by this end or by the other.
        Target = "target",
        /// The client or the peer went away before.
        Gone = "gone",
        /// This process stopped, or an administrator ended it.
        Stopped = "stopped",
        /// Something else is wrong at one of the ends.
        Other = "other",
    }
}

impl Cause {
    /// Whether it is one of shaking hands, which `spipe_handshake_failures_total` counts.
    pub fn is_of_the_handshake(self) -> bool {
        !matches!(self, Self::Target | Self::Gone | Self::Stopped)
    }
}

kinds! {
    /// How a connection ended that was established.
    CloseReason {
        /// Both directions came to their end.
        Finished = "finished",
        /// The client or the service at this end reset it.
        LocalReset = "local_reset",
        /// The same at the other end.
        PeerReset = "peer_reset",
        /// The connection between the ends broke.
        Broken = "broken",
        /// It was cut short: by accident or by an attacker.
        Truncated = "truncated",
        /// What came is not what the peer sealed.
        Forged = "forged",
        /// Nothing was carried for too long.
        Idle = "idle",
        /// It has lasted for as long as it may.
        Expired = "expired",
        /// The other end could not reach its target.
        TargetUnreachable = "target_unreachable",
        /// The target went down.
        TargetDown = "target_down",
        /// The key is not accepted any more.
        KeyRevoked = "key_revoked",
        /// There was no place at the other end.
        Busy = "busy",
        /// One of the processes stopped.
        Stopped = "stopped",
        /// An administrator closed it.
        Closed = "closed",
        /// The peer gave another reason, or nonces are used up.
        Other = "other",
    }
}

/// A counter for each kind.
pub struct PerKind<const COUNT: usize>([AtomicU64; COUNT]);

impl<const COUNT: usize> Default for PerKind<COUNT> {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNT])
    }
}

impl<const COUNT: usize> PerKind<COUNT> {
    /// Counts one of this kind.
    pub fn count(&self, kind: impl Kinds) {
        self.0[kind.number()].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were of this kind.
    pub fn get(&self, kind: impl Kinds) -> u64 {
        self.0[kind.number()].load(Ordering::Relaxed)
    }
}
