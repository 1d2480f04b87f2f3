//! `spipe unit`: the parent of a process that serves, which systemd watches in its place. (`tests/hosts/restarts.rs` has systemd.)

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::manager::Manager;
use crate::support::poll_until;
use crate::support::process::{Process, after, run, spipe};
use crate::support::site::Site;
use crate::support::socket::{assert_echoes, connect, echo};

/// A site with the pipe `a`, whose processes hand over.
fn site() -> Site {
    let site = Site::with_key();
    site.configure(format!("hand-over = \"hand-over\"\n{}", site.both_ends("a", echo())));
    site
}

/// `spipe unit start run FILE`.
fn command(site: &Site) -> Command {
    let mut command = spipe();
    command.args(["unit", "start", "run"]).arg(site.file());
    command
}

/// A parent, and its child, which does not outlive the test.
struct Family {
    parent: Process,
    child: Pid,
}

impl Family {
    /// Waits until the child of `parent` serves.
    fn of(parent: Process) -> Self {
        parent.await_line(&["listening", "pipe=\"a\""]);
        let pid = parent.pid();
        let children =
            fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("the parent runs");
        let child = children.trim().parse().ok().and_then(Pid::from_raw).expect("one child");
        Self { parent, child }
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        let _ = kill_process(self.child, Signal::KILL);
    }
}

fn start(site: &Site) -> Family {
    Family::of(Process::start(&mut command(site)))
}

/// Whether the process runs. A zombie does not.
fn runs(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn await_end(process: Pid) {
    poll_until("the process ends", || (!runs(process)).then_some(()));
}

/// A directory with a systemctl in it that lists `jobs`.
fn systemctl(site: &Site, jobs: &str) -> String {
    let path = site.path("systemctl");
    fs::write(&path, format!("#!/bin/sh\necho '{jobs}'\n")).expect("it can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    site.name("")
}

/// `spipe unit stop` for the unit `x.service` with these `jobs` and this main process.
fn stop(site: &Site, jobs: &str, main: &str) -> Command {
    let mut command = spipe();
    command.args(["unit", "stop", "--unit", "x.service", "--hand-over"]).arg(site.path("hand-over"));
    command.env("PATH", format!("{}:/usr/bin:/bin", systemctl(site, jobs))).env("MAINPID", main);
    command
}

#[test]
fn sigterm_stops_the_child_and_then_the_parent_ends() {
    let site = site();
    let mut family = start(&site);
    let parent = &mut family.parent;
    assert_echoes(&mut site.connect("a"), "served");
    parent.signal(Signal::TERM);
    assert_eq!(parent.wait().code(), Some(0));
    parent.await_line(&["INFO stopped"]);
    assert!(!site.path("hand-over").exists());
}

#[test]
fn sighup_has_the_child_reload() {
    let site = site();
    start(&site).parent.reload_successfully();
}

#[test]
fn the_parent_ends_as_the_child_does() {
    let site = Site::with_key();
    site.configure("nonsense");
    run(&mut command(&site)).failed_with(1, &["pipes.toml"]);
    run(spipe().args(["unit", "start", "--no-such-option"])).failed_with(2, &["--no-such-option"]);
    run(spipe().args(["unit", "start", "--version"])).succeeded();
}

#[test]
fn a_child_that_is_killed_is_an_error() {
    let site = site();
    let mut family = start(&site);
    kill_process(family.child, Signal::KILL).expect("it runs");
    let parent = &mut family.parent;
    assert_eq!(parent.wait().code(), Some(1));
    assert!(
        parent.log().ends_with("spipe: the process that served was ended by signal 9"),
        "{}",
        parent.log()
    );
}

#[test]
fn sigabrt_kills_a_child_that_hangs() {
    let site = site();
    let mut family = start(&site);
    kill_process(family.child, Signal::STOP).expect("it runs");
    let parent = &mut family.parent;
    parent.signal(Signal::TERM);
    parent.signal(Signal::ABORT);
    assert_eq!(parent.wait().code(), Some(1));
    assert!(parent.log().contains("it was killed"), "{}", parent.log());
}

#[test]
fn a_parent_that_steps_aside_leaves_a_child_that_serves_until_the_next_one_does() {
    let site = site();
    let family = start(&site);
    let (parent, first) = (&family.parent, family.child);
    let mut client = site.connect("a");
    assert_echoes(&mut client, "before");
    run(&mut stop(&site, "7 x.service restart running", &parent.pid().to_string())).succeeded();
    await_end(parent.pid());
    assert_echoes(&mut site.connect("a"), "without a parent");
    let next = start(&site);
    next.parent.await_line(&["took over", &format!("from={first}")]);
    assert_echoes(&mut client, "afterwards");
    drop(client);
    await_end(first);
    assert_echoes(&mut site.connect("a"), "by the next one");
}

#[test]
fn a_unit_that_is_stopped_and_not_restarted_leaves_nothing() {
    let site = site();
    let mut family = start(&site);
    let parent = &mut family.parent;
    for jobs in ["7 x.service stop running", "7 y.service restart running", ""] {
        let said = run(&mut stop(&site, jobs, &parent.pid().to_string())).succeeded().text();
        assert_eq!(said, "", "{jobs}");
    }
    parent.signal(Signal::TERM);
    assert_eq!(parent.wait().code(), Some(0));
    parent.await_line(&["INFO stopped"]);
}

#[test]
fn a_child_that_nobody_can_take_over_from_is_not_left_behind() {
    let site = Site::with_key();
    site.configure(site.both_ends("a", echo()));
    let mut family = start(&site);
    let parent = &mut family.parent;
    let pid = parent.pid().to_string();
    let said = run(&mut stop(&site, "7 x.service restart running", &pid)).succeeded().text();
    assert!(said.contains("is stopped first") && said.contains("nobody serves at"), "{said}");
    parent.signal(Signal::TERM);
    assert_eq!(parent.wait().code(), Some(0));
}

#[test]
fn a_process_that_is_no_parent_is_not_ended_by_a_restart_of_its_unit() {
    let site = site();
    let process = site.serve(fs::read_to_string(site.file()).expect("the file can be read"));
    run(&mut stop(&site, "7 x.service restart running", &process.pid().to_string())).succeeded();
    assert_echoes(&mut site.connect("a"), "it goes on");
    run(&mut stop(&site, "7 x.service restart running", "")).failed_with(1, &["MAINPID", "ExecStop="]);
}

#[test]
fn sockets_that_systemd_has_passed_reach_the_child() {
    let site = site();
    let text = fs::read_to_string(site.file()).expect("the file can be read");
    site.configure(text.replace(&format!("source = \"{}\"", site.socket("a")), "source = \"systemd\""));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("the socket is bound");
    let mut shell = after("exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1", &command(&site));
    shell.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::piped());
    let _family = Family::of(Process::start_piped(&mut shell));
    assert_echoes(&mut connect(address), "through a passed socket");
}

#[test]
fn the_child_gives_the_signs_of_life() {
    let (site, manager) = (site(), Manager::start());
    let mut shell = after("WATCHDOG_PID=$$ WATCHDOG_USEC=1000000", &command(&site));
    let _family = Family::of(Process::start(shell.env("NOTIFY_SOCKET", manager.address())));
    manager.await_line("READY=1");
    manager.await_line("WATCHDOG=1");
}
