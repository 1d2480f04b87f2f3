//! A ping at a responder: what comes over the tunnel goes back over it, and no target has a part in that.

use std::time::Duration;

use tokio::io::simplex;
use tokio::time::Instant;
use tracing::debug;

use super::limits::{Limits, Timekeeper};
use super::responder::Responder;
use super::{Common, SetupError, carry};
use crate::gate::OfSource;
use crate::pump::{self, PumpError, TimeLimit};
use crate::stream::Remote;
use crate::tunnel::Tunnel;

/// The most bytes that wait for their way back, besides the buffers that every connection has while it carries: more than any ping
/// has, and a peer that sends more waits.
const WAITING_MAX: usize = 1024;

/// The longest that a ping goes on: it is a look at a pipe, and takes the place of a connection.
const LIFETIME_MAX: Duration = Duration::from_secs(60 * 60);

/// How long a ping may say nothing. At least the default of `-o`, by which the other end chooses its pauses.
fn limits(common: &Common) -> Limits {
    let Limits { idle, half_closed, lifetime } = common.limits;
    let longest = |limit: Option<Duration>, most: Duration| Some(limit.map_or(most, |limit| limit.min(most)));
    let idle = longest(idle, common.timeout.max(Common::TIMEOUT));
    Limits { idle, half_closed, lifetime: longest(lifetime, LIFETIME_MAX) }
}

impl Responder {
    /// Sends back what the peer at the other end of `tunnel` says, which has come at the time `started` and left the lobby with
    /// `of_source`. It takes a place like any connection, and waits for it until `deadline`.
    ///
    /// # Errors
    /// Why it gets none.
    pub(super) async fn answer_ping(
        &self,
        mut tunnel: Tunnel,
        peer: Remote,
        of_source: Option<OfSource>,
        started: Instant,
        deadline: Instant,
    ) -> Result<(), SetupError> {
        let admitted = tokio::select! {
            biased;
            () = tunnel.gone() => Err(SetupError::Gone),
            admitted = self.gate.admit_peer(tunnel.key, peer, of_source, deadline) => admitted.map_err(Into::into),
        };
        let place = match admitted {
            Ok(place) => place,
            Err(error) => {
                self.turn_away(&mut tunnel.into(), peer, &error).await;
                return Err(error);
            }
        };
        tunnel.seal.acknowledge();
        let result = {
            let Tunnel { seal, open, wire, .. } = &mut tunnel;
            let mut time = Timekeeper::of(limits(&self.common), started);
            let echoing =
                pump::run(seal, open, simplex(WAITING_MAX), wire.split(), move |context, waiting| {
                    let time = time.as_mut().expect("a ping has limits");
                    time.poll(context, &waiting).map(PumpError::from)
                });
            place.unless_cut(echoing).await.unwrap_or_else(|cut| Err(cut.into()))
        };
        if let Err(failure) = &result
            && let Some(reason) = carry::reason_for_the_peer(failure)
        {
            tunnel.abort(reason).await;
        }
        // Before the connection closes: the peer waits for that, and may want the place for another one.
        drop(place);
        let (pipe, key, bytes) = (self.common.pipe(), tunnel.key, tunnel.seal.bytes());
        let (key_file, key_name) = (self.common.key_names.file(key), self.common.key_names.name(key));
        let (seconds, result) = (started.elapsed().as_secs_f64(), describe(result));
        debug!(pipe, %peer, %key, key_file, key_name, bytes, seconds, result, "pinged");
        Ok(())
    }
}

/// How a ping ended, for the log.
fn describe(result: Result<(), PumpError>) -> String {
    match result {
        Ok(()) => "finished".to_owned(),
        // Not by an option of that name.
        Err(PumpError::TimeLimit(TimeLimit::Idle(time))) => format!("nothing came for {} s", time.as_secs()),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Target;
    use crate::proto::cipher::{AesSupport, Ciphers};

    fn common(timeout: u64, limits: Limits) -> Common {
        let target: Target = "127.0.0.1:1".parse().unwrap();
        Common {
            timeout: Duration::from_secs(timeout),
            limits,
            ..Common::new(target, Ciphers::auto(AesSupport::None))
        }
    }

    #[test]
    fn a_ping_may_be_silent_for_the_time_of_o_but_for_its_default_at_least() {
        for (timeout, idle) in [(1, 5), (5, 5), (30, 30)] {
            let limits = limits(&common(timeout, Limits::default()));
            assert_eq!(limits.idle, Some(Duration::from_secs(idle)), "-o {timeout}");
            assert_eq!(limits.lifetime, Some(LIFETIME_MAX));
        }
    }

    #[test]
    fn the_limits_of_connections_hold_for_pings_as_well() {
        let short = Duration::from_secs(2);
        let given = Limits { idle: Some(short), half_closed: Some(short), lifetime: Some(short) };
        assert_eq!(limits(&common(5, given)), given);
    }

    #[test]
    fn no_limit_of_connections_makes_a_ping_longer() {
        let long = Some(Duration::from_secs(1_000_000));
        let limits = limits(&common(5, Limits { idle: long, half_closed: None, lifetime: long }));
        let expected = (Some(Common::TIMEOUT), Some(LIFETIME_MAX));
        assert_eq!((limits.idle, limits.lifetime), expected);
    }
}
