//! The machine: what is installed on it, what it allows, and what it is.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

use rustix::process::{Resource, Rlimit, getrlimit, getuid, setrlimit};

use crate::error::Result;
use crate::peer::Peer;
use crate::process::output;

/// The program that all this is about.
pub(crate) const SPIPE: &str = env!("CARGO_BIN_EXE_spipe");

/// Names the congestion control that sockets of this network namespace get.
pub(crate) const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// A program by its name, also where only root's `PATH` looks or where [`shadowsocks`] put it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more =
        ["/usr/sbin", "/usr/local/sbin", "/sbin", concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers/bin")];
    env::split_paths(&path)
        .chain(more.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

pub(crate) fn command(program: &str) -> Result<Command> {
    Ok(Command::new(find(program).ok_or_else(|| format!("{program} is not installed"))?))
}

/// Installs the Debian packages that are missing, of those that have these programs or files.
pub(crate) fn install(needs: &[(&str, &str)]) -> Result<()> {
    let mut missing: Vec<&str> = needs
        .iter()
        .filter(|(thing, _)| find(thing).is_none() && !PathBuf::from(thing).is_file())
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Installing {}", missing.join(" "));
    for arguments in [&["update", "-q"][..], &["install", "-q", "-y", "--no-install-recommends"]] {
        let packages = if arguments[0] == "install" { &missing[..] } else { &[] };
        let mut command = Command::new(if getuid().is_root() { "env" } else { "sudo" });
        if !getuid().is_root() {
            command.arg("env");
        }
        // Services that these packages would start are none of our business.
        command.args(["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"]);
        let status = command.args(arguments).args(packages).stdin(Stdio::null()).status()?;
        if !status.success() {
            return Err(format!("apt-get {}: {status}", arguments[0]).into());
        }
    }
    Ok(())
}

/// Builds shadowsocks-rust if it is not there. This takes minutes.
pub(crate) fn shadowsocks() -> Result<()> {
    if find("ssserver").is_some() && find("sslocal").is_some() {
        return Ok(());
    }
    println!("Building shadowsocks-rust");
    let status = Command::new(env!("CARGO"))
        .args(["install", "shadowsocks-rust", "--locked", "--no-default-features"])
        .args(["--features", "server,local,local-tunnel,multi-threaded,aead-cipher"])
        .args(["--bin", "ssserver", "--bin", "sslocal"])
        .args(["--root", concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers")])
        .status()?;
    if status.success() { Ok(()) } else { Err(format!("cargo install shadowsocks-rust: {status}").into()) }
}

/// Raises the limit of open files to `wanted`, for the peers too, which inherit it, or as far as it goes.
pub(crate) fn raise_file_limit(wanted: u64) -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let set = |current, maximum| setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum });
    // Only who may do more than root of most containers raises the hard limit.
    let Err(_) = set(wanted, maximum.map(|maximum| maximum.max(wanted))) else { return Ok(()) };
    let reachable = maximum.unwrap_or(wanted);
    println!(
        "The limit of open files is {reachable}: some peers may not hold all connections, which takes {wanted}"
    );
    Ok(set(reachable, maximum)?)
}

/// What it is, for the report: names and values.
pub(crate) fn describe(peers: &[Peer]) -> Vec<(String, String)> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split([':', '=']).nth(1).unwrap_or_default().trim().trim_matches('"').to_owned()
    };
    let cores = available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])).unwrap_or_default();
    let mut all = vec![
        ("Date", date.trim().to_owned()),
        ("CPU", format!("{}, {cores} cores", field(&read("/proc/cpuinfo"), "model name"))),
        ("Memory", field(&read("/proc/meminfo"), "MemTotal")),
        ("Kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("TCP congestion control", read(CONGESTION_CONTROL).trim().to_owned()),
        ("System", field(&read("/etc/os-release"), "PRETTY_NAME")),
        ("Load average at the start", load),
    ];
    all.push(("spipe", version(Command::new(SPIPE).arg("--version"))));
    let mut programs: Vec<_> = peers.iter().filter_map(|peer| peer.version_command()).collect();
    programs.push(("redis-server", "--version"));
    for (program, option) in programs {
        if !all.iter().any(|(name, _)| *name == program)
            && let Ok(mut command) = command(program)
        {
            all.push((program, version(command.arg(option))));
        }
    }
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The line of a program's version: some print it as an error, and some print other lines first.
fn version(command: &mut Command) -> String {
    let Ok(output) = command.stdin(Stdio::null()).output() else { return "unknown".to_owned() };
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    let numbered = |line: &&str| line.bytes().any(|byte| byte.is_ascii_digit());
    said.lines().find(numbered).unwrap_or("unknown").trim().to_owned()
}
