//! The way to a responder, step by step: what a connection of an initiator takes, for a person who wants to know where it fails.

use std::io;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use vec1::Vec1;

use super::Common;
use super::check::hang_up;
use crate::names::ResolveError;
use crate::proto::connection_info::{ConnectionInfo, Purpose};
use crate::proto::features::Features;
use crate::proto::frame::AbortReason;
use crate::proto::handshake::Label;
use crate::proto::key::{Fingerprint, Key};
use crate::pump::{self, PumpError};
use crate::stream::Remote;
use crate::tunnel::{AnyTunnel, Protocol, Tunnel, TunnelError};
use crate::upstream::{Connected, DialError, DialFailure, Dialer};

/// How much longer than `-o` the other end's word is waited for. The other end waits for a place, or for its target, as long as its own
/// `-o` says, which by default is as long: its answer is to come before nobody waits for it any more.
const GRACE: Duration = Duration::from_secs(2);

/// What a ping says: its number.
type Number = [u8; 8];

/// The step that failed, and why.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PingError {
    /// The name of the target, or of the proxy before it, has no address.
    #[error("{source}; is the name right? 'getent ahosts {host}' asks the same resolver")]
    Name {
        /// The name.
        host: String,
        /// Why.
        source: ResolveError,
    },
    /// The resolver does not answer.
    #[error("cannot resolve '{0}': no answer in time (-o); do the DNS servers of /etc/resolv.conf answer?")]
    NameTimedOut(String),
    /// No address of the target can be connected to.
    #[error("{0}{hint}", hint = dial_hint(&.0.source))]
    Connect(DialError),
    /// What listens there has not proved the key.
    #[error("connected to {to}, and the handshake failed (our key is {key}, {label}): {source}")]
    Handshake {
        /// The address that was connected to, or the target as it was written.
        to: String,
        /// The key that we hold.
        key: Fingerprint,
        /// Whether we have a label, in words.
        label: &'static str,
        /// Why.
        source: TunnelError,
    },
    /// The other end holds the key, and has never heard of what it is asked for.
    #[error(
        "the handshake worked: key and label are right; the other end is too old to {0}, so upgrade it to find out more"
    )]
    TooOld(&'static str),
    /// The other end holds the key, and says nothing.
    #[error(
        "the handshake worked, and the other end has not answered in time (-o): it has as many connections as it may (-n), or \
         hangs; see its log, or wait longer"
    )]
    NoPlace,
    /// A ping was not answered.
    #[error(
        "the handshake worked, and a ping was not answered in time (-o): the other end hangs, or the network fails"
    )]
    NoAnswer,
    /// An answer is none.
    #[error(
        "the handshake worked, and the other end sent back something else than it was sent; it is faulty"
    )]
    Altered,
    /// The other end ended the pings.
    #[error("the handshake worked, and the other end ended the ping; it is faulty")]
    Ended,
    /// The other end has refused the ping, or the tunnel to it failed.
    #[error("the handshake worked, and then {0}")]
    OtherEnd(#[source] PumpError),
    /// The other end's target cannot be reached.
    #[error(
        "the other end answers, and cannot reach its target; its log says why, in a line with 'probed' (--verbose there), and so \
         does connecting to the target from that host"
    )]
    TargetUnreachable,
    /// The other end has not said whether it can be.
    #[error(
        "the other end answers, and has not connected to its target in time (-o); see its log, or wait longer"
    )]
    TargetTimedOut,
}

/// What to look at when nothing can be connected to.
fn dial_hint(failure: &DialFailure) -> &'static str {
    const REFUSED: &str = "; nothing listens there, or a firewall refuses: does the other end run, and is this its source (-s)?";
    const LOST: &str = "; the host is down, or a firewall drops what is sent there";
    let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    match failure {
        DialFailure::TimedOut => LOST,
        DialFailure::Refused(error) if is_refused(error) => REFUSED,
        DialFailure::AllRefused(refusals) if refusals.iter().all(|(_, error)| is_refused(error)) => REFUSED,
        _ => "",
    }
}

/// Tries the way to one responder.
pub struct Pinger {
    common: Common,
    key: Arc<Key>,
    dialer: Dialer,
}

impl Pinger {
    /// The way to the first target of `common`, where `key` is to be proved.
    pub fn new(common: Common, key: Arc<Key>) -> Self {
        let route = common.targets.routes().first().clone();
        let dialer = Dialer::new(route, common.keepalive, common.lookup, Arc::default());
        Self { common, key, dialer }
    }

    /// Until when a connection that begins now is to be established.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.common.timeout
    }

    /// Looks up the name of what is connected to, the target or the proxy before it. None where that is no name.
    ///
    /// # Errors
    /// [`PingError::Name`] and [`PingError::NameTimedOut`].
    pub async fn look_up(&self, deadline: Instant) -> Result<Option<(&str, Vec1<SocketAddr>)>, PingError> {
        let Some(host) = self.dialer.host() else { return Ok(None) };
        let looked_up = timeout_at(deadline, self.dialer.look_up()).await;
        let addresses = looked_up.map_err(|_| PingError::NameTimedOut(host.to_owned()))?;
        let addresses = addresses.map_err(|source| PingError::Name { host: host.to_owned(), source })?;
        Ok(addresses.map(|addresses| (host, addresses)))
    }

    /// Connects.
    ///
    /// # Errors
    /// [`PingError::Connect`].
    pub async fn connect(&self, deadline: Instant) -> Result<Connected, PingError> {
        self.dialer.dial(&[], deadline).await.map_err(PingError::Connect)
    }

    /// Where a connection has led to: the address, where there is one.
    pub fn describe(&self, remote: Remote) -> String {
        match (self.common.targets.routes().first().proxy(), remote) {
            (Some(proxy), _) => format!("{} through {proxy} at {remote}", self.common.targets),
            (None, Remote::Ip(..)) => remote.to_string(),
            (None, Remote::Process { .. } | Remote::Local) => self.common.targets.to_string(),
        }
    }

    /// Proves the key, and has it proved, on a connection for pings.
    ///
    /// # Errors
    /// [`PingError::Handshake`].
    pub async fn shake_hands(&self, connected: Connected, deadline: Instant) -> Result<AnyTunnel, PingError> {
        self.tunnel(connected, Features::PING, Purpose::Ping, deadline).await
    }

    async fn tunnel(
        &self,
        connected: Connected,
        features: Features,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<AnyTunnel, PingError> {
        let (Self { key, common, .. }, Connected { stream, remote }) = (self, connected);
        let info = ConnectionInfo { purpose, ..ConnectionInfo::default() };
        let shaken = AnyTunnel::initiate(stream, key, &common.protocol, features, &info, deadline).await;
        shaken.map_err(|source| {
            let label = match &common.protocol {
                Protocol::Spipe(terms) if terms.label != Label::default() => "with the label of --label",
                Protocol::Spipe(_) => "without a label",
                Protocol::Spiped(_) => "by spiped's protocol",
            };
            PingError::Handshake { to: self.describe(remote), key: key.fingerprint(), label, source }
        })
    }

    /// Waits until the other end has a place for pings over `tunnel`. None by spiped's protocol, which has no pings: that the other
    /// end holds the key is all that can be known.
    ///
    /// # Errors
    /// [`PingError::TooOld`], [`PingError::NoPlace`] and [`PingError::OtherEnd`].
    pub async fn begin(&self, tunnel: AnyTunnel) -> Result<Option<Pinging>, PingError> {
        match tunnel {
            AnyTunnel::Spipe(tunnel) => self.begin_pings(tunnel).await.map(Some),
            AnyTunnel::Spiped(tunnel) => {
                hang_up(tunnel.wire, self.deadline()).await;
                Ok(None)
            }
        }
    }

    async fn begin_pings(&self, mut tunnel: Tunnel) -> Result<Pinging, PingError> {
        if !tunnel.features.have(Features::PING) {
            // Open is not sent: the other end would pass over the field that it does not know, and connect to its target.
            return Err(PingError::TooOld("answer pings"));
        }
        let (local, mut far) = duplex(size_of::<Number>());
        let admitted = {
            let Tunnel { seal, open, wire, .. } = &mut tunnel;
            let (mut reader, mut writer) = wire.split();
            let admitted = std::future::poll_fn(|context| {
                // Asked first: what it says may be why the other direction fails.
                if let Poll::Ready(admitted) = open.poll_first(context, &mut reader) {
                    return Poll::Ready(admitted);
                }
                seal.poll(context, &mut far, &mut writer)
            });
            timeout(self.common.timeout + GRACE, admitted).await
        };
        admitted.map_err(|_| PingError::NoPlace)?.map_err(PingError::OtherEnd)?;
        let carrying = tokio::spawn(async move {
            let Tunnel { seal, open, wire, .. } = &mut tunnel;
            pump::run(seal, open, tokio::io::split(far), wire.split(), pump::unwatched).await?;
            tunnel.await_close().await;
            Ok(())
        });
        Ok(Pinging { local, carrying, sent: 0, timeout: self.common.timeout })
    }

    /// Connects and shakes hands once more, to ask the other end for its target.
    ///
    /// # Errors
    /// Those of [`Self::connect`] and [`Self::shake_hands`], and [`PingError::TooOld`].
    pub async fn prepare_probe(&self) -> Result<Tunnel, PingError> {
        let deadline = self.deadline();
        let connected = self.connect(deadline).await?;
        match self.tunnel(connected, Features::ACKNOWLEDGEMENT, Purpose::Probe, deadline).await? {
            AnyTunnel::Spipe(tunnel) if tunnel.features.have(Features::ACKNOWLEDGEMENT) => Ok(tunnel),
            AnyTunnel::Spipe(_) | AnyTunnel::Spiped(_) => {
                Err(PingError::TooOld("say whether its target can be reached"))
            }
        }
    }

    /// Has the other end connect to its target, and give it nothing.
    ///
    /// # Errors
    /// [`PingError::TargetUnreachable`], [`PingError::TargetTimedOut`] and [`PingError::OtherEnd`].
    pub async fn probe(&self, mut tunnel: Tunnel) -> Result<(), PingError> {
        match tunnel.probe(self.deadline() + GRACE).await {
            Ok(()) => {
                tunnel.await_close().await;
                Ok(())
            }
            Err(PumpError::Aborted(AbortReason::TargetUnreachable)) => Err(PingError::TargetUnreachable),
            Err(PumpError::Wire(error)) if error.kind() == io::ErrorKind::TimedOut => {
                Err(PingError::TargetTimedOut)
            }
            Err(error) => Err(PingError::OtherEnd(error)),
        }
    }
}

/// A tunnel over which pings go.
pub struct Pinging {
    local: DuplexStream,
    carrying: JoinHandle<Result<(), PumpError>>,
    sent: u64,
    timeout: Duration,
}

impl Pinging {
    /// Sends a ping, and waits until it is back.
    ///
    /// # Errors
    /// [`PingError::NoAnswer`], [`PingError::Altered`], [`PingError::Ended`] and [`PingError::OtherEnd`].
    pub async fn round_trip(&mut self) -> Result<(), PingError> {
        let (number, mut answer): (Number, Number) = (self.sent.to_be_bytes(), Number::default());
        self.sent += 1;
        let exchange = async {
            self.local.write_all(&number).await?;
            self.local.read_exact(&mut answer).await
        };
        match timeout(self.timeout, exchange).await {
            Ok(Ok(_)) if answer == number => Ok(()),
            Ok(Ok(_)) => Err(PingError::Altered),
            Ok(Err(_has_ended)) => {
                self.end().await?;
                Err(PingError::Ended)
            }
            Err(_) => Err(PingError::NoAnswer),
        }
    }

    /// Says that no more pings come, and waits until the other end has closed the connection.
    ///
    /// # Errors
    /// [`PingError::NoAnswer`] and [`PingError::OtherEnd`].
    pub async fn finish(mut self) -> Result<(), PingError> {
        self.end().await
    }

    async fn end(&mut self) -> Result<(), PingError> {
        // Where the tunnel has failed, nobody listens, and the task says why.
        let _ = self.local.shutdown().await;
        let carried = timeout(self.timeout, &mut self.carrying).await.map_err(|_| PingError::NoAnswer)?;
        carried.unwrap_or_else(|panic| resume_unwind(panic.into_panic())).map_err(PingError::OtherEnd)
    }
}
