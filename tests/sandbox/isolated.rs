//! Runs a test in a separate process.

use std::any::type_name;
use std::env;
use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::process::{self, Command};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use spipe::service::sandbox::{Needs, confine};
use tempfile::TempDir;

/// The environment variable that holds the directory of the test, in the process that was started for it.
const DIRECTORY: &str = "SPIPE_TEST_DIRECTORY";

/// Printed at the end of a test in its process, since a process that runs no test succeeds as well.
const END_OF_TEST: &str = "the isolated test has ended";

/// The limit that turns a hang into a failure; a test that passes never waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `body`, which must be a closure in the test function, in a separate process: this program, started again with
/// only that test. The sandbox applies to the thread of the test and to threads that it starts afterwards. Threads
/// that were started before, such as a target, are not sandboxed. `body` gets a directory for files that the test
/// needs.
pub(crate) fn isolated<F: FnOnce(&Path)>(body: F) {
    isolated_with(&[], body);
}

/// The same, with these variables in its environment.
pub(crate) fn isolated_with<F: FnOnce(&Path)>(environment: &[(&str, &str)], body: F) {
    start::<F>(Command::new(env::current_exe().unwrap()).envs(environment.iter().copied()), body);
}

/// The same, as root of new namespaces: the network has only a loopback, and `/etc` is the directory `etc` of the
/// test.
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
            eprintln!("the test did not end in time");
            process::abort();
        });
        body(Path::new(&directory));
        println!("{END_OF_TEST}");
        return;
    }
    let directory = TempDir::with_prefix("spipe-sandbox-").unwrap();
    // "sandbox::files::a_test::{{closure}}". If this format changes, no test runs, and END_OF_TEST is missing.
    let closure = type_name::<F>();
    let test = closure
        .trim_end_matches("::{{closure}}")
        .split_once("::")
        .expect("the type name starts with the crate")
        .1;
    let output = command
        .args(["--exact", test, "--nocapture"])
        .env(DIRECTORY, directory.path())
        // Paths with special treatment; they do not exist unless the test makes them.
        .env("HOME", directory.path().join("home"))
        .env("CREDENTIALS_DIRECTORY", directory.path().join("credentials/spipe.service"))
        .output()
        .expect("unshare can be run; type: apt-get install util-linux iproute2");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains(END_OF_TEST),
        "{test}: {}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Sandboxes this process, and asserts that the sandbox is in force.
pub(crate) fn enter_sandbox(needs: &Needs) {
    confine(needs);
    // With landlock in force, /proc cannot be read.
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

/// Enters the sandbox with `needs`, and then runs `change` on a thread that is not sandboxed.
pub(crate) fn enter_sandbox_and_then(needs: &Needs, change: impl FnOnce() + Send + 'static) {
    let (entered, wait) = channel();
    let other = thread::spawn(move || {
        wait.recv().unwrap();
        change();
    });
    enter_sandbox(needs);
    entered.send(()).unwrap();
    other.join().unwrap();
}

/// Makes these system calls of this thread end with `action`. To be called before the sandbox is entered.
pub(crate) fn restrict_calls(calls: &[i64], action: SeccompAction) {
    let architecture = TargetArch::try_from(env::consts::ARCH).unwrap();
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, architecture).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Asserts that landlock refused this.
#[track_caller]
pub(crate) fn assert_denied<T: Debug>(result: io::Result<T>) {
    assert_eq!(result.expect_err("the sandbox forbids it").kind(), io::ErrorKind::PermissionDenied);
}

/// Asserts that seccomp refused this.
#[track_caller]
pub(crate) fn assert_no_such_call<T: Debug>(result: io::Result<T>) {
    assert_eq!(result.expect_err("the sandbox forbids it").raw_os_error(), Some(Errno::NOSYS.raw_os_error()));
}
