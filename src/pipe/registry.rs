//! What outlives a reload, by what it is: the registry belongs to the process and not to a pipe.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::heartbeat::Heartbeat;
use super::spec::{Role, Specs};
use crate::addr::Sources;
use crate::gate::{Admissions, Budget, Connections, Rules};
use crate::names::Names;
use crate::stats::Usage;

/// What the pipes of a process leave to those that take their place.
pub struct Registry {
    /// How many files the process may have open.
    descriptors: usize,
    /// The connections that run, whichever pipe has accepted them.
    pub connections: Connections,
    /// How many of them each key carries.
    pub usage: Arc<Usage>,
    /// The names that they connect to.
    pub names: Arc<Names>,
    /// Signs of life of the accept loops.
    pub heartbeat: Arc<Heartbeat>,
    /// What has been admitted at the sources of each pipe, as they were written.
    by_sources: Mutex<HashMap<Sources, Arc<Admissions>>>,
}

/// For a process in which nothing runs short.
impl Default for Registry {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Registry {
    /// For a process that may have as many files open as `descriptors` says.
    pub fn new(descriptors: usize) -> Self {
        Self {
            descriptors,
            connections: Connections::default(),
            usage: Arc::default(),
            names: Arc::default(),
            heartbeat: Arc::default(),
            by_sources: Mutex::default(),
        }
    }

    /// Shares out what the process can hold among `specs`, and says so when that is less than they ask for.
    pub(super) fn share_out(&self, specs: &Specs) {
        let (descriptors, sources) =
            (self.descriptors, specs.iter().map(|spec| spec.sources.iter().count()).sum());
        let has_responders = specs.iter().any(|spec| matches!(spec.role, Role::Responder { .. }));
        let budget = Budget::of(descriptors, sources, has_responders);
        let wanted = specs.iter().filter_map(|spec| spec.rules.max_connections);
        let wanted = wanted.fold(0_usize, |sum, max| sum.saturating_add(max.get()));
        if wanted > budget.connections {
            let enough = Budget::descriptors_for(wanted, sources, has_responders);
            warn!(
                wanted,
                possible = budget.connections,
                descriptors,
                "-n asks for more connections than there may be open files for, and clients beyond those wait; raise the limit \
                 on open files (LimitNOFILE=, ulimit -n) to {enough}, or lower -n"
            );
        }
        self.connections.set_budget(budget);
    }

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
