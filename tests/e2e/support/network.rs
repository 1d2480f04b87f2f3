//! A network of its own for one process of spipe: a loopback with the ports that a test wants, which can be cut.
//!
//! Clients and targets are outside, and reach the process over Unix-domain sockets.

use std::process::Command;

use super::process::{Process, run};
use super::site::Site;

/// `spipe run` of a configuration, in a network of its own.
pub(crate) struct Network {
    pub(crate) process: Process,
}

impl Network {
    /// Serves the configuration `text` of `site`, after `setup` by a shell.
    pub(crate) fn serve(site: &Site, setup: &str, text: &str) -> Self {
        site.configure(text);
        let spipe = site.command();
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sh", "-c"]);
        command.arg(format!("ip link set lo up && {setup} exec \"$0\" \"$@\""));
        let process = Process::start(command.arg(spipe.get_program()).args(spipe.get_args()));
        process.await_line(&["listening"]);
        Self { process }
    }

    /// From now on no packet arrives, and nobody is told.
    pub(crate) fn cut(&self) {
        let process = self.process.pid().as_raw_nonzero().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &process, "--user", "--preserve-credentials", "--net"]);
        run(command.args(["ip", "link", "set", "lo", "down"])).succeeded();
    }
}
