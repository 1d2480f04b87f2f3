//! A connection of a responder (`-d`): a peer that has proved the key is carried to the target.

use std::pin::pin;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::warn;
use vec1::Vec1;

use super::carry::{Carrying, Ends, carry};
use super::{Common, ConnectionError, SetupError};
use crate::gate::{Admitted, Gate, LobbyPlace};
use crate::proto::frame::AbortReason;
use crate::proto::key::Key;
use crate::stats::Usage;
use crate::stream::Remote;
use crate::tunnel::Tunnel;
use crate::upstream::{Connected, Dialer};

/// What all connections of a responder share.
pub struct Responder {
    common: Common,
    keys: Vec1<Arc<Key>>,
    gate: Arc<Gate>,
    dialer: Dialer,
    usage: Arc<Usage>,
}

impl Responder {
    /// A responder that accepts peers with any of `keys`, as far as `gate` admits them; its connections are counted in `usage`.
    pub fn new(common: Common, keys: Vec1<Arc<Key>>, gate: Arc<Gate>, usage: Arc<Usage>) -> Self {
        let dialer = Dialer::new(common.route.clone(), common.keepalive);
        Self { common, keys, gate, dialer, usage }
    }

    /// Carries `stranger` from here to its end, if it proves a key.
    ///
    /// # Errors
    /// Why it failed, which is in the log as well.
    pub fn carry(
        self: Arc<Self>,
        stranger: Admitted<LobbyPlace>,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        // In a box that goes when it is done: what setting up needs is large, and an idle connection does not keep it.
        let establishing = Box::pin(Arc::clone(&self).establish(stranger));
        async move {
            let established = establishing.await?;
            Ok(carry(&self.common, &self.usage, established).await?)
        }
    }

    async fn establish(self: Arc<Self>, stranger: Admitted<LobbyPlace>) -> Result<Box<Carrying>, SetupError> {
        let peer = stranger.remote;
        self.admit_and_dial(stranger).await.inspect_err(|error| {
            let (pipe, configured) = (self.common.pipe(), self.common.route.target());
            warn!(pipe, %peer, %configured, reason = error.to_string(), "refused");
        })
    }

    async fn admit_and_dial(&self, stranger: Admitted<LobbyPlace>) -> Result<Box<Carrying>, SetupError> {
        let started = Instant::now();
        let deadline = started + self.common.timeout;
        let Admitted { stream: wire, remote: peer, place: waiting } = stranger;
        let (mut tunnel, info) = tokio::select! {
            tunnel = Tunnel::respond(wire, &self.keys, &self.common.terms, deadline) => tunnel?,
            () = waiting.turned_out() => return Err(SetupError::TurnedOut),
        };
        drop(waiting);
        let client = info.client.map(Remote::from);
        let admitting = async {
            let place = self.gate.admit_peer(deadline).await?;
            let dialed = place.unless_cut(pin!(self.dialer.dial(deadline))).await;
            Ok((dialed.ok_or(SetupError::Stopped)??, place))
        };
        match admitting.await {
            Ok((Connected { stream: local, remote: target }, place)) => {
                // Whatever goes wrong from here on, the service sees a reset and not an end.
                local.arm_reset();
                let ends = Ends::Responder { client, peer, target };
                Ok(Box::new(Carrying { local, tunnel, ends, started, place }))
            }
            Err(error) => {
                tunnel.abort(reason_for_the_peer(&error)).await;
                Err(error)
            }
        }
    }
}

fn reason_for_the_peer(error: &SetupError) -> AbortReason {
    match error {
        SetupError::Busy(_) => AbortReason::Busy,
        SetupError::Stopped => AbortReason::Shutdown,
        SetupError::Dial(_) | SetupError::Tunnel(_) | SetupError::TurnedOut => AbortReason::TargetUnreachable,
    }
}
