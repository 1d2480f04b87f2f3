//! Another user than the one who started it (-u). Root can have all of it tested; who is not root, that it is
//! refused.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use rustix::process::{Signal, geteuid};

use crate::support::pipe::{End, EndBuilder, Key};
use crate::support::process::{Process, run};
use crate::support::site::Site;
use crate::support::socket::{assert_echoes, connect, echo};

/// Starts `end` as `user`. None without the rights to do so; then it is refused, with what to do.
fn start_as(user: &str, end: EndBuilder) -> Option<End> {
    let end = end.args(&["-u", user]);
    if geteuid().is_root() {
        return Some(end.start());
    }
    run(&mut end.command()).failed_with_last_line(1, &["-u", "cannot", "start spipe as root"]);
    None
}

/// What the kernel says of `process`.
fn status(process: &Process, name: &str) -> Vec<String> {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("/proc has this field");
    line.trim_start_matches(':').split_whitespace().map(ToOwned::to_owned).collect()
}

/// The number of a user or group, from `database`.
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
    // No right of root's is left.
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(status(&responder.process, set), ["0000000000000000"], "{set}");
    }
    let initiator = End::initiator(&key, responder.address()).start();
    assert_echoes(&mut initiator.connect(), "hello");
}

#[test]
fn every_thread_changes() {
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
    assert!(threads > 1, "there are several");
}

#[test]
fn a_group_of_ones_choice() {
    let Some(end) = start_as("nobody:daemon", End::initiator(&Key::new(), "127.0.0.1:9")) else { return };
    let gid = number("group", "daemon");
    assert_eq!(status(&end.process, "Uid"), [&*number("passwd", "nobody"); 4]);
    assert_eq!(status(&end.process, "Gid"), [&*gid; 4]);
    assert_eq!(status(&end.process, "Groups"), [gid]);
}

#[test]
fn a_group_alone_leaves_the_user() {
    let Some(end) = start_as(":daemon", End::initiator(&Key::new(), "127.0.0.1:9")) else { return };
    assert_eq!(status(&end.process, "Uid"), ["0"; 4]);
    assert_eq!(status(&end.process, "Gid"), [&*number("group", "daemon"); 4]);
}

#[test]
fn numbers_that_belong_to_nobody() {
    let Some(end) = start_as("54321:54322", End::initiator(&Key::new(), "127.0.0.1:9")) else { return };
    assert_eq!(status(&end.process, "Uid"), ["54321"; 4]);
    assert_eq!(status(&end.process, "Gid"), ["54322"; 4]);
    assert_eq!(status(&end.process, "Groups"), ["54322"]);
}

#[test]
fn the_user_of_a_file_is_the_user() {
    if !geteuid().is_root() {
        return;
    }
    let site = Site::with_key();
    let process = site.serve("user = \"nobody\"\n".to_owned() + &site.encrypt("a", "127.0.0.1:9"));
    assert_eq!(status(&process, "Uid"), [&*number("passwd", "nobody"); 4]);
}

#[test]
fn memory_is_kept_from_the_new_user() {
    let Some(end) = start_as("nobody", End::initiator(&Key::new(), "127.0.0.1:9")) else { return };
    // The files of a process that cannot be dumped belong to root, whoever it runs as (proc(5)).
    let memory = std::fs::metadata(format!("/proc/{}/mem", end.process.pid())).expect("the process runs");
    assert_eq!((memory.uid(), memory.gid()), (0, 0));
}

#[test]
fn a_key_that_only_root_can_read_has_been_read_and_a_reload_without_it_keeps_the_old_state() {
    let key = Key::new();
    let Some(responder) = start_as("nobody", End::responder(&key, echo())) else { return };
    let initiator = End::initiator(&key, responder.address()).start();
    responder.process.fail_to_reload(&["cannot read the key", "Permission denied"]);
    assert_echoes(&mut initiator.connect(), "as before");
}

#[test]
fn a_key_of_the_new_user_is_read_again() {
    let (key, site) = (Key::new(), Site::new());
    if !geteuid().is_root() {
        return;
    }
    let owner: u32 = number("passwd", "nobody").parse().expect("a number");
    std::fs::copy(key.path(), site.path("test.key")).expect("the file can be copied");
    std::os::unix::fs::chown(site.path("test.key"), Some(owner), None).expect("root may change the owner");
    std::os::unix::fs::chown(site.path(""), Some(owner), None).expect("root may change the owner");
    let mut command = crate::support::process::spipe();
    command.args(["-d", "-s", "127.0.0.1:0", "-t", &echo().to_string(), "-u", "nobody", "-k"]);
    let process = Process::start(command.arg(site.path("test.key")));
    let line = process.await_line(&["listening"]);
    process.reload_successfully();
    let address = crate::support::pipe::field(&line, "source").to_owned();
    let initiator = End::initiator(&key, address).start();
    assert_echoes(&mut connect(initiator.address()), "hello");
}

/// A directory where everybody may look, and nobody but its owner write: as /run is.
fn open_to_look() -> Site {
    let site = Site::new();
    std::fs::set_permissions(site.path(""), std::fs::Permissions::from_mode(0o755))
        .expect("the mode can be changed");
    site
}

#[test]
fn a_pid_file_that_the_new_user_cannot_remove_names_nobody_at_the_end() {
    let (site, key) = (open_to_look(), Key::new());
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-p", &site.name("pid")]);
    let Some(mut end) = start_as("nobody", end) else { return };
    let content = || std::fs::read_to_string(site.path("pid")).expect("the file exists");
    assert_eq!(content(), format!("{}\n", end.process.pid()));
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    assert_eq!(content(), "");
}

#[test]
fn a_socket_that_the_new_user_cannot_remove_is_in_nobodys_way() {
    let (site, key) = (open_to_look(), Key::new());
    let start = || start_as("nobody", End::initiator(&key, "127.0.0.1:9").source(site.socket("plain")));
    for _ in 0..2 {
        let Some(mut end) = start() else { return };
        site.connect("plain");
        end.process.signal(Signal::TERM);
        assert_eq!(end.process.wait().code(), Some(0));
    }
}

#[test]
fn who_does_not_exist_is_refused() {
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
fn a_number_without_a_group_that_belongs_to_nobody_is_refused() {
    let key = Key::new();
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-u", "54321"]);
    run(&mut end.command()).failed_with_last_line(1, &["its group is not known", "write 54321:GROUP"]);
}

#[test]
fn who_is_refused_leaves_no_socket_and_no_pid_file_behind() {
    let (key, site) = (Key::new(), Site::new());
    let end = End::initiator(&key, "127.0.0.1:9").source(site.socket("plain"));
    run(&mut end.args(&["-u", "no-such-user", "-p", &site.name("pid")]).command())
        .failed_with_last_line(1, &["no-such-user"]);
    assert!(!site.path("plain.sock").exists() && !site.path("pid").exists());
}

#[test]
fn without_the_right_to_change_it_is_refused_with_what_to_do() {
    let key = Key::new();
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-u", "nobody"]);
    let mut command = end.command();
    if geteuid().is_root() {
        // Root without the rights that make it root.
        let mut without = Command::new("setpriv");
        without.args(["--bounding-set=-setuid,-setgid", "--inh-caps=-all"]);
        without.arg(command.get_program()).args(command.get_args());
        command = without;
    }
    run(&mut command)
        .failed_with_last_line(1, &["-u nobody: cannot", "start spipe as root, or leave -u out"]);
}
