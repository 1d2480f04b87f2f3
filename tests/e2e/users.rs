//! A change to another user (-u). As root, the tests cover all of it; otherwise they cover only that it is refused.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use rustix::process::{Signal, geteuid};

use crate::support::pipe::{End, EndBuilder, Key};
use crate::support::process::{Process, run, spipe};
use crate::support::site::Site;
use crate::support::socket::{assert_echoes, connect, echo};

/// Starts `end` as `user`. Without root rights, asserts that this is refused with a remedy, and returns `None`.
fn start_as(user: &str, end: EndBuilder) -> Option<End> {
    let end = end.args(&["-u", user]);
    if geteuid().is_root() {
        return Some(end.start());
    }
    run(&mut end.command()).failed_with_last_line(1, &["-u", "cannot", "start spipe as root"]);
    None
}

/// The values of the field `name` in the status of `process`.
fn status(process: &Process, name: &str) -> Vec<String> {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("/proc has this field");
    line.trim_start_matches(':').split_whitespace().map(ToOwned::to_owned).collect()
}

/// The id of a user or group, from `database`.
fn number(database: &str, name: &str) -> String {
    let ended = run(Command::new("getent").args([database, name])).succeeded();
    ended.text().split(':').nth(2).expect("a number").to_owned()
}

#[test]
fn user_group_and_all_other_groups_change_and_the_pipe_serves() {
    let key = Key::new();
    let Some(responder) = start_as("nobody", End::responder(&key, echo())) else { return };
    let (uid, gid) = (number("passwd", "nobody"), run(Command::new("id").args(["-g", "nobody"])).text());
    assert_eq!(status(&responder.process, "Uid"), [&*uid; 4]);
    assert_eq!(status(&responder.process, "Gid"), [&*gid; 4]);
    assert_eq!(status(&responder.process, "Groups"), [gid]);
    // No right of root is left.
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(status(&responder.process, set), ["0000000000000000"], "{set}");
    }
    let initiator = End::initiator(&key, responder.address()).start();
    assert_echoes(&mut initiator.connect(), "hello");
}

#[test]
fn every_thread_changes_its_user() {
    let key = Key::new();
    let Some(responder) = start_as("nobody", End::responder(&key, echo())) else { return };
    let uid = number("passwd", "nobody");
    let initiator = End::initiator(&key, responder.address()).start();
    assert_echoes(&mut initiator.connect(), "hello");
    let tasks = format!("/proc/{}/task", responder.process.pid());
    let mut threads = 0;
    for task in std::fs::read_dir(tasks).expect("the process runs") {
        let status = std::fs::read_to_string(task.expect("the process runs").path().join("status"))
            .expect("the process runs");
        let line = status.lines().find(|line| line.starts_with("Uid:")).expect("/proc has this field");
        assert_eq!(line, format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"));
        threads += 1;
    }
    assert!(threads > 1, "only one thread");
}

#[test]
fn a_group_can_be_given() {
    let Some(end) = start_as("nobody:daemon", End::initiator(&Key::new(), "127.0.0.1:9")) else { return };
    let gid = number("group", "daemon");
    assert_eq!(status(&end.process, "Uid"), [&*number("passwd", "nobody"); 4]);
    assert_eq!(status(&end.process, "Gid"), [&*gid; 4]);
    assert_eq!(status(&end.process, "Groups"), [gid]);
}

#[test]
fn a_group_alone_does_not_change_the_user() {
    let Some(end) = start_as(":daemon", End::initiator(&Key::new(), "127.0.0.1:9")) else { return };
    assert_eq!(status(&end.process, "Uid"), ["0"; 4]);
    assert_eq!(status(&end.process, "Gid"), [&*number("group", "daemon"); 4]);
}

#[test]
fn numbers_without_a_user_or_group_are_accepted() {
    let Some(end) = start_as("54321:54322", End::initiator(&Key::new(), "127.0.0.1:9")) else { return };
    assert_eq!(status(&end.process, "Uid"), ["54321"; 4]);
    assert_eq!(status(&end.process, "Gid"), ["54322"; 4]);
    assert_eq!(status(&end.process, "Groups"), ["54322"]);
}

#[test]
fn a_configuration_can_set_the_user() {
    if !geteuid().is_root() {
        return;
    }
    let site = Site::with_key();
    let process = site.serve("user = \"nobody\"\n".to_owned() + &site.encrypt("a", "127.0.0.1:9"));
    assert_eq!(status(&process, "Uid"), [&*number("passwd", "nobody"); 4]);
}

#[test]
fn the_new_user_cannot_read_the_memory() {
    let Some(end) = start_as("nobody", End::initiator(&Key::new(), "127.0.0.1:9")) else { return };
    // The files of a process that is not dumpable belong to root, whatever its user (proc(5)).
    let memory = std::fs::metadata(format!("/proc/{}/mem", end.process.pid())).expect("the process runs");
    assert_eq!((memory.uid(), memory.gid()), (0, 0));
}

#[test]
fn a_key_that_only_root_can_read_stays_in_force_when_a_reload_cannot_read_it() {
    let key = Key::new();
    let Some(responder) = start_as("nobody", End::responder(&key, echo())) else { return };
    let initiator = End::initiator(&key, responder.address()).start();
    responder.process.fail_to_reload(&["cannot read the key", "Permission denied"]);
    assert_echoes(&mut initiator.connect(), "as before");
}

#[test]
fn a_key_that_the_new_user_can_read_is_read_again() {
    let (key, site) = (Key::new(), Site::new());
    if !geteuid().is_root() {
        return;
    }
    let owner: u32 = number("passwd", "nobody").parse().expect("a number");
    std::fs::copy(key.path(), site.path("test.key")).expect("the file can be copied");
    std::os::unix::fs::chown(site.path("test.key"), Some(owner), None).expect("root may change the owner");
    std::os::unix::fs::chown(site.path(""), Some(owner), None).expect("root may change the owner");
    let mut command = spipe();
    command.args(["-d", "-s", "127.0.0.1:0", "-t", &echo().to_string(), "-u", "nobody", "-k"]);
    let process = Process::start(command.arg(site.path("test.key")));
    let line = process.await_line(&["listening"]);
    process.reload_successfully();
    let address = crate::support::pipe::field(&line, "source").to_owned();
    let initiator = End::initiator(&key, address).start();
    assert_echoes(&mut connect(initiator.address()), "hello");
}

/// A directory that all users can read, but only its owner can write, such as /run.
fn site_that_all_can_read() -> Site {
    let site = Site::new();
    std::fs::set_permissions(site.path(""), std::fs::Permissions::from_mode(0o755))
        .expect("the mode can be changed");
    site
}

#[test]
fn a_pid_file_that_the_new_user_cannot_remove_stays_and_is_taken_over() {
    let (site, key) = (site_that_all_can_read(), Key::new());
    let start = || start_as("nobody", End::initiator(&key, "127.0.0.1:9").args(&["-p", &site.name("pid")]));
    for _ in 0..2 {
        let Some(mut end) = start() else { return };
        let content = || std::fs::read_to_string(site.path("pid")).expect("the file exists");
        let id = format!("{}\n", end.process.pid());
        assert_eq!(content(), id);
        end.process.signal(Signal::TERM);
        assert_eq!(end.process.wait().code(), Some(0));
        end.await_line(&["WARN cannot remove the pid file", "Permission denied"]);
        assert_eq!(content(), id);
    }
}

#[test]
fn a_socket_that_the_new_user_cannot_remove_is_replaced_at_the_next_start() {
    let (site, key) = (site_that_all_can_read(), Key::new());
    let start = || start_as("nobody", End::initiator(&key, "127.0.0.1:9").source(site.socket("plain")));
    for _ in 0..2 {
        let Some(mut end) = start() else { return };
        site.connect("plain");
        end.process.signal(Signal::TERM);
        assert_eq!(end.process.wait().code(), Some(0));
    }
}

#[test]
fn unknown_users_and_groups_are_refused() {
    let key = Key::new();
    for (user, what) in
        [("no-such-user", "user"), ("root:no-such-group", "group"), (":no-such-group", "group")]
    {
        let name = user.rsplit(':').next().expect("a name");
        let end = End::initiator(&key, "127.0.0.1:9").args(&["-u", user]);
        run(&mut end.command()).failed_with_last_line(
            1,
            &[&format!("there is no {what} '{name}'"), "create it or choose another"],
        );
    }
}

#[test]
fn a_number_of_no_user_without_a_group_is_refused() {
    let key = Key::new();
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-u", "54321"]);
    run(&mut end.command()).failed_with_last_line(1, &["its group is not known", "write 54321:GROUP"]);
}

#[test]
fn an_unknown_user_leaves_no_socket_and_no_pid_file() {
    let (key, site) = (Key::new(), Site::new());
    let end = End::initiator(&key, "127.0.0.1:9").source(site.socket("plain"));
    run(&mut end.args(&["-u", "no-such-user", "-p", &site.name("pid")]).command())
        .failed_with_last_line(1, &["no-such-user"]);
    assert!(!site.path("plain.sock").exists() && !site.path("pid").exists());
}

#[test]
fn without_the_right_to_change_users_it_is_refused_with_a_remedy() {
    let key = Key::new();
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-u", "nobody"]);
    let mut command = end.command();
    if geteuid().is_root() {
        // Root without the capabilities to change users and groups.
        let mut without = Command::new("setpriv");
        without.args(["--bounding-set=-setuid,-setgid", "--inh-caps=-all"]);
        without.arg(command.get_program()).args(command.get_args());
        command = without;
    }
    run(&mut command)
        .failed_with_last_line(1, &["-u nobody: cannot", "start spipe as root, or leave -u out"]);
}

#[test]
fn the_user_that_it_runs_as_is_accepted_without_the_right_to_change_users() {
    let (site, key) = (site_that_all_can_read(), Key::new());
    let copy = site.path("copy.key");
    std::fs::copy(key.path(), &copy).expect("the file can be copied");
    std::os::unix::fs::chown(&copy, Some(65_534), Some(65_534)).expect("root may change the owner");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(spipe().get_program());
    command.args(["-e", "-s", "127.0.0.1:0", "-t", "127.0.0.1:9", "-u", "65534:65534", "-k"]).arg(&copy);
    let mut process = Process::start(&mut command);
    process.await_line(&["listening"]);
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
}
