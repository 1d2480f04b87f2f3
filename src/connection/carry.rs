//! An established connection carries bytes both ways, and ends in one log line.

use std::fmt;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Common;
use super::watch::Watch;
use crate::addr::Target;
use crate::gate::Place;
use crate::proto::connection_info::ConnectionId;
use crate::proto::frame::AbortReason;
use crate::pump::{self, PumpError, TimeLimit};
use crate::stats::Usage;
use crate::stream::{Remote, Stream};
use crate::tunnel::Tunnel;
use crate::upstream::InUse;

/// A connection that is ready to carry bytes. Always in a box: a future has room for each place that a value moves through.
pub(super) struct Carrying {
    /// The client, or the target.
    pub(super) local: Stream,
    pub(super) tunnel: Tunnel,
    pub(super) ends: Ends,
    /// What both ends call it.
    pub(super) id: ConnectionId,
    /// The target of this end: a responder, or a service.
    pub(super) in_use: InUse,
    /// When it was admitted.
    pub(super) started: Instant,
    pub(super) place: Place,
    /// Why there is nothing to carry any more, if the connection failed as soon as it was established.
    pub(super) failed: Option<PumpError>,
}

/// The addresses of a connection's ends, by what each is; they mean the same in the log of both roles.
#[derive(Clone, Copy)]
pub(super) enum Ends {
    /// An initiator dials its peer.
    Initiator { client: Remote, target: Remote },
    /// A responder is told of the client, where that has an address.
    Responder { client: Option<Remote>, peer: Remote, target: Remote },
}

/// The addresses of a connection, as the log has them.
struct Addresses<'c> {
    client: Option<Remote>,
    peer: Dialed<'c>,
    target: Dialed<'c>,
    configured: &'c Target,
}

/// An address that was dialed; of a Unix-domain socket, that is what the configuration says.
#[derive(Clone, Copy)]
enum Dialed<'c> {
    Address(Remote),
    AsConfigured(&'c Target),
}

impl fmt::Display for Dialed<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::AsConfigured(target) => target.fmt(formatter),
        }
    }
}

impl Ends {
    fn addresses(self, configured: &Target) -> Addresses<'_> {
        let dialed = |remote| match remote {
            Remote::Process { .. } | Remote::Local => Dialed::AsConfigured(configured),
            Remote::Ip(..) => Dialed::Address(remote),
        };
        match self {
            Self::Initiator { client, target } => {
                let target = dialed(target);
                Addresses { client: Some(client), peer: target, target, configured }
            }
            Self::Responder { client, peer, target } => {
                Addresses { client, peer: Dialed::Address(peer), target: dialed(target), configured }
            }
        }
    }
}

/// How a connection ended.
struct Carried {
    result: Result<(), PumpError>,
    /// Payload bytes, by direction.
    to_target: u64,
    from_target: u64,
    seconds: f64,
}

/// Carries bytes both ways until both ends have closed or one fails, and logs the end.
///
/// # Errors
/// [`PumpError`], when it failed.
pub(super) async fn carry(
    common: &Common,
    usage: &Usage,
    mut connection: Box<Carrying>,
) -> Result<(), PumpError> {
    let _counted = usage.count(connection.tunnel.key);
    log_established(common, &connection);
    let result = if let Some(failed) = connection.failed.take() {
        Err(failed)
    } else {
        let Carrying { local, tunnel, place, in_use, started, .. } = &mut *connection;
        let Tunnel { seal, open, wire, .. } = tunnel;
        let mut watch = Watch::new(common, *started, in_use.down());
        let carrying = pump::run(seal, open, local.split(), wire.split(), move |context, waiting| {
            watch.poll(context, &waiting)
        });
        place.unless_cut(carrying).await.unwrap_or_else(|cut| Err(cut.into()))
    };
    // The local side learns how it ended before the peer is told, which may take a moment. A stream to it that is complete is
    // delivered also when the other direction has failed; if that takes long, it learns of the failure when it writes.
    if result.is_ok() || Box::pin(connection.local.is_still_delivering()).await {
        connection.local.disarm();
    }
    drop(connection.local);
    if let Err(failure) = &result
        && let Some(reason) = reason_for_the_peer(failure)
    {
        Box::pin(connection.tunnel.abort(reason)).await;
    }
    // The connection has ended. Before the log says so: who has read that may count on its place.
    drop(connection.place);
    let in_use = connection.in_use.free();
    let (tunnel, ends, started) = (&connection.tunnel, connection.ends, connection.started);
    let (sealed, opened) = (tunnel.seal.bytes(), tunnel.open.bytes());
    let (to_target, from_target) = match ends {
        Ends::Initiator { .. } => (sealed, opened),
        Ends::Responder { .. } => (opened, sealed),
    };
    let carried = Carried { result, to_target, from_target, seconds: started.elapsed().as_secs_f64() };
    carried.log(common, tunnel, connection.id, ends, in_use.target());
    drop(in_use);
    if carried.result.is_ok()
        && let Ends::Initiator { .. } = ends
    {
        Box::pin(connection.tunnel.await_close()).await;
    }
    carried.result
}

/// None where the peer has failed itself, or cannot be told.
pub(super) fn reason_for_the_peer(failure: &PumpError) -> Option<AbortReason> {
    match failure {
        PumpError::Local(_) | PumpError::TargetDown => Some(AbortReason::Reset),
        PumpError::Stopped => Some(AbortReason::Shutdown),
        PumpError::KeyRevoked => Some(AbortReason::KeyRefused),
        PumpError::TimeLimit(TimeLimit::Idle(_) | TimeLimit::HalfClosed(_)) => Some(AbortReason::Idle),
        PumpError::TimeLimit(TimeLimit::Lifetime) => Some(AbortReason::Expired),
        _ => None,
    }
}

fn log_established(common: &Common, connection: &Carrying) {
    let Carrying { ends, tunnel, id, in_use, .. } = connection;
    let Addresses { client, peer, target, configured } = ends.addresses(in_use.target());
    let (pipe, client) = (common.pipe(), client.map(tracing::field::display));
    let Tunnel { key, cipher, .. } = tunnel;
    let (key_file, key_name) = (common.key_names.file(*key), common.key_names.name(*key));
    debug!(pipe, %id, client, %peer, %target, %configured, %key, key_file, key_name, %cipher, "established");
}

impl Carried {
    fn log(&self, common: &Common, tunnel: &Tunnel, id: ConnectionId, ends: Ends, configured: &Target) {
        let Self { result, to_target, from_target, seconds } = self;
        let Addresses { client, peer, target, configured } = ends.addresses(configured);
        let (pipe, client) = (common.pipe(), client.map(tracing::field::display));
        let Tunnel { key, cipher, .. } = tunnel;
        let (key_file, key_name) = (common.key_names.file(*key), common.key_names.name(*key));
        let reason = result.as_ref().map_or_else(ToString::to_string, |()| "finished".to_owned());
        macro_rules! log {
            ($level:ident) => {
                $level!(pipe, %id, client, %peer, %target, %configured, %key, key_file, key_name, %cipher, to_target, from_target, seconds, reason, "closed")
            };
        }
        match result {
            // Resets are everyday life, and limits on time are there to be reached.
            Ok(())
            | Err(
                PumpError::Local(_)
                | PumpError::TimeLimit(_)
                | PumpError::Aborted(AbortReason::Reset | AbortReason::Idle | AbortReason::Expired)
                | PumpError::Abandoned,
            ) => {
                log!(info);
            }
            Err(_) => log!(warn),
        }
    }
}
