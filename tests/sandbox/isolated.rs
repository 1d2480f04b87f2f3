//! A process of its own for a test.

use std::any::type_name;
use std::env;
use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use spipe::service::sandbox::{Needs, confine};
use tempfile::TempDir;

/// In the environment of the process that was started for a test: its directory.
const DIRECTORY: &str = "SPIPE_TEST_DIRECTORY";

/// Printed when a test has come to its end there; a process that ran nothing would end well, too.
const END: &str = "the isolated test has come to its end";

/// The guard that turns a hang into a failure; no test waits for it to pass.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `body`, which is to be a closure of the test itself, in a process of its own: this program, started anew with
/// nothing but that test. It is the thread of the test that is locked in, and those that it starts then; what it
/// started before, such as a service to talk to, is free. What has to be there before goes in the directory that
/// `body` gets.
pub(crate) fn isolated<F: FnOnce(&Path)>(body: F) {
    isolated_with(&[], body);
}

/// The same, with these variables in its environment.
pub(crate) fn isolated_with<F: FnOnce(&Path)>(environment: &[(&str, &str)], body: F) {
    start::<F>(Command::new(env::current_exe().unwrap()).envs(environment.iter().copied()), body);
}

/// The same, as root of namespaces of its own: a network with nothing but a loopback, and an `/etc` that is the
/// directory `etc` of the test.
pub(crate) fn isolated_in_namespaces<F: FnOnce(&Path)>(body: F) {
    let prepare = format!(
        "ip link set lo up && ip address add fe80::1/64 dev lo && mkdir ${DIRECTORY}/etc && mount --bind ${DIRECTORY}/etc /etc && exec \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c", &prepare, "sh"]);
    start::<F>(command.arg(env::current_exe().unwrap()), body);
}

fn start<F: FnOnce(&Path)>(command: &mut Command, body: F) {
    if let Some(directory) = env::var_os(DIRECTORY) {
        thread::spawn(|| {
            thread::sleep(DEADLINE);
            eprintln!("it did not come to its end in time");
            process::abort();
        });
        body(Path::new(&directory));
        println!("{END}");
        return;
    }
    let directory = TempDir::with_prefix("spipe-sandbox-").unwrap();
    // "sandbox::files::a_test::{{closure}}". Were this written otherwise one day, no test would run, and END not
    // come.
    let closure = type_name::<F>();
    let test = closure.trim_end_matches("::{{closure}}").split_once("::").expect("the crate comes first").1;
    let output = command
        .args(["--exact", test, "--nocapture"])
        .env(DIRECTORY, directory.path())
        // Places that are treated apart; nothing is there unless the test makes it.
        .env("HOME", directory.path().join("home"))
        .env("CREDENTIALS_DIRECTORY", directory.path().join("credentials/spipe.service"))
        .output()
        .expect("unshare is there; type: apt-get install util-linux iproute2");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains(END),
        "{test}: {}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Locks this process in, and makes sure that it is.
pub(crate) fn lock_in(needs: &Needs) {
    confine(needs);
    // /proc is out of reach now, and that is the proof for landlock.
    let Err(error) = std::fs::read("/proc/self/status") else {
        panic!("landlock is not on: these tests need a kernel with it, enabled (lsm=landlock,… at boot)")
    };
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(
        rustix::process::getsid(None),
        Err(Errno::NOSYS),
        "seccomp is not on: these tests need a kernel with it"
    );
}

/// Does this to these calls of this thread, before it is locked in.
pub(crate) fn refuse(calls: &[i64], action: SeccompAction) {
    let architecture = TargetArch::try_from(env::consts::ARCH).unwrap();
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, architecture).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// That this was refused by landlock.
#[track_caller]
pub(crate) fn assert_denied<T: Debug>(result: io::Result<T>) {
    assert_eq!(result.expect_err("it is forbidden").kind(), io::ErrorKind::PermissionDenied);
}

/// That seccomp does not know this.
#[track_caller]
pub(crate) fn assert_no_such_call<T: Debug>(result: io::Result<T>) {
    assert_eq!(result.expect_err("it is forbidden").raw_os_error(), Some(Errno::NOSYS.raw_os_error()));
}
