//! Two hosts with a network between them: making them, running commands on them, and removing them.

pub(crate) mod guide;
pub(crate) mod host;
pub(crate) mod image;
pub(crate) mod load;
#[path = "../../packages/made.rs"]
pub(crate) mod made;

use std::ffi::OsStr;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The limit that turns a hang into a failure. A test that passes never waits for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The Debian package of each program that this machine needs.
const PACKAGES: [(&str, &str); 3] =
    [("debootstrap", "debootstrap"), ("systemd-nspawn", "systemd-container"), ("ip", "iproute2")];

/// Runs a program on this machine, not on a host; panics if it fails.
#[track_caller]
pub(crate) fn run_locally(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    let mut command = Command::new(program);
    let output = command.args(arguments).output().unwrap_or_else(|error| cannot_start(program, &error));
    let log = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{command:?} failed: {}\n{log}", output.status);
    output
}

/// Panics; if the program is missing, with the name of the package to install.
#[track_caller]
fn cannot_start(program: &str, error: &std::io::Error) -> ! {
    match PACKAGES.iter().find(|(name, _)| *name == program) {
        Some((name, package)) if error.kind() == std::io::ErrorKind::NotFound => {
            panic!("this test needs {name}; type: apt-get install {package}")
        }
        _ => panic!("cannot start {program}: {error}"),
    }
}

/// For the few conditions that can only be polled.
#[track_caller]
pub(crate) fn poll_until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(start.elapsed() < DEADLINE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
