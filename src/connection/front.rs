//! Where the peers of responders come in (`-d`). Several pipes may share a source: which one a peer is for, its message 1 says, by the
//! key and the label that it opens with.

use std::pin::Pin;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use vec1::Vec1;

use super::carry::{Carrying, Ended, carry};
use super::responder::{Outcome, Responder};
use super::{Common, ConnectionError, SetupError};
use crate::gate::{Admitted, LobbyPlace, NotAdmitted, Stage};
use crate::proto::connection_info::ConnectionInfo;
use crate::proto::frame::AbortReason;
use crate::stats::{OfPipe, Repeated};
use crate::stream::{Remote, Stream};
use crate::tunnel::handshake::Ending;
use crate::tunnel::idle::{IdleResponder, Next};
use crate::tunnel::{AnyTunnel, Doors, Tunnel, TunnelError};

/// The responders at some sources: one, or several that share them.
pub struct Front {
    responders: Vec1<Arc<Responder>>,
    /// Where those count of whom it is not known which of the responders they are for.
    unknown: Arc<OfPipe>,
    refusals: Arc<Repeated>,
    probes: Arc<Repeated>,
    /// Has idle tunnels given up when this goes: at a reload, and at a stop.
    idle: CancellationToken,
}

/// A tunnel that its peer has opened, with what it has in common with others of its pipe. Not with the keys, which a reload may take out
/// of memory.
struct Established {
    common: Arc<Common>,
    opened: Opened,
    /// Which of the responders it is for.
    door: usize,
    /// Where it comes from.
    peer: Remote,
}

/// What a peer has opened a tunnel for.
enum Opened {
    /// A connection that is ready to carry bytes.
    Carry(Box<Carrying>),
    /// None so far.
    Spare(Box<AnyTunnel>),
}

/// What an idle tunnel holds. Not the front, which has keys.
struct Rest {
    place: LobbyPlace,
    given_up: CancellationToken,
}

/// A connection that is being set up.
type Establishing = Pin<Box<dyn Future<Output = Result<Option<Established>, SetupError>> + Send>>;

impl Front {
    /// The front of `responders`. Peers that open the door of none count in `unknown`.
    pub fn new(responders: Vec1<Arc<Responder>>, unknown: Arc<OfPipe>) -> Self {
        let pipes = pipes(&responders);
        let refusals = Repeated::new({
            let pipe = pipes.clone();
            move |kind, more| {
                warn!(pipe, kind, more, "refused: further connections in the last minute");
            }
        });
        let probes = Repeated::new(move |_kind, more| {
            debug!(pipe = pipes, more, "closed without a byte: further connections in the last minute");
        });
        let idle = CancellationToken::new();
        Self { responders, unknown, refusals, probes, idle }
    }

    /// Carries `stranger` from here to its end, if it proves a key.
    ///
    /// # Errors
    /// Why it failed, which is in the log as well.
    pub fn carry(
        self: Arc<Self>,
        stranger: Admitted<LobbyPlace>,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        let front = Arc::downgrade(&self);
        // In a box that goes when it is done: what setting up needs is large, and an idle connection does not keep it.
        let mut establishing: Establishing = Box::pin(self.establish(stranger));
        async move {
            // As long as the tunnel lasts.
            while let Some(Established { common, opened, door, peer }) = establishing.await? {
                let rest = |ended: Ended| ended.tunnel.rest_at_responder().map(Box::new);
                let idle = match opened {
                    Opened::Carry(carrying) => carry(&common, carrying, rest).await?.flatten(),
                    Opened::Spare(tunnel) => tunnel.rest_at_responder().map(Box::new),
                };
                let Some(idle) = idle else { break };
                let rest = front.upgrade().map(|front| front.rest(door, peer));
                let next = Box::pin(await_next(*idle, rest)).await.transpose();
                establishing = match (next, front.upgrade()) {
                    (None, _) | (Some(Err(_)), None) => break,
                    (Some(next), Some(front)) => Box::pin(front.establish_again(next, door, peer)),
                    (Some(Ok(opened)), None) => Box::pin(give_up(opened)),
                };
            }
            Ok(())
        }
    }

    /// None for a probe, which carries nothing.
    async fn establish(
        self: Arc<Self>,
        stranger: Admitted<LobbyPlace>,
    ) -> Result<Option<Established>, SetupError> {
        let Admitted { stream, remote: mut peer, place } = stranger;
        let mut door = None;
        let result = self.answer_and_go_on(stream, &mut peer, place, &mut door).await;
        self.established(result, door, peer)
    }

    fn established(
        &self,
        result: Result<Outcome, SetupError>,
        door: Option<usize>,
        peer: Remote,
    ) -> Result<Option<Established>, SetupError> {
        let opened = match result {
            Ok(Outcome::Carry(carrying)) => Opened::Carry(carrying),
            Ok(Outcome::Spare(tunnel)) => Opened::Spare(tunnel),
            Ok(Outcome::Over) => return Ok(None),
            Err(error) => {
                self.log_refused(&error, peer, door.map(|door| &*self.responders[door]));
                return Err(error);
            }
        };
        let door = door.expect("a peer that has opened a tunnel has come through a door");
        let common = Arc::clone(&self.responders[door].common);
        Ok(Some(Established { common, opened, door, peer }))
    }

    /// What an idle tunnel holds from here on.
    fn rest(&self, door: usize, peer: Remote) -> Rest {
        Rest { place: self.responders[door].gate.rest(peer), given_up: self.idle.clone() }
    }

    /// Goes on with a tunnel that was idle.
    async fn establish_again(
        self: Arc<Self>,
        next: Result<Box<(Tunnel, ConnectionInfo)>, TunnelError>,
        door: usize,
        peer: Remote,
    ) -> Result<Option<Established>, SetupError> {
        let result = match next {
            Ok(opened) => self.responders[door].go_on_again(*opened, peer).await,
            Err(error) => Err(error.into()),
        };
        self.established(result, Some(door), peer)
    }

    /// Goes on as the responder whose `door` the peer opens, which is noted as soon as it is known.
    async fn answer_and_go_on(
        &self,
        mut wire: Stream,
        peer: &mut Remote,
        mut waiting: LobbyPlace,
        door: &mut Option<usize>,
    ) -> Result<Outcome, SetupError> {
        let started = Instant::now();
        // What is decided before the pipe is known is the same for all of them.
        let gate = &self.responders.first().gate;
        if gate.is_behind_proxies() {
            let identifying = gate.identify(&mut wire, peer);
            let identified = waiting.unless_turned_out(identifying).await.ok_or(SetupError::TurnedOut)??;
            waiting.count_at(*peer, identified.of_source);
        }
        // A proxy's header has a limit of its own.
        let now = Instant::now();
        let longest = self.responders.iter().map(|responder| responder.common.timeout).max();
        let deadline = now + longest.unwrap_or_default();
        // When the deadline has passed, that is said below.
        let speaking = timeout_at(deadline, wire.readable());
        // A process that is short of time must not turn out those that it has not yet listened to.
        if waiting.unless_turned_out(speaking).await.is_none() && !wire.is_readable() {
            return Err(SetupError::TurnedOut);
        }
        waiting.advance(Stage::Speaking);
        let answered = {
            let doors = Doors::new(self.responders.iter().map(|responder| responder.door()));
            let answering = AnyTunnel::answer(wire, &doors, deadline);
            waiting.unless_turned_out(answering).await.ok_or(SetupError::TurnedOut)??
        };
        waiting.advance(Stage::Answered);
        let responder = &*self.responders[answered.door()];
        *door = Some(answered.door());
        let deadline = now + responder.common.timeout;
        responder.go_on(answered, *peer, waiting, (started, now), deadline).await
    }

    fn log_refused(&self, error: &SetupError, peer: Remote, door: Option<&Responder>) {
        let unknown =
            (door.is_none() && self.responders.len() > 1).then(|| pipes(&self.responders)).flatten();
        let common = &*door.unwrap_or(self.responders.first()).common;
        let pipe = unknown.as_deref().or(common.pipe());
        if is_health_check(error) {
            self.probes.event(Some("probe"), || {
                debug!(pipe, %peer, "closed without a byte, as a TCP health check does");
            });
            return;
        }
        let (stats, cause) = (door.map_or(&self.unknown, |door| &door.stats), error.cause());
        stats.fail(cause);
        let key = match error {
            SetupError::NotAdmitted(NotAdmitted::Key { key, .. }) => Some(*key),
            _ => None,
        };
        let names = &common.key_names;
        let (key_file, key_name) = (key.and_then(|key| names.file(key)), key.and_then(|key| names.name(key)));
        let key = key.map(tracing::field::display);
        // Of several pipes that share a source, nobody can tell which targets a stranger was after.
        let configured = unknown.is_none().then(|| tracing::field::display(&common.targets));
        self.refusals.event(error.kind(), || {
            let reason = error.to_string();
            stats.tell(cause, format!("peer {peer}: {reason}"));
            warn!(pipe, %peer, configured, key, key_file, key_name, reason, "refused");
        });
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.idle.cancel();
    }
}

impl Rest {
    /// Ends when the tunnel is to be given up: at once, if there is no rest, since the pipe is gone.
    async fn over(rest: Option<&Self>) {
        let Some(Self { place, given_up }) = rest else { return };
        tokio::select! {
            () = place.turned_out() => {}
            () = given_up.cancelled() => {}
        }
    }
}

/// Waits for the next connection over an idle tunnel. None, if there will be none.
async fn await_next(
    idle: IdleResponder,
    mut rest: Option<Rest>,
) -> Result<Option<Box<(Tunnel, ConnectionInfo)>>, TunnelError> {
    match idle.next(Rest::over(rest.as_ref())).await? {
        Next::Connection(opened) => Ok(Some(opened)),
        Next::Left => Ok(None),
        Next::GivenUp(parting) => {
            match &mut rest {
                Some(Rest { place, .. }) => {
                    place.part();
                    let _in_time = place.unless_turned_out(parting.part()).await;
                }
                // After a reload, as many as there were connections.
                None => parting.part().await,
            }
            Ok(None)
        }
    }
}

/// Has a client that comes over a tunnel of a pipe that is gone come again over a new one.
async fn give_up(mut opened: Box<(Tunnel, ConnectionInfo)>) -> Result<Option<Established>, SetupError> {
    opened.0.abort(AbortReason::Idle).await;
    Ok(None)
}

/// The names of all pipes, if they have any.
fn pipes(responders: &Vec1<Arc<Responder>>) -> Option<String> {
    let names: Vec<_> = responders.iter().filter_map(|responder| responder.common.pipe()).collect();
    (!names.is_empty()).then(|| names.join(","))
}

/// Whether the peer did no more than look whether something listens, as load balancers do every few seconds.
fn is_health_check(error: &SetupError) -> bool {
    match error {
        SetupError::Identify(error) => error.is_health_check(),
        SetupError::Tunnel(TunnelError::Incomplete { awaited, got: 0, ending, .. }) => {
            awaited.is_first() && matches!(ending, Ending::Closed | Ending::Broken(_))
        }
        _ => false,
    }
}
