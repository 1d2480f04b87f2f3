//! Log lines about the sandbox, and logging inside it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use nix::mount::{MsFlags, mount};
use seccompiler::SeccompAction;
use spipe::addr::Target;
use spipe::service::log::{self, Destination, Format};
use spipe::service::sandbox::{Needs, confine};
use tracing::level_filters::LevelFilter;

use crate::files::file;
use crate::isolated::{enter_sandbox, isolated, isolated_in_namespaces, restrict_calls};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sandboxes this process. Returns the lines that were logged meanwhile, without their times.
fn logged(needs: &Needs) -> Vec<String> {
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_target(false).with_ansi(false).without_time();
    let log = log.with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(log, || confine(needs));
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// Makes this call of this thread fail, as on a kernel that does not have it or forbids it.
fn make_call_fail(call: i64, errno: i32) {
    restrict_calls(&[call], SeccompAction::Errno(errno.cast_unsigned()));
}

fn needs_of_a_fixed_pipe() -> Needs {
    let mut needs = Needs::new();
    needs.dial(&"192.0.2.1:80".parse::<Target>().unwrap().into());
    needs
}

#[test]
fn one_line_reports_what_is_in_force() {
    isolated(|_| {
        let [line] = &logged(&needs_of_a_fixed_pipe())[..] else { panic!("not one line") };
        let rest = line.strip_prefix("INFO sandboxed landlock=abi").expect("landlock is available");
        assert!(rest.contains(" seccomp=on memory="), "{line}");
    });
}

#[test]
fn a_key_that_cannot_be_replaced_is_reported() {
    isolated(|directory| {
        let mut needs = Needs::new();
        needs.key(&file(directory, "home/key"));
        needs.key(&file(directory, "keys/key"));
        let [_, line] = &logged(&needs)[..] else { panic!("not two lines") };
        assert!(
            line.starts_with("INFO a reload can read this very file") && line.contains("home/key"),
            "{line}"
        );
    });
}

#[test]
fn a_kernel_without_landlock_causes_a_warning_only() {
    isolated(|_| {
        make_call_fail(libc::SYS_landlock_create_ruleset, libc::ENOSYS);
        let lines = logged(&needs_of_a_fixed_pipe());
        let [warning, line] = &lines[..] else { panic!("{lines:?}") };
        assert!(warning.starts_with("WARN files and ports are not restricted"), "{warning}");
        assert!(line.starts_with("INFO sandboxed landlock=off seccomp=on"), "{line}");
        // The rest is in force.
        assert!(File::open("/etc/passwd").is_ok());
        assert!(rustix::process::getsid(None).is_err());
    });
}

#[test]
fn a_kernel_with_landlock_turned_off_causes_a_warning_only() {
    isolated(|_| {
        make_call_fail(libc::SYS_landlock_create_ruleset, libc::EOPNOTSUPP);
        let lines = logged(&needs_of_a_fixed_pipe());
        let [warning, line] = &lines[..] else { panic!("{lines:?}") };
        assert!(warning.contains("lsm=landlock"), "{warning}");
        assert!(line.starts_with("INFO sandboxed landlock=off seccomp=on"), "{line}");
    });
}

#[test]
fn a_container_that_forbids_landlock_causes_a_warning_only() {
    isolated(|_| {
        make_call_fail(libc::SYS_landlock_restrict_self, libc::EPERM);
        let lines = logged(&needs_of_a_fixed_pipe());
        let [warning, line] = &lines[..] else { panic!("{lines:?}") };
        assert!(warning.contains("Operation not permitted"), "{warning}");
        assert!(line.starts_with("INFO sandboxed landlock=off seccomp=on"), "{line}");
    });
}

#[test]
fn a_kernel_without_seccomp_causes_a_warning_only() {
    isolated(|_| {
        make_call_fail(libc::SYS_seccomp, libc::EINVAL);
        let lines = logged(&needs_of_a_fixed_pipe());
        let [warning, line] = &lines[..] else { panic!("{lines:?}") };
        assert!(warning.starts_with("WARN system calls are not filtered"), "{warning}");
        assert!(line.contains(" seccomp=off"), "{line}");
        // The rest is in force.
        assert!(File::open("/etc/passwd").is_err());
    });
}

#[test]
fn syslog_is_still_written_after_a_restart_of_its_daemon() {
    isolated_in_namespaces(|_| {
        let nothing = None::<&str>;
        mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
        let socket = Path::new("/dev/log");
        let first = UnixDatagram::bind(socket).unwrap();
        log::start(LevelFilter::INFO, Format::Text, Destination::Syslog);
        let (restart, restarting) = channel();
        let (restarted, wait) = channel();
        let daemon = thread::spawn(move || {
            let mut message = [0; 1024];
            let mut next = |socket: &UnixDatagram| {
                let length = socket.recv(&mut message).unwrap();
                String::from_utf8_lossy(&message[..length]).into_owned()
            };
            let heard = [next(&first), next(&first)];
            restarting.recv().unwrap();
            drop(first);
            std::fs::remove_file(socket).unwrap();
            let second = UnixDatagram::bind(socket).unwrap();
            restarted.send(()).unwrap();
            [heard[0].clone(), heard[1].clone(), next(&second)]
        });
        let mut needs = Needs::new();
        needs.log_to(Destination::Syslog);
        enter_sandbox(&needs);
        tracing::info!("before");
        restart.send(()).unwrap();
        wait.recv().unwrap();
        tracing::info!("after");
        let heard = daemon.join().unwrap();
        assert!(
            heard[0].contains("sandboxed") && heard[1].contains("before") && heard[2].contains("after"),
            "{heard:?}"
        );
    });
}
