//! Where the status is served: sockets that listen before the process gives up its rights.

use std::sync::Arc;

use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::access::{Access, Guard, StatusUser};
use super::gather::Gatherer;
use super::http::{Doors, Service};
use super::verbs::Reload;
use crate::addr::{Endpoint, Source};
use crate::listen::{
    self, Bound, Handle, ListenError, Listener, Listeners, Passed, SocketMode, SocketPermissions,
};
use crate::stream::Keepalive;

/// The most connections at a time to all status sockets together. One beyond them ends the one that is there longest.
const DOORS: usize = 32;
/// The same for the control socket, so that no reader of the status keeps an administrator out.
const CONTROL_DOORS: usize = 8;

/// Where the status is served, and to whom: pure data.
pub struct Plan {
    /// `--status`.
    sources: Vec<Source>,
    /// Who may read it there.
    access: Access,
    /// `--control`.
    control: Option<Source>,
    /// `--ready-needs-target`.
    pub ready_needs_target: bool,
}

/// What does not go together.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// Others than this host could read it.
    #[error(
        "--status {0} can be reached from other hosts, and the page tells who is connected to what: give --status-user, or \
         --status-public if everybody may read it, or listen on 127.0.0.1 or a Unix-domain socket"
    )]
    Open(Source),
    /// There is nothing to protect.
    #[error("{0} says who may read the status, which is not served: give --status")]
    NotServed(&'static str),
    /// Both at once.
    #[error("--status-public lets everybody read the status, and --status-user does not: give one of them")]
    Contradiction,
    /// Its permissions are all that protects it.
    #[error("--control takes the path of a Unix-domain socket, such as /run/spipe/control, and not {0}")]
    NotAPath(Source),
}

impl Plan {
    /// Checks that nobody can read the status by mistake.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn new(
        sources: Vec<Source>,
        user: Option<StatusUser>,
        is_public: bool,
        control: Option<Source>,
        ready_needs_target: bool,
    ) -> Result<Self, PlanError> {
        let access = match (user, is_public) {
            (Some(_), true) => return Err(PlanError::Contradiction),
            (Some(_), _) if sources.is_empty() => return Err(PlanError::NotServed("--status-user")),
            (_, true) if sources.is_empty() => return Err(PlanError::NotServed("--status-public")),
            (Some(user), false) => Access::User(user),
            (None, true) => Access::Anybody,
            (None, false) => Access::Local,
        };
        if access == Access::Local
            && let Some(open) = sources.iter().find(|source| is_open(source))
        {
            return Err(PlanError::Open(open.clone()));
        }
        let is_path =
            |source: &Source| matches!(source, Source::At(Endpoint::Unix(name)) if name.file().is_some());
        if let Some(other) = control.as_ref().filter(|source| !is_path(source)) {
            return Err(PlanError::NotAPath(other.clone()));
        }
        Ok(Self { sources, access, control, ready_needs_target })
    }

    /// Each place that is to be listened on.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().chain(&self.control)
    }

    /// How many descriptors this takes.
    pub fn descriptors(&self) -> usize {
        let doors = |is_served, doors| if is_served { doors } else { 0 };
        doors(!self.sources.is_empty(), DOORS)
            + doors(self.control.is_some(), CONTROL_DOORS)
            + self.sources().count()
    }

    /// Starts to listen; some of the sockets may be among those `passed`. Needs no runtime.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(&self, passed: &mut Passed) -> Result<Listening, ListenError> {
        let mut status = Vec::new();
        for source in &self.sources {
            status.extend(listen::listen(source, &SocketPermissions::default(), passed)?);
        }
        let control = match &self.control {
            Some(source) => {
                let owner_only = SocketPermissions { mode: Some(SocketMode::OWNER), owner: None };
                listen::listen(source, &owner_only, passed)?
            }
            None => Vec::new(),
        };
        Ok(Listening { status, control, access: self.access.clone() })
    }
}

/// Whether other hosts may reach it. What systemd listens on is its administrator's decision.
fn is_open(source: &Source) -> bool {
    match source {
        Source::At(Endpoint::Ip(address)) => !address.ip().to_canonical().is_loopback(),
        Source::At(Endpoint::Name { host, .. }) => !host.eq_ignore_ascii_case("localhost"),
        Source::At(Endpoint::Unix(_)) | Source::Passed(_) => false,
        Source::Every { .. } => true,
    }
}

/// Sockets that listen for readers of the status.
pub struct Listening {
    status: Vec<Bound>,
    control: Vec<Bound>,
    access: Access,
}

/// The same, known to the runtime.
pub struct Registered {
    status: Vec<Listener>,
    control: Vec<Listener>,
    access: Access,
}

/// The status is served as long as this lives.
pub struct Serving {
    accepting: JoinSet<()>,
    /// Keeps what is shown up to date.
    _looking: JoinSet<()>,
    elsewhere: CancellationToken,
}

impl Serving {
    /// Serves no more; the sockets are closed when this is done, and their files are gone, unless they are another process's.
    pub async fn end(mut self) {
        if self.elsewhere.is_cancelled() {
            // Each of them leaves its files, and ends.
            while self.accepting.join_next().await.is_some() {}
        } else {
            self.accepting.shutdown().await;
        }
    }
}

impl Listening {
    /// Makes the sockets known to the runtime, within which this is to be called. What comes after it cannot fail.
    ///
    /// # Errors
    /// [`ListenError`], when the runtime cannot take a socket.
    pub fn register(self) -> Result<Registered, ListenError> {
        let Self { status, control, access } = self;
        let [status, control] = [into_listeners(status)?, into_listeners(control)?];
        Ok(Registered { status, control, access })
    }
}

impl Registered {
    /// Looks after the files of sockets that another process has handed over, from here on.
    pub fn adopt(&mut self) {
        self.status.iter_mut().chain(&mut self.control).for_each(Listener::adopt);
    }

    /// The sockets, for another process.
    pub fn handles(&self) -> Vec<Handle> {
        self.status.iter().chain(&self.control).map(Listener::handle).collect()
    }

    /// Serves what `gatherer` knows, until another process does (`elsewhere`); `reload` is asked for by the control socket. To be
    /// called within the runtime.
    pub fn start(self, gatherer: Arc<Gatherer>, reload: Reload, elsewhere: CancellationToken) -> Serving {
        let Self { status, control, access } = self;
        let (mut accepting, mut looking) = (JoinSet::new(), JoinSet::new());
        if !status.is_empty() || !control.is_empty() {
            looking.spawn(super::gather::keep_looking(Arc::clone(&gatherer)));
        }
        if !status.is_empty() {
            let service = Service::status(Arc::clone(&gatherer), Guard::new(access));
            accepting.spawn(accept(status, Doors::new(DOORS), service, elsewhere.clone()));
        }
        if !control.is_empty() {
            let service = Service::control(gatherer, Guard::new(Access::Anybody), reload);
            accepting.spawn(accept(control, Doors::new(CONTROL_DOORS), service, elsewhere.clone()));
        }
        Serving { accepting, _looking: looking, elsewhere }
    }
}

fn into_listeners(bound: Vec<Bound>) -> Result<Vec<Listener>, ListenError> {
    bound.into_iter().map(Bound::into_listener).collect()
}

/// Serves until another process does.
async fn accept(listeners: Vec<Listener>, doors: Doors, service: Service, elsewhere: CancellationToken) {
    for listener in &listeners {
        info!(source = %listener.local(), "serving the status");
    }
    let mut listeners = Listeners::new(listeners, Keepalive::default());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            arrival = listeners.accept(|| {}) => {
                connections.spawn(doors.enter(service.clone().serve(arrival.stream)));
            }
            Some(_ended) = connections.join_next() => {}
            () = elsewhere.cancelled() => break,
        }
    }
    listeners.into_inner().into_iter().for_each(Listener::leave);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(source: &str, user: Option<StatusUser>, is_public: bool) -> Result<Plan, PlanError> {
        Plan::new(vec![source.parse().unwrap()], user, is_public, None, false)
    }

    #[test]
    fn what_other_hosts_can_reach_is_not_open_by_mistake() {
        for source in ["0.0.0.0:1", "[]:1", "192.0.2.1:1", "[::]:1", "host:1", "[2001:db8::1]:1"] {
            assert!(matches!(plan(source, None, false), Err(PlanError::Open(_))), "{source}");
            assert!(plan(source, None, true).is_ok(), "{source}");
        }
    }

    #[test]
    fn what_only_this_host_can_reach_needs_no_password() {
        for source in
            ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1", "/run/x", "@x", "systemd:status"]
        {
            assert!(plan(source, None, false).is_ok(), "{source}");
        }
    }

    #[test]
    fn the_control_socket_is_a_file() {
        let control = |text: &str| Plan::new(Vec::new(), None, false, Some(text.parse().unwrap()), false);
        assert!(control("/run/spipe/control").is_ok());
        for source in ["127.0.0.1:1", "[]:1", "@control", "systemd:control", "localhost:1"] {
            assert!(matches!(control(source), Err(PlanError::NotAPath(_))), "{source}");
        }
    }

    #[test]
    fn options_that_protect_nothing_are_mistakes() {
        let hash = "a:$5$saltsalt$hcyDOxdIg0p3xyqtpHh/v8Ph.am06tQaovp1KpEklb7";
        let user = || Some(hash.parse::<StatusUser>().unwrap());
        assert!(matches!(Plan::new(Vec::new(), None, true, None, false), Err(PlanError::NotServed(_))));
        if user().is_some() {
            assert!(matches!(
                Plan::new(Vec::new(), user(), false, None, false),
                Err(PlanError::NotServed(_))
            ));
            assert_eq!(plan("127.0.0.1:1", user(), true).err(), Some(PlanError::Contradiction));
        }
    }
}
