//! An established connection carries bytes both ways, and ends in one log line.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Common;
use super::watch::Watch;
use crate::gate::Place;
use crate::proto::connection_info::ConnectionId;
use crate::proto::frame::AbortReason;
use crate::pump::{PumpError, TimeLimit};
use crate::stats::{Addresses, Carried, CloseReason, Ends, Live, OfPipe, Running};
use crate::stream::Stream;
use crate::tunnel::AnyTunnel;
use crate::upstream::InUse;

/// A connection that is ready to carry bytes. Always in a box: a future has room for each place that a value moves through.
pub(super) struct Carrying {
    /// The client, or the target.
    pub(super) local: Stream,
    pub(super) tunnel: AnyTunnel,
    /// What is known of it, and where it counts.
    pub(super) running: Running,
    /// The target of this end: a responder, or a service.
    pub(super) in_use: InUse,
    pub(super) place: Place,
    /// Why there is nothing to carry any more, if the connection failed as soon as it was established.
    pub(super) failed: Option<PumpError>,
}

impl Carrying {
    /// A connection that is ready from now on, and counts in `stats` as one that runs.
    pub(super) fn begin(
        stats: &Arc<OfPipe>,
        local: Stream,
        tunnel: AnyTunnel,
        (id, ends): (ConnectionId, Ends),
        (in_use, place): (InUse, Place),
        started: Instant,
        failed: Option<PumpError>,
    ) -> Box<Self> {
        let (configured, kind) = (in_use.target().clone(), (tunnel.key(), tunnel.cipher()));
        let live = Live::new(id, ends, configured, kind, started, place.number());
        let running = Arc::clone(stats).establish(Arc::new(live));
        Box::new(Self { local, tunnel, running, in_use, place, failed })
    }
}

/// What a connection leaves that has ended well.
pub(super) struct Ended {
    /// Can carry another one.
    pub(super) tunnel: AnyTunnel,
    /// What the connection was.
    pub(super) live: Arc<Live>,
}

/// Carries bytes both ways until both ends have closed or one fails, and logs the end. If the tunnel can be used again, gives what `leave`
/// makes of what is left.
///
/// # Errors
/// [`PumpError`], when it failed.
pub(super) async fn carry<T>(
    common: &Common,
    mut connection: Box<Carrying>,
    leave: impl FnOnce(Ended) -> T,
) -> Result<Option<T>, PumpError> {
    log_established(common, connection.running.live());
    let result = if let Some(failed) = connection.failed.take() {
        Err(failed)
    } else {
        let Carrying { local, tunnel, place, in_use, running, .. } = &mut *connection;
        let live = running.live();
        let mut watch = Watch::new(common, live.started, in_use.down());
        let carrying = tunnel.carry(local.split(), move |context, waiting| {
            live.note(waiting.sealed, waiting.opened);
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
    match &result {
        Ok(()) => connection.tunnel.finish(),
        Err(failure) => {
            if let Some(reason) = reason_for_the_peer(failure) {
                Box::pin(connection.tunnel.abort(reason)).await;
            }
        }
    }
    let (sealed, opened) = connection.tunnel.bytes();
    connection.running.live().note(sealed, opened);
    // While it has its place, by which it could be told to end: afterwards, another connection may have that.
    let (live, carried) = connection.running.end(close_reason(&result));
    // Before the log says so: who has read that may count on its place, and on the tunnel.
    drop(connection.place);
    drop(connection.in_use);
    if result.is_ok() && connection.tunnel.is_reusable() {
        let left = leave(Ended { tunnel: connection.tunnel, live: Arc::clone(&live) });
        log_closed(common, &live, &carried, &result);
        return Ok(Some(left));
    }
    log_closed(common, &live, &carried, &result);
    if result.is_ok() && matches!(live.ends, Ends::Initiator { .. }) {
        Box::pin(connection.tunnel.await_close()).await;
    }
    result.map(|()| None)
}

/// None where the peer has failed itself, or cannot be told.
pub(super) fn reason_for_the_peer(failure: &PumpError) -> Option<AbortReason> {
    match failure {
        PumpError::Local(_) | PumpError::TargetDown | PumpError::Closed => Some(AbortReason::Reset),
        PumpError::Stopped => Some(AbortReason::Shutdown),
        PumpError::KeyRevoked => Some(AbortReason::KeyRefused),
        PumpError::TimeLimit(TimeLimit::Idle(_) | TimeLimit::HalfClosed(_)) => Some(AbortReason::Idle),
        PumpError::TimeLimit(TimeLimit::Lifetime) => Some(AbortReason::Expired),
        _ => None,
    }
}

/// How it is counted.
fn close_reason(result: &Result<(), PumpError>) -> CloseReason {
    let Err(error) = result else { return CloseReason::Finished };
    match error {
        PumpError::Local(_) => CloseReason::LocalReset,
        PumpError::Wire(_) => CloseReason::Broken,
        PumpError::Truncated => CloseReason::Truncated,
        PumpError::Abandoned | PumpError::Aborted(AbortReason::Reset) => CloseReason::PeerReset,
        PumpError::Frame(_) => CloseReason::Forged,
        PumpError::Exhausted(_) | PumpError::Aborted(AbortReason::Other(_)) => CloseReason::Other,
        PumpError::Stopped | PumpError::Aborted(AbortReason::Shutdown) => CloseReason::Stopped,
        PumpError::TargetDown => CloseReason::TargetDown,
        PumpError::KeyRevoked | PumpError::Aborted(AbortReason::KeyRefused) => CloseReason::KeyRevoked,
        PumpError::Closed => CloseReason::Closed,
        PumpError::TimeLimit(TimeLimit::Idle(_) | TimeLimit::HalfClosed(_))
        | PumpError::Aborted(AbortReason::Idle) => CloseReason::Idle,
        PumpError::TimeLimit(TimeLimit::Lifetime) | PumpError::Aborted(AbortReason::Expired) => {
            CloseReason::Expired
        }
        PumpError::Aborted(AbortReason::TargetUnreachable) => CloseReason::TargetUnreachable,
        PumpError::Aborted(AbortReason::Busy) => CloseReason::Busy,
    }
}

fn log_established(common: &Common, live: &Live) {
    let Addresses { client, peer, target, configured } = Addresses::of(live);
    let (pipe, client) = (common.pipe(), client.map(tracing::field::display));
    let Live { id, key, cipher, .. } = live;
    let (key_file, key_name) = (common.key_names.file(*key), common.key_names.name(*key));
    debug!(pipe, %id, client, %peer, %target, %configured, %key, key_file, key_name, %cipher, "established");
}

fn log_closed(common: &Common, live: &Live, carried: &Carried, result: &Result<(), PumpError>) {
    let Carried { to_target, from_target, time } = carried;
    let Addresses { client, peer, target, configured } = Addresses::of(live);
    let (pipe, client) = (common.pipe(), client.map(tracing::field::display));
    let Live { id, key, cipher, .. } = live;
    let (key_file, key_name) = (common.key_names.file(*key), common.key_names.name(*key));
    let (seconds, reason) =
        (time.as_secs_f64(), result.as_ref().map_or_else(ToString::to_string, |()| "finished".to_owned()));
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
            | PumpError::Abandoned
            | PumpError::Closed,
        ) => {
            log!(info);
        }
        Err(_) => log!(warn),
    }
}
