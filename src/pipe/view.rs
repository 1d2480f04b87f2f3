//! The pipes at work, as others may see them. Made anew at each reload; what it refers to lives on.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::AbortHandle;

use super::spec::{Mode, Role, Spec};
use crate::addr::{Endpoint, Name, Source, Sources};
use crate::proto::cipher::Suite;
use crate::proto::key::Fingerprint;
use crate::stats::OfPipe;
use crate::upstream::{Check, Known};

/// One pipe at work.
#[derive(Clone)]
pub struct View {
    /// What the pipe is called, or else its sources: no two have the same.
    pub name: String,
    /// Which end it is.
    pub mode: Mode,
    /// Where it listens.
    pub listening: Vec<Endpoint>,
    /// Where it does not listen yet, because the name does not resolve.
    pub unresolved: Vec<Source>,
    /// The most connections at a time, if there is a limit.
    pub limit: Option<usize>,
    /// What may seal its connections.
    pub ciphers: Vec<Suite>,
    /// How long connecting and the handshake may take together.
    pub timeout: Duration,
    /// Its keys.
    pub keys: Vec<KeyView>,
    /// Its targets, with what is known of them.
    pub targets: Vec<Arc<Known>>,
    /// How these are checked, if they are.
    pub check: Option<Check>,
    /// What it has counted.
    pub stats: Arc<OfPipe>,
    /// None of a pipe that a reload has taken away.
    accepting: Option<AbortHandle>,
}

/// Pipes that share their sources.
pub struct SharedView {
    /// The names of the pipes.
    pub names: Vec<String>,
    /// Peers of whom it is not known which of the pipes they are for.
    pub stats: Arc<OfPipe>,
}

/// A key of a pipe.
#[derive(Clone)]
pub struct KeyView {
    /// Which key.
    pub key: Fingerprint,
    /// Where it comes from.
    pub file: Option<String>,
    /// Whose it is.
    pub name: Option<String>,
    /// From when on it is refused.
    pub expires: Option<Timestamp>,
}

/// All pipes of a process at work.
#[derive(Default)]
pub struct Views {
    /// Each of them, and those that a reload has taken away while they had connections.
    pub pipes: Vec<View>,
    /// Those sources that several share.
    pub shared: Vec<SharedView>,
}

impl View {
    pub(super) fn of(
        spec: &Spec,
        (listening, unresolved): (&[Endpoint], &[Source]),
        (targets, stats): (Vec<Arc<Known>>, Arc<OfPipe>),
        accepting: AbortHandle,
    ) -> Self {
        let Spec { sources, rules, role, common, permissions: _ } = spec;
        let key = |key: Fingerprint| KeyView {
            key,
            file: common.key_names.file(key).map(ToOwned::to_owned),
            name: common.key_names.name(key).map(ToOwned::to_owned),
            expires: rules.of_keys.get(&key).and_then(|rules| rules.expires),
        };
        Self {
            name: name(common.name.as_ref(), sources),
            mode: role.mode(),
            listening: listening.to_vec(),
            unresolved: unresolved.to_vec(),
            limit: rules.max_connections.map(Into::into),
            ciphers: common.protocol.suites(),
            timeout: common.timeout,
            keys: Role::keys(role).iter().map(|of_role| key(of_role.fingerprint())).collect(),
            targets,
            check: common.targets.check().cloned(),
            stats,
            accepting: Some(accepting),
        }
    }

    /// The same pipe after a reload that has taken it away, beside those that are `there`. It keeps its name, as far as no other has it.
    pub(super) fn removed(&self, there: &[Self]) -> Self {
        let mut name = self.name.clone();
        while there.iter().any(|other| other.name == name) {
            name.push_str(" (removed)");
        }
        Self { name, listening: Vec::new(), unresolved: Vec::new(), accepting: None, ..self.clone() }
    }

    /// Whether a reload has taken it away, so that it has no more than the connections that it left.
    pub fn is_removed(&self) -> bool {
        self.accepting.is_none()
    }

    /// Whether there is nothing left of it.
    pub fn is_gone(&self) -> bool {
        self.is_removed() && self.stats.totals().running == 0
    }

    /// Whether nobody accepts any more, although the pipe is there: a fault, which a reload mends.
    pub fn has_died(&self) -> bool {
        self.accepting.as_ref().is_some_and(AbortHandle::is_finished)
    }
}

/// What a pipe is called where it has to be called something.
fn name(name: Option<&Name>, sources: &Sources) -> String {
    name.map_or_else(|| sources.to_string(), |name| name.as_str().to_owned())
}
