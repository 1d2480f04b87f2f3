//! System calls (seccomp(2)): those that serving takes, and of some only the arguments that it takes.
//!
//! Any other call fails with ENOSYS, as if the kernel were too old for it. That is what a C library is prepared for: it
//! tries a newer call first (clone3, openat2, faccessat2, …) and falls back on one that is listed here, where EPERM would
//! have been the end of it. No call ends the process: a line in the log that says "Function not implemented" is better to
//! find out from, and a process that runs an attacker's code has lost its keys either way. Calls of another architecture,
//! which nothing in this process makes, do end it.

use std::collections::BTreeMap;

use libc::c_int;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use thiserror::Error;

use super::needs::{Needs, Special, UnixSockets};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;

/// Allowed with any arguments.
const PLAIN: &[i64] = &[
    // Bytes.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    // Sockets.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_close,
    // What the runtime waits with.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals to us.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Memory; mmap(2) and mprotect(2) are below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Files: what may be opened and removed is landlock's affair.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_getcwd,
    libc::SYS_fstatfs,
    // Standard output that has come to its end, and a key from standard input.
    libc::SYS_dup,
    libc::SYS_dup3,
    // The process's own ids and its host; the C library asks now and then.
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
];

/// Calls that newer architectures have no number for; Rust's standard library and C libraries still make them where they
/// are.
#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_dup2,
    libc::SYS_time,
];
#[cfg(target_arch = "aarch64")]
const OLD: &[i64] = &[];

/// What may be set on a socket, by level and option. Not the packet filter's options (levels IPPROTO_IP and IPPROTO_IPV6, from
/// 64 on), no programs that the kernel runs (SO_ATTACH_FILTER, SO_ATTACH_BPF), and none that takes a connection past landlock
/// (TCP_FASTOPEN_CONNECT, TCP_ULP, TCP_REPAIR).
const SET: &[(c_int, c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
];

/// The resolver's: the C library asks for errors of ICMP, and gives up the server when it cannot; modules of systemd set the
/// rest.
const SET_BY_RESOLVER: &[(c_int, c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::SOL_NETLINK, libc::NETLINK_PKTINFO),
    (libc::SOL_NETLINK, libc::NETLINK_EXT_ACK),
    (libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK),
];

/// What may be asked of a socket.
const GET: &[(c_int, c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_ERROR),
    (libc::SOL_SOCKET, libc::SO_TYPE),
    (libc::SOL_SOCKET, libc::SO_PEERCRED),
    (libc::IPPROTO_TCP, libc::TCP_INFO),
];

/// Threads, but no processes, and no namespaces. (clone3(2) takes its flags in memory, where no filter can see them, so it
/// is not allowed at all.)
const CLONE_THREAD: u64 = flags(libc::CLONE_THREAD);
const CLONE_MASK: u64 = CLONE_THREAD
    | flags(libc::CLONE_NEWNS)
    | flags(libc::CLONE_NEWCGROUP)
    | flags(libc::CLONE_NEWUTS)
    | flags(libc::CLONE_NEWIPC)
    | flags(libc::CLONE_NEWUSER)
    | flags(libc::CLONE_NEWPID)
    | flags(libc::CLONE_NEWNET);

/// What socket(2) takes as the type, without the flags beside it.
const TYPE_MASK: u64 = 0xf;

/// No file is made, unless there is a state directory. (Sockets are, by bind(2).)
const CREATE: u64 = flags(libc::O_CREAT);
/// Without the bit that says that it is for directories.
const NAMELESS: u64 = flags(libc::O_TMPFILE & !libc::O_DIRECTORY);

const WRITE: u64 = flags(libc::PROT_WRITE);
const EXECUTE: u64 = flags(libc::PROT_EXEC);

/// Why there is no filter.
#[derive(Debug, Error)]
pub(super) enum FilterError {
    /// The table makes no program: a mistake in it, which the tests find.
    #[error(transparent)]
    Table(#[from] BackendError),
    /// The kernel does not take it.
    #[error(transparent)]
    Kernel(#[from] seccompiler::Error),
}

/// Puts the filter on this thread, and so on those that it starts.
pub(super) fn filter(needs: &Needs) -> Result<(), FilterError> {
    Ok(apply_filter(&program(needs)?)?)
}

fn program(needs: &Needs) -> Result<BpfProgram, BackendError> {
    let not_listed = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    SeccompFilter::new(rules(needs)?, not_listed, SeccompAction::Allow, ARCHITECTURE)?.try_into()
}

fn rules(needs: &Needs) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<_, _> = PLAIN.iter().chain(OLD).map(|call| (*call, Vec::new())).collect();
    let mut allow = |call, alternatives| rules.insert(call, alternatives);
    if needs.listens {
        allow(libc::SYS_listen, Vec::new());
    }
    if needs.special.contains(&Special::SocketFiles) {
        allow(libc::SYS_fchmodat, Vec::new());
        allow(libc::SYS_fchownat, Vec::new());
    }
    // The C library binds a netlink socket, to see of which families this host has addresses.
    if needs.names || needs.binds {
        allow(libc::SYS_bind, Vec::new());
    }
    allow(libc::SYS_socket, sockets(needs)?);
    // The runtime's own, for signals. Connected datagram sockets could still be connected to another place, or send there.
    allow(libc::SYS_socketpair, vec![kind(libc::AF_UNIX, libc::SOCK_STREAM, 0)?]);
    // TCP Fast Open connects without the question that landlock asks in connect(2).
    let fast_open = flags(libc::MSG_FASTOPEN);
    allow(libc::SYS_sendto, vec![all([none_of(3, fast_open)?])?]);
    allow(libc::SYS_sendmsg, vec![all([none_of(2, fast_open)?])?]);
    allow(libc::SYS_getsockopt, options(GET)?);
    let mut set = options(SET)?;
    if needs.special.contains(&Special::Interface) {
        set.extend(options(&[(libc::SOL_SOCKET, libc::SO_BINDTODEVICE)])?);
    }
    if needs.names {
        set.extend(options(SET_BY_RESOLVER)?);
        // Both questions, for IPv4 and for IPv6, are one call. The flags of the single messages are not looked at by the kernel.
        allow(libc::SYS_sendmmsg, vec![all([none_of(3, fast_open)?])?]);
        allow(libc::SYS_recvmmsg, Vec::new());
    }
    allow(libc::SYS_setsockopt, set);
    let commands = [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD, libc::F_DUPFD_CLOEXEC];
    allow(libc::SYS_fcntl, any(1, commands)?);
    // FIONREAD and SIOCGIFINDEX (`fe80::1%eth0`) are the resolver's. TCGETS asks whether this is a terminal; TIOCSTI, which
    // types at it, is what is kept out.
    let requests = [libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TCGETS, libc::SIOCGIFINDEX];
    allow(libc::SYS_ioctl, any(1, requests.map(request))?);
    let never = if needs.makes_files() { NAMELESS } else { CREATE | NAMELESS };
    allow(libc::SYS_openat, vec![all([none_of(2, never)?])?]);
    #[cfg(target_arch = "x86_64")]
    allow(libc::SYS_open, vec![all([none_of(1, never)?])?]);
    if needs.makes_files() || needs.special.contains(&Special::HandOver) {
        // Where files may be is landlock's affair.
        #[cfg(target_arch = "x86_64")]
        allow(libc::SYS_rename, Vec::new());
        allow(libc::SYS_renameat, Vec::new());
    }
    // No AT_REMOVEDIR.
    allow(libc::SYS_unlinkat, vec![all([is(2, 0)?])?]);
    allow(libc::SYS_clone, vec![all([condition(0, Qword, MaskedEq(CLONE_MASK), CLONE_THREAD)?])?]);
    // Nothing becomes code that was data. Only libraries of the resolver are loaded, from files that this process cannot write.
    let mut mappings = vec![all([none_of(2, EXECUTE)?])?];
    if needs.names {
        mappings.push(all([none_of(2, WRITE)?])?);
    }
    allow(libc::SYS_mmap, mappings);
    allow(libc::SYS_mprotect, vec![all([none_of(2, EXECUTE)?])?]);
    allow(libc::SYS_prctl, vec![all([is(0, libc::PR_SET_NAME)?])?]);
    // Only asks, and only about us: where the stack of a thread ends, say.
    allow(libc::SYS_prlimit64, vec![all([is(0, 0)?, condition(2, Qword, Eq, 0)?])?]);
    // abort(3).
    allow(libc::SYS_tgkill, vec![all([is(0, std::process::id().cast_signed())?])?]);
    Ok(rules)
}

/// Streams; for names also what a resolver asks with. The protocol is looked at because landlock does not see other streams than
/// TCP, such as MPTCP and SCTP.
fn sockets(needs: &Needs) -> Result<Vec<SeccompRule>, BackendError> {
    let mut sockets = Vec::new();
    if needs.unix_sockets != UnixSockets::None {
        // Datagrams are for the log and the resolver.
        sockets.push(kind(libc::AF_UNIX, libc::SOCK_STREAM, 0)?);
        sockets.push(kind(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?);
    }
    for domain in [libc::AF_INET, libc::AF_INET6] {
        sockets.push(kind(domain, libc::SOCK_STREAM, 0)?);
        sockets.push(kind(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)?);
        if needs.names {
            sockets.push(kind(domain, libc::SOCK_DGRAM, 0)?);
            sockets.push(kind(domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP)?);
        }
    }
    if needs.names {
        sockets.push(kind(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?);
    }
    Ok(sockets)
}

/// What socket(2) and socketpair(2) make.
fn kind(domain: c_int, type_: c_int, protocol: c_int) -> Result<SeccompRule, BackendError> {
    all([is(0, domain)?, condition(1, Dword, MaskedEq(TYPE_MASK), flags(type_))?, is(2, protocol)?])
}

/// The second and third argument of setsockopt(2) and getsockopt(2).
fn options(list: &[(c_int, c_int)]) -> Result<Vec<SeccompRule>, BackendError> {
    list.iter().map(|(level, option)| all([is(1, *level)?, is(2, *option)?])).collect()
}

const fn flags(bits: c_int) -> u64 {
    bits.cast_unsigned() as u64
}

/// libc has them as what ioctl(2) of the C library takes, which is not the same everywhere; all of them fit.
fn request(number: libc::Ioctl) -> c_int {
    c_int::try_from(number).expect("the requests above have 16 bits")
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, length, operator, value)
}

fn is(argument: u8, value: c_int) -> Result<SeccompCondition, BackendError> {
    condition(argument, Dword, Eq, flags(value))
}

fn none_of(argument: u8, bits: u64) -> Result<SeccompCondition, BackendError> {
    condition(argument, Dword, MaskedEq(bits), 0)
}

fn all<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into())
}

fn any<const N: usize>(argument: u8, values: [c_int; N]) -> Result<Vec<SeccompRule>, BackendError> {
    values.iter().map(|value| all([is(argument, *value)?])).collect()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
