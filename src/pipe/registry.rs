//! What outlives a reload, by what it is: the registry belongs to the process and not to a pipe.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::heartbeat::Heartbeat;
use crate::addr::Sources;
use crate::gate::{Connections, Rules, Standing};
use crate::stats::Usage;

/// What the pipes of a process leave to those that take their place.
#[derive(Default)]
pub struct Registry {
    /// The connections that run, whichever pipe has accepted them.
    pub connections: Connections,
    /// How many of them each key carries.
    pub usage: Arc<Usage>,
    /// Signs of life of the accept loops.
    pub heartbeat: Arc<Heartbeat>,
    /// What has been admitted at the sources of each pipe, as they were written.
    standings: Mutex<HashMap<Sources, Arc<Standing>>>,
}

impl Registry {
    /// What has been admitted at `sources`, from now on by `rules`.
    pub(super) fn standing(&self, sources: &Sources, rules: &Rules) -> Arc<Standing> {
        let mut standings = self.standings();
        if let Some(standing) = standings.get(sources) {
            standing.change(rules);
            return Arc::clone(standing);
        }
        let standing = Arc::new(Standing::new(rules));
        standings.insert(sources.clone(), Arc::clone(&standing));
        standing
    }

    /// Forgets the sources at which no pipe is left.
    pub(super) fn keep_only<'s>(&self, used: impl Iterator<Item = &'s Sources>) {
        let used: HashSet<_> = used.collect();
        self.standings().retain(|sources, _| used.contains(sources));
    }

    fn standings(&self) -> MutexGuard<'_, HashMap<Sources, Arc<Standing>>> {
        // A panic elsewhere leaves the map whole: every change to it is one call.
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
