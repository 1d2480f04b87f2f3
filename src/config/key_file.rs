//! Reading and making key files.

use std::convert::Infallible;
use std::env;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rand::TryRng;
use rand::rngs::SysRng;
use rustix::fs::StatVfsMountFlags;
use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};
use thiserror::Error;
use tracing::warn;
use zeroize::Zeroizing;

use crate::proto::key::{Fingerprint, KEY_FILE_MIN, Key, KeyDerivation, KeyTooShort};
use crate::proto::noise::Secret;
use crate::proto::stack::{self, wiped};

/// Where a key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeySource {
    /// A file, or whatever else has a path and ends.
    File(PathBuf),
    /// `-`
    Stdin,
}

impl FromStr for KeySource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::Stdin } else { Self::File(text.into()) })
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(formatter),
            Self::Stdin => formatter.write_str("standard input"),
        }
    }
}

/// The users that keys may belong to: root, and these.
#[derive(Clone, Copy)]
pub(crate) struct Owners {
    /// Who started the process.
    starter: Uid,
    /// Who the process becomes (`-u`), if that is another one.
    user: Option<Uid>,
}

impl Owners {
    /// For a process that stays, or becomes `user`. To be called before it does.
    pub(crate) fn new(user: Option<u32>) -> Self {
        Self { starter: geteuid(), user: user.map(Uid::from_raw) }
    }

    fn contain(self, uid: u32) -> bool {
        let uid = Uid::from_raw(uid);
        uid.is_root() || uid == self.starter || Some(uid) == self.user
    }
}

/// Whether a key is taken that is too short, or was never random.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeakKeys {
    /// It is an error.
    Refused,
    /// There is a warning. For spiped's protocol, whose other end may have such a key since long ago.
    Taken,
}

/// Whether to mind what others can do with a key file.
#[derive(Clone, Copy)]
pub(crate) enum Permissions {
    Private(Owners),
    /// `--insecure-key-permissions`
    Any,
}

impl Permissions {
    pub(crate) fn new(insecure: bool, owners: Owners) -> Self {
        if insecure { Self::Any } else { Self::Private(owners) }
    }
}

/// What is wrong with a key file, and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It cannot be opened or read.
    #[error("cannot read the key {0}: {1}")]
    Read(String, #[source] io::Error),
    /// There is none.
    #[error("cannot read the key {0}: {1}; make one with 'spipe keygen'")]
    Missing(String, #[source] io::Error),
    /// It is too short.
    #[error("the key {0} is not usable: {1}; make one with 'spipe keygen'")]
    TooShort(String, #[source] KeyTooShort),
    /// It is too long to be a secret.
    #[error("{path} is too long: at most {SECRET_MAX} bytes are read", path = .0.display())]
    TooLong(PathBuf),
    /// Every byte is the same, as of a file of zeros: it was never random.
    #[error("the key {0} is not usable: all its bytes are the same; make one with 'spipe keygen'")]
    OneByte(String),
    /// Others can read it.
    #[error("{path} can be read by others (mode {mode:04o}); type: chmod 600 {path}  (or pass --insecure-key-permissions)", path = .0.display(), mode = .1)]
    Permissions(PathBuf, u32),
    /// Others can read it, and nobody can change that.
    #[error(
        "{path} can be read by others (mode {mode:04o}) on a mount that is read-only; mount it with mode 0400, or \
         with mode 0440, root as its owner, and a group that spipe is in  (or pass --insecure-key-permissions)",
        path = .0.display(), mode = .1
    )]
    PermissionsOfMount(PathBuf, u32),
    /// It is another user's, who can change it.
    #[error(
        "{path} belongs to another user (uid {uid}), who could put another key there; type: chown {} {path}  (or pass \
         --insecure-key-permissions)",
        geteuid(), path = .0.display(), uid = .1
    )]
    Owner(PathBuf, u32),
    /// Others can put keys into a directory.
    #[error(
        "others can put keys into the directory {path} (mode {mode:04o}); type: chmod go-w {path}  (or pass \
         --insecure-key-permissions)",
        path = .0.display(), mode = .1
    )]
    WritableDirectory(PathBuf, u32),
    /// Two keys of a pipe could not be told apart.
    #[error(
        "the keys {first} and {second} have one fingerprint, {fingerprint}: they are the same key, or the log could not \
         tell them apart; leave one out"
    )]
    SharedFingerprint {
        /// Where the first one is.
        first: String,
        /// Where the second one is.
        second: String,
        /// What they have in common.
        fingerprint: Fingerprint,
    },
    /// A directory of keys has none.
    #[error("the directory {path} has no key: no file in it is called *.key; make one with 'spipe keygen {path}/NAME.key'", path = .0.display())]
    EmptyDirectory(PathBuf),
    /// A device, which never ends.
    #[error("the key {0} is a device and not a file; to read standard input, write -k -")]
    Device(PathBuf),
    /// A key typed at a terminal would stay on the screen.
    #[error("standard input is a terminal, and a key does not belong on a screen; redirect a file to it")]
    Terminal,
    /// `keygen` found something with that name.
    #[error("{path} exists already and is left as it is; remove it first if it is no longer needed", path = .0.display())]
    Exists(PathBuf),
    /// `keygen` could not write.
    #[error("cannot write the key {path}: {1}", path = .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// `keygen` without a file, on a terminal.
    #[error("a key does not belong on a terminal; name a file: spipe keygen FILE")]
    ToTerminal,
    /// `keygen` without a file, and its output leads nowhere.
    #[error(
        "standard output is closed or /dev/null, where the key would be lost; name a file: spipe keygen FILE"
    )]
    ToNowhere,
    /// The system's random generator failed.
    #[error("the system gives no random bytes: {0}")]
    Randomness(#[source] rand::rngs::SysError),
}

/// Bytes of a file for [`read_secret`]: private keys with their certificates have some thousand.
const SECRET_MAX: usize = 64 * 1024;

/// What a key in a directory of keys is called.
const EXTENSION: &str = "key";

/// Reads the key at `path`; if that is a directory, all its `*.key` files, in the order of their names. Each with its path.
pub(crate) fn read_all(
    path: &Path,
    permissions: Permissions,
    weak: WeakKeys,
) -> Result<Vec<(PathBuf, Key)>, KeyFileError> {
    let read = |path: PathBuf| {
        let key = read(&KeySource::File(path.clone()), permissions, weak)?;
        Ok((path, key))
    };
    if !path.is_dir() {
        return Ok(vec![read(path.to_owned())?]);
    }
    let unreadable = |error| KeyFileError::Read(path.display().to_string(), error);
    if let Permissions::Private(owners) = permissions {
        let directory = File::open(path).map_err(unreadable)?;
        check_directory(path, &directory, owners).map_err(unreadable)??;
    }
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.extension().is_some_and(|extension| extension == EXTENSION) {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(KeyFileError::EmptyDirectory(path.to_owned()));
    }
    files.sort();
    files.into_iter().map(read).collect()
}

/// Reads one key.
pub(crate) fn read(
    source: &KeySource,
    permissions: Permissions,
    weak: WeakKeys,
) -> Result<Key, KeyFileError> {
    match source {
        KeySource::File(path) => match open(path, permissions) {
            Ok(file) => derive(source, file, weak),
            Err(KeyFileError::Read(name, error)) if error.kind() == io::ErrorKind::NotFound => {
                Err(KeyFileError::Missing(name, error))
            }
            Err(error) => Err(error),
        },
        KeySource::Stdin if io::stdin().is_terminal() => Err(KeyFileError::Terminal),
        // Not io::stdin(), whose buffer would keep the key.
        KeySource::Stdin => {
            let descriptor = rustix::io::dup(io::stdin());
            derive(
                source,
                File::from(descriptor.map_err(|error| KeyFileError::Read(source.to_string(), error.into()))?),
                weak,
            )
        }
    }
}

/// Opens a file with a secret, if nobody else can read or replace it.
fn open(path: &Path, permissions: Permissions) -> Result<File, KeyFileError> {
    let unreadable = |error| KeyFileError::Read(path.display().to_string(), error);
    let file = File::open(path).map_err(unreadable)?;
    // Of the open file, not of the path, which could be another one by now.
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.file_type().is_char_device() || metadata.file_type().is_block_device() {
        return Err(KeyFileError::Device(path.to_owned()));
    }
    if metadata.is_dir() {
        // Its permissions are not what is wrong with it.
        return Err(unreadable(io::ErrorKind::IsADirectory.into()));
    }
    if let Permissions::Private(owners) = permissions {
        check_file(path, &file, &metadata, owners)?;
    }
    Ok(file)
}

/// Reads a secret that is no key of a pipe: the same rules hold for its file.
pub(super) fn read_secret(path: &Path, permissions: Permissions) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let mut file = open(path, permissions)?;
    // All of it at once: a vector that grows leaves copies behind.
    let (mut bytes, mut length) = (Zeroizing::new(vec![0; SECRET_MAX + 1]), 0);
    loop {
        match file.read(&mut bytes[length..]) {
            Ok(0) if length > SECRET_MAX => return Err(KeyFileError::TooLong(path.to_owned())),
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(KeyFileError::Read(path.display().to_string(), error)),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Asserts that nobody else can read or replace the key in `file`.
///
/// Its parents are not looked at: a file that others put in its place would belong to them.
fn check_file(path: &Path, file: &File, metadata: &Metadata, owners: Owners) -> Result<(), KeyFileError> {
    if !owners.contain(metadata.uid()) {
        return Err(KeyFileError::Owner(path.to_owned(), metadata.uid()));
    }
    let is_fixed = is_on_read_only_mount(file);
    // Kubernetes and Docker mount secrets that way, with a group for the service's user, who is not the owner.
    let is_mounted_for_us = is_fixed && metadata.uid() == 0 && is_in_group(metadata.gid());
    let others = if is_mounted_for_us || is_credential(path, metadata) { 0o037 } else { 0o077 };
    match metadata.mode() & 0o7777 {
        mode if mode & others == 0 => Ok(()),
        mode if is_fixed => Err(KeyFileError::PermissionsOfMount(path.to_owned(), mode)),
        mode => Err(KeyFileError::Permissions(path.to_owned(), mode)),
    }
}

/// Whether `file` is one of systemd's credentials.
///
/// systemd may let a service's user at them by an access control list, and what that allows at most shows as the permissions of
/// the group, which is root's. A unit may show them at another place, too (`BindReadOnlyPaths=`).
fn is_credential(path: &Path, file: &Metadata) -> bool {
    let credential = || {
        let credential = Path::new(&env::var_os("CREDENTIALS_DIRECTORY")?).join(path.file_name()?);
        std::fs::metadata(credential).ok()
    };
    credential().is_some_and(|credential| (credential.dev(), credential.ino()) == (file.dev(), file.ino()))
}

/// What the file of a key may have been called before systemd copied it. Of a directory of credentials (`LoadCredential=ID:PATH`),
/// systemd calls each copy `ID_NAME`, and either part may have a `_` in it.
pub(super) fn original_names(path: &Path) -> Vec<String> {
    let is_copy = std::fs::metadata(path).is_ok_and(|metadata| is_credential(path, &metadata));
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) if is_copy => name.match_indices('_').map(|(at, _)| name[at + 1..].to_owned()).collect(),
        _ => Vec::new(),
    }
}

/// Asserts that nobody else can put a key into the open `directory`.
///
/// On a read-only mount nobody can, whatever the mode: Kubernetes gives its directories of secrets mode 1777.
fn check_directory(path: &Path, directory: &File, owners: Owners) -> io::Result<Result<(), KeyFileError>> {
    let metadata = directory.metadata()?;
    let mode = metadata.mode() & 0o7777;
    Ok(if !owners.contain(metadata.uid()) {
        Err(KeyFileError::Owner(path.to_owned(), metadata.uid()))
    } else if mode & 0o022 != 0 && !is_on_read_only_mount(directory) {
        Err(KeyFileError::WritableDirectory(path.to_owned(), mode))
    } else {
        Ok(())
    })
}

/// Not if that cannot be told.
fn is_on_read_only_mount(file: &File) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn is_in_group(gid: u32) -> bool {
    let gid = Gid::from_raw(gid);
    getegid() == gid || getgroups().is_ok_and(|groups| groups.contains(&gid))
}

fn derive(source: &KeySource, reader: impl Read, weak: WeakKeys) -> Result<Key, KeyFileError> {
    wiped::<{ stack::SYMMETRIC }, _>(|| derive_piecewise(source, reader, weak))
}

fn derive_piecewise(source: &KeySource, mut reader: impl Read, weak: WeakKeys) -> Result<Key, KeyFileError> {
    let mut derivation = KeyDerivation::default();
    let mut piece = Zeroizing::new([0; 4096]);
    let (mut first, mut has_others) = (None, false);
    loop {
        match reader.read(&mut *piece) {
            Ok(0) => break,
            Ok(count) => {
                let bytes = &piece[..count];
                let first = *first.get_or_insert(bytes[0]);
                // No early end: how long this takes does not depend on where in the key bytes differ.
                has_others |= bytes.iter().fold(0, |differences, byte| differences | (byte ^ first)) != 0;
                derivation.update(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(KeyFileError::Read(source.to_string(), error)),
        }
    }
    let weakness = match derivation.length() {
        length if length < KEY_FILE_MIN => KeyFileError::TooShort(source.to_string(), KeyTooShort(length)),
        _ if !has_others => KeyFileError::OneByte(source.to_string()),
        _ => return Ok(derivation.finish_any()),
    };
    match weak {
        WeakKeys::Refused => Err(weakness),
        WeakKeys::Taken => {
            warn!(key_file = %source, reason = %weakness, "a weak key: whoever guesses it can read and change everything");
            Ok(derivation.finish_any())
        }
    }
}

/// Makes a key file, safe on disk when this returns.
pub(crate) fn generate(path: &Path) -> Result<Fingerprint, KeyFileError> {
    let (bytes, fingerprint) = random_key()?;
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        match error.kind() {
            io::ErrorKind::AlreadyExists => KeyFileError::Exists(path.to_owned()),
            _ => KeyFileError::Write(path.to_owned(), error),
        }
    })?;
    let written =
        file.write_all(&**bytes).and_then(|()| file.sync_all()).and_then(|()| sync_directory_of(path));
    if let Err(error) = written {
        // Half a key must not be taken for one. It is ours: create_new made it.
        let _ = std::fs::remove_file(path);
        return Err(KeyFileError::Write(path.to_owned(), error));
    }
    Ok(fingerprint)
}

/// Writes a key to standard output, and its fingerprint to standard error.
pub(crate) fn generate_to_stdout() -> Result<(), KeyFileError> {
    if io::stdout().is_terminal() {
        return Err(KeyFileError::ToTerminal);
    }
    // The standard library opens /dev/null in the place of a descriptor that is closed at the start.
    let stdout = rustix::fs::fstat(io::stdout())
        .map_err(|error| KeyFileError::Write("standard output".into(), error.into()))?;
    let is_device =
        rustix::fs::FileType::from_raw_mode(stdout.st_mode) == rustix::fs::FileType::CharacterDevice;
    if is_device && stdout.st_rdev == rustix::fs::makedev(1, 3) {
        return Err(KeyFileError::ToNowhere);
    }
    let (bytes, fingerprint) = random_key()?;
    // The standard library's buffer for standard output would keep a copy, so it is passed by.
    rustix::io::dup(io::stdout())
        .map_err(io::Error::from)
        .and_then(|descriptor| File::from(descriptor).write_all(&**bytes))
        .map_err(|error| KeyFileError::Write("standard output".into(), error))?;
    let _ = writeln!(io::stderr(), "a new key, fingerprint {fingerprint}");
    Ok(())
}

fn random_key() -> Result<(Box<Secret>, Fingerprint), KeyFileError> {
    let mut bytes = Box::new(Secret::default());
    SysRng.try_fill_bytes(&mut **bytes).map_err(KeyFileError::Randomness)?;
    let key = Key::from_bytes(&**bytes).expect("32 bytes are enough");
    Ok((bytes, key.fingerprint()))
}

/// A new file's name is on disk only when its directory is.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}
