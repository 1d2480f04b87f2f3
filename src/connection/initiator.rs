//! A connection of an initiator (`-e`): a client is carried to a responder.

use std::pin::pin;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::warn;

use super::carry::{Carrying, Ends, carry};
use super::{Common, ConnectionError, SetupError};
use crate::addr::Name;
use crate::gate::{Admitted, ClientPlace};
use crate::proto::key::Key;
use crate::stats::{Repeated, Usage};
use crate::tunnel::Tunnel;
use crate::upstream::{Connected, Dialer};

/// What all connections of an initiator share.
pub struct Initiator {
    common: Arc<Common>,
    key: Arc<Key>,
    dialer: Dialer,
    usage: Arc<Usage>,
    failures: Arc<Repeated>,
}

impl Initiator {
    /// An initiator that proves `key` to what `dialer` dials, and whose connections are counted in `usage`.
    pub fn new(common: Common, key: Arc<Key>, dialer: Dialer, usage: Arc<Usage>) -> Self {
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
        Self { common, key, dialer, usage, failures }
    }

    /// Carries `client` from here to its end.
    ///
    /// # Errors
    /// Why it failed, which is in the log as well.
    pub fn carry(
        self: Arc<Self>,
        client: Admitted<ClientPlace>,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        let (common, usage) = (Arc::clone(&self.common), Arc::clone(&self.usage));
        // In a box that goes when it is done: what setting up needs is large, and an idle connection does not keep it. Nor does it
        // keep the key, which a reload may take out of memory.
        let establishing = Box::pin(self.establish(client));
        async move {
            let established = establishing.await?;
            Ok(carry(&common, &usage, established).await?)
        }
    }

    async fn establish(self: Arc<Self>, client: Admitted<ClientPlace>) -> Result<Box<Carrying>, SetupError> {
        let started = Instant::now();
        let deadline = started + self.common.timeout;
        let Admitted {
            stream: local,
            remote: client,
            place: ClientPlace { place, establishing: _dropped_when_done },
        } = client;
        // Whatever goes wrong, the client sees a reset and not an empty answer.
        local.arm_reset();
        let reaching = async {
            let Connected { stream, remote } = self.dialer.dial(deadline).await?;
            let terms = &self.common.terms;
            let tunnel = Tunnel::initiate(stream, &self.key, terms, client, deadline).await?;
            Ok((tunnel, remote))
        };
        let reached = {
            // Nothing stays dialed for a client that is gone, and its place is free at once.
            let while_there = async {
                tokio::select! {
                    reached = reaching => reached,
                    () = local.gone() => Err(SetupError::Gone),
                }
            };
            place.unless_cut(pin!(while_there)).await.unwrap_or(Err(SetupError::Stopped))
        };
        match reached {
            Ok((tunnel, target)) => {
                let ends = Ends::Initiator { client, target };
                Ok(Box::new(Carrying { local, tunnel, ends, started, place }))
            }
            Err(error) => {
                self.failures.event(error.kind(), || {
                    let (pipe, configured) = (self.common.pipe(), self.common.route.target());
                    warn!(pipe, %client, %configured, reason = error.to_string(), "failed");
                });
                Err(error)
            }
        }
    }
}
