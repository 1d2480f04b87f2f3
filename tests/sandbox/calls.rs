//! System calls.

use std::fs::File;
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::ptrace;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::fs::{AtFlags, CWD, MemfdFlags};
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, Signal};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use spipe::addr::Target;
use spipe::service::sandbox::Needs;
use spipe::upstream::Route;

use crate::isolated::{assert_no_such_call, enter_sandbox, isolated, restrict_calls};
use seccompiler::SeccompAction;

/// Enters the sandbox that allows the most system calls.
fn enter_widest_sandbox() {
    let mut needs = Needs::new();
    needs.configuration("/etc/spipe/spipe.toml".as_ref());
    enter_sandbox(&needs);
}

/// Enters the sandbox that allows the fewest system calls.
fn enter_narrowest_sandbox() {
    let mut needs = Needs::new();
    needs.dial(&"192.0.2.1:80".parse::<Target>().unwrap().into());
    enter_sandbox(&needs);
}

#[test]
fn the_kernel_reports_the_sandbox() {
    isolated(|_| {
        let mut status = File::open("/proc/thread-self/status").unwrap();
        enter_sandbox(&Needs::new());
        let mut text = String::new();
        status.read_to_string(&mut text).unwrap();
        assert!(text.contains("NoNewPrivs:\t1\n"), "{text}");
        assert!(text.contains("Seccomp:\t2\n"), "{text}");
    });
}

#[test]
fn no_program_can_be_run() {
    isolated(|_| {
        enter_widest_sandbox();
        // Instead of this program, and as a new process.
        assert_no_such_call::<()>(Err(Command::new("/bin/true").exec()));
        assert_no_such_call(Command::new("/bin/true").spawn());
    });
}

#[test]
fn no_process_can_be_started() {
    isolated(|_| {
        // A process that was started would be killed here, but starting it would have succeeded.
        restrict_calls(&[libc::SYS_execve], SeccompAction::KillProcess);
        enter_widest_sandbox();
        assert_no_such_call(Command::new("/bin/true").spawn());
    });
}

#[test]
fn threads_can_be_started_and_are_sandboxed_too() {
    isolated(|_| {
        enter_widest_sandbox();
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
fn namespaces_and_mounts_cannot_be_changed() {
    isolated(|_| {
        enter_widest_sandbox();
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
fn other_processes_cannot_be_accessed() {
    isolated(|_| {
        // It ends when its standard input ends, so at the latest with this process.
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        let input = child.stdin.take();
        let waiting = thread::spawn(move || child.wait());
        enter_widest_sandbox();
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
fn memory_cannot_become_executable() {
    isolated(|_| {
        let before = memmap2::MmapMut::map_anon(4096).unwrap();
        enter_widest_sandbox();
        assert_no_such_call(before.make_exec().map(drop));
        let after = memmap2::MmapMut::map_anon(4096).unwrap();
        assert_no_such_call(after.make_exec().map(drop));
        assert_no_such_call(rustix::fs::memfd_create("code", MemfdFlags::CLOEXEC).map_err(io::Error::from));
    });
}

#[test]
fn the_protection_of_memory_cannot_be_undone() {
    isolated(|_| {
        enter_widest_sandbox();
        assert_no_such_call(
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(io::Error::from),
        );
        let cores = Rlimit { current: None, maximum: None };
        assert_no_such_call(rustix::process::setrlimit(Resource::Core, cores).map_err(io::Error::from));
        assert_no_such_call(rustix::mm::munlockall().map_err(io::Error::from));
    });
}

#[test]
fn sockets_of_other_families_and_types_are_refused() {
    isolated(|_| {
        enter_widest_sandbox();
        for (domain, kind, protocol) in [
            (libc::AF_PACKET, libc::SOCK_RAW, 0),
            (libc::AF_PACKET, libc::SOCK_DGRAM, 0),
            (libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
            (libc::AF_BLUETOOTH, libc::SOCK_RAW, 0),
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
            (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_TCP),
            // Streams that landlock does not restrict.
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        ] {
            let socket =
                Socket::new_raw(Domain::from(domain), Type::from(kind), Some(Protocol::from(protocol)));
            assert_eq!(
                socket.map(drop).expect_err("the sandbox forbids it").raw_os_error(),
                Some(libc::ENOSYS),
                "family {domain}, type {kind}, protocol {protocol}"
            );
        }
    });
}

#[test]
fn without_host_names_only_streams_are_allowed() {
    isolated(|_| {
        enter_narrowest_sandbox();
        for domain in [Domain::IPV4, Domain::IPV6] {
            assert_no_such_call(Socket::new(domain, Type::DGRAM, None));
            assert!(Socket::new(domain, Type::STREAM, None).is_ok());
        }
        let routes = Some(Protocol::from(libc::NETLINK_ROUTE));
        assert_no_such_call(Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, routes));
    });
}

#[test]
fn unix_sockets_without_a_need_cannot_be_made() {
    isolated(|_| {
        enter_narrowest_sandbox();
        for kind in [Type::STREAM, Type::DGRAM, Type::SEQPACKET] {
            assert_no_such_call(Socket::new(Domain::UNIX, kind, None));
        }
    });
}

#[test]
fn the_two_ends_of_a_socket_pair_cannot_be_connected_elsewhere() {
    isolated(|directory| {
        let path = directory.join("service.sock");
        let _service = UnixListener::bind(&path).unwrap();
        enter_narrowest_sandbox();
        assert_no_such_call(Socket::pair(Domain::UNIX, Type::DGRAM, None));
        let (end, _) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        let refused = end.connect(&SockAddr::unix(&path).unwrap()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EISCONN));
    });
}

#[test]
fn options_of_sockets_that_are_not_used_cannot_be_set() {
    isolated(|_| {
        enter_widest_sandbox();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert_no_such_call(socket.attach_filter(&[]));
        assert_no_such_call(socket.set_mark(1));
        assert_no_such_call(socket.set_reuse_port(true));
        assert_no_such_call(socket.set_ip_transparent_v4(true));
        assert!(socket.set_tcp_nodelay(true).is_ok());
    });
}

#[test]
fn without_an_interface_no_socket_can_be_bound_to_one() {
    isolated(|_| {
        enter_narrowest_sandbox();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert_no_such_call(socket.bind_device(Some(b"lo")));
    });
}

#[test]
fn a_pipe_with_an_interface_can_bind_sockets_to_it() {
    isolated(|_| {
        let mut needs = Needs::new();
        let route = Route::from("192.0.2.1:80".parse::<Target>().unwrap());
        needs.dial(&route.over("lo".parse().unwrap()).unwrap());
        enter_sandbox(&needs);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert!(socket.bind_device(Some(b"lo")).is_ok());
    });
}

#[test]
fn without_socket_permissions_no_file_can_be_given_away() {
    isolated(|directory| {
        let path = directory.join("file");
        std::fs::write(&path, "").unwrap();
        enter_widest_sandbox();
        let mode = rustix::fs::Mode::from_raw_mode(0o777);
        assert_no_such_call(std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)));
        assert_no_such_call(rustix::fs::chmodat(CWD, &path, mode, AtFlags::empty()).map_err(io::Error::from));
        assert_no_such_call(std::os::unix::fs::lchown(&path, Some(1), Some(1)));
    });
}

#[test]
fn a_fixed_pipe_cannot_listen_on_anything_else() {
    isolated(|_| {
        enter_narrowest_sandbox();
        assert_no_such_call(TcpListener::bind("127.0.0.1:0"));
        // Nor without a chosen port.
        assert_no_such_call(Socket::new(Domain::IPV4, Type::STREAM, None).unwrap().listen(1));
    });
}

#[test]
fn sending_cannot_establish_a_connection() {
    isolated(|_| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // It has host names, and so more ways to send.
        enter_widest_sandbox();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // TCP Fast Open, by sendto(2), sendmsg(2) and sendmmsg(2).
        let address = address.into();
        assert_no_such_call(socket.send_to_with_flags(b"x", &address, libc::MSG_FASTOPEN));
        let data = [io::IoSlice::new(b"x")];
        assert_no_such_call(socket.send_to_vectored_with_flags(&data, &address, libc::MSG_FASTOPEN));
        let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
        let mut headers = MultiHeaders::<()>::preallocate(1, None);
        let messages = [data];
        let sent = sendmmsg(socket.as_raw_fd(), &mut headers, &messages, [None], [], flags);
        assert_no_such_call(sent.map(|_| ()).map_err(io::Error::from));
    });
}

#[test]
fn a_panic_ends_only_its_thread() {
    isolated(|_| {
        enter_narrowest_sandbox();
        assert!(thread::spawn(|| panic!("on purpose")).join().is_err());
    });
}
