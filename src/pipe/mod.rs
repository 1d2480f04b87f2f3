//! All pipes of a process: start, replacement while connections run, drain.
//!
//! A running connection belongs to no pipe that could be taken away: it has what it needs, and lives until it has ended. What
//! is replaced is the loop that accepts the next one. The sockets stay: a source is known by how it was written, and a new pipe with
//! the same source takes the socket over with all connections that wait in its queue.

mod accepting;
mod expiries;
pub mod heartbeat;
mod loops;
mod registry;
mod spec;
mod view;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tracing::{info, warn};

use self::accepting::Accepting;
pub use self::expiries::{Expiries, Expiry, Stage};
pub use self::registry::Registry;
use self::spec::Group;
pub use self::spec::{Conflict, Mode, Role, Spec, Specs, SpecsError};
pub use self::view::{KeyView, SharedView, View, Views};
use crate::addr::{Endpoint, Source};
use crate::connection::KeyNames;
use crate::listen::{self, Bound, Handle, ListenError, Listener, Passed, SocketPermissions};
use crate::names::Unresolved;
use crate::proto::key::Fingerprint;
use crate::proto::spiped::handshake::ForwardSecrecy;
use crate::tunnel::Protocol;

/// Pipes whose sockets listen.
pub struct Listening {
    specs: Specs,
    /// Those of their sources that were not listened on before.
    bound: Vec<Bound>,
}

/// Starts to listen for all of `specs`, some of whose sockets may be among those `passed`. Needs no runtime.
///
/// # Errors
/// [`ListenError`], for the first source that cannot be listened on. A name that may resolve later is passed over.
pub fn listen(specs: Specs, passed: &mut Passed) -> Result<Listening, ListenError> {
    let bound = bind(&specs, &HashSet::new(), passed)?;
    Ok(Listening { specs, bound })
}

/// Sources that are listened on.
pub struct Held(HashSet<Source>);

/// The same at a reload, where all of `held` are listened on already and nothing new is passed. Looking up a name blocks.
///
/// # Errors
/// [`ListenError`], for the first new source that cannot be listened on.
pub fn listen_besides(held: &Held, specs: Specs) -> Result<Listening, ListenError> {
    let bound = bind(&specs, &held.0, &mut Passed::default())?;
    Ok(Listening { specs, bound })
}

fn bind(specs: &Specs, held: &HashSet<Source>, passed: &mut Passed) -> Result<Vec<Bound>, ListenError> {
    let (mut bound, mut seen) = (Vec::new(), HashSet::new());
    for spec in specs.iter() {
        // Pipes may share it.
        for source in spec.sources.iter().filter(|source| !held.contains(*source) && seen.insert(*source)) {
            match listen::listen(source, &spec.permissions, passed) {
                Ok(sockets) => bound.extend(sockets),
                Err(ListenError::Unresolved { .. }) if spec.common.lookup.sources == Unresolved::Waits => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bound)
}

impl Listening {
    /// Where they listen, in the order of the pipes.
    pub fn places(&self) -> impl Iterator<Item = &Endpoint> {
        self.bound.iter().map(Bound::local)
    }

    /// Makes the sockets known to the runtime, within which this is to be called. What comes after it cannot fail.
    ///
    /// # Errors
    /// [`ListenError`], when the runtime cannot take a socket.
    pub fn register(self) -> Result<Registered, ListenError> {
        Ok(Registered { specs: self.specs, listeners: into_listeners(self.bound)? })
    }
}

/// Pipes that can start.
pub struct Registered {
    specs: Specs,
    listeners: Vec<Listener>,
}

impl Registered {
    /// Looks after the files of sockets that another process has handed over, from here on.
    pub fn adopt(&mut self) {
        self.listeners.iter_mut().for_each(Listener::adopt);
    }

    /// Starts to accept. To be called within the runtime.
    pub fn start(self, registry: Arc<Registry>) -> Pipes {
        let mut sockets = by_source(self.listeners);
        registry.share_out(&self.specs);
        let mut pipes = Pipes { serving: Vec::new(), registry };
        for group in self.specs.into_groups() {
            let listeners = take(&mut sockets, &group);
            for listener in &listeners {
                group.iter().for_each(|spec| log_listening(spec, listener));
            }
            group.iter().for_each(log_protocol);
            pipes.serve(group, listeners, &HashSet::new());
        }
        pipes.show();
        pipes
    }
}

fn into_listeners(bound: Vec<Bound>) -> Result<Vec<Listener>, ListenError> {
    bound.into_iter().map(Bound::into_listener).collect()
}

/// Sockets, by the source that they are for; a name may stand for several.
type Sockets = HashMap<Source, Vec<Listener>>;

fn by_source(listeners: Vec<Listener>) -> Sockets {
    let mut sockets = Sockets::new();
    for listener in listeners {
        sockets.entry(listener.source().clone()).or_default().push(listener);
    }
    sockets
}

/// Those of `sockets` that the pipes of `group` listen on.
fn take(sockets: &mut Sockets, group: &Group) -> Vec<Listener> {
    group.sources().iter().filter_map(|source| sockets.remove(source)).flatten().collect()
}

fn log_listening(spec: &Spec, listener: &Listener) {
    let Spec { role, common, .. } = spec;
    let keys: Vec<_> = role.keys().iter().map(|key| key.fingerprint().to_string()).collect();
    let key_files: Vec<_> =
        role.keys().iter().filter_map(|key| common.key_names.file(key.fingerprint())).collect();
    let key_file = Some(key_files.join(",")).filter(|files| !files.is_empty());
    let (pipe, version, source) = (common.pipe(), env!("CARGO_PKG_VERSION"), listener.local());
    let (configured, ciphers) = (&common.targets, common.protocol.describe_suites());
    info!(pipe, version, %role, %source, %configured, key = %keys.join(","), key_file, %ciphers, "listening");
}

/// What the other end's protocol cannot promise is said once, when the log is told of a pipe.
fn log_protocol(spec: &Spec) {
    let (pipe, role) = (spec.common.pipe(), &spec.role);
    match spec.common.protocol {
        Protocol::Spipe(_) => {}
        Protocol::Spiped(secrecy) => {
            warn!(
                pipe,
                %role,
                "spiped's protocol cannot tell an end of a stream from one that an attacker or a middlebox has made, tells nobody \
                 why a connection fails, shows when and how much is sent, and is not safe from quantum computers (docs/SPIPED.md)"
            );
            if secrecy == ForwardSecrecy::Omitted {
                warn!(
                    pipe,
                    %role,
                    "no forward secrecy (-f): whoever finds the key one day can read what was recorded"
                );
            }
        }
    }
}

/// A socket that stays keeps its file, which may be another user's by now. `before` has the permissions by source.
fn warn_of_other_permissions(spec: &Spec, kept: &[Listener], before: &HashMap<Source, SocketPermissions>) {
    for listener in kept.iter().filter(|kept| is_file(kept.source())) {
        if before.get(listener.source()).is_some_and(|before| *before != spec.permissions) {
            let (pipe, source) = (spec.common.pipe(), listener.local());
            warn!(
                pipe,
                %source,
                "the file of this socket keeps its mode and owner; others (--socket-mode, --socket-owner) take a restart"
            );
        }
    }
}

fn is_file(source: &Source) -> bool {
    matches!(source, Source::At(Endpoint::Unix(name)) if name.file().is_some())
}

/// Whether the log was told of `spec` when it was told of `other`.
fn is_told_by(spec: &Spec, other: &Spec) -> bool {
    let told = |spec: &Spec| {
        let common = &spec.common;
        (common.name.clone(), common.key_names.clone(), common.targets.to_string(), common.protocol.clone())
    };
    spec.role == other.role && told(spec) == told(other)
}

/// Pipes at work.
pub struct Pipes {
    serving: Vec<Serving>,
    registry: Arc<Registry>,
}

/// One of them, or several with the same sources.
struct Serving {
    group: Group,
    accepting: Accepting,
    /// Where it listens.
    listening: Vec<Endpoint>,
    /// Its sockets, for another process.
    handles: Vec<Handle>,
    /// Those of its sources whose names do not resolve so far.
    unresolved: Vec<Source>,
}

impl Pipes {
    /// What outlives each of them.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The sources that are listened on. Not those whose accept loop has died: they are to be bound anew.
    pub fn held(&self) -> Held {
        let alive = self.serving.iter().filter(|serving| !serving.accepting.has_died());
        let held = alive.flat_map(|Serving { group, unresolved, .. }| {
            group.sources().iter().filter(|source| !unresolved.contains(source))
        });
        Held(held.cloned().collect())
    }

    /// The sources whose names do not resolve so far.
    pub fn unresolved(&self) -> impl Iterator<Item = &Source> {
        self.serving.iter().flat_map(|serving| &serving.unresolved)
    }

    /// The keys that peers may have, each with what the log calls it; one of several pipes comes several times.
    pub fn accepted_keys(&self) -> impl Iterator<Item = (Fingerprint, &KeyNames)> {
        let specs = self.serving.iter().flat_map(|serving| serving.group.iter());
        let responders = specs.filter(|spec| matches!(spec.role, Role::Responder { .. }));
        responders
            .flat_map(|spec| spec.role.keys().iter().map(|key| (key.fingerprint(), &spec.common.key_names)))
    }

    /// All keys of the pipes; one of several pipes comes several times.
    pub fn keys(&self) -> impl Iterator<Item = Fingerprint> {
        let specs = self.serving.iter().flat_map(|serving| serving.group.iter());
        specs.flat_map(|spec| spec.role.keys().iter().map(|key| key.fingerprint()))
    }

    /// When keys of the pipes expire.
    pub fn expiries(&self) -> Expiries {
        Expiries::of(self.serving.iter().flat_map(|serving| serving.group.iter()))
    }

    /// The pipes as they are, to be put in their own place once more of their sources can be listened on.
    ///
    /// # Panics
    /// Never: they go together already.
    pub fn specs(&self) -> Specs {
        let specs = self.serving.iter().flat_map(|serving| serving.group.iter()).cloned().collect();
        Specs::new(specs).unwrap_or_else(|conflict| unreachable!("{conflict}"))
    }

    /// Puts other pipes in the place of these: what [`listen_besides`] gave for the sources that are listened on now. Running
    /// connections go on, and no new one is refused at a source that stays. When this fails, nothing has changed.
    ///
    /// # Errors
    /// [`ListenError`], when the runtime cannot take a socket.
    pub async fn replace(&mut self, Listening { specs, bound }: Listening) -> Result<(), ListenError> {
        let mut new = by_source(into_listeners(bound)?);
        self.registry.share_out(&specs);
        let (mut kept, mut before, mut waited_for) = (Vec::new(), HashMap::new(), HashSet::new());
        let mut permissions = HashMap::new();
        for Serving { group, accepting, unresolved, .. } in self.serving.drain(..) {
            kept.extend(accepting.stop().await);
            let spec = group.first();
            permissions.extend(spec.sources.iter().map(|source| (source.clone(), spec.permissions.clone())));
            before.extend(group.into_identified());
            waited_for.extend(unresolved);
        }
        let mut kept = by_source(kept);
        for group in specs.into_groups() {
            let (mut listeners, kept) = (take(&mut new, &group), take(&mut kept, &group));
            warn_of_other_permissions(group.first(), &kept, &permissions);
            for (identity, spec) in group.identified() {
                let is_known = before.get(&identity).is_some_and(|before| is_told_by(spec, before));
                if !is_known {
                    log_protocol(spec);
                }
                for listener in listeners.iter().chain(kept.iter().filter(|_| !is_known)) {
                    log_listening(spec, listener);
                }
            }
            listeners.extend(kept);
            self.serve(group, listeners, &waited_for);
        }
        for gone in kept.into_values().flatten() {
            info!(source = %gone.local(), "no longer listening");
        }
        self.registry.keep_only(self.serving.iter().flat_map(|serving| serving.group.identified()));
        self.show();
        Ok(())
    }

    /// Has the registry show the pipes as they are now.
    fn show(&self) {
        let mut views = Views::default();
        for Serving { group, accepting, listening, unresolved, .. } in &self.serving {
            for (identity, spec) in group.identified() {
                let known = self.registry.known(&identity, &spec.common.targets);
                let accepting = accepting.handle();
                views.pipes.push(View::of(spec, (listening, unresolved), known, accepting));
            }
            if let Some(stats) = self.registry.unknown(group) {
                let names =
                    group.iter().filter_map(|spec| spec.common.pipe().map(ToOwned::to_owned)).collect();
                views.shared.push(SharedView { names, stats });
            }
        }
        for before in &self.registry.views().pipes {
            let is_there = views.pipes.iter().any(|now| Arc::ptr_eq(&now.stats, &before.stats));
            if !is_there && before.stats.totals().running > 0 {
                let removed = before.removed(&views.pipes);
                views.pipes.push(removed);
            }
        }
        self.registry.show(views);
    }

    /// The log has been told already of the sources that are `waited_for`.
    fn serve(&mut self, group: Group, listeners: Vec<Listener>, waited_for: &HashSet<Source>) {
        let is_listened_on = |source| listeners.iter().any(|listener| listener.source() == source);
        let unresolved: Vec<_> =
            group.sources().iter().filter(|source| !is_listened_on(*source)).cloned().collect();
        for source in unresolved.iter().filter(|source| !waited_for.contains(*source)) {
            let pipe = group.first().common.pipe();
            warn!(pipe, %source, "not listening yet: the name does not resolve; it is looked up again until it does");
        }
        let routes =
            group.iter().flat_map(|spec| spec.common.targets.routes().iter().map(move |route| (spec, route)));
        for (spec, route) in routes.filter(|(_, route)| route.is_unverified()) {
            let (pipe, target) = (spec.common.pipe(), route.target());
            warn!(pipe, %target, "anybody between here and the target can read and change everything: --tls-insecure");
        }
        let listening = listeners.iter().map(|listener| listener.local().clone()).collect();
        let handles = listeners.iter().map(Listener::handle).collect();
        let accepting = Accepting::start(group.clone(), listeners, &self.registry);
        self.serving.push(Serving { group, accepting, listening, handles, unresolved });
    }

    /// The sockets, for another process.
    pub fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.serving.iter().flat_map(|serving| &serving.handles)
    }

    /// Accepts no more. Those of the sockets that another process has `taken` stay as they are; at the others, what arrives from
    /// here on is refused by the kernel, not left in a queue.
    pub async fn stop_accepting(self, taken: &HashSet<Source>) -> Draining {
        for Serving { accepting, .. } in self.serving {
            for listener in accepting.stop().await {
                if taken.contains(listener.source()) {
                    listener.leave();
                }
            }
        }
        Draining(self.registry)
    }
}

/// Connections that run while no new ones are accepted.
pub struct Draining(Arc<Registry>);

impl Draining {
    /// What is known of them.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.0
    }

    /// How many there are.
    pub fn connections(&self) -> usize {
        self.0.connections.running()
    }

    /// Lets them finish, until `cut` says to wait no longer. Then their peers are told. Gives how many were cut short.
    pub async fn finish(self, cut: impl Future<Output = ()>) -> usize {
        let connections = &self.0.connections;
        tokio::select! {
            // With no connection to wait for, a limit of no time at all has not run out.
            biased;
            () = connections.finished() => 0,
            () = cut => connections.cut_short().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::proto::cipher::{Cipher, Ciphers};
    use crate::proto::key::Key;

    fn spec(source: &str) -> Spec {
        let key = Arc::new(Key::from_bytes(&[1; 32]).unwrap());
        let ciphers = Ciphers::only(Cipher::Aes256Gcm);
        Spec::initiator(source.parse().unwrap(), "127.0.0.1:1".parse().unwrap(), key, ciphers)
    }

    #[tokio::test]
    async fn a_source_whose_accept_loop_has_died_is_bound_anew_at_a_reload() {
        let specs = |spec| Specs::new(vec![spec]).unwrap();
        let listening = listen(specs(spec("127.0.0.1:0")), &mut Passed::default()).unwrap();
        let Some(&Endpoint::Ip(address)) = listening.places().next() else { panic!("it listens on a port") };
        drop(listening);
        let spec = || specs(spec(&address.to_string()));
        let listening = listen(spec(), &mut Passed::default()).unwrap();
        let mut pipes = listening.register().unwrap().start(Arc::default());
        assert_eq!(pipes.held().0.len(), 1);
        pipes.serving[0].accepting.kill().await;
        assert!(TcpStream::connect(address).await.is_err(), "its socket is gone with it");

        let listening = listen_besides(&pipes.held(), spec()).unwrap();
        pipes.replace(listening).await.unwrap();
        assert!(TcpStream::connect(address).await.is_ok());
    }

    #[test]
    fn pipes_that_share_a_source_or_a_name_do_not_go_together() {
        let named = |source: &str, name: &str| {
            let mut spec = spec(source);
            spec.common.name = Some(name.parse().unwrap());
            spec
        };
        let wrong = |specs| Specs::new(specs).err().unwrap();
        let shared = wrong(vec![named("[::1]:1", "a"), named("[::1]:2", "b"), named("[::1]:1", "c")]);
        assert!(matches!(shared, Conflict { number: 2, source: SpecsError::SharedSource(_) }));
        let shared = wrong(vec![named("[::1]:1", "a"), named("[::1]:2", "a")]);
        assert!(matches!(shared, Conflict { number: 1, source: SpecsError::SharedName(_) }));
        assert!(matches!(wrong(Vec::new()), Conflict { source: SpecsError::None, .. }));
    }
}
