//! The image of a container, as `units/package container` makes it: one program, and nothing else.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::dns;
use crate::support::pipe::{End, Key};
use crate::support::process::{run, spipe};
use crate::support::socket::{assert_echoes, echo};

/// The user of the image.
const USER: &str = "65532";

/// The directory that the image is built from, with its root as `root`.
static CONTEXT: LazyLock<PathBuf> = LazyLock::new(|| {
    // cargo's directory is two above the program.
    let target = Path::new(env!("CARGO_BIN_EXE_spipe")).ancestors().nth(2).expect("target/debug/spipe");
    let mut package = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("units/package"));
    package.arg("container").env("PROFILE", "quick").env("CARGO_TARGET_DIR", target);
    // Not `run`, which gives up too early: without a change, this takes a second, but the first time minutes.
    let output = package.output().expect("the script can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("container")
});

/// A root of its own for one container.
struct Root<'k> {
    directory: TempDir,
    key: &'k Key,
}

impl<'k> Root<'k> {
    fn new(key: &'k Key) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        run(Command::new("cp").arg("--recursive").arg(CONTEXT.join("root")).arg(directory.path()))
            .succeeded();
        let root = Self { directory, key };
        for mount_point in ["proc", "etc/spipe/keys", "run/spipe"] {
            fs::create_dir_all(root.path(mount_point)).expect("a directory");
        }
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("root").join(name)
    }

    /// spipe as the first process of a container: with this root, which cannot be written to, as the image's user, and without a
    /// device, a shell or a library. The key is where and how Kubernetes mounts a Secret.
    fn container(&self, arguments: &[String]) -> Command {
        let setup = format!(
            r#"
            mount --bind "$0" "$0"
            mount --rbind /proc "$0/proc"
            mount -t tmpfs -o mode=1777 tmpfs "$0/etc/spipe/keys"
            mkdir "$0/etc/spipe/keys/..1"
            install -m 400 {} "$0/etc/spipe/keys/..1/redis.key"
            ln -s ..1 "$0/etc/spipe/keys/..data"
            ln -s ..data/redis.key "$0/etc/spipe/keys/redis.key"
            mount -o remount,ro "$0/etc/spipe/keys"
            mount -t tmpfs -o mode=777 tmpfs "$0/run/spipe"
            mount -o remount,bind,ro "$0"
            exec unshare --user --map-user={USER} --map-group={USER} --root="$0" /usr/bin/spipe "$@"
            "#,
            self.key.path().display()
        );
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]);
        command.args(["sh", "-euc", &setup]).arg(self.path("")).args(arguments);
        command
    }

    /// Starts one end of a pipe as a container.
    fn start(&self, role: &str, target: &str) -> End {
        let arguments = [role, "-s", "127.0.0.1:0", "-t", target, "-k", "/etc/spipe/keys"];
        End::started_by(&mut self.container(&arguments.map(ToOwned::to_owned)))
    }
}

/// The process in the container that `end` runs.
fn first_process(end: &End) -> Pid {
    let unshare = end.process.pid();
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
    let child = children.expect("unshare runs").trim().parse().expect("one child");
    Pid::from_raw(child).expect("a process")
}

#[test]
fn two_containers_carry_bytes() {
    let key = Key::new();
    let (server, client) = (Root::new(&key), Root::new(&key));
    fs::write(client.path("etc/hosts"), "127.0.0.1 server\n").expect("the file can be written");
    let responder = server.start("-d", &echo().to_string());
    let initiator = client.start("-e", &format!("server:{}", responder.port()));
    assert_echoes(&mut initiator.connect(), "through two containers");
}

#[test]
fn a_container_has_no_rights_and_is_locked_in() {
    let key = Key::new();
    let root = Root::new(&key);
    let end = root.start("-e", "127.0.0.1:9");
    let status = fs::read_to_string(format!("/proc/{}/status", first_process(&end))).expect("it runs");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim();
    // The first process of its namespace, without capabilities.
    assert!(field("NSpid:").ends_with("\t1"), "{status}");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert!(end.await_line(&["sandboxed"]).contains("seccomp=on"));
}

#[test]
fn sigterm_to_the_first_process_lets_connections_finish() {
    let key = Key::new();
    let root = Root::new(&key);
    let responder = End::responder(&key, echo()).start();
    let mut end = root.start("-e", &responder.address().to_string());
    let mut client = end.connect();
    assert_echoes(&mut client, "before");
    kill_process(first_process(&end), Signal::TERM).expect("it runs");
    end.await_line(&["stopping"]);
    assert_echoes(&mut client, "after");
    drop(client);
    assert_eq!(end.process.wait().code(), Some(0));
}

#[test]
fn a_container_asks_dns_without_any_file() {
    let key = Key::new();
    let root = Root::new(&key);
    let host = dns::Host::start();
    host.set_names("127.0.0.7 server.test");
    fs::copy(key.path(), root.path("key")).expect("the key can be copied");
    let mut ping = Command::new("chroot");
    ping.arg(root.path("")).args(["/usr/bin/spipe", "ping", "-k", "/key", "-t"]);
    let ended = run(host.command(&ping).arg("server.test:9"));
    assert!(ended.stderr.contains("[127.0.0.7]:9: Connection refused"), "{ended:?}");
    let ended = run(host.command(&ping).arg("nowhere.test:9"));
    assert!(ended.stderr.contains("cannot resolve 'nowhere.test'"), "{ended:?}");
}

/// A list in the manifest `name`: what follows `before` in the first line that has it behind a line with `section`.
#[track_caller]
fn in_manifest(name: &str, section: &str, before: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("units/kubernetes").join(name);
    let manifest = fs::read_to_string(path).expect("the manifest is in the tree");
    let mut lines = manifest.lines().skip_while(|line| line.trim() != section);
    let list = lines.find_map(|line| line.trim().strip_prefix(before)).expect(before);
    serde_json::from_str(list.trim_end_matches('}')).expect(list)
}

/// The container of spipe in the manifest `name`, with another source and this target.
fn start_manifest(name: &str, section: &str, root: &Root, target: &str) -> End {
    let mut arguments = in_manifest(name, section, "args: ");
    for (option, address) in [("-s", "127.0.0.1:0"), ("-t", target)] {
        let at = arguments.iter().position(|argument| argument == option).expect(option);
        address.clone_into(&mut arguments[at + 1]);
    }
    End::started_by(&mut root.container(&arguments))
}

/// Asserts what the probes in the manifest `name` say of `end`, before and while it stops; `client` holds up the stop.
fn assert_probes(name: &str, end: &End, mut client: impl Read + Write) {
    let first = first_process(end);
    let probe = |which: &str| {
        let mut nsenter = Command::new("nsenter");
        nsenter.args([
            "--target",
            &first.to_string(),
            "--user",
            "--preserve-credentials",
            "--mount",
            "--root",
        ]);
        run(nsenter.args(in_manifest(name, which, "exec: {command: ")))
    };
    assert_echoes(&mut client, "through a pipe");
    for which in ["startupProbe:", "readinessProbe:", "livenessProbe:"] {
        probe(which).succeeded();
    }
    kill_process(first, Signal::TERM).expect("it runs");
    end.await_line(&["stopping"]);
    assert_eq!(probe("readinessProbe:").code, Some(1));
    probe("livenessProbe:").succeeded();
    assert_echoes(&mut client, "to the end");
}

#[test]
fn kubernetes_probes_tell_how_the_sidecar_of_a_client_is() {
    let key = Key::new();
    let root = Root::new(&key);
    let responder = End::responder(&key, echo()).start();
    let target = responder.address().to_string();
    let sidecar = start_manifest("client.yaml", "initContainers:", &root, &target);
    assert_probes("client.yaml", &sidecar, sidecar.connect());
}

#[test]
fn kubernetes_probes_tell_how_the_server_is() {
    let key = Key::new();
    let root = Root::new(&key);
    let server = start_manifest("server.yaml", "containers:", &root, &echo().to_string());
    let initiator = End::initiator(&key, server.address()).start();
    assert_probes("server.yaml", &server, initiator.connect());
}

#[test]
fn the_image_has_the_program_and_licences_and_runs_it_as_a_user_of_its_own() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("units/container/Containerfile");
    let buildah = |arguments: &[&str]| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(directory.path().join("root"));
        command.arg("--runroot").arg(directory.path().join("run")).args(["--storage-driver", "vfs"]);
        command.args(arguments);
        command
    };
    let mut build = buildah(&["build", "--isolation", "chroot", "--tag", "spipe", "--file"]);
    run(build.arg(file).arg(&*CONTEXT)).succeeded();
    let config = "{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}}";
    let inspected =
        run(&mut buildah(&["inspect", "--type", "image", "--format", config, "spipe"])).succeeded();
    assert_eq!(inspected.text(), format!("{USER}:{USER} [/usr/bin/spipe]"));

    let container = run(&mut buildah(&["from", "--pull-never", "spipe"])).succeeded().text();
    let mounted = run(&mut buildah(&["mount", &container])).succeeded().text();
    let files = run(Command::new("find").arg(&mounted).args(["-type", "f", "-printf", "/%P\\n"])).succeeded();
    let mut files: Vec<_> = files.text().lines().map(ToOwned::to_owned).collect();
    files.sort();
    let licences = ["LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY.gz"];
    let licences = licences.map(|name| format!("/usr/share/doc/spipe/{name}"));
    assert_eq!(files, [vec!["/usr/bin/spipe".to_owned()], licences.to_vec()].concat());

    // Last, since it makes mount points.
    let run_in = ["run", "--isolation", "chroot", &container, "--", "/usr/bin/spipe", "--version"];
    let version = run(&mut buildah(&run_in)).succeeded().text();
    assert_eq!(version, run(spipe().arg("--version")).succeeded().text());
}
