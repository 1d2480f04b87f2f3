//! What a process still has to reach once it is locked in.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf, absolute};

use rustix::process::geteuid;
use rustix::thread::CapabilitySet;

use crate::addr::{Endpoint, Outgoing, Proxy, Source, UnixName};
use crate::listen::SocketOwner;
use crate::service::log::Destination;
use crate::upstream::Route;

/// DNS, where an answer is too long for UDP.
const DNS: u16 = 53;

/// Permissions of a file's owner, of those in inode(7).
const OWNER_READS: u32 = 0o400;
const OWNER_WRITES: u32 = 0o200;
const OWNER_SEARCHES: u32 = 0o100;

/// What may be done with a file, or with the files beneath a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// Read it, and list directories.
    Read,
    /// Write to it; it exists.
    Write,
    /// Remove files.
    Remove,
    /// Make and remove sockets.
    Sockets,
    /// Make files, and put them in the place of others.
    Replace,
}

/// TCP ports.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ports {
    /// To connect to, and to be bound to on the way out. What is listened on is bound before.
    These { connect: BTreeSet<u16>, bind: BTreeSet<u16> },
    /// Pipes come and go by reload.
    Any,
}

/// The Unix-domain sockets that are connected to; each one includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum UnixSockets {
    /// Not one.
    None,
    /// Some that have a path.
    Files,
    /// Some in the abstract namespace as well.
    Abstract,
}

/// What few processes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Special {
    /// Give the file of a socket a mode and an owner.
    SocketFiles,
    /// Connect over an interface that is named.
    Interface,
    /// Put the file of a socket in the place of another.
    HandOver,
}

/// What a process still has to reach once it is locked in: each method adds something. Relative paths are taken from where
/// the process is at the call.
#[derive(Debug)]
pub struct Needs {
    pub(super) files: Vec<(PathBuf, Right)>,
    /// What is read again only as long as it is the same file, because of where it is.
    pub(super) irreplaceable: Vec<PathBuf>,
    pub(super) ports: Ports,
    /// Sockets are given a name before they connect, or listen.
    pub(super) binds: bool,
    /// Sockets are listened on that are not yet.
    pub(super) listens: bool,
    /// Host names are looked up.
    pub(super) names: bool,
    pub(super) unix_sockets: UnixSockets,
    pub(super) special: BTreeSet<Special>,
    /// Of root's rights, if the process has them.
    pub(super) capabilities: CapabilitySet,
}

impl Default for Needs {
    fn default() -> Self {
        Self {
            // What standard output becomes when the far side has nothing more to say.
            files: vec![("/dev/null".into(), Right::Write)],
            irreplaceable: Vec::new(),
            ports: Ports::These { connect: BTreeSet::new(), bind: BTreeSet::new() },
            binds: false,
            listens: false,
            names: false,
            unix_sockets: UnixSockets::None,
            special: BTreeSet::new(),
            capabilities: CapabilitySet::empty(),
        }
    }
}

impl Needs {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The configuration `file` is read again, and may name anything then: other ports, host names, abstract sockets. Not
    /// other directories, for a directory has to be known now.
    pub fn configuration(&mut self, file: &Path) {
        self.read_again(file);
        self.ports = Ports::Any;
        (self.names, self.binds, self.listens) = (true, true, true);
        self.unix_sockets = UnixSockets::Abstract;
        self.special.insert(Special::Interface);
        // Ports below 1024.
        self.capabilities |= CapabilitySet::NET_BIND_SERVICE;
    }

    /// A file with a key or another thing that pipes are made of, or a directory of keys, is read again.
    pub fn key(&mut self, path: &Path) {
        self.read_again(path);
    }

    /// A place that is listened on already: what is left is to remove its file, and to make it again on a reload.
    pub fn listen_at(&mut self, source: &Source) {
        if let Source::At(Endpoint::Unix(name)) = source {
            self.socket_file(name);
        }
    }

    /// The file of a socket that a reload makes is given a mode, and to an `owner` if there is one.
    pub fn give_socket_files(&mut self, owner: Option<&SocketOwner>) {
        self.special.insert(Special::SocketFiles);
        if owner.is_some() {
            self.capabilities |= CapabilitySet::CHOWN;
        }
    }

    /// A place that is listened on once its name resolves.
    pub fn listen_later(&mut self, source: &Source) {
        if let Source::At(endpoint @ Endpoint::Name { port, .. }) = source {
            (self.binds, self.listens) = (true, true);
            if let Ports::These { bind, .. } = &mut self.ports {
                bind.insert(*port);
            }
            if (1..1024).contains(port) {
                self.capabilities |= CapabilitySet::NET_BIND_SERVICE;
            }
            self.resolve(endpoint);
        }
    }

    /// A way that each connection takes: a target or the proxy before it, and the outgoing address if there is one.
    pub fn dial(&mut self, route: &Route) {
        self.connect_to(route.proxy().map_or(route.target().endpoint(), Proxy::endpoint));
        if route.interface().is_some() {
            self.special.insert(Special::Interface);
        }
        if let Some(from) = route.outgoing() {
            self.connect_from(from);
        }
    }

    fn connect_to(&mut self, target: &Endpoint) {
        match (target, &mut self.ports) {
            (Endpoint::Unix(name), _) => match name.file() {
                Some(file) => {
                    self.connect_to_unix(UnixSockets::Files);
                    self.reach(file, OWNER_WRITES, CapabilitySet::DAC_OVERRIDE);
                }
                None => self.connect_to_unix(UnixSockets::Abstract),
            },
            (endpoint, Ports::These { connect, .. }) => connect.extend(endpoint.port()),
            (_, Ports::Any) => {}
        }
        self.resolve(target);
    }

    fn connect_from(&mut self, outgoing: &Outgoing) {
        self.binds = true;
        match (outgoing.endpoint(), &mut self.ports) {
            // It is made and removed for each connection.
            (Endpoint::Unix(name), _) => self.socket_file(name),
            (endpoint, Ports::These { bind, .. }) => {
                bind.extend(endpoint.port());
                if endpoint.port().is_some_and(|port| (1..1024).contains(&port)) {
                    self.capabilities |= CapabilitySet::NET_BIND_SERVICE;
                }
            }
            (_, Ports::Any) => {}
        }
        self.resolve(outgoing.endpoint());
    }

    /// The pid file is removed at the end.
    pub fn pid_file(&mut self, path: &Path) {
        self.change_directory(directory_of(&absolutely(path)), Right::Remove);
    }

    /// The process that serves until we do is taken over from at the socket `path`, which becomes ours then.
    pub fn hand_over(&mut self, path: &Path) {
        self.special.insert(Special::HandOver);
        self.change_directory(directory_of(&absolutely(path)), Right::Sockets);
    }

    /// The state is written there again and again.
    pub fn state_directory(&mut self, path: &Path) {
        self.change_directory(absolutely(path), Right::Replace);
    }

    /// Another process writes its state there, too, before and after this one.
    pub fn share_state(&mut self, path: &Path) {
        self.files.push((absolutely(path), Right::Read));
    }

    /// Whether files are made.
    pub(super) fn makes_files(&self) -> bool {
        self.files.iter().any(|(_, right)| *right == Right::Replace)
    }

    /// The log goes there.
    pub fn log_to(&mut self, destination: Destination) {
        if destination == Destination::Syslog {
            // syslog(3) writes local time, and reads the zone with the first line.
            self.files.push(("/etc/localtime".into(), Right::Read));
            // It connects again when the log daemon was started anew.
            self.connect_to_unix(UnixSockets::Files);
        }
    }

    fn connect_to_unix(&mut self, sockets: UnixSockets) {
        self.unix_sockets = self.unix_sockets.max(sockets);
    }

    fn resolve(&mut self, endpoint: &Endpoint) {
        if matches!(endpoint, Endpoint::Name { .. }) {
            self.names = true;
            // Of nscd, systemd-resolved, Avahi or SSSD.
            self.connect_to_unix(UnixSockets::Files);
            if let Ports::These { connect, .. } = &mut self.ports {
                connect.insert(DNS);
            }
        }
    }

    fn socket_file(&mut self, name: &UnixName) {
        if let Some(file) = name.file() {
            self.change_directory(directory_of(file), Right::Sockets);
        }
    }

    fn change_directory(&mut self, directory: PathBuf, right: Right) {
        self.reach(&directory, OWNER_WRITES | OWNER_SEARCHES, CapabilitySet::DAC_OVERRIDE);
        self.files.push((directory, right));
    }

    /// Keeps `capability`, which passes over the permissions of files, where the owner's permissions `mode` on `path` are not
    /// enough or not ours: such as for a key or a service's socket that belongs to another user than root.
    fn reach(&mut self, path: &Path, mode: u32, capability: CapabilitySet) {
        let allows = |path: &Path, mode| {
            fs::metadata(path)
                .is_ok_and(|file| file.uid() == geteuid().as_raw() && file.mode() & mode == mode)
        };
        let mut above = path.ancestors().skip(1);
        if !allows(path, mode) || !above.all(|directory| allows(directory, OWNER_SEARCHES)) {
            self.capabilities |= capability;
        }
    }

    /// A file that may be another one by then: editors and `mv` replace files. So the rule goes on the directory.
    fn read_again(&mut self, path: &Path) {
        let path = absolutely(path);
        // A link may lead to another place, and links in a row do in Kubernetes' secrets.
        let real = path.canonicalize().ok().filter(|real| *real != path);
        for path in [Some(path), real].into_iter().flatten() {
            self.reach(&path, OWNER_READS, CapabilitySet::DAC_READ_SEARCH);
            for file in fs::read_dir(&path).into_iter().flatten().flatten() {
                self.reach(&file.path(), OWNER_READS, CapabilitySet::DAC_READ_SEARCH);
            }
            let rule = if path.is_dir() {
                // A directory is named for all that is in it.
                credentials(path)
            } else if let Some(directory) = replaceable_beneath(directory_of(&path)) {
                directory
            } else {
                self.irreplaceable.push(path.clone());
                path
            };
            self.files.push((rule, Right::Read));
        }
    }
}

/// The directory to have a rule on so that files of `directory` may be replaced; none, if too much else is in there.
fn replaceable_beneath(directory: PathBuf) -> Option<PathBuf> {
    let depth = directory.components().count() - 1;
    // The file system hierarchy's own directories, and home directories.
    let is_shared = depth < 2
        || depth == 2
            && ["/var", "/usr", "/home", "/dev", "/proc"].iter().any(|top| directory.starts_with(top))
        || directory.starts_with("/proc")
        || env::var_os("HOME").is_some_and(|home| directory == Path::new(&home));
    (!is_shared).then(|| credentials(directory))
}

/// systemd mounts a new directory over the old one to refresh credentials (`RefreshOnReload=`), and a rule on the old one
/// says nothing of it. A rule on the directory above does; the other services' credentials in there are their users' own.
fn credentials(directory: PathBuf) -> PathBuf {
    let ours = env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|ours| directory.starts_with(ours));
    match directory.parent() {
        Some(parent) if ours && parent.ends_with("credentials") => parent.to_owned(),
        _ => directory,
    }
}

fn absolutely(path: &Path) -> PathBuf {
    // Fails where there is no current directory, and then nothing could have been read by a relative path.
    absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn directory_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Target;

    fn route(target: &str) -> Route {
        target.parse::<Target>().unwrap().into()
    }

    #[test]
    fn directories_with_much_else_in_them_are_not_opened_up_for_a_file() {
        for shared in [
            "/",
            "/etc",
            "/root",
            "/tmp",
            "/run",
            "/home/me",
            "/var/lib",
            "/usr/local",
            "/dev/shm",
            "/dev/fd",
            "/proc/1/fd",
        ] {
            assert_eq!(replaceable_beneath(shared.into()), None, "{shared}");
        }
        for own in ["/etc/spipe", "/run/spipe", "/home/me/keys", "/var/lib/spipe", "/usr/local/etc/spipe"] {
            assert_eq!(replaceable_beneath(own.into()), Some(own.into()));
        }
    }

    #[test]
    fn a_pipe_of_addresses_needs_its_ports_and_no_names() {
        let mut needs = Needs::new();
        needs.dial(&route("192.0.2.1:80"));
        needs.connect_from(&"192.0.2.2".parse().unwrap());
        needs.listen_at(&"[]:99".parse().unwrap());
        // Bound already, and looked up for that.
        needs.listen_at(&"localhost:98".parse().unwrap());
        assert_eq!(needs.ports, Ports::These { connect: [80].into(), bind: [0].into() });
        assert!(!needs.names && needs.binds && needs.unix_sockets == UnixSockets::None);
    }

    #[test]
    fn a_name_needs_dns_wherever_it_is() {
        let mut target = Needs::new();
        target.dial(&route("host:80"));
        assert_eq!(target.ports, Ports::These { connect: [DNS, 80].into(), bind: [].into() });
        let mut outgoing = Needs::new();
        outgoing.connect_from(&"host".parse().unwrap());
        assert_eq!(outgoing.ports, Ports::These { connect: [DNS].into(), bind: [0].into() });
        assert!(target.names && outgoing.names);
    }

    #[test]
    fn a_way_through_a_proxy_needs_the_proxy_only() {
        let mut needs = Needs::new();
        needs.dial(&route("host:80").through("http://192.0.2.1:3128".parse().unwrap(), None).unwrap());
        assert_eq!(needs.ports, Ports::These { connect: [3128].into(), bind: [].into() });
        assert!(!needs.names);
    }

    #[test]
    fn a_configuration_needs_any_port_whatever_is_named_before_or_after() {
        let (target, mut before, mut after) = (route("192.0.2.1:80"), Needs::new(), Needs::new());
        before.dial(&target);
        before.configuration(Path::new("/etc/spipe/spipe.toml"));
        after.configuration(Path::new("/etc/spipe/spipe.toml"));
        after.dial(&target);
        for needs in [before, after] {
            assert_eq!(needs.ports, Ports::Any);
            assert!(needs.names && needs.unix_sockets == UnixSockets::Abstract);
        }
    }
}
