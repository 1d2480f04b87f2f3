//! The filter, asked about every system call and about the arguments that matter, and compared with `allowed.txt`.
//!
//! The program is interpreted here, as the kernel would: so calls that end a process or restart the machine can be asked about
//! as well, and hundreds of thousands of combinations take a second. That the kernel decides as the interpreter does is a test
//! of its own; `tests/sandbox` shows the effects.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use crate::addr::Target;
use crate::service::log::Destination;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/service/sandbox/seccomp/allowed.txt");

const HEAD: &str = "\
# What the filter of system calls allows, on x86-64: compared with the filter itself by a test, which also writes it
# (TRYCMD=overwrite cargo test --lib seccomp). What is not here fails with ENOSYS.
# (No filter sees uretprobe and uprobe from Linux 6.14 on; a process that calls them gets SIGILL.)
#
# ip: a pipe to an address. -b: with an outgoing address. dev: with --interface. unix: to a Unix-domain socket. log: with --syslog.
# name: to a host name. file: 'spipe run'. mode: the same with --socket-mode or --socket-owner. hand: with --hand-over.
# state: with --state-directory.
# 'others' are all flags without a name here.
";

/// Higher than any number that Linux has given to a system call.
const NUMBERS: u32 = 512;

/// Calls of the x32 ABI have this bit.
const X32: u32 = 0x4000_0000;

/// uretprobe and uprobe, which Linux passes by filters from 6.14 on. They are for probes that a tracer has set; any other caller
/// gets SIGILL.
const UNFILTERED: [u32; 2] = [335, 336];

type Arguments = [u64; 6];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    NoSuchCall,
    Killed,
}

/// What the program says, and which arguments it has looked at for it: a bit for each.
fn ask(program: &BpfProgram, architecture: u32, number: u32, arguments: &Arguments) -> (Verdict, u8) {
    // linux/bpf_common.h: loading a word, and comparing or returning a constant.
    const LOAD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP: u16 = 0x05;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_GREATER: u16 = 0x25;
    const JUMP_IF_NOT_LESS: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    let (mut at, mut accumulator, mut looked_at) = (0, 0, 0);
    loop {
        let step = &program[at];
        let mut skip = 0;
        let mut jump_if = |holds| skip = usize::from(if holds { step.jt } else { step.jf });
        match step.code {
            // struct seccomp_data of seccomp(2): words of 32 bits, the lower half of an argument first.
            LOAD => {
                accumulator = match step.k {
                    0 => number,
                    4 => architecture,
                    offset => {
                        let index = (offset as usize - 16) / 8;
                        looked_at |= 1 << index;
                        let halves = arguments[index].to_le_bytes();
                        let half = &halves[offset as usize % 8..][..4];
                        u32::from_le_bytes(half.try_into().unwrap())
                    }
                }
            }
            AND => accumulator &= step.k,
            JUMP => at += step.k as usize,
            JUMP_IF_EQUAL => jump_if(accumulator == step.k),
            JUMP_IF_GREATER => jump_if(accumulator > step.k),
            JUMP_IF_NOT_LESS => jump_if(accumulator >= step.k),
            RETURN => {
                let verdict = match step.k {
                    libc::SECCOMP_RET_ALLOW => Verdict::Allowed,
                    libc::SECCOMP_RET_KILL_PROCESS => Verdict::Killed,
                    NO_SUCH_CALL => Verdict::NoSuchCall,
                    action => panic!("the action {action:#x} is not ours"),
                };
                return (verdict, looked_at);
            }
            code => panic!("seccompiler does not make the instruction {code:#x}"),
        }
        at += 1 + skip;
    }
}

/// AUDIT_ARCH_X86_64 and AUDIT_ARCH_I386 of linux/audit.h.
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

/// The kinds of processes, by the columns of the table, with their programs.
fn programs() -> Vec<(&'static str, BpfProgram)> {
    let to = |target: &str| {
        let mut needs = Needs::new();
        needs.dial(&target.parse::<Target>().unwrap().into());
        needs
    };
    let mut bound = to("192.0.2.1:80");
    let (target, from) = ("192.0.2.1:80".parse().unwrap(), "192.0.2.2".parse().unwrap());
    bound.dial(&crate::upstream::Route::new(target, Some(from)).unwrap());
    let mut logging = to("192.0.2.1:80");
    logging.log_to(Destination::Syslog);
    let mut configured = Needs::new();
    configured.configuration(Path::new("/etc/spipe/spipe.toml"));
    let mut keeping = to("192.0.2.1:80");
    keeping.state_directory(Path::new("/var/lib/spipe"));
    let mut handing = to("192.0.2.1:80");
    handing.hand_over(Path::new("/run/spipe/hand-over"));
    let mut over = Needs::new();
    let target: crate::upstream::Route = "192.0.2.1:80".parse::<Target>().unwrap().into();
    over.dial(&target.over("wg0".parse().unwrap()).unwrap());
    let mut giving = Needs::new();
    giving.configuration(Path::new("/etc/spipe/spipe.toml"));
    giving.give_socket_files(None);
    let all = [
        ("ip", to("192.0.2.1:80")),
        ("-b", bound),
        ("dev", over),
        ("unix", to("/run/service.sock")),
        ("log", logging),
        ("name", to("host:80")),
        ("file", configured),
        ("mode", giving),
        ("hand", handing),
        ("state", keeping),
    ];
    all.map(|(name, needs)| (name, program(&needs).unwrap())).into()
}

/// Every call that the C compiler's headers know, by its number.
fn calls() -> BTreeMap<u32, String> {
    let output = Command::new("cc")
        .args(["-E", "-dM", "-x", "c", "-include", "asm/unistd.h", "/dev/null"])
        .output()
        .expect("cc can be run; type: apt-get install gcc");
    let text = String::from_utf8(output.stdout).unwrap();
    let call = |line: &str| {
        let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
        Some((number.parse().ok()?, name.to_owned()))
    };
    let calls: BTreeMap<_, _> = text.lines().filter_map(call).collect();
    assert!(calls.len() > 300, "no list of system calls: {}", String::from_utf8_lossy(&output.stderr));
    calls
}

/// What the table calls some values.
type Names = Vec<(u64, &'static str)>;

/// These constants of libc, with their values.
macro_rules! named {
    ($($name:ident)*) => { vec![$((u64::try_from(libc::$name).unwrap(), stringify!($name))),*] };
}

/// An argument that the filter looks at: which, and the values to try.
struct Argument {
    index: usize,
    values: Vec<u64>,
    names: Names,
    are_flags: bool,
}

fn numbers(index: usize, values: impl IntoIterator<Item = u64>, names: Names) -> Argument {
    Argument { index, values: values.into_iter().collect(), names, are_flags: false }
}

/// Every set of these flags, without and with all other bits.
fn sets(index: usize, names: Names) -> Argument {
    let others = names.iter().fold(u64::from(u32::MAX), |others, (flag, _)| others & !flag);
    let mut values = vec![0, others];
    for (flag, _) in &names {
        values.extend(values.clone().iter().map(|set| set | flag));
    }
    Argument { index, values, names, are_flags: true }
}

impl Argument {
    fn name(&self, value: u64) -> String {
        if let Some((_, name)) = self.names.iter().find(|(named, _)| *named == value) {
            return (*name).to_owned();
        }
        if !self.are_flags || value == 0 {
            return value.to_string();
        }
        let (mut names, mut rest) = (Vec::new(), value);
        for (flag, name) in &self.names {
            if value & flag != 0 {
                names.push(*name);
                rest &= !flag;
            }
        }
        if rest != 0 {
            names.push("others");
        }
        names.join("|")
    }
}

fn arguments(call: &str) -> Vec<Argument> {
    // O_TMPFILE is this bit and O_DIRECTORY.
    const TMPFILE: u64 = flags(libc::O_TMPFILE & !libc::O_DIRECTORY);
    let opening = || [named! { O_CREAT O_DIRECTORY }, vec![(TMPFILE, "__O_TMPFILE")]].concat();
    let own = u64::from(std::process::id());
    match call {
        "socket" | "socketpair" => vec![
            numbers(0, 0..64, named! { AF_UNIX AF_INET AF_INET6 AF_NETLINK }),
            numbers(1, 0..16, named! { SOCK_STREAM SOCK_DGRAM SOCK_RAW }),
            numbers(2, 0..300, Vec::new()),
        ],
        "setsockopt" | "getsockopt" => vec![
            numbers(1, 0..300, named! { SOL_SOCKET IPPROTO_IP IPPROTO_TCP IPPROTO_IPV6 SOL_NETLINK }),
            numbers(2, 0..256, Vec::new()),
        ],
        "sendto" | "sendmmsg" => vec![sets(3, named! { MSG_FASTOPEN })],
        "sendmsg" => vec![sets(2, named! { MSG_FASTOPEN })],
        "open" => vec![sets(1, opening())],
        "openat" => vec![sets(2, opening())],
        "unlinkat" => vec![sets(2, named! { AT_REMOVEDIR })],
        "mmap" | "mprotect" => vec![sets(2, named! { PROT_READ PROT_WRITE PROT_EXEC })],
        "fcntl" => vec![numbers(1, 0..2048, named! { F_GETFD F_SETFD F_GETFL F_SETFL F_DUPFD_CLOEXEC })],
        "ioctl" => vec![numbers(1, 0..1 << 16, named! { FIONBIO FIOCLEX FIONREAD TCGETS SIOCGIFINDEX })],
        "prctl" => vec![numbers(0, 0..256, named! { PR_SET_NAME })],
        "clone" => vec![sets(
            0,
            named! { CLONE_THREAD CLONE_NEWNS CLONE_NEWCGROUP CLONE_NEWUTS CLONE_NEWIPC CLONE_NEWUSER CLONE_NEWPID CLONE_NEWNET },
        )],
        "prlimit64" => {
            vec![numbers(0, [0, 1, own], Vec::new()), numbers(2, [0, 1, 1 << 40], vec![(0, "get")])]
        }
        "tgkill" => vec![numbers(0, [0, 1, own, u64::from(u32::MAX)], vec![(own, "self")])],
        _ => Vec::new(),
    }
}

/// The options of sockets, each of which has its name only in its level.
fn option_name(level: u64, option: u64) -> Option<&'static str> {
    let names = match c_int::try_from(level).unwrap() {
        libc::SOL_SOCKET => {
            named! { SO_REUSEADDR SO_KEEPALIVE SO_LINGER SO_BINDTODEVICE SO_RCVBUF SO_SNDBUF SO_ERROR SO_TYPE SO_PEERCRED }
        }
        libc::IPPROTO_TCP => {
            named! { TCP_NODELAY TCP_CONGESTION TCP_KEEPIDLE TCP_KEEPINTVL TCP_KEEPCNT TCP_USER_TIMEOUT TCP_INFO }
        }
        libc::IPPROTO_IP => named! { IP_RECVERR IP_BIND_ADDRESS_NO_PORT },
        libc::IPPROTO_IPV6 => named! { IPV6_RECVERR IPV6_V6ONLY },
        libc::SOL_NETLINK => named! { NETLINK_PKTINFO NETLINK_EXT_ACK NETLINK_GET_STRICT_CHK },
        _ => return None,
    };
    names.iter().find(|(value, _)| *value == option).map(|(_, name)| *name)
}

/// Every choice of a value for each argument.
fn choices(arguments: &[Argument]) -> Vec<Arguments> {
    let mut choices = vec![[0; 6]];
    for Argument { index, values, .. } in arguments {
        let extend = |choice: &Arguments| {
            let mut choice = *choice;
            values
                .iter()
                .map(move |value| {
                    choice[*index] = *value;
                    choice
                })
                .collect::<Vec<_>>()
        };
        choices = choices.iter().flat_map(extend).collect();
    }
    choices
}

/// The arguments of an allowed call, as text.
fn row(call: &str, arguments: &[Argument], choice: &Arguments) -> String {
    let mut row = call.to_owned();
    for argument in arguments {
        let value = choice[argument.index];
        let option = (call.ends_with("sockopt") && argument.index == 2)
            .then(|| option_name(choice[1], value))
            .flatten();
        row.push(' ');
        row.push_str(&option.map_or_else(|| argument.name(value), ToOwned::to_owned));
    }
    row
}

#[test]
fn it_allows_what_the_table_says_and_nothing_else() {
    let (programs, calls) = (programs(), calls());
    let names: Vec<_> = programs.iter().map(|(name, _)| format!("{name:<5}")).collect();
    let mut table = format!("{HEAD}\n{:<56}{}\n", "", names.concat().trim_end());
    for number in 0..NUMBERS {
        let unknown = number.to_string();
        let call = calls.get(&number).unwrap_or(&unknown);
        let arguments = arguments(call);
        let tried = arguments.iter().fold(0, |tried, argument| tried | 1_u8 << argument.index);
        for choice in choices(&arguments) {
            let answers: Vec<_> = programs
                .iter()
                .map(|(_, program)| {
                    let (verdict, looked_at) = ask(program, X86_64, number, &choice);
                    assert_eq!(looked_at & !tried, 0, "{call}: not all of its arguments are tried");
                    verdict
                })
                .collect();
            assert!(!answers.contains(&Verdict::Killed), "{call}");
            if answers.contains(&Verdict::Allowed) {
                let marks =
                    answers.iter().map(|answer| if *answer == Verdict::Allowed { "x    " } else { ".    " });
                let row = row(call, &arguments, &choice);
                writeln!(table, "{row:<56}{}", marks.collect::<String>().trim_end()).unwrap();
            }
        }
    }
    if env::var_os("TRYCMD").is_some_and(|mode| mode == "overwrite") {
        fs::write(TABLE, &table).unwrap();
    }
    let expected = fs::read_to_string(TABLE).unwrap();
    let changed = |from: &str, to: &str| {
        from.lines().filter(|line| !to.lines().any(|other| other == *line)).collect::<Vec<_>>().join("\n")
    };
    assert!(
        table == expected,
        "now:\n{}\nin the table:\n{}",
        changed(&table, &expected),
        changed(&expected, &table)
    );
}

#[test]
fn calls_of_other_architectures_are_not_allowed() {
    for (_, program) in programs() {
        for number in 0..NUMBERS {
            assert_eq!(ask(&program, I386, number, &[0; 6]).0, Verdict::Killed, "{number}");
            assert_eq!(ask(&program, X86_64, X32 | number, &[0; 6]).0, Verdict::NoSuchCall, "{number}");
        }
    }
}

#[test]
fn the_kernel_decides_as_the_interpreter_does() {
    // The longest has the most that the two could disagree about.
    let (_, program) = programs().into_iter().max_by_key(|(_, program)| program.len()).unwrap();
    let steps: Vec<u8> = program
        .iter()
        .flat_map(|step| {
            let [code, k] = [step.code.to_ne_bytes().to_vec(), step.k.to_ne_bytes().to_vec()];
            [&code[..], &[step.jt, step.jf], &k].concat()
        })
        .collect();
    let mut python = Command::new("python3")
        .args(["-c", include_str!("ask_kernel.py"), &NUMBERS.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 can be run; type: apt-get install python3");
    python.stdin.take().unwrap().write_all(&steps).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let allowed = |number| ask(&program, X86_64, number, &[u64::MAX; 6]).0 == Verdict::Allowed;
    let answers: Vec<_> = text.lines().map(|line| line == "allowed").collect();
    assert_eq!(answers.len(), NUMBERS as usize);
    let differ: Vec<_> = (0..NUMBERS)
        .filter(|number| !UNFILTERED.contains(number) && allowed(*number) != answers[*number as usize])
        .collect();
    assert!(differ.is_empty(), "{differ:?}");
}
