//! The peers at work: how each is configured and started, both ends on loopback.
//!
//! ```text
//!  client ─▶ near end ─▶ far end ─▶ service
//! ```
//!
//! Each runs as its Debian package would have it, plus what the work needs: room for the connections, TLS 1.3 where there
//! is TLS, and a near end that checks who the far end is. The peers with large buffers are those that have such a setting.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::getuid;

use crate::account;
use crate::error::Result;
use crate::host::{Host, is_listening};
use crate::machine::{SPIPE, command};
use crate::peer::{NGINX_STREAM, Peer};
use crate::process::{Process, output};
use crate::secrets::{NAME, Secrets};
use crate::work::ROUND_TRIP;

/// More than any work opens, counting both sides of each connection. spipe keeps 8,192 of them for clients that have not
/// proved the key.
pub(crate) const OPEN_FILES: u64 = 32_768;
/// How many connections each peer is configured for.
const CONNECTIONS: u32 = 9_500;

/// Where a pipe leads, and how to see that it does.
#[derive(Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    /// What the service answers with at least one byte.
    pub(crate) hello: &'static [u8],
}

impl Backend {
    /// Whether the service answers at `entrance`.
    fn answers(&self, entrance: SocketAddr) -> io::Result<()> {
        let mut stream = TcpStream::connect(entrance)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(self.hello)?;
        stream.read_exact(&mut [0])
    }
}

/// Whose the first connection through a pipe is.
#[derive(Clone, Copy)]
pub(crate) enum First {
    /// One that sees that the service answers.
    Own,
    /// One that is measured: the near end only has to listen.
    Clients,
}

/// A peer at work.
pub(crate) struct Pipe {
    /// Where clients connect to.
    pub(crate) entrance: SocketAddr,
    /// How long its ends make themselves ready for clients once they have started.
    pub(crate) readies: Duration,
    ends: Option<Ends>,
}

/// Drops the near end first, so that the far end of `ssh` has no client left.
struct Ends {
    near: Process,
    far: Process,
}

impl Pipe {
    /// Starts both ends of `peer` with configurations and logs in `directory`, and returns once they are ready.
    /// `other` is the program of [`Peer::Other`]. The thread that calls is on the near host.
    pub(crate) fn start(
        peer: Peer,
        backend: Backend,
        secrets: &Secrets,
        directory: &Path,
        other: Option<&Path>,
        [near_host, far_host]: &[Host; 2],
        first: First,
    ) -> Result<Self> {
        let near = free_address(near_host.address)?;
        let far = far_host.enter(|| free_address(far_host.address))?;
        let maker = Maker { peer, secrets, directory, near, far, service: backend.address };
        let (far_command, near_command) = match peer {
            Peer::Direct => {
                return Ok(Self { entrance: backend.address, readies: Duration::ZERO, ends: None });
            }
            Peer::Spipe => maker.spipe(Path::new(SPIPE)),
            Peer::SpipeWithSpares => maker.spipe_with_spares(),
            Peer::Other => maker.spipe(other.ok_or("--against names no build")?),
            Peer::Spiped => maker.spiped()?,
            Peer::SpipeToSpiped => (maker.spiped()?.0, maker.spipe_as_spiped().1),
            Peer::SpipedToSpipe => (maker.spipe_as_spiped().0, maker.spiped()?.1),
            Peer::SpipedProtocol => maker.spipe_as_spiped(),
            Peer::NginxPlain | Peer::NginxPlainLargeBuffers => maker.nginx(["", ""])?,
            Peer::NginxTls | Peer::NginxTlsLargeBuffers => maker.nginx_tls()?,
            Peer::Stunnel => maker.stunnel()?,
            Peer::Haproxy | Peer::HaproxyLargeBuffers => maker.haproxy()?,
            Peer::TokioRustls => maker.tokio_rustls()?,
            Peer::Ssh => maker.ssh()?,
            Peer::Shadowsocks => maker.shadowsocks()?,
        };
        let spawn = |mut command: Command, end| {
            Process::spawn(&mut command, directory.join(format!("{end}.log")))
                .map_err(|error| format!("the {end} end does not start: {error}").into())
        };
        // ssh gives up where nothing listens yet, so the far end comes first.
        let mut far_end = far_host.enter(|| spawn(far_command, "far"))?;
        wait(&mut [("far", &mut far_end)], || TcpStream::connect(far).map(drop))?;
        let mut ends = Ends { far: far_end, near: spawn(near_command, "near")? };
        wait(&mut [("near", &mut ends.near), ("far", &mut ends.far)], || match first {
            First::Own => backend.answers(near),
            First::Clients => {
                if is_listening(near)? {
                    Ok(())
                } else {
                    Err(io::ErrorKind::ConnectionRefused.into())
                }
            }
        })?;
        // 64 handshakes, one after the other.
        let readies = if peer == Peer::SpipeWithSpares { 64 * 4 * ROUND_TRIP } else { Duration::ZERO };
        Ok(Self { entrance: near, readies, ends: Some(ends) })
    }

    /// The CPU seconds that both ends have used so far; nothing if there are none.
    pub(crate) fn cpu(&self) -> Result<Option<f64>> {
        self.ends.as_ref().map(|ends| account::cpu(&[ends.near.id(), ends.far.id()])).transpose()
    }

    /// The memory of the near and the far end in KiB.
    pub(crate) fn memory(&self) -> Result<Option<[f64; 2]>> {
        let Some(ends) = &self.ends else { return Ok(None) };
        Ok(Some([account::memory(ends.near.id())?, account::memory(ends.far.id())?]))
    }
}

/// Tries until `ready`, unless one of the ends stops.
fn wait(ends: &mut [(&str, &mut Process)], ready: impl Fn() -> io::Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        let Err(error) = ready() else { return Ok(()) };
        for (name, end) in &mut *ends {
            if let Some(why) = end.exited() {
                return Err(format!("the {name} end has stopped: {why}").into());
            }
        }
        if start.elapsed() > Duration::from_secs(15) {
            let logs: Vec<_> = ends.iter().map(|(_, end)| end.log().display().to_string()).collect();
            return Err(format!("no answer: {error}; see {}", logs.join(" and ")).into());
        }
        sleep(Duration::from_millis(20));
    }
}

/// An address that nothing listens on.
fn free_address(address: IpAddr) -> Result<SocketAddr> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?)
}

/// Makes the commands of the far and of the near end, in this order.
struct Maker<'a> {
    peer: Peer,
    secrets: &'a Secrets,
    directory: &'a Path,
    near: SocketAddr,
    far: SocketAddr,
    service: SocketAddr,
}

type Commands = (Command, Command);

impl Maker<'_> {
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn both(
        &self,
        mut make: impl FnMut(&str, SocketAddr, SocketAddr) -> Result<Command>,
    ) -> Result<Commands> {
        Ok((make("far", self.far, self.service)?, make("near", self.near, self.far)?))
    }

    fn spipe(&self, program: &Path) -> Commands {
        let end = |mode: &str, source: SocketAddr, target: SocketAddr| {
            let mut command = Command::new(program);
            command.args([
                mode,
                "-n",
                "0",
                "--max-handshakes",
                "256",
                "-q",
                "-s",
                &source.to_string(),
                "-t",
                &target.to_string(),
                "-k",
            ]);
            command.arg(&self.secrets.key);
            command
        };
        (end("-d", self.far, self.service), end("-e", self.near, self.far))
    }

    fn spipe_with_spares(&self) -> Commands {
        let (far, mut near) = self.spipe(Path::new(SPIPE));
        near.args(["--spares", "64"]);
        (far, near)
    }

    /// With spiped's protocol.
    fn spipe_as_spiped(&self) -> Commands {
        let (mut far, mut near) = self.spipe(Path::new(SPIPE));
        for end in [&mut far, &mut near] {
            end.args(["--protocol", "spiped"]);
        }
        (far, near)
    }

    fn spiped(&self) -> Result<Commands> {
        self.both(|end, source, target| {
            let mut command = command("spiped")?;
            let mode = if end == "far" { "-d" } else { "-e" };
            let bracketed = |address: SocketAddr| format!("[{}]:{}", address.ip(), address.port());
            command.args([mode, "-F", "-n", "0", "-s", &bracketed(source), "-t", &bracketed(target), "-k"]);
            command.arg(&self.secrets.key).arg("-p").arg(self.directory.join(format!("{end}.pid")));
            Ok(command)
        })
    }

    /// `tls` has what the far and the near end add to their server blocks.
    fn nginx(&self, tls: [&str; 2]) -> Result<Commands> {
        self.both(|end, source, target| {
            let (tls, ssl) = match (self.peer, end) {
                (Peer::NginxTls | Peer::NginxTlsLargeBuffers, "far") => (tls[0], " ssl"),
                _ => (tls[1], ""),
            };
            let buffers = match self.peer {
                Peer::NginxPlainLargeBuffers | Peer::NginxTlsLargeBuffers => "proxy_buffer_size 64k;",
                _ => "",
            };
            let pid = self.directory.join(format!("{end}.pid"));
            let mut config = String::new();
            if Path::new(NGINX_STREAM).is_file() {
                writeln!(config, "load_module {NGINX_STREAM};")?;
            }
            // A connection of the pipe is two of nginx's, and one worker may get them all.
            write!(
                config,
                "daemon off;\n\
                 pid {};\n\
                 error_log stderr warn;\n\
                 worker_processes auto;\n\
                 events {{ worker_connections {}; }}\n\
                 stream {{\n    \
                     server {{\n        \
                         listen {source}{ssl} backlog=4096;\n        \
                         proxy_pass {target};\n        \
                         {buffers} {tls}\n    \
                     }}\n\
                 }}\n",
                pid.display(),
                2 * CONNECTIONS
            )?;
            let path = self.write(&format!("{end}.conf"), &config)?;
            let mut command = command("nginx")?;
            command.arg("-p").arg(self.directory).arg("-e").arg("stderr").arg("-c").arg(path);
            Ok(command)
        })
    }

    fn nginx_tls(&self) -> Result<Commands> {
        let (certificate, key) = (self.secrets.certificate.display(), self.secrets.private_key.display());
        let far = format!("ssl_protocols TLSv1.3; ssl_certificate {certificate}; ssl_certificate_key {key};");
        let near = format!(
            "proxy_ssl on; proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; \
             proxy_ssl_trusted_certificate {certificate}; proxy_ssl_name {NAME};"
        );
        self.nginx([&far, &near])
    }

    fn stunnel(&self) -> Result<Commands> {
        self.both(|end, source, target| {
            let client = if end == "near" { "yes" } else { "no" };
            let config = format!(
                "foreground = yes\npid =\ndebug = 4\nsyslog = no\n\
                 [pipe]\nclient = {client}\naccept = {source}\nconnect = {target}\n\
                 sslVersionMin = TLSv1.3\nciphers = PSK\nPSKsecrets = {}\n",
                self.secrets.psk.display()
            );
            let mut command = command("stunnel")?;
            command.arg(self.write(&format!("{end}.conf"), &config)?);
            Ok(command)
        })
    }

    fn haproxy(&self) -> Result<Commands> {
        self.both(|end, source, target| {
            let (listen_tls, connect_tls) = if end == "far" {
                (format!("ssl crt {} ssl-min-ver TLSv1.3", self.secrets.chain.display()), String::new())
            } else {
                let certificate = self.secrets.certificate.display();
                let tls = format!(
                    "ssl ssl-min-ver TLSv1.3 verify required verifyhost {NAME} sni str({NAME}) ca-file {certificate}"
                );
                (String::new(), tls)
            };
            let buffers =
                if self.peer == Peer::HaproxyLargeBuffers { "    tune.bufsize 65536\n" } else { "" };
            let config = format!(
                "global\n    maxconn {CONNECTIONS}\n{buffers}\
                 defaults\n    mode tcp\n    maxconn {CONNECTIONS}\n    timeout connect 10s\n    \
                 timeout client 1h\n    timeout server 1h\n\
                 listen pipe\n    bind {source} {listen_tls}\n    server next {target} {connect_tls}\n"
            );
            let mut command = command("haproxy")?;
            command.arg("-db").arg("-f").arg(self.write(&format!("{end}.conf"), &config)?);
            Ok(command)
        })
    }

    fn tokio_rustls(&self) -> Result<Commands> {
        let program = env::current_exe()?;
        self.both(|end, source, target| {
            let mut command = Command::new(&program);
            command.args([end, &source.to_string(), &target.to_string()]).arg(&self.secrets.certificate);
            if end == "far" {
                command.arg(&self.secrets.private_key);
            }
            Ok(command)
        })
    }

    fn ssh(&self) -> Result<Commands> {
        if getuid().is_root() {
            // Where sshd locks up its unprivileged half; the service's start would have made it.
            fs::create_dir_all("/run/sshd")?;
        }
        let config = format!(
            "ListenAddress {}\nPort {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nAllowTcpForwarding yes\n",
            self.far.ip(),
            self.far.port(),
            self.secrets.ssh_key.display(),
            self.secrets.ssh_public_key.display(),
        );
        let mut far = command("sshd")?;
        far.args(["-D", "-e", "-f"]).arg(self.write("far.conf", &config)?);

        let public = fs::read_to_string(&self.secrets.ssh_public_key)?;
        let known = format!("[{}]:{} {public}", self.far.ip(), self.far.port());
        let known = self.write("known_hosts", &known)?;
        let user = output(Command::new("id").arg("-un"))?;
        let mut near = command("ssh")?;
        near.args(["-F", "none", "-N", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"])
            .args(["-o", "IdentitiesOnly=yes", "-i"])
            .arg(&self.secrets.ssh_key)
            .args(["-o", &format!("UserKnownHostsFile={}", known.display())])
            .args(["-L", &format!("{}:{}", self.near, self.service), "-p", &self.far.port().to_string()])
            .arg(format!("{}@{}", user.trim(), self.far.ip()));
        Ok((far, near))
    }

    fn shadowsocks(&self) -> Result<Commands> {
        let common = ["-m", "aes-256-gcm", "-k", &self.secrets.password, "--tcp-no-delay"];
        let (near_address, far_address) = (self.near.to_string(), self.far.to_string());
        let mut far = command("ssserver")?;
        far.args(["-s", &far_address]).args(common);
        let mut near = command("sslocal")?;
        near.args(["--protocol", "tunnel", "-b", &near_address, "-s", &far_address])
            .args(["-f", &self.service.to_string()])
            .args(common);
        Ok((far, near))
    }
}
