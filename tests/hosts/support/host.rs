//! A booted Debian system with its own systemd as process 1, and with its own files, network and processes.
//!
//! ```text
//!  this process ── unshare ──┃── sh ── systemd-nspawn ──┃── the host's systemd ── its services
//!                        namespaces                namespaces
//! ```
//!
//! The shell is the first process of a PID namespace and is killed when this process ends. Then the kernel ends all
//! other processes in the namespace, and mounts and network disappear with the last of them. So nothing is left
//! behind.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use tempfile::TempDir;

use super::image::Image;
use super::{DEADLINE, cannot_start, poll_until, run_locally};

/// Runs in new namespaces. The host writes to a file system in memory, which is mounted over an unchanged image.
const BOOT: &str = r#"
name=$1 image=$2 layers=$3; shift 3
for group; do echo $$ > "$group/cgroup.procs"; done
mount -t tmpfs -o mode=0755 tmpfs "$layers"
mkdir "$layers/changes" "$layers/work" "$layers/root"
mount -t overlay -o "lowerdir=$image,upperdir=$layers/changes,workdir=$layers/work" overlay "$layers/root"
echo "$name" > "$layers/root/etc/hostname"
rm -f "$layers/root/etc/resolv.conf"
# systemd-nspawn keeps its own files there.
mount -t tmpfs -o mode=0755 tmpfs /run
ip link set lo up
# 133 means that the host reboots and must be started again. Calls and limits are those of a machine, not of a container.
ended=133
while [ $ended -eq 133 ]; do
    ended=0
    systemd-nspawn --quiet --boot --notify-ready=yes --register=no --keep-unit \
        --machine="$name" --directory="$layers/root" --network-namespace-path=/proc/self/ns/net --console=pipe \
        --link-journal=no --resolv-conf=off --timezone=off \
        --system-call-filter='@memlock landlock_create_ruleset landlock_add_rule landlock_restrict_self' \
        --capability=CAP_SYS_RESOURCE || ended=$?
done
"#;

/// A booted host.
pub(crate) struct Host {
    name: &'static str,
    /// unshare(1), which runs for as long as the host.
    supervisor: Child,
    /// Receives a message each time the host has booted.
    ready: Receiver<()>,
    groups: Vec<PathBuf>,
    directory: TempDir,
}

impl Host {
    /// Starts to boot; [`await_boot`](Self::await_boot) waits until that is done.
    pub(crate) fn boot(name: &'static str, image: Image) -> Self {
        let tree = image.tree();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let layers = directory.path().join("layers");
        fs::create_dir(&layers).expect("the directory can be created");
        let ready = follow_readiness(&directory.path().join("ready"));
        let groups = control_groups(name);
        let console = File::create(directory.path().join("console")).expect("the file can be created");
        let mut command = Command::new("setpriv");
        command
            // If this process is killed, the host is killed too.
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--net"])
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-euc", BOOT, "sh", name])
            .args([&tree, &layers])
            .args(&groups)
            .env("NOTIFY_SOCKET", directory.path().join("ready"))
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("a file"))
            .stderr(console);
        let supervisor = command.spawn().unwrap_or_else(|error| cannot_start("setpriv", &error));
        Self { name, supervisor, ready, groups, directory }
    }

    /// Waits until all services that start at boot have started.
    pub(crate) fn await_boot(&self) {
        let is_ready = self.ready.recv_timeout(DEADLINE).is_ok();
        assert!(is_ready, "the host {} does not boot:\n{}", self.name, self.console());
        // The host reports "ready" shortly before the last service is. A service that failed is ignored here.
        self.try_run("systemctl is-system-running --wait");
    }

    /// Reboots; files and the network stay, processes do not.
    pub(crate) fn reboot(&self) {
        // Discard messages about earlier boots.
        while self.ready.try_recv().is_ok() {}
        // The command may be killed at any point, since its host goes down.
        self.try_run("systemctl reboot");
        self.await_boot();
    }

    fn console(&self) -> String {
        fs::read_to_string(self.directory.path().join("console")).unwrap_or_default()
    }

    /// The process whose network namespace the host uses, also after a reboot.
    fn network(&self) -> String {
        self.supervisor.id().to_string()
    }

    /// The command that runs `script` on this host as root, without the environment of this process.
    fn command(&self, script: &str) -> Command {
        // The host's process 1, which changes with a reboot.
        let first = poll_until("the host has a process 1", || child(child(child(self.supervisor.id())?)?));
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &first.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .args(["env", "--ignore-environment", "--chdir=/root", "HOME=/root", "LANG=C.UTF-8"])
            .arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            // On the host, so that the script ends even when this process no longer waits for it.
            .args(["timeout", "--kill-after=5", &DEADLINE.as_secs().to_string()])
            .args(["bash", "-euo", "pipefail", "-c", script])
            .stdin(Stdio::null());
        command
    }

    /// Runs `script` on this host; it may succeed or fail.
    pub(crate) fn try_run(&self, script: &str) -> Ended {
        let output = self.command(script).output().expect("nsenter is in util-linux");
        let text =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        Ended { success: output.status.success(), text: text.trim_end().to_owned() }
    }

    /// Runs `script` on this host, and asserts that it succeeds. Returns its output.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> String {
        let ended = self.try_run(script);
        assert!(ended.success, "on {}: {script}\n{}", self.name, ended.text);
        ended.text
    }

    /// Runs `script` on this host, and asserts that it fails. Returns its output.
    #[track_caller]
    pub(crate) fn fail(&self, script: &str) -> String {
        let ended = self.try_run(script);
        assert!(!ended.success, "on {}, this succeeded: {script}\n{}", self.name, ended.text);
        ended.text
    }

    /// Writes a file on this host.
    #[track_caller]
    pub(crate) fn put(&self, path: &str, mode: &str, content: &[u8]) {
        let file = self.directory.path().join("put");
        fs::write(&file, content).expect("the file can be written");
        let mut command = self.command(&format!("install -D -m {mode} /dev/stdin '{path}'"));
        let status = command.stdin(File::open(&file).expect("the file can be read")).status();
        assert!(status.expect("nsenter is in util-linux").success(), "{path} on {}", self.name);
    }

    /// Copies a file of this machine to this host.
    #[track_caller]
    pub(crate) fn copy(&self, from: impl AsRef<Path>, to: &str, mode: &str) {
        let content = fs::read(&from).unwrap_or_else(|error| panic!("{}: {error}", from.as_ref().display()));
        self.put(to, mode, &content);
    }

    /// The whole journal of `unit`.
    pub(crate) fn journal(&self, unit: &str) -> String {
        self.run(&format!("journalctl --sync; journalctl --no-pager -u {unit}"))
    }

    /// Waits until the journal of `unit` has a line with all of `parts`.
    #[track_caller]
    pub(crate) fn await_line(&self, unit: &str, parts: &[&str]) -> String {
        let script = format!("exec journalctl --output=cat --follow --lines=all -u {unit}");
        let mut follow = self
            .command(&script)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("nsenter is in util-linux");
        let lines = BufReader::new(follow.stdout.take().expect("the stream is piped")).lines();
        // If there is no such line, the output ends when the time is up.
        let found = lines.map_while(Result::ok).find(|line| parts.iter().all(|part| line.contains(part)));
        // On the host, journalctl ends by itself when it has no reader.
        let _ = follow.kill();
        let _ = follow.wait();
        found.unwrap_or_else(|| {
            panic!("no line with {parts:?} from {unit} on {}:\n{}", self.name, self.journal(unit))
        })
    }

    /// Waits until `script` prints `expected`.
    #[track_caller]
    pub(crate) fn await_output(&self, script: &str, expected: &str) {
        let start = Instant::now();
        loop {
            let ended = self.try_run(script);
            if ended.text == expected {
                return;
            }
            assert!(
                start.elapsed() < DEADLINE,
                "on {}, the last output of {script}:\n{}",
                self.name,
                ended.text
            );
            thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- the console of {}\n{}", self.name, self.console());
        }
        // All other processes of the host end with it.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
        for group in &self.groups {
            remove_group(group);
        }
    }
}

/// Reads all messages of nspawn at the socket `path`. They must all be read: the host's systemd waits for nspawn, and
/// nspawn waits for the reader.
fn follow_readiness(path: &Path) -> Receiver<()> {
    let socket = UnixDatagram::bind(path).expect("the name is free");
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut message = [0; 4096];
        while let Ok(length) = socket.recv(&mut message) {
            if String::from_utf8_lossy(&message[..length]).contains("READY=1") && sender.send(()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The child of a process that has at most one.
fn child(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// How a script ended.
pub(crate) struct Ended {
    pub(crate) success: bool,
    /// All its output.
    pub(crate) text: String,
}

/// Connects two hosts to a network of their own, each with its `ADDRESS/PREFIX`.
pub(crate) fn connect(hosts: [(&Host, &str); 2]) {
    let [(one, _), (other, _)] = hosts;
    let (one, other) = (one.network(), other.network());
    run_locally(
        "ip",
        ["link", "add", "host0", "netns", &one, "type", "veth", "peer", "name", "host0", "netns", &other],
    );
    for (host, address) in hosts {
        let within = |arguments: &[&str]| {
            let network = host.network();
            run_locally("nsenter", [&["--target", &network, "--net", "ip"], arguments].concat())
        };
        within(&["address", "add", address, "dev", "host0"]);
        within(&["link", "set", "host0", "up"]);
    }
}

/// Makes control groups for one host, in each hierarchy that systemd uses, so that two hosts do not share any.
fn control_groups(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let ours = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
    let hierarchies = ours.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let is_it = |mount: &&str| match controllers {
            "" => mount.contains(" - cgroup2 "),
            "name=systemd" => mount.contains(" - cgroup ") && mount.ends_with("name=systemd"),
            _ => false,
        };
        let mount_point = mounts.lines().find(is_it)?.split(' ').nth(4)?;
        Some(PathBuf::from(format!("{mount_point}{path}")))
    });
    let group = |parent: PathBuf| {
        let group = parent.join(format!("spipe-test-{name}-{}", std::process::id()));
        fs::create_dir(&group).unwrap_or_else(|error| panic!("{}: {error}", group.display()));
        group
    };
    hierarchies.map(group).collect()
}

/// Removes a control group and all groups that the host has made in it, after its processes have ended.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    // The last process may need a moment to end.
    let start = Instant::now();
    while fs::remove_dir(group).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy)
        && start.elapsed().as_secs() < 10
    {
        thread::sleep(std::time::Duration::from_millis(10));
    }
}
