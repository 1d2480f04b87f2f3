//! From one pipe's options to its [`Spec`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use vec1::Vec1;

use super::access::{self, ListFileError};
use super::key_file::{self, KeyFileError, KeySource, Owners, Permissions, WeakKeys};
use super::options::{CipherChoice, Mode, PingOptions, PipeOptions, ProtocolChoice};
use super::targets::{self, CredentialsError};
use super::tls::{self, TlsFileError, TlsPlanner};
use crate::addr::{Endpoint, Scheme, Source, Sources};
use crate::connection::{Common, KeyNames};
use crate::listen::{SocketOwner, SocketPermissions};
use crate::names::{Lookup, Refresh, Unresolved};
use crate::pipe::{Role, Spec, SpecsError};
use crate::proto::cipher::{Cipher, Ciphers};
use crate::proto::key::Key;
use crate::proto::spiped::handshake::ForwardSecrecy;
use crate::service::privileges::{LookupError, UserName};
use crate::service::process::aes_support;
use crate::stream::{Keepalive, Probes};
use crate::tunnel::{Protocol, Reuse, Terms};

/// Why options make no pipe.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// They do not go together, or not with what they are for.
    #[error("{message}")]
    Contradiction {
        /// The option to look at, by its long name.
        option: &'static str,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// A list of networks cannot be used.
    #[error("{source}")]
    List {
        /// The option that names it.
        option: &'static str,
        /// Why.
        source: ListFileError,
    },
    /// The credentials for a proxy cannot be used.
    #[error("{0}")]
    Credentials(#[source] CredentialsError),
    /// A user or group is not known.
    #[error("--socket-owner {name}: {source}")]
    Owner {
        /// As it was written.
        name: UserName,
        /// Why. In a box: every error would have to be as large.
        source: Box<LookupError>,
    },
    /// TLS cannot be spoken with a target as the options say.
    #[error("{source}")]
    Tls {
        /// The option that names it.
        option: &'static str,
        /// Why.
        source: TlsFileError,
    },
}

impl From<SpecsError> for PlanError {
    fn from(error: SpecsError) -> Self {
        let option = match error {
            SpecsError::SharedName(_) => "name",
            SpecsError::SharedFingerprint { .. } => "key",
            SpecsError::SharedSource(_)
            | SpecsError::SharedWithoutName(_)
            | SpecsError::SharedWithoutAgreement(_)
            | SpecsError::TooManyKeys(..)
            | SpecsError::None => "source",
            SpecsError::SharedProtocol(_) => "protocol",
            SpecsError::SharedDoor { .. } => "label",
            SpecsError::LeadsToItself(_) | SpecsError::LeadIntoEachOther(_) => "target",
        };
        Self::contradiction(option, error.to_string())
    }
}

impl PlanError {
    pub(super) fn contradiction(option: &'static str, message: impl Into<String>) -> Self {
        Self::Contradiction { option, message: message.into() }
    }

    /// The option to look at, by its long name.
    pub(super) fn option(&self) -> &'static str {
        match self {
            Self::Contradiction { option, .. } | Self::List { option, .. } | Self::Tls { option, .. } => {
                option
            }
            Self::Key(_) => "key",
            Self::Credentials(_) => "via-auth",
            Self::Owner { .. } => "socket-owner",
        }
    }
}

/// The keys of a pipe.
pub(super) struct Keys {
    pub(super) keys: Vec1<Arc<Key>>,
    /// The files and directories that they come from, and the other secrets.
    pub(super) files: Vec<PathBuf>,
}

/// Makes specs of pipes, again and again.
pub(crate) struct Planner {
    /// Whose key files may be.
    owners: Owners,
    /// Standard input gives its key once.
    stdin_key: Option<Arc<Key>>,
    /// What has been looked up stays: later, the user database may be out of reach (sandbox).
    socket_owners: HashMap<UserName, SocketOwner>,
    tls: TlsPlanner,
}

impl Planner {
    /// A planner that has read nothing yet.
    pub(crate) fn new(owners: Owners) -> Self {
        Self { owners, stdin_key: None, socket_owners: HashMap::new(), tls: TlsPlanner::default() }
    }

    /// A pipe that listens, with its keys, and where they are. Relative paths are `beside` the place that names them.
    ///
    /// # Errors
    /// [`PlanError`].
    pub(super) fn spec(
        &mut self,
        options: PipeOptions,
        beside: &Path,
    ) -> Result<(Spec, Vec<PathBuf>), PlanError> {
        let mode = options.mode().ok_or_else(|| {
            PlanError::contradiction(
                "mode",
                "the mode is missing; write mode = \"encrypt\" or mode = \"decrypt\"",
            )
        })?;
        let sources = Sources::new(options.source.clone())
            .map_err(|error| PlanError::contradiction("source", error.to_string()))?;
        let permissions = self.socket_permissions(&options)?;
        check_proxies(&options)?;
        check_spares(&options)?;
        let spares = options.spares.unwrap_or_default();
        let (access, lists) = access::access(options.allow.as_deref(), &options.deny, beside)
            .map_err(|(option, source)| PlanError::List { option, source })?;
        let (proxies, trusted) = options
            .accept_proxy
            .then(|| access::proxies(&options.trust_proxy, beside))
            .transpose()
            .map_err(|source| PlanError::List { option: "trust-proxy", source })?
            .unzip();
        let rules = options.rules(access, proxies);
        let (common, Keys { keys, mut files }) = self.common(options, beside)?;
        files.extend(lists.into_iter().chain(trusted.into_iter().flatten()));
        let role = match mode {
            Mode::Encrypt => Role::Initiator { key: keys.split_off_first().0, spares },
            Mode::Decrypt => Role::Responder { keys },
        };
        Ok((Spec { sources, permissions, rules, role, common }, files))
    }

    /// What is the same for a pipe that listens and for one of standard input and output, and its keys.
    ///
    /// # Errors
    /// [`PlanError`].
    pub(super) fn common(
        &mut self,
        options: PipeOptions,
        beside: &Path,
    ) -> Result<(Common, Keys), PlanError> {
        let protocol = protocol(&options)?;
        let keepalive = Keepalive { dead_after: options.dead_after.into(), probes: probes(&options)? };
        if options.send_proxy.is_some() && !matches!(options.mode(), Some(Mode::Decrypt)) {
            return Err(PlanError::contradiction(
                "send-proxy",
                "--send-proxy is for -d, which has the service as its target; without -d, the client is told to the other end in \
                 any case",
            ));
        }
        let lookup = lookup(&options)?;
        let permissions = Permissions::new(options.insecure_key_permissions, self.owners);
        let (tls, files) = self.tls.client(&options, beside, permissions)?.unzip();
        let (proxy, auth) = (options.via.as_ref(), options.via_auth.as_deref());
        let (via, file) = targets::via(proxy, auth, beside, permissions)?;
        let targets = targets::targets(&options, via.as_ref(), tls.as_ref())?;
        let mut files = files.unwrap_or_default();
        files.extend(file);
        let weak = match protocol {
            Protocol::Spipe(_) => WeakKeys::Refused,
            Protocol::Spiped(_) => WeakKeys::Taken,
        };
        let (mut keys, mut key_names) = (Vec::new(), KeyNames::default());
        let mut add = |key: Arc<Key>, name: String| {
            let (second, fingerprint) = (name.clone(), key.fingerprint());
            let added = key_names.add(fingerprint, name);
            keys.push(key);
            added.map_err(|first| KeyFileError::SharedFingerprint { first, second, fingerprint })
        };
        for source in &options.key {
            match source {
                KeySource::Stdin => add(self.stdin_key(weak)?, source.to_string())?,
                KeySource::File(path) => {
                    let path = beside.join(path);
                    for (file, key) in key_file::read_all(&path, permissions, weak)? {
                        // As it was written.
                        let name = file.strip_prefix(beside).unwrap_or(&file).display().to_string();
                        add(Arc::new(key), name)?;
                    }
                    files.push(path);
                }
            }
        }
        let keys = Vec1::try_from_vec(keys).map_err(|_| {
            PlanError::contradiction("key", "the key is missing; write the name of a key file")
        })?;
        let limits = options.limits();
        let common = Common {
            name: options.name,
            key_names,
            targets,
            protocol,
            timeout: options.timeout.into(),
            keepalive,
            lookup,
            send_proxy: options.send_proxy,
            limits,
        };
        Ok((common, Keys { keys, files }))
    }

    /// What a connection for pings needs, and the key that it proves.
    ///
    /// # Errors
    /// [`PlanError`].
    pub(crate) fn ping(&self, options: PingOptions) -> Result<(Common, Arc<Key>), PlanError> {
        if options.target.scheme() != Scheme::Plain {
            return Err(tls::not_for_spipe(&options.target));
        }
        let weak = match options.protocol {
            ProtocolChoice::Spipe => WeakKeys::Refused,
            ProtocolChoice::Spiped => WeakKeys::Taken,
        };
        let protocol = ping_protocol(&options)?;
        let permissions = Permissions::new(options.insecure_key_permissions, self.owners);
        let (proxy, auth) = (options.via.as_ref(), options.via_auth.as_deref());
        let (via, _) = targets::via(proxy, auth, Path::new(""), permissions)?;
        let route = targets::route(options.target, options.bind, options.interface, via.as_ref())?;
        let key = match &options.key {
            KeySource::Stdin => key_file::read(&options.key, Permissions::Any, weak)?,
            KeySource::File(path) => {
                let mut keys = key_file::read_all(path, permissions, weak)?;
                // A directory without a key is an error there.
                keys.swap_remove(0).1
            }
        };
        // A name is looked up by a step of its own.
        let lookup = Lookup { refresh: Refresh::Never, prefer: options.prefer, ..Lookup::default() };
        let timeout = options.timeout.into();
        let common = Common { protocol, timeout, lookup, ..Common::new(route, options.cipher.ciphers()) };
        Ok((common, Arc::new(key)))
    }

    fn socket_permissions(&mut self, options: &PipeOptions) -> Result<SocketPermissions, PlanError> {
        let has_file =
            |source: &Source| matches!(source, Source::At(Endpoint::Unix(name)) if name.file().is_some());
        let given = [
            ("socket-mode", options.socket_mode.is_some()),
            ("socket-owner", options.socket_owner.is_some()),
        ];
        if let Some((option, _)) = given.into_iter().find(|(_, is_given)| *is_given)
            && !options.source.iter().any(has_file)
        {
            return Err(PlanError::contradiction(
                option,
                format!(
                    "--{option} is for the file of a Unix-domain source, and there is none; add -s /PATH, or leave it out                      (for a socket that systemd passes, its unit has SocketMode= and SocketUser=)"
                ),
            ));
        }
        let owner = options.socket_owner.clone().map(|name| self.socket_owner(name)).transpose()?;
        Ok(SocketPermissions { mode: options.socket_mode, owner })
    }

    fn socket_owner(&mut self, name: UserName) -> Result<SocketOwner, PlanError> {
        if let Some(known) = self.socket_owners.get(&name) {
            return Ok(known.clone());
        }
        let (uid, gid) =
            name.ids().map_err(|source| PlanError::Owner { name: name.clone(), source: source.into() })?;
        let owner = SocketOwner { name: name.to_string(), uid, gid };
        self.socket_owners.insert(name, owner.clone());
        Ok(owner)
    }

    fn stdin_key(&mut self, weak: WeakKeys) -> Result<Arc<Key>, KeyFileError> {
        let key = match self.stdin_key.take() {
            Some(key) => key,
            None => Arc::new(key_file::read(&KeySource::Stdin, Permissions::Any, weak)?),
        };
        Ok(Arc::clone(self.stdin_key.insert(key)))
    }
}

/// What the pipe speaks with its other end.
fn protocol(options: &PipeOptions) -> Result<Protocol, PlanError> {
    let contradiction = |option, message| Err(PlanError::contradiction(option, message));
    match options.protocol {
        ProtocolChoice::Spipe if options.no_forward_secrecy => contradiction(
            "no-forward-secrecy",
            "-f: forward secrecy cannot be turned off, for without it a key that leaks one day opens all that was \
             ever recorded; leave -f out",
        ),
        ProtocolChoice::Spipe => {
            let label = options.label.clone().unwrap_or_default();
            let reuse = if options.no_reuse { Reuse::Off } else { Reuse::On };
            Ok(Protocol::Spipe(Terms { label, ciphers: options.cipher.ciphers(), reuse }))
        }
        ProtocolChoice::Spiped if options.label.is_some() => contradiction(
            "label",
            "--label is for spipe's own protocol, and with --protocol spiped there is none; leave it out, and tell pipes apart by \
             their keys",
        ),
        ProtocolChoice::Spiped if options.no_reuse => contradiction(
            "no-reuse",
            "--no-reuse is for spipe's own protocol, and with --protocol spiped no tunnel is used again; leave it out",
        ),
        ProtocolChoice::Spiped if options.cipher != CipherChoice::Auto => contradiction(
            "cipher",
            "--cipher is for spipe's own protocol; --protocol spiped has one cipher only (aes256ctr-hmacsha256), so leave it out",
        ),
        ProtocolChoice::Spiped => match (options.forward_secrecy, options.no_forward_secrecy) {
            (false, false) => Ok(Protocol::Spiped(ForwardSecrecy::Offered)),
            (true, false) => Ok(Protocol::Spiped(ForwardSecrecy::Required)),
            (false, true) => Ok(Protocol::Spiped(ForwardSecrecy::Omitted)),
            (true, true) => contradiction(
                "no-forward-secrecy",
                "-g requires forward secrecy, and -f does without it; leave one of them out",
            ),
        },
    }
}

/// What `spipe ping` speaks.
fn ping_protocol(options: &PingOptions) -> Result<Protocol, PlanError> {
    if let ProtocolChoice::Spipe = options.protocol {
        let label = options.label.clone().unwrap_or_default();
        return Ok(Protocol::Spipe(Terms { label, ciphers: options.cipher.ciphers(), reuse: Reuse::Off }));
    }
    let given = [
        ("label", options.label.is_some()),
        ("cipher", options.cipher != CipherChoice::Auto),
        ("through", options.through),
        ("count", options.count.0.get() > 1),
    ];
    match given.into_iter().find_map(|(option, is_given)| is_given.then_some(option)) {
        None => Ok(Protocol::Spiped(ForwardSecrecy::Offered)),
        Some(option) => Err(PlanError::contradiction(
            option,
            format!("--{option} is for spipe's own protocol, and spiped's has no such thing; leave it out"),
        )),
    }
}

/// Asserts that the options about PROXY headers go together.
fn check_proxies(options: &PipeOptions) -> Result<(), PlanError> {
    let contradiction = |option, message| Err(PlanError::contradiction(option, message));
    match (options.accept_proxy, &*options.trust_proxy) {
        (true, []) => contradiction(
            "accept-proxy",
            "--accept-proxy believes what proxies say of their clients; add --trust-proxy NETWORK to say where these proxies are",
        ),
        (false, [_, ..]) => contradiction(
            "trust-proxy",
            "--trust-proxy says which proxies may send a header, and without --accept-proxy there is none; add --accept-proxy",
        ),
        _ => Ok(()),
    }
}

/// Asserts that spare tunnels, if they are wanted, can be used.
fn check_spares(options: &PipeOptions) -> Result<(), PlanError> {
    let why_not = match (options.mode(), options.protocol) {
        _ if options.spares.unwrap_or_default() == 0 => return Ok(()),
        (Some(Mode::Decrypt), _) => "and -d waits for them; give it to the other end",
        (_, ProtocolChoice::Spiped) => {
            "and with --protocol spiped no tunnel can wait for a client; leave it out"
        }
        _ if options.no_reuse => "and with --no-reuse no tunnel waits for a client; leave one of them out",
        _ => return Ok(()),
    };
    Err(PlanError::contradiction("spares", format!("--spares makes tunnels before clients come, {why_not}")))
}

fn probes(options: &PipeOptions) -> Result<Probes, PlanError> {
    match (options.keepalive, options.no_keepalive) {
        (Some(_), true) => Err(PlanError::contradiction(
            "no-keepalive",
            "--keepalive says when to probe idle connections, and --no-keepalive never; leave one of them out",
        )),
        (Some(idle), false) => Ok(Probes::After(idle.into())),
        (None, true) => Ok(Probes::Never),
        (None, false) => Ok(Probes::InTime),
    }
}

fn lookup(options: &PipeOptions) -> Result<Lookup, PlanError> {
    let refresh = match (options.resolve_interval, options.resolve_once) {
        (Some(_), true) => {
            return Err(PlanError::contradiction(
                "resolve-once",
                "--resolve-interval says how often to look names up again, and --resolve-once never; leave one of them out",
            ));
        }
        (None, true) => Refresh::Never,
        (None, false) => Refresh::Every(Lookup::INTERVAL),
        (Some(interval), false) => Refresh::Every(interval.into()),
    };
    let sources = if options.wait_for_names { Unresolved::Waits } else { Unresolved::IsAnError };
    Ok(Lookup { refresh, prefer: options.prefer, sources })
}

impl CipherChoice {
    fn ciphers(self) -> Ciphers {
        match self {
            Self::Auto => Ciphers::auto(aes_support()),
            Self::Aegis256x4 => Ciphers::only(Cipher::Aegis256X4),
            Self::Aes256gcm => Ciphers::only(Cipher::Aes256Gcm),
            Self::Chacha20poly1305 => Ciphers::only(Cipher::ChaCha20Poly1305),
        }
    }
}
