//! A connection of an initiator (`-e`): a client is carried to a responder.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};

use tokio::time::{Duration, Instant};
use tracing::{debug, warn};

use super::carry::{Carrying, Ended, carry};
use super::commit::{Committed, FirstBytes, Hold};
use super::reserve::{Keeper, LOOK, Reserve, Waiting, look_after};
use super::{Common, ConnectionError, NoneLeft, SetupError, random_id};
use crate::addr::Name;
use crate::gate::{Admitted, ClientPlace, Establishing, Gate, OfSource};
use crate::proto::connection_info::{ConnectionId, ConnectionInfo, Purpose};
use crate::proto::features::Features;
use crate::proto::frame::AbortReason;
use crate::proto::key::Key;
use crate::pump::PumpError;
use crate::stats::{Ends, OfPipe, Repeated};
use crate::stream::{Remote, Stream};
use crate::tunnel::{AnyTunnel, Protocol, Reuse, Terms, Tunnel};
use crate::upstream::{Candidate, Chosen, Connected, InUse, Next, Upstream};

/// What all connections of an initiator share.
pub struct Initiator {
    pub(super) common: Arc<Common>,
    key: Arc<Key>,
    /// None for the one connection of standard input and output.
    gate: Option<Arc<Gate>>,
    pub(super) upstream: Upstream,
    stats: Arc<OfPipe>,
    failures: Arc<Repeated>,
    /// Tunnels that have carried others.
    reserve: Arc<Reserve>,
    /// Whether the log was told that `--spares` is of no use.
    told: Once,
}

impl Initiator {
    /// An initiator that proves `key` to one of `upstream` for clients that `gate` admits, and whose connections are counted in
    /// `stats`. It can have as many tunnels ready as `spares`.
    pub fn new(
        common: Common,
        key: Arc<Key>,
        gate: Option<Arc<Gate>>,
        upstream: Upstream,
        stats: Arc<OfPipe>,
        spares: usize,
    ) -> Self {
        let common = Arc::new(common);
        let failures = Repeated::new({
            let common = Arc::clone(&common);
            move |kind, more| {
                warn!(
                    pipe = common.name.as_ref().map(Name::as_str),
                    kind, more, "failed: further connections in the last minute"
                );
            }
        });
        Self {
            common,
            key,
            gate,
            upstream,
            stats,
            failures,
            reserve: Arc::new(Reserve::new(spares)),
            told: Once::new(),
        }
    }

    /// Carries `client` from here to its end.
    ///
    /// # Errors
    /// Why it failed, which is in the log as well.
    pub fn carry(
        self: Arc<Self>,
        client: Admitted<ClientPlace>,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        let common = Arc::clone(&self.common);
        // In a box that goes when it is done: what setting up needs is large, and an idle connection does not keep it. Nor does it
        // keep the key, which a reload may take out of memory.
        let (initiator, counted) = (Arc::downgrade(&self), self.reserve.client());
        let establishing = Box::pin(self.establish(client));
        async move {
            let established = establishing.await?;
            let keep = |ended| {
                // It is gone after a reload, with what it had in reserve.
                if let Some(initiator) = initiator.upgrade() {
                    initiator.keep(ended);
                }
            };
            carry(&common, established, keep).await?;
            drop(counted);
            Ok(())
        }
    }

    /// Keeps the tunnel of a connection that has ended well for another one.
    fn keep(self: &Arc<Self>, Ended { tunnel, live }: Ended) {
        let Some(kept) = self.gate.as_ref().and_then(|gate| gate.keep_idle()) else { return };
        let Ends::Initiator { target: remote, .. } = live.ends else { return };
        if let Some(tunnel) = tunnel.rest_at_initiator() {
            self.put(Waiting { tunnel, target: live.configured.clone(), remote, kept });
        }
    }

    /// Starts to make tunnels for clients that come, if that is wanted.
    pub fn make_ready(self: &Arc<Self>) {
        if self.reserve.begin() {
            self.look_after_reserve(Duration::ZERO);
        }
    }

    fn put(self: &Arc<Self>, waiting: Waiting) {
        if self.reserve.put(waiting) {
            self.look_after_reserve(LOOK);
        }
    }

    fn look_after_reserve(self: &Arc<Self>, delay: Duration) {
        tokio::spawn(look_after(Arc::downgrade(self), delay));
    }

    /// Shakes hands for a client that may come.
    async fn spare(&self) -> Result<Option<Waiting>, ConnectionError> {
        let Some(kept) = self.gate.as_ref().and_then(|gate| gate.keep_idle()) else { return Ok(None) };
        let Some(chosen) = self.target_of_spare() else {
            self.tell_of_handshakes();
            return Ok(None);
        };
        let (candidate, features) = (chosen.candidate(), self.features());
        let deadline = Instant::now() + self.common.timeout;
        let (mut tunnel, remote) = self.shake_hands(candidate, features, &SPARE, deadline).await?;
        if !tunnel.is_reusable() {
            self.tell_of_handshakes();
            return Ok(None);
        }
        tunnel.probe(deadline).await?;
        let target = candidate.target().clone();
        Ok(tunnel.rest_at_initiator().map(|tunnel| Waiting { tunnel, target, remote, kept }))
    }

    /// Tells the log, once, of the responders that have a handshake for each connection, if tunnels are to be ready.
    fn tell_of_handshakes(&self) {
        let candidates = self.upstream.candidates().iter();
        for candidate in
            candidates.filter(|candidate| self.reserve.is_to_be_ready() && !candidate.may_keep_tunnels())
        {
            let (pipe, target) = (self.common.pipe(), candidate.target());
            self.told.call_once(|| {
                warn!(pipe, %target, "no spare tunnels: the responder is older or has --no-reuse; upgrade it, or leave --spares out here");
            });
        }
    }

    /// The responder that the next client gets; where clients are spread, the one with the fewest tunnels.
    fn target_of_spare(&self) -> Option<Chosen<'_>> {
        let chosen = self.upstream.look().filter_map(|next| match next {
            Next::Try(chosen) => chosen.candidate().may_keep_tunnels().then_some(chosen),
            Next::Down(..) => None,
        });
        chosen.min_by_key(|chosen| {
            if self.upstream.spreads() { self.reserve.count(chosen.candidate().target()) } else { 0 }
        })
    }

    async fn establish(self: Arc<Self>, client: Admitted<ClientPlace>) -> Result<Box<Carrying>, SetupError> {
        let started = Instant::now();
        let Admitted { stream: mut local, mut remote, place: ClientPlace { mut place, establishing } } =
            client;
        // Whatever goes wrong, the client sees a reset and not an empty answer.
        local.arm_reset();
        let reached = {
            let reaching = Box::pin(self.identify_and_reach(&mut local, &mut remote, establishing, started));
            place.unless_cut(reaching).await.unwrap_or_else(|cut| Err(cut.into()))
        };
        match reached {
            Ok(Reached { tunnel, remote: target, id, in_use, of_source, failed }) => {
                if of_source.is_some() {
                    place.count_at(of_source);
                }
                let ends = Ends::Initiator { client: remote, target };
                Ok(Carrying::begin(&self.stats, local, tunnel, (id, ends), (in_use, place), started, failed))
            }
            Err(SetupError::Identify(error)) if error.is_health_check() => {
                debug!(pipe = self.common.pipe(), client = %remote, "closed without a byte, as a TCP health check does");
                Err(error.into())
            }
            Err(error) => {
                let cause = error.cause();
                self.stats.fail(cause);
                self.failures.event(error.kind(), || {
                    let (pipe, client, configured) = (self.common.pipe(), remote, &self.common.targets);
                    let reason = error.to_string();
                    self.stats.tell(cause, format!("client {client}: {reason}"));
                    warn!(pipe, %client, %configured, reason, "failed");
                });
                Err(error)
            }
        }
    }

    /// Finds out who is at `local`, where a proxy has to say that, and a responder for it.
    async fn identify_and_reach(
        &self,
        local: &mut Stream,
        remote: &mut Remote,
        establishing: Option<Establishing>,
        started: Instant,
    ) -> Result<Reached, SetupError> {
        let mut info = ConnectionInfo { id: Some(random_id()), ..ConnectionInfo::default() };
        let mut of_source = None;
        match self.gate.as_ref().filter(|gate| gate.is_behind_proxies()) {
            Some(gate) => {
                let identified = gate.identify(local, remote).await?;
                info.reached = identified.reached;
                info.proxied = identified.fields;
                of_source = identified.of_source;
            }
            None => info.reached = local.local_address(),
        }
        info.client = remote.ip();
        let reached = self.reach(local, &info, establishing, started).await?;
        Ok(Reached { of_source, ..reached })
    }

    /// Finds a responder for the client at `local`. Of several, one whose target stands, as far as that can be known before the
    /// client has an answer.
    async fn reach(
        &self,
        local: &mut Stream,
        info: &ConnectionInfo,
        establishing: Option<Establishing>,
        started: Instant,
    ) -> Result<Reached, SetupError> {
        let features = self.features();
        let mut deadline = Instant::now() + self.common.timeout;
        let (mut establishing, mut first, mut failures) = (establishing, FirstBytes::default(), Vec::new());
        let mut choice = self.upstream.choose();
        while let Some(next) = choice.next() {
            let chosen = match next {
                Next::Try(chosen) => chosen,
                Next::Down(target, reason) => {
                    failures.push((target.clone(), SetupError::Down(reason)));
                    continue;
                }
            };
            let candidate = chosen.candidate();
            if let Some(waiting) = self.reserve.take(candidate) {
                drop(establishing.take());
                let began = Instant::now();
                let reusing = self.reuse(waiting, local, &mut first, info, started, choice.share(deadline));
                let error = match Box::pin(reusing).await {
                    Reused::Stays(tunnel, remote) => {
                        return Ok(Reached::new(info, tunnel.into(), remote, chosen.worked()));
                    }
                    Reused::Failed(tunnel, remote, error) => {
                        let reached = Reached::new(info, tunnel.into(), remote, chosen.not_judged());
                        return Ok(Reached { failed: Some(error), ..reached });
                    }
                    Reused::PassedOver(error) => Some(SetupError::PassedOver(error)),
                    Reused::WasDead => {
                        // A handshake tells how the responder is doing. It has as much time as if there had been no such tunnel.
                        deadline += began.elapsed();
                        None
                    }
                };
                if let Some(error) = error {
                    chosen.failed(&error.to_string());
                    failures.push((candidate.target().clone(), error));
                    continue;
                }
            }
            let shaking = self.shake_hands(candidate, features, info, choice.share(deadline));
            let shaken = tokio::select! {
                shaken = shaking => shaken,
                // Nothing stays dialed for a client that is gone, and its place is free at once.
                () = local.gone() => return Err(SetupError::Gone),
            };
            let error = match shaken {
                Ok((AnyTunnel::Spipe(mut tunnel), remote))
                    if self.upstream.has_several() || first.has_some() =>
                {
                    // An older responder may keep the client here until the client has its answer.
                    drop(establishing.take());
                    let began = Instant::now();
                    let committing = first.commit(local, &mut tunnel, &self.common, started, Hold::Nothing);
                    match Box::pin(committing).await {
                        Committed::Yes => {
                            return Ok(Reached::new(info, tunnel.into(), remote, chosen.worked()));
                        }
                        Committed::Failed(error) => {
                            let reached = Reached::new(info, tunnel.into(), remote, chosen.not_judged());
                            return Ok(Reached { failed: Some(error), ..reached });
                        }
                        Committed::PassedOver(error) => {
                            // The responder has its own limit on the time that its target takes.
                            deadline += began.elapsed();
                            SetupError::PassedOver(error)
                        }
                    }
                }
                // A responder of spiped's says nothing of its target.
                Ok((tunnel, remote)) => return Ok(Reached::new(info, tunnel, remote, chosen.worked())),
                Err(error) => error,
            };
            if error.is_of_the_target() {
                chosen.failed(&error.to_string());
            }
            failures.push((candidate.target().clone(), error));
        }
        Err(NoneLeft::of(failures))
    }

    /// What is asked of responders.
    fn features(&self) -> Features {
        // A responder that was upgraded is noticed by the next client.
        let is_of_use = self.upstream.has_several() || self.upstream.check().is_some();
        let asked = if is_of_use { Features::ACKNOWLEDGEMENT } else { Features::NONE };
        match &self.common.protocol {
            // A client goes over a tunnel again only as long as no target has seen a byte, and the acknowledgement says that.
            Protocol::Spipe(Terms { reuse: Reuse::On, .. }) if self.gate.is_some() => {
                Features::REUSE.or(Features::ACKNOWLEDGEMENT)
            }
            _ => asked,
        }
    }

    /// Has the client at `local` go over a tunnel that has carried others.
    async fn reuse(
        &self,
        Waiting { tunnel, target, remote, kept }: Waiting,
        local: &mut Stream,
        first: &mut FirstBytes,
        info: &ConnectionInfo,
        started: Instant,
        deadline: Instant,
    ) -> Reused {
        drop(kept);
        // Another responder could have the client instead, and a wire that was quiet for long may be dead.
        let is_doubtful = self.upstream.has_several() || tunnel.idle_for() > HEARD_OF;
        let hold = if is_doubtful { Hold::UntilOpened(deadline) } else { Hold::Nothing };
        let mut tunnel = tunnel.begin(info);
        let error = match first.commit(local, &mut tunnel, &self.common, started, hold).await {
            Committed::Yes => {
                self.stats.reused.fetch_add(1, Ordering::Relaxed);
                return Reused::Stays(tunnel, remote);
            }
            Committed::Failed(error) => return Reused::Failed(tunnel, remote, error),
            Committed::PassedOver(error) => error,
        };
        match error {
            PumpError::Aborted(
                AbortReason::TargetUnreachable | AbortReason::Busy | AbortReason::KeyRefused,
            ) => Reused::PassedOver(error),
            error => {
                debug!(pipe = self.common.pipe(), %target, %error, "an idle tunnel was dead: shaking hands again");
                self.reserve.give_up(&target);
                Reused::WasDead
            }
        }
    }

    /// Connects to `candidate`, which has to prove the key.
    pub(super) async fn shake_hands(
        &self,
        candidate: &Candidate,
        features: Features,
        info: &ConnectionInfo,
        deadline: Instant,
    ) -> Result<(AnyTunnel, Remote), SetupError> {
        let Connected { stream, remote } = candidate.dial(&[], deadline).await?;
        let began = Instant::now();
        let protocol = &self.common.protocol;
        let tunnel = AnyTunnel::initiate(stream, &self.key, protocol, features, info, deadline).await?;
        self.stats.handshakes.count(began.elapsed());
        if let AnyTunnel::Spipe(tunnel) = &tunnel
            && features != Features::NONE
        {
            candidate.note_features(tunnel.features.have(Features::ACKNOWLEDGEMENT));
            if features.have(Features::REUSE) {
                candidate.note_reuse(tunnel.features.have(Features::REUSE));
            }
        }
        Ok((tunnel, remote))
    }
}

/// What is said of a connection that is none so far.
const SPARE: ConnectionInfo =
    ConnectionInfo { purpose: Purpose::Spare, client: None, id: None, reached: None, proxied: Vec::new() };

impl Keeper for Initiator {
    fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    async fn make_spare(self: Arc<Self>) -> bool {
        match self.spare().await {
            Ok(Some(waiting)) => {
                let (pipe, target) = (self.common.pipe(), waiting.target.clone());
                self.put(waiting);
                debug!(pipe, %target, result = "kept", "a spare tunnel");
                true
            }
            Ok(None) => false,
            Err(error) => {
                // The next client tells how the responder is doing.
                let (pipe, reason) = (self.common.pipe(), error.to_string());
                debug!(pipe, reason, "no spare tunnel");
                false
            }
        }
    }

    async fn refresh(self: Arc<Self>, Waiting { tunnel, target, remote, kept }: Waiting) {
        let mut tunnel = AnyTunnel::from(tunnel.begin(&SPARE));
        match tunnel.probe(Instant::now() + self.common.timeout).await {
            Ok(()) => {
                if let Some(tunnel) = tunnel.rest_at_initiator() {
                    self.put(Waiting { tunnel, target, remote, kept });
                }
            }
            // Given up, but the responder is well.
            Err(PumpError::Aborted(_)) => {}
            Err(error) => {
                debug!(pipe = self.common.pipe(), %target, %error, "an idle tunnel was dead: no client had it");
                self.reserve.give_up(&target);
            }
        }
    }
}

/// A tunnel is trusted with a client's bytes at once for so long after the responder was heard of. No network forgets a connection
/// earlier; and of a host that has died meanwhile, as many clients notice as with connections that run.
const HEARD_OF: Duration = Duration::from_secs(15);

/// What has become of a client and a tunnel that has carried others.
enum Reused {
    /// The client stays there.
    Stays(Tunnel, Remote),
    /// The connection failed, and it is not known what the target has seen.
    Failed(Tunnel, Remote, PumpError),
    /// The responder cannot have the client, and says why.
    PassedOver(PumpError),
    /// The target has seen nothing, and the responder may be well.
    WasDead,
}

/// A responder that a client has got.
struct Reached {
    tunnel: AnyTunnel,
    /// The address that was dialed.
    remote: Remote,
    id: ConnectionId,
    in_use: InUse,
    /// Where the client counts, if that was not known when it was admitted.
    of_source: Option<OfSource>,
    /// Why there is nothing to carry any more, if there is not.
    failed: Option<PumpError>,
}

impl Reached {
    fn new(info: &ConnectionInfo, tunnel: AnyTunnel, remote: Remote, in_use: InUse) -> Self {
        let id = info.id.expect("an initiator gives each connection an id");
        Self { tunnel, remote, id, in_use, of_source: None, failed: None }
    }
}
