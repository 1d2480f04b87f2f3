//! Debian's spiped as the other end.

use std::fmt::Display;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use super::pipe::{End, Key};
use super::poll_until;
use super::process::Process;
use super::socket::{self, Port, listed};

/// As /proc/net/tcp has it (include/net/tcp_states.h).
const LISTENS: &str = "0A";

/// A `spiped` that listens.
pub(crate) struct Spiped {
    _process: Process,
    port: Port,
}

impl Spiped {
    /// `mode` is -e or -d.
    pub(crate) fn start(mode: &str, key: &Key, target: impl Display, args: &[&str]) -> Self {
        let port = Port::reserve();
        let (source, target) = (bracketed(port.address()), target.to_string());
        let mut command = Command::new("spiped");
        command.args(["-F", mode, "-n", "2000", "-s", &source, "-t", &target, "-k"]).arg(key.path());
        let process = Process::start(command.args(args));
        poll_until("spiped listens", || {
            listed().iter().any(|row| row.local == port.address() && row.state == LISTENS).then_some(())
        });
        Self { _process: process, port }
    }
}

/// As spiped wants to have IP addresses.
pub(crate) fn bracketed(address: SocketAddr) -> String {
    format!("[{}]:{}", address.ip(), address.port())
}

/// Which program an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Spipe,
    Spiped,
}

/// An end of either program that speaks spiped's protocol.
pub(crate) enum EitherEnd {
    Spipe(End),
    Spiped(Spiped),
}

impl EitherEnd {
    pub(crate) fn start(program: Program, mode: &str, key: &Key, target: SocketAddr, args: &[&str]) -> Self {
        match program {
            Program::Spiped => Self::Spiped(Spiped::start(mode, key, bracketed(target), args)),
            Program::Spipe => {
                let end = match mode {
                    "-e" => End::initiator(key, target),
                    _ => End::responder(key, target),
                };
                Self::Spipe(end.args(&["--protocol", "spiped", "-n", "2000"]).args(args).start())
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Spipe(end) => end.address(),
            Self::Spiped(spiped) => spiped.port.address(),
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        socket::connect(self.address())
    }
}

/// A whole pipe of spiped's protocol.
pub(crate) struct Mixed {
    pub(crate) initiator: EitherEnd,
    pub(crate) responder: EitherEnd,
}

impl Mixed {
    /// To `target`, with the arguments of each end.
    pub(crate) fn start(programs: (Program, Program), target: SocketAddr, args: (&[&str], &[&str])) -> Self {
        let key = Key::new();
        let responder = EitherEnd::start(programs.1, "-d", &key, target, args.1);
        let initiator = EitherEnd::start(programs.0, "-e", &key, responder.address(), args.0);
        Self { initiator, responder }
    }
}
