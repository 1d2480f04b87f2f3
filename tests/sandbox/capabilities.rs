//! Root's capabilities. These tests need root.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use spipe::addr::{Outgoing, Target};
use spipe::service::sandbox::{Needs, allow_locking};
use spipe::upstream::Route;

use crate::files::file;
use crate::isolated::{enter_sandbox, isolated};

/// Of linux/capability.h: the bits in `/proc`.
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const NET_BIND_SERVICE: u64 = 1 << 10;
const IPC_LOCK: u64 = 1 << 14;

/// A user that is not root.
const NOBODY: Option<u32> = Some(65_534);

/// Sandboxes this process, and asserts that of its capabilities those in `kept` are left.
#[track_caller]
fn assert_keeps(mut kept: u64, needs: &Needs) {
    assert!(geteuid().is_root(), "this test needs root");
    allow_locking();
    // Where root may not lift the limit, as in many containers.
    if getrlimit(Resource::Memlock).current.is_some() {
        kept |= IPC_LOCK;
    }
    let mut status = File::open("/proc/thread-self/status").unwrap();
    enter_sandbox(needs);
    let mut text = String::new();
    status.read_to_string(&mut text).unwrap();
    let set = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("/proc has this field");
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(["CapPrm:", "CapEff:", "CapBnd:"].map(set), [kept; 3], "{text}");
    assert_eq!(["CapInh:", "CapAmb:"].map(set), [0; 2], "{text}");
}

fn to(target: &str) -> Needs {
    let mut needs = Needs::new();
    needs.dial(&target.parse::<Target>().unwrap().into());
    needs
}

#[test]
fn a_pipe_to_an_address_keeps_none() {
    isolated(|directory| {
        let mut needs = to("192.0.2.1:80");
        needs.key(&file(directory, "keys/key"));
        needs.pid_file(&directory.join("pid"));
        needs.listen_at(&directory.join("source").to_str().unwrap().parse().unwrap());
        assert_keeps(0, &needs);
    });
}

#[test]
fn a_pipe_to_a_host_name_keeps_none() {
    isolated(|_| assert_keeps(0, &to("localhost:80")));
}

#[test]
fn a_configuration_keeps_the_right_to_bind_low_ports() {
    isolated(|directory| {
        let mut needs = Needs::new();
        needs.configuration(&file(directory, "etc/spipe.toml"));
        assert_keeps(NET_BIND_SERVICE, &needs);
    });
}

fn from(outgoing: &str) -> Needs {
    let mut needs = Needs::new();
    let from: Outgoing = outgoing.parse().unwrap();
    needs.dial(&Route::new("192.0.2.1:80".parse().unwrap(), Some(from)).unwrap());
    needs
}

#[test]
fn an_outgoing_port_below_1024_keeps_the_right_to_bind_it() {
    isolated(|_| assert_keeps(NET_BIND_SERVICE, &from("127.0.0.1:1023")));
}

#[test]
fn another_outgoing_port_keeps_none() {
    isolated(|_| assert_keeps(0, &from("127.0.0.1:1024")));
}

#[test]
fn an_outgoing_address_keeps_none() {
    isolated(|_| assert_keeps(0, &from("127.0.0.1")));
}

fn give_to_nobody(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    chown(path, NOBODY, NOBODY).unwrap();
}

#[test]
fn a_key_of_another_user_can_be_read_again() {
    isolated(|directory| {
        let key = file(directory, "keys/key");
        give_to_nobody(&key, 0o600);
        let mut needs = to("192.0.2.1:80");
        needs.key(&key);
        assert_keeps(DAC_READ_SEARCH, &needs);
        assert!(File::open(&key).is_ok());
    });
}

#[test]
fn a_key_in_a_directory_of_another_user_can_be_read_again() {
    isolated(|directory| {
        let key = file(directory, "home/keys/key");
        give_to_nobody(&directory.join("home"), 0o700);
        let mut needs = to("192.0.2.1:80");
        needs.key(&directory.join("home/keys"));
        assert_keeps(DAC_READ_SEARCH, &needs);
        assert!(File::open(&key).is_ok());
    });
}

#[test]
fn a_target_that_belongs_to_another_user_is_reached() {
    isolated(|directory| {
        let path = directory.join("service.sock");
        let _target = UnixListener::bind(&path).unwrap();
        give_to_nobody(&path, 0o600);
        assert_keeps(DAC_OVERRIDE, &to(path.to_str().unwrap()));
        UnixStream::connect(&path).unwrap();
    });
}

#[test]
fn a_target_that_is_started_later_may_belong_to_another_user() {
    isolated(|directory| assert_keeps(DAC_OVERRIDE, &to(directory.join("service.sock").to_str().unwrap())));
}

#[test]
fn sockets_of_other_users_cannot_be_reached_without_a_need() {
    isolated(|directory| {
        let (target, other) = (directory.join("target"), directory.join("other"));
        let _listeners = [&target, &other].map(|path| UnixListener::bind(path).unwrap());
        give_to_nobody(&other, 0o600);
        assert_keeps(0, &to(target.to_str().unwrap()));
        UnixStream::connect(&target).unwrap();
        assert_eq!(UnixStream::connect(&other).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    });
}

#[test]
fn a_socket_in_a_directory_of_another_user_is_removed_at_the_end() {
    isolated(|directory| {
        let (home, path) = (directory.join("home"), directory.join("home/s"));
        fs::create_dir(&home).unwrap();
        give_to_nobody(&home, 0o755);
        let source = path.to_str().unwrap().parse().unwrap();
        let bound = spipe::listen::listen(
            &source,
            &spipe::listen::SocketPermissions::default(),
            &mut spipe::listen::Passed::default(),
        )
        .unwrap();
        let mut needs = to("192.0.2.1:80");
        needs.listen_at(&source);
        assert_keeps(DAC_OVERRIDE, &needs);
        drop(bound);
        assert!(!path.exists());
    });
}

fn give_up_capability(capability: CapabilitySet) {
    let mut sets = capabilities(None).unwrap();
    sets.effective -= capability;
    sets.permitted -= capability;
    set_capabilities(None, sets).unwrap();
}

#[test]
fn memory_locked_beyond_a_limit_can_still_grow() {
    isolated(|_| {
        let limit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
        setrlimit(Resource::Memlock, limit).unwrap();
        // Or the limit could be lifted.
        give_up_capability(CapabilitySet::SYS_RESOURCE);
        assert_keeps(IPC_LOCK, &to("192.0.2.1:80"));
        let memory = vec![1_u8; 64 << 20];
        let thread = std::thread::spawn(move || memory.iter().all(|byte| *byte == 1));
        assert!(thread.join().unwrap());
    });
}
