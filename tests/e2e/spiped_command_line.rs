//! The command lines of spiped and of its spipe, beside the programs themselves: Debian's packages of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::dns::Host;
use crate::support::pipe::field;
use crate::support::poll_until;
use crate::support::process::{Ended, Process, require, run, run_with_input};
use crate::support::site::Site;
use crate::support::socket::{Port, Service, assert_echoes, connect_unix, echo, try_connect};

/// Who is called by the names of spiped's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Debian,
    Ours,
}

const BOTH: [Whose; 2] = [Whose::Debian, Whose::Ours];

impl Whose {
    fn spiped(self, site: &Site) -> Command {
        self.program(site, "spiped", "bin/spiped")
    }

    /// The spipe that comes with spiped.
    fn spipe(self, site: &Site) -> Command {
        self.program(site, "spipe", "libexec/spiped/spipe")
    }

    fn program(self, site: &Site, debians: &str, ours: &str) -> Command {
        let mut command = match self {
            Self::Debian => {
                require("spiped");
                Command::new(debians)
            }
            Self::Ours => Command::new(installed(site, ours)),
        };
        command.current_dir(site.path(""));
        command
    }
}

/// The binary under test as a package would install it under another name: by a link.
fn installed(site: &Site, place: &str) -> PathBuf {
    let path = site.path(place);
    std::fs::create_dir_all(path.parent().expect("the path has a parent"))
        .expect("the directory can be made");
    match symlink(env!("CARGO_BIN_EXE_spipe"), &path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => panic!("{}: {error}", path.display()),
        Ok(()) | Err(_) => path,
    }
}

/// A process in the background. It is killed when dropped, so a test that panics leaves no process behind.
struct Daemon(Pid);

impl Daemon {
    /// The one whose id is in this file.
    fn of(pid_file: &Path) -> Self {
        let pid = std::fs::read_to_string(pid_file)
            .unwrap_or_else(|error| panic!("{}: {error}", pid_file.display()));
        Self(pid.trim().parse().ok().and_then(Pid::from_raw).expect("a process id"))
    }

    /// Whether it runs. A zombie does not: the process that inherits it may be slow to reap it.
    fn runs(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.0))
            .is_ok_and(|stat| !stat.rsplit_once(") ").expect("proc_pid_stat(5)").1.starts_with(['Z', 'X']))
    }

    fn name(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/comm", self.0)).expect("it runs").trim_end().to_owned()
    }

    fn stop(&self) {
        kill_process(self.0, Signal::TERM).expect("it runs");
        poll_until("the process in the background ends", || (!self.runs()).then_some(()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.runs() {
            let _ = kill_process(self.0, Signal::KILL);
        }
    }
}

/// The exit code of `command`. Its streams are not awaited, for spiped keeps them open in the background.
fn returns(command: &mut Command) -> Option<i32> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")).code()
}

/// A connection to the socket `name` of `site`, as soon as something listens there. Its file comes before.
fn await_listening(site: &Site, name: &str) -> UnixStream {
    poll_until(&format!("{name} is listened on"), || connect_unix(&site.path(name)).ok())
}

/// Where it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stays {
    InTheForeground,
    /// With a pid file of this name.
    InTheBackground(&'static str),
}
use Stays::{InTheBackground, InTheForeground};

/// Command lines as they are published, with PORT, TARGET and KEY for what differs from host to host.
const PUBLISHED: [(&str, &str, Stays); 17] = [
    // README: SMTP, and SSH.
    ("README, server", "-d -s [0.0.0.0]:PORT -t TARGET -k KEY", InTheBackground("[0.0.0.0]:PORT.pid")),
    ("README, client", "-e -s [127.0.0.1]:PORT -t TARGET -k KEY", InTheBackground("[127.0.0.1]:PORT.pid")),
    // Units of systemd.
    ("unit, server", "-F -d -s [0.0.0.0]:PORT -t TARGET -k KEY", InTheForeground),
    ("unit, client", "-F -e -s [127.0.0.1]:PORT -t TARGET -k KEY", InTheForeground),
    ("unit, waiting", "-D -F -e -s [127.0.0.1]:PORT -t TARGET -k KEY", InTheForeground),
    // NixOS writes all that has a value.
    ("NixOS, plain", "-F -e -s [127.0.0.1]:PORT -t TARGET -k KEY -n 100 -o 5 -r 60", InTheForeground),
    ("NixOS, all", "-F -d -D -g -R -j -n 0 -o 7.5 -s [127.0.0.1]:PORT -t TARGET -k KEY", InTheForeground),
    ("NixOS, weak", "-F -d -f -s [127.0.0.1]:PORT -t TARGET -k KEY", InTheForeground),
    // An image of a container puts its own before what it is given.
    ("container", "-F -k KEY -d -s [0.0.0.0]:PORT -t TARGET", InTheForeground),
    // Scripts of init.
    ("rc script", "-d -p run.pid -s [127.0.0.1]:PORT -t TARGET -k KEY", InTheBackground("run.pid")),
    (
        "rc script, all",
        "-e -g -j -n 20 -o 10 -p run.pid -s [127.0.0.1]:PORT -t TARGET -k KEY -r 30",
        InTheBackground("run.pid"),
    ),
    (
        "init script",
        "-e -s [127.0.0.1]:PORT -t TARGET -k KEY -p run.pid --syslog",
        InTheBackground("run.pid"),
    ),
    ("at boot", "-DR -e -s [127.0.0.1]:PORT -t TARGET -k KEY", InTheBackground("[127.0.0.1]:PORT.pid")),
    // Other forms of the manual page.
    ("packed", "-DFjd -n0x10 -o.5 -r0 -s[127.0.0.1]:PORT -tTARGET -kKEY --", InTheForeground),
    ("name", "-e -s localhost:PORT -t TARGET -k KEY", InTheBackground("localhost:PORT.pid")),
    ("IPv4 through IPv6", "-d -s [::]:PORT -t TARGET -k KEY", InTheBackground("[::]:PORT.pid")),
    ("as root", "-d -s [127.0.0.1]:PORT -t TARGET -k KEY -p run.pid -u nobody", InTheBackground("run.pid")),
];

/// Runs one of [`PUBLISHED`], and asserts that it stays where it is to stay, with its pid file, and carries bytes to or from
/// Debian's spiped.
fn assert_serves(whose: Whose, (form, line, stays): (&str, &str, Stays)) {
    let case = format!("{whose:?}, {form}");
    let site = Site::with_key();
    let port = Port::reserve();
    let number = port.number().to_string();
    let is_initiator = line.split(' ').any(|word| word == "-e");
    // The other end, at a socket whose path is as absolute as spiped wants it.
    let (far_target, near_source) = (site.name("far"), format!("[127.0.0.1]:{number}"));
    let mut far = Whose::Debian.spiped(&site);
    far.arg("-F").arg("-k").arg(site.path("test.key"));
    let target = if is_initiator {
        far.args(["-d", "-s", &far_target, "-t", &format!("[127.0.0.1]:{}", echo().port())]);
        far_target
    } else {
        far.args(["-e", "-s", &far_target, "-t", &near_source]);
        format!("localhost:{}", echo().port())
    };
    let _far = Process::start(&mut far);
    let fill_in = |text: &str| {
        text.replace("PORT", &number).replace("TARGET", &target).replace("KEY", &site.name("test.key"))
    };
    let mut near = whose.spiped(&site);
    near.args(line.split(' ').map(fill_in));
    let files = || {
        let files = std::fs::read_dir(site.path("")).expect("the directory is there");
        let names = files.map(|file| file.expect("it can be read").file_name().into_string().expect("UTF-8"));
        names
            .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "pid"))
            .collect::<Vec<_>>()
    };
    // Either is stopped when it goes out of scope.
    let (_foreground, _background) = match stays {
        InTheForeground => (Some(Process::start(&mut near)), None),
        InTheBackground(pid_file) => {
            assert_eq!(returns(&mut near), Some(0), "{case}");
            let pid_file = fill_in(pid_file);
            let daemon = Daemon::of(&site.path(&pid_file));
            assert_eq!(files(), [pid_file], "{case}");
            assert_eq!(daemon.name(), "spiped", "{case}");
            (None, Some(daemon))
        }
    };
    // Each has listened before the other connects to it.
    drop(await_listening(&site, "far"));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
    let mut at_near = poll_until(&format!("{case}: it listens"), || try_connect(address).ok());
    if is_initiator {
        assert_echoes(&mut at_near, "from a published command line");
    } else {
        let mut at_far = await_listening(&site, "far");
        assert_echoes(&mut at_far, "from a published command line");
    }
    if stays == InTheForeground {
        assert!(files().is_empty(), "{case}: {:?}", files());
    }
}

#[test]
fn published_command_lines_do_in_spiped_what_this_test_says() {
    for published in PUBLISHED {
        assert_serves(Whose::Debian, published);
    }
}

#[test]
fn published_command_lines_do_the_same_with_us() {
    for published in PUBLISHED {
        assert_serves(Whose::Ours, published);
    }
}

/// Asserts that both programs end in the same way: exit code, and which stream has said what kind of thing.
#[track_caller]
fn assert_both_end(site: &Site, command: impl Fn(Whose) -> Command, code: i32, says_usage: bool) {
    for whose in BOTH {
        let mut command = command(whose);
        let case = format!("{command:?}");
        let ended = run(&mut command);
        assert_eq!((ended.code, &*ended.stdout), (Some(code), &b""[..]), "{case}: {ended:?}");
        assert_eq!(ended.stderr.contains("usage: "), says_usage, "{case}: {ended:?}");
        assert!(
            ended.stderr.starts_with("spipe") || ended.stderr.starts_with("usage: spipe"),
            "{case}: {ended:?}"
        );
        assert!(!site.path("pid").exists(), "{case} leaves a pid file");
    }
}

/// A command line that would be served.
fn valid(site: &Site) -> Vec<String> {
    let (source, key) = (site.name("source"), site.name("test.key"));
    ["-e", "-s", &source, "-t", "[127.0.0.1]:9", "-k", &key, "-p", "pid"].map(ToOwned::to_owned).to_vec()
}

#[test]
fn mistakes_of_use_end_both_with_1_and_the_usage_on_standard_error() {
    let site = Site::with_key();
    for mistake in [
        "-z",
        "-h",
        "--help",
        "--version",
        "--syslog=1",
        "--sys",
        "-Fz",
        "-e",
        "-d",
        "-s /x",
        "-t [::1]:1",
        "-k x",
        "-p x",
        "-D -D",
        "-FF",
        "-j -j",
        "-n1 -n1",
        "-o1 -o2",
        "-r1 -r1",
        "-R -R",
        "-f -g",
        "-g -g",
        "-f -f",
        "-R -r 5",
        "--syslog --syslog",
        "-u x -u x",
        "-n",
        "-o",
        "operand",
        "-",
        "-- -F",
        "-- operand",
        "-s",
        "-zv",
    ] {
        let words = mistake.split(' ').map(ToOwned::to_owned);
        let arguments: Vec<_> = valid(&site).into_iter().chain(words).collect();
        let command = |whose: Whose| {
            let mut command = whose.spiped(&site);
            command.args(&arguments);
            command
        };
        assert_both_end(&site, command, 1, true);
    }
}

#[test]
fn a_command_line_without_what_it_takes_ends_both_with_the_usage() {
    let site = Site::with_key();
    for missing in ["-e", "-s", "-t", "-k"] {
        let mut arguments = valid(&site);
        let at = arguments.iter().position(|argument| argument == missing).expect("it is there");
        arguments.drain(at..at + if missing == "-e" { 1 } else { 2 });
        let command = |whose: Whose| {
            let mut command = whose.spiped(&site);
            command.args(&arguments);
            command
        };
        assert_both_end(&site, command, 1, true);
    }
    assert_both_end(&site, |whose| whose.spiped(&site), 1, true);
}

#[test]
fn the_version_is_on_standard_error_of_both_whatever_follows() {
    let site = Site::new();
    for arguments in [&["-v"][..], &["-v", "-z"], &["-Dv"], &["-e", "-v", "-e"]] {
        for whose in BOTH {
            let ended = run(whose.spiped(&site).args(arguments)).succeeded();
            assert_eq!(ended.text(), "");
            assert!(ended.stderr.starts_with("spiped 1."), "{whose:?}: {ended:?}");
        }
    }
}

#[test]
fn what_cannot_be_started_ends_both_with_1_before_the_background() {
    let (site, taken) = (Site::with_key(), Service::start());
    let taken = format!("[127.0.0.1]:{}", taken.address().port());
    for (option, value) in [
        ("-k", "no-such-key"),
        ("-k", "/"),
        ("-s", "no-port"),
        ("-s", "[127.0.0.1]:0"),
        ("-s", "[127.0.0.1]:65536"),
        ("-s", ":80"),
        ("-s", "localhost:no-such-service"),
        ("-s", "no-such-host.invalid:80"),
        ("-s", "/no/such/directory/socket"),
        ("-s", &taken),
        ("-t", "[127.0.0.1]"),
        ("-t", "no-such-host.invalid:80"),
        ("-p", "/no/such/directory/pid"),
        ("-n", "many"),
        ("-n", "0x"),
        ("-n", ""),
        ("-o", "soon"),
        ("-o", "-1"),
        ("-r", "1,5"),
    ] {
        let mut arguments = valid(&site);
        match arguments.iter().position(|argument| argument == option) {
            Some(at) => value.clone_into(&mut arguments[at + 1]),
            None => arguments.extend([option.to_owned(), value.to_owned()]),
        }
        let command = |whose: Whose| {
            let mut command = whose.spiped(&site);
            command.args(&arguments);
            command
        };
        assert_both_end(&site, command, 1, false);
        assert!(!site.path("source").exists(), "{option} {value}");
    }
}

/// Our spiped in the background at the source `name` in `site`.
fn start(site: &Site, name: &str, options: &[&str]) -> Ended {
    let mut command = Whose::Ours.spiped(site);
    command.args(["-e", "-s", &site.name(name), "-t", "[127.0.0.1]:9", "-k", &site.name("test.key")]);
    run(command.args(options))
}

#[test]
fn the_pid_file_of_a_unix_domain_source_is_beside_it() {
    let site = Site::with_key();
    assert_eq!(start(&site, "source", &[]).code, Some(0));
    Daemon::of(&site.path("source.pid")).stop();
    assert!(!site.path("source.pid").exists() && !site.path("source").exists(), "both go at the end");
}

#[test]
fn a_process_that_waits_for_the_name_of_its_source_can_be_stopped() {
    let site = Site::with_key();
    for whose in BOTH {
        let mut command = whose.spiped(&site);
        command.args([
            "-D",
            "-e",
            "-s",
            "no-such-host.invalid:80",
            "-t",
            "neither.invalid:80",
            "-p",
            "pid",
            "-k",
        ]);
        assert_eq!(returns(command.arg(site.path("test.key"))), Some(0), "{whose:?}");
        let daemon = Daemon::of(&site.path("pid"));
        assert!(daemon.runs(), "{whose:?}");
        kill_process(daemon.0, if whose == Whose::Ours { Signal::TERM } else { Signal::KILL })
            .expect("it runs");
        poll_until("it ends", || (!daemon.runs()).then_some(()));
        let _ = std::fs::remove_file(site.path("pid"));
    }
}

#[test]
fn a_stop_lets_connections_go_on_and_a_second_one_ends_them() {
    let (site, service) = (Site::with_key(), Service::start());
    // Ours: Debian's would give the service a connection as soon as somebody looks whether it listens.
    let mut command = Whose::Ours.spiped(&site);
    let target = format!("[127.0.0.1]:{}", service.address().port());
    command.args(["-F", "-d", "-s", &site.name("far"), "-t", &target, "-k", "test.key"]);
    let far = Process::start(&mut command);
    far.await_line(&["listening"]);
    let mut command = Whose::Ours.spiped(&site);
    command
        .args(["-F", "-e", "-s", &site.name("near"), "-t", &site.name("far"), "-k"])
        .arg(site.path("test.key"));
    let mut near = Process::start(&mut command);
    near.await_line(&["listening"]);
    let mut client = connect_unix(&site.path("near")).expect("it listens");
    client.write_all(b"before").expect("it is connected");
    let mut served = service.accept();
    served.read_exact(&mut [0; 6]).expect("it arrives");
    near.signal(Signal::TERM);
    near.await_line(&["stopping: letting connections finish"]);
    client.write_all(b"after").expect("it is connected");
    served.read_exact(&mut [0; 5]).expect("it arrives");
    near.signal(Signal::TERM);
    assert_eq!(near.wait().code(), Some(0));
}

#[test]
fn a_hang_up_reads_the_key_again() {
    let site = Site::with_key();
    let mut command = Whose::Ours.spiped(&site);
    command.args(["-F", "-e", "-s", &site.name("source"), "-t", "[127.0.0.1]:9", "-k", "test.key"]);
    let process = Process::start(&mut command);
    process.await_line(&["listening"]);
    std::fs::remove_file(site.path("test.key")).expect("it is there");
    let key = site.add_key("test.key");
    process.reload_successfully();
    process.await_line(&["listening", &key]);
}

#[test]
fn a_socket_that_a_killed_process_has_left_behind_is_in_spipeds_way_only() {
    for (whose, code) in [(Whose::Debian, 1), (Whose::Ours, 0)] {
        let site = Site::with_key();
        drop(UnixListener::bind(site.path("source")).expect("the path is free"));
        let ended = run(whose.spiped(&site).args(valid(&site)));
        assert_eq!(ended.code, Some(code), "{whose:?}: {ended:?}");
        if code == 0 {
            Daemon::of(&site.path("pid")).stop();
        }
    }
}

#[test]
fn an_unknown_user_is_told_before_the_background_by_us_and_to_nobody_by_spiped() {
    let site = Site::with_key();
    let ended = start(&site, "source", &["-u", "no-such-user"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("there is no user 'no-such-user'"), "{ended:?}");
    let ended = run(Whose::Debian.spiped(&site).args(valid(&site)).args(["-u", "no-such-user"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_key_that_others_can_read_is_taken_with_a_warning() {
    let site = Site::with_key();
    std::fs::set_permissions(site.path("test.key"), std::fs::Permissions::from_mode(0o644))
        .expect("it is ours");
    let ended = start(&site, "source", &["-p", "pid"]).succeeded();
    let warnings = ended.stderr.matches("spiped: warning: others can read the key").count();
    assert_eq!(warnings, 1, "{ended:?}");
    Daemon::of(&site.path("pid")).stop();
}

#[test]
fn a_key_of_any_length_is_taken() {
    let site = Site::with_key();
    for key in [&b""[..], b"short", &[7; 10_000]] {
        std::fs::write(site.path("test.key"), key).expect("it can be written");
        start(&site, "source", &["-p", "pid"]).succeeded();
        Daemon::of(&site.path("pid")).stop();
    }
}

#[test]
fn a_key_on_standard_input_is_read_before_the_background() {
    let site = Site::with_key();
    let mut command = Whose::Ours.spiped(&site);
    command.args(["-e", "-s", &site.name("source"), "-t", "[127.0.0.1]:9", "-k", "-", "-p", "pid"]);
    run_with_input(&mut command, vec![7; 32]).succeeded();
    Daemon::of(&site.path("pid")).stop();
}

#[test]
fn a_standard_error_that_is_full_is_no_reason_not_to_start() {
    let site = Site::with_key();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let mut command = Whose::Ours.spiped(&site);
    command.args(valid(&site)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(full);
    assert!(command.status().expect("it starts").success());
    Daemon::of(&site.path("pid")).stop();
}

#[test]
fn of_many_that_start_at_one_source_at_once_one_serves() {
    let site = Site::with_key();
    let starting: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..20).map(|_| scope.spawn(|| start(&site, "source", &[]).code)).collect();
        starts.into_iter().map(|start| start.join().expect("it does not panic")).collect()
    });
    let _daemon = Daemon::of(&site.path("source.pid"));
    assert_eq!(starting.iter().filter(|code| **code == Some(0)).count(), 1, "{starting:?}");
    assert_eq!(starting.iter().filter(|code| **code == Some(1)).count(), 19, "{starting:?}");
}

/// spiped in the foreground on `host`, with its key and these options.
fn on(host: &Host, site: &Site, whose: Whose, options: &[&str]) -> Process {
    let mut command = whose.spiped(site);
    command.args(["-F", "-e", "-k", &site.name("test.key")]).args(options);
    Process::start(&mut host.command(&command))
}

#[test]
fn of_a_source_s_name_with_several_addresses_the_first_is_listened_on_and_both_say_so() {
    let (host, site) = (Host::start(), Site::with_key());
    host.set_names("127.0.0.2 several.test\n127.0.0.3 several.test");
    let options = ["-s", "several.test:8025", "-t", "[127.0.0.1]:9"];
    let debians = on(&host, &site, Whose::Debian, &options);
    debians.await_line(&["first of multiple addresses", "several.test"]);
    debians.kill();
    let ours = on(&host, &site, Whose::Ours, &options);
    let warning = ours.await_line(&["spiped: warning", "first of several addresses of several.test"]);
    let listening = ours.await_line(&["INFO listening"]);
    let first = warning.rsplit_once(' ').expect("the address is the last word").1;
    assert_eq!(field(&listening, "source"), first);
    // What is told after all places where it listens.
    ours.await_line(&["spiped's protocol cannot tell"]);
    assert_eq!(ours.log().matches("INFO listening").count(), 1, "{}", ours.log());
}

#[test]
fn with_d_every_name_may_be_one_that_resolves_later() {
    let (host, site) = (Host::start(), Site::with_key());
    host.go_dark();
    let ours = on(
        &host,
        &site,
        Whose::Ours,
        &["-D", "-s", "near.test:8025", "-t", "far.test:8025", "-b", "from.test"],
    );
    ours.await_line(&["not listening yet: the name does not resolve", "near.test"]);
    host.answer_again();
    host.set_names("127.0.0.2 near.test");
    ours.await_line(&["INFO listening", "source=[127.0.0.2]:8025"]);
}

#[test]
fn without_d_every_name_has_to_resolve() {
    let (host, site) = (Host::start(), Site::with_key());
    host.set_names("127.0.0.2 known.test");
    for (unknown, source, target, bind) in [
        ("near", "near.test:8025", "known.test:8026", "known.test"),
        ("far", "known.test:8025", "far.test:8026", "known.test"),
        ("from", "known.test:8025", "known.test:8026", "from.test"),
    ] {
        let mut ours = on(&host, &site, Whose::Ours, &["-s", source, "-t", target, "-b", bind]);
        assert_eq!(ours.wait().code(), Some(1), "{unknown}");
        assert!(ours.log().contains(&format!("spiped: cannot resolve '{unknown}.test'")), "{}", ours.log());
    }
}

/// Debian's spiped at the socket `far` of `site`, as the responder of an echo service.
fn responder(site: &Site) -> Process {
    let mut command = Whose::Debian.spiped(site);
    let service = format!("[127.0.0.1]:{}", echo().port());
    command.args(["-F", "-d", "-s", &site.name("far"), "-t", &service, "-k"]).arg(site.path("test.key"));
    let process = Process::start(&mut command);
    drop(await_listening(site, "far"));
    process
}

#[test]
fn spipe_in_libexec_carries_standard_input_and_output() {
    let site = Site::with_key();
    let _responder = responder(&site);
    for whose in BOTH {
        for options in [&[][..], &["-f"], &["-g", "-j", "-o", "2.5"]] {
            let mut command = whose.spipe(&site);
            command.args(["-t", &site.name("far"), "-k", "test.key"]).args(options);
            let ended = run_with_input(&mut command, b"there and back".to_vec()).succeeded();
            assert_eq!((&*ended.text(), &*ended.stderr), ("there and back", ""), "{whose:?} {options:?}");
        }
    }
}

#[test]
fn spipe_in_libexec_reads_a_key_from_standard_input_and_sends_nothing_then() {
    let site = Site::with_key();
    let _responder = responder(&site);
    let key = std::fs::read(site.path("test.key")).expect("it can be read");
    for whose in BOTH {
        let ended =
            run_with_input(whose.spipe(&site).args(["-t", &site.name("far"), "-k", "-"]), key.clone());
        assert_eq!(ended.succeeded().text(), "", "{whose:?}");
    }
}

#[test]
fn spipe_in_libexec_fails_as_spipeds_does() {
    let site = Site::with_key();
    let _responder = responder(&site);
    site.add_key("other.key");
    let (far, nowhere) = (site.name("far"), site.name("nowhere"));
    for (arguments, says_usage) in [
        (&[][..], true),
        (&["-t", &far], true),
        (&["-k", "test.key"], true),
        (&["-t", &far, "-k", "test.key", "-F"], true),
        (&["-t", &far, "-k", "test.key", "-e"], true),
        (&["-t", &far, "-k", "test.key", "-f", "-g"], true),
        (&["-t", &far, "-k", "test.key", "operand"], true),
        (&["-t", &far, "-k", "no-such-key"], false),
        (&["-t", &far, "-k", "test.key", "-o", "soon"], false),
        (&["-t", &far, "-k", "other.key"], false),
        (&["-t", &nowhere, "-k", "test.key"], false),
        (&["-t", "no-such-host.invalid:80", "-k", "test.key"], false),
    ] {
        let command = |whose: Whose| {
            let mut command = whose.spipe(&site);
            command.args(arguments);
            command
        };
        assert_both_end(&site, command, 1, says_usage);
    }
}

#[test]
fn spipe_elsewhere_is_our_own_however_it_is_found() {
    let site = Site::new();
    installed(&site, "bin/spipe");
    installed(&site, "libexec/spipe");
    for (directory, version) in [("bin", "spipe 0."), ("libexec", "spipe 1.")] {
        let by_path = run(Command::new("/bin/sh").args(["-c", "spipe -v"]).env("PATH", site.path(directory)))
            .succeeded();
        let beside = run(Command::new("./spipe").arg("-v").current_dir(site.path(directory))).succeeded();
        for ended in [by_path, beside] {
            let said = ended.text() + &ended.stderr;
            assert!(said.starts_with(version), "{directory}: {said}");
        }
    }
}
