//! Memory that is never written to swap.

use std::fmt;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// What became of it, for the log.
pub(super) enum Memory {
    Locked,
    Swappable,
}

impl fmt::Display for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Locked => "locked",
            Self::Swappable => "swappable",
        })
    }
}

/// Lifts the limit on locked memory as far as it goes. To be called before the user is left (`-u`): root may, and limits
/// stay with the process.
pub fn allow_locking() {
    let limit = getrlimit(Resource::Memlock);
    let infinite = Rlimit { current: None, maximum: None };
    if setrlimit(Resource::Memlock, infinite).is_err() {
        let _ = setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, ..limit });
    }
}

/// Keeps all pages in memory, those to come as well: keys are not only in their own places, but also on stacks and in
/// registers that were saved.
///
/// Not under a finite limit: every mapping counts against it by its size, used or not, and one that goes beyond it fails,
/// be it the stack of a thread in the middle of the night.
pub(super) fn lock() -> Memory {
    let is_unlimited = getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if !is_unlimited {
        return Memory::Swappable;
    }
    // ONFAULT: locks what is used, and does not bring in what is not, such as the rest of each stack.
    match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        Ok(()) => Memory::Locked,
        Err(_) => Memory::Swappable,
    }
}
