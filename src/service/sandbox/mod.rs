//! Locking the process in, once it has all that it serves with. `docs/SANDBOX.md` says what is left to it.
//!
//! ```text
//!  no_new_privs ─▶ memory ─▶ landlock ─▶ capabilities ─▶ seccomp
//!  whatever the    out of    files,      what is left    system calls; the last one, since it
//!  kernel is       swap      TCP ports   of root's       does not let the others through
//! ```
//!
//! All of it is a second line of defence: what the kernel does not have is told in a line of the log, and the pipe works
//! as well.

mod capabilities;
mod landlock;
mod memory;
mod needs;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod seccomp;

use std::env;
use std::os::unix::ffi::OsStrExt;

use tracing::{debug, info, warn};

use self::memory::Memory;
pub use self::memory::allow_locking;
pub use self::needs::Needs;

/// Whether a process is to be locked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// Yes.
    On,
    /// No (`--no-sandbox`): for finding out whether that is what breaks something.
    Off,
}

impl Confinement {
    /// Does what this says with the process, whose `needs` are these. Gives what locks it in, for people.
    pub fn apply(self, needs: &Needs) -> String {
        match self {
            Self::On => confine(needs),
            Self::Off => {
                warn!("not locked in, as --no-sandbox says: use it for debugging only");
                "off".to_owned()
            }
        }
    }
}

/// Takes every right that is not among `needs`, for good. To be called while there is one thread: the others are born with
/// what it has. Gives what locks it in, for people.
pub fn confine(needs: &Needs) -> String {
    // Landlock and seccomp would see to it as well, but not on a kernel without them.
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        warn!(%error, "a program started from here could gain rights (no_new_privs)");
    }
    let memory = memory::lock();
    let landlock = landlock::restrict(needs, manager_is_abstract());
    let capabilities = capabilities::give_up(needs);
    let seccomp = filter_system_calls(needs);
    info!(%landlock, %seccomp, %memory, %capabilities, "sandboxed");
    if let Memory::Swappable = memory {
        debug!("memory stays swappable: set LimitMEMLOCK=infinity in the unit, or use encrypted swap");
    }
    for path in &needs.irreplaceable {
        info!(
            path = %path.display(),
            "a reload can read this very file and none in its place; put it in a directory of its own to replace it"
        );
    }
    format!("landlock={landlock} seccomp={seccomp} memory={memory} capabilities={capabilities}")
}

/// Whether the service manager is told news by an abstract name, which is looked up at each message.
fn manager_is_abstract() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some_and(|name| name.as_bytes().starts_with(b"@"))
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn filter_system_calls(needs: &Needs) -> &'static str {
    match seccomp::filter(needs) {
        Ok(()) => "on",
        Err(error) => {
            warn!(%error, "system calls are not filtered: no seccomp here");
            "off"
        }
    }
}

/// Which calls a C library makes differs by architecture, and a list that lacks one would break the pipe.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn filter_system_calls(_needs: &Needs) -> &'static str {
    warn!("system calls are not filtered: spipe has no list of them for this architecture");
    "off"
}
