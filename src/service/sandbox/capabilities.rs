//! Root's rights, one by one (capabilities(7)).
//!
//! What is left of root without them is an ordinary user who owns many files, which landlock guards.

use std::fmt;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};
use tracing::warn;

use super::needs::Needs;

/// What is left, for the log.
pub(super) struct Kept(CapabilitySet);

impl fmt::Display for Kept {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("none");
        }
        let names: Vec<_> = self.0.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect();
        formatter.write_str(&names.join(","))
    }
}

/// Gives up all capabilities of this thread that are not among `needs`. To be called after memory is locked.
pub(super) fn give_up(needs: &Needs) -> Kept {
    let mut keep = needs.capabilities;
    if getrlimit(Resource::Memlock).current.is_some() {
        // Memory that was locked beyond the limit: each new mapping is asked for this again.
        keep |= CapabilitySet::IPC_LOCK;
    }
    if let Err(error) = reduce_to(keep) {
        warn!(%error, "rights that are not needed any more cannot be given up (capabilities)");
    }
    Kept(capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted))
}

fn reduce_to(keep: CapabilitySet) -> Result<(), Errno> {
    // First, for it takes a capability (CAP_SETPCAP). Only a program that root starts would get these back, and seccomp starts
    // none: so where this is refused, nothing is lost.
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if !keep.contains(capability) && remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    // A kernel before 4.3 has none.
    let _ = clear_ambient_capability_set();
    let held = capabilities(None)?;
    // A unit's filter may refuse the call, and such a unit has taken them all already.
    if keep.contains(held.permitted | held.effective) && held.inheritable.is_empty() {
        return Ok(());
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: held.effective & keep,
            permitted: held.permitted & keep,
            inheritable: CapabilitySet::empty(),
        },
    )
}
