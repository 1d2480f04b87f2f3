//! Memory that is locked, so that it is never swapped out.

use std::fs::File;
use std::io::Read;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use spipe::service::sandbox::{Needs, allow_locking};

use crate::isolated::{enter_sandbox, isolated};

fn locked_kilobytes(mut status: File) -> u64 {
    let mut text = String::new();
    status.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("every status has VmLck");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Drops all capabilities, as in a process that was not started by root.
fn give_up_capabilities() {
    let mut sets = capabilities(None).unwrap();
    sets.effective = CapabilitySet::empty();
    sets.permitted = CapabilitySet::empty();
    set_capabilities(None, sets).unwrap();
}

#[test]
fn memory_is_locked_where_the_limit_allows() {
    isolated(|_| {
        let status = File::open("/proc/self/status").unwrap();
        allow_locking();
        enter_sandbox(&Needs::new());
        assert_ne!(
            locked_kilobytes(status),
            0,
            "no memory is locked; this test needs root with CAP_IPC_LOCK, or 'ulimit -l unlimited'"
        );
    });
}

#[test]
fn under_a_finite_limit_memory_is_not_locked_and_can_be_allocated() {
    isolated(|_| {
        let status = File::open("/proc/self/status").unwrap();
        let limit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
        setrlimit(Resource::Memlock, limit).unwrap();
        give_up_capabilities();
        allow_locking();
        assert_eq!(getrlimit(Resource::Memlock).current, Some(1 << 20));
        enter_sandbox(&Needs::new());
        // Far more memory than the limit, as one block and as stacks.
        let memory = vec![1_u8; 64 << 20];
        let threads: Vec<_> = (0..64).map(|_| thread::spawn(|| ())).collect();
        assert!(threads.into_iter().all(|thread| thread.join().is_ok()));
        assert!(memory.iter().all(|byte| *byte == 1));
        assert_eq!(locked_kilobytes(status), 0);
    });
}
