//! What pipes there are to be: pure data, and valid by construction.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use vec1::Vec1;

use super::loops;
use crate::addr::{Name, Source, Sources, Target};
use crate::connection::Common;
use crate::gate::Rules;
use crate::listen::SocketPermissions;
use crate::proto::cipher::Ciphers;
use crate::proto::key::{Fingerprint, Key};
use crate::tunnel::Protocol;

/// Which end a pipe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `-e`: accepts plain connections and seals them.
    Encrypt,
    /// `-d`: accepts sealed connections and opens them.
    Decrypt,
}

/// As `mode` in a file has it.
impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
        })
    }
}

/// Which end a pipe is, with the keys that this takes.
#[derive(Clone)]
pub enum Role {
    /// `-e`: accepts plain connections and seals them.
    Initiator {
        /// The key that it proves.
        key: Arc<Key>,
        /// How many tunnels are to be ready for clients to come, however few have come lately.
        spares: usize,
    },
    /// `-d`: accepts sealed connections and opens them.
    Responder {
        /// The keys that it accepts.
        keys: Vec1<Arc<Key>>,
    },
}

impl Role {
    /// Which end it is.
    pub fn mode(&self) -> Mode {
        match self {
            Self::Initiator { .. } => Mode::Encrypt,
            Self::Responder { .. } => Mode::Decrypt,
        }
    }

    /// How many tunnels are to be ready for clients to come.
    pub fn spares(&self) -> usize {
        match self {
            Self::Initiator { spares, .. } => *spares,
            Self::Responder { .. } => 0,
        }
    }

    /// Each of its keys.
    pub fn keys(&self) -> &[Arc<Key>] {
        match self {
            Self::Initiator { key, .. } => std::slice::from_ref(key),
            Self::Responder { keys } => keys,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mode().fmt(formatter)
    }
}

/// Keys are compared by their fingerprints.
impl PartialEq for Role {
    fn eq(&self, other: &Self) -> bool {
        let fingerprints = |role: &Self| role.keys().iter().map(|key| key.fingerprint()).collect::<Vec<_>>();
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && fingerprints(self) == fingerprints(other)
    }
}

/// One pipe that listens, as it is to be.
///
/// ```
/// use std::sync::Arc;
///
/// use spipe::pipe::Spec;
/// use spipe::proto::cipher::{AesSupport, Ciphers};
/// use spipe::proto::key::Key;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let key = Arc::new(Key::from_bytes(&[7; 32])?);
/// let source = "[127.0.0.1]:8000".parse()?;
/// let spec = Spec::initiator(source, "server:6380".parse()?, key, Ciphers::auto(AesSupport::GcmAndAegis));
/// assert_eq!(spec.to_string(), "encrypt [127.0.0.1]:8000 to [server]:6380");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Spec {
    /// Where to accept connections.
    pub sources: Sources,
    /// Who may connect to those of them that have a file.
    pub permissions: SocketPermissions,
    /// Which of them to admit.
    pub rules: Rules,
    /// Which end it is.
    pub role: Role,
    /// What all its connections have in common.
    pub common: Common,
}

impl Spec {
    /// An initiator at `source` that carries clients to the responder `target`, with defaults for the rest.
    pub fn initiator(source: Source, target: Target, key: Arc<Key>, ciphers: Ciphers) -> Self {
        Self::new(source, target, Role::Initiator { key, spares: 0 }, ciphers)
    }

    /// A responder at `source` that carries peers with one of `keys` to `target`, with defaults for the rest.
    pub fn responder(source: Source, target: Target, keys: Vec1<Arc<Key>>, ciphers: Ciphers) -> Self {
        Self::new(source, target, Role::Responder { keys }, ciphers)
    }

    fn new(source: Source, target: Target, role: Role, ciphers: Ciphers) -> Self {
        Self {
            sources: source.into(),
            permissions: SocketPermissions::default(),
            rules: Rules::default(),
            role,
            common: Common::new(target, ciphers),
        }
    }
}

/// For people, in one line, without the keys.
impl fmt::Display for Spec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sources, role, common, .. } = self;
        if let Some(name) = &common.name {
            write!(formatter, "{name}: ")?;
        }
        write!(formatter, "{role} {sources} to {}", common.targets)
    }
}

/// Pipes with the same sources: one, or several responders.
#[derive(Clone)]
pub(super) struct Group(Vec1<Spec>);

/// What a pipe is known by when it is configured anew: its sources, which others may have as well, and its name.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    sources: Sources,
    name: Option<Name>,
}

impl Group {
    /// Whether there are several.
    pub(super) fn is_shared(&self) -> bool {
        self.0.len() > 1
    }

    pub(super) fn first(&self) -> &Spec {
        self.0.first()
    }

    pub(super) fn sources(&self) -> &Sources {
        &self.first().sources
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Spec> {
        self.0.iter()
    }

    /// Each of them, with what it is known by.
    pub(super) fn identified(&self) -> impl Iterator<Item = (Identity, &Spec)> {
        self.0.iter().map(|spec| (Identity::of(spec), spec))
    }

    /// The same, to keep.
    pub(super) fn into_identified(self) -> Vec<(Identity, Spec)> {
        self.0.into_iter().map(|spec| (Identity::of(&spec), spec)).collect()
    }
}

impl Identity {
    fn of(spec: &Spec) -> Self {
        Self { sources: spec.sources.clone(), name: spec.common.name.clone() }
    }

    pub(super) fn sources(&self) -> &Sources {
        &self.sources
    }

    pub(super) fn has_sources_of(&self, other: &Self) -> bool {
        self.sources == other.sources
    }
}

/// The most keys and labels that are tried for a connection, at the sources that pipes share. Each costs a stranger's connection 3 to
/// 5 µs.
const DOORS_MAX: usize = 256;

/// All pipes of a process: at least one, no two have one name, only responders share sources, and none leads back to itself.
pub struct Specs(Vec1<Spec>);

/// Why some pipes cannot be those of one process.
#[derive(Debug, Error)]
pub enum SpecsError {
    /// There is none.
    #[error("there is no pipe")]
    None,
    /// Two have one source, and cannot.
    #[error(
        "{0} is the source of two pipes; give each its own. (Responders may share their sources, all of them)"
    )]
    SharedSource(Source),
    /// Several have one source, and no names.
    #[error("{0} is the source of several pipes; give each a name, to tell them apart")]
    SharedWithoutName(Source),
    /// Several have one source, and differ in what is decided before it is known which one a connection is for.
    #[error(
        "{0} is the source of several pipes, which have to agree in allow, deny, max-per-source, rate-per-source, accept-proxy, \
         trust-proxy, socket-mode and socket-owner: these count before it is known which pipe a connection is for; [defaults] says them once for all"
    )]
    SharedWithoutAgreement(Source),
    /// Several have one source, and do not speak the same protocol.
    #[error(
        "{0} is the source of several pipes, of which some have protocol = \"spiped\": what a connection speaks cannot be told from \
         its first bytes; give each protocol a source of its own"
    )]
    SharedProtocol(Source),
    /// A connection could be for either of two.
    #[error(
        "the pipes {first} and {second} share a source, a key and a label, so a connection could be for either; give one another label"
    )]
    SharedDoor {
        /// The one.
        first: Name,
        /// The other.
        second: Name,
    },
    /// There are too many keys to try.
    #[error(
        "the pipes at {0} have {1} keys in all, and a connection tries {DOORS_MAX} at most; give some a source of their own"
    )]
    TooManyKeys(Source, usize),
    /// Two have one name.
    #[error("'{0}' is the name of two pipes; give each its own")]
    SharedName(Name),
    /// The keys of two differ, and their fingerprints do not.
    #[error(
        "the keys {first} and {second} differ and have one fingerprint, {fingerprint}, so the log could not tell them \
         apart; make one anew with 'spipe keygen'"
    )]
    SharedFingerprint {
        /// Where the first one is.
        first: String,
        /// Where the second one is.
        second: String,
        /// What they have in common.
        fingerprint: Fingerprint,
    },
    /// One leads to itself.
    #[error(
        "the target {0} is the pipe's own source, so each connection would make another without end; name the other end"
    )]
    LeadsToItself(Target),
    /// Several lead into each other.
    #[error(
        "these pipes lead into each other, so each connection would make another without end: {}; change a target",
        .0.join("; ")
    )]
    LeadIntoEachOther(Vec<String>),
}

/// A pipe among others that are given, by its number from 0, and why it cannot be one of them.
#[derive(Debug, Error)]
#[error("{source}")]
pub struct Conflict {
    /// The last one of the pipes that do not go together.
    pub number: usize,
    /// Why.
    pub source: SpecsError,
}

/// Checks that `spec` can have a source with those that are `there`.
fn share(source: &Source, there: &[&Spec], spec: &Spec) -> Result<(), SpecsError> {
    let Some(first) = there.first() else { return Ok(()) };
    let are_responders = [*first, spec].iter().all(|spec| matches!(spec.role, Role::Responder { .. }));
    if !are_responders || first.sources != spec.sources {
        return Err(SpecsError::SharedSource(source.clone()));
    }
    let (Some(_), Some(name)) = (&first.common.name, &spec.common.name) else {
        return Err(SpecsError::SharedWithoutName(source.clone()));
    };
    if !first.rules.agree_before_the_key(&spec.rules) || first.permissions != spec.permissions {
        return Err(SpecsError::SharedWithoutAgreement(source.clone()));
    }
    let label = |spec: &Spec| match &spec.common.protocol {
        Protocol::Spipe(terms) => Some(terms.label.clone()),
        Protocol::Spiped(_) => None,
    };
    if label(first).is_some() != label(spec).is_some() {
        return Err(SpecsError::SharedProtocol(source.clone()));
    }
    let has_door = |other: &Spec| {
        let keys = |spec: &Spec| spec.role.keys().iter().map(|key| key.fingerprint()).collect::<HashSet<_>>();
        label(other) == label(spec) && !keys(other).is_disjoint(&keys(spec))
    };
    if let Some(other) = there.iter().find(|other| has_door(other)) {
        let first = other.common.name.clone().expect("those that share a source have names");
        return Err(SpecsError::SharedDoor { first, second: name.clone() });
    }
    let doors = there.iter().chain([&spec]).map(|spec| spec.role.keys().len()).sum();
    if doors > DOORS_MAX { Err(SpecsError::TooManyKeys(source.clone(), doors)) } else { Ok(()) }
}

impl Specs {
    /// Checks that `specs` can be the pipes of one process.
    ///
    /// # Errors
    /// [`Conflict`], for the first that cannot.
    pub fn new(specs: Vec<Spec>) -> Result<Self, Conflict> {
        let (mut sources, mut names, mut keys) = (HashMap::new(), HashSet::new(), HashMap::new());
        for (number, spec) in specs.iter().enumerate() {
            let conflict = |source| Conflict { number, source };
            for source in spec.sources.iter() {
                let at_source: &mut Vec<&Spec> = sources.entry(source).or_default();
                share(source, at_source, spec).map_err(conflict)?;
                at_source.push(spec);
            }
            if let Some(name) = &spec.common.name
                && !names.insert(name)
            {
                return Err(conflict(SpecsError::SharedName(name.clone())));
            }
            for key in spec.role.keys() {
                let fingerprint = key.fingerprint();
                let (first, in_first) = *keys.entry(fingerprint).or_insert((key, spec));
                if !first.is_same(key) {
                    let name =
                        |spec: &Spec| spec.common.key_names.file(fingerprint).unwrap_or_default().to_owned();
                    let (first, second) = (name(in_first), name(spec));
                    return Err(conflict(SpecsError::SharedFingerprint { first, second, fingerprint }));
                }
            }
        }
        if let Some(steps) = loops::find(&specs) {
            let number = steps.iter().map(|step| step.pipe).max().unwrap_or_default();
            let source = match &*steps {
                [only] => SpecsError::LeadsToItself(only.target.clone()),
                several => SpecsError::LeadIntoEachOther(
                    several.iter().map(|step| specs[step.pipe].to_string()).collect(),
                ),
            };
            return Err(Conflict { number, source });
        }
        Vec1::try_from_vec(specs).map(Self).map_err(|_| Conflict { number: 0, source: SpecsError::None })
    }

    /// Each of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Spec> {
        self.0.iter()
    }

    /// The same, those together that have the same sources.
    pub(super) fn into_groups(self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut by_sources: HashMap<Sources, usize> = HashMap::new();
        for spec in self.0 {
            let number = *by_sources.entry(spec.sources.clone()).or_insert(groups.len());
            match groups.get_mut(number) {
                Some(group) => group.0.push(spec),
                None => groups.push(Group(Vec1::new(spec))),
            }
        }
        groups
    }
}
