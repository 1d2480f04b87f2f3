//! Files and TCP ports (landlock(7)).

use std::fmt;
use std::path::{Path, PathBuf};

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use tracing::{debug, warn};

use super::needs::{Needs, Ports, Right, UnixSockets};

/// The newest interface that this was tested with. Later ones restrict more, Unix-domain sockets by path and UDP among
/// it, and a restriction that was not tried would break some pipe.
const NEWEST: ABI = ABI::V7;

/// What it takes to look up a name: files in `/etc`, libraries that the C library loads, and where `/etc/resolv.conf` may
/// become a link to. Files are read by name, and nothing is listed.
const RESOLVER: &[&str] = &[
    "/etc",
    "/usr/etc",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/connman",
];

/// Links in `/etc` that may lead elsewhere.
const RESOLVER_FILES: &[&str] =
    &["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/host.conf"];

/// Where directories come and go with services, so that a rule on one of them would not hold for the next of that name.
const SHORT_LIVED: &str = "/run/systemd";

/// What became of it, for the log.
pub(super) enum Landlock {
    On(ABI),
    Off,
}

impl fmt::Display for Landlock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On(abi) => write!(formatter, "abi{}", *abi as i32),
            Self::Off => formatter.write_str("off"),
        }
    }
}

pub(super) fn restrict(needs: &Needs, manager_is_abstract: bool) -> Landlock {
    let scope = if needs.unix_sockets == UnixSockets::Abstract || manager_is_abstract {
        Scope::Signal.into()
    } else {
        Scope::Signal | Scope::AbstractUnixSocket
    };
    let status = rules(needs, scope).and_then(RulesetCreated::restrict_self);
    match status.map(|status| status.landlock) {
        Ok(LandlockStatus::Available { effective_abi, .. }) => {
            warn_of_gaps(effective_abi, needs);
            Landlock::On(effective_abi.min(NEWEST))
        }
        Ok(LandlockStatus::NotEnabled) => off(&"it is not enabled; boot the kernel with lsm=landlock,…"),
        Ok(LandlockStatus::NotImplemented) => off(&"the kernel has none; Linux 5.13 and later do"),
        Err(error) => off(&error),
    }
}

fn off(reason: &dyn fmt::Display) -> Landlock {
    warn!(%reason, "files and ports are not restricted: no landlock here");
    Landlock::Off
}

/// One line for all that this kernel's landlock is too old for.
fn warn_of_gaps(abi: ABI, needs: &Needs) {
    let ports = matches!(needs.ports, Ports::These { .. });
    let gaps = [
        (ABI::V3, "truncating files", true),
        (ABI::V4, "TCP ports", ports),
        (ABI::V5, "ioctl(2) of devices", true),
        (ABI::V6, "signals and abstract sockets", true),
    ];
    let gaps: Vec<_> =
        gaps.iter().filter(|(since, _, wanted)| abi < *since && *wanted).map(|(_, what, _)| *what).collect();
    if !gaps.is_empty() {
        warn!(abi = abi as i32, not_restricted = gaps.join(", "), "this kernel's landlock is an older one");
    }
}

fn rules(needs: &Needs, scope: BitFlags<Scope>) -> Result<RulesetCreated, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(scope)?;
    if let Ports::These { .. } = &needs.ports {
        ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
    }
    let mut ruleset = ruleset.create()?;
    for (path, right) in &needs.files {
        allow(&mut ruleset, path, rights(*right));
    }
    if needs.names {
        for path in resolver_paths() {
            allow(&mut ruleset, &path, AccessFs::ReadFile.into());
        }
    }
    if let Ports::These { connect, bind } = &needs.ports {
        let connect = connect.iter().map(|port| NetPort::new(*port, AccessNet::ConnectTcp));
        let bind = bind.iter().map(|port| NetPort::new(*port, AccessNet::BindTcp));
        return ruleset.add_rules(connect.chain(bind).map(Ok::<_, RulesetError>));
    }
    Ok(ruleset)
}

fn rights(right: Right) -> BitFlags<AccessFs> {
    match right {
        Right::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        Right::Write => AccessFs::ReadFile | AccessFs::WriteFile,
        Right::Remove => AccessFs::RemoveFile.into(),
        Right::Sockets => AccessFs::MakeSock | AccessFs::RemoveFile,
        // A file that takes the place of another removes that, and is removed from where it was.
        Right::Replace => AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::RemoveFile,
    }
}

fn resolver_paths() -> impl Iterator<Item = PathBuf> {
    let targets = RESOLVER_FILES.iter().filter_map(|file| directory_for(Path::new(file)));
    RESOLVER.iter().map(PathBuf::from).chain(targets)
}

/// The directory for a rule that lets `file` be read, also when another takes its place, and when it does not exist yet: as
/// long as no service has made its directory, that is the closest one that exists, which may be all of `/run`.
fn directory_for(file: &Path) -> Option<PathBuf> {
    let (place, missing) = follow(file)?;
    if place.starts_with(SHORT_LIVED) {
        return Some(SHORT_LIVED.into());
    }
    if missing { Some(place) } else { place.parent().map(Path::to_owned) }
}

/// Where a path leads, and whether that is only as far as it exists. Links are followed even into what does not exist.
fn follow(path: &Path) -> Option<(PathBuf, bool)> {
    let mut path = path.to_owned();
    // As many as the kernel follows (path_resolution(7)).
    for _ in 0..40 {
        let (there, real) = path.ancestors().find_map(|part| Some((part, part.canonicalize().ok()?)))?;
        let mut rest = path.strip_prefix(there).ok()?.components();
        let Some(next) = rest.next() else { return Some((real, false)) };
        match real.join(next).read_link() {
            Ok(link) => path = real.join(link).join(rest.as_path()),
            Err(_) => return Some((real, true)),
        }
    }
    None
}

/// A path that no rule can be made for is left out: it does not exist, or this user may not open it, or it is a named pipe,
/// which can be read only once.
fn allow(ruleset: &mut RulesetCreated, path: &Path, rights: BitFlags<AccessFs>) {
    let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(NEWEST) };
    let added = PathFd::new(path)
        .map_err(|error| error.to_string())
        .and_then(|fd| ruleset.add_rule(PathBeneath::new(fd, rights)).map_err(|error| error.to_string()));
    if let Err(error) = added {
        debug!(path = %path.display(), error, "no rule for this path, which is out of reach now");
    }
}
