//! System calls.

use std::fs::File;
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::fs::MemfdFlags;
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, Signal};
use socket2::{Domain, Protocol, Socket, Type};
use spipe::addr::Target;
use spipe::service::sandbox::Needs;

use crate::isolated::{assert_no_such_call, isolated, lock_in, refuse};
use seccompiler::SeccompAction;

/// A process that may use the most system calls of all.
fn lock_in_for_anything() {
    let mut needs = Needs::new();
    needs.configuration("/etc/spipe/spipe.toml".as_ref());
    lock_in(&needs);
}

/// One that may use the fewest.
fn lock_in_for_one_address() {
    let mut needs = Needs::new();
    needs.dial(&"192.0.2.1:80".parse::<Target>().unwrap().into());
    lock_in(&needs);
}

#[test]
fn the_kernel_says_that_it_is_on() {
    isolated(|_| {
        let mut status = File::open("/proc/thread-self/status").unwrap();
        lock_in(&Needs::new());
        let mut text = String::new();
        status.read_to_string(&mut text).unwrap();
        assert!(text.contains("NoNewPrivs:\t1\n"), "{text}");
        assert!(text.contains("Seccomp:\t2\n"), "{text}");
    });
}

#[test]
fn no_program_can_be_run() {
    isolated(|_| {
        lock_in_for_anything();
        // In place of this one, and beside it.
        assert_no_such_call::<()>(Err(Command::new("/bin/true").exec()));
        assert_no_such_call(Command::new("/bin/true").spawn());
    });
}

#[test]
fn no_process_can_be_started() {
    isolated(|_| {
        // One that was started would end here, and starting it would have been a success.
        refuse(&[libc::SYS_execve], SeccompAction::KillProcess);
        lock_in_for_anything();
        assert_no_such_call(Command::new("/bin/true").spawn());
    });
}

#[test]
fn threads_can_be_started_and_are_locked_in_as_well() {
    isolated(|_| {
        lock_in_for_anything();
        let threads: Vec<_> = (0..20)
            .map(|number| {
                let thread = thread::Builder::new().name(format!("thread {number}"));
                thread.spawn(|| assert_no_such_call::<()>(Err(Command::new("/bin/true").exec()))).unwrap()
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn namespaces_and_mounts_are_out_of_reach() {
    isolated(|_| {
        lock_in_for_anything();
        for namespace in [CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_NEWNS, CloneFlags::CLONE_NEWNET] {
            assert_no_such_call(nix::sched::unshare(namespace).map_err(io::Error::from));
        }
        let nothing = None::<&str>;
        let mounted = nix::mount::mount(nothing, "/", nothing, MsFlags::MS_REMOUNT, nothing);
        assert_no_such_call(mounted.map_err(io::Error::from));
        assert_no_such_call(rustix::process::chroot("/").map_err(io::Error::from));
    });
}

#[test]
fn other_processes_are_out_of_reach() {
    isolated(|_| {
        // It ends when its standard input does, so with us at the latest.
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        let input = child.stdin.take();
        let waiting = thread::spawn(move || child.wait());
        lock_in_for_anything();
        assert_no_such_call(ptrace::attach(pid).map_err(io::Error::from));
        let mut byte = [0];
        let there = RemoteIoVec { base: 0x1000, len: 1 };
        let read = process_vm_readv(pid, &mut [io::IoSliceMut::new(&mut byte)], &[there]);
        assert_no_such_call(read.map_err(io::Error::from));
        let other = Pid::from_raw(pid.as_raw()).unwrap();
        assert_no_such_call(rustix::process::kill_process(other, Signal::KILL).map_err(io::Error::from));
        assert_no_such_call(
            rustix::process::pidfd_open(other, rustix::process::PidfdFlags::empty()).map_err(io::Error::from),
        );
        drop(input);
        assert!(waiting.join().unwrap().unwrap().success());
    });
}

#[test]
fn memory_cannot_become_code() {
    isolated(|_| {
        let before = memmap2::MmapMut::map_anon(4096).unwrap();
        lock_in_for_anything();
        assert_no_such_call(before.make_exec().map(drop));
        let after = memmap2::MmapMut::map_anon(4096).unwrap();
        assert_no_such_call(after.make_exec().map(drop));
        assert_no_such_call(rustix::fs::memfd_create("code", MemfdFlags::CLOEXEC).map_err(io::Error::from));
    });
}

#[test]
fn what_keeps_keys_from_others_cannot_be_undone() {
    isolated(|_| {
        lock_in_for_anything();
        assert_no_such_call(
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(io::Error::from),
        );
        let cores = Rlimit { current: None, maximum: None };
        assert_no_such_call(rustix::process::setrlimit(Resource::Core, cores).map_err(io::Error::from));
        assert_no_such_call(rustix::mm::munlockall().map_err(io::Error::from));
    });
}

#[test]
fn sockets_of_other_families_and_kinds_are_refused() {
    isolated(|_| {
        lock_in_for_anything();
        for (domain, kind, protocol) in [
            (libc::AF_PACKET, libc::SOCK_RAW, 0),
            (libc::AF_PACKET, libc::SOCK_DGRAM, 0),
            (libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
            (libc::AF_BLUETOOTH, libc::SOCK_RAW, 0),
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
            (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_TCP),
            // Streams that landlock does not see.
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        ] {
            let socket =
                Socket::new_raw(Domain::from(domain), Type::from(kind), Some(Protocol::from(protocol)));
            assert_eq!(
                socket.map(drop).expect_err("it is forbidden").raw_os_error(),
                Some(libc::ENOSYS),
                "family {domain}, type {kind}, protocol {protocol}"
            );
        }
    });
}

#[test]
fn without_names_there_are_no_datagrams_but_those_of_this_host() {
    isolated(|_| {
        lock_in_for_one_address();
        for domain in [Domain::IPV4, Domain::IPV6] {
            assert_no_such_call(Socket::new(domain, Type::DGRAM, None));
            assert!(Socket::new(domain, Type::STREAM, None).is_ok());
        }
        let routes = Some(Protocol::from(libc::NETLINK_ROUTE));
        assert_no_such_call(Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, routes));
        assert!(Socket::new(Domain::UNIX, Type::DGRAM, None).is_ok());
    });
}

#[test]
fn a_fixed_pipe_listens_on_nothing_else() {
    isolated(|_| {
        lock_in_for_one_address();
        assert_no_such_call(TcpListener::bind("127.0.0.1:0"));
        // Without a port of its own choice either.
        assert_no_such_call(Socket::new(Domain::IPV4, Type::STREAM, None).unwrap().listen(1));
    });
}

#[test]
fn a_connection_cannot_come_about_by_sending() {
    isolated(|_| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        lock_in_for_one_address();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // TCP Fast Open.
        assert_no_such_call(socket.send_to_with_flags(b"x", &address.into(), libc::MSG_FASTOPEN));
    });
}

#[test]
fn a_panic_ends_its_thread_and_nothing_else() {
    isolated(|_| {
        lock_in_for_one_address();
        assert!(thread::spawn(|| panic!("on purpose")).join().is_err());
    });
}
