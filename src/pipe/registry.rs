//! What outlives a reload, by what it is: the registry belongs to the process and not to a pipe.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::heartbeat::Heartbeat;
use crate::addr::Sources;
use crate::gate::{Admissions, Connections, Rules};
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
    by_sources: Mutex<HashMap<Sources, Arc<Admissions>>>,
}

impl Registry {
    /// What has been admitted at `sources`, from now on by `rules`.
    pub(super) fn admissions(&self, sources: &Sources, rules: &Rules) -> Arc<Admissions> {
        let mut by_sources = self.by_sources();
        if let Some(admissions) = by_sources.get(sources) {
            admissions.change(rules);
            return Arc::clone(admissions);
        }
        let admissions = Arc::new(Admissions::new(rules));
        by_sources.insert(sources.clone(), Arc::clone(&admissions));
        admissions
    }

    /// Forgets the sources at which no pipe is left.
    pub(super) fn keep_only<'s>(&self, used: impl Iterator<Item = &'s Sources>) {
        let used: HashSet<_> = used.collect();
        self.by_sources().retain(|sources, _| used.contains(sources));
    }

    fn by_sources(&self) -> MutexGuard<'_, HashMap<Sources, Arc<Admissions>>> {
        // A panic elsewhere leaves the map whole: every change to it is one call.
        self.by_sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
