//! A connection of a responder (`-d`): a peer that has proved the key is carried to the target.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};
use vec1::Vec1;

use super::carry::{Carrying, Ends, carry};
use super::check::hang_up;
use super::{Common, ConnectionError, NoneLeft, SetupError, random_id};
use crate::gate::{Admitted, Gate, KeyRefused, LobbyPlace, NotAdmitted, Stage};
use crate::proto::connection_info::{ConnectionId, ConnectionInfo, Purpose};
use crate::proto::features::Features;
use crate::proto::frame::AbortReason;
use crate::proto::key::{Fingerprint, Key};
use crate::proxy_header::{KEY_FINGERPRINT, KEY_NAME, Told};
use crate::stats::{Repeated, Usage};
use crate::stream::{Remote, Stream};
use crate::tunnel::handshake::Ending;
use crate::tunnel::{Tunnel, TunnelError};
use crate::upstream::{Connected, InUse, Next, Upstream};

/// What all connections of a responder share.
pub struct Responder {
    pub(super) common: Arc<Common>,
    keys: Vec1<Arc<Key>>,
    gate: Arc<Gate>,
    pub(super) upstream: Upstream,
    usage: Arc<Usage>,
    refusals: Arc<Repeated>,
    probes: Arc<Repeated>,
}

impl Responder {
    /// A responder that accepts peers with any of `keys`, as far as `gate` admits them, for one of `upstream`; its connections
    /// are counted in `usage`.
    pub fn new(
        common: Common,
        keys: Vec1<Arc<Key>>,
        gate: Arc<Gate>,
        upstream: Upstream,
        usage: Arc<Usage>,
    ) -> Self {
        let common = Arc::new(common);
        let refusals = Repeated::new({
            let common = Arc::clone(&common);
            move |kind, more| {
                warn!(pipe = common.pipe(), kind, more, "refused: further connections in the last minute");
            }
        });
        let probes = Repeated::new({
            let common = Arc::clone(&common);
            move |_kind, more| {
                debug!(
                    pipe = common.pipe(),
                    more, "closed without a byte: further connections in the last minute"
                );
            }
        });
        Self { common, keys, gate, upstream, usage, refusals, probes }
    }

    /// Carries `stranger` from here to its end, if it proves a key.
    ///
    /// # Errors
    /// Why it failed, which is in the log as well.
    pub fn carry(
        self: Arc<Self>,
        stranger: Admitted<LobbyPlace>,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        let (common, usage) = (Arc::clone(&self.common), Arc::clone(&self.usage));
        // In a box that goes when it is done: what setting up needs is large, and an idle connection does not keep it. Nor does it
        // keep the keys, which a reload may take out of memory.
        let establishing = Box::pin(self.establish(stranger));
        async move {
            match establishing.await? {
                Some(established) => Ok(carry(&common, &usage, established).await?),
                None => Ok(()),
            }
        }
    }

    /// None for a probe, which carries nothing.
    async fn establish(
        self: Arc<Self>,
        stranger: Admitted<LobbyPlace>,
    ) -> Result<Option<Box<Carrying>>, SetupError> {
        let Admitted { stream, remote: mut peer, place } = stranger;
        let admitted = self.admit_and_dial(stream, &mut peer, place).await;
        admitted.inspect_err(|error| {
            let (pipe, configured) = (self.common.pipe(), &self.common.targets);
            if is_health_check(error) {
                self.probes.event(Some("probe"), || {
                    debug!(pipe, %peer, "closed without a byte, as a TCP health check does");
                });
            } else {
                let key = match error {
                    SetupError::NotAdmitted(NotAdmitted::Key { key, .. }) => Some(*key),
                    _ => None,
                };
                let names = &self.common.key_names;
                let (key_file, key_name) =
                    (key.and_then(|key| names.file(key)), key.and_then(|key| names.name(key)));
                let key = key.map(tracing::field::display);
                self.refusals.event(error.kind(), || {
                    warn!(pipe, %peer, %configured, key, key_file, key_name, reason = error.to_string(), "refused");
                });
            }
        })
    }

    async fn admit_and_dial(
        &self,
        mut wire: Stream,
        peer: &mut Remote,
        mut waiting: LobbyPlace,
    ) -> Result<Option<Box<Carrying>>, SetupError> {
        let started = Instant::now();
        if self.gate.is_behind_proxies() {
            let identifying = self.gate.identify(&mut wire, peer);
            let identified = waiting.unless_turned_out(identifying).await.ok_or(SetupError::TurnedOut)??;
            waiting.count_at(*peer, identified.of_source);
        }
        let peer = *peer;
        // A proxy's header has a limit of its own.
        let deadline = Instant::now() + self.common.timeout;
        // When the deadline has passed, that is said below.
        let speaking = timeout_at(deadline, wire.readable());
        // A process that is short of time must not turn out those that it has not yet listened to.
        if waiting.unless_turned_out(speaking).await.is_none() && !wire.is_readable() {
            return Err(SetupError::TurnedOut);
        }
        waiting.advance(Stage::Speaking);
        let answering = Tunnel::answer(wire, &self.keys, &self.common.terms, deadline);
        let answered = waiting.unless_turned_out(answering).await.ok_or(SetupError::TurnedOut)??;
        waiting.advance(Stage::Answered);
        let proving = answered.prove(deadline);
        let (mut tunnel, info) = waiting.unless_turned_out(proving).await.ok_or(SetupError::TurnedOut)??;
        let of_source = waiting.leave();
        let client = info.client.map(Remote::from);
        let id = info.id.unwrap_or_else(random_id);
        let header = self.header(&info, id, tunnel.key);
        let admitting = async {
            let place = self.gate.admit_peer(tunnel.key, peer, of_source, deadline).await?;
            let dialed = place.unless_cut(pin!(self.dial(info.purpose, &header, deadline))).await;
            let (connected, in_use) = dialed.map_err(SetupError::from)??;
            Ok((connected, in_use, place))
        };
        let admitted = tokio::select! {
            // Asked first, so that nothing is dialed for a peer that is gone when its turn comes.
            biased;
            () = tunnel.gone() => Err(SetupError::Gone),
            admitted = admitting => admitted,
        };
        match (admitted, info.purpose) {
            (Ok((Connected { stream: local, remote: target }, in_use, place)), Purpose::Carry) => {
                if tunnel.features.have(Features::ACKNOWLEDGEMENT) {
                    tunnel.seal.acknowledge();
                }
                // Whatever goes wrong from here on, the service sees a reset and not an end: a dialed stream is armed.
                let ends = Ends::Responder { client, peer, target };
                let failed = None;
                Ok(Some(Box::new(Carrying { local, tunnel, ends, id, in_use, started, place, failed })))
            }
            (Ok((Connected { stream: local, remote: target }, ..)), Purpose::Probe) => {
                hang_up(local, deadline).await;
                let answered = tunnel.probe(deadline).await;
                let (pipe, result) =
                    (self.common.pipe(), answered.map_or_else(|error| error.to_string(), |()| "up".into()));
                debug!(pipe, %peer, %target, result, "probed");
                Ok(None)
            }
            (Err(error), purpose) => {
                tunnel.abort(reason_for_the_peer(&error)).await;
                match purpose {
                    Purpose::Carry => Err(error),
                    // The initiator has the warning, once and not each time that it asks.
                    Purpose::Probe => {
                        debug!(pipe = self.common.pipe(), %peer, result = error.to_string(), "probed");
                        Ok(None)
                    }
                }
            }
        }
    }

    /// What a target is told of a connection first, if it is told: who the client is, and what both ends know of it.
    fn header(&self, info: &ConnectionInfo, id: ConnectionId, key: Fingerprint) -> Vec<u8> {
        let Some(version) = self.common.send_proxy else { return Vec::new() };
        match info.purpose {
            Purpose::Probe => version.encode_local(),
            Purpose::Carry => {
                // Older initiators do not say what the client connected to.
                let unknown = |client: SocketAddr| match client.ip().to_canonical() {
                    IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                    IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
                };
                let addresses =
                    info.client.map(|client| (client, info.reached.unwrap_or_else(|| unknown(client))));
                let told = Told { addresses, fields: info.proxied.clone() };
                let (id, fingerprint) = (id.to_string(), key.to_string());
                let names = &self.common.key_names;
                let name = names.name(key).or_else(|| names.file(key).map(base_name)).unwrap_or_default();
                let own = [(KEY_FINGERPRINT, fingerprint.as_bytes()), (KEY_NAME, name.as_bytes())];
                version.encode(&told, id.as_bytes(), &own)
            }
        }
    }

    /// Connects to a target.
    async fn dial(
        &self,
        purpose: Purpose,
        header: &[u8],
        deadline: Instant,
    ) -> Result<(Connected, InUse), SetupError> {
        let mut failures = Vec::new();
        let mut choice = match purpose {
            Purpose::Carry => self.upstream.choose(),
            Purpose::Probe => self.upstream.look(),
        };
        while let Some(next) = choice.next() {
            let chosen = match next {
                Next::Try(chosen) => chosen,
                Next::Down(target, reason) => {
                    failures.push((target.clone(), SetupError::Down(reason)));
                    continue;
                }
            };
            let candidate = chosen.candidate();
            match candidate.dial(header, choice.share(deadline)).await.map_err(SetupError::from) {
                Ok(connected) => return Ok((connected, chosen.worked())),
                Err(error) => {
                    if error.is_of_the_target() {
                        chosen.failed(&error.to_string());
                    }
                    failures.push((candidate.target().clone(), error));
                }
            }
        }
        Err(NoneLeft::of(failures))
    }
}

/// What a key is called that has no other name than that of its file.
fn base_name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(".key").unwrap_or(name)
}

/// Whether the peer did no more than look whether something listens, as load balancers do every few seconds.
fn is_health_check(error: &SetupError) -> bool {
    match error {
        SetupError::Identify(error) => error.is_health_check(),
        SetupError::Tunnel(TunnelError::Incomplete { got: 0, ending, .. }) => {
            matches!(ending, Ending::Closed | Ending::Broken(_))
        }
        _ => false,
    }
}

fn reason_for_the_peer(error: &SetupError) -> AbortReason {
    match error {
        SetupError::KeyRevoked => AbortReason::KeyRefused,
        SetupError::NotAdmitted(NotAdmitted::Key { refused, .. }) => match refused {
            KeyRefused::Connections | KeyRefused::Rate => AbortReason::Busy,
            KeyRefused::Expired(_) | KeyRefused::Revoked | KeyRefused::Address => AbortReason::KeyRefused,
        },
        SetupError::NotAdmitted(NotAdmitted::Busy) => AbortReason::Busy,
        SetupError::Stopped => AbortReason::Shutdown,
        _ => AbortReason::TargetUnreachable,
    }
}
