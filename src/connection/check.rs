//! Checks of targets in the background, so that no client has to find out that a target is down.
//!
//! A responder connects to its target, and may talk to it. An initiator shakes hands with its responder and asks it to connect to
//! *its* target, so "up" means that the right key answers and that the service can be reached.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Initiator, Responder, SetupError};
use crate::proto::connection_info::{ConnectionInfo, Purpose};
use crate::proto::features::Features;
use crate::proto::frame::AbortReason;
use crate::proxy_header::Version;
use crate::pump::PumpError;
use crate::stream::Stream;
use crate::tunnel::{AnyTunnel, Protocol};
use crate::upstream::{Candidate, Check, Connected, Exchange, Upstream};

/// The most bytes of an answer in which what is expected is looked for: `INFO` of Redis has a third of that.
const ANSWER_MAX: usize = 16 * 1024;

/// The most bytes of an answer that the log has.
const QUOTED_MAX: usize = 80;

/// The checks of a pipe's targets; they end when this is dropped.
pub struct Checks(#[expect(dead_code, reason = "the tasks end with it")] JoinSet<()>);

/// What a check that did not fail has found.
enum Found {
    /// The target works.
    Works,
    /// The peer works and has as many connections as it may: that is no reason to give up those that it has.
    Busy,
}

/// Why a check failed.
#[derive(Debug, Error)]
enum CheckError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("it cannot be talked to: {0}")]
    Talk(#[source] io::Error),
    #[error("it did not say what is expected in time (-o), but {0}")]
    TimedOut(Quoted),
    #[error("it did not say what is expected, but {0}")]
    Unexpected(Quoted),
}

/// The beginning of an answer, for the log.
#[derive(Debug, Error)]
#[error("{text:?}{more}", text = String::from_utf8_lossy(.0), more = if *.1 { " and more" } else { "" })]
struct Quoted(Vec<u8>, bool);

impl Quoted {
    fn new(answer: &[u8]) -> Self {
        let length = answer.len().min(QUOTED_MAX);
        Self(answer[..length].to_vec(), length < answer.len())
    }
}

/// An end that has targets to check.
trait Checker: Send + Sync + 'static {
    fn upstream(&self) -> &Upstream;

    /// Checks `candidate` once.
    fn check(
        &self,
        candidate: &Candidate,
        check: &Check,
    ) -> impl Future<Output = Result<Found, CheckError>> + Send;
}

/// Starts to check the targets of `checker`, if that is wanted.
fn start(checker: &Arc<impl Checker>) -> Checks {
    let mut tasks = JoinSet::new();
    if let Some(check) = checker.upstream().check() {
        for place in 0..checker.upstream().candidates().len() {
            tasks.spawn(keep_checking(Arc::clone(checker), place, check.clone()));
        }
    }
    Checks(tasks)
}

async fn keep_checking(checker: Arc<impl Checker>, place: usize, check: Check) {
    let (upstream, candidates) = (checker.upstream(), checker.upstream().candidates());
    let candidate = &candidates[place];
    loop {
        match checker.check(candidate, &check).await {
            Ok(Found::Works) => upstream.check_worked(candidate, &check),
            Ok(Found::Busy) => {}
            Err(error) => upstream.check_failed(candidate, &check, &error.to_string()),
        }
        sleep(check.pause(upstream.is_settled(candidate))).await;
    }
}

impl Initiator {
    /// Starts to check the responders, if that is wanted.
    pub fn checks(self: &Arc<Self>) -> Checks {
        start(self)
    }
}

impl Checker for Initiator {
    fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    async fn check(&self, candidate: &Candidate, _check: &Check) -> Result<Found, CheckError> {
        let deadline = Instant::now() + self.common.timeout;
        let knows_probes = matches!(self.common.protocol, Protocol::Spipe(_));
        if knows_probes && !candidate.may_answer_probes() {
            // It would connect to its target for nothing but us. To it, this is one of the probes that load balancers send.
            hang_up(candidate.dial(&[], deadline).await.map_err(SetupError::from)?.stream, deadline).await;
            return Ok(Found::Works);
        }
        let info = ConnectionInfo { purpose: Purpose::Probe, ..ConnectionInfo::default() };
        let (tunnel, _remote) =
            self.shake_hands(candidate, Features::ACKNOWLEDGEMENT, &info, deadline).await?;
        let mut tunnel = match tunnel {
            AnyTunnel::Spipe(tunnel) if tunnel.features.have(Features::ACKNOWLEDGEMENT) => tunnel,
            AnyTunnel::Spipe(_) => return Ok(Found::Works),
            AnyTunnel::Spiped(tunnel) => {
                hang_up(tunnel.wire, deadline).await;
                return Ok(Found::Works);
            }
        };
        match tunnel.probe(deadline).await {
            Ok(()) => {
                tunnel.await_close().await;
                Ok(Found::Works)
            }
            Err(PumpError::Aborted(AbortReason::Busy)) => Ok(Found::Busy),
            Err(error) => Err(SetupError::PassedOver(error).into()),
        }
    }
}

impl Responder {
    /// Starts to check the targets, if that is wanted.
    pub fn checks(self: &Arc<Self>) -> Checks {
        start(self)
    }
}

impl Checker for Responder {
    fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    async fn check(&self, candidate: &Candidate, check: &Check) -> Result<Found, CheckError> {
        let deadline = Instant::now() + self.common.timeout;
        // A service that wants a header would take anything else for garbage.
        let header = self.common.send_proxy.map(Version::encode_local).unwrap_or_default();
        let dialed = candidate.dial(&header, deadline).await;
        let Connected { mut stream, .. } = dialed.map_err(SetupError::from)?;
        if let Some(exchange) = &check.exchange {
            talk(&mut stream, exchange, deadline).await?;
        }
        hang_up(stream, deadline).await;
        Ok(Found::Works)
    }
}

/// Ends and closes a stream that nothing is carried over, in an orderly way: some services log each reset, and each stream of TLS
/// that just stops.
pub(super) async fn hang_up(mut stream: Stream, deadline: Instant) {
    // What fails is closed, which is what is wanted.
    let _ = timeout_at(deadline, stream.split().1.shutdown()).await;
    stream.disarm();
}

/// Says what is to be said and waits for what is expected.
async fn talk(stream: &mut Stream, exchange: &Exchange, deadline: Instant) -> Result<(), CheckError> {
    let mut answer = Vec::new();
    let (mut reader, mut writer) = stream.split();
    let talking = async {
        writer.write_all(&exchange.send).await?;
        writer.flush().await?;
        while answer.len() < ANSWER_MAX {
            let from = answer.len().saturating_sub(exchange.expect.len());
            if reader.read_buf(&mut answer).await? == 0 {
                break;
            }
            // What is expected may have come in two parts.
            if answer[from..].windows(exchange.expect.len()).any(|part| part == exchange.expect) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let talked = timeout_at(deadline, talking).await;
    match talked {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(CheckError::Unexpected(Quoted::new(&answer))),
        Ok(Err(error)) => Err(CheckError::Talk(error)),
        Err(_) => Err(CheckError::TimedOut(Quoted::new(&answer))),
    }
}
