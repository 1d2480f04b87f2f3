//! What outlives a reload, by what it is: the registry belongs to the process and not to a pipe.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;
use vec1::Vec1;

use super::heartbeat::Heartbeat;
use super::spec::{Group, Identity, Role, Spec, Specs};
use super::view::Views;
use crate::addr::{Sources, Target};
use crate::connection::Common;
use crate::gate::{Admissions, Budget, Connections, Cut, OfKey, Rules};
use crate::names::Names;
use crate::proto::connection_info::ConnectionId;
use crate::proto::key::Fingerprint;
use crate::stats::{OfPipe, Usage};
use crate::upstream::{Candidate, Dialer, Known, Route, Targets, Upstream};

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
    /// What is known of each pipe.
    by_pipe: Mutex<HashMap<Identity, Memory>>,
    /// What is counted where pipes share their sources and it is not known which of them a peer is for.
    by_sources: Mutex<HashMap<Sources, Arc<OfPipe>>>,
    /// What the holders of each key have been admitted to, whichever pipe accepts it.
    by_key: Mutex<HashMap<Fingerprint, Arc<OfKey>>>,
    /// The pipes at work, for those who ask.
    views: Mutex<Arc<Views>>,
}

/// What is known of one pipe.
struct Memory {
    /// What it has admitted.
    admissions: Arc<Admissions>,
    /// How its targets are doing, by how they were written. Not shared among pipes: two that lead to the same place may have keys
    /// of which one fits there.
    targets: HashMap<Target, Arc<Known>>,
    /// What it has counted.
    stats: Arc<OfPipe>,
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
            by_pipe: Mutex::default(),
            by_sources: Mutex::default(),
            by_key: Mutex::default(),
            views: Mutex::default(),
        }
    }

    /// Shares out what the process can hold among `specs`, and says so when that is less than they ask for.
    pub(super) fn share_out(&self, specs: &Specs) {
        let (descriptors, sources) =
            (self.descriptors, specs.iter().map(|spec| spec.sources.iter().count()).sum());
        let has_responders = specs.iter().any(|spec| matches!(spec.role, Role::Responder { .. }));
        // They have these places in common, so one without a limit is none for all.
        let mut limits = specs.iter().filter_map(|spec| match spec.role {
            Role::Responder { .. } => Some(spec.rules.max_handshakes),
            Role::Initiator { .. } => None,
        });
        let limit = limits.try_fold(0_usize, |sum, limit| Some(sum.saturating_add(limit?.get())));
        let strangers_max = has_responders.then_some(limit.unwrap_or(usize::MAX));
        let budget = Budget::of(descriptors, sources, strangers_max);
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
        let spares = specs.iter().map(|spec| spec.role.spares()).fold(0, usize::saturating_add);
        if spares > budget.idle {
            warn!(
                wanted = spares,
                possible = budget.idle,
                descriptors,
                "--spares asks for more tunnels than may be idle, which is a sixteenth of the open files and at most 1024; lower it"
            );
        }
        self.connections.set_budget(budget);
    }

    /// Has the only pipe at its sources, `pipe`, be known as the only one that was there, whatever its name was.
    pub(super) fn rename(&self, pipe: &Identity) {
        let mut by_pipe = self.by_pipe();
        let there: Vec<_> = by_pipe.keys().filter(|other| other.has_sources_of(pipe)).cloned().collect();
        if let [before] = &*there
            && let Some(memory) = by_pipe.remove(before)
        {
            by_pipe.insert(pipe.clone(), memory);
        }
    }

    /// What `pipe` has admitted, from now on by `rules`.
    pub(super) fn admissions(&self, pipe: &Identity, rules: &Rules) -> Arc<Admissions> {
        let mut by_pipe = self.by_pipe();
        if let Some(memory) = by_pipe.get(pipe) {
            memory.admissions.change(rules);
            return Arc::clone(&memory.admissions);
        }
        let beside = by_pipe.iter().find(|(other, _)| other.has_sources_of(pipe));
        let admissions = Arc::new(Admissions::new(rules, beside.map(|(_, memory)| &*memory.admissions)));
        let stats = Arc::new(OfPipe::new(Arc::clone(&self.usage)));
        let memory = Memory { admissions: Arc::clone(&admissions), targets: HashMap::new(), stats };
        by_pipe.insert(pipe.clone(), memory);
        admissions
    }

    /// Where `pipe` counts, which has been asked for its admissions.
    pub(super) fn stats(&self, pipe: &Identity) -> Arc<OfPipe> {
        let by_pipe = self.by_pipe();
        by_pipe.get(pipe).map_or_else(
            || Arc::new(OfPipe::new(Arc::clone(&self.usage))),
            |memory| Arc::clone(&memory.stats),
        )
    }

    /// Where peers count of whom it is not known which pipe of `group` they are for. None for a pipe that is alone at its sources.
    pub(super) fn unknown(&self, group: &Group) -> Option<Arc<OfPipe>> {
        group.is_shared().then(|| {
            let mut by_sources = self.by_sources();
            let new = || Arc::new(OfPipe::new(Arc::clone(&self.usage)));
            Arc::clone(by_sources.entry(group.sources().clone()).or_insert_with(new))
        })
    }

    /// What is known of `targets` of `pipe`, and where that counts.
    pub(super) fn known(&self, pipe: &Identity, targets: &Targets) -> (Vec<Arc<Known>>, Arc<OfPipe>) {
        let known = |memory: &Memory| {
            let routes = targets.routes().iter();
            routes.filter_map(|route| memory.targets.get(route.target()).cloned()).collect()
        };
        let known = self.by_pipe().get(pipe).map(known).unwrap_or_default();
        (known, self.stats(pipe))
    }

    /// Has `views` be what others see from now on.
    pub(super) fn show(&self, views: Views) {
        *self.lock_views() = Arc::new(views);
    }

    /// The pipes at work.
    pub fn views(&self) -> Arc<Views> {
        Arc::clone(&self.lock_views())
    }

    fn lock_views(&self) -> MutexGuard<'_, Arc<Views>> {
        // A panic elsewhere leaves it whole: every change to it is one step.
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the holders of the keys of `role` have been admitted to, from now on by `rules`.
    pub(super) fn keys(&self, role: &Role, rules: &Rules) -> Vec1<(Fingerprint, Arc<OfKey>)> {
        let mut by_key = self.by_key();
        let keys = role.keys().iter().map(|key| {
            let key = key.fingerprint();
            let rules = rules.of_keys.get(&key).cloned().unwrap_or_default();
            match by_key.entry(key) {
                Entry::Occupied(known) => {
                    known.get().accept(rules);
                    (key, Arc::clone(known.get()))
                }
                Entry::Vacant(new) => (key, Arc::clone(new.insert(Arc::new(OfKey::new(rules))))),
            }
        });
        Vec1::try_from_vec(keys.collect()).expect("either role has a key")
    }

    /// Ends the connections of the keys that `are_revoked`, also those that are being set up. Gives how many these are.
    pub(crate) fn revoke(&self, are_revoked: impl Fn(Fingerprint) -> bool) -> usize {
        self.by_key().iter().filter(|(key, _)| are_revoked(**key)).for_each(|(_, of_key)| of_key.revoke());
        self.connections.give_up_idle();
        self.connections.end_with_key(Cut::Revoked, are_revoked)
    }

    /// Tells the connections with this id to end, since an administrator wants it. Gives how many were told: two, where a
    /// process is both ends of one.
    pub fn close(&self, id: ConnectionId) -> usize {
        let mut told = 0;
        for view in &self.views().pipes {
            // With the list held, so that the place is still that connection's.
            view.stats.with_each_running(|live| {
                if live.id == id && self.connections.end_at(Cut::Closed, live.place) {
                    told += 1;
                }
            });
        }
        told
    }

    /// Tells the connections of `key` to end, also those that are being set up. Gives how many were told.
    pub fn close_all_of(&self, key: Fingerprint) -> usize {
        self.connections.end_with_key(Cut::Closed, |other| other == key)
    }

    /// The targets of `pipe`, to be chosen from as `common` says.
    pub(super) fn upstream(&self, pipe: &Identity, common: &Common) -> Upstream {
        let mut by_pipe = self.by_pipe();
        let mut targets = by_pipe.get_mut(pipe).map(|memory| &mut memory.targets);
        Upstream::new(common.name.clone(), &common.targets, |route| {
            let names = Arc::clone(&self.names);
            let dialer =
                Dialer::new(route.clone(), common.keepalive, common.lookup, names).keep_names_fresh();
            let new = || Arc::new(Known::new(route.target().clone()));
            let known = match &mut targets {
                Some(targets) => Arc::clone(targets.entry(route.target().clone()).or_insert_with(new)),
                None => new(),
            };
            Candidate::new(dialer, known)
        })
    }

    /// Forgets the pipes that are gone and have no connections any more, the targets that a pipe has no longer, and their names; and keys that no
    /// pipe has and no connection.
    pub(super) fn keep_only<'s>(&self, used: impl Iterator<Item = (Identity, &'s Spec)>) {
        let used: HashMap<_, _> = used.map(|(pipe, spec)| (pipe, &spec.common.targets)).collect();
        let routes = used.values().flat_map(|targets| targets.routes().iter());
        self.names.keep_only(&routes.flat_map(Route::names).collect());
        self.by_pipe().retain(|pipe, memory| {
            // One that is gone and comes back finds the connections counted that it left.
            let Some(targets) = used.get(pipe) else { return memory.stats.totals().running > 0 };
            memory.targets.retain(|target, _| targets.routes().iter().any(|route| route.target() == target));
            true
        });
        let sources: HashSet<_> = used.keys().map(Identity::sources).collect();
        self.by_sources().retain(|shared, _| sources.contains(shared));
        self.by_key().retain(|_, of_key| Arc::strong_count(of_key) > 1);
    }

    fn by_sources(&self) -> MutexGuard<'_, HashMap<Sources, Arc<OfPipe>>> {
        // A panic elsewhere leaves the map whole: every change to it is one call.
        self.by_sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn by_key(&self) -> MutexGuard<'_, HashMap<Fingerprint, Arc<OfKey>>> {
        // A panic elsewhere leaves the map whole: every change to it is one call.
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn by_pipe(&self) -> MutexGuard<'_, HashMap<Identity, Memory>> {
        // A panic elsewhere leaves the map whole: every change to it is one call.
        self.by_pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
