//! A connection of a responder (`-d`): a peer that has proved the key is carried to the target.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;
use tracing::debug;
use vec1::Vec1;

use super::carry::Carrying;
use super::check::hang_up;
use super::{Common, NoneLeft, SetupError, random_id};
use crate::gate::{Gate, KeyRefused, LobbyPlace, NotAdmitted, OfSource};
use crate::proto::connection_info::{ConnectionId, ConnectionInfo, Purpose};
use crate::proto::frame::AbortReason;
use crate::proto::key::{Fingerprint, Key};
use crate::proxy_header::{KEY_FINGERPRINT, KEY_NAME, Told};
use crate::pump::PumpError;
use crate::stats::{Ends, OfPipe};
use crate::stream::Remote;
use crate::tunnel::{Answered, AnyTunnel, Protocol, Tunnel};
use crate::upstream::{Connected, InUse, Next, Upstream};

/// What a peer has opened its tunnel for, as far as that is done.
pub(super) enum Outcome {
    /// To carry a client, which can begin.
    Carry(Box<Carrying>),
    /// To have it for later: it is idle from here on.
    Spare(Box<AnyTunnel>),
    /// To probe or to ping, and that is over.
    Over,
}

/// What the target is connected to for. A ping has no target.
#[derive(Clone, Copy)]
enum Visit {
    /// To carry a client.
    Carry,
    /// To find out whether it can be reached.
    Probe,
}

/// What all connections of a responder share.
pub struct Responder {
    pub(super) common: Arc<Common>,
    keys: Vec1<Arc<Key>>,
    pub(super) gate: Arc<Gate>,
    pub(super) upstream: Upstream,
    pub(super) stats: Arc<OfPipe>,
}

impl Responder {
    /// A responder that accepts peers with any of `keys`, as far as `gate` admits them, for one of `upstream`; its connections
    /// are counted in `stats`.
    pub fn new(
        common: Common,
        keys: Vec1<Arc<Key>>,
        gate: Arc<Gate>,
        upstream: Upstream,
        stats: Arc<OfPipe>,
    ) -> Self {
        let common = Arc::new(common);
        Self { common, keys, gate, upstream, stats }
    }

    /// What is counted at the pipe.
    pub fn stats(&self) -> Arc<OfPipe> {
        Arc::clone(&self.stats)
    }

    /// What its peers have to open.
    pub(super) fn door(&self) -> (&Protocol, &[Arc<Key>]) {
        (&self.common.protocol, &self.keys)
    }

    /// Goes on with a peer that has answered at its door, has come at the time `started`, and could say message 1 since it `spoke`.
    pub(super) async fn go_on(
        &self,
        answered: Answered,
        peer: Remote,
        waiting: LobbyPlace,
        (started, spoke): (Instant, Instant),
        deadline: Instant,
    ) -> Result<Outcome, SetupError> {
        let proving = answered.prove(deadline);
        let opened = waiting.unless_turned_out(proving).await.ok_or(SetupError::TurnedOut)??;
        self.stats.handshakes.count(spoke.elapsed());
        self.serve(opened, peer, waiting.leave(), started, deadline).await
    }

    /// Goes on with a peer that has begun another connection over its tunnel.
    pub(super) async fn go_on_again(
        &self,
        (tunnel, info): (Tunnel, ConnectionInfo),
        peer: Remote,
    ) -> Result<Outcome, SetupError> {
        let started = Instant::now();
        let deadline = started + self.common.timeout;
        if info.purpose == Purpose::Spare {
            // No connection: the initiator wants to hear of us over a tunnel that was quiet.
            let heard = Box::pin(self.keep_spare(tunnel.into(), peer, deadline)).await?;
            return Ok(heard.map_or(Outcome::Over, Outcome::Spare));
        }
        let of_source = match self.gate.arrive_again(peer) {
            Ok(of_source) => of_source,
            Err(error) => {
                let error = error.into();
                self.turn_away(&mut tunnel.into(), peer, &error).await;
                return Err(error);
            }
        };
        self.stats.reused.fetch_add(1, Ordering::Relaxed);
        self.serve((tunnel.into(), info), peer, of_source, started, deadline).await
    }

    /// Does what the peer has opened its tunnel for.
    async fn serve(
        &self,
        (tunnel, info): (AnyTunnel, ConnectionInfo),
        peer: Remote,
        of_source: Option<OfSource>,
        started: Instant,
        deadline: Instant,
    ) -> Result<Outcome, SetupError> {
        let (visit, mut tunnel) = match (info.purpose, tunnel) {
            (Purpose::Ping, AnyTunnel::Spipe(tunnel)) => {
                let answering = Box::pin(self.answer_ping(tunnel, peer, of_source, started, deadline));
                return answering.await.map(|()| Outcome::Over);
            }
            (Purpose::Spare, tunnel) if tunnel.is_reusable() => {
                let kept = Box::pin(self.keep_spare(tunnel, peer, deadline)).await?;
                let result = kept.as_ref().map_or_else(ToString::to_string, |_| "kept".into());
                debug!(pipe = self.common.pipe(), %peer, result, "a spare tunnel");
                return Ok(kept.map_or(Outcome::Over, Outcome::Spare));
            }
            (Purpose::Probe, tunnel) => (Visit::Probe, tunnel),
            (Purpose::Carry | Purpose::Ping | Purpose::Spare, tunnel) => (Visit::Carry, tunnel),
        };
        let client = info.client.map(Remote::from);
        let id = info.id.unwrap_or_else(random_id);
        let header = self.header(visit, &info, id, tunnel.key());
        let admitting = async {
            let place = self.gate.admit_peer(tunnel.key(), peer, of_source, deadline).await?;
            let dialed = place.unless_cut(pin!(self.dial(visit, &header, deadline))).await;
            let (connected, in_use) = dialed.map_err(SetupError::from)??;
            Ok((connected, in_use, place))
        };
        let admitted = tokio::select! {
            // Asked first, so that nothing is dialed for a peer that is gone when its turn comes.
            biased;
            () = tunnel.gone() => Err(SetupError::Gone),
            admitted = admitting => admitted,
        };
        match (admitted, visit) {
            (Ok((Connected { stream: local, remote: target }, in_use, place)), Visit::Carry) => {
                tunnel.acknowledge();
                // Whatever goes wrong from here on, the service sees a reset and not an end: a dialed stream is armed.
                let ends = Ends::Responder { client, peer, target };
                let held = (in_use, place);
                let carrying = Carrying::begin(&self.stats, local, tunnel, (id, ends), held, started, None);
                Ok(Outcome::Carry(carrying))
            }
            (Ok((Connected { stream: local, remote: target }, ..)), Visit::Probe) => {
                hang_up(local, deadline).await;
                let answered = tunnel.probe(deadline).await;
                let (pipe, result) =
                    (self.common.pipe(), answered.map_or_else(|error| error.to_string(), |()| "up".into()));
                debug!(pipe, %peer, %target, result, "probed");
                Ok(Outcome::Over)
            }
            (Err(error), visit) => {
                self.turn_away(&mut tunnel, peer, &error).await;
                match visit {
                    Visit::Carry => Err(error),
                    // The initiator has the warning, once and not each time that it asks.
                    Visit::Probe => {
                        debug!(pipe = self.common.pipe(), %peer, result = error.to_string(), "probed");
                        Ok(Outcome::Over)
                    }
                }
            }
        }
    }

    /// Tells a peer that has proved the key why it is not served.
    pub(super) async fn turn_away(&self, tunnel: &mut AnyTunnel, peer: Remote, error: &SetupError) {
        // One that does not close the connection keeps no more than a place among others like it.
        let place = self.gate.part(peer);
        let _in_time = place.unless_turned_out(tunnel.abort(reason_for_the_peer(error))).await;
    }

    /// Has a tunnel be idle that its initiator has no client for so far. Gives why it broke meanwhile, if it did.
    async fn keep_spare(
        &self,
        mut tunnel: AnyTunnel,
        peer: Remote,
        deadline: Instant,
    ) -> Result<Result<Box<AnyTunnel>, PumpError>, SetupError> {
        if let Err(error) = self.gate.may_rest(tunnel.key()) {
            let error = error.into();
            self.turn_away(&mut tunnel, peer, &error).await;
            return Err(error);
        }
        // From here on it has the place of an idle one: no limit on connections counts it.
        let place = self.gate.rest(peer);
        let probing = place.unless_turned_out(tunnel.probe(deadline)).await;
        Ok(probing.ok_or(SetupError::TurnedOut)?.map(|()| Box::new(tunnel)))
    }

    /// What a target is told of a connection first, if it is told: who the client is, and what both ends know of it.
    fn header(&self, visit: Visit, info: &ConnectionInfo, id: ConnectionId, key: Fingerprint) -> Vec<u8> {
        let Some(version) = self.common.send_proxy else { return Vec::new() };
        match visit {
            Visit::Probe => version.encode_local(),
            Visit::Carry => {
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
        visit: Visit,
        header: &[u8],
        deadline: Instant,
    ) -> Result<(Connected, InUse), SetupError> {
        let mut failures = Vec::new();
        let mut choice = match visit {
            Visit::Carry => self.upstream.choose(),
            Visit::Probe => self.upstream.look(),
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

fn reason_for_the_peer(error: &SetupError) -> AbortReason {
    match error {
        SetupError::KeyRevoked => AbortReason::KeyRefused,
        SetupError::NotAdmitted(NotAdmitted::Key { refused, .. }) => match refused {
            KeyRefused::Connections | KeyRefused::Rate => AbortReason::Busy,
            KeyRefused::Expired(_) | KeyRefused::Revoked | KeyRefused::Address => AbortReason::KeyRefused,
        },
        SetupError::NotAdmitted(NotAdmitted::Busy | NotAdmitted::Source(_)) => AbortReason::Busy,
        SetupError::Stopped => AbortReason::Shutdown,
        _ => AbortReason::TargetUnreachable,
    }
}
